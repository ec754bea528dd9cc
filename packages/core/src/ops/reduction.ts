import { expectDType, expectFloat, expectOptions, type Names } from '../checks.ts'
import { casting } from '../dispatch/casting.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { addTensors, copy, elementwise, fill } from '../primitives/elementwise.ts'
import { reduce } from '../primitives/reduce.ts'
import { scan } from '../primitives/scan.ts'
import { argReducePrimitive, sortPrimitive } from '../primitives/sort.ts'
import { reshapeView } from '../primitives/views.ts'
import { narrowed } from '../primitives/widen.ts'
import { type DType, isHalf, toFloat } from '../tensor/dtype.ts'
import { wrapDim, wrapDims } from '../tensor/layout.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { rootOfSquares, squaredDeviations } from './centred.ts'
import { div, exp, log, mul, sub, where } from './pointwise.ts'
import { narrow } from './shape.ts'

/**
 * The dims that a reduction takes: one, several, or all of them (undefined, null or []). Negative ones count from
 * the end.
 */
export type Dims = number | readonly number[] | null | undefined

/** Options of reductions. */
export interface ReduceOptions {
  /** Keep the reduced dims with size 1. */
  keepdim?: boolean
}

const REDUCING: Names<ReduceOptions> = { keepdim: 1 }

/** Options of `sum`, `prod` and `mean`. */
export interface SumOptions extends ReduceOptions {
  /** Convert to this dtype first. */
  dtype?: DType
}

const as = (op: string, x: Tensor, dtype: DType | undefined): Tensor => {
  const from = asTensor(op, x)
  const to = dtype ?? casting.now?.results(op, [from])?.[0] ?? from.dtype
  return to === from.dtype ? from : copy(from, expectDType(op, to))
}

const SUMMING: Names<SumOptions> = { keepdim: 1, dtype: 1 }

const count = (x: Tensor, dims: readonly number[]): number => dims.reduce((p, d) => p * x.shape[d], 1)

/** Sums and products of bools count as int32, unless bool is asked for. */
function total(kind: 'sum' | 'prod', x: Tensor, dim: Dims, options: SumOptions): Tensor {
  const { keepdim = false, dtype } = expectOptions(kind, options, SUMMING)
  const from = as(kind, x, dtype)
  const out = reduce(kind, from, wrapDims(kind, dim, from.rank), keepdim)
  return dtype === 'bool' ? copy(out, dtype) : out
}

/**
 * Sums over dims, by default all; other dims stay, reduced ones vanish or with `keepdim` get size 1. Bools count
 * as int32, and int32 wraps.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * const x = tensor([[1, 2], [3, 4]])
 * await x.sum().item() // → 10
 * await x.sum(1).toArray() // → [3, 7]
 * await x.sum(0, { keepdim: true }).toArray() // → [[4, 6]]
 */
export const sum = (x: Tensor, dim?: Dims, options: SumOptions = {}): Tensor => total('sum', x, dim, options)

/**
 * Multiplies over dims, by default all. The gradient is right also where there are zeros. Bools count as int32,
 * and int32 wraps.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([[1, 2], [3, 4]]).prod(1).toArray() // → [2, 12]
 */
export const prod = (x: Tensor, dim?: Dims, options: SumOptions = {}): Tensor =>
  total('prod', x, dim, options)

/**
 * Takes the arithmetic mean over dims, by default all; NaN of no elements.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await tensor([[1, 2], [3, 4]]).mean(0).toArray() // → [2, 3]
 */
export function mean(x: Tensor, dim?: Dims, options: SumOptions = {}): Tensor {
  const { keepdim = false, dtype } = expectOptions('mean', options, SUMMING)
  const from = as('mean', x, dtype)
  expectFloat('mean', from.dtype)
  const dims = wrapDims('mean', dim, from.rank)
  // The sum may be beyond what 16 bits hold.
  const sums = reduce('sum', isHalf(from.dtype) ? copy(from, 'float32') : from, dims, keepdim)
  return narrowed(div(sums, count(from, dims)), from.dtype)
}

/**
 * Finds the largest over dims, by default all; NaN if there is one. Elements that are equally large share the
 * gradient equally.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * await tensor([[1, 5], [3, 4]]).amax(1).toArray() // → [5, 4]
 */
export const amax = (x: Tensor, dim?: Dims, options: ReduceOptions = {}): Tensor =>
  extreme('max', x, dim, options)

/**
 * Finds the smallest over dims, by default all; NaN if there is one. Elements that are equally small share the
 * gradient equally.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * await tensor([[1, 5], [3, 4]]).amin(1).toArray() // → [1, 3]
 */
export const amin = (x: Tensor, dim?: Dims, options: ReduceOptions = {}): Tensor =>
  extreme('min', x, dim, options)

