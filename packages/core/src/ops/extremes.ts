import { addMethods } from '../add-methods.ts'
import { expectOptions } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { copy } from '../primitives/elementwise.ts'
import { gatherPrimitive } from '../primitives/indexing.ts'
import { reshapeView } from '../primitives/views.ts'
import { wrapDim } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import { fullLike } from './create.ts'
import { maximum, minimum, where } from './pointwise.ts'
import { amax, amin, argmax, argmin, type ReduceOptions, sort } from './reduction.ts'
import { cat, narrow } from './shape.ts'

/** Operators that find the largest, the smallest and the middle one, by PyTorch's names. */

/** Values and where they stood, int32. */
export type Found = [values: Tensor, indices: Tensor]

const REDUCING = { keepdim: 1 } as const

/** Elements of x at places along dim, which a gradient goes back to. */
function picked(op: string, x: Tensor, d: number, places: Tensor, keepdim: boolean): Found {
  const values = gatherPrimitive(op, x, d, places)
  if (keepdim) return [values, places]
  const shape = places.shape.toSpliced(d, 1)
  return [reshapeView(values, shape), reshapeView(places, shape)]
}

function extreme(
  op: 'max' | 'min',
  x: Tensor,
  dim: Tensor | ArrayOperand | number | null | undefined,
  options: ReduceOptions,
): Tensor | Found {
  const { keepdim = false } = expectOptions(op, options, REDUCING)
  x = asTensor(op, x)
  if (dim === undefined || dim === null) return (op === 'max' ? amax : amin)(x, null, { keepdim })
  if (typeof dim !== 'number') return (op === 'max' ? maximum : minimum)(x, dim)
  const d = wrapDim(op, dim, x.rank)
  const places = (op === 'max' ? argmax : argmin)(x, dim, { keepdim: true })
  return x.rank === 0 ? [copy(x), places] : picked(op, x, d, places, keepdim)
}

/**
 * Finds the largest: of all elements; or with a dim the largest along it and where it stands, `[values, indices]`; or with
 * another tensor the larger of each pair. NaN counts as largest. Along a dim the gradient goes to the first of equal ones, of
 * all elements it is shared.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * const x = tensor([[1, 5], [7, 4]])
 * await x.max().item() // → 7
 * const [values, indices] = x.max(1)
 * await values.toArray() // → [5, 7]
 * await indices.toArray() // → [1, 0]
 */
export function max(x: Tensor, dim?: null, options?: ReduceOptions): Tensor
/**
 * Finds the largest along a dim and where it stands, int32: `[values, indices]`. NaN counts as largest. The gradient goes to the
 * first of equal ones.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * const [values, indices] = tensor([[1, 5], [7, 4]]).max(1)
 * await indices.toArray() // → [1, 0]
 */
export function max(x: Tensor, dim: number, options?: ReduceOptions): Found
/**
 * Takes the larger of each pair of elements; shapes broadcast, and NaN wins.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 5]).max(tensor([3, 3])).toArray() // → [3, 5]
 */
export function max(x: Tensor, other: Tensor | ArrayOperand): Tensor
export function max(
  x: Tensor,
  dim?: Tensor | ArrayOperand | number | null,
  options: ReduceOptions = {},
): Tensor | Found {
  return extreme('max', x, dim, options)
}

/**
 * Finds the smallest: of all elements; or with a dim the smallest along it and where it stands, `[values, indices]`; or with
 * another tensor the smaller of each pair. NaN counts as smallest. Along a dim the gradient goes to the first of equal ones,
 * of all elements it is shared.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * const [values, indices] = tensor([[1, 5], [7, 4]]).min(1)
 * await values.toArray() // → [1, 4]
 * await indices.toArray() // → [0, 1]
 */
export function min(x: Tensor, dim?: null, options?: ReduceOptions): Tensor
/**
 * Finds the smallest along a dim and where it stands, int32: `[values, indices]`. NaN counts as smallest. The gradient goes to the
 * first of equal ones.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * const [values, indices] = tensor([[1, 5], [7, 4]]).min(1)
 * await indices.toArray() // → [0, 1]
 */
