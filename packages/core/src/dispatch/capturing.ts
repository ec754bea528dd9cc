/**
 * What `compile` hears of while it records a function, besides its calls: memory that is taken and given back, numbers that
 * are to be asked for again, state that a branch depends on. Kept apart from `compile` itself, so that a program that
 * compiles nothing bundles nothing of it.
 */

import type { DType, TypedArray } from '../tensor/dtype.ts'
import type { Storage } from '../tensor/storage.ts'
import type { Tensor } from '../tensor/tensor.ts'
import type { View } from './backend.ts'
import { listen } from './call.ts'

/** Who records. */
export interface Capturing {
  /** A storage was made. */
  made(storage: Storage, dtype: DType): void
  /** Elements came from the host. */
  wrote(view: View, data: TypedArray): void
  /** The gradient of a tensor is about to be looked at or replaced. */
  touched(leaf: Tensor, grad: Tensor | null): void
  /** Somebody looks whether a leaf requires a gradient. */
  leaf(t: Tensor, requiresGrad: boolean): void
  /** A tensor begins or ceases to require a gradient. */
  switched(t: Tensor): void
  /** What `read` tells of `owner` must be the same as before the function: nobody would set it again in a replay. */
  unchanged(owner: object, what: string, read: () => string): void
  /** What cannot be recorded happens. Throws. */
  refuses(op: string, fix: string): never
  /** A function of the host that belongs to the step: it runs before each replay. */
  each(effect: () => void): void
  /** Numbers that are filled again, from what `again` returns, before each replay. */
  live(numbers: readonly number[], again: () => readonly number[]): void
  /** Are these numbers filled again? */
  isLive(numbers: readonly number[]): boolean
  /** The numbers of a draw from `source`: the very same array for the same draw. */
  draw<N extends readonly number[]>(numbers: N, source: object, again: (from: object | null) => N): N
  /** What the function does depends on a value of `owner`: a replay is for the same value only. */
  expects(owner: object, read: () => unknown): void
  /** The function itself sets what `owner` says from here on. */
  assigned(owner: object): void
}

let capture: Capturing | null = null

/** Who records, or null. */
export const capturing = (): Capturing | null => capture

/** Begins to record, or ends it with null; who recorded until now. */
export function setCapturing(next: Capturing | null): Capturing | null {
  const before = capture
  capture = next
  return before
}

/**
 * Runs what is no part of the function that is recorded, although it runs meanwhile: a backend that checks itself at the
 * first use of a kernel.
 *
 * @example
 * import { uncaptured } from '@tilegrad/core/kernel'
 *
 * uncaptured(() => 1) // → 1
 */
export function uncaptured<T>(fn: () => T): T {
  const before = setCapturing(null)
  const heard = listen(null)
  try {
    return fn()
  } finally {
    listen(heard)
    setCapturing(before)
  }
}

/**
 * Numbers of a call that a compiled function asks for anew, each time it runs, from `again`; the same array as given.
 *
 * @example
 * import { live } from '@tilegrad/core/kernel'
 *
 * const rate = { value: 0.1 }
 * live([rate.value], () => [rate.value]) // → [0.1]
 */
export function live<N extends readonly number[]>(numbers: N, again: () => readonly number[]): N {
  capture?.live(numbers, again)
  return numbers
}

/** Numbers of a call, or a function that is asked for them each time the call runs, also in a compiled function. */
export type Numbers = readonly number[] | (() => readonly number[])

/** The numbers as they are now. */
export function numbersOf(numbers: Numbers): readonly number[] {
  return typeof numbers === 'function' ? live([...numbers()], numbers) : numbers
}

/**
 * Runs a function of the host that belongs to a step, such as counting it: a compiled step runs it again each time,
 * before anything is computed.
 *
 * @example
 * import { eachRun } from '@tilegrad/core/kernel'
 *
 * let steps = 0
 * eachRun(() => void steps++)
 * steps // → 1
 */
export function eachRun(effect: () => void): void {
  capture?.each(effect)
  effect()
}

/**
 * Reads a value of `owner` on which it depends what is computed, such as whether a module trains: a compiled function is
 * recorded anew where the value is another one.
 *
 * @example
 * import { expected } from '@tilegrad/core/kernel'
 *
 * const module = { training: true }
 * expected(module, () => module.training) // → true
 */
export function expected<T>(owner: object, read: () => T): T {
  capture?.expects(owner, read)
  return read()
}

/**
 * Sets what `expected` reads of `owner`: a compiled function that does so does it again each time.
 *
 * @example
 * import { assigned } from '@tilegrad/core/kernel'
 *
 * const module = { training: true }
 * assigned(module, () => {
 *   module.training = false
 * })
 * module.training // → false
 */
export function assigned(owner: object, set: () => void): void {
  capture?.assigned(owner)
  eachRun(set)
}

/**
 * Makes sure that what `read` tells of `owner` was not set by the function that is recorded: a replay would not set it.
 *
 * @example
 * import { unchanged } from '@tilegrad/core/kernel'
 *
 * const optimizer = { lr: 0.1 }
 * unchanged(optimizer, 'setting lr', () => String(optimizer.lr))
 */
export function unchanged(owner: object, what: string, read: () => string): void {
  capture?.unchanged(owner, what, read)
}

/**
 * Refuses what belongs outside of a function that is recorded.
 *
 * @throws CompileError while one is.
 * @example
 * import { outsideOnly } from '@tilegrad/core/kernel'
 *
 * outsideOnly('setting lr', 'set it before each call')
 */
export function outsideOnly(what: string, fix: string): void {
  capture?.refuses(what, fix)
}