function extreme(kind: 'max' | 'min', x: Tensor, dim: Dims, options: ReduceOptions): Tensor {
  const op = `a${kind}`
  const { keepdim = false } = expectOptions(op, options, REDUCING)
  x = asTensor(op, x)
  return reduce(kind, x, wrapDims(op, dim, x.rank), keepdim)
}

function argReduce(
  kind: 'max' | 'min',
  x: Tensor,
  dim: number | null | undefined,
  options: ReduceOptions,
): Tensor {
  const op = `arg${kind}`
  const { keepdim = false } = expectOptions(op, options, REDUCING)
  x = asTensor(op, x)
  const all = dim === undefined || dim === null
  if (x.numel === 0 && (all || x.shape[wrapDim(op, dim, x.rank)] === 0))
    throw new ShapeError(`${op}: ${show(x.shape)} has no elements`)
  if (all)
    return reshapeView(
      argReducePrimitive(kind, reshapeView(x, [x.numel]), 0),
      keepdim ? x.shape.map(() => 1) : [],
    )
  const d = wrapDim(op, dim, x.rank)
  if (x.rank === 0) return fill(x.backend, [], 0, 'int32')
  const out = argReducePrimitive(kind, x, d)
  return keepdim ? out : reshapeView(out, x.shape.toSpliced(d, 1))
}

/**
 * Finds the position of the first largest along dim, or in the flattened tensor if dim is missing: int32. NaN
 * counts as largest.
 *
 * @throws ShapeError if there are no elements.
 * @example
 * await tensor([[1, 5], [7, 4]]).argmax(1).toArray() // → [1, 0]
 */
export const argmax = (x: Tensor, dim?: number | null, options: ReduceOptions = {}): Tensor =>
  argReduce('max', x, dim, options)

/**
 * Finds the position of the first smallest along dim, or in the flattened tensor if dim is missing: int32. NaN
 * counts as smallest.
 *
 * @throws ShapeError if there are no elements.
 * @example
 * await tensor([[1, 5], [7, 4]]).argmin(1).toArray() // → [0, 1]
 */
export const argmin = (x: Tensor, dim?: number | null, options: ReduceOptions = {}): Tensor =>
  argReduce('min', x, dim, options)

/** Options of `var` and `std`. */
export interface VarOptions extends ReduceOptions {
  /** Degrees of freedom taken off the count: 1 for the sample variance (default), 0 for the population's. */
  correction?: number
}

function variance(op: string, x: Tensor, dim: Dims, options: VarOptions): Tensor {
  const { keepdim = false, correction = 1 } = expectOptions(op, options, { keepdim: 1, correction: 1 })
  expectFloat(op, x.dtype)
  const dims = wrapDims(op, dim, x.rank)
  const squares = squaredDeviations(x, dims)
  // Too few elements for the correction: 0 / 0 = NaN, as PyTorch.
  return div(reduce('sum', squares, dims, keepdim), Math.max(0, count(x, dims) - correction))
}

const VAR: Op<{ dim: Dims; options: VarOptions }> = {
  name: 'var',
  compose: ([x], { dim, options }) => [variance('var', x, dim, options)],
}
const var_ = (x: Tensor, dim?: Dims, options: VarOptions = {}): Tensor => apply(VAR, [x], { dim, options })[0]

export {
  // Here, not at its declaration: of a name that is exported as another, this is where editors look.
  /**
   * Takes the variance Σ(x − mean)² / (n − correction) over dims, by default all; the correction is 1 unless said.
   *
   * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
   * @example
   * await tensor([1, 2, 3]).var().item() // → 1
   */
  var_ as var,
}

const STD: Op<{ dim: Dims; options: VarOptions }> = {
  name: 'std',
  compose: ([x], { dim, options }) => [rootOfSquares(variance('std', x, dim, options))],
}

/**
 * Takes the standard deviation, the square root of `var`, over dims, by default all. Its gradient is 0 where it is 0.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await tensor([1, 2, 3]).std().item() // → 1
 */
export const std = (x: Tensor, dim?: Dims, options: VarOptions = {}): Tensor =>
  apply(STD, [x], { dim, options })[0]

declare module '../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Softmax along a dim. */
    readonly softmax?: KernelOf<DimAttrs>
    /** The gradient of softmax. */
    readonly softmaxBackward?: KernelOf<GradientAttrs<DimAttrs>>
    /** Logarithms of softmax along a dim. */
    readonly log_softmax?: KernelOf<DimAttrs>
    /** The gradient of log-softmax. */
    readonly log_softmaxBackward?: KernelOf<GradientAttrs<DimAttrs>>
  }
}