export function min(x: Tensor, dim: number, options?: ReduceOptions): Found
/**
 * Takes the smaller of each pair of elements; shapes broadcast, and NaN wins.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 5]).min(tensor([3, 3])).toArray() // → [1, 3]
 */
export function min(x: Tensor, other: Tensor | ArrayOperand): Tensor
export function min(
  x: Tensor,
  dim?: Tensor | ArrayOperand | number | null,
  options: ReduceOptions = {},
): Tensor | Found {
  return extreme('min', x, dim, options)
}

/**
 * Finds the smallest and the largest, of all elements or along a dim: `[min, max]`.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * const [low, high] = tensor([3, 1, 2]).aminmax()
 * await high.sub(low).item() // → 2
 */
export function aminmax(
  x: Tensor,
  dim?: number | null,
  options: ReduceOptions = {},
): [min: Tensor, max: Tensor] {
  return [amin(x, dim, options), amax(x, dim, options)]
}

/**
 * Finds the middle one in order: of all elements; or with a dim along it, with where it stands, `[values, indices]`. Of an even
 * number it is the lower one; with NaN among them it is NaN.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * await tensor([3, 1, 2, 9]).median().item() // → 2
 * const [values] = tensor([[3, 1, 2]]).median(1)
 * await values.toArray() // → [2]
 */
export function median(x: Tensor): Tensor
/**
 * Finds the middle one in order along a dim, and where it stands: `[values, indices]`. Of an even number it is the lower one;
 * with NaN among them it is NaN.
 *
 * @throws ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * const [values] = tensor([[3, 1, 2]]).median(1)
 * await values.toArray() // → [2]
 */
export function median(x: Tensor, dim: number, options?: ReduceOptions): Found
export function median(x: Tensor, dim?: number, options: ReduceOptions = {}): Tensor | Found {
  const { keepdim = false } = expectOptions('median', options, REDUCING)
  x = asTensor('median', x)
  if (dim === undefined) {
    const [value] = median(reshapeView(x, [x.numel]), 0)
    return value
  }
  if (x.rank === 0) return [copy(x), argmax(x, 0)]
  const d = wrapDim('median', dim, x.rank)
  const n = x.shape[d]
  if (n === 0) throw new ShapeError(`median: ${show(x.shape)} has no elements along dim ${dim}`)
  return composed(
    'median',
    [x],
    ([t]) => {
      const [, order] = sort(t.detach(), d)
      const middle = narrow(order, d, Math.floor((n - 1) / 2), 1)
      // NaN sorts last.
      const last = narrow(order, d, n - 1, 1)
      const broken = gatherPrimitive('median', t, d, last).isnan()
      return picked('median', t, d, where(broken, last, middle), keepdim)
    },
    true,
  ) as Found
}

/** How `quantile` takes a value between two elements. */
export type Interpolation = 'linear' | 'lower' | 'higher' | 'nearest' | 'midpoint'

/** Options of `quantile`. */
export interface QuantileOptions extends ReduceOptions {
  /** Between two elements: a mixture of both by distance (default), one of them, or their mean. */
  interpolation?: Interpolation
}

/**
 * Finds the value that a share q of the elements lie below, of all of them or along dim; q may be a list, which becomes the
 * first dim.
 *
 * @throws ValueError for q outside 0 … 1, ShapeError for a dim that x does not have, or if there are no elements.
 * @example
 * await tensor([1, 2, 3, 4]).quantile(0.5).item() // → 2.5
 * await tensor([[1, 2, 3]]).quantile([0, 1], 1).toArray() // → [[1], [3]]
 */
