/** GPU memory: one buffer per storage, recycled by size. */

import { type DType, OutOfMemoryError, type View } from '@tilegrad/core'
import { memoryOf } from '../wgsl/element.ts'
import type { Gpu } from './gpu.ts'

/** This backend's piece of memory, which an empty tensor has as well. */
export class GpuBuffer {
  gpu: GPUBuffer
  /** Unique: bind groups are cached by it. */
  id: number
  /** Of the GPU's buffer; at least what the tensor needs. */
  bytes: number
  /** Where it lies while it is free. */
  shelf: Shelf
  dtype: DType = 'float32'
  /** The elements that it was handed out for. */
  count = 0
  /** The batch of commands that last used it; see `Engine`. */
  batch = -1

  constructor(gpu: GPUBuffer, id: number, shelf: Shelf) {
    this.gpu = gpu
    this.id = id
    this.bytes = shelf.bytes
    this.shelf = shelf
  }
}

/** The memory of a view; of another backend's view it is none, which `write` and `read` say. */
export const bufferOf = (view: View): GpuBuffer => view.buffer as GpuBuffer

/** The free buffers of a size. */
interface Shelf {
  readonly bytes: number
  /**
   * The oldest last, which is handed out next. Which one that is thus depends on what is free, not on the order in
   * which it came back: a step that repeats itself gets the same buffers, and finds its bind groups.
   */
  readonly free: GpuBuffer[]
  /** When a buffer came back last, counted in buffers. */
  used: number
}

/** What memory of a GPU is in use. */
export interface BufferStats {
  /** Held by tensors. */
  readonly usedBytes: number
  /** How many buffers tensors have. */
  readonly usedBuffers: number
  /** Free, kept for the next tensors. */
  readonly pooledBytes: number
  /** How many buffers are free for the next tensors. */
  readonly pooledBuffers: number
  /** Most that was held by tensors at once. */
  readonly peakBytes: number
  /** Buffers ever made: flat in a loop that repeats itself. */
  readonly created: number
}

const minBytes = 256
/** Kept in any case, unless told otherwise. */
const leastPooled = 2 ** 28

/** The next size of a buffer: four steps to every power of two, so that at most a fifth is wasted. */
export function sizeClass(bytes: number): number {
  if (bytes <= minBytes) return minBytes
  // Logarithms and powers are slow.
  const exponent = bytes <= 2 ** 32 ? 31 - Math.clz32(bytes - 1) : Math.floor(Math.log2(bytes - 1))
  const step = exponent < 32 ? 1 << Math.max(6, exponent - 2) : 2 ** (exponent - 2)
  return Math.ceil(bytes / step) * step
}

/** Keeps a list in order, the oldest last. */
function insert(list: GpuBuffer[], buffer: GpuBuffer): void {
  let i = list.length
  list.push(buffer)
  for (; i > 0 && list[i - 1].id < buffer.id; i--) list[i] = list[i - 1]
  list[i] = buffer
}

/** What a pool needs of the engine. */
export interface PoolOwner {
  /** Destroys a buffer once nothing recorded uses it any more. */
  retire(buffer: GpuBuffer): void
  /** Told, some time after a buffer was made, that the device had no memory for it. */
  exhausted(error: OutOfMemoryError): void
  /** Who holds most, as text. */
  holders(): string
}

/** Hears of the buffers that a kernel takes and gives back while it runs. */
export interface BufferListener {
  /** Whose kernel it is. */
  readonly name: string
  /** A buffer of at least so many bytes to hand out in place of one of the pool's. */
  lend(bytes: number): GpuBuffer | undefined
  alloc(buffer: GpuBuffer, count: number, dtype: DType): void
  /** True: the buffer stays taken. */
  free(buffer: GpuBuffer): boolean
}

/** Hands out buffers, and keeps those that come back for the next ones of their size. */
export class BufferPool {
  readonly #gpu: Gpu
  /** Bytes of a buffer; asking the device is slow. */
  readonly #largest: number
  readonly #shelves = new Map<number, Shelf>()
  #returned = 0
  readonly #maxPooled: number | undefined
  readonly #owner: PoolOwner
  #used = 0
  #usedCount = 0
  #pooled = 0
  #pooledCount = 0
  #peak = 0
  #created = 0
  listener: BufferListener | null = null

  constructor(gpu: Gpu, maxPooledBytes: number | undefined, owner: PoolOwner) {
    this.#gpu = gpu
    this.#largest = Math.min(gpu.limits.maxBufferSize, gpu.limits.maxStorageBufferBindingSize)
    this.#maxPooled = maxPooledBytes
    this.#owner = owner
  }

