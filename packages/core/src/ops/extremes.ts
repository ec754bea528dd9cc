import { expectOptions } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'
import { wrapDim } from '../tensor/layout.ts'
import { asTensor } from '../tensor/operands.ts'
import { Tensor } from '../tensor/tensor.ts'
import { gather } from './indexing.ts'
import { maximum, minimum } from './pointwise.ts'
import { amax, amin, argmax, argmin, type ReduceOptions } from './reduction.ts'
import { reshape } from './shape.ts'

/** The largest and smallest elements together with their places. */

type Pair = [values: Tensor, indices: Tensor]

/** The element at the first place of the extreme, which alone receives the gradient. */
function along(op: 'max' | 'min', input: Tensor, dim: number, options: ReduceOptions): Pair {
  const { keepdim = false } = expectOptions(op, options, { keepdim: 1 })
  const x = asTensor(op, input)
  const d = wrapDim(op, dim, x.rank)
  if (x.shape[d] === 0) throw new ShapeError(`${op}: dim ${dim} of ${show(x.shape)} has no elements`)
  const at = (op === 'max' ? argmax : argmin)(x, d, { keepdim: true })
  if (x.rank === 0) return [reshape(x, []), at]
  const values = gather(x, d, at)
  const shape = x.shape.toSpliced(d, 1)
  return keepdim ? [values, at] : [reshape(values, shape), reshape(at, shape)]
}

/**
 * Takes the largest element: of all x as a 0-d tensor; along `dim` as the pair of the values and their first places
 * (int32); beside another tensor the larger of each pair, as `maximum`. NaN counts as largest. The gradient of all x
 * is shared by equal largest elements; along `dim` the place that is given receives it.
 *
 * @throws ShapeError if there are no elements, or for a dim that x does not have.
 * @example
 * await max(tensor([3, 1, 2])).item() // → 3
 * await max(tensor([[1, 5], [7, 4]]), 1)[1].toArray() // → [1, 0]
 */
export function max(x: Tensor): Tensor
/**
 * Takes the larger of every two elements, in the shape that x and other broadcast to, as `maximum`.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await max(tensor([1, 5]), tensor([3, 2])).toArray() // → [3, 5]
 */
export function max(x: Tensor, other: Tensor): Tensor
/**
 * Takes the largest elements along dim, and their first places (int32); NaN counts as largest. The gradient goes to
 * those places.
 *
 * @throws ShapeError if the dim has no elements, or x does not have it.
 * @example
 * await max(tensor([[1, 5], [7, 4]]), 1)[0].toArray() // → [5, 7]
 */
export function max(x: Tensor, dim: number, options?: ReduceOptions): [values: Tensor, indices: Tensor]
export function max(x: Tensor, dim?: number | Tensor, options: ReduceOptions = {}): Tensor | Pair {
  if (dim instanceof Tensor) return maximum(x, dim)
  return dim === undefined ? amax(x) : along('max', x, dim, options)
}

/**
 * Takes the smallest element: of all x as a 0-d tensor; along `dim` as the pair of the values and their first places
 * (int32); beside another tensor the smaller of each pair, as `minimum`. NaN counts as smallest. The gradient of all x
 * is shared by equal smallest elements; along `dim` the place that is given receives it.
 *
 * @throws ShapeError if there are no elements, or for a dim that x does not have.
 * @example
 * await min(tensor([3, 1, 2])).item() // → 1
 * await min(tensor([[1, 5], [7, 4]]), 1)[1].toArray() // → [0, 1]
 */
export function min(x: Tensor): Tensor
/**
 * Takes the smaller of every two elements, in the shape that x and other broadcast to, as `minimum`.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await min(tensor([1, 5]), tensor([3, 2])).toArray() // → [1, 2]
 */
export function min(x: Tensor, other: Tensor): Tensor
/**
 * Takes the smallest elements along dim, and their first places (int32); NaN counts as smallest. The gradient goes to
 * those places.
 *
 * @throws ShapeError if the dim has no elements, or x does not have it.
 * @example
 * await min(tensor([[1, 5], [7, 4]]), 1)[0].toArray() // → [1, 4]
 */
export function min(x: Tensor, dim: number, options?: ReduceOptions): [values: Tensor, indices: Tensor]
export function min(x: Tensor, dim?: number | Tensor, options: ReduceOptions = {}): Tensor | Pair {
  if (dim instanceof Tensor) return minimum(x, dim)
  return dim === undefined ? amin(x) : along('min', x, dim, options)
}
