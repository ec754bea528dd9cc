import { describe } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'

/**
 * The places of a view's elements in its storage. Strides and offset count elements, never bytes; strides may be 0 or
 * negative.
 */
export interface Layout {
  /** The size of each dim. */
  readonly shape: readonly number[]
  /** How many elements lie between two neighbours along each dim. */
  readonly strides: readonly number[]
  /** The place of the first element in the storage, in elements. */
  readonly offset: number
}

/** Counts the elements of a shape. */
export function numel(shape: readonly number[]): number {
  let n = 1
  for (let i = 0; i < shape.length; i++) n *= shape[i]
  return n
}

/** Kernels count elements and indices in int32. Only views that repeat elements can have a larger size. */
export const largestSize = 2 ** 31 - 1

/** Row-major strides; those of empty and size-1 dims are as if the dim had at least one element, as in PyTorch. */
export function contiguousStrides(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length)
  let step = 1
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = step
    step *= Math.max(1, shape[i])
  }
  return strides
}

/** The strides of dense elements whose dims lie in memory in `order`, from the outermost to the innermost. */
export function orderedStrides(shape: readonly number[], order: readonly number[]): number[] {
  const strides = new Array<number>(shape.length)
  let step = 1
  for (let i = order.length - 1; i >= 0; i--) {
    strides[order[i]] = step
    step *= Math.max(1, shape[order[i]])
  }
  return strides
}

/** Makes the layout of a shape whose elements are dense and in row-major order. */
export const contiguous = (shape: readonly number[], offset = 0): Layout => ({
  shape,
  strides: contiguousStrides(shape),
  offset,
})

/** Whether elements are dense and row-major. Strides of size-1 dims do not matter, nor any where there are no elements. */
export function isContiguous(layout: Layout): boolean {
  const { shape, strides } = layout
  let step = 1
  for (let i = shape.length - 1; i >= 0; i--) {
    const n = shape[i]
    if (n !== 1) {
      if (strides[i] !== step) return numel(shape) === 0
      step *= n
    }
  }
  return true
}

