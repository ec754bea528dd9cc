/** Which intermediates a backward pass leaves alone, so that they can still be read. */

import type { Storage } from './storage.ts'
import type { GradNode } from './tape.ts'
import type { Tensor } from './tensor.ts'

/** So much in any case, in bytes, where it is no more than the part below of what the backend has at all. */
const least = 2 ** 23
/** Or this part of what the graph's outputs take. */
const part = 1 / 16

/** Steps from a root within which what it was computed from is spared, up to that part of all there is: a loss, its logits. */
const near = 2

/**
 * Spares outputs, as they come by from the root on, as long as there is room: those from which a loss was computed in
 * any case, since they are the ones that are read for an accuracy, and while they are there a step takes the most anyway.
 * Where parts of the graph are computed again, memory is short: nothing else is spared.
 */
export class Spared {
  readonly #order: readonly GradNode[]
  readonly #storages = new Set<Storage>()
  #bytes = 0
  #room: number
  /** There is no more room to find: only large graphs are measured. */
  #measured = false

  constructor(order: readonly GradNode[], roots: readonly Tensor[]) {
    this.#order = order
    const limit = order[0]?.outputs[0]?.backend.limitBytes ?? Number.POSITIVE_INFINITY
    this.#measured = order.some((node) => node.replay)
    this.#room = this.#measured ? 0 : Math.min(least, part * limit)
    let inputs = roots
    for (let step = 0; step < near; step++) {
      inputs = inputs.flatMap((t) => t.gradFn?.inputs ?? [])
      for (const { gradFn, storage } of inputs) {
        if (!gradFn || this.#storages.has(storage) || this.#bytes + storage.bytes > part * limit) continue
        this.#bytes += storage.bytes
        this.#storages.add(storage)
      }
    }
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
