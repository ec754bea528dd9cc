import { describe, expectOptions, sizesOf } from '../checks.ts'
import type { DimAttrs } from '../dispatch/kernels.ts'
import { apply, type Op, type TensorSpec } from '../dispatch/op.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { type Program, program } from '../expr/program.ts'
import { copy, copyInto, elementwise } from '../primitives/elementwise.ts'
import {
  contiguous as dense,
  embed,
  expandView,
  flipView,
  part,
  permuteView,
  piecesView,
  reshapeView,
  transposeView,
} from '../primitives/views.ts'
import { checkFits, isFloat, promote } from '../tensor/dtype.ts'
import * as L from '../tensor/layout.ts'
import { type ArrayOperand, asTensor, tensorsOf } from '../tensor/operands.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'

/** Operators that only move elements around. Views share storage; a copy is made where the docs say so. */

/**
 * Gives the same elements in another shape; one size may be −1 and follows from the others. It is a view where the
 * strides allow it, else a copy.
 *
 * @throws ShapeError if the numbers of elements differ.
 * @example
 * arange(6).reshape([2, -1]).shape // → [2, 3]
 * arange(6).reshape(3, 2).shape // → [3, 2]
 */
export function reshape(x: Tensor, shape: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('reshape', x)
  return reshapeView(x, L.resolveShape('reshape', x.shape, sizesOf('reshape', shape, more)))
}

/**
 * Gives the same elements in another shape as `reshape` does, but never copies.
 *
 * @throws ShapeError where the strides do not allow a view, or if the numbers of elements differ.
 * @example
 * arange(6).view([2, 3]).shape // → [2, 3]
 */
export function view(x: Tensor, shape: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('view', x)
  const to = L.resolveShape('view', x.shape, sizesOf('view', shape, more))
  if (L.reshapeLayout(x, to) === null) {
    throw new ShapeError(
      `view: ${show(x.shape)} with strides ${show(x.strides)} cannot be seen as ${show(to)} without a copy; use reshape`,
    )
  }
  return reshapeView(x, to)
}

/**
 * Joins the dims startDim … endDim, both included, into one; by default all. It is a view where the strides allow
 * it.
 *
 * @throws ShapeError if startDim comes after endDim.
 * @example
 * zeros([2, 3, 4]).flatten(1).shape // → [2, 12]
 */
export function flatten(x: Tensor, startDim = 0, endDim = -1): Tensor {
  x = asTensor('flatten', x)
  const [a, b] = [L.wrapDim('flatten', startDim, x.rank), L.wrapDim('flatten', endDim, x.rank)]
  if (a > b) throw new ShapeError(`flatten: startDim ${startDim} comes after endDim ${endDim}`)
  if (x.rank === 0) return reshapeView(x, [1])
  return reshapeView(x, [...x.shape.slice(0, a), L.numel(x.shape.slice(a, b + 1)), ...x.shape.slice(b + 1)])
}

/**
 * Splits dim `dim` into several of the given sizes; one may be −1. It is a view.
 *
 * @throws ShapeError if the sizes do not make up the dim.
 * @example
 * zeros([2, 12]).unflatten(1, [3, -1]).shape // → [2, 3, 4]
 */
export function unflatten(x: Tensor, dim: number, sizes: readonly number[]): Tensor {
  x = asTensor('unflatten', x)
  const d = L.wrapDim('unflatten', dim, x.rank)
  return reshapeView(x, [
    ...x.shape.slice(0, d),
    ...L.resolveShape('unflatten', [x.shape[d]], sizes),
    ...x.shape.slice(d + 1),
  ])
}

/**
 * Puts the dims in another order, as a view: dim i of the result is dim `dims[i]` of x.
 *
 * @throws ShapeError unless each dim is named once.
 * @example
 * zeros([2, 3, 4]).permute([2, 0, 1]).shape // → [4, 2, 3]
 */
