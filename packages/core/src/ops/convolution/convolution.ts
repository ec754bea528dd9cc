/** What convolutions and their gradients are made of: products of filters and windows. */

import { type GradNode, gradEnabled, noGrad } from '../../autograd/tape.ts'
import type { Backend, View } from '../../dispatch/backend.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { addInto, copyInto, elementwiseInto, fill } from '../../primitives/elementwise.ts'
import { matmulPrimitive } from '../../primitives/matmul.ts'
import {
  contiguous,
  flipView,
  part,
  permuteView,
  reshapeView,
  transposeView,
} from '../../primitives/views.ts'
import { addWindows, padded, type Span, sumOfWindows, windowsOf } from '../../primitives/windows.ts'
import { isHalf, promote } from '../../tensor/dtype.ts'
import { numel, sliceLayout } from '../../tensor/layout.ts'
import { scope } from '../../tensor/memory.ts'
import { allocate, type Tensor } from '../../tensor/tensor.ts'

/** What decides how convolutions are computed, beside their tensors. */
export interface ConvAttrs {
  /** The windows, along each dim. */
  readonly spans: readonly Span[]
  /** Into how many groups channels fall. */
  readonly groups: number
}

declare module '../../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Filters times windows of an input that is padded already: x (N, C, …), weight (O, C / groups, …) → (N, O, …). */
    readonly conv?: KernelOf<ConvAttrs>
    /**
     * The gradient of filters, transposed: x (N, C, …), padded already, and the gradients of results as rows (groups, O / groups,
     * N · windows) → (groups, C / groups · elements of a window, O / groups).
     */
    readonly convBackward?: KernelOf<ConvAttrs>
  }
}

/**
 * Elements of windows that are laid out at a time: few enough to stay in a processor's cache until their product is computed;
 * on a GPU, whose launches take longer than that saves, so many that memory does not fill.
 */
const atOnce = ({ prepare }: Backend): number => (prepare ? 2 ** 24 : 2 ** 20)

const BIAS = program('conv.bias', 2, ([y, b]) => e.add(y, b))

/** Samples `from` … `from + n − 1` of x. */
const samples = (x: Tensor, from: number, n: number): Tensor =>
  n === x.shape[0] ? x : part('narrow', x, (l) => sliceLayout('narrow', l, 0, from, from + n, 1))

/** Calls `fn` with as many samples at a time as their windows allow, and frees what it makes. */
function chunks(
  { backend }: Tensor,
  [count, channels]: readonly number[],
  { spans }: ConvAttrs,
  fn: (from: number, n: number) => void,
): void {
  const each = channels * spans.reduce((p, s) => p * s.size * s.count, 1)
  const n = Math.min(count, Math.max(1, Math.floor(atOnce(backend) / each)))
  for (let from = 0; from < count; from += n) scope(() => fn(from, Math.min(n, count - from)))
}

/** Puts the groups of a tensor's channels first: (N, C, …) → (g, C / g, N, …). */
function channelsFirst(x: Tensor, groups: number, others: number): Tensor {
  const [n, c] = x.shape
  const split = reshapeView(x, [n, groups, c / groups, ...x.shape.slice(2)])
  const lead = Array.from({ length: others }, (_, i) => 3 + i)
  const rest = Array.from({ length: x.rank - 2 - others }, (_, i) => 3 + others + i)
  return permuteView(split, [1, 2, ...lead, 0, ...rest])
}

/** Windows as the columns of matrices (im2col), one for each group: (g, K, N · P). */
function columns(x: Tensor, { spans, groups }: ConvAttrs): Tensor {
  const windows = channelsFirst(windowsOf(x, spans), groups, spans.length)
  const k = (x.shape[1] / groups) * spans.reduce((p, s) => p * s.size, 1)
  return reshapeView(windows, [groups, k, windows.numel / (groups * k)])
}

/** Values of results as the rows of matrices: (N, O, …) → (g, O / g, N · P). */
const rowsOf = (y: Tensor, groups: number): Tensor => {
  const o = y.shape[1] / groups
  return reshapeView(channelsFirst(y, groups, 0), [groups, o, y.numel / (groups * o)])
}

const filters = (w: Tensor, groups: number): Tensor =>
  reshapeView(w, [groups, w.shape[0] / groups, numel(w.shape.slice(1))])

