import { addMethods } from '../add-methods.ts'
import { describe, expectOptions } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { copy, elementwise, fill } from '../primitives/elementwise.ts'
import { scatterAddPrimitive } from '../primitives/indexing.ts'
import { expandView, reshapeView } from '../primitives/views.ts'
import { numel, wrapDim } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor, tensorsOf } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import { type TensorOptions, tensor } from './create.ts'
import { indexSelect } from './indexing.ts'
import { amax, amin, sum } from './reduction.ts'
import { cat, movedim, transpose } from './shape.ts'

/** Operators that lay elements out anew: grids, windows, repetitions, bins. */

/** Options of `meshgrid`. */
export interface MeshgridOptions {
  /** `'ij'` (default): the first tensor runs along the first dim, as matrices count; `'xy'`: along the second. */
  indexing?: 'ij' | 'xy'
}

/**
 * Spreads one-dimensional tensors over the grid of all their combinations: of sizes N and M two tensors (N, M).
 *
 * @throws ShapeError for a tensor of more than one dim.
 * @example
 * const [rows, columns] = meshgrid([arange(2), arange(3)])
 * await rows!.toArray() // → [[0, 0, 0], [1, 1, 1]]
 * await columns!.toArray() // → [[0, 1, 2], [0, 1, 2]]
 */
export function meshgrid(list: readonly (Tensor | ArrayOperand)[], options: MeshgridOptions = {}): Tensor[] {
  const { indexing = 'ij' } = expectOptions('meshgrid', options, { indexing: 1 })
  if (indexing !== 'ij' && indexing !== 'xy')
    throw new ValueError(`meshgrid: indexing must be 'ij' or 'xy', got ${describe(indexing)}`)
  const tensors = tensorsOf('meshgrid', list)
  for (const t of tensors)
    if (t.rank > 1) throw new ShapeError(`meshgrid: takes tensors of one dim, got ${show(t.shape)}`)
  const shape = tensors.map((t) => t.numel)
  const grids = tensors.map((t, i) =>
    expandView(
      'meshgrid',
      reshapeView(
        t,
        shape.map((n, d) => (d === i ? n : 1)),
      ),
      shape,
    ),
  )
  return indexing === 'xy' && shape.length > 1 ? grids.map((g) => transpose(g, 0, 1)) : grids
}

function triangle(
  op: string,
  rows: number,
  columns: number,
  inside: (i: number, j: number) => boolean,
  options: TensorOptions,
): Tensor {
  for (const n of [rows, columns])
    if (!Number.isInteger(n) || n < 0)
      throw new ShapeError(
        `${op}: takes numbers of rows and columns, got ${describe(rows)} and ${describe(columns)}`,
      )
  const places: (readonly [number, number])[] = []
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) if (inside(i, j)) places.push([i, j])
  return tensor(
    Int32Array.from([...places.map(([i]) => i), ...places.map(([, j]) => j)]),
    [2, places.length],
    options,
  )
}

/**
 * Lists the places of the lower triangle of a matrix, on and below a diagonal, row by row: int32 (2, N), rows and columns.
 *
 * @throws ShapeError for sizes that are none.
 * @example
 * await trilIndices(2, 2).toArray() // → [[0, 1, 1], [0, 0, 1]]
 */
export const trilIndices = (rows: number, columns: number, offset = 0, options: TensorOptions = {}): Tensor =>
  triangle('tril_indices', rows, columns, (i, j) => j - i <= offset, options)

/**
 * Lists the places of the upper triangle of a matrix, on and above a diagonal, row by row: int32 (2, N), rows and columns.
 *
 * @throws ShapeError for sizes that are none.
 * @example
 * await triuIndices(2, 2, 1).toArray() // → [[0], [1]]
 */
export const triuIndices = (rows: number, columns: number, offset = 0, options: TensorOptions = {}): Tensor =>
  triangle('triu_indices', rows, columns, (i, j) => j - i >= offset, options)

/**
 * Repeats each element along dim: a number of times, or as often as a list says for each of them. Without dim x counts as one
 * dim.
 *
 * @throws ShapeError for a list of another length than the dim, ValueError for numbers that are no counts.
 * @example
 * await tensor([1, 2]).repeatInterleave(2).toArray() // → [1, 1, 2, 2]
 * await tensor([[1], [2]]).repeatInterleave([1, 2], 0).toArray() // → [[1], [2], [2]]
 */