export function permute(x: Tensor, dims: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('permute', x)
  const order = sizesOf('permute', dims, more)
  const places = order.map((d) => L.wrapDim('permute', d, x.rank))
  if (places.length !== x.rank || new Set(places).size !== places.length)
    throw new ShapeError(
      `permute: ${show(order)} must name each of the ${x.rank} dims of ${show(x.shape)} once`,
    )
  return permuteView(x, places)
}

/**
 * Swaps two dims, as a view.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * zeros([2, 3, 4]).transpose(-2, -1).shape // → [2, 4, 3]
 */
export function transpose(x: Tensor, dim0: number, dim1: number): Tensor {
  x = asTensor('transpose', x)
  const [a, b] = [L.wrapDim('transpose', dim0, x.rank), L.wrapDim('transpose', dim1, x.rank)]
  return x.rank === 0 ? x : transposeView(x, a, b)
}

/**
 * Reverses the order of all dims, as a view: of a matrix the transposed one. On a tensor it is a getter, `x.T`.
 *
 * @example
 * T(zeros([2, 3])).shape // → [3, 2]
 */
export const T = (x: Tensor): Tensor =>
  permuteView(
    x,
    x.shape.map((_, i) => x.rank - 1 - i),
  )

/**
 * Moves the dims at places `source` to places `destination`, as a view; the others keep their order.
 *
 * @throws ShapeError unless both name as many dims, each once.
 * @example
 * zeros([2, 3, 4]).movedim(0, -1).shape // → [3, 4, 2]
 */
export function movedim(
  x: Tensor,
  source: number | readonly number[],
  destination: number | readonly number[],
): Tensor {
  x = asTensor('movedim', x)
  const from = (typeof source === 'number' ? [source] : source).map((d) => L.wrapDim('movedim', d, x.rank))
  const to = (typeof destination === 'number' ? [destination] : destination).map((d) =>
    L.wrapDim('movedim', d, x.rank),
  )
  if (from.length !== to.length || new Set(from).size !== from.length || new Set(to).size !== to.length) {
    throw new ShapeError(
      `movedim: source ${show(from)} and destination ${show(to)} must be as many dims, each once`,
    )
  }
  if (x.rank === 0) return x
  const order = new Array<number>(x.rank).fill(-1)
  to.forEach((t, i) => {
    order[t] = from[i]
  })
  const rest = x.shape.map((_, i) => i).filter((i) => !from.includes(i))
  return permuteView(
    x,
    order.map((d) => (d === -1 ? (rest.shift() as number) : d)),
  )
}

/**
 * Repeats dims of size 1 without a copy, as a view; −1 keeps a size, and new dims come first.
 *
 * @throws ShapeError where a size other than 1 would change.
 * @example
 * zeros([3, 1]).expand([2, 3, 4]).shape // → [2, 3, 4]
 */
export function expand(x: Tensor, shape: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('expand', x)
  return expandView('expand', x, L.expandLayout('expand', x, sizesOf('expand', shape, more)).shape)
}

/**
 * Repeats dims of size 1 without a copy, as a view; as `expand`, by NumPy's name.
 *
 * @throws ShapeError where a size other than 1 would change.
 * @example
 * zeros([3, 1]).broadcastTo([3, 4]).shape // → [3, 4]
 */
export function broadcastTo(x: Tensor, shape: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('broadcast_to', x)
  return expandView(
    'broadcast_to',
    x,
    L.expandLayout('broadcast_to', x, sizesOf('broadcast_to', shape, more)).shape,
  )
}

/**
 * Repeats dims of size 1 so that x gets the shape of `other`, as a view.
 *
 * @throws ShapeError where a size other than 1 would change.
 * @example
 * zeros([1, 3]).expandAs(zeros([2, 3])).shape // → [2, 3]
 */
export const expandAs = (x: Tensor, other: Tensor): Tensor => expand(x, asTensor('expand_as', other).shape)