const t = (x: Tensor): Tensor => transposeView(x, x.rank - 2, x.rank - 1)

/** Windows of one element that leave nothing out are x itself. */
const isPointwise = ({ spans }: ConvAttrs): boolean =>
  spans.every((s) => s.size === 1 && s.stride === 1 && s.padding === 0)

/** Samples as matrices, as they lie: (N, C, …) → (N, g, C / g, P). */
const matrices = (x: Tensor, groups: number): Tensor =>
  reshapeView(x, [x.shape[0], groups, x.shape[1] / groups, numel(x.shape.slice(2))])

const resultShape = (x: Tensor, w: Tensor, { spans }: ConvAttrs): readonly number[] => [
  x.shape[0],
  w.shape[0],
  ...spans.map((s) => s.count),
]

const flops = ([x, w]: readonly View[], { spans }: ConvAttrs): number =>
  2 * x.shape[0] * numel(w.shape) * spans.reduce((p, s) => p * s.count, 1)

/** Filters times windows of what is padded already. */
const PRODUCT: Op<ConvAttrs> = {
  name: 'conv',
  kernel: (kernels) => kernels.conv,
  infer: ([x, w], attrs) => [{ shape: resultShape(x, w, attrs), dtype: promote(x.dtype, w.dtype) }],
  flops,
  roundsOnce: true,
  compose([x, w], attrs) {
    const shape = resultShape(x, w, attrs)
    const kernels = filters(w, attrs.groups)
    const out = allocate(x.backend, shape, promote(x.dtype, w.dtype))
    chunks(x, x.shape, attrs, (from, n) => {
      const product = matmulPrimitive('conv', kernels, columns(samples(x, from, n), attrs))
      copyInto(
        samples(out, from, n),
        transposeView(reshapeView(product, [shape[1], n, ...shape.slice(2)]), 0, 1),
      )
    })
    return [out]
  },
}

const weightShape = (x: Tensor, rows: Tensor, { spans, groups }: ConvAttrs): readonly number[] => [
  groups,
  spans.reduce((p, s) => p * s.size, x.shape[1] / groups),
  rows.shape[1],
]

/** The gradient of filters, (g, K, O / g), from what is padded already and rows of gradients of results. */
const WEIGHT: Op<ConvAttrs> = {
  name: 'convBackward',
  kernel: (kernels) => kernels.convBackward,
  infer: ([x, rows], attrs) => [{ shape: weightShape(x, rows, attrs), dtype: rows.dtype }],
  roundsOnce: true,
  compose([x, rows], attrs) {
    const sum = fill(x.backend, weightShape(x, rows, attrs), 0, isHalf(rows.dtype) ? 'float32' : rows.dtype)
    const each = rows.shape[2] / Math.max(1, x.shape[0])
    chunks(x, x.shape, attrs, (from, n) => {
      const some = part('narrow', rows, (l) => sliceLayout('narrow', l, 2, from * each, (from + n) * each, 1))
      addInto(sum, matmulPrimitive('conv', columns(samples(x, from, n), attrs), t(some)))
    })
    return [sum]
  },
}

function compose([x, w, bias]: readonly Tensor[], attrs: ConvAttrs): Tensor[] {
  const { groups, spans } = attrs
  const y = isPointwise(attrs)
    ? reshapeView(matmulPrimitive('conv', filters(w, groups), matrices(x, groups)), resultShape(x, w, attrs))
    : noGrad(() => apply(PRODUCT, [padded(x, spans), w], unpadded(attrs)))[0]
  return [addBias(y, bias)]
}

/** Attributes of a convolution whose input has its padding already: windows begin at its first element. */
const unpadded = ({ spans, groups }: ConvAttrs): ConvAttrs => ({
  spans: spans.map((s) => ({ ...s, padding: 0 })),
  groups,
})

/**
 * Where the gradient of x is a convolution itself, of results' gradients with the filters turned round: its windows, else null.
 * Few channels would be few filters, of which products make little.
 */
function turned(shape: readonly number[], { spans, groups }: ConvAttrs): readonly Span[] | null {
  const reach = spans.map((s) => s.dilation * (s.size - 1))
  if (shape[1] / groups < 8 || spans.some((s, i) => s.stride !== 1 || s.padding > reach[i])) return null
  return spans.map((s, i) => ({ ...s, padding: reach[i] - s.padding, count: shape[2 + i] }))
}

