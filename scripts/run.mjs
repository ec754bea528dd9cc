// Sets up, then runs a program: node scripts/run.mjs [--adapter] FILE [ARGUMENTS...]. Its exit code and signals are ours.
// With --adapter, a program called with the argument webgpu gets a software adapter where the machine has no GPU.
import { spawn } from 'node:child_process'
import { build, install } from './setup.mjs'

const given = process.argv.slice(2)
const adapter = given[0] === '--adapter' && given.shift()
const [file, ...args] = given
if (!file) throw new Error('usage: node scripts/run.mjs [--adapter] FILE [ARGUMENTS...]')
install()
build()

const env = { ...process.env }
if (adapter && args.some((argument) => /^(--backend=)?webgpu$/.test(argument))) {
  // Loaded late: it needs the packages.
  const { findAdapter } = await import('./adapter.mjs')
  const found = findAdapter()
  if (!found.env) console.error(found.why)
  else console.error(`WebGPU adapter: ${found.adapter}`)
  Object.assign(env, found.env)
}

// Node 20 does not run TypeScript by itself.
const loader = file.endsWith('.ts') ? ['--import', 'tsx'] : []
const child = spawn(process.execPath, [...loader, file, ...args], { stdio: 'inherit', env })

// Ctrl-C in a terminal reaches the child as well: only wait for it to finish. Without a terminal, hand it on once.
const terminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY
let interrupted = false
process.on('SIGINT', () => {
  if (!terminal && !interrupted) child.kill('SIGINT')
  interrupted = true
})
process.on('SIGTERM', () => child.kill('SIGTERM'))

child.on('exit', (code, signal) => {
  if (!signal) process.exit(code ?? 1)
  process.removeAllListeners(signal)
  process.kill(process.pid, signal)
})