/**
 * Removes dims of size 1, as a view: all of them, or those that are named; a named dim of another size stays.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * zeros([1, 3, 1]).squeeze().shape // → [3]
 * zeros([1, 3, 1]).squeeze(0).shape // → [3, 1]
 */
export function squeeze(x: Tensor, dim?: number | readonly number[] | null, ...more: number[]): Tensor {
  x = asTensor('squeeze', x)
  const dims =
    dim === undefined || dim === null
      ? x.shape.map((_, i) => i)
      : sizesOf('squeeze', dim, more).map((d) => L.wrapDim('squeeze', d, x.rank))
  return reshapeView(x, L.squeezeLayout(x, dims).shape)
}

/**
 * Inserts a dim of size 1 at place `dim`, as a view; −1 appends it.
 *
 * @throws ShapeError for a place beyond the last.
 * @example
 * zeros([3]).unsqueeze(0).shape // → [1, 3]
 */
export const unsqueeze = (x: Tensor, dim: number): Tensor =>
  reshapeView(x, asTensor('unsqueeze', x).shape.toSpliced(L.wrapDim('unsqueeze', dim, x.rank + 1), 0, 1))

/** Options of `slice`. */
export interface SliceOptions {
  /** The dim that is cut. Default: 0. */
  dim?: number
  /** Takes every step-th element; a negative step counts backwards. Default: 1. */
  step?: number
}

/**
 * Takes the elements start … end − 1, by default of the first dim, as a view: what `slice` of an array does. Bounds follow
 * Python's rules: negative ones count from the end, those beyond are cut. `x.at('1:-1')` says the same in Python's words.
 *
 * @throws ShapeError for a step of 0, or a dim that x does not have.
 * @example
 * await arange(6).slice(1, -1).toArray() // → [1, 2, 3, 4]
 * await arange(6).slice(1, -1, { step: 2 }).toArray() // → [1, 3]
 */
export function slice(x: Tensor, start?: number, end?: number, options: SliceOptions = {}): Tensor {
  x = asTensor('slice', x)
  if (typeof options === 'number') throw new ValueError('slice: takes (start, end, { dim, step })')
  const { dim = 0, step = 1 } = expectOptions('slice', options, { dim: 1, step: 1 })
  const d = L.wrapDim('slice', dim, x.rank)
  if (x.rank === 0) throw new ShapeError('slice: a scalar has no dims')
  return part('slice', x, (l) => L.sliceLayout('slice', l, d, start, end, step))
}

/**
 * Takes `length` elements from `start` on along dim, as a view; a negative start counts from the end.
 *
 * @throws ShapeError if they do not lie within the dim.
 * @example
 * await arange(6).narrow(0, 2, 3).toArray() // → [2, 3, 4]
 */
export function narrow(x: Tensor, dim: number, start: number, length: number): Tensor {
  x = asTensor('narrow', x)
  const d = L.wrapDim('narrow', dim, x.rank)
  const n = x.shape[d] ?? 0
  if (!Number.isInteger(start) || !Number.isInteger(length))
    throw new ShapeError(
      `narrow: start and length must be whole numbers, got ${describe(start)} and ${describe(length)}`,
    )
  const from = start < 0 ? start + n : start
  if (x.rank === 0 || length < 0 || from < 0 || from + length > n) {
    throw new ShapeError(
      `narrow: ${length} elements from ${start} do not lie within dim ${dim} of ${show(x.shape)}`,
    )
  }
  return part('narrow', x, (l) => L.sliceLayout('narrow', l, d, from, from + length, 1))
}

/**
 * Takes the part at `index` along dim, without that dim, as a view; a negative index counts from the end.
 *
 * @throws ShapeError if the index does not lie within the dim.
 * @example
 * await tensor([[1, 2], [3, 4]]).select(0, 1).toArray() // → [3, 4]
 */
export function select(x: Tensor, dim: number, index: number): Tensor {
  x = asTensor('select', x)
  if (x.rank === 0) throw new ShapeError('select: a scalar has no dims')
  const d = L.wrapDim('select', dim, x.rank)
  return part('select', x, (l) => L.selectLayout('select', l, d, index))
}