export function repeatInterleave(
  x: Tensor,
  repeats: number | readonly number[] | Int32Array,
  dim?: number | null,
): Tensor {
  const op = 'repeat_interleave'
  x = asTensor(op, x)
  if (dim === undefined || dim === null || x.rank === 0)
    return repeatInterleave(reshapeView(x, [x.numel]), repeats, 0)
  const d = wrapDim(op, dim, x.rank)
  const counts =
    typeof repeats === 'number'
      ? [repeats]
      : Array.isArray(repeats)
        ? repeats
        : repeats instanceof Int32Array
          ? [...repeats]
          : null
  if (counts === null)
    throw new ValueError(
      `${op}: how often is a number or a list of numbers, got ${describe(repeats)}; of a tensor pass await repeats.data()`,
    )
  for (const n of counts)
    if (!Number.isInteger(n) || n < 0) throw new ValueError(`${op}: ${describe(n)} is no number of times`)
  if (typeof repeats === 'number') {
    const spread = reshapeView(x, x.shape.toSpliced(d + 1, 0, 1))
    return reshapeView(
      expandView(op, spread, x.shape.toSpliced(d + 1, 0, repeats)),
      x.shape.with(d, x.shape[d] * repeats),
    )
  }
  if (counts.length !== x.shape[d])
    throw new ShapeError(`${op}: got ${counts.length} counts for dim ${dim} of ${show(x.shape)}`)
  const places = counts.flatMap((n, i) => new Array<number>(n).fill(i))
  return indexSelect(x, d, tensor(Int32Array.from(places), { device: x.backend }))
}

/** Tensors of at least so many dims, joined along one of them. */
const joined = (
  op: string,
  list: readonly (Tensor | ArrayOperand)[],
  dim: (rank: number) => number,
  least: number,
): Tensor => {
  const tensors = tensorsOf(op, list).map((t) =>
    t.rank >= least
      ? t
      : reshapeView(
          t,
          least === 2 && t.rank === 1
            ? [1, t.numel]
            : t.shape.length === 0 && least === 2
              ? [1, 1]
              : [t.numel],
        ),
  )
  if (tensors.length === 0) throw new ValueError(`${op}: got no tensors`)
  return cat(tensors, dim(tensors[0].rank))
}

/**
 * Puts tensors side by side: along the second dim, those of one dim along the first.
 *
 * @throws ShapeError if they do not fit.
 * @example
 * await hstack([tensor([1]), tensor([2, 3])]).toArray() // → [1, 2, 3]
 */
export const hstack = (list: readonly (Tensor | ArrayOperand)[]): Tensor =>
  joined('hstack', list, (rank) => (rank === 1 ? 0 : 1), 1)

/**
 * Puts tensors above each other, along the first dim; those of one dim are rows.
 *
 * @throws ShapeError if they do not fit.
 * @example
 * await vstack([tensor([1, 2]), tensor([3, 4])]).toArray() // → [[1, 2], [3, 4]]
 */
export const vstack = (list: readonly (Tensor | ArrayOperand)[]): Tensor => joined('vstack', list, () => 0, 2)

/**
 * Swaps two dims, as a view: PyTorch's other name of `transpose`.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * zeros([2, 3, 4]).swapaxes(0, 2).shape // → [4, 3, 2]
 */
export const swapaxes = (x: Tensor, axis0: number, axis1: number): Tensor => transpose(x, axis0, axis1)

/**
 * Takes all windows of `size` elements along dim, every `step`-th of them: the dim counts windows, and a new last dim the
 * elements in them. They are copied.
 *
 * @throws ShapeError for a window larger than the dim, or a size or step that is none.
 * @example
 * await arange(5).unfold(0, 3, 2).toArray() // → [[0, 1, 2], [2, 3, 4]]
 */
export function unfold(x: Tensor, dim: number, size: number, step: number): Tensor {
  x = asTensor('unfold', x)
  if (x.rank === 0) return unfold(reshapeView(x, [1]), dim, size, step).squeeze(0)
  const d = wrapDim('unfold', dim, x.rank)
  const n = x.shape[d]
  if (!(Number.isInteger(size) && size >= 0 && size <= n && Number.isInteger(step) && step >= 1))
    throw new ShapeError(
      `unfold: cannot take windows of ${size} in steps of ${step} from dim ${dim} of ${show(x.shape)}`,
    )
  const windows = Math.floor((n - size) / step) + 1
  const places = Array.from({ length: windows * size }, (_, i) => Math.floor(i / size) * step + (i % size))
  return composed(
    'unfold',
    [x],
    ([t]) => {
      const index = tensor(Int32Array.from(places), { device: t.backend })
      const found = reshapeView(indexSelect(t, d, index), t.shape.toSpliced(d, 1, windows, size))
      return [movedim(found, d + 1, -1)]
    },
    true,
  )[0]
}

