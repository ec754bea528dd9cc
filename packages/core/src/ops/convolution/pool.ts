import { describe, expectFloat, expectOptions } from '../../checks.ts'
import { ShapeError, show, ValueError } from '../../errors.ts'
import * as e from '../../expr/expr.ts'
import { type Program, program } from '../../expr/program.ts'
import { elementwise } from '../../primitives/elementwise.ts'
import { reduce } from '../../primitives/reduce.ts'
import { part, reshapeView } from '../../primitives/views.ts'
import { elementsOf, type Span } from '../../primitives/windows.ts'
import { sliceLayout } from '../../tensor/layout.ts'
import { expectTensor } from '../../tensor/operands.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { composed } from '../composed.ts'
import { tensor } from '../create.ts'
import { div } from '../pointwise.ts'
import { cat } from '../shape.ts'
import { spansOf, type WindowSizes, windowSizes } from './spans.ts'

/** Options of `maxPool1d` and `maxPool2d`. */
export interface MaxPoolOptions {
  /** Steps from one window to the next: for all dims, or one for each. Default: the size of the windows. */
  stride?: WindowSizes
  /** How far windows reach beyond x, where nothing is; at most half of their size. Default: 0. */
  padding?: WindowSizes
  /** Steps from one element of a window to the next. Default: 1. */
  dilation?: WindowSizes
  /** Takes windows that end beyond the padding as well, if they begin before. Default: false. */
  ceilMode?: boolean
}

/** Options of `avgPool1d` and `avgPool2d`. */
export interface AvgPoolOptions {
  /** Steps from one window to the next: for all dims, or one for each. Default: the size of the windows. */
  stride?: WindowSizes
  /** Zeros before and behind each dim; at most half of the windows' size. Default: 0. */
  padding?: WindowSizes
  /** Takes windows that end beyond the padding as well, if they begin before. Default: false. */
  ceilMode?: boolean
  /** Counts the padding's zeros as elements. Default: true. */
  countIncludePad?: boolean
  /** Divides sums by this number rather than by that of their elements. */
  divisorOverride?: number | null
}

type Dims = 1 | 2
type Kind = 'max' | 'avg'

/** The first of the largest, or the first NaN: so it is the only one that gets the gradient. */
const larger = (a: e.Expr, b: e.Expr): e.Expr => e.select(e.or(e.ge(a, b), e.isnan(a)), a, b)

const folds = new Map<string, Program>()

/** Folds the elements of windows: as many at a time as kernels like to read. */
function folded(kind: Kind, elements: readonly Tensor[]): Tensor {
  const some = elements.slice(0, 8)
  const key = kind + some.length
  let p = folds.get(key)
  if (!p) {
    p = program(`${kind}_pool`, some.length, (xs) => xs.reduce(kind === 'max' ? larger : e.add))
    folds.set(key, p)
  }
  const y = some.length === 1 ? some[0] : elementwise(p, some)
  return elements.length > 8 ? folded(kind, [y, ...elements.slice(8)]) : y
}

/** One dim after the other, the last one first: of equal elements the first one in row-major order wins. */
function foldWindows(kind: Kind, x: Tensor, spans: readonly Span[]): Tensor {
  const around = kind === 'avg' ? 0 : x.dtype === 'int32' ? -(2 ** 31) : -Infinity
  let y = x
  for (let i = spans.length - 1; i >= 0; i--) {
    const line = spans.map((s, d) =>
      d === i
        ? s
        : {
            size: 1,
            stride: 1,
            dilation: 1,
            padding: 0,
            count: d < i ? x.shape[x.rank - spans.length + d] : s.count,
          },
    )
    y = folded(kind, elementsOf(y, line, around))
  }
  return y
}

function checkInput(op: string, kind: Kind, dims: Dims, x: Tensor): void {
  expectTensor(op, x)
  if (kind !== 'max' || x.dtype !== 'int32') expectFloat(op, x.dtype)
  if (x.rank !== dims + 1 && x.rank !== dims + 2)
    throw new ShapeError(
      `${op}: the input ${show(x.shape)} must be ${dims === 1 ? '(N, C, L) or (C, L)' : '(N, C, H, W) or (C, H, W)'}`,
    )
}

function checkPadding(op: string, spans: readonly Span[]): void {
  for (const { padding, size, dilation } of spans)
    if (padding > ((size - 1) * dilation + 1) / 2)
      throw new ValueError(`${op}: padding ${padding} must be at most half of what a window of ${size} spans`)
}

