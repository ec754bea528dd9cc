import { addMethods } from '../add-methods.ts'
import { describe, expectInt, expectOptions } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { copy, elementwise, fill, TIMES } from '../primitives/elementwise.ts'
import { gatherPrimitive } from '../primitives/indexing.ts'
import { scan } from '../primitives/scan.ts'
import { expandView, reshapeView } from '../primitives/views.ts'
import { broadcastShapes, wrapDim } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { putFlat } from './at.ts'
import { composed } from './composed.ts'
import { arange } from './create.ts'
import { gather, scatterAdd } from './indexing.ts'
import { where } from './pointwise.ts'

/** Operators that put elements at the places that an index tells, as new tensors, and that take them from there. */

const positions = (x: Tensor): Tensor => reshapeView(arange(0, x.numel, 1, { device: x.backend }), x.shape)

const indexOf = (op: string, at: Tensor | ArrayOperand, x: Tensor): Tensor => {
  const index = asTensor(op, at, x, 'int32')
  expectInt(op, 'the index', index.dtype)
  return index
}

/** A one-dimensional index, or a scalar, over all of x but one dim. */
function spread(op: string, x: Tensor, dim: number, at: Tensor | ArrayOperand): [dim: number, index: Tensor] {
  const index = indexOf(op, at, x)
  if (index.rank > 1) throw new ShapeError(`${op}: the index must have one dim, got ${show(index.shape)}`)
  const d = wrapDim(op, dim, x.rank)
  const line = reshapeView(
    index,
    x.shape.map((_, i) => (i === d ? index.numel : 1)),
  )
  return [d, expandView(op, line, x.shape.with(d, index.numel))]
}

/** Options of `scatter`. */
export interface ScatterOptions {
  /** `'add'` adds to what is there. Default: it is replaced. */
  reduce?: 'add'
}

/**
 * Makes a copy of x with elements of `source`, a tensor or a number, at the places that `index` tells along dim: out[index[i]
 * [j]][j] = source[i][j] for dim 0. Where a place occurs again the last one stays. Gradients flow to what is left of x, and
 * to the source.
 *
 * @throws ShapeError if index does not fit x and the source, DTypeError unless it is int32.
 * @example
 * const index = tensor([[0, 2]], { dtype: 'int32' })
 * await zeros([1, 3]).scatter(1, index, 5).toArray() // → [[5, 0, 5]]
 */
export function scatter(
  x: Tensor,
  dim: number,
  at: Tensor | ArrayOperand,
  source: Tensor | ArrayOperand | number,
  options: ScatterOptions = {},
): Tensor {
  const { reduce } = expectOptions('scatter', options, { reduce: 1 })
  if (reduce !== undefined && reduce !== 'add')
    throw new ValueError(`scatter: reduce must be 'add', got ${describe(reduce)}; leave it out to replace`)
  x = asTensor('scatter', x)
  const index = indexOf('scatter', at, x)
  const values =
    typeof source === 'number'
      ? fill(x.backend, index.shape, source, x.dtype)
      : asTensor('scatter', source, x)
  const parts =
    values.shape.length === index.shape.length && index.shape.every((n, d) => n <= values.shape[d])
  if (!parts)
    throw new ShapeError(
      `scatter: the source ${show(values.shape)} must be at least as large as the index ${show(index.shape)} in each dim`,
    )
  return composed(
    'scatter',
    [x, index, values],
    ([t, at, v]) => {
      const cut = index.shape.reduce((all, n, d) => (n === all.shape[d] ? all : all.narrow(d, 0, n)), v)
      if (reduce === 'add') return [scatterAdd(t, dim, at, copy(cut, t.dtype))]
      return [putFlat('scatter', t, gather(positions(t), dim, at), copy(cut, t.dtype), false)]
    },
    true,
  )[0]
}

/** Options of `indexAdd`. */
export interface IndexAddOptions {
  /** What the source is multiplied by. Default: 1. */
  alpha?: number
}

/**
 * Makes a copy of x to which the parts of `source` along dim are added, each at the place that the one-dimensional index
 * tells.
 *
 * @throws ShapeError if the shapes do not fit, DTypeError unless index is int32.
 * @example
 * const index = tensor([1, 1], { dtype: 'int32' })
 * await zeros([3]).indexAdd(0, index, tensor([1, 2])).toArray() // → [0, 3, 0]
 */
export function indexAdd(
  x: Tensor,
  dim: number,
  at: Tensor | ArrayOperand,
  source: Tensor | ArrayOperand,
  options: IndexAddOptions = {},
): Tensor {
  const { alpha = 1 } = expectOptions('index_add', options, { alpha: 1 })
  x = asTensor('index_add', x)
  if (x.rank === 0)
    return reshapeView(
      indexAdd(reshapeView(x, [1]), 0, at, reshapeView(asTensor('index_add', source, x), [1]), options),
      [],
    )
  const [d, index] = spread('index_add', x, dim, at)
  const values = asTensor('index_add', source, x)
  return composed('index_add', [x, index, values], ([t, i, v]) => [
    scatterAdd(t, d, i, alpha === 1 ? v : elementwise(TIMES, [v], [alpha], v.dtype)),
  ])[0]
}

/** Replaces parts of x along dim. */
const replaced = (op: string, x: Tensor, d: number, index: Tensor, values: Tensor): Tensor =>
  composed(
    op,
    [x, index, values],
    ([t, i, v]) => [
      putFlat(
        op,
        t,
        gatherPrimitive(op, positions(t), d, i),
        expandView(op, copy(v, t.dtype), i.shape),
        false,
      ),
    ],
    true,
  )[0]