/** Options of `searchsorted`. */
export interface SearchsortedOptions {
  /** Takes the place behind the last of equal elements instead of before the first. Default: false. */
  right?: boolean
}

const BEFORE = program('searchsorted', 2, ([a, v]) => e.cast('int32', e.lt(a, v)))
const UP_TO = program('searchsorted', 2, ([a, v]) => e.cast('int32', e.le(a, v)))

/**
 * Finds where values belong in ascending order: for each how many elements of `sorted` are smaller, or with `right` not larger;
 * int32, in the values' shape. `sorted` has one dim, or the first dims of the values and one more. All are compared: time grows
 * with the product of both.
 *
 * @throws ShapeError if the shapes do not fit.
 * @example
 * await searchsorted(tensor([1, 3, 5]), tensor([3, 9])).toArray() // → [1, 3]
 */
export function searchsorted(
  sorted: Tensor | ArrayOperand,
  values: Tensor | ArrayOperand,
  options: SearchsortedOptions = {},
): Tensor {
  const { right = false } = expectOptions('searchsorted', options, { right: 1 })
  const line = asTensor('searchsorted', sorted)
  const wanted = asTensor('searchsorted', values, line)
  const own = line.rank > 1
  if (
    line.rank === 0 ||
    (own &&
      (wanted.rank !== line.rank || line.shape.some((n, d) => d < line.rank - 1 && n !== wanted.shape[d])))
  )
    throw new ShapeError(
      `searchsorted: sorted ${show(line.shape)} must have one dim, or the first dims of the values ${show(wanted.shape)} and one more`,
    )
  return composed('searchsorted', [line, wanted], ([a, v]) => {
    const among = own ? reshapeView(a, a.shape.toSpliced(-1, 0, 1)) : a
    return [sum(elementwise(right ? UP_TO : BEFORE, [among, reshapeView(v, [...v.shape, 1])]), -1)]
  })[0]
}

/** Options of `histc`. */
export interface HistcOptions {
  /** How many bins of equal width there are. Default: 100. */
  bins?: number
  /** Where the first bin begins. Default, with `max`: the smallest element. */
  min?: number
  /** Where the last bin ends. Default, with `min`: the largest element. */
  max?: number
}

/**
 * Counts elements in bins of equal width from min to max; what lies outside is not counted. The counts are float32.
 *
 * @throws ValueError unless bins ≥ 1 and min ≤ max.
 * @example
 * await tensor([1, 2, 2, 4]).histc({ bins: 3, min: 1, max: 4 }).toArray() // → [1, 2, 1]
 */
export function histc(x: Tensor, options: HistcOptions = {}): Tensor {
  const { bins = 100, min = 0, max = 0 } = expectOptions('histc', options, { bins: 1, min: 1, max: 1 })
  x = asTensor('histc', x)
  if (!Number.isInteger(bins) || bins < 1 || !(min <= max))
    throw new ValueError(`histc: needs bins ≥ 1 and min ≤ max, got ${bins} bins from ${min} to ${max}`)
  const whole = numel(x.shape)
  return composed('histc', [x.detach()], ([t]) => {
    const flat = copy(reshapeView(t, [whole]), 'float32')
    const empty = fill(t.backend, [bins], 0, 'float32')
    if (whole === 0) return [empty]
    const [low, high] =
      min === max && min === 0
        ? [amin(flat), amax(flat)]
        : [min, max].map((v) => fill(t.backend, [], v, 'float32'))
    const same = low.eq(high)
    const [from, to] = [low.sub(copy(same, 'float32')), high.add(copy(same, 'float32'))]
    const inside = flat.ge(from).logicalAnd(flat.le(to))
    const share = flat.sub(from).div(to.sub(from)).mul(bins)
    const place = copy(
      share
        .clamp(0, bins - 1)
        .maskedFill(inside.logicalNot(), 0)
        .floor(),
      'int32',
    )
    return [scatterAddPrimitive('histc', empty, 0, place, copy(inside, 'float32'))]
  })[0]
}

addMethods({ repeatInterleave, swapaxes, unfold, histc })