function maxPool(dims: Dims, x: Tensor, kernelSize: WindowSizes, options: MaxPoolOptions): Tensor {
  const op = `max_pool${dims}d`
  const names = { stride: 1, padding: 1, dilation: 1, ceilMode: 1 } as const
  const { stride = kernelSize, padding = 0, dilation, ceilMode } = expectOptions(op, options, names)
  checkInput(op, 'max', dims, x)
  const size = windowSizes(op, 'kernelSize', kernelSize, dims, 1)
  const spans = spansOf(op, x.shape, { size, stride, padding, dilation, ceilMode })
  checkPadding(op, spans)
  return composed(op, [x], ([t]) => [foldWindows('max', t, spans)], true)[0]
}

/** How many elements each window along one dim has, of those that count. */
const counts = ({ size, stride, padding, count }: Span, n: number, withPadding: boolean): number[] =>
  Array.from({ length: count }, (_, i) => {
    const from = i * stride - padding
    const to = Math.min(from + size, n + padding)
    return withPadding ? to - from : Math.min(to, n) - Math.max(from, 0)
  })

function avgPool(dims: Dims, x: Tensor, kernelSize: WindowSizes, options: AvgPoolOptions): Tensor {
  const op = `avg_pool${dims}d`
  const names = { stride: 1, padding: 1, ceilMode: 1, countIncludePad: 1, divisorOverride: 1 } as const
  const known = expectOptions(op, options, names)
  const { stride = kernelSize, padding = 0, ceilMode, countIncludePad = true, divisorOverride } = known
  if (divisorOverride === 0) throw new ValueError(`${op}: divisorOverride must not be 0`)
  checkInput(op, 'avg', dims, x)
  const size = windowSizes(op, 'kernelSize', kernelSize, dims, 1)
  const spans = spansOf(op, x.shape, { size, stride, padding, ceilMode })
  checkPadding(op, spans)
  const sizes = spans.map((s, i) => counts(s, x.shape[x.rank - dims + i], countIncludePad))
  const all = sizes.reduce((rows, columns) => rows.flatMap((r) => columns.map((c) => r * c)), [1])
  return composed(op, [x], ([t]) => {
    const sums = foldWindows('avg', t, spans)
    if (divisorOverride) return [div(sums, divisorOverride)]
    if (all.every((n) => n === all[0])) return [div(sums, all[0])]
    return [
      div(
        sums,
        tensor(
          all,
          spans.map((s) => s.count),
          { dtype: t.dtype, device: t.backend },
        ),
      ),
    ]
  })[0]
}

function adaptivePool(
  kind: Kind,
  dims: Dims,
  x: Tensor,
  outputSize: number | readonly (number | null)[],
): Tensor {
  const op = `adaptive_${kind}_pool${dims}d`
  checkInput(op, kind, dims, x)
  const own = x.shape.slice(x.rank - dims)
  const asked = typeof outputSize === 'number' ? own.map(() => outputSize) : outputSize
  if (!Array.isArray(asked))
    throw new ValueError(
      `${op}: outputSize is a number or an array of numbers and nulls, got ${describe(outputSize)}`,
    )
  const sizes = windowSizes(
    op,
    'outputSize',
    asked.map((n: number | null, i) => n ?? own[i]),
    dims,
    1,
  )
  if (own.includes(0)) throw new ShapeError(`${op}: the input ${show(x.shape)} has no elements to pool`)
  return composed(op, [x], ([t]) => {
    let y = t
    for (let i = dims - 1; i >= 0; i--) y = adapted(kind, y, t.rank - dims + i, sizes[i])
    return [y]
  })[0]
}

/** `size` pools along one dim: from ⌊i · n / size⌋ to ⌈(i + 1) · n / size⌉, which overlap where size does not divide n. */
function adapted(kind: Kind, x: Tensor, dim: number, size: number): Tensor {
  const n = x.shape[dim]
  if (n === size) return x
  const pooled = (t: Tensor, d: number, keepdim: boolean): Tensor => {
    const y = reduce(kind === 'max' ? 'max' : 'sum', t, [d], keepdim)
    return kind === 'max' ? y : div(y, t.shape[d])
  }
  if (n % size === 0) return pooled(reshapeView(x, x.shape.toSpliced(dim, 1, size, n / size)), dim + 1, false)
  return cat(
    Array.from({ length: size }, (_, i) => {
      const [from, to] = [Math.floor((i * n) / size), Math.ceil(((i + 1) * n) / size)]
      return pooled(
        part('narrow', x, (l) => sliceLayout('narrow', l, dim, from, to, 1)),
        dim,
        true,
      )
    }),
    dim,
  )
}

/**
 * Takes the largest of each window that slides over the last dim: (N, C, L) or (C, L) → (…, ⌊(L + 2·padding − dilation·(size − 1) − 1)
 * / stride⌋ + 1). NaN is larger than all; of equal elements the first one gets the gradient.
 *
 * @throws ShapeError where there is no room for a window, ValueError for sizes that are none or too much padding.
 * @example
 * await maxPool1d(tensor([[1, 3, 2, 0]]), 2).toArray() // → [[3, 2]]
 */