/**
 * Reverses the order along dims, as a view with negative strides.
 *
 * @throws ShapeError for a dim that x does not have.
 * @example
 * await tensor([1, 2, 3]).flip(0).toArray() // → [3, 2, 1]
 */
export function flip(x: Tensor, dims: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('flip', x)
  const list = sizesOf('flip', dims, more)
  return x.rank === 0 || list.length === 0 ? flipView(x, []) : flipView(x, L.wrapDims('flip', list, x.rank))
}

/** Options of `diagonal`. */
export interface DiagonalOptions {
  /** The number of the diagonal: 0 is the main one, those above 0 lie above it, those below 0 below. Default: 0. */
  offset?: number
  /** The dim that counts rows. Default: 0. */
  dim1?: number
  /** The dim that counts columns. Default: 1. */
  dim2?: number
}

/**
 * Takes the diagonal of two dims, by default the first two, as a new last dim, as a view.
 *
 * @throws ShapeError unless the two dims are different ones of x.
 * @example
 * await tensor([[1, 2], [3, 4]]).diagonal().toArray() // → [1, 4]
 */
export function diagonal(x: Tensor, options: DiagonalOptions = {}): Tensor {
  x = asTensor('diagonal', x)
  const {
    offset = 0,
    dim1 = 0,
    dim2 = 1,
  } = expectOptions('diagonal', options, { offset: 1, dim1: 1, dim2: 1 })
  const [a, b] = [L.wrapDim('diagonal', dim1, x.rank), L.wrapDim('diagonal', dim2, x.rank)]
  if (a === b || x.rank < 2)
    throw new ShapeError(`diagonal: needs two different dims, got ${dim1} and ${dim2} of ${show(x.shape)}`)
  return part('diagonal', x, (l) => L.diagonalLayout(l, offset, a, b))
}

/**
 * Cuts x along dim, by default the first, into views of `size` (the last may be smaller), or of the sizes that are
 * listed.
 *
 * @throws ShapeError unless the sizes make up the dim.
 * @example
 * arange(5).split(2).map((part) => part.shape) // → [[2], [2], [1]]
 */
export function split(x: Tensor, size: number | readonly number[], dim = 0): Tensor[] {
  x = asTensor('split', x)
  const d = L.wrapDim('split', dim, x.rank)
  const n = x.shape[d] ?? 0
  let sizes: readonly number[]
  if (typeof size === 'number') {
    if (!Number.isInteger(size) || size < 0 || (size === 0 && n > 0))
      throw new ShapeError(`split: size must be a positive integer, got ${size}`)
    sizes =
      n === 0 ? [0] : Array.from({ length: Math.ceil(n / size) }, (_, i) => Math.min(size, n - i * size))
  } else {
    if (!Array.isArray(size))
      throw new ShapeError(`split: takes a size or an array of sizes, got ${describe(size)}`)
    sizes = size
    if (sizes.reduce((p, v) => p + v, 0) !== n)
      throw new ShapeError(`split: sizes ${show(sizes)} must sum to ${n}, the size of dim ${dim}`)
  }
  if (x.rank === 0) throw new ShapeError('split: a scalar has no dims')
  const regions = (whole: L.Layout): L.Layout[] => {
    let at = 0
    return sizes.map((s) => {
      at += s
      return L.sliceLayout('split', whole, d, at - s, at, 1)
    })
  }
  return piecesView('split', x, regions, (douts) => cat(douts, d))
}

/**
 * Cuts x along dim, by default the first, into at most `chunks` views of equal size; the last may be smaller.
 *
 * @throws ShapeError unless `chunks` is a positive whole number.
 * @example
 * arange(5).chunk(2).map((part) => part.shape) // → [[3], [2]]
 */
