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

// Ctrl-C in a terminal reaches the program as well: only wait for it to finish. Other signals are handed on, as messages
// to a program that says that it takes them: it can tell those that reached both of us. Others get a SIGINT only once.
let takesSignals = false
child.on('message', (message) => {
  takesSignals ||= /** @type {{ takesSignals?: boolean }} */ (message).takesSignals === true
})
const hand = (/** @type {NodeJS.Signals} */ signal) =>
  takesSignals && child.connected ? child.send({ signal }, () => {}) : child.kill(signal)
const terminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY
let interrupted = false
for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP']))
  process.on(signal, () => {
    if (signal !== 'SIGINT' || (!terminal && (takesSignals || !interrupted))) hand(signal)
    if (signal === 'SIGINT') interrupted = true
  })

// npm hands SIGTERM to its shell, which ends without a word to us.
const parent = process.ppid
const watch = setInterval(() => {
  if (process.ppid === parent) return
  clearInterval(watch)
  hand('SIGTERM')
}, 500)
if (process.env.npm_lifecycle_event === undefined) clearInterval(watch)
watch.unref()

child.on('exit', (code, signal) => {
  if (!signal) process.exit(code ?? 1)
  if (signal === 'SIGKILL') console.error('The program was killed, perhaps by the system for lack of memory.')
  process.removeAllListeners(signal)
  process.kill(process.pid, signal)
})
