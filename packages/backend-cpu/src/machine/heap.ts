/**
 * The one memory that all kernels work in, and its allocator.
 *
 * Small blocks (≤ 16 KiB) come from slabs: 64 KiB that hold blocks of one size class, with 8 classes per doubling,
 * so that a block is at most 1/8 larger than asked (or 63 bytes). Large blocks are runs of 4 KiB pages, see
 * `page-runs.ts`. Everything is O(1), and all bookkeeping lies on the JavaScript side, where no kernel can
 * overwrite it.
 *
 * Measured, alloc and free of one block: small ones 15 to 18 ns, large ones 50 to 60 ns (Node 20 and 24).
 */

import { OutOfMemoryError, TilegradError, ValueError } from '@tilegrad/core'
import { PageRuns } from './page-runs.ts'

const pageShift = 12
const pageBytes = 1 << pageShift
const wasmPageBytes = 65536
const slabBytes = 65536
const slabPages = slabBytes / pageBytes
const smallMax = 16384
/** Every block starts at a multiple of this: a cache line, and four vectors. */
const granule = 64
const maxPages = 65536

/** Sizes of small blocks in granules: all up to 16, then 8 steps per doubling. */
const classSizes: number[] = []
for (let size = 1; size * granule <= smallMax; size += size < 16 ? 1 : 1 << (31 - Math.clz32(size) - 3)) {
  classSizes.push(size * granule)
}
/** The smallest class that holds each size in granules. */
const classOf = new Uint8Array(smallMax / granule + 1)
for (let size = 1, c = 0; size < classOf.length; size++) {
  while ((classSizes[c] as number) < size * granule) c++
  classOf[size] = c
}

/** What `Heap.stats` tells; bytes count whole blocks, rounding included. */
export interface HeapStats {
  /** Blocks handed out and not freed. */
  readonly liveBlocks: number
  /** Bytes in live blocks. */
  readonly liveBytes: number
  /** The most that `liveBytes` has been, since the start or the last `resetPeak`. */
  readonly peakBytes: number
  /** Bytes of the heap that are free for reuse. */
  readonly pooledBytes: number
  /** Size of the WebAssembly memory; it never shrinks. */
  readonly heapBytes: number
  /** The largest size that it may reach. */
  readonly limitBytes: number
}

/** A typed-array class, as given to `Heap.view`. */
export interface ViewConstructor<V> {
  readonly BYTES_PER_ELEMENT: number
  new (buffer: ArrayBufferLike, byteOffset: number, length: number): V
}

/** 64 KiB cut into blocks of one size. */
class Slab {
  readonly base: number
  readonly size: number
  readonly sizeClass: number
  readonly capacity: number
  /** 1 for live blocks. */
  readonly live: Uint8Array
  /** A stack of the blocks that were freed; blocks from `fresh` on were never used. */
  readonly freed: Uint16Array
  freedCount = 0
  fresh = 0
  used = 0
  // Neighbours among the slabs of the class that have a free block.
  next: Slab | undefined
  previous: Slab | undefined

  constructor(base: number, sizeClass: number) {
    this.base = base
    this.sizeClass = sizeClass
    this.size = classSizes[sizeClass] as number
    this.capacity = Math.floor(slabBytes / this.size)
    this.live = new Uint8Array(this.capacity)
    this.freed = new Uint16Array(this.capacity)
  }
}

/** How large a `Heap` may be. */
export interface HeapOptions {
  /** Memory that threads share; needs `Features.shared`. Default false. */
  readonly shared?: boolean
  /** Bytes at the start; default 16 MiB, if so many are allowed. The operating system provides pages when they are first written. */
  readonly initialBytes?: number
  /** Bytes at most; default, and most possible, 4 GiB. Only address space is reserved. */
  readonly maxBytes?: number
  /** Called when there is no memory left, to free some. */
  readonly reclaim?: () => void
}

/** One WebAssembly memory with a pooled allocator. Addresses are bytes, 1 … 2³² − 1; 0 is never a block. */
export class Heap {
  readonly memory: WebAssembly.Memory
  readonly shared: boolean
  readonly limitBytes: number
  readonly #reclaim: (() => void) | undefined

  // Views of all memory, renewed when it grows: read them from the heap each time, index them by address / size.
  u8!: Uint8Array
  i32!: Int32Array
  u32!: Uint32Array
  f32!: Float32Array
  f64!: Float64Array

  readonly #runs: PageRuns
  /** The slab that each page belongs to. */
  readonly #slabAt: (Slab | undefined)[] = []
  /** The first slab of each class that has a free block. */
  readonly #open: (Slab | undefined)[] = classSizes.map(() => undefined)

