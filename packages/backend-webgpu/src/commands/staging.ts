/** Buffers that bytes of the GPU are copied to, to be read by the host: recycled by size. */

import { usage } from '../device/buffers.ts'
import type { Gpu } from '../device/gpu.ts'

/** Kept of a size. */
const most = 4

export class Staging {
  readonly #gpu: Gpu
  readonly #free = new Map<number, GPUBuffer[]>()

  constructor(gpu: Gpu) {
    this.#gpu = gpu
  }

  /** A buffer for `bytes` bytes. */
  take(bytes: number): GPUBuffer {
    const size = Math.max(16, 2 ** Math.ceil(Math.log2(bytes)))
    const known = this.#free.get(size)?.pop()
    return known ?? this.#gpu.device.createBuffer({ size, usage: usage.MAP_READ | usage.COPY_DST })
  }

  /** Reads so many bytes once what was submitted is done, and keeps the buffer for the next ones. */
  async read(staging: GPUBuffer, bytes: number): Promise<ArrayBuffer> {
    await this.#gpu.answer('read', staging.mapAsync(1, 0, bytes))
    const data = staging.getMappedRange(0, bytes).slice(0)
    staging.unmap()
    const list = this.#free.get(staging.size)
    if (!list) this.#free.set(staging.size, [staging])
    else if (list.length < most) list.push(staging)
    else staging.destroy()
    return data
  }
}