export function chunk(x: Tensor, chunks: number, dim = 0): Tensor[] {
  x = asTensor('chunk', x)
  if (!Number.isInteger(chunks) || chunks < 1)
    throw new ShapeError(`chunk: the number of chunks must be a positive integer, got ${chunks}`)
  const n = x.shape[L.wrapDim('chunk', dim, x.rank)] ?? 0
  return n === 0
    ? Array.from({ length: chunks }, () => narrow(x, dim, 0, 0))
    : split(x, Math.ceil(n / chunks), dim)
}

/**
 * Takes all parts along dim, by default the first, without that dim, as views.
 *
 * @throws ShapeError for scalars.
 * @example
 * zeros([2, 3]).unbind().map((row) => row.shape) // → [[3], [3]]
 */
export function unbind(x: Tensor, dim = 0): Tensor[] {
  x = asTensor('unbind', x)
  if (x.rank === 0) throw new ShapeError('unbind: a scalar has no dims')
  const d = L.wrapDim('unbind', dim, x.rank)
  const regions = (whole: L.Layout): L.Layout[] =>
    Array.from({ length: whole.shape[d] }, (_, i) => L.selectLayout('unbind', whole, d, i))
  return piecesView('unbind', x, regions, (douts) => stack(douts, d))
}

function listOf(op: string, list: readonly (Tensor | ArrayOperand)[]): readonly Tensor[] {
  if (!Array.isArray(list))
    throw new ValueError(`${op}: takes an array of tensors, as ${op}([a, b]), got ${describe(list)}`)
  return tensorsOf(op, list)
}

/**
 * Joins tensors along an existing dim, by default the first; their other sizes agree and their dtypes promote.
 * One-dimensional empty tensors are skipped, as in PyTorch.
 *
 * @throws ShapeError if other sizes differ or for scalars, ValueError for no tensors.
 * @example
 * cat([zeros([2, 3]), ones([1, 3])]).shape // → [3, 3]
 */
export function cat(list: readonly (Tensor | ArrayOperand)[], dim = 0): Tensor {
  const tensors = listOf('cat', list)
  if (tensors.length === 0) throw new ValueError('cat: needs at least one tensor')
  const parts = tensors.some((t) => t.rank !== 1 || t.numel > 0)
    ? tensors.filter((t) => t.rank !== 1 || t.numel > 0)
    : tensors.slice(0, 1)
  const [first] = parts
  if (first.rank === 0) throw new ShapeError('cat: scalars cannot be joined; use stack')
  const d = L.wrapDim('cat', dim, first.rank)
  for (const t of parts) {
    if (t.rank !== first.rank || t.shape.some((n, i) => i !== d && n !== first.shape[i])) {
      throw new ShapeError(`cat: ${show(first.shape)} and ${show(t.shape)} must agree in every dim but ${d}`)
    }
  }
  return apply(CAT, parts, { dim: d })[0]
}

const joined = (parts: readonly Tensor[], dim: number): TensorSpec => ({
  shape: parts[0].shape.with(
    dim,
    parts.reduce((n, t) => n + t.shape[dim], 0),
  ),
  dtype: parts.map((t) => t.dtype).reduce(promote),
})

declare module '../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Joins tensors along a dim. */
    readonly cat?: KernelOf<DimAttrs>
  }
}

const CAT: Op<DimAttrs> = {
  name: 'cat',
  kernel: (kernels) => kernels.cat,
  infer: (parts, { dim }) => [joined(parts, dim)],
  compose: (parts, { dim }) => {
    const { shape, dtype } = joined(parts, dim)
    const out = allocate(parts[0].backend, shape, dtype)
    let at = 0
    for (const t of parts) {
      const place = out.viewAs(L.sliceLayout('cat', out, dim, at, at + t.shape[dim], 1))
      if (t.numel > 0) copyInto(place, t)
      place.dispose()
      at += t.shape[dim]
    }
    return [out]
  },
  backward: (node, [g]) => {
    const { dim } = node.attrs
    let at = 0
    return node.inputs.map(({ shape }, i) => {
      at += shape[dim]
      return g && node.needs(i) ? narrow(g, dim, at - shape[dim], shape[dim]) : null
    })
  },
}

