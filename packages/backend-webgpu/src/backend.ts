/** A GPU as a tilegrad backend: buffers, kernels compiled on first use, commands recorded and submitted in batches. */

import {
  type Backend,
  DeviceError,
  type DType,
  dtypeInfo,
  expectOptions,
  largestHolders,
  layout,
  type Names,
  shownAs,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { operandLimit } from '@tilegrad/core/operands'
import { prepare } from './commands/prepared.ts'
import { Engine } from './commands/queue.ts'
import { type BufferStats, GpuBuffer, sizeClass } from './device/buffers.ts'
import { GPU, type Gpu, type GpuOptions, openGpu } from './device/gpu.ts'
import { software } from './device/tuning.ts'
import { tuningOf } from './kernels/matmul/tuning.ts'
import { kernelTable } from './kernels/table.ts'
import { elementOf } from './wgsl/element.ts'

/** How a WebGPU backend is set up. */
export interface WebGpuOptions extends GpuOptions {
  /** Bytes of free buffers to keep for the next tensors; default: with those in use a quarter more than ever was in use. */
  readonly maxPooledBytes?: number
}

const WEBGPU: Names<WebGpuOptions> = { ...GPU, maxPooledBytes: 1 }

/** A backend on a GPU. */
export interface WebGpuBackend extends Backend {
  readonly name: 'webgpu'
  /** The open GPU. */
  readonly gpu: Gpu
  /** Memory in use, now. */
  stats(): BufferStats
  /** Resolves when everything called so far is done. */
  finished(): Promise<void>
  /** Frees the device and all tensors on it. */
  close(): void
  /** @internal What kernels are made of; for tests and benchmarks. */
  readonly engine: Engine
}

/**
 * Opens a GPU as a backend. It is not registered as a device. The first time it takes up to two seconds to measure which
 * kernels suit the GPU, and keeps what it finds in the user's cache directory or in localStorage.
 *
 * @throws DeviceError when there is none, saying what to do; ValueError for a feature the adapter lacks.
 * @example
 * const gpu = await createWebGpuBackend()
 * withBackend(gpu, () => randn([2, 3]).matmul(randn([3, 4])).shape) // [2, 4]
 */
export async function createWebGpuBackend(options: WebGpuOptions = {}): Promise<WebGpuBackend> {
  const { maxPooledBytes, ...wanted } = expectOptions('createWebGpuBackend', options, WEBGPU)
  const gpu = await openGpu(wanted)
  const backend = backendOn(gpu, maxPooledBytes)
  // Dawn's null device runs nothing that could be measured.
  if (!gpu.isSoftware && options.backend !== 'null') backend.engine.tuning = await tuningOf(gpu)
  return backend
}

/** A backend on a GPU that is open, with a software adapter's tuning where it is one. */
export function backendOn(gpu: Gpu, maxPooledBytes?: number): WebGpuBackend {
  const engine = new Engine(gpu, maxPooledBytes, () => largestHolders(backend))
  if (gpu.isSoftware) engine.tuning = software
  const bufferOf = (view: View): GpuBuffer => {
    if (view.buffer instanceof GpuBuffer) return view.buffer
    throw new DeviceError('webgpu: got a buffer of another backend')
  }
  const backend: WebGpuBackend = {
    name: 'webgpu',
    get closed() {
      return gpu.lostInfo !== undefined
    },
    gpu,
    engine,
    kernels: kernelTable(engine),
    prepare: (calls) => prepare(engine, calls),
    ...(gpu.timestamps && {
      timer: {
        start: () => engine.startTiming(),
        count: () => engine.timed(),
        stop: () => engine.stopTiming(),
      },
    }),
    alloc: (bytes: number, dtype: DType) => {
      gpu.check('alloc')
      return engine.pool.alloc(bytes / dtypeInfo[dtype].bytes, dtype)
    },
    sizeOf: sizeClass,
    operands: operandLimit(gpu.limits.maxStorageBuffersPerShaderStage),
    free(buffer) {
      if (!(buffer instanceof GpuBuffer))
        throw new DeviceError('webgpu: free got a buffer of another backend')
      engine.pool.free(buffer)
    },
    exchange: {
      usedBytes: () => engine.pool.stats().usedBytes,
      leave: (buffer) => engine.pool.leave(buffer as GpuBuffer),
      enter: (buffer, bytes, dtype) =>
        engine.pool.enter(buffer as GpuBuffer, bytes / dtypeInfo[dtype].bytes, dtype),
    },
    write(view, data) {
      const count = layout.numel(view.shape)
      if (count === 0) return
      const part = data.length > count ? data.subarray(0, count) : data
      const { bytes, write } = elementOf(view.dtype)
      engine.write(bufferOf(view), bytes * view.offset, write(part))
    },
    async read(view): Promise<TypedArray> {
      const count = layout.numel(view.shape)
      const { bytes, read } = elementOf(view.dtype)
      return read(
        count === 0
          ? new ArrayBuffer(0)
          : await engine.read(bufferOf(view), bytes * view.offset, bytes * count),
      )
    },
    stats: () => engine.pool.stats(),
    finished: () => engine.finished(),
    close: () => gpu.close(),
  }
  const adapter = `${gpu.adapterName}${gpu.isSoftware ? ', in software' : ''}`
  return shownAs(
    backend,
    () =>
      `webgpu(${adapter}${backend.closed ? ', closed' : ''}, bytes in use=${engine.pool.stats().usedBytes.toLocaleString('en')})`,
    () => ({ name: 'webgpu', adapter }),
  )
}