  #liveBlocks = 0
  #liveBytes = 0
  #peakBytes = 0

  /** Throws `ValueError` for bad sizes, `OutOfMemoryError` where not even the initial size can be had. */
  constructor(options: HeapOptions = {}) {
    const { shared = false, maxBytes = 2 ** 32, initialBytes = Math.min(2 ** 24, maxBytes) } = options
    const initial = Math.max(1, Math.ceil(initialBytes / wasmPageBytes))
    let maximum = Math.floor(maxBytes / wasmPageBytes)
    if (!(initial >= 1 && initial <= maximum && maximum <= maxPages)) {
      throw new ValueError(
        `memory: sizes are ${initialBytes} and at most ${maxBytes} bytes; expected 64 KiB <= initial <= max <= 4 GiB`,
      )
    }
    let memory: WebAssembly.Memory | undefined
    while (memory === undefined) {
      try {
        memory = new WebAssembly.Memory({ initial, maximum, shared })
      } catch {
        // Address space can be limited (ulimit -v, 32-bit browsers): less of it may still be had.
        if (maximum === initial) throw new OutOfMemoryError(initialBytes, 0, maximum * wasmPageBytes)
        maximum = Math.max(initial, maximum >> 1)
      }
    }
    this.memory = memory
    this.#reclaim = options.reclaim
    this.shared = shared
    this.limitBytes = maximum * wasmPageBytes
    // Page 0 is never given out, so that address 0 can mean "none".
    this.#runs = new PageRuns(memory.buffer.byteLength / pageBytes)
    this.#adopt()
  }

  /**
   * A block of at least `bytes` bytes at a multiple of 64; its content is undefined. Views taken before may be out
   * of date after this call. Throws `OutOfMemoryError`.
   */
  alloc(bytes: number): number {
    if (!(bytes >= 0)) throw new ValueError(`memory: ${bytes} bytes asked for; expected a number >= 0`)
    if (bytes > smallMax) {
      // Before any arithmetic on pages, whose numbers are of 32 bits.
      if (bytes > this.limitBytes) throw new OutOfMemoryError(bytes, this.#liveBytes, this.limitBytes)
      const pages = Math.ceil(bytes / pageBytes)
      const page = this.#take(pages, bytes)
      this.#count(pages * pageBytes)
      return page * pageBytes
    }
    const sizeClass = classOf[Math.max(1, (bytes + granule - 1) >>> 6)] as number
    const slab = this.#open[sizeClass] ?? this.#newSlab(sizeClass)
    const index = slab.freedCount > 0 ? (slab.freed[--slab.freedCount] as number) : slab.fresh++
    slab.live[index] = 1
    if (++slab.used === slab.capacity) this.#close(slab)
    this.#count(slab.size)
    return slab.base + index * slab.size
  }

  /** Gives a block back. Throws `TilegradError` for an address that is not a live block, such as one freed before. */
  free(ptr: number): void {
    const slab = this.#slabAt[ptr >>> pageShift]
    if (slab === undefined) {
      const bytes = this.sizeOf(ptr)
      this.#liveBlocks--
      this.#liveBytes -= bytes
      this.#runs.release(ptr >>> pageShift)
      return
    }
    const index = (ptr - slab.base) / slab.size
    if (slab.live[index] !== 1) this.#refuse(ptr)
    slab.live[index] = 0
    slab.freed[slab.freedCount++] = index
    this.#liveBlocks--
    this.#liveBytes -= slab.size
    if (slab.used-- === slab.capacity) this.#reopen(slab)
    // One empty slab per class stays: a block that is allocated and freed in turn must not cost a slab each time.
    if (slab.used === 0 && (slab.next !== undefined || slab.previous !== undefined)) this.#dissolve(slab)
  }

  /** The bytes that a live block really has (≥ what was asked for). Throws `TilegradError` for other addresses. */
  sizeOf(ptr: number): number {
    const slab = this.#slabAt[ptr >>> pageShift]
    if (slab !== undefined) {
      if (slab.live[(ptr - slab.base) / slab.size] !== 1) this.#refuse(ptr)
      return slab.size
    }
    const pages = ptr % pageBytes === 0 ? this.#runs.lengthAt(ptr / pageBytes) : 0
    if (pages === 0) this.#refuse(ptr)
    return pages * pageBytes
  }

  /** `length` elements at an address, as a typed array; not to be kept across `alloc`. */
  view<V>(ptr: number, type: ViewConstructor<V>, length: number): V {
    return new type(this.memory.buffer, ptr, length)
  }

  /** Counters, now. */
  stats(): HeapStats {
    const heapBytes = this.#runs.pages * pageBytes
    return {
      liveBlocks: this.#liveBlocks,
      liveBytes: this.#liveBytes,
      peakBytes: this.#peakBytes,
      pooledBytes: heapBytes - pageBytes - this.#liveBytes,
      heapBytes,
      limitBytes: this.limitBytes,
    }
  }

  /** Starts `peakBytes` anew from what is live now. */
  resetPeak(): void {
    this.#peakBytes = this.#liveBytes
  }

  #count(bytes: number): void {
    this.#liveBlocks++
    this.#liveBytes += bytes
    if (this.#liveBytes > this.#peakBytes) this.#peakBytes = this.#liveBytes
  }

  #refuse(ptr: number): never {
    throw new TilegradError(`memory: address ${ptr} is not a live block; was it freed before?`)
  }