/**
 * Joins tensors of one shape along a new dim, by default the first.
 *
 * @throws ShapeError if the shapes differ, ValueError for no tensors.
 * @example
 * stack([zeros([3]), ones([3])]).shape // → [2, 3]
 */
export function stack(list: readonly (Tensor | ArrayOperand)[], dim = 0): Tensor {
  const tensors = listOf('stack', list)
  if (tensors.length === 0) throw new ValueError('stack: needs at least one tensor')
  for (const t of tensors)
    if (!L.sameShape(t.shape, tensors[0].shape))
      throw new ShapeError(`stack: shapes ${show(tensors[0].shape)} and ${show(t.shape)} differ`)
  const d = L.wrapDim('stack', dim, tensors[0].rank + 1)
  return cat(
    tensors.map((t) => unsqueeze(t, d)),
    d,
  )
}

/**
 * Repeats x `repeats[i]` times along dim i, as a copy; new dims come first.
 *
 * @throws ShapeError if there are fewer numbers than dims.
 * @example
 * await tensor([1, 2]).repeat([2, 2]).toArray() // → [[1, 2, 1, 2], [1, 2, 1, 2]]
 */
export function repeat(x: Tensor, repeats: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('repeat', x)
  const times = sizesOf('repeat', repeats, more)
  if (times.length < x.rank)
    throw new ShapeError(`repeat: ${show(times)} names fewer dims than ${show(x.shape)} has`)
  L.checkShape('repeat', times)
  const lead = times.length - x.rank
  const padded = [...new Array<number>(lead).fill(1), ...x.shape]
  const spread = reshapeView(
    x,
    padded.flatMap((n) => [1, n]),
  )
  const grown = expandView(
    'repeat',
    spread,
    padded.flatMap((n, i) => [times[i], n]),
  )
  return reshapeView(
    dense(grown),
    padded.map((n, i) => n * times[i]),
  )
}

/**
 * Repeats x `dims[i]` times along dim i, as a copy; numbers that are missing in front are 1.
 *
 * @throws ShapeError for numbers that are not whole or negative.
 * @example
 * await tensor([[1], [2]]).tile([2]).toArray() // → [[1, 1], [2, 2]]
 */
export function tile(x: Tensor, dims: number | readonly number[], ...more: number[]): Tensor {
  x = asTensor('tile', x)
  const times = sizesOf('tile', dims, more)
  return repeat(x, [...new Array<number>(Math.max(0, x.rank - times.length)).fill(1), ...times])
}

/**
 * Moves the elements by `shifts` places along dims, around the end; without dims the flattened tensor is rolled.
 *
 * @throws ValueError unless there are as many shifts as dims.
 * @example
 * await tensor([1, 2, 3]).roll(1).toArray() // → [3, 1, 2]
 */
export function roll(
  x: Tensor,
  shifts: number | readonly number[],
  dims?: number | readonly number[],
): Tensor {
  x = asTensor('roll', x)
  const by = typeof shifts === 'number' ? [shifts] : shifts
  const along = dims === undefined ? [] : typeof dims === 'number' ? [dims] : dims
  if (along.length === 0) {
    if (by.length !== 1) throw new ValueError('roll: without dims there is one shift')
    return reshapeView(roll(reshapeView(x, [x.numel]), by, 0), x.shape)
  }
  if (along.length !== by.length) throw new ValueError(`roll: ${by.length} shifts for ${along.length} dims`)
  let out = x
  along.forEach((dim, i) => {
    if (x.rank === 0) return
    const d = L.wrapDim('roll', dim, x.rank)
    const n = x.shape[d]
    const s = n === 0 ? 0 : ((by[i] % n) + n) % n
    if (s !== 0) out = cat([narrow(out, d, n - s, s), narrow(out, d, 0, n - s)], d)
  })
  return out === x ? copy(x) : out
}

