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
  program,
  shownAs,
  specialize,
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
import { memoryOf } from './wgsl/element.ts'

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
 * Opens a GPU as a backend. It is not registered as a device. The first time it takes up to four seconds to measure which
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
      const { bytes, write } = memoryOf(view.dtype)
      const part = write(data.length > count ? data.subarray(0, count) : data)
      const first = bytes * view.offset
      // Queues write whole words.
      if (first % 4 === 0 && part.byteLength % 4 === 0) engine.write(bufferOf(view), first, part)
      else writeHalfWords(backend, bufferOf(view), view, part)
    },
    async read(view): Promise<TypedArray> {
      const count = layout.numel(view.shape)
      const { bytes, read } = memoryOf(view.dtype)
      if (count === 0) return read(new ArrayBuffer(0))
      // Copies take whole words.
      const first = bytes * view.offset
      const before = first % 4
      const size = bytes * count
      const words = await engine.read(bufferOf(view), first - before, 4 * Math.ceil((before + size) / 4))
      return read(words.byteLength === size ? words : words.slice(before, before + size))
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

const COPY = program('copy', 1, ([x]) => x)

/** Writes elements of 16 bits that begin or end in the middle of a word: they are put elsewhere and copied. */
function writeHalfWords(
  backend: WebGpuBackend,
  buffer: GpuBuffer,
  view: View,
  { buffer: memory, byteOffset, byteLength }: ArrayBufferView,
): void {
  const { engine } = backend
  const words = new Uint8Array(4 * Math.ceil(byteLength / 4))
  words.set(new Uint8Array(memory, byteOffset, byteLength))
  const { dtype, shape } = view
  if (view.offset === 0 && layout.numel(shape) === buffer.count) {
    engine.write(buffer, 0, words)
    return
  }
  const count = layout.numel(shape)
  const apart = engine.pool.alloc(count, dtype)
  engine.write(apart, 0, words)
  const from: View = { buffer: apart, dtype, shape, strides: layout.contiguousStrides(shape), offset: 0 }
  const kernel = specialize(COPY, [dtype], [], [dtype])
  backend.kernels.elementwise.run([view], [from], { kernel }, [])
  engine.pool.free(apart)
}
