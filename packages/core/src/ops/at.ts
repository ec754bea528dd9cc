import { addMethods } from '../add-methods.ts'
import { noGrad } from '../autograd/tape.ts'
import { describe, expectOptions } from '../checks.ts'
import { DTypeError, ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { type Program, program } from '../expr/program.ts'
import { addInto, copy, copyInto, elementwise, fill } from '../primitives/elementwise.ts'
import { gatherPrimitive, scatterAddPrimitive } from '../primitives/indexing.ts'
import { sortPrimitive } from '../primitives/sort.ts'
import { expandView, part, permuteView, reshapeView } from '../primitives/views.ts'
import * as L from '../tensor/layout.ts'
import { scope } from '../tensor/memory.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import { arange } from './create.ts'
import { embedding } from './indexing.ts'
import { ne, where } from './pointwise.ts'
import { cat, narrow } from './shape.ts'

/**
 * One place of an index, as `x.at(…)` takes them:
 *
 * - a number takes that element, and the dim away; negative ones count from the end;
 * - a text such as `'1:-1'`, `':'` or `'::-1'` is a slice by Python's rules, and so is an array `[from, to]` or
 *   `[from, to, step]`, in which null stands for an open end;
 * - `null` puts in a new dim of size 1, `'...'` stands for all dims that are not mentioned;
 * - an int32 tensor, or an Int32Array, takes many elements by their numbers (advanced indexing, by PyTorch's rules);
 * - a bool tensor is a mask over as many dims as it has: `set` takes it, and `at` says what to do instead.
 */
export type Index = number | string | null | readonly (number | null)[] | Int32Array | Tensor

interface Basic {
  readonly view: Tensor
  /** The dims of the view that are indexed by tensors. */
  readonly by: readonly { readonly dim: number; readonly index: Tensor }[]
}

const number = (op: string, text: string, part: string): number | null => {
  const value = part.trim() === '' ? null : Number(part)
  if (value === null || Number.isInteger(value)) return value
  throw new ValueError(
    `${op}: '${text}' is no slice; expected whole numbers, as in '1:-1' or '::2', or '...' for all dims that are not mentioned`,
  )
}

/** Start, end and step of a slice; null for what is no slice. */
function sliceOf(op: string, index: Index): readonly (number | null)[] | null {
  if (typeof index === 'string') {
    const parts = index.split(':')
    if (parts.length < 2 || parts.length > 3) number(op, index, 'none')
    return parts.map((part) => number(op, index, part))
  }
  if (!Array.isArray(index)) return null
  const fits = index.every((v) => v === null || Number.isInteger(v))
  if (index.length < 2 || index.length > 3 || !fits)
    throw new ValueError(
      `${op}: an array is a slice, [from, to] or [from, to, step], got ${describe(index)}; many elements are taken by an int32 tensor or an Int32Array`,
    )
  return index
}

const isMask = (index: unknown): index is Tensor => index instanceof Tensor && index.dtype === 'bool'

/** How many dims of x an index uses up. */
const uses = (index: Index): number =>
  index === null || index === '...' ? 0 : isMask(index) ? index.rank : 1

/** Everything but tensors, as a view. */
function basic(op: string, x: Tensor, indices: readonly Index[]): Basic {
  const used = indices.reduce((n: number, index) => n + uses(index), 0)
  const rests = indices.filter((index) => index === '...').length
  if (used > x.rank || rests > 1)
    throw new ShapeError(
      rests > 1
        ? `${op}: '...' may occur once`
        : `${op}: ${used} indices for ${x.rank} dims of ${show(x.shape)}; null puts in a dim, '...' stands for those that are not mentioned`,
    )
  const by: { dim: number; index: Tensor }[] = []
  const steps: ((layout: L.Layout) => L.Layout)[] = []
  let dim = 0
  for (const index of indices) {
    const d = dim
    if (index === '...') dim += x.rank - used
    else if (typeof index === 'number') steps.push((l) => L.selectLayout(op, l, d, index))
    else {
      dim++
      if (index === null) steps.push((l) => L.unsqueezeLayout(l, d))
      else if (index instanceof Tensor || index instanceof Int32Array) {
        const at = asTensor(op, index as Tensor | ArrayOperand, x, 'int32')
        if (at.dtype !== 'int32')
          throw new DTypeError(
            `${op}: a tensor that indexes must be int32, or bool as a mask, not ${at.dtype}; convert with .to('int32')`,
          )
        by.push({ dim: d, index: at })
      } else {
        const range = sliceOf(op, index)
        if (range === null)
          throw new ValueError(
            `${op}: cannot index by ${describe(index)}; expected numbers, slices as '1:-1' or [1, -1], null, '...' and int32 tensors`,
          )
        const [start, end, step] = range.map((v) => v ?? undefined)
        steps.push((l) => L.sliceLayout(op, l, d, start, end, step ?? 1))
      }
    }
  }
  // One view, whatever the number of indices: its gradient is put among zeros once.
  return { view: part(op, x, (layout) => steps.reduce((l, step) => step(l), layout)), by }
}

const LINEAR = new Map<number, Program>()

/**
 * Positions among all elements of some dims, of positions in each of them, by the sizes; −1, which is nowhere, where one of
 * them lies outside.
 */
function linear(count: number): Program {
  let known = LINEAR.get(count)
  if (!known) {
    known = program(
      'at.positions',
      count,
      (at: readonly e.Expr[], sizes: readonly e.Expr[]) => {
        let [sum, inside]: [e.Expr | null, e.Expr | null] = [null, null]
        for (const [i, index] of at.entries()) {
          const size = sizes[i] as e.Expr
          const from = e.select(e.lt(index, 0), e.add(index, size), index)
          const within = e.and(e.ge(from, 0), e.lt(from, size))
          sum = sum ? e.add(e.mul(sum, size), from) : from
          inside = inside ? e.and(inside, within) : within
        }
        return e.select(inside as e.Expr, sum as e.Expr, -1)
      },
      count,
    ) as Program
    LINEAR.set(count, known)
  }
  return known
}

const WRAP = program('at.position', 1, ([at], [size]) => e.select(e.lt(at, 0), e.add(at, size), at), 1)

/** Elements of a view at the places that tensors tell. */
function advanced(op: string, { view, by }: Basic): Tensor {
  const dims = by.map(({ dim }) => dim)
  const sizes = dims.map((d) => view.shape[d])
  const indices = by.map(({ index }) => index)
  const shape = L.broadcastShapes(
    op,
    indices.map((t) => t.shape),
  )
  const first = dims[0]
  if (indices.length === 1 && shape.length === 1 && first > 0) {
    const at = elementwise(WRAP, indices, sizes)
    const spread = reshapeView(
      at,
      view.shape.map((_, d) => (d === first ? at.numel : 1)),
    )
    return gatherPrimitive(op, view, first, expandView(op, spread, view.shape.with(first, at.numel)))
  }
  const rest = view.shape.map((_, d) => d).filter((d) => !dims.includes(d))
  const others = rest.map((d) => view.shape[d])
  const rows = reshapeView(permuteView(view, [...dims, ...rest]), [L.numel(sizes), L.numel(others)])
  const at =
    indices.length === 1
      ? elementwise(WRAP, indices, sizes)
      : elementwise(linear(indices.length), indices, sizes)
  const found = reshapeView(embedding(reshapeView(at, [L.numel(shape)]), rows), [...shape, ...others])
  // Next to each other they are replaced where they were, else they come first.
  const together = dims.every((d, i) => d === first + i)
  if (!together || first === 0) return found
  const lead = shape.map((_, i) => i)
  const before = others.slice(0, first).map((_, i) => shape.length + i)
  const after = others.slice(first).map((_, i) => shape.length + first + i)
  return permuteView(found, [...before, ...lead, ...after])
}

/**
 * Takes elements by their places, as `x[…]` does in Python: numbers, slices, null for a new dim, `'...'`, int32 tensors; see
 * `Index`. Dims that are not mentioned stay. Without tensors the result is a view, which shares memory with x; with them it is
 * a copy. Gradients flow back to x.
 *
 * @throws ShapeError for too many indices or a number beyond its dim, ValueError for what is no index, for an index beyond
 * its dim where the engine can look, and for a mask of bools, whose count only the device knows: use `await
 * x.maskedSelect(mask)`. DTypeError for a tensor that is not int32.
 * @example
 * const x = arange(12).reshape(3, 4)
 * await x.at(1).toArray() // → [4, 5, 6, 7]
 * await x.at(':', -1).toArray() // → [3, 7, 11]
 * await x.at('1:', '::2').toArray() // → [[4, 6], [8, 10]]
 * x.at(null, '...', 0).shape // → [1, 3]
 * await x.at(tensor([2, 0], { dtype: 'int32' }), [1, 3]).toArray() // → [[9, 10], [1, 2]]
 */
export function at(x: Tensor, ...indices: Index[]): Tensor {
  x = asTensor('at', x)
  if (indices.some(isMask))
    throw new ValueError(
      'at: how many elements a mask takes only the device knows, and no operator waits for it; use await x.maskedSelect(mask), x.at(...await mask.nonzero()) or where(mask, x, 0)',
    )
  const parts = basic('at', x, indices)
  if (parts.by.length === 0) return parts.view
  const inputs = [parts.view, ...parts.by.map(({ index }) => index)]
  return composed(
    'at',
    inputs,
    ([view, ...at]) => [advanced('at', { view, by: parts.by.map(({ dim }, i) => ({ dim, index: at[i] })) })],
    true,
  )[0]
}

/** Options of `set` and `indexPut`. */
export interface SetOptions {
  /** Add the values to what is there, each time that a place occurs. Default: false. */
  accumulate?: boolean
}

const PUTTING = { accumulate: 1 } as const

/** x with values at positions among its elements: added, or in their place, the last one where a position occurs again. */
export function putFlat(op: string, x: Tensor, at: Tensor, values: Tensor, accumulate: boolean): Tensor {
  const n = x.numel
  const flat = (t: Tensor): Tensor => reshapeView(t, [t.numel])
  const [from, where_, put] = [flat(x), flat(at), flat(values)]
  const scattered = (into: Tensor, places: Tensor, what: Tensor): Tensor =>
    scatterAddPrimitive(op, into, 0, places, what)
  if (accumulate) return copy(reshapeView(scattered(from, where_, copy(put, x.dtype)), x.shape), x.dtype)
  const count = where_.numel
  if (count === 0) return copy(x)
  // Sorted, the last of each run of equal positions is the one that stays.
  const [places, order] = sortPrimitive(where_, 0, false)
  const next = cat([narrow(places, 0, 1, count - 1), fill(x.backend, [1], -1, 'int32')])
  const last = ne(places, next)
  const ones = copy(last, 'int32')
  const chosen = where(last, gatherPrimitive(op, put, 0, order), 0)
  const written = scattered(fill(x.backend, [n], 0, 'int32'), places, ones)
  const wide = x.dtype === 'bool' ? 'int32' : x.dtype
  const fresh = scattered(fill(x.backend, [n], 0, wide), places, copy(chosen, wide))
  return reshapeView(copy(where(copy(written, 'bool'), copy(fresh, x.dtype), from), x.dtype), x.shape)
}

/** A value as a tensor of x's dtype, which must be able to hold it. */
function valuesOf(op: string, x: Tensor, value: Tensor | ArrayOperand | number): Tensor {
  const v = typeof value === 'number' ? fill(x.backend, [], value, x.dtype) : asTensor(op, value, x)
  return copy(v, x.dtype)
}

/** x with `value` at some of its places, as a new tensor. */
function put(op: string, x: Tensor, indices: readonly Index[], v: Tensor, accumulate: boolean): Tensor {
  if (indices.some(isMask)) {
    const [mask, ...others] = indices
    if (!isMask(mask) || others.length > 0)
      throw new ValueError(`${op}: a mask of bools stands alone, got ${indices.length} indices`)
    const fits = mask.shape.every((n, d) => n === x.shape[d])
    if (!fits || mask.rank > x.rank)
      throw new ShapeError(
        `${op}: a mask ${show(mask.shape)} does not cover the first dims of ${show(x.shape)}`,
      )
    const spread = reshapeView(
      mask,
      x.shape.map((n, d) => (d < mask.rank ? n : 1)),
    )
    if (v.rank > x.rank - mask.rank && v.numel > 1)
      throw new ShapeError(
        `${op}: values ${show(v.shape)} for a mask must be one for all, of shape ${show(x.shape.slice(mask.rank))} or less; x.maskedScatter(mask, values) takes one for each`,
      )
    const filled = v.numel === 1 ? reshapeView(v, []) : v
    if (accumulate) return elementwise(ADD_WHERE, [x, spread, filled], [], x.dtype)
    return elementwise(PUT_WHERE, [x, spread, filled], [], x.dtype)
  }
  const positions = reshapeView(arange(0, x.numel, 1, { device: x.backend }), x.shape)
  const parts = basic(op, positions, indices)
  const places = parts.by.length === 0 ? parts.view : advanced(op, parts)
  return putFlat(op, x, places, expandView(op, v, places.shape), accumulate)
}

const PUT_WHERE = program('index_put', 3, ([x, mask, v]) => e.select(mask, v, x))
const ADD_WHERE = program('index_put', 3, ([x, mask, v]) => e.add(x, e.select(mask, v, 0)))

/**
 * Makes a copy of x with `value`, which broadcasts, at the places that the indices tell: those of `at`, and masks of bools
 * over the first dims. Where a place occurs again the last value stays, or with `accumulate` all are added. Gradients flow to
 * what is left of x, and to the values. For a change in place see `set`.
 *
 * @throws ShapeError where value does not broadcast to the places, ValueError for what is no index.
 * @example
 * const x = zeros([2, 3])
 * await x.indexPut([':', 1], 7).toArray() // → [[0, 7, 0], [0, 7, 0]]
 * await x.indexPut([0, new Int32Array([2, 2])], 1, { accumulate: true }).toArray() // → [[0, 0, 2], [0, 0, 0]]
 */
export function indexPut(
  x: Tensor,
  indices: readonly Index[],
  value: Tensor | ArrayOperand | number,
  options: SetOptions = {},
): Tensor {
  const { accumulate = false } = expectOptions('index_put', options, PUTTING)
  return putCopy('index_put', x, indices, value, accumulate)
}

const putCopy = (
  op: string,
  x: Tensor,
  indices: readonly Index[],
  value: Tensor | ArrayOperand | number,
  accumulate: boolean,
): Tensor =>
  composed(
    op,
    [x, valuesOf(op, asTensor(op, x), value)],
    ([t, v]) => [put(op, t, indices, v, accumulate)],
    true,
  )[0]

/**
 * Puts `value`, a number or a tensor that broadcasts, at some places of x, in place, for use outside the tape: `x.set([0,
 * '1:'], 5)` is Python's `x[0, 1:] = 5`. The indices, in an array, are those of `at`, and masks of bools over the first dims.
 * Where a place occurs again the last value stays, or with `accumulate` all are added. `indexPut` does it on a copy, with
 * gradients.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`; ShapeError where value does not broadcast to the places,
 * ValueError for what is no index, DTypeError if x's dtype cannot hold the value.
 * @example
 * const x = zeros([2, 3])
 * await x.set([0, '1:'], 5).toArray() // → [[0, 5, 5], [0, 0, 0]]
 * await x.set([x.eq(0)], -1).toArray() // → [[-1, 5, 5], [-1, -1, -1]]
 */
export function set(
  x: Tensor,
  indices: readonly Index[],
  value: Tensor | ArrayOperand | number,
  options: SetOptions = {},
): Tensor {
  const { accumulate = false } = expectOptions('set', options, PUTTING)
  if (!Array.isArray(indices))
    throw new ValueError(
      `set: takes the indices in an array, as x.set([0, '1:'], 5), got ${describe(indices)}`,
    )
  scope(() => {
    if (indices.some((index) => index instanceof Tensor || index instanceof Int32Array))
      copyInto(
        x,
        noGrad(() => putCopy('set', x, indices, value, accumulate)),
      )
    else {
      const { view } = basic('set', asTensor('set', x), indices)
      const v = valuesOf('set', x, value)
      if (accumulate) addInto(view, expandView('set', v, view.shape))
      else copyInto(view, v)
    }
  })
  return x
}

/** The method, with the names of its parameters. */
export interface AtMethod {
  /**
   * Takes elements by their places, as `x[…]` does in Python: numbers, slices, null for a new dim, `'...'`, int32 tensors; see
   * `Index`. Dims that are not mentioned stay. Without tensors the result is a view, which shares memory with x; with them it is
   * a copy. Gradients flow back to x.
   *
   * @throws ShapeError for too many indices or a number beyond its dim, ValueError for what is no index, for an index beyond
   * its dim where the engine can look, and for a mask of bools, whose count only the device knows: use `await
   * x.maskedSelect(mask)`. DTypeError for a tensor that is not int32.
   * @example
   * const x = arange(12).reshape(3, 4)
   * await x.at(1).toArray() // → [4, 5, 6, 7]
   * await x.at(':', -1).toArray() // → [3, 7, 11]
   * await x.at('1:', '::2').toArray() // → [[4, 6], [8, 10]]
   * x.at(null, '...', 0).shape // → [1, 3]
   * await x.at(tensor([2, 0], { dtype: 'int32' }), [1, 3]).toArray() // → [[9, 10], [1, 2]]
   */
  at(...indices: Index[]): Tensor
}

addMethods({ at, indexPut, set })
