/** The CPU as a tilegrad backend: one WebAssembly memory, kernels compiled on first use, worker threads. */

import {
  type Backend,
  DeviceError,
  expectOptions,
  type KernelTable,
  layout,
  type Names,
  reclaim,
  shownAs,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { pack, unpack } from '@tilegrad/core/kernel'
import { viewOf } from './element.ts'
import { CpuBuffer, createEngine, type Engine } from './engine.ts'
import { canCheck, guard } from './guard.ts'
import { kernelTable } from './kernels/table.ts'
import { detectFeatures, type FeatureLevel, type Features } from './machine/features.ts'
import { Heap, type HeapStats } from './machine/heap.ts'
import { nodeProcess, refuseRevectorized } from './machine/node.ts'
import { Pool } from './machine/pool.ts'

/** How a CPU backend is set up. */
export interface CpuOptions {
  /** Threads to compute on, the calling one included; default all that the machine runs in parallel. */
  readonly threads?: number
  /**
   * The highest instruction set to use where the machine has it; default: the highest there is. 'revectorized' sets
   * a flag of V8, for the whole process: the environment variable `TILEGRAD_WASM_FLAGS=off` prevents it.
   */
  readonly level?: FeatureLevel
  /** false: one thread and memory of its own, even where memory could be shared. */
  readonly shared?: boolean
  /** Bytes that tensors may take at most; default, and most possible, 4 GiB. */
  readonly maxBytes?: number
  /** Microseconds that idle threads look out for work before they sleep; default 200. */
  readonly spin?: number
}

const CPU: Names<CpuOptions> = { threads: 1, level: 1, shared: 1, maxBytes: 1, spin: 1 }

/** A backend on the CPU. */
export interface CpuBackend extends Backend {
  readonly name: 'cpu'
  /** Threads that kernels run on, the calling one included. */
  readonly threads: number
  /** The instruction set that kernels are compiled for; it falls where a check finds that V8 pairs wrongly. */
  readonly level: FeatureLevel
  /** Memory in use, now, and the most there was. */
  stats(): HeapStats
  /** Makes `stats().peakBytes` start over from what is live now. */
  resetPeak(): void
  /** Resolves when all worker threads run; until then kernels run on fewer. For benchmarks; nothing needs it. */
  ready(): Promise<void>
  /** Ends the worker threads. Tensors stay readable and kernels go on, on the calling thread. */
  close(): Promise<void>
  /** @internal What kernels are made of; for tests and benchmarks. */
  readonly engine: Engine
}

/** @internal What `createCpuBackend` is made of, for tests to replace. */
export interface CpuParts {
  readonly kernelTable: (engine: Engine) => KernelTable
}

/**
 * Makes a CPU backend and starts its worker threads, in the background. It is not registered as a device.
 *
 * Where V8 pairs instructions ('revectorized'), each family of kernels is checked when it is first used, against the
 * same code unpaired; if one is wrong, all go on without pairs, with a warning.
 *
 * @throws DeviceError where WebAssembly has no SIMD, ValueError for options out of range.
 * @example
 * const cpu = createCpuBackend({ threads: 1 })
 * withBackend(cpu, () => zeros([2]).device) // → cpu
 * await cpu.close()
 */
export function createCpuBackend(options: CpuOptions = {}, parts: CpuParts = { kernelTable }): CpuBackend {
  const { maxBytes, spin, ...wanted } = expectOptions('createCpuBackend', options, CPU)
  const features = detectFeatures(wanted, canCheck)
  const heap = new Heap({ shared: features.shared, reclaim, ...(maxBytes === undefined ? {} : { maxBytes }) })
  const pool = new Pool(heap, features, spin === undefined ? {} : { spin })
  let engine = createEngine(features, heap, pool)
  let kernels = parts.kernelTable(engine)

  const elements = (view: View): TypedArray =>
    viewOf(heap.memory.buffer, view.dtype, engine.address(view), layout.numel(view.shape))
  const readSync = (view: View): TypedArray => unpack(view.dtype, elements(view))
  const memory: Omit<Backend, 'kernels'> = {
    name: 'cpu',
    limitBytes: heap.limitBytes,
    alloc: (bytes: number) => new CpuBuffer(heap.alloc(bytes), bytes),
    free(buffer) {
      if (!(buffer instanceof CpuBuffer)) throw new DeviceError('cpu: free got a buffer of another backend')
      heap.free(buffer.ptr)
    },
    write(view, data) {
      const target = elements(view)
      target.set(pack(view.dtype, data.length > target.length ? data.subarray(0, target.length) : data))
    },
    read: (view) => Promise.resolve(readSync(view)),
    readSync,
    exchange: {
      usedBytes: () => heap.stats().liveBytes,
      leave: (buffer) => heap.free((buffer as CpuBuffer).ptr),
      enter(buffer, bytes) {
        ;(buffer as CpuBuffer).ptr = heap.alloc(bytes)
      },
    },
  }
  if (canCheck && features.revectorized) {
    kernels = guard(kernels, {
      backend: { ...memory, kernels },
      plain: () => kernelTable(createEngine(features, heap, pool, 'plain')),
      fallback(kernel) {
        refuseRevectorized()
        console.warn(
          `tilegrad: WebAssembly of 256 bits computes wrongly here (${kernel}, V8 ${nodeProcess()?.versions.v8}); ` +
            "going on with 128 bits, as with level: 'relaxed'",
        )
        const narrow: Features = { ...features, level: 'relaxed', revectorized: false }
        engine = createEngine(narrow, heap, pool, 'relaxed')
        return parts.kernelTable(engine)
      },
    })
  }
  const backend: CpuBackend = {
    ...memory,
    name: 'cpu',
    threads: pool.threads,
    get level() {
      return engine.features.level
    },
    get engine() {
      return engine
    },
    kernels,
    stats: () => heap.stats(),
    resetPeak: () => heap.resetPeak(),
    ready: () => pool.ready(),
    close: () => pool.close(),
  }
  const { threads } = backend
  return shownAs(
    backend,
    () =>
      `cpu(threads=${threads}, level=${backend.level}, bytes in use=${heap.stats().liveBytes.toLocaleString('en')})`,
    () => ({ name: 'cpu', threads, level: backend.level }),
  )
}