export function quantile(
  x: Tensor,
  q: number | readonly number[],
  dim?: number | null,
  options: QuantileOptions = {},
): Tensor {
  const { keepdim = false, interpolation = 'linear' } = expectOptions('quantile', options, {
    keepdim: 1,
    interpolation: 1,
  })
  x = asTensor('quantile', x)
  const all = dim === undefined || dim === null || x.rank === 0
  const line = all || x.rank === 0 ? reshapeView(x, [x.numel]) : x
  const d = all ? 0 : wrapDim('quantile', dim, line.rank)
  const n = line.shape[d]
  if (n === 0) throw new ShapeError(`quantile: ${show(x.shape)} has no elements along its dim`)
  const shares = typeof q === 'number' ? [q] : q
  for (const share of shares)
    if (!(share >= 0 && share <= 1)) throw new ValueError(`quantile: q must lie within 0 … 1, got ${share}`)
  return composed('quantile', [line], ([t]) => {
    const [values] = sort(t, d)
    const broken = narrow(values, d, n - 1, 1)
    const one = (share: number): Tensor => {
      const at = share * (n - 1)
      const [low, high] = [Math.floor(at), Math.ceil(at)]
      const even = at - low === 0.5 ? (low % 2 === 0 ? low : high) : Math.round(at)
      const weight = { linear: at - low, lower: 0, higher: 1, midpoint: 0.5, nearest: Number(even === high) }
      const by = weight[interpolation]
      if (by === undefined)
        throw new ValueError(
          `quantile: interpolation must be one of ${Object.keys(weight).join(', ')}, got '${interpolation}'`,
        )
      const a = narrow(values, d, low, 1)
      const found = low === high || by === 0 ? a : a.add(narrow(values, d, high, 1).sub(a).mul(by))
      const whole = where(broken.isnan(), broken, found)
      if (all) return reshapeView(whole, keepdim ? x.shape.map(() => 1) : [])
      return keepdim ? whole : reshapeView(whole, whole.shape.toSpliced(d, 1))
    }
    const found = shares.map(one)
    if (typeof q === 'number') return [found[0]]
    return [cat(found.map((v) => reshapeView(v, [1, ...v.shape])))]
  })[0]
}

/**
 * The largest so far, by doubling: after step s each element has seen 2s of those before it. Later ones win among equals, as in
 * PyTorch.
 */
function running(op: 'cummax' | 'cummin', x: Tensor, dim: number): Found {
  x = asTensor(op, x)
  if (x.rank === 0) return [copy(x), argmax(x, 0)]
  const d = wrapDim(op, dim, x.rank)
  const n = x.shape[d]
  return composed(
    op,
    [x],
    ([t]) => {
      const source = t.detach()
      let values = source
      let places = fullLike(source, 1, { dtype: 'int32' }).cumsum(d).sub(1)
      for (let s = 1; s < n; s *= 2) {
        const [a, b] = [narrow(values, d, 0, n - s), narrow(values, d, s, n - s)]
        const [pa, pb] = [narrow(places, d, 0, n - s), narrow(places, d, s, n - s)]
        const better = op === 'cummax' ? a.gt(b) : a.lt(b)
        const earlier = better.logicalOr(a.isnan()).logicalAnd(b.isnan().logicalNot())
        values = cat([narrow(values, d, 0, s), where(earlier, a, b)], d)
        places = cat([narrow(places, d, 0, s), where(earlier, pa, pb)], d)
      }
      return [gatherPrimitive(op, t, d, places), places]
    },
    true,
  ) as Found
}

/**
 * Finds the largest along dim up to and with each element, and where it stands: `[values, indices]`. NaN counts as largest.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * const [values] = tensor([1, 3, 2]).cummax(0)
 * await values.toArray() // → [1, 3, 3]
 */
export const cummax = (x: Tensor, dim: number): Found => running('cummax', x, dim)

/**
 * Finds the smallest along dim up to and with each element, and where it stands: `[values, indices]`. NaN counts as smallest.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * const [values] = tensor([2, 1, 3]).cummin(0)
 * await values.toArray() // → [2, 1, 1]
 */
