/**
 * Where the parameters of dispatches lie: in one uniform buffer, a slot for each. Bind groups point to slots and are
 * found again by them, so that a dispatch takes no dynamic offset, which would cost a seventh of all its calls.
 *
 * Recorded dispatches whose parameters never change keep their slots, which are written once. All others take the next
 * slot of their batch: in a loop that repeats itself, the one they had before. Since the queue keeps order, the next
 * batch can write the same slots.
 */

import { usage } from '../device/buffers.ts'
import type { Repeated } from './dispatch.ts'

/** What uniform buffers are aligned to on every GPU. */
const unit = 256
/** The first multiple of that after `bytes` bytes at `at`. */
export const after = (at: number, bytes: number): number => at + Math.ceil(bytes / unit) * unit
/** Of a batch: as many slots as it has dispatches at most. */
const passing = 65536
const lasting = 2 ** 20

export class Params {
  readonly buffer: GPUBuffer
  readonly #queue: GPUQueue
  readonly #bytes = new ArrayBuffer(passing + lasting)
  readonly u32: Uint32Array = new Uint32Array(this.#bytes)
  readonly f32: Float32Array = new Float32Array(this.#bytes)
  /** The end of the batch's slots, and of those that last. */
  #end = 0
  #lastingEnd = passing
  /** So far the lasting ones have been written. */
  #written = passing
  /** Counts how often the lasting slots were given up. */
  #era = 0

  constructor(device: GPUDevice) {
    this.#queue = device.queue
    this.buffer = device.createBuffer({ size: passing + lasting, usage: usage.UNIFORM | usage.COPY_DST })
  }

  /** Has the batch room for one more? */
  fits(bytes: number): boolean {
    return this.#end + bytes <= passing
  }

  /** A slot of the batch; what is in it is for the caller to write. */
  next(bytes: number): number {
    const at = this.#end
    this.#end = after(at, bytes)
    return at
  }

  /** The slot that these words have or get, or −1 where there is no room for it until `startOver`. */
  lasting(step: Repeated, bytes: number): number {
    if (step.era === this.#era) return step.at
    const at = this.#lastingEnd
    if (at + bytes > passing + lasting) return -1
    this.u32.set(step.words, at >>> 2)
    this.#lastingEnd = after(at, bytes)
    step.era = this.#era
    step.at = at
    return at
  }

  /** Gives up the lasting slots; to be called when all that uses them has been submitted. */
  startOver(): void {
    this.#era++
    this.#lastingEnd = this.#written = passing
  }

  /** Writes what the batch needs, before it is submitted. */
  flush(): void {
    if (this.#end > 0) this.#queue.writeBuffer(this.buffer, 0, this.#bytes, 0, this.#end)
    const [from, to] = [this.#written, this.#lastingEnd]
    if (to > from) this.#queue.writeBuffer(this.buffer, from, this.#bytes, from, to - from)
    this.#end = 0
    this.#written = to
  }
}