const SOFTMAX: Op<{ dim: number }> = {
  name: 'softmax',
  kernel: (kernels) => kernels.softmax,
  gradient: (kernels) => kernels.softmaxBackward,
  infer: ([x]) => [{ shape: x.shape, dtype: x.dtype }],
  compose: ([x], { dim }) => {
    const top = x.shape[dim] === 0 ? x : reduce('max', x, [dim], true)
    const e = exp(sub(x, top.detach()))
    return [div(e, reduce('sum', e, [dim], true))]
  },
}
const LOG_SOFTMAX: Op<{ dim: number }> = {
  name: 'log_softmax',
  kernel: (kernels) => kernels.log_softmax,
  gradient: (kernels) => kernels.log_softmaxBackward,
  infer: ([x]) => [{ shape: x.shape, dtype: x.dtype }],
  compose: ([x], { dim }) => {
    const shifted = sub(x, (x.shape[dim] === 0 ? x : reduce('max', x, [dim], true)).detach())
    return [sub(shifted, log(reduce('sum', exp(shifted), [dim], true)))]
  },
}

const CASTING: Names<CastOptions> = { dtype: 1 }

function alongDim(op: Op<{ dim: number }>, input: Tensor, dim: number, options: CastOptions): Tensor {
  const { dtype } = expectOptions(op.name, options, CASTING)
  const x = as(op.name, input, dtype)
  expectFloat(op.name, x.dtype)
  const d = wrapDim(op.name, dim, x.rank)
  if (x.rank > 0) return apply(op, [x], { dim: d })[0]
  return reshapeView(apply(op, [reshapeView(x, [1])], { dim: 0 })[0], [])
}

/** Options of operators that may convert their input first. */
export interface CastOptions {
  /** Convert to this dtype first. Default: none; of cumsum and cumprod bools count as int32. */
  dtype?: DType
}

/**
 * Takes exp(x) / Σ exp(x) along dim, in x's shape; shifted by the largest, so that nothing overflows.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await tensor([[1, 1], [0, 100]]).softmax(1).toArray() // → [[0.5, 0.5], [0, 1]]
 */
export const softmax = (x: Tensor, dim: number, options: CastOptions = {}): Tensor =>
  alongDim(SOFTMAX, x, dim, options)

/**
 * Takes x − ln Σ exp(x) along dim, in x's shape: the logarithm of `softmax`, without its loss of precision.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await tensor([0, 100]).logSoftmax(0).toArray() // → [-100, 0]
 */
export const logSoftmax = (x: Tensor, dim: number, options: CastOptions = {}): Tensor =>
  alongDim(LOG_SOFTMAX, x, dim, options)

/**
 * Takes `softmax` of −x along dim, in x's shape.
 *
 * @throws DTypeError for integers: convert first. ShapeError for a dim that x does not have.
 * @example
 * await tensor([0, 100]).softmin(0).toArray() // → [1, 0]
 */
export const softmin = (x: Tensor, dim: number, options: CastOptions = {}): Tensor => {
  const { dtype } = expectOptions('softmin', options, CASTING)
  return alongDim(SOFTMAX, mul(as('softmin', x, dtype), -1), dim, {})
}

const LOGSUMEXP: Op<{ dims: readonly number[]; keepdim: boolean }> = {
  name: 'logsumexp',
  compose: ([x], { dims, keepdim }) => {
    if (count(x, dims) === 0) return [log(reduce('sum', x, dims, keepdim))]
    const top = reduce('max', x.detach(), dims, true)
    // An infinite maximum would give ∞ − ∞.
    const shift = where(elementwise(FINITE, [top]), top, 0)
    const total = log(reduce('sum', exp(sub(x, shift)), dims, true))
    const out = addTensors(total, shift)
    return [
      keepdim
        ? out
        : reshapeView(
            out,
            x.shape.filter((_, i) => !dims.includes(i)),
          ),
    ]
  },
}
const FINITE = program('isfinite', 1, ([x]) => e.lt(e.abs(x), Infinity))

/**
 * Takes ln Σ exp(x) over dims, null for all, shifted by the largest so that nothing overflows; integers become
 * float32.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([1000, 0]).logsumexp(0).item() // → 1000
 */
export function logsumexp(x: Tensor, dim: Dims, options: ReduceOptions = {}): Tensor {
  const { keepdim = false } = expectOptions('logsumexp', options, REDUCING)
  x = asTensor('logsumexp', x)
  const from = as('logsumexp', x, toFloat(x.dtype))
  return apply(LOGSUMEXP, [from], { dims: wrapDims('logsumexp', dim, x.rank), keepdim })[0]
}