export const cummin = (x: Tensor, dim: number): Found => running('cummin', x, dim)

/** The methods that have several forms. */
export interface ExtremesMethods {
  /**
   * Finds the largest: of all elements; or with a dim the largest along it and where it stands, `[values, indices]`; or with
   * another tensor the larger of each pair. NaN counts as largest. Along a dim the gradient goes to the first of equal ones, of
   * all elements it is shared.
   *
   * @throws ShapeError for a dim that x does not have, or if there are no elements.
   * @example
   * const x = tensor([[1, 5], [7, 4]])
   * await x.max().item() // → 7
   * const [values, indices] = x.max(1)
   * await values.toArray() // → [5, 7]
   * await indices.toArray() // → [1, 0]
   */
  max(dim?: null, options?: ReduceOptions): Tensor
  /**
   * Finds the largest along a dim and where it stands, int32: `[values, indices]`. NaN counts as largest. The gradient goes to the
   * first of equal ones.
   *
   * @throws ShapeError for a dim that x does not have, or if there are no elements.
   * @example
   * const [values, indices] = tensor([[1, 5], [7, 4]]).max(1)
   * await indices.toArray() // → [1, 0]
   */
  max(dim: number, options?: ReduceOptions): Found
  /**
   * Takes the larger of each pair of elements; shapes broadcast, and NaN wins.
   *
   * @throws ShapeError if the shapes do not broadcast.
   * @example
   * await tensor([1, 5]).max(tensor([3, 3])).toArray() // → [3, 5]
   */
  max(other: Tensor | ArrayOperand): Tensor
  /**
   * Finds the smallest: of all elements; or with a dim the smallest along it and where it stands, `[values, indices]`; or with
   * another tensor the smaller of each pair. NaN counts as smallest. Along a dim the gradient goes to the first of equal ones,
   * of all elements it is shared.
   *
   * @throws ShapeError for a dim that x does not have, or if there are no elements.
   * @example
   * const [values, indices] = tensor([[1, 5], [7, 4]]).min(1)
   * await values.toArray() // → [1, 4]
   * await indices.toArray() // → [0, 1]
   */
  min(dim?: null, options?: ReduceOptions): Tensor
  /**
   * Finds the smallest along a dim and where it stands, int32: `[values, indices]`. NaN counts as smallest. The gradient goes to the
   * first of equal ones.
   *
   * @throws ShapeError for a dim that x does not have, or if there are no elements.
   * @example
   * const [values, indices] = tensor([[1, 5], [7, 4]]).min(1)
   * await indices.toArray() // → [0, 1]
   */
  min(dim: number, options?: ReduceOptions): Found
  /**
   * Takes the smaller of each pair of elements; shapes broadcast, and NaN wins.
   *
   * @throws ShapeError if the shapes do not broadcast.
   * @example
   * await tensor([1, 5]).min(tensor([3, 3])).toArray() // → [1, 3]
   */
  min(other: Tensor | ArrayOperand): Tensor
  /**
   * Finds the middle one in order: of all elements; or with a dim along it, with where it stands, `[values, indices]`. Of an even
   * number it is the lower one; with NaN among them it is NaN.
   *
   * @throws ShapeError for a dim that x does not have, or if there are no elements.
   * @example
   * await tensor([3, 1, 2, 9]).median().item() // → 2
   * const [values] = tensor([[3, 1, 2]]).median(1)
   * await values.toArray() // → [2]
   */
  median(): Tensor
  /**
   * Finds the middle one in order along a dim, and where it stands: `[values, indices]`. Of an even number it is the lower one;
   * with NaN among them it is NaN.
   *
   * @throws ShapeError for a dim that x does not have, or if there are no elements.
   * @example
   * const [values] = tensor([[3, 1, 2]]).median(1)
   * await values.toArray() // → [2]
   */
  median(dim: number, options?: ReduceOptions): Found
}

addMethods({ max, min, aminmax, median, quantile, cummax, cummin })
