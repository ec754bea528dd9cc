/**
 * What this machine's WebAssembly offers: relaxed SIMD, pairs of 128-bit operations as one of 256 bits, threads.
 * V8 hides some of it behind flags, which are set here, at run time, before the first module is compiled.
 */

import { DeviceError, describeValue, ValueError } from '@tilegrad/core'
import { f32x4, ModuleBuilder } from '../wasm/index.ts'

/**
 * Instruction sets from small to large: SIMD of 128 bits; fused multiply-add and the like ("relaxed"); relaxed
 * SIMD that V8 pairs into 256-bit instructions (Node ≥ 24 on x86-64).
 */
export type FeatureLevel = 'simd' | 'relaxed' | 'revectorized'

/** Bounds on what `detectFeatures` may choose. */
export interface FeatureOptions {
  /**
   * The highest level to use; a lower one is chosen where the machine lacks it. Default: the highest there is, but
   * 'relaxed' on versions of Node with which pairing was never tried (27 and later).
   */
  readonly level?: FeatureLevel
  /** How many threads, the calling one included. Default: as many as the machine runs in parallel. */
  readonly threads?: number
  /** false: memory that one thread owns, even where it could be shared. */
  readonly shared?: boolean
}

/** What was found, and what modules may be compiled for: give it to `ModuleBuilder`. */
export interface Features {
  readonly level: FeatureLevel
  /** Relaxed SIMD is there and wanted. */
  readonly relaxed: boolean
  /** V8 was asked to pair 128-bit operations; whether it does depends on the code. */
  readonly revectorized: boolean
  /** Memory is shared between threads. */
  readonly shared: boolean
  /** Threads to run on, the calling one included; 1 without shared memory. */
  readonly threads: number
}

/** Node's `process`, reached without imports, so that bundles for browsers stay whole; where Node's types are known. */
type NodeProcess = typeof globalThis extends { process: infer P } ? P : never

/** Node's `process`, or undefined in a browser. */
export function nodeProcess(): NodeProcess | undefined {
  const found: Partial<NodeProcess> | undefined = globalThis.process
  const isNode = found?.versions?.node !== undefined && found.getBuiltinModule !== undefined
  return isNode ? (found as NodeProcess) : undefined
}

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

function setV8FlagOnce(flag: string): void {
  if (!flagsSet.has(flag)) setV8Flags(flag)
}

function validates(
  build: (m: ModuleBuilder) => void,
  options: { relaxed?: boolean; shared?: boolean },
): boolean {
  const m = new ModuleBuilder(options)
  build(m)
  return typeof WebAssembly === 'object' && WebAssembly.validate(m.build())
}

function hasSimd(): boolean {
  return validates((m) => m.func(['v128'], (_, x) => f32x4.add(x, x)), {})
}

function hasRelaxed(): boolean {
  const probe = (): boolean =>
    validates((m) => m.func(['v128'], (_, x) => f32x4.madd(x, x, x)), { relaxed: true })
  if (probe()) return true
  setV8FlagOnce('--experimental-wasm-relaxed-simd')
  return probe()
}

/** Node's versions with which pairing was tried. Node 22 knows the flag, but gains nothing. */
const pairing = { first: 24, last: 26 }
const pairs = '--experimental-wasm-revectorize'
let pairsWrongly = false

/**
 * Says whether V8 is to pair instructions, which no module could validate. The flag is experimental: `guard` checks what
 * it makes, but no check would survive a crash, so that versions that nobody tried must be asked for.
 */
function hasRevectorized(asked: boolean): boolean {
  const node = nodeWithFlags()
  if (node === undefined || node.arch !== 'x64' || pairsWrongly) return false
  const major = Number.parseInt(node.versions.node, 10)
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

function hasSharedMemory(): boolean {
  // A browser without cross-origin isolation has no SharedArrayBuffer, or refuses to send it to a worker.
  if (typeof SharedArrayBuffer === 'undefined' || globalThis.crossOriginIsolated === false) return false
  return validates((m) => m.func(['i32'], (f, x) => f.atomicLoad(x)), { shared: true })
}

function parallelism(): number {
  const node = nodeProcess()
  if (node !== undefined) return node.getBuiltinModule('node:os').availableParallelism()
  return globalThis.navigator?.hardwareConcurrency ?? 1
}

/**
 * Finds what this machine offers, within the bounds given, and sets the V8 flags it takes (the environment
 * variable `TILEGRAD_WASM_FLAGS=off` leaves them alone): relaxed SIMD and pairing are what is compiled from then on.
 *
 * Throws `DeviceError` where WebAssembly has no SIMD, `ValueError` for a bad number of threads.
 *
 * @param mayPair false where pairs could not be checked: none are made then
 */
export function detectFeatures(options: FeatureOptions = {}, mayPair = true): Features {
  if (!hasSimd()) {
    throw new DeviceError(
      'backend-cpu: WebAssembly SIMD is missing here; expected Node >= 20 or a browser of 2023 or later',
    )
  }
  const { level, threads } = options
  if (threads !== undefined && (!Number.isInteger(threads) || threads < 1 || threads > 256)) {
    throw new ValueError(`backend-cpu: threads is ${describeValue(threads)}; expected an integer in 1 … 256`)
  }
  const relaxed = level !== 'simd' && hasRelaxed()
  const wide = mayPair && (level === undefined || level === 'revectorized')
  const revectorized = wide && relaxed && hasRevectorized(level !== undefined)
  const shared = options.shared !== false && hasSharedMemory()
  return {
    level: revectorized ? 'revectorized' : relaxed ? 'relaxed' : 'simd',
    relaxed,
    revectorized,
    shared,
    threads: shared ? (threads ?? parallelism()) : 1,
  }
}
