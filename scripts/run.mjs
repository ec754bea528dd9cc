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

// Node 20 does not run TypeScript by itself. The channel tells the program when this process is gone.
const loader = file.endsWith('.ts') ? ['--import', 'tsx'] : []
const child = spawn(process.execPath, [...loader, file, ...args], {
  stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
  env,
})

// A program that says so takes signals as messages, and so can tell what reached both of us from what only we got.
// Others get the signal: Ctrl-C in a terminal has reached them, too; without a terminal it is handed on once.
let takesSignals = false
child.on('message', (message) => {
  takesSignals ||= /** @type {{ takesSignals?: boolean }} */ (message).takesSignals === true
})
const terminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY
let interrupted = false
for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP']))
  process.on(signal, () => {
    if (takesSignals && child.connected) child.send({ signal }, () => {})
    else if (signal !== 'SIGINT') child.kill(signal)
    else if (!terminal && !interrupted) child.kill(signal)
    if (signal === 'SIGINT') interrupted = true
  })

child.on('exit', (code, signal) => {
  if (!signal) process.exit(code ?? 1)
  if (signal === 'SIGKILL') console.error('The program was killed, perhaps by the system for lack of memory.')
  process.removeAllListeners(signal)
  process.kill(process.pid, signal)
})
