/** Which intermediates a backward pass leaves alone, so that they can still be read. */

import type { Tensor } from '../tensor/tensor.ts'
import type { GradNode } from './tape.ts'

/** Bytes that may be spared in any case, as long as they are no more than `part` of what the backend has. */
const least = 2 ** 23
/** The share of the bytes of all of the graph's outputs, or of the backend's limit, that may be spared. */
const part = 1 / 16

/** Steps from a root within which what it was computed from is spared, up to that part of all there is: a loss, its logits. */
const near = 2

let passes = 0

/**
 * Spares outputs, as they come by from the root on, as long as there is room: those from which a loss was computed in
 * any case, since they are the ones that are read for an accuracy, and while they are there a step takes the most anyway.
 * Where parts of the graph are computed again, memory is short: nothing else is spared.
 */
export class Spared {
  readonly #order: readonly GradNode[]
  /** The number that storages carry which this pass spares. */
  readonly #mark = ++passes
  #bytes = 0
  #room: number
  /** Whether the graph has been measured, which only large ones are; there is no more room to find after that. */
  #measured = false

  constructor(order: readonly GradNode[], roots: readonly Tensor[]) {
    this.#order = order
    const limit = order[0]?.outputs[0]?.backend.limitBytes ?? Number.POSITIVE_INFINITY
    for (let i = 0; i < order.length && !this.#measured; i++) this.#measured = order[i].replay !== null
    this.#room = this.#measured ? 0 : Math.min(least, part * limit)
    for (let i = 0; i < roots.length; i++) this.#spareInputs(roots[i], near, part * limit)
  }

  #spareInputs({ gradFn }: Tensor, steps: number, most: number): void {
    if (gradFn === null) return
    const { inputs } = gradFn
    for (let i = 0; i < inputs.length; i++) {
      if (inputs[i].gradFn === null) continue
      const { storage } = inputs[i]
      if (storage.spared !== this.#mark && this.#bytes + storage.bytes <= most) {
        this.#bytes += storage.bytes
        storage.spared = this.#mark
      }
      if (steps > 1) this.#spareInputs(inputs[i], steps - 1, most)
    }
  }

  takes({ storage }: Tensor): boolean {
    if (storage.spared === this.#mark) return true
    const bytes = this.#bytes + storage.bytes
    if (bytes > this.#room && !this.#measured) this.#measure()
    if (bytes > this.#room) return false
    storage.spared = this.#mark
    this.#bytes = bytes
    return true
  }

  #measure(): void {
    this.#measured = true
    const all = new Set<unknown>()
    let total = 0
    for (const { outputs } of this.#order)
      for (const { storage } of outputs) {
        if (!all.has(storage)) total += storage.bytes
        all.add(storage)
      }
    this.#room = Math.max(this.#room, part * total)
  }
}