/**
 * Makes a copy of x in which the parts along dim at the places of a one-dimensional index are those of `source`.
 *
 * @throws ShapeError if the shapes do not fit, DTypeError unless index is int32.
 * @example
 * const index = tensor([2], { dtype: 'int32' })
 * await zeros([3]).indexCopy(0, index, tensor([7])).toArray() // → [0, 0, 7]
 */
export function indexCopy(
  x: Tensor,
  dim: number,
  at: Tensor | ArrayOperand,
  source: Tensor | ArrayOperand,
): Tensor {
  x = asTensor('index_copy', x)
  if (x.rank === 0)
    return reshapeView(
      indexCopy(reshapeView(x, [1]), 0, at, reshapeView(asTensor('index_copy', source, x), [1])),
      [],
    )
  const [d, index] = spread('index_copy', x, dim, at)
  return replaced('index_copy', x, d, index, asTensor('index_copy', source, x))
}

/**
 * Makes a copy of x in which the parts along dim at the places of a one-dimensional index are all `value`.
 *
 * @throws ShapeError if the index has more than one dim, DTypeError unless it is int32, ValueError for an index beyond the last
 * where the engine can look.
 * @example
 * const index = tensor([0, 2], { dtype: 'int32' })
 * await zeros([3]).indexFill(0, index, 1).toArray() // → [1, 0, 1]
 */
export function indexFill(x: Tensor, dim: number, at: Tensor | ArrayOperand, value: number): Tensor {
  x = asTensor('index_fill', x)
  if (x.rank === 0) return reshapeView(indexFill(reshapeView(x, [1]), 0, at, value), [])
  const [d, index] = spread('index_fill', x, dim, at)
  const n = x.shape[d]
  return composed(
    'index_fill',
    [x, index],
    ([t, i]) => {
      const one = fill(
        t.backend,
        t.shape.map(() => 1),
        value,
        t.dtype,
      )
      return [replaced('index_fill', t, d, where(i.lt(0), i.add(n), i), one)]
    },
    true,
  )[0]
}

/**
 * Takes elements of x, as if it had one dim, at int32 places of any shape.
 *
 * @throws DTypeError unless index is int32, ValueError for an index beyond the last where the engine can look.
 * @example
 * await tensor([[1, 2], [3, 4]]).take(tensor([3, 0], { dtype: 'int32' })).toArray() // → [4, 1]
 */
export function take(x: Tensor, at: Tensor | ArrayOperand): Tensor {
  x = asTensor('take', x)
  const index = indexOf('take', at, x)
  return composed(
    'take',
    [x, index],
    ([t, i]) => {
      const from = where(i.lt(0), i.add(t.numel), i)
      const found = gatherPrimitive('take', reshapeView(t, [t.numel]), 0, reshapeView(from, [i.numel]))
      return [reshapeView(found, i.shape)]
    },
    true,
  )[0]
}

/**
 * Takes elements along dim at the places that `indices` tell, as `argsort` and `argmax` with keepdim give them; other dims
 * broadcast. Without dim x counts as one dim.
 *
 * @throws ShapeError if the shapes do not fit, DTypeError unless indices are int32.
 * @example
 * const x = tensor([[10, 30, 20]])
 * await x.takeAlongDim(x.argsort(1), 1).toArray() // → [[10, 20, 30]]
 */
export function takeAlongDim(x: Tensor, indices: Tensor | ArrayOperand, dim?: number | null): Tensor {
  const op = 'take_along_dim'
  x = asTensor(op, x)
  const index = indexOf(op, indices, x)
  if (dim === undefined || dim === null) return take(x, reshapeView(index, [index.numel]))
  const d = wrapDim(op, dim, x.rank)
  if (index.rank !== x.rank)
    throw new ShapeError(`${op}: indices ${show(index.shape)} must have as many dims as x ${show(x.shape)}`)
  const common = broadcastShapes(op, [x.shape.with(d, 1), index.shape.with(d, 1)])
  const n = x.shape[d]
  return composed(
    op,
    [x, index],
    ([t, i]) => [
      gather(
        expandView(op, t, common.with(d, n)),
        d,
        expandView(op, where(i.lt(0), i.add(n), i), common.with(d, i.shape[d])),
      ),
    ],
    true,
  )[0]
}

/**
 * Makes a copy of x in which the elements where the mask (bool, broadcast to x) is true are those of `source`, one after the
 * other. Gradients flow to what is left of x, and to the source.
 *
 * @throws DTypeError for a mask that is not bool, ShapeError where shapes do not fit. A source that has too few elements is
 * read as 0 beyond its end where the engine cannot look.
 * @example
 * const mask = tensor([true, false, true])
 * await zeros([3]).maskedScatter(mask, tensor([5, 6])).toArray() // → [5, 0, 6]
 */
export function maskedScatter(x: Tensor, mask: Tensor | ArrayOperand, source: Tensor | ArrayOperand): Tensor {
  const op = 'masked_scatter'
  const given = asTensor(op, x)
  const flags = asTensor(op, mask, given, 'bool')
  const shape = broadcastShapes(op, [given.shape, flags.shape])
  const m = expandView(op, flags, shape)
  x = expandView(op, given, shape)
  const values = asTensor(op, source, x)
  return composed(
    op,
    [x, m, values],
    ([t, on, v]) => {
      if (v.numel === 0) return [where(on, 0, t)]
      const flat = reshapeView(on, [t.numel])
      const nth = scan('sum', [copy(flat, 'int32')], 0, false).sub(1)
      const place = where(flat, nth, 0)
      const found = gatherPrimitive(op, reshapeView(v, [v.numel]), 0, place)
      return [where(on, reshapeView(copy(found, t.dtype), t.shape), t)]
    },
    true,
  )[0]
}

addMethods({ scatter, indexAdd, indexCopy, indexFill, take, takeAlongDim, maskedScatter })
