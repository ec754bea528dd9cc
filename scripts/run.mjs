// Sets up, then runs a program: node scripts/run.mjs FILE [ARGUMENTS...]. Its exit code and signals are ours.
import { spawn } from 'node:child_process'
import { build, install } from './setup.mjs'

const [file, ...args] = process.argv.slice(2)
if (!file) throw new Error('usage: node scripts/run.mjs FILE [ARGUMENTS...]')
install()
build()

// Node 20 does not run TypeScript by itself.
const loader = file.endsWith('.ts') ? ['--import', 'tsx'] : []
const child = spawn(process.execPath, [...loader, file, ...args], { stdio: 'inherit' })

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
