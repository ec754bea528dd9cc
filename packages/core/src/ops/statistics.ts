import { addMethods } from '../add-methods.ts'
import { expectFloat, expectOptions } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { copy, elementwise } from '../primitives/elementwise.ts'
import { reshapeView } from '../primitives/views.ts'
import { isFloat } from '../tensor/dtype.ts'
import { wrapDim, wrapDims } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { rootOfSquares } from './centred.ts'
import { composed } from './composed.ts'
import { abs, add, div, exp, log, mul, pow, square, sub, where } from './pointwise.ts'
import {
  amax,
  amin,
  type Dims,
  mean,
  type ReduceOptions,
  std,
  sum,
  type VarOptions,
  var as variance,
} from './reduction.ts'
import { cat, narrow } from './shape.ts'

/** Norms, and what else is told of many elements. */

/**
 * Takes the p-norm (Σ |x|ᵖ)^(1/p) over dims, by default the Euclidean one of all elements: the length of a vector. Order 1 is the
 * sum of sizes, ∞ the largest, −∞ the smallest, 0 counts what is not 0. Where a norm is 0, its gradient is 0.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have, ValueError for an order that is none.
 * @example
 * await tensor([[3, 4]]).norm().item() // → 5
 * await tensor([[3, -4]]).norm(1, 1).toArray() // → [7]
 */
export function norm(x: Tensor, p: number | 'fro' = 2, dim?: Dims, options: ReduceOptions = {}): Tensor {
  const { keepdim = false } = expectOptions('norm', options, { keepdim: 1 })
  x = asTensor('norm', x)
  expectFloat('norm', x.dtype)
  const order = p === 'fro' ? 2 : p
  if (typeof order !== 'number' || Number.isNaN(order))
    throw new ValueError(`norm: the order p must be a number or 'fro', got ${String(p)}`)
  const dims = wrapDims('norm', dim, x.rank)
  const how = { keepdim }
  return composed('norm', [x], ([t]) => {
    if (order === 2) return [rootOfSquares(sum(square(t), dims, how))]
    if (order === 1) return [sum(abs(t), dims, how)]
    if (order === Infinity) return [amax(abs(t), dims, how)]
    if (order === -Infinity) return [amin(abs(t), dims, how)]
    if (order === 0) return [sum(copy(t.ne(0), t.dtype), dims, how)]
    // 0 has no slope: of its power it might be infinite, of its root it is.
    const away = (v: Tensor, exponent: number): Tensor => {
      const none = v.eq(0)
      return where(none, 0 ** exponent, pow(where(none, 1, v), exponent))
    }
    return [away(sum(away(abs(t), order), dims, how), 1 / order)]
  })[0]
}

/**
 * Takes variance and mean over dims, by default all: `[var, mean]`.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * const [v, m] = tensor([1, 2, 3]).varMean()
 * await v.item() // → 1
 * await m.item() // → 2
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
 * Takes standard deviation and mean over dims, by default all: `[std, mean]`.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * const [s, m] = tensor([1, 2, 3]).stdMean()
 * await s.item() // → 1
 */
export const stdMean = (x: Tensor, dim?: Dims, options: VarOptions = {}): [std: Tensor, mean: Tensor] => [
  std(x, dim, options),
  mean(x, dim, { keepdim: options.keepdim ?? false }),
]

/**
 * Counts the elements over dims that are not 0, by default all: int32.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([0, 2, 3]).countNonzero().item() // → 2
 */
export const countNonzero = (x: Tensor, dim?: Dims): Tensor =>
  sum(copy(copy(asTensor('count_nonzero', x), 'bool'), 'int32'), dim)

/**
 * Adds over dims what is not NaN, by default all.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([1, NaN, 2]).nansum().item() // → 3
 */
export const nansum = (x: Tensor, dim?: Dims, options: ReduceOptions = {}): Tensor => {
  const t = asTensor('nansum', x)
  return sum(isFloat(t.dtype) ? where(t.isnan(), 0, t) : t, dim, options)
}

/**
 * Takes the mean over dims of what is not NaN, by default all.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await tensor([1, NaN, 3]).nanmean().item() // → 2
 */
export const nanmean = (x: Tensor, dim?: Dims, options: ReduceOptions = {}): Tensor => {
  const t = asTensor('nanmean', x)
  expectFloat('nanmean', t.dtype)
  return div(nansum(t, dim, options), sum(copy(t.eq(t), t.dtype), dim, options))
}

/** Options of `diff`. */
export interface DiffOptions {
  /** How often differences are taken. Default: 1. */
  n?: number
  /** The dim. Default: the last. */
  dim?: number
}

/**
 * Takes the differences of neighbours along a dim, by default the last: x[i + 1] − x[i]; of bools where they differ.
 *
 * @throws ShapeError for a scalar, or a dim that x does not have; ValueError for a count that is none.
 * @example
 * await tensor([1, 4, 9]).diff().toArray() // → [3, 5]
 */
export function diff(x: Tensor, options: DiffOptions = {}): Tensor {
  const { n = 1, dim = -1 } = expectOptions('diff', options, { n: 1, dim: 1 })
  x = asTensor('diff', x)
  if (x.rank === 0) throw new ShapeError('diff: a scalar has no neighbours')
  if (!Number.isInteger(n) || n < 0) throw new ValueError(`diff: n must be a whole number ≥ 0, got ${n}`)
  const d = wrapDim('diff', dim, x.rank)
  return composed('diff', [x], ([t]) => {
    let y = n === 0 ? copy(t) : t
    for (let i = 0; i < Math.min(n, x.shape[d]); i++) {
      const size = y.shape[d] - 1
      const [a, b] = [narrow(y, d, 0, size), narrow(y, d, 1, size)]
      y = y.dtype === 'bool' ? a.ne(b) : sub(b, a)
    }
    return [y]
  })[0]
}