/** Says whether two shapes are the same. */
export const sameShape = (a: readonly number[], b: readonly number[]): boolean => {
  if (a === b) return true
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

/** Says whether two layouts are the very same view. */
export const sameLayout = (a: Layout, b: Layout): boolean =>
  a.offset === b.offset && sameShape(a.shape, b.shape) && sameShape(a.strides, b.strides)

/** Whether two views of one storage may share elements, judged by where they begin and end. */
export function mayOverlap(a: Layout, b: Layout): boolean {
  const [x, y] = [extent(a), extent(b)]
  return x[0] < y[1] && y[0] < x[1]
}

/** The place of a view's first element in its storage, and the place behind its last one. */
function extent({ shape, strides, offset }: Layout): [start: number, end: number] {
  let [start, end] = [offset, offset + 1]
  for (let i = 0; i < shape.length; i++) {
    if (shape[i] === 0) return [0, 0]
    const reach = (shape[i] - 1) * strides[i]
    if (reach > 0) end += reach
    else start += reach
  }
  return [start, end]
}

/** Turns a dim in −rank … rank−1 into one in 0 … rank−1. Scalars accept 0 and −1, as in PyTorch. */
export function wrapDim(op: string, dim: number, rank: number): number {
  const n = Math.max(rank, 1)
  if (!Number.isInteger(dim) || dim < -n || dim >= n) {
    if (!Number.isInteger(dim))
      throw new ShapeError(`${op}: dim must be a whole number, got ${describe(dim)}`)
    throw new ShapeError(
      `${op}: dim ${dim} is out of range for a tensor of rank ${rank}; expected ${-n} … ${n - 1}`,
    )
  }
  return dim < 0 ? dim + n : dim
}

/** Turns one dim, several, or (undefined, null or []) all into a sorted list of non-negative dims. Repeats are refused. */
export function wrapDims(
  op: string,
  dims: number | readonly number[] | null | undefined,
  rank: number,
): number[] {
  if (dims === undefined || dims === null) return Array.from({ length: rank }, (_, i) => i)
  const list = typeof dims === 'number' ? [dims] : dims
  if (!Array.isArray(list))
    throw new ShapeError(
      `${op}: takes a dim, an array of dims, or null for all, and options after that; got ${describe(dims)}`,
    )
  if (list.length === 0) return Array.from({ length: rank }, (_, i) => i)
  const out = list.map((d) => wrapDim(op, d, rank)).sort((a, b) => a - b)
  for (let i = 1; i < out.length; i++)
    if (out[i] === out[i - 1]) throw new ShapeError(`${op}: dim ${out[i]} appears twice in ${show(list)}`)
  return rank === 0 ? [] : out
}

/** Makes sure that sizes are whole numbers from 0 on. Throws ShapeError. */
export function checkShape(op: string, shape: readonly number[]): void {
  for (const n of shape)
    if (!Number.isInteger(n) || n < 0)
      throw new ShapeError(
        `${op}: ${show(shape)} is no shape; sizes are integers ≥ 0${typeof n === 'number' ? '' : `, not ${describe(n)}`}`,
      )
}

/** The shape NumPy's rules broadcast the given shapes to. */
export function broadcastShapes(op: string, shapes: readonly (readonly number[])[]): readonly number[] {
  if (shapes.length === 1) return shapes[0]
  if (shapes.length === 2 && sameShape(shapes[0], shapes[1])) return shapes[0]
  let rank = 0
  for (const s of shapes) rank = Math.max(rank, s.length)
  const out = new Array<number>(rank).fill(1)
  for (const s of shapes) {
    for (let i = 0; i < s.length; i++) {
      const o = rank - s.length + i
      if (s[i] === 1 || s[i] === out[o]) continue
      if (out[o] !== 1) {
        throw new ShapeError(
          `${op}: shapes ${shapes.map(show).join(' and ')} do not broadcast: sizes ${out[o]} and ${s[i]} differ in dim ${o - rank}; expected equal sizes or 1`,
        )
      }
      out[o] = s[i]
    }
  }
  return out
}

/** Strides that read `layout` as if it had the (broadcast) shape: 0 where it is repeated. The shapes must be compatible. */
export function broadcastStrides(layout: Layout, shape: readonly number[]): number[] {
  const lead = shape.length - layout.shape.length
  return shape.map((n, i) =>
    i < lead || (layout.shape[i - lead] === 1 && n !== 1) ? 0 : layout.strides[i - lead],
  )
}

/** Fills in one −1 and checks that the element counts agree. */
export function resolveShape(op: string, from: readonly number[], to: readonly number[]): number[] {
  const total = numel(from)
  const hole = to.indexOf(-1)
  if (hole !== to.lastIndexOf(-1)) throw new ShapeError(`${op}: only one size may be −1, got ${show(to)}`)
  const out = [...to]
  if (hole >= 0) {
    const rest = to.reduce((p, n, i) => (i === hole ? p : p * n), 1)
    if (rest === 0 || total % rest !== 0)
      throw new ShapeError(`${op}: cannot infer −1 in ${show(to)} from ${show(from)} (${total} elements)`)
    out[hole] = total / rest
  }
  checkShape(op, out)
  if (numel(out) !== total) {
    throw new ShapeError(
      `${op}: ${show(from)} has ${total} elements, ${show(to)} has ${numel(out)}; expected equal counts`,
    )
  }
  return out
}

/** Gives the elements another shape without a copy, or returns null where the strides do not allow it. */
export function reshapeLayout(layout: Layout, shape: readonly number[]): Layout | null {
  if (numel(layout.shape) === 0 || isContiguous(layout)) return contiguous(shape, layout.offset)
  // Walk runs of old dims that are mergeable, giving each run to as many new dims as have the same product.
  const old = layout.shape.map((n, i) => [n, layout.strides[i]] as const).filter(([n]) => n !== 1)
  const strides = new Array<number>(shape.length)
  let o = 0
  let s = 0
  while (o < old.length) {
    let have = old[o][0]
    let end = o + 1
    let want = 1
    const first = s
    while (s < shape.length && want < have) want *= shape[s++]
    while (want !== have) {
      if (want < have) {
        if (s >= shape.length) return null
        want *= shape[s++]
      } else {
        if (end >= old.length) return null
        have *= old[end++][0]
      }
    }
    for (let i = o; i + 1 < end; i++) if (old[i][1] !== old[i + 1][0] * old[i + 1][1]) return null
    let step = old[end - 1][1]
    for (let i = s - 1; i >= first; i--) {
      strides[i] = step
      step *= shape[i]
    }
    o = end
  }
  for (; s < shape.length; s++) strides[s] = 1
  for (let i = 0; i < shape.length; i++) strides[i] ??= 1
  return { shape, strides, offset: layout.offset }
}

/** Puts the dims in another order. */
export function permuteLayout(layout: Layout, dims: readonly number[]): Layout {
  const { shape, strides, offset } = layout
  const to = { shape: new Array<number>(dims.length), strides: new Array<number>(dims.length), offset }
  for (let i = 0; i < dims.length; i++) {
    to.shape[i] = shape[dims[i]]
    to.strides[i] = strides[dims[i]]
  }
  return to
}

/** Broadcasts to a larger shape by strides of 0; −1 keeps a size. */
export function expandLayout(op: string, layout: Layout, to: readonly number[]): Layout {
  const { shape } = layout
  const lead = to.length - shape.length
  const out = to.map((n, i) => (n === -1 && i >= lead ? shape[i - lead] : n))
  const fits = lead >= 0 && shape.every((n, i) => n === 1 || n === out[i + lead]) && out.every((n) => n >= 0)
  if (!fits)
    throw new ShapeError(
      `${op}: cannot expand ${show(shape)} to ${show(to)}; only dims of size 1 grow and new dims come first`,
    )
  return { shape: out, strides: broadcastStrides(layout, out), offset: layout.offset }
}

/** A copy of `list` with another value at a place, as `list.with(at, value)`, which V8 is slow at. */
function withAt(list: readonly number[], at: number, value: number): number[] {
  const copy = list.slice()
  copy[at] = value
  return copy
}

/** `start : end : step` along one dim, Python's rules for negative and out-of-range bounds; step may be negative. */
export function sliceLayout(
  op: string,
  layout: Layout,
  dim: number,
  start: number | undefined,
  end: number | undefined,
  step: number,
): Layout {
  if (!Number.isInteger(step) || step === 0)
    throw new ShapeError(`${op}: step must be a non-zero integer, got ${step}`)
  for (const bound of [start, end])
    if (bound !== undefined && !Number.isInteger(bound) && Math.abs(bound) !== Infinity)
      throw new ShapeError(`${op}: start and end must be whole numbers, got ${describe(bound)}`)
  const n = layout.shape[dim]
  const clampTo = (v: number, lo: number, hi: number): number => Math.min(Math.max(v < 0 ? v + n : v, lo), hi)
  const first =
    start === undefined ? (step > 0 ? 0 : n - 1) : clampTo(start, step > 0 ? 0 : -1, step > 0 ? n : n - 1)
  const last = end === undefined ? (step > 0 ? n : -1) : clampTo(end, step > 0 ? 0 : -1, step > 0 ? n : n - 1)
  const size = Math.max(0, Math.ceil((last - first) / step))
  return {
    shape: withAt(layout.shape, dim, size),
    strides: withAt(layout.strides, dim, layout.strides[dim] * step),
    offset: size > 0 ? layout.offset + first * layout.strides[dim] : layout.offset,
  }
}

/** Takes the part at `index` along dim, without that dim. */
export function selectLayout(op: string, layout: Layout, dim: number, index: number): Layout {
  const n = layout.shape[dim]
  if (!Number.isInteger(index) || index < -n || index >= n)
    throw new ShapeError(`${op}: index ${index} is out of range for dim ${dim} of ${show(layout.shape)}`)
  const i = index < 0 ? index + n : index
  return {
    shape: layout.shape.toSpliced(dim, 1),
    strides: layout.strides.toSpliced(dim, 1),
    offset: layout.offset + i * layout.strides[dim],
  }
}

/** Reverses the order along dims, by negative strides. */
export function flipLayout(layout: Layout, dims: readonly number[]): Layout {
  let offset = layout.offset
  const strides = [...layout.strides]
  for (const d of dims) {
    offset += Math.max(0, layout.shape[d] - 1) * strides[d]
    strides[d] = -strides[d]
  }
  return { shape: layout.shape, strides, offset }
}

/** The diagonal of two dims as a new last dim. */
export function diagonalLayout(layout: Layout, diagonal: number, dim1: number, dim2: number): Layout {
  const { shape, strides, offset } = layout
  const size =
    diagonal >= 0
      ? Math.min(shape[dim1], shape[dim2] - diagonal)
      : Math.min(shape[dim1] + diagonal, shape[dim2])
  const start = diagonal >= 0 ? diagonal * strides[dim2] : -diagonal * strides[dim1]
  const rest = shape.map((_, i) => i).filter((i) => i !== dim1 && i !== dim2)
  return {
    shape: [...rest.map((d) => shape[d]), Math.max(0, size)],
    strides: [...rest.map((d) => strides[d]), strides[dim1] + strides[dim2]],
    offset: size > 0 ? offset + start : offset,
  }
}

/** Removes those of the named dims that have size 1. */
export function squeezeLayout(layout: Layout, dims: readonly number[]): Layout {
  const { shape, strides, offset } = layout
  const keep = shape.map((_, i) => i).filter((i) => !(dims.includes(i) && shape[i] === 1))
  return { shape: keep.map((i) => shape[i]), strides: keep.map((i) => strides[i]), offset }
}

/** Inserts a dim of size 1. */
export function unsqueezeLayout(layout: Layout, dim: number): Layout {
  const { shape, strides, offset } = layout
  const step = dim < shape.length ? shape[dim] * strides[dim] : 1
  return { shape: shape.toSpliced(dim, 0, 1), strides: strides.toSpliced(dim, 0, step), offset }
}

/**
 * The element offsets of a layout in row-major order, in a plain odometer: the reference for every strided kernel.
 * Calls `visit(offset, index)` once per element.
 */
export function forEachOffset(layout: Layout, visit: (offset: number, index: number) => void): void {
  const { shape, strides, offset } = layout
  const total = numel(shape)
  const at = new Array<number>(shape.length).fill(0)
  let where = offset
  for (let index = 0; index < total; index++) {
    visit(where, index)
    for (let d = shape.length - 1; d >= 0; d--) {
      where += strides[d]
      if (++at[d] < shape[d]) break
      where -= shape[d] * strides[d]
      at[d] = 0
    }
  }
}
