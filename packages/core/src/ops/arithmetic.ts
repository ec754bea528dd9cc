import * as e from '../expr/expr.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { clamp, type Operand } from './pointwise.ts'
import { unary } from './scalar.ts'

/** Elementwise arithmetic beyond the most used. */

/**
 * Limits x to [min, max], each a number or a tensor that broadcasts; either may be missing. Another name of `clamp`.
 *
 * @throws ValueError if both limits are missing, ShapeError if the shapes do not broadcast.
 * @example
 * await clip(tensor([-2, 0.5, 3]), 0, 1).toArray() // → [0, 0.5, 1]
 */
export const clip = (x: Tensor, min?: Operand | null, max?: Operand | null): Tensor => clamp(x, min, max)

const cut = (x: e.Expr): e.Expr => e.select(e.lt(x, 0), e.ceil(x), e.floor(x))

/**
 * Cuts off the fraction of every element, in x's shape and dtype. Its gradient is 0.
 *
 * @example
 * await trunc(tensor([1.7, -1.7])).toArray() // → [1, -1]
 */
export const trunc = unary('trunc', cut)

/**
 * Takes the fraction of every element, x − trunc(x), with x's sign, in x's shape.
 *
 * @example
 * await frac(tensor([1.5, -1.25])).toArray() // → [0.5, -0.25]
 */
export const frac = unary('frac', (x) => e.sub(x, cut(x)))
