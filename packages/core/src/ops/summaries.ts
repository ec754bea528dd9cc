import { expectFloat, expectNumber, expectOptions } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'
import { wrapDim } from '../tensor/layout.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { rootOfSquares } from './centred.ts'
import { abs, eq, isnan, ne, pow, square, sub, where } from './pointwise.ts'
import {
  amax,
  amin,
  mean,
  type ReduceOptions,
  std,
  sum,
  type VarOptions,
  var as variance,
} from './reduction.ts'
import { narrow } from './shape.ts'

/** Summaries of tensors: norms, mean and spread together, counts, differences. */

type Dims = number | readonly number[] | null

/**
 * Takes the p-norm (Σ |x|ᵖ)^(1/p) over dims, by default all: 2 is Euclid's, ∞ the largest |x|, −∞ the smallest, 0 counts
 * what is not 0. Where the norm is 0 the gradient is 0.
 *
 * @throws DTypeError for integers: convert first. ValueError if p is no number, ShapeError for a dim that x does not have.
 * @example
 * await norm(tensor([3, -4])).item() // → 5
 * await norm(tensor([[1, -2], [3, 4]]), 1, 1).toArray() // → [3, 7]
 */
export function norm(x: Tensor, p = 2, dim?: Dims, options: ReduceOptions = {}): Tensor {
  expectNumber('norm', p)
  const from = asTensor('norm', x)
  expectFloat('norm', from.dtype)
  if (p === 2) return rootOfSquares(sum(square(from), dim, options))
  if (p === 0) return sum(ne(from, 0).to(from.dtype), dim, options)
  const size = abs(from)
  if (p === 1) return sum(size, dim, options)
  if (p === Infinity) return amax(size, dim, options)
  if (p === -Infinity) return amin(size, dim, options)
  const total = sum(pow(size, p), dim, options)
  // The root's slope at 0 is infinite, and times 0 it would be NaN.
  const none = eq(total, 0)
  return where(none, total, pow(where(none, 1, total), 1 / p))
}

/**
 * Takes the variance and the mean over dims, by default all, with the options of `var`.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await varMean(tensor([1, 2, 3]))[1].item() // → 2
 */
export const varMean = (
  x: Tensor,
  dim?: Dims,
  options: VarOptions = {},
): [variance: Tensor, mean: Tensor] => [
  variance(x, dim, options),
  mean(x, dim, { keepdim: options.keepdim ?? false }),
]

/**
 * Takes the standard deviation and the mean over dims, by default all, with the options of `std`.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await stdMean(tensor([1, 2, 3]))[0].item() // → 1
 */
export const stdMean = (
  x: Tensor,
  dim?: Dims,
  options: VarOptions = {},
): [deviation: Tensor, mean: Tensor] => [
  std(x, dim, options),
  mean(x, dim, { keepdim: options.keepdim ?? false }),
]

/**
 * Counts the elements that are not 0 over dims, by default all: int32. NaN counts.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await countNonzero(tensor([[1, 0], [2, 3]]), 1).toArray() // → [1, 2]
 */
export const countNonzero = (x: Tensor, dim?: Dims): Tensor => sum(ne(x, 0), dim)

/**
 * Adds up over dims, by default all, what is not NaN.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await nansum(tensor([1, NaN, 3])).item() // → 4
 */
export const nansum = (x: Tensor, dim?: Dims, options: ReduceOptions = {}): Tensor =>
  sum(where(isnan(x), 0, x), dim, options)

/** Options of `diff`. */
export interface DiffOptions {
  /** How many times the differences are taken. Default: 1. */
  n?: number
}

/**
 * Takes the differences of neighbours along dim, xᵢ₊₁ − xᵢ, `n` times over: the dim becomes n shorter, or empty.
 *
 * @throws ShapeError if x is a scalar or does not have the dim; ValueError for an unknown option.
 * @example
 * await diff(tensor([1, 4, 9])).toArray() // → [3, 5]
 */
export function diff(x: Tensor, dim = -1, options: DiffOptions = {}): Tensor {
  const { n = 1 } = expectOptions('diff', options, { n: 1 })
  let from = asTensor('diff', x)
  if (from.rank === 0) throw new ShapeError(`diff: takes at least one dim, got ${show(from.shape)}`)
  const d = wrapDim('diff', dim, from.rank)
  for (let i = 0; i < n; i++) {
    const left = Math.max(0, from.shape[d] - 1)
    from = sub(narrow(from, d, from.shape[d] - left, left), narrow(from, d, 0, left))
  }
  return from
}
