/** The CPU as a tilegrad backend: one WebAssembly memory, kernels compiled on first use, worker threads. */

import {
  type Backend,
  DeviceError,
  type DType,
  DTypeError,
  layout,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { CpuBuffer, createEngine, type Engine } from './engine.ts'
import { detectFeatures, type FeatureLevel } from './features.ts'
import { kernelTable } from './kernels/table.ts'
import { Heap, type HeapStats } from './memory.ts'
import { Pool } from './pool.ts'

/** How a CPU backend is set up. */
export interface CpuOptions {
  /** Threads to compute on, the calling one included; default all that the machine runs in parallel. */
  readonly threads?: number
  /** The highest instruction set to use where the machine has it; default 'relaxed'. */
  readonly level?: FeatureLevel
  /** false: one thread and memory of its own, even where memory could be shared. */
  readonly shared?: boolean
  /** Bytes that tensors may take at most; default, and most possible, 4 GiB. */
  readonly maxBytes?: number
  /** Microseconds that idle threads look out for work before they sleep; default 50. */
  readonly spin?: number
}

/** A backend on the CPU. */
export interface CpuBackend extends Backend {
  readonly name: 'cpu'
  /** Threads that kernels run on, the calling one included. */
  readonly threads: number
  /** The instruction set that kernels are compiled for. */
  readonly level: FeatureLevel
  /** Memory in use, now. */
  stats(): HeapStats
  /** Resolves when all worker threads run; until then kernels run on fewer. For benchmarks; nothing needs it. */
  ready(): Promise<void>
  /** Ends the worker threads. Tensors stay readable and kernels go on, on the calling thread. */
  close(): Promise<void>
  /** @internal What kernels are made of; for tests and benchmarks. */
  readonly engine: Engine
}

const arrays = {
  bool: Uint8Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
} as const

/**
 * Makes a CPU backend and starts its worker threads, in the background. It is not registered as a device.
 *
 * Throws `DeviceError` where WebAssembly has no SIMD, `ValueError` for options out of range.
 */
export function createCpuBackend(options: CpuOptions = {}): CpuBackend {
  const { maxBytes, spin, ...wanted } = options
  const features = detectFeatures(wanted)
  const heap = new Heap({ shared: features.shared, ...(maxBytes === undefined ? {} : { maxBytes }) })
  const pool = new Pool(heap, features, spin === undefined ? {} : { spin })
  const engine = createEngine(features, heap, pool)

  const elements = (view: View): TypedArray => {
    if (view.dtype === 'float16') throw new DTypeError('cpu: float16 is not stored; use float32')
    const { buffer } = heap.memory
    return new arrays[view.dtype](buffer, engine.address(view), layout.numel(view.shape))
  }
  const readSync = (view: View): TypedArray => elements(view).slice()
  return {
    name: 'cpu',
    threads: pool.threads,
    level: features.level,
    engine,
    kernels: kernelTable(engine),
    alloc(bytes: number, dtype: DType) {
      if (dtype === 'float16') throw new DTypeError('cpu: float16 is not stored; use float32')
      return new CpuBuffer(heap.alloc(bytes), bytes)
    },
    free(buffer) {
      if (!(buffer instanceof CpuBuffer)) throw new DeviceError('cpu: free got a buffer of another backend')
      heap.free(buffer.ptr)
    },
    write(view, data) {
      const target = elements(view)
      target.set(data.length > target.length ? data.subarray(0, target.length) : data)
    },
    read: (view) => Promise.resolve(readSync(view)),
    readSync,
    stats: () => heap.stats(),
    ready: () => pool.ready(),
    close: () => pool.close(),
  }
}
