/**
 * Times of dispatches by the GPU's clock: each in a pass of its own, which keeps them from overlapping. The times of a
 * batch come when it is done. Test: profile.test.ts.
 */

import type { DeviceSpan } from '@tilegrad/core'
import { usage } from '../device/buffers.ts'
import type { Gpu } from '../device/gpu.ts'

export class Timing {
  readonly #gpu: Gpu
  readonly #set: GPUQuerySet
  readonly #resolved: GPUBuffer
  readonly #spans: DeviceSpan[] = []
  /** When the first dispatch that was timed began, by the GPU's clock, in nanoseconds. */
  #origin: bigint | null = null
  /** Dispatches of the batch that have been encoded. */
  #labels: string[] = []
  readonly #pending: Promise<void>[] = []

  /** For batches of at most so many dispatches. */
  constructor(gpu: Gpu, most: number) {
    this.#gpu = gpu
    this.#set = gpu.device.createQuerySet({ type: 'timestamp', count: 2 * most })
    this.#resolved = gpu.device.createBuffer({ size: 16 * most, usage: usage.QUERY_RESOLVE | usage.COPY_SRC })
  }

  /** Dispatches so far, of those that have been encoded. */
  get count(): number {
    return this.#spans.length + this.#labels.length
  }

  /** A pass for one dispatch. */
  pass(encoder: GPUCommandEncoder, label: string): GPUComputePassEncoder {
    const i = 2 * (this.#labels.push(label) - 1)
    return encoder.beginComputePass({
      label,
      timestampWrites: {
        querySet: this.#set,
        beginningOfPassWriteIndex: i,
        endOfPassWriteIndex: i + 1,
      },
    })
  }

  /** Ends a batch. Returns what is to be called once it has been submitted. */
  resolve(encoder: GPUCommandEncoder): () => void {
    const labels = this.#labels
    if (labels.length === 0) return () => {}
    this.#labels = []
    const size = 16 * labels.length
    const staging = this.#gpu.device.createBuffer({ size, usage: usage.MAP_READ | usage.COPY_DST })
    encoder.resolveQuerySet(this.#set, 0, 2 * labels.length, this.#resolved, 0)
    encoder.copyBufferToBuffer(this.#resolved, 0, staging, 0, size)
    return () => this.#pending.push(this.#collect(staging, labels))
  }

  async #collect(staging: GPUBuffer, labels: readonly string[]): Promise<void> {
    const spans = this.#spans
    const first = spans.length
    for (const label of labels) spans.push({ label, start: 0, ms: 0 })
    await this.#gpu.answer('profile', staging.mapAsync(1))
    const ns = new BigInt64Array(staging.getMappedRange())
    labels.forEach((label, i) => {
      const [from, to] = [ns[2 * i] as bigint, ns[2 * i + 1] as bigint]
      this.#origin ??= from
      spans[first + i] = { label, start: Number(from - this.#origin) / 1e6, ms: Number(to - from) / 1e6 }
    })
    staging.destroy()
  }

  /** Every dispatch, in order, once all batches have been submitted. */
  async stop(): Promise<readonly DeviceSpan[]> {
    await Promise.all(this.#pending)
    this.#set.destroy()
    this.#resolved.destroy()
    return this.#spans
  }
}
