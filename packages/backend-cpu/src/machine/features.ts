/**
 * What this machine's WebAssembly offers: relaxed SIMD, pairs of 128-bit operations as one of 256 bits, threads.
 * V8 hides some of it behind flags, which are set at run time, before the first module is compiled: see node.ts.
 */

import { DeviceError, describeValue, ValueError } from '@tilegrad/core'
import { f32x4, ModuleBuilder } from '../wasm/index.ts'
import { hasRevectorized, nodeParallelism, setV8FlagOnce } from './node.ts'

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

function hasSharedMemory(): boolean {
  // A browser without cross-origin isolation has no SharedArrayBuffer, or refuses to send it to a worker.
  if (typeof SharedArrayBuffer === 'undefined' || globalThis.crossOriginIsolated === false) return false
  return validates((m) => m.func(['i32'], (f, x) => f.atomicLoad(x)), { shared: true })
}

const parallelism = (): number => nodeParallelism() ?? globalThis.navigator?.hardwareConcurrency ?? 1

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
