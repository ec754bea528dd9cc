/**
 * Where `autocast` takes hold of operators: what is null here unless somebody called it. Apart from `autocast` itself, so that
 * a program that never does bundles nothing of it.
 */

import type { DType } from '../tensor/dtype.ts'
import type { Tensor } from '../tensor/tensor.ts'
import type { Precision } from './op.ts'

/** What is done to the operands of operators. */
export interface Casting {
  /** The dtype of products. */
  readonly dtype: DType
  /** Runs a composed operator by calling `go` with its operands, once; `wide` asks for results of float32 where it would round them. */
  run<R>(
    op: { readonly name: string; readonly precision?: Precision },
    inputs: readonly Tensor[],
    go: (inputs: readonly Tensor[], wide: boolean) => R,
  ): R
  /** The operands of a primitive. */
  operands(op: string, inputs: readonly Tensor[]): readonly Tensor[]
  /** The dtypes that the results of a primitive are to have, where not those that it gives. */
  results(op: string, inputs: readonly Tensor[]): readonly DType[] | undefined
  /** Runs a function that will run again, or once more: what was cast until now is unknown to it. */
  afresh<T>(fn: () => T): T
}

/** Who casts, or null. */
export const casting: { now: Casting | null } = { now: null }

/** Runs `fn` with operands cast by `next`, or by nobody with null. */
export function withCasting<T>(next: Casting | null, fn: () => T): T {
  const before = casting.now
  casting.now = next
  try {
    return fn()
  } finally {
    casting.now = before
  }
}