/**
 * Takes ln Σ exp(x) along dim up to and with each element, in x's shape; integers become float32.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([0, 0]).logcumsumexp(0).mul(1e4).round().toArray() // → [0, 6931]
 */
export function logcumsumexp(x: Tensor, dim: number): Tensor {
  const op = 'logcumsumexp'
  const t = asTensor(op, x)
  const from = isFloat(t.dtype) ? t : copy(t, 'float32')
  if (from.rank === 0) return copy(from)
  const d = wrapDim(op, dim, from.rank)
  const n = from.shape[d]
  // By doubling, as sums of exponentials of one largest element would lose those far below it.
  return composed(op, [from], ([y]) => {
    let sums = y
    for (let s = 1; s < n; s *= 2) {
      const [a, b] = [narrow(sums, d, 0, n - s), narrow(sums, d, s, n - s)]
      const top = a.maximum(b).detach()
      const shift = where(top.abs().lt(Infinity), top, 0)
      sums = cat([narrow(sums, d, 0, s), log(add(exp(sub(a, shift)), exp(sub(b, shift)))).add(shift)], d)
    }
    return [n > 1 ? sums : copy(sums)]
  })[0]
}

const L2 = program('distance', 2, ([a, b]) => e.square(e.sub(a, b)))

/** Options of `dist` and `cdist`. */
export interface DistanceOptions {
  /** The order of the norm. Default: 2. */
  p?: number
}

/**
 * Takes the p-norm of a − b: the distance of two tensors. Shapes broadcast.
 *
 * @throws DTypeError for integers: convert first. ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([0, 0]).dist(tensor([3, 4])).item() // → 5
 */
export const dist = (a: Tensor, b: Tensor | ArrayOperand, options: DistanceOptions = {}): Tensor =>
  norm(sub(a, asTensor('dist', b, a)), expectOptions('dist', options, { p: 1 }).p ?? 2)

/**
 * Takes the distances of all pairs of rows: (…, N, D) and (…, M, D) → (…, N, M), by default Euclidean. All differences are
 * formed, which loses nothing where rows are near each other.
 *
 * @throws DTypeError for integers: convert first. ShapeError if the rows differ in length.
 * @example
 * await cdist(tensor([[0, 0]]), tensor([[3, 4], [0, 1]])).toArray() // → [[5, 1]]
 */
export function cdist(a: Tensor, b: Tensor | ArrayOperand, options: DistanceOptions = {}): Tensor {
  const { p = 2 } = expectOptions('cdist', options, { p: 1 })
  a = asTensor('cdist', a)
  const other = asTensor('cdist', b, a)
  if (a.rank < 2 || other.rank < 2 || a.shape[a.rank - 1] !== other.shape[other.rank - 1])
    throw new ShapeError(
      `cdist: expected rows of one length, (…, N, D) and (…, M, D), got ${show(a.shape)} and ${show(other.shape)}`,
    )
  expectFloat('cdist', a.dtype)
  return composed('cdist', [a, other], ([x, y]) => {
    const left = reshapeView(x, x.shape.toSpliced(-1, 0, 1))
    const right = reshapeView(y, y.shape.toSpliced(-2, 0, 1))
    if (p === 2) return [rootOfSquares(sum(elementwise(L2, [left, right]), -1))]
    return [norm(sub(left, right), p, -1)]
  })[0]
}

/** Options of `normalize`. */
export interface NormalizeOptions {
  /** The order of the norm. Default: 2. */
  p?: number
  /** The dim over which norms are taken. Default: 1. */
  dim?: number
  /** Norms are taken to be no smaller. Default: 1e-12. */
  eps?: number
}

/**
 * Divides x by its norm along a dim, so that vectors have length 1; vectors shorter than eps are divided by eps.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await normalize(tensor([[3, 4]])).mul(1e4).round().toArray() // → [[6000, 8000]]
 */
export function normalize(x: Tensor, options: NormalizeOptions = {}): Tensor {
  const { p = 2, dim = 1, eps = 1e-12 } = expectOptions('normalize', options, { p: 1, dim: 1, eps: 1 })
  return composed('normalize', [x], ([t]) => [div(t, norm(t, p, dim, { keepdim: true }).clamp(eps))])[0]
}

/** Options of `cosineSimilarity`. */
export interface CosineOptions {
  /** The dim of the vectors. Default: 1. */
  dim?: number
  /** Lengths are taken to be no smaller. Default: 1e-8. */
  eps?: number
}

/**
 * Takes the cosine of the angle between vectors along a dim: a · b / (|a| |b|). Shapes broadcast.
 *
 * @throws DTypeError for integers: convert first. ShapeError if the shapes do not broadcast.
 * @example
 * await cosineSimilarity(tensor([[1, 0]]), tensor([[1, 1]])).mul(1e4).round().toArray() // → [7071]
 */
export function cosineSimilarity(a: Tensor, b: Tensor, options: CosineOptions = {}): Tensor {
  const { dim = 1, eps = 1e-8 } = expectOptions('cosine_similarity', options, { dim: 1, eps: 1 })
  return composed('cosine_similarity', [a, b], ([x, y]) => {
    const unit = (t: Tensor): Tensor => div(t, norm(t, 2, dim, { keepdim: true }).clamp(eps))
    return [sum(mul(unit(x), unit(y)), dim)]
  })[0]
}

addMethods({
  norm,
  varMean,
  stdMean,
  countNonzero,
  nansum,
  nanmean,
  diff,
  logcumsumexp,
  dist,
  cdist,
  normalize,
  cosineSimilarity,
})
