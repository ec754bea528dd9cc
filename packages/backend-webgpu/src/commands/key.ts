/**
 * What a call of a kernel is found again by: the layouts of its operands, which of them share a buffer, and its
 * attributes, as a list of numbers.
 */

import type { View } from '@tilegrad/core'
import { bufferOf, type GpuBuffer } from '../device/buffers.ts'

/** The description of one call at a time. */
export class Key {
  /** The buffers of the operands, each once. Never shortened: V8 would make them anew. */
  readonly operands: GpuBuffer[] = []
  /** So many of them are of this call. */
  count = 0
  #words = new Float64Array(4096)
  #end = 0
  /**
   * Where the operands are: a hash table by the buffers' ids, whose slots count if they bear the number of this call.
   * At most half of them do.
   */
  #places = new Uint32Array(1024)
  #marks = new Uint32Array(1024)
  #call = 0
  readonly #texts = new Map<unknown, number>()
  readonly #objects = new WeakMap<object, number>()
  #identities = 0

  describe(outputs: readonly View[], inputs: readonly View[], attrs: object, numbers: number): void {
    this.#end = 0
    this.count = 0
    if (++this.#call === 2 ** 32) {
      this.#marks.fill(0)
      this.#call = 1
    }
    this.#put(outputs.length)
    this.#put(inputs.length)
    this.#put(numbers)
    for (let i = 0; i < outputs.length; i++) this.#putView(outputs[i])
    for (let i = 0; i < inputs.length; i++) this.#putView(inputs[i])
    for (const name in attrs) {
      const value = (attrs as Record<string, unknown>)[name]
      this.#put(this.#identityOf(name))
      this.#putValue(value)
    }
  }

  copy(): Float64Array {
    return this.#words.slice(0, this.#end)
  }

  hash(): number {
    const words = this.#words
    const end = this.#end
    let hash = end
    for (let i = 0; i < end; i++) {
      hash = Math.imul(hash ^ words[i], 0x9e3779b1)
      hash ^= hash >>> 15
    }
    return hash
  }

  equals(other: Float64Array): boolean {
    if (other.length !== this.#end) return false
    const mine = this.#words
    for (let i = 0; i < other.length; i++) if (other[i] !== mine[i]) return false
    return true
  }

  #put(value: number): void {
    if (this.#end === this.#words.length) this.#makeRoom(1)
    this.#words[this.#end++] = value
  }

  #makeRoom(more: number): void {
    const longer = new Float64Array(2 * (this.#end + more))
    longer.set(this.#words)
    this.#words = longer
  }

  #putView(view: View): void {
    const { dtype, shape, strides, offset } = view
    const buffer = bufferOf(view)
    const rank = shape.length
    if (this.#end + 5 + 2 * rank > this.#words.length) this.#makeRoom(5 + 2 * rank)
    const to = this.#words
    let at = this.#end
    // Which operands share a buffer, and whether there are others' elements after the last one.
    to[at++] = this.#placeOf(buffer)
    to[at++] = buffer.count
    to[at++] = dtype === 'float32' ? -1 : this.#identityOf(dtype)
    to[at++] = offset
    to[at++] = rank
    for (let d = 0; d < rank; d++) {
      to[at++] = shape[d]
      to[at++] = strides[d]
    }
    this.#end = at
  }

  /** Which of the buffers it is. */
  #placeOf(buffer: GpuBuffer): number {
    const { operands, count } = this
    const marks = this.#marks
    const call = this.#call
    const mask = marks.length - 1
    let slot = buffer.id & mask
    for (; marks[slot] === call; slot = (slot + 1) & mask) {
      const place = this.#places[slot]
      if (operands[place] === buffer) return place
    }
    marks[slot] = call
    this.#places[slot] = count
    operands[count] = buffer
    this.count = count + 1
    if (2 * this.count > mask) this.#makePlaces()
    return count
  }

  #makePlaces(): void {
    const all = this.operands.slice(0, this.count)
    this.#places = new Uint32Array(2 * this.#marks.length)
    this.#marks = new Uint32Array(this.#places.length)
    this.count = 0
    for (const buffer of all) this.#placeOf(buffer)
  }

  /** As whole numbers, so that NaN equals itself and −0 is not 0. */
  #putValue(value: unknown): void {
    if (typeof value === 'number') {
      float[0] = value
      this.#put(-2)
      this.#put(halves[0])
      this.#put(halves[1])
    } else if (Array.isArray(value)) {
      this.#put(-3)
      this.#put(value.length)
      for (const item of value) this.#putValue(item)
    } else this.#put(typeof value === 'boolean' ? (value ? -4 : -5) : this.#identityOf(value))
  }
  /** A number for a text, null or undefined, or for an object, as expressions are: those are made once. */
  #identityOf(value: unknown): number {
    const isObject = (typeof value === 'object' && value !== null) || typeof value === 'function'
    let number = isObject ? this.#objects.get(value) : this.#texts.get(value)
    if (number === undefined) {
      number = this.#identities++
      if (isObject) this.#objects.set(value, number)
      else this.#texts.set(value, number)
    }
    return number
  }
}

const float = new Float64Array(1)
const halves = new Int32Array(float.buffer)