  // --- slabs

  #newSlab(sizeClass: number): Slab {
    const page = this.#take(slabPages, classSizes[sizeClass] as number)
    const slab = new Slab(page * pageBytes, sizeClass)
    this.#slabAt.fill(slab, page, page + slabPages)
    this.#reopen(slab)
    return slab
  }

  #reopen(slab: Slab): void {
    const first = this.#open[slab.sizeClass]
    slab.next = first
    if (first !== undefined) first.previous = slab
    this.#open[slab.sizeClass] = slab
  }

  #close(slab: Slab): void {
    if (slab.previous === undefined) this.#open[slab.sizeClass] = slab.next
    else slab.previous.next = slab.next
    if (slab.next !== undefined) slab.next.previous = slab.previous
    slab.next = undefined
    slab.previous = undefined
  }

  #dissolve(slab: Slab): void {
    this.#close(slab)
    const page = slab.base >>> pageShift
    this.#slabAt.fill(undefined, page, page + slabPages)
    this.#runs.release(page)
  }

  // --- runs and growth

  /** The first page of a new run; grows the memory if it must. `bytes` is for the error message. */
  #take(pages: number, bytes: number): number {
    const page = this.#runs.take(pages)
    if (page >= 0) return page
    if (!this.#grow(pages)) {
      this.#reclaim?.()
      const page = this.#runs.take(pages)
      if (page >= 0) return page
      if (!this.#grow(pages)) throw this.#exhausted(pages, bytes)
    }
    return this.#runs.take(pages)
  }

  /** Makes room for a run of `pages` pages at the end, if there may be so much. */
  #grow(pages: number): boolean {
    const perWasmPage = wasmPageBytes / pageBytes
    const now = this.#runs.pages / perWasmPage
    const left = this.limitBytes / wasmPageBytes - now
    const needed = Math.ceil((pages - this.#runs.freeAtEnd()) / perWasmPage)
    // By a quarter at least: growth renews all views, and pages that are not used cost nothing.
    const generous = Math.min(left, Math.max(needed, Math.floor(now / 4)))
    if (needed > left || !(this.#tryGrow(generous) || this.#tryGrow(needed))) return false
    this.#runs.extend(this.memory.buffer.byteLength / pageBytes)
    this.#adopt()
    return true
  }

  #exhausted(pages: number, bytes: number): OutOfMemoryError {
    const left = this.limitBytes / pageBytes - this.#runs.pages
    const largest = Math.max(this.#runs.largest(), this.#runs.freeAtEnd() + left)
    // What would fit, but was not to be had, the operating system has refused.
    if (largest >= pages) return new OutOfMemoryError(bytes, this.#liveBytes, this.#runs.pages * pageBytes)
    const free = this.#runs.free() + left
    // Enough is free, but nowhere in one piece.
    const pieces = free < pages ? undefined : { free: free * pageBytes, largest: largest * pageBytes }
    return new OutOfMemoryError(bytes, this.#liveBytes, this.limitBytes, pieces)
  }

  #tryGrow(wasmPages: number): boolean {
    try {
      this.memory.grow(wasmPages)
      return true
    } catch {
      return false
    }
  }

  /** Renews all views. */
  #adopt(): void {
    const { buffer } = this.memory
    this.u8 = new Uint8Array(buffer)
    this.i32 = new Int32Array(buffer)
    this.u32 = new Uint32Array(buffer)
    this.f32 = new Float32Array(buffer)
    this.f64 = new Float64Array(buffer)
    while (this.#slabAt.length < this.#runs.pages) this.#slabAt.push(undefined)
  }
}
