import { expectOptions } from '../checks.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { item } from './create.ts'
import { all } from './reduction.ts'
import { unary } from './scalar.ts'

/** Operators that ask whether numbers are finite, or near each other. */

/**
 * Says of every element whether it is neither infinite nor NaN, as bools in x's shape.
 *
 * @example
 * await isfinite(tensor([1, Infinity, NaN])).toArray() // → [true, false, false]
 */
export const isfinite = unary('isfinite', (x) => e.lt(e.abs(x), Infinity))

/**
 * Says of every element whether it is ∞ or −∞, as bools in x's shape.
 *
 * @example
 * await isinf(tensor([1, -Infinity, NaN])).toArray() // → [false, true, false]
 */
export const isinf = unary('isinf', (x) => e.eq(e.abs(x), Infinity))

/**
 * Says of every element whether it is ∞, as bools in x's shape.
 *
 * @example
 * await isposinf(tensor([Infinity, -Infinity])).toArray() // → [true, false]
 */
export const isposinf = unary('isposinf', (x) => e.eq(x, Infinity))

/**
 * Says of every element whether it is −∞, as bools in x's shape.
 *
 * @example
 * await isneginf(tensor([Infinity, -Infinity])).toArray() // → [false, true]
 */
export const isneginf = unary('isneginf', (x) => e.eq(x, -Infinity))

/** Options of `isclose` and `allclose`. */
export interface CloseOptions {
  /** The relative tolerance, a share of |b|. Default: 1e-5. */
  rtol?: number
  /** The absolute tolerance, in the unit of the elements. Default: 1e-8. */
  atol?: number
  /** Whether two NaN are close. Default: false. */
  equalNan?: boolean
}

// Equal ones first: of two infinities the difference is NaN. An infinite b would make every finite a close.
const near = (a: e.Expr, b: e.Expr, rtol: e.Expr, atol: e.Expr): e.Expr =>
  e.or(
    e.eq(a, b),
    e.and(e.lt(e.abs(b), Infinity), e.le(e.abs(e.sub(a, b)), e.add(atol, e.mul(rtol, e.abs(b))))),
  )
const CLOSE = program('isclose', 2, ([a, b], [rtol, atol]) => near(a, b, rtol, atol), 2)
const CLOSE_NAN = program(
  'isclose',
  2,
  ([a, b], [rtol, atol]) => e.or(near(a, b, rtol, atol), e.and(e.isnan(a), e.isnan(b))),
  2,
)

/**
 * Says of every pair of elements whether |a − b| ≤ atol + rtol · |b|, as bools in the shape that a and b broadcast to.
 * Equal infinities are close.
 *
 * @throws ShapeError if the shapes do not broadcast; ValueError for an unknown option.
 * @example
 * await isclose(tensor([1, 2]), tensor([1.000001, 2.1])).toArray() // → [true, false]
 */
export function isclose(a: Tensor, b: Tensor, options: CloseOptions = {}): Tensor {
  const known = { rtol: 1, atol: 1, equalNan: 1 } as const
  const { rtol = 1e-5, atol = 1e-8, equalNan = false } = expectOptions('isclose', options, known)
  return elementwise(equalNan ? CLOSE_NAN : CLOSE, [a, b], [rtol, atol])
}

/**
 * Says whether `isclose` holds of all elements. It reads the answer from the device, and so gives a promise.
 *
 * @throws ShapeError if the shapes do not broadcast; ValueError for an unknown option.
 * @example
 * await allclose(tensor([1, 2]), tensor([1.000001, 2])) // → true
 */
export async function allclose(a: Tensor, b: Tensor, options: CloseOptions = {}): Promise<boolean> {
  return Boolean(await item(all(isclose(a, b, options))))
}