const TRIL = program('tril', 1, ([x], [k]) => e.select(e.le(e.sub(e.coord(-1), e.coord(-2)), k), x, 0), 1)
const TRIU = program('triu', 1, ([x], [k]) => e.select(e.ge(e.sub(e.coord(-1), e.coord(-2)), k), x, 0), 1)

const triangle = (op: string, x: Tensor): void => {
  asTensor(op, x)
  if (x.rank < 2) throw new ShapeError(`${op}: takes matrices, got ${show(x.shape)}`)
}

/**
 * Keeps the part of matrices (the last two dims) on and below a diagonal, zeros elsewhere; 0 is the main diagonal,
 * above 0 those above it.
 *
 * @throws ShapeError for less than two dims.
 * @example
 * await ones([2, 2]).tril().toArray() // → [[1, 0], [1, 1]]
 */
export function tril(x: Tensor, diagonal = 0): Tensor {
  triangle('tril', x)
  return elementwise(TRIL, [x], [diagonal], x.dtype)
}

/**
 * Keeps the part of matrices (the last two dims) on and above a diagonal, zeros elsewhere; 0 is the main diagonal,
 * above 0 those above it.
 *
 * @throws ShapeError for less than two dims.
 * @example
 * await ones([2, 2]).triu(1).toArray() // → [[0, 1], [0, 0]]
 */
export function triu(x: Tensor, diagonal = 0): Tensor {
  triangle('triu', x)
  return elementwise(TRIU, [x], [diagonal], x.dtype)
}

/**
 * What new elements hold: a number, the elements mirrored at the edge, the edge itself, or the elements from the
 * other end.
 */
export type PadMode = 'constant' | 'reflect' | 'replicate' | 'circular'

/** Options of `pad`. */
export interface PadOptions {
  /**
   * What the new elements hold: `value`, or what is there, repeated in one of three ways. Default: 'constant'.
   */
  mode?: PadMode
  /** The number that mode 'constant' fills with. Default: 0. */
  value?: number
}

/**
 * Adds elements around the last dims: [left, right] of the last, then of the one before, and so on; negative
 * numbers crop.
 *
 * @throws ShapeError if the padding is not in pairs, or more than the dim allows; ValueError for an unknown mode.
 * @example
 * await tensor([1, 2]).pad([1, 2]).toArray() // → [0, 1, 2, 0, 0]
 * await tensor([1, 2, 3]).pad([1, 1], { mode: 'reflect' }).toArray() // → [2, 1, 2, 3, 2]
 */
export function pad(x: Tensor, padding: readonly number[], options: PadOptions = {}): Tensor {
  x = asTensor('pad', x)
  const { mode = 'constant', value = 0 } = expectOptions('pad', options, { mode: 1, value: 1 })
  if (!Array.isArray(padding))
    throw new ShapeError(`pad: takes an array, as pad([1, 1]) for the last dim, got ${describe(padding)}`)
  if (padding.length % 2 !== 0 || padding.length / 2 > x.rank || !padding.every(Number.isInteger)) {
    throw new ShapeError(
      `pad: padding ${show(padding)} must be pairs of integers, at most one pair per dim of ${show(x.shape)}`,
    )
  }
  if (mode === 'constant') checkFits('pad', value, x.dtype)
  let out = x
  for (let i = 0; i < padding.length / 2; i++) {
    const d = x.rank - 1 - i
    const n = out.shape[d]
    let [left, right] = [padding[2 * i], padding[2 * i + 1]]
    // Cropping may pass the last element; what is then repeated is that element.
    if (mode === 'replicate' && n > 0) {
      if (left <= -n) [left, right] = [1 - n, right + left + n - 1]
      else if (right <= -n) [left, right] = [left + right + n - 1, 1 - n]
    }
    if (n + left + right < 0)
      throw new ShapeError(`pad: ${show(padding)} crops more than dim ${d} of ${show(x.shape)} has`)
    const cropped =
      left < 0 || right < 0
        ? narrow(out, d, Math.max(0, -left), Math.max(0, n + Math.min(0, left) + Math.min(0, right)))
        : out
    out =
      mode === 'constant'
        ? padZeros(cropped, d, Math.max(0, left), Math.max(0, right))
        : padBy(mode, cropped, d, Math.max(0, left), Math.max(0, right))
  }
  if (mode === 'constant' && value !== 0 && out !== x) return outside(out, x, padding, value)
  return out === x ? copy(x) : out
}