function cumulative(kind: 'sum' | 'prod', x: Tensor, dim: number, options: CastOptions): Tensor {
  const op = `cum${kind}`
  const { dtype } = expectOptions(op, options, CASTING)
  x = asTensor(op, x)
  const from = as(op, x, dtype ?? (x.dtype === 'bool' ? 'int32' : undefined))
  const d = wrapDim(op, dim, x.rank)
  return x.rank === 0 ? copy(from) : scan(kind, [from], d, false)
}

/**
 * Sums along dim up to and with each element, in x's shape; bools count as int32.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([1, 2, 3]).cumsum(0).toArray() // → [1, 3, 6]
 */
export const cumsum = (x: Tensor, dim: number, options: CastOptions = {}): Tensor =>
  cumulative('sum', x, dim, options)

/**
 * Multiplies along dim up to and with each element, in x's shape. The gradient is right also where there are
 * zeros.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([1, 2, 3]).cumprod(0).toArray() // → [1, 2, 6]
 */
export const cumprod = (x: Tensor, dim: number, options: CastOptions = {}): Tensor =>
  cumulative('prod', x, dim, options)

/** Options of `sort` and `argsort`. */
export interface SortOptions {
  /** Begin with the largest. Default: false. */
  descending?: boolean
  /** Accepted for familiarity: sorting is always stable here. Default: true. */
  stable?: boolean
}

/**
 * Sorts along dim, by default the last: the values and where they stood (int32), both in x's shape. Equal elements
 * keep their order; NaN comes last, or first if descending.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * const [values, indices] = tensor([3, 1, 2]).sort()
 * await values.toArray() // → [1, 2, 3]
 * await indices.toArray() // → [1, 2, 0]
 */
export function sort(x: Tensor, dim = -1, options: SortOptions = {}): [values: Tensor, indices: Tensor] {
  x = asTensor('sort', x)
  const { descending = false } = expectOptions('sort', options, { descending: 1, stable: 1 })
  return sortPrimitive(x, wrapDim('sort', dim, x.rank), descending)
}

/**
 * Finds the indices that sort x along dim, by default the last: int32, in x's shape.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([3, 1, 2]).argsort().toArray() // → [1, 2, 0]
 */
export function argsort(x: Tensor, dim = -1, options: SortOptions = {}): Tensor {
  const [values, indices] = sort(asTensor('argsort', x).detach(), dim, options)
  values.dispose()
  return indices
}

/** Options of `topk`. */
export interface TopkOptions {
  /** Find the largest (true) or the smallest (false). Default: true. */
  largest?: boolean
  /** The results always are in order; accepted for familiarity. */
  sorted?: boolean
}

/**
 * Finds the k largest (or smallest) along dim, by default the last, in order, and where they stood (int32).
 *
 * @throws ValueError unless k is a whole number between 0 and the size of dim.
 * @example
 * const [values, indices] = tensor([3, 1, 2]).topk(2)
 * await values.toArray() // → [3, 2]
 * await indices.toArray() // → [0, 2]
 */
export function topk(
  x: Tensor,
  k: number,
  dim = -1,
  options: TopkOptions = {},
): [values: Tensor, indices: Tensor] {
  x = asTensor('topk', x)
  const { largest = true } = expectOptions('topk', options, { largest: 1, sorted: 1 })
  const d = wrapDim('topk', dim, x.rank)
  const n = x.shape[d] ?? 1
  if (!Number.isInteger(k) || k < 0 || k > n)
    throw new ValueError(
      `topk: k = ${k} must lie within 0 … ${n}, the size of dim ${dim} of ${show(x.shape)}`,
    )
  const [values, indices] = sortPrimitive(x, d, largest)
  if (x.rank === 0) return [values, indices]
  return [narrow(values, d, 0, k), narrow(indices, d, 0, k)]
}

/**
 * Says whether any element is not 0, over dims, by default all: bool.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([[0, 0], [0, 1]]).any(1).toArray() // → [false, true]
 */
export const any = (x: Tensor, dim?: Dims, options: ReduceOptions = {}): Tensor =>
  flagged('any', 'sum', x, dim, options)

/**
 * Says whether all elements are not 0, over dims, by default all: bool.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([[1, 1], [0, 1]]).all(1).toArray() // → [true, false]
 */
export const all = (x: Tensor, dim?: Dims, options: ReduceOptions = {}): Tensor =>
  flagged('all', 'prod', x, dim, options)

/** Reduces the elements as 0 and 1. */
function flagged(op: string, kind: 'sum' | 'prod', x: Tensor, dim: Dims, options: ReduceOptions): Tensor {
  const { keepdim = false } = expectOptions(op, options, REDUCING)
  const from = copy(copy(x, 'bool'), 'int32')
  return copy(reduce(kind, from, wrapDims(op, dim, from.rank), keepdim), 'bool')
}
