/**
 * What there is in Node alone: its process, flags of V8, its workers. Bundles for browsers get `node-none.ts` in its place,
 * as `browser` in package.json says.
 */

import { TilegradError } from '@tilegrad/core'
import { type Helper, idleHelper, type StartData } from './helper.ts'
import { workerSource } from './worker-source.ts'

/** Node's `process`, reached without imports, so that bundles for browsers stay whole; where Node's types are known. */
type NodeProcess = typeof globalThis extends { process: infer P } ? P : never

/** Node's `process`, or undefined in a browser. */
export function nodeProcess(): NodeProcess | undefined {
  const found: Partial<NodeProcess> | undefined = globalThis.process
  const isNode = found?.versions?.node !== undefined && found.getBuiltinModule !== undefined
  return isNode ? (found as NodeProcess) : undefined
}

/** The first number of Node's version; 0 elsewhere. */
export const nodeMajor = (): number => Number.parseInt(nodeProcess()?.versions.node ?? '0', 10)

/** How many threads Node thinks are worth it; undefined elsewhere. */
export const nodeParallelism = (): number | undefined =>
  nodeProcess()?.getBuiltinModule('node:os').availableParallelism()

/** V8's flags are of the process, and most are set once. */
const flagsSet = new Set<string>()

/** Node, if flags of V8 may be set here: Bun and Deno show a `process`, too, but have no such flags. */
function nodeWithFlags(): NodeProcess | undefined {
  const node = nodeProcess()
  if (node === undefined || 'bun' in node.versions || 'deno' in node.versions) return undefined
  return node.env.TILEGRAD_WASM_FLAGS === 'off' ? undefined : node
}

function setV8Flags(...flags: readonly string[]): void {
  const v8 = nodeWithFlags()?.getBuiltinModule('node:v8')
  if (v8 === undefined) return
  for (const flag of flags) {
    flagsSet.add(flag)
    v8.setFlagsFromString(flag)
  }
}

/** Sets a flag of V8, if nobody has. */
export function setV8FlagOnce(flag: string): void {
  if (!flagsSet.has(flag)) setV8Flags(flag)
}

/** Node's versions with which pairing was tried. Node 22 knows the flag, but gains nothing. */
const pairing = { first: 24, last: 26 }
const pairs = '--experimental-wasm-revectorize'
let pairsWrongly = false

/**
 * Says whether V8 is to pair instructions, which no module could validate. The flag is experimental: `guard` checks what
 * it makes, but no check would survive a crash, so that versions that nobody tried must be asked for.
 */
export function hasRevectorized(asked: boolean): boolean {
  const node = nodeWithFlags()
  if (node === undefined || node.arch !== 'x64' || pairsWrongly) return false
  const major = nodeMajor()
  if (major < pairing.first || (major > pairing.last && !asked)) return false
  setV8FlagOnce(pairs)
  return true
}

/** Takes the flag back, for good: it compiled something wrongly. What V8 compiles from now on is not paired. */
export function refuseRevectorized(): void {
  pairsWrongly = true
  setV8Flags('--no-experimental-wasm-revectorize')
}

/**
 * Runs `fn`; WebAssembly that is compiled and called in it is compiled anew by the optimising compiler, while the
 * caller waits, when a call ends. Otherwise that happens in the background, once a function has run for a while, and
 * V8's first compiler pairs nothing.
 */
export function optimizedAtOnce<T>(fn: () => T): T {
  // Flags cannot be read: who started Node with such ones keeps them. Versions that cannot pair lack some.
  const own = nodeProcess()?.execArgv.some((arg) => /wasm.(sync|tier)/.test(arg))
  if (own || !flagsSet.has(pairs)) return fn()
  setV8Flags('--wasm-sync-tier-up', '--wasm-tiering-budget=1')
  try {
    return fn()
  } finally {
    // 13,000,000 is what the versions of `pairing` start with.
    setV8Flags('--no-wasm-sync-tier-up', '--wasm-tiering-budget=13000000')
  }
}

/** Starts a worker of Node; undefined elsewhere. */
export function startInNode(data: StartData, onEnd: (helper: Helper) => void): Helper | undefined {
  const threads = nodeProcess()?.getBuiltinModule('node:worker_threads')
  if (threads === undefined) return undefined
  const worker = new threads.Worker(workerSource, {
    eval: true,
    workerData: data,
    // Loaders and flags of the main program are not for this code; they would cost tens of milliseconds.
    execArgv: [],
    env: threads.SHARE_ENV,
    trackUnmanagedFds: false,
  })
  worker.unref()
  const started = new Promise<void>((resolve, reject) => {
    worker.once('message', () => {
      // Asked once while it lives, Node tells later that it has gone.
      helper.alive()
      resolve()
    })
    worker.once('error', reject)
    worker.once('exit', (code) =>
      reject(new TilegradError(`pool: worker ${data.thread} ended, code ${code}`)),
    )
  })
  let exited = false
  const helper: Helper = {
    ...idleHelper(data.thread, started),
    // Reads the state of the thread without a turn of the caller's event loop. Node gives idle = −1 for a thread that
    // has gone, and zeros, whatever the thread does, until the caller's event loop has seen it start.
    alive: () => {
      const { idle, active } = worker.performance.eventLoopUtilization()
      if (exited || idle === -1) return false
      return active > 0 ? true : 'unknown'
    },
    hold: (on) => (on ? worker.ref() : worker.unref()),
    terminate: async () => {
      await worker.terminate()
    },
  }
  // An 'error' event that nobody listens to would end the process.
  worker.on('error', () => {})
  worker.once('exit', () => {
    exited = true
    onEnd(helper)
  })
  return helper
}