export const maxPool1d = (x: Tensor, kernelSize: WindowSizes, options: MaxPoolOptions = {}): Tensor =>
  maxPool(1, x, kernelSize, options)

/**
 * Takes the largest of each window that slides over the last two dims: (N, C, H, W) or (C, H, W) → (…, H′, W′) with H′ = ⌊(H +
 * 2·padding − dilation·(size − 1) − 1) / stride⌋ + 1. NaN is larger than all; of equal elements the first one gets the gradient.
 *
 * @throws ShapeError where there is no room for a window, ValueError for sizes that are none or too much padding.
 * @example
 * maxPool2d(randn([2, 3, 8, 8]), 2).shape // → [2, 3, 4, 4]
 */
export const maxPool2d = (x: Tensor, kernelSize: WindowSizes, options: MaxPoolOptions = {}): Tensor =>
  maxPool(2, x, kernelSize, options)

/**
 * Takes the mean of each window that slides over the last dim: (N, C, L) or (C, L) → (…, ⌊(L + 2·padding − size) / stride⌋ + 1).
 *
 * @throws ShapeError where there is no room for a window, ValueError for sizes that are none or too much padding.
 * @example
 * await avgPool1d(tensor([[1, 3, 2, 0]]), 2).toArray() // → [[2, 1]]
 */
export const avgPool1d = (x: Tensor, kernelSize: WindowSizes, options: AvgPoolOptions = {}): Tensor =>
  avgPool(1, x, kernelSize, options)

/**
 * Takes the mean of each window that slides over the last two dims: (N, C, H, W) or (C, H, W) → (…, H′, W′) with H′ = ⌊(H +
 * 2·padding − size) / stride⌋ + 1.
 *
 * @throws ShapeError where there is no room for a window, ValueError for sizes that are none or too much padding.
 * @example
 * avgPool2d(randn([2, 3, 8, 8]), 4).shape // → [2, 3, 2, 2]
 */
export const avgPool2d = (x: Tensor, kernelSize: WindowSizes, options: AvgPoolOptions = {}): Tensor =>
  avgPool(2, x, kernelSize, options)

/**
 * Takes means over the last dim so that `outputSize` remain: (N, C, L) or (C, L) → (…, outputSize). Mean i is over the elements
 * from ⌊i · L / outputSize⌋ up to ⌈(i + 1) · L / outputSize⌉.
 *
 * @throws ShapeError for an empty dim, ValueError for sizes that are none.
 * @example
 * await adaptiveAvgPool1d(tensor([[1, 3, 2, 0]]), 1).toArray() // → [[1.5]]
 */
export const adaptiveAvgPool1d = (x: Tensor, outputSize: number | readonly (number | null)[]): Tensor =>
  adaptivePool('avg', 1, x, outputSize)

/**
 * Takes means over the last two dims so that `outputSize` remain, null for all there are: (N, C, H, W) or (C, H, W) → (…, H′, W′).
 * Mean i is over the elements from ⌊i · H / H′⌋ up to ⌈(i + 1) · H / H′⌉.
 *
 * @throws ShapeError for an empty dim, ValueError for sizes that are none.
 * @example
 * adaptiveAvgPool2d(randn([2, 3, 7, 5]), [2, null]).shape // → [2, 3, 2, 5]
 */
export const adaptiveAvgPool2d = (x: Tensor, outputSize: number | readonly (number | null)[]): Tensor =>
  adaptivePool('avg', 2, x, outputSize)

/**
 * Takes the largest over the last dim so that `outputSize` remain: (N, C, L) or (C, L) → (…, outputSize), of the elements that
 * `adaptiveAvgPool1d` takes the mean of. Equal elements share the gradient.
 *
 * @throws ShapeError for an empty dim, ValueError for sizes that are none.
 * @example
 * await adaptiveMaxPool1d(tensor([[1, 3, 2, 0]]), 2).toArray() // → [[3, 2]]
 */
export const adaptiveMaxPool1d = (x: Tensor, outputSize: number | readonly (number | null)[]): Tensor =>
  adaptivePool('max', 1, x, outputSize)

/**
 * Takes the largest over the last two dims so that `outputSize` remain, null for all there are: (N, C, H, W) or (C, H, W) → (…, H′,
 * W′), of the elements that `adaptiveAvgPool2d` takes the mean of. Equal elements share the gradient.
 *
 * @throws ShapeError for an empty dim, ValueError for sizes that are none.
 * @example
 * adaptiveMaxPool2d(randn([2, 3, 7, 5]), [2, null]).shape // → [2, 3, 2, 5]
 */
export const adaptiveMaxPool2d = (x: Tensor, outputSize: number | readonly (number | null)[]): Tensor =>
  adaptivePool('max', 2, x, outputSize)
