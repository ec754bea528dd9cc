import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { clamp, type Operand } from './pointwise.ts'
import { binary, unary } from './scalar.ts'

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

const LERP = program('lerp', 3, ([a, b, w]) => mixed(a, b, w))
const LERP_SCALAR = program('lerp', 2, ([a, b], [w]) => mixed(a, b, w), 1)

// From the nearer end, so that weights 0 and 1 give the ends themselves.
function mixed(a: e.Expr, b: e.Expr, w: e.Expr): e.Expr {
  const way = e.sub(b, a)
  return e.select(e.lt(e.abs(w), 0.5), e.add(a, e.mul(w, way)), e.sub(b, e.mul(way, e.sub(1, w))))
}

/**
 * Goes from x towards `end` by the share `weight`, a number or a tensor: x + weight · (end − x). All broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await lerp(tensor([0, 10]), tensor([4, 20]), 0.25).toArray() // → [1, 12.5]
 */
export const lerp = (x: Tensor, end: Tensor, weight: number | Tensor): Tensor =>
  typeof weight === 'number'
    ? elementwise(LERP_SCALAR, [x, end], [weight])
    : elementwise(LERP, [x, end, weight])

// Equal infinities have no difference.
const gap = (a: e.Expr, b: e.Expr): e.Expr => e.select(e.eq(a, b), 0, e.sub(a, b))

/**
 * Takes ln(eᵃ + eᵇ) without overflow; shapes broadcast, and either may be a number, not both.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await logaddexp(tensor([-Infinity]), tensor([2])).toArray() // → [2]
 */
export const logaddexp = binary('logaddexp', (a, b) =>
  e.add(e.max(a, b), e.log1p(e.exp(e.neg(e.abs(gap(a, b)))))),
)