/** Filters turned round, with channels and results in each other's place: (O, C / g, …) → (C, O / g, …). */
function turnedFilters(w: Tensor, groups: number): Tensor {
  const [o, c, ...size] = w.shape
  const dims = size.map((_, i) => 2 + i)
  const split = reshapeView(flipView(w, dims), [groups, o / groups, c, ...size])
  const swapped = permuteView(split, [0, 2, 1, ...dims.map((d) => d + 1)])
  return reshapeView(contiguous(swapped), [groups * c, o / groups, ...size])
}

/** The gradients of windows, as `windowsOf` has these, from rows of gradients of `n` samples. */
function windowsGradient(
  channels: number,
  w: Tensor,
  rows: Tensor,
  n: number,
  { spans, groups }: ConvAttrs,
): Tensor {
  const d = reshapeView(matmulPrimitive('conv', t(filters(w, groups)), rows), [
    ...[groups, channels / groups, ...spans.map((s) => s.size)],
    ...[n, ...spans.map((s) => s.count)],
  ])
  const at = 2 + spans.length
  const ordered = permuteView(d, [at, ...d.shape.map((_, i) => i).filter((i) => i !== at)])
  return reshapeView(ordered, [n, channels, ...ordered.shape.slice(3)])
}

/** The gradient of an input of `shape`, in tensor operators where it is recorded itself. */
export function inputGradient(dy: Tensor, w: Tensor, shape: readonly number[], attrs: ConvAttrs): Tensor {
  const { groups, spans } = attrs
  if (isPointwise(attrs))
    return reshapeView(matmulPrimitive('conv', t(filters(w, groups)), matrices(dy, groups)), shape)
  const around = turned(shape, attrs)
  if (around)
    return apply(CONV[spans.length - 1], [dy, turnedFilters(w, groups)], { spans: around, groups })[0]
  const [n, c] = shape
  if (gradEnabled()) return sumOfWindows(windowsGradient(c, w, rowsOf(dy, groups), n, attrs), shape, spans)
  const dx = fill(dy.backend, shape, 0, isHalf(dy.dtype) ? 'float32' : dy.dtype)
  chunks(dy, shape, attrs, (from, n) => {
    const rows = rowsOf(samples(dy, from, n), groups)
    addWindows(samples(dx, from, n), windowsGradient(c, w, rows, n, attrs), spans)
  })
  return dx
}

/** The gradient of filters of `shape`, in tensor operators where it is recorded itself. It is computed transposed. */
export function filterGradient(x: Tensor, dy: Tensor, shape: readonly number[], attrs: ConvAttrs): Tensor {
  const rows = rowsOf(dy, attrs.groups)
  const dw = gradEnabled()
    ? matmulPrimitive('conv', columns(x, attrs), t(rows))
    : apply(WEIGHT, [padded(x, attrs.spans), contiguous(rows)], unpadded(attrs))[0]
  return reshapeView(t(dw), shape)
}

/** The gradient of a bias, which the engine sums. */
export const biasGradient = (dy: Tensor): Tensor =>
  permuteView(dy, [0, ...dy.shape.slice(2).map((_, i) => 2 + i), 1])

function backward(node: GradNode<ConvAttrs>, [dy]: readonly (Tensor | null)[]): (Tensor | null)[] {
  if (!dy) return node.inputs.map(() => null)
  const [x, w] = [node.input(0), node.input(1)]
  return [
    node.needs(0) ? inputGradient(dy, w, x.shape, node.attrs) : null,
    node.needs(1) ? filterGradient(x, dy, w.shape, node.attrs) : null,
    ...(node.inputs.length > 2 ? [biasGradient(dy)] : []),
  ]
}

const named = (name: string): Op<ConvAttrs> => ({ name, precision: 2, roundsOnce: true, compose, backward })

/** Convolutions of one dim and of two. */
export const CONV: readonly Op<ConvAttrs>[] = [named('conv1d'), named('conv2d')]

/** Adds a bias (O) to y (N, O, …) in place. */
export function addBias(y: Tensor, bias: Tensor | undefined): Tensor {
  if (bias)
    elementwiseInto([y], BIAS, [y, reshapeView(bias, [bias.shape[0], ...y.shape.slice(2).map(() => 1)])])
  return y
}