function padZeros(x: Tensor, d: number, left: number, right: number): Tensor {
  if (left === 0 && right === 0) return x
  return embed(x, x.shape.with(d, x.shape[d] + left + right), (l) =>
    L.sliceLayout('pad', l, d, left, left + x.shape[d], 1),
  )
}

const outsides = new Map<string, Program>()

/** `value` wherever padding put a zero: decided by coordinates, so that x's own zeros stay. */
function outside(padded: Tensor, x: Tensor, padding: readonly number[], value: number): Tensor {
  const bounds = Array.from({ length: padding.length / 2 }, (_, i): [number, number] => {
    const right = Math.max(0, padding[2 * i + 1])
    return [Math.max(0, padding[2 * i]), padded.shape[x.rank - 1 - i] - right]
  })
  const key = bounds.join(';')
  let p = outsides.get(key)
  if (!p) {
    const inside = bounds
      .map(([from, to], i) => e.and(e.ge(e.coord(-1 - i), from), e.lt(e.coord(-1 - i), to)))
      .reduce(e.and)
    p = program('pad', 1, ([v], [fill]) => e.select(inside, v, fill), 1)
    outsides.set(key, p)
  }
  return elementwise(p, [padded], [value], x.dtype)
}

function padBy(mode: PadMode, x: Tensor, d: number, left: number, right: number): Tensor {
  const n = x.shape[d]
  if (
    (mode === 'reflect' && (left >= n || right >= n)) ||
    (mode === 'circular' && (left > n || right > n)) ||
    n === 0
  ) {
    throw new ShapeError(
      `pad: ${mode} padding of ${left} and ${right} does not fit dim ${d} of ${show(x.shape)}`,
    )
  }
  const reversed = (from: number, size: number): Tensor => flipView(narrow(x, d, from, size), [d])
  const edge = (at: number, size: number): Tensor =>
    expandView('pad', narrow(x, d, at, 1), x.shape.with(d, size))
  const sides: Record<Exclude<PadMode, 'constant'>, () => [Tensor, Tensor]> = {
    reflect: () => [reversed(1, left), reversed(n - 1 - right, right)],
    replicate: () => [edge(0, left), edge(n - 1, right)],
    circular: () => [narrow(x, d, n - left, left), narrow(x, d, 0, right)],
  }
  if (mode === 'constant' || !Object.hasOwn(sides, mode))
    throw new ValueError(`pad: mode '${mode}' is not one of constant, reflect, replicate, circular`)
  const [before, after] = sides[mode]()
  return cat([...(left > 0 ? [before] : []), x, ...(right > 0 ? [after] : [])], d)
}

/**
 * Gives x itself if its elements are dense and in row-major order, else a copy that is.
 *
 * @example
 * zeros([2, 3]).T.contiguous().isContiguous // → true
 */
export const contiguous = (x: Tensor): Tensor => dense(asTensor('contiguous', x))

/**
 * Copies x, elements and all; gradients flow through the copy.
 *
 * @example
 * await tensor([1, 2]).clone().toArray() // → [1, 2]
 */
export const clone = (x: Tensor): Tensor => copy(x)

/**
 * Says whether the tensor holds floats.
 *
 * @example
 * arange(3).isFloatingPoint() // → false
 */
export const isFloatingPoint = (x: Tensor): boolean => isFloat(asTensor('is_floating_point', x).dtype)
