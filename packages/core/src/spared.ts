/** Which intermediates a backward pass leaves alone, so that they can still be read. */

import type { Storage } from './storage.ts'
import type { GradNode } from './tape.ts'
import type { Tensor } from './tensor.ts'

/** So much in any case, in bytes, where it is no more than the part below of what the backend has at all. */
const least = 2 ** 23
/** Or this part of what the graph's outputs take. */
const part = 1 / 16

/** Spares outputs, as they come by from the root on, as long as there is room. */
export class Spared {
  readonly #order: readonly GradNode[]
  readonly #storages = new Set<Storage>()
  #bytes = 0
  #room: number
  /** The graph has been measured: only large ones are. */
  #measured = false

  constructor(order: readonly GradNode[]) {
    this.#order = order
    const limit = order[0]?.outputs[0]?.backend.limitBytes ?? Number.POSITIVE_INFINITY
    this.#room = Math.min(least, part * limit)
  }

  takes({ storage }: Tensor): boolean {
    if (this.#storages.has(storage)) return true
    const bytes = this.#bytes + storage.bytes
    if (bytes > this.#room && !this.#measured) this.#measure()
    if (bytes > this.#room) return false
    this.#storages.add(storage)
    this.#bytes = bytes
    return true
  }

  #measure(): void {
    this.#measured = true
    const all = new Set<Storage>()
    let total = 0
    for (const { outputs } of this.#order)
      for (const { storage } of outputs) {
        if (!all.has(storage)) total += storage.bytes
        all.add(storage)
      }
    this.#room = Math.max(this.#room, part * total)
  }
}