  /** A buffer for `count` elements. Throws DTypeError, or OutOfMemoryError if the device has no buffers of that size. */
  alloc(count: number, dtype: DType): GpuBuffer {
    const most = this.#largest
    const wanted = memoryOf(dtype).bytes * count
    if (wanted > most) {
      const error = new OutOfMemoryError(wanted, this.#used, most)
      const what = this.listener ? `${this.listener.name}: its workspace` : 'webgpu: a tensor'
      error.message = `${what} of ${count} elements takes ${wanted} bytes; ${this.#gpu.adapterName} allows ${most} per buffer. Split it`
      throw error
    }
    const bytes = Math.min(sizeClass(wanted), most - (most % 4))
    const buffer = this.listener?.lend(bytes) ?? this.#take(bytes)
    buffer.dtype = dtype
    buffer.count = count
    this.listener?.alloc(buffer, count, dtype)
    return buffer
  }

  #take(bytes: number): GpuBuffer {
    let shelf = this.#shelves.get(bytes)
    if (!shelf) {
      shelf = { bytes, free: [], used: 0 }
      this.#shelves.set(bytes, shelf)
    }
    const known = shelf.free.pop()
    if (known) {
      this.#pooled -= bytes
      this.#pooledCount--
    }
    const buffer = known ?? this.#create(shelf)
    this.#used += bytes
    this.#usedCount++
    this.#peak = Math.max(this.#peak, this.#used)
    return buffer
  }

  free(buffer: GpuBuffer): void {
    if (this.listener?.free(buffer)) return
    this.#used -= buffer.bytes
    this.#usedCount--
    const { shelf } = buffer
    insert(shelf.free, buffer)
    shelf.used = ++this.#returned
    this.#pooled += buffer.bytes
    this.#pooledCount++
    const most = this.#maxPooled ?? Math.max(leastPooled, 1.25 * this.#peak - this.#used)
    if (this.#pooled > most) this.#evict(most)
  }

  /** Gives what a buffer stands for back, and keeps its name: see `enter`. */
  leave(buffer: GpuBuffer): void {
    const { gpu, id, shelf, dtype, batch } = buffer
    this.free(Object.assign(new GpuBuffer(gpu, id, shelf), { dtype, batch }))
  }

  /** Makes a buffer that was left stand for another one. */
  enter(buffer: GpuBuffer, count: number, dtype: DType): void {
    Object.assign(buffer, this.alloc(count, dtype))
  }

  /** Gives free buffers back to the device, those of the size that was used longest ago first. */
  #evict(most: number): void {
    for (const { bytes, free } of [...this.#shelves.values()].sort((a, b) => a.used - b.used))
      while (free.length > 0) {
        if (this.#pooled <= most) return
        this.#owner.retire(free.shift() as GpuBuffer)
        this.#pooled -= bytes
        this.#pooledCount--
      }
  }

  /** Gives all free buffers back to the device. */
  trim(): void {
    this.#evict(0)
  }

  stats(): BufferStats {
    return {
      usedBytes: this.#used,
      usedBuffers: this.#usedCount,
      pooledBytes: this.#pooled,
      pooledBuffers: this.#pooledCount,
      peakBytes: this.#peak,
      created: this.#created,
    }
  }

  #create(shelf: Shelf): GpuBuffer {
    const { bytes } = shelf
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST
    const { device } = this.#gpu
    device.pushErrorScope('out-of-memory')
    const buffer = new GpuBuffer(device.createBuffer({ size: bytes, usage }), this.#created++, shelf)
    const used = this.#used
    // Asked now, as the device answers when scopes may have ended; of small ones nobody wants to know.
    const holders = bytes >= 2 ** 20 ? this.#owner.holders() : ''
    device.popErrorScope().then(
      (refused) => {
        if (!refused) return
        const error = new OutOfMemoryError(bytes, used, Number.POSITIVE_INFINITY)
        if (holders) error.message += `. Of what running scopes and their graphs held, ${holders}`
        this.#owner.exhausted(error)
      },
      () => {}, // The device is lost, which is told elsewhere.
    )
    return buffer
  }
}

/** WebGPU's numbers, which Node has no globals for. */
const GPUBufferUsage = {
  MAP_READ: 1,
  COPY_SRC: 4,
  COPY_DST: 8,
  UNIFORM: 64,
  STORAGE: 128,
  QUERY_RESOLVE: 512,
}

export { GPUBufferUsage as usage }
