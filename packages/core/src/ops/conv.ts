import { type GradNode, gradEnabled, noGrad } from '../autograd/tape.ts'
import { describe, expectFloat, expectOptions } from '../checks.ts'
import type { View } from '../dispatch/backend.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { addInto, copyInto, elementwiseInto, fill } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { contiguous, flipView, part, permuteView, reshapeView, transposeView } from '../primitives/views.ts'
import { addWindows, padded, type Span, sumOfWindows, windowsOf } from '../primitives/windows.ts'
import { isHalf, promote } from '../tensor/dtype.ts'
import { numel, sameShape, sliceLayout } from '../tensor/layout.ts'
import { scope } from '../tensor/memory.ts'
import { expectTensor } from '../tensor/operands.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { spansOf, type WindowPadding, type WindowSizes } from './spans.ts'

/** Options of `conv1d` and `conv2d`. */
export interface ConvOptions {
  /** Steps from one window to the next: for all dims, or one for each. Default: 1. */
  stride?: WindowSizes
  /**
   * Zeros before and behind each dim: for all dims, or one for each; 'valid' for none, 'same' for as many as keep the sizes.
   * Default: 0.
   */
  padding?: WindowPadding
  /** Steps from one element of a window to the next (Yu & Koltun 2016). Default: 1. */
  dilation?: WindowSizes
  /** Into how many groups channels fall, each with filters of its own. Default: 1. */
  groups?: number
}

/** What decides how convolutions are computed, beside their tensors. */
export interface ConvAttrs {
  /** The windows, along each dim. */
  readonly spans: readonly Span[]
  /** Into how many groups channels fall. */
  readonly groups: number
}

declare module '../dispatch/kernels.ts' {
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
const atOnce = (x: Tensor): number => (x.backend.prepare ? 2 ** 26 : 2 ** 20)

const BIAS = program('conv.bias', 2, ([y, b]) => e.add(y, b))

/** Samples `from` … `from + n − 1` of x. */
const samples = (x: Tensor, from: number, n: number): Tensor =>
  n === x.shape[0] ? x : part('narrow', x, (l) => sliceLayout('narrow', l, 0, from, from + n, 1))

/** Calls `fn` with as many samples at a time as their windows allow, and frees what it makes. */
function chunks(x: Tensor, { spans }: ConvAttrs, fn: (from: number, n: number) => void): void {
  const each = numel(x.shape.slice(1, 2)) * spans.reduce((p, s) => p * s.size * s.count, 1)
  const count = x.shape[0]
  const n = Math.min(count, Math.max(1, Math.floor(atOnce(x) / each)))
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
    chunks(x, attrs, (from, n) => {
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
    chunks(x, attrs, (from, n) => {
      const some = part('narrow', rows, (l) => sliceLayout('narrow', l, 2, from * each, (from + n) * each, 1))
      addInto(sum, matmulPrimitive('conv', columns(samples(x, from, n), attrs), t(some)))
    })
    return [sum]
  },
}

function compose([x, w, bias]: readonly Tensor[], attrs: ConvAttrs): Tensor[] {
  const { groups, spans } = attrs
  const b = bias && reshapeView(bias, [bias.shape[0], ...spans.map(() => 1)])
  const y = isPointwise(attrs)
    ? reshapeView(matmulPrimitive('conv', filters(w, groups), matrices(x, groups)), resultShape(x, w, attrs))
    : noGrad(() => apply(PRODUCT, [padded(x, spans), w], unpadded(attrs)))[0]
  if (b) elementwiseInto([y], BIAS, [y, b])
  return [y]
}

/** The same windows over an input with its padding. */
const unpadded = ({ spans, groups }: ConvAttrs): ConvAttrs => ({
  spans: spans.map((s) => ({ ...s, padding: 0 })),
  groups,
})

/**
 * Where the gradient of x is a convolution itself, of results' gradients with the filters turned round: its windows, else null.
 * Few channels would be few filters, of which products make little.
 */
function turned(x: Tensor, { spans, groups }: ConvAttrs): readonly Span[] | null {
  const reach = spans.map((s) => s.dilation * (s.size - 1))
  if (x.shape[1] / groups < 8 || spans.some((s, i) => s.stride !== 1 || s.padding > reach[i])) return null
  return spans.map((s, i) => ({ ...s, padding: reach[i] - s.padding, count: x.shape[2 + i] }))
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
  x: Tensor,
  w: Tensor,
  rows: Tensor,
  n: number,
  { spans, groups }: ConvAttrs,
): Tensor {
  const d = reshapeView(matmulPrimitive('conv', t(filters(w, groups)), rows), [
    ...[groups, x.shape[1] / groups, ...spans.map((s) => s.size)],
    ...[n, ...spans.map((s) => s.count)],
  ])
  const at = 2 + spans.length
  const ordered = permuteView(d, [at, ...d.shape.map((_, i) => i).filter((i) => i !== at)])
  return reshapeView(ordered, [n, x.shape[1], ...ordered.shape.slice(3)])
}

/** Gradients of x, weight and bias, in tensor operators where they are recorded themselves. */
function backward(node: GradNode<ConvAttrs>, [dy]: readonly (Tensor | null)[]): (Tensor | null)[] {
  const { attrs } = node
  const { groups, spans } = attrs
  const out = new Array<Tensor | null>(node.inputs.length).fill(null)
  if (!dy) return out
  const [x, w] = [node.input(0), node.input(1)]
  // The rest is summed by the engine.
  if (node.inputs.length > 2) out[2] = permuteView(dy, [0, ...spans.map((_, i) => 2 + i), 1])
  const [needsX, needsW] = [node.needs(0), node.needs(1)]
  const around = turned(x, attrs)
  if (needsX && isPointwise(attrs))
    out[0] = reshapeView(matmulPrimitive('conv', t(filters(w, groups)), matrices(dy, groups)), x.shape)
  else if (needsX && around)
    out[0] = apply(CONV[spans.length - 1], [dy, turnedFilters(w, groups)], { spans: around, groups })[0]
  const fold = needsX && !out[0]
  if (!needsW && !fold) return out
  /** The gradient of filters is computed transposed. */
  const asFilters = (dw: Tensor): Tensor => reshapeView(t(dw), w.shape)
  if (gradEnabled()) {
    const rows = rowsOf(dy, groups)
    if (fold) out[0] = sumOfWindows(windowsGradient(x, w, rows, x.shape[0], attrs), x.shape, spans)
    if (needsW) out[1] = asFilters(matmulPrimitive('conv', columns(x, attrs), t(rows)))
    return out
  }
  const zeros = (shape: readonly number[]): Tensor =>
    fill(x.backend, shape, 0, isHalf(dy.dtype) ? 'float32' : dy.dtype)
  if (fold) {
    const dx = zeros(x.shape)
    chunks(x, attrs, (from, n) => {
      const rows = rowsOf(samples(dy, from, n), groups)
      addWindows(samples(dx, from, n), windowsGradient(x, w, rows, n, attrs), spans)
    })
    out[0] = dx
  }
  if (needsW)
    out[1] = asFilters(apply(WEIGHT, [padded(x, spans), contiguous(rowsOf(dy, groups))], unpadded(attrs))[0])
  return out
}

const named = (name: string): Op<ConvAttrs> => ({ name, precision: 2, roundsOnce: true, compose, backward })

const CONV: readonly Op<ConvAttrs>[] = [named('conv1d'), named('conv2d')]

function conv(
  dims: 1 | 2,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null | undefined,
  options: ConvOptions,
): Tensor {
  const op = `conv${dims}d`
  const {
    stride = 1,
    padding = 0,
    dilation = 1,
    groups = 1,
  } = expectOptions(op, options, { stride: 1, padding: 1, dilation: 1, groups: 1 })
  expectTensor(op, x)
  expectTensor(op, weight)
  if (bias) expectTensor(op, bias)
  expectFloat(op, x.dtype)
  const form = dims === 1 ? '(N, C, L) or (C, L)' : '(N, C, H, W) or (C, H, W)'
  if (x.rank !== dims + 1 && x.rank !== dims + 2)
    throw new ShapeError(`${op}: the input ${show(x.shape)} must be ${form}`)
  if (x.rank === dims + 1) return squeezed(conv(dims, unsqueezed(x), weight, bias, options))
  const c = x.shape[1]
  if (!Number.isInteger(groups) || groups < 1 || c % groups !== 0)
    throw new ShapeError(
      `${op}: groups must be a whole number that divides the ${c} channels of ${show(x.shape)}, got ${describe(groups)}`,
    )
  const [o, per] = weight.shape
  if (weight.rank !== dims + 2 || per !== c / groups || o % groups !== 0)
    throw new ShapeError(
      `${op}: weight ${show(weight.shape)} does not fit the input ${show(x.shape)} with groups = ${groups}; expected [outChannels, ${c / groups}, ${dims === 1 ? 'size' : 'height, width'}]${groups > 1 ? `, outChannels a multiple of ${groups}` : ''}`,
    )
  if (bias && !sameShape(bias.shape, [o]))
    throw new ShapeError(
      `${op}: bias ${show(bias.shape)} does not fit weight ${show(weight.shape)}; expected [${o}]`,
    )
  const spans = spansOf(op, x, { size: weight.shape.slice(2), stride, padding, dilation })
  return apply(CONV[dims - 1], bias ? [x, weight, bias] : [x, weight], { spans, groups })[0]
}

const unsqueezed = (x: Tensor): Tensor => reshapeView(x, [1, ...x.shape])
const squeezed = (x: Tensor): Tensor => reshapeView(x, x.shape.slice(1))

/**
 * Convolves x (N, C, L) or (C, L) with filters, weight (O, C / groups, K), and adds bias (O), as PyTorch does (a correlation):
 * y[o, i] = bias[o] + Σ over c and k of weight[o, c, k] · x[c, i · stride + k · dilation − padding]. The result is (N, O, L′) or
 * (O, L′) with L′ = ⌊(L + 2·padding − dilation·(K − 1) − 1) / stride⌋ + 1.
 *
 * @throws ShapeError if sizes do not fit or there is no room for a window; ValueError for options that are none.
 * @example
 * await conv1d(tensor([[1, 2, 3, 4]]), tensor([[[1, 0, -1]]])).toArray() // → [[-2, -2]]
 */
export const conv1d = (x: Tensor, weight: Tensor, bias?: Tensor | null, options: ConvOptions = {}): Tensor =>
  conv(1, x, weight, bias, options)

/**
 * Convolves x (N, C, H, W) or (C, H, W) with filters, weight (O, C / groups, K₁, K₂), and adds bias (O), as `conv1d` does along one
 * dim (LeCun et al. 1989). The result is (N, O, H′, W′) or (O, H′, W′) with H′ = ⌊(H + 2·padding − dilation·(K₁ − 1) − 1) / stride⌋
 * + 1. It is computed as products of matrices of windows (Chellapilla et al. 2006), a few samples at a time, so that it takes
 * little memory beyond the result.
 *
 * @throws ShapeError if sizes do not fit or there is no room for a window; ValueError for options that are none.
 * @example
 * const [x, weight, bias] = [randn([2, 3, 32, 32]), randn([16, 3, 3, 3]), zeros([16])]
 * conv2d(x, weight, bias, { padding: 1 }).shape // → 2,16,32,32
 * conv2d(x, weight, bias, { stride: 2, padding: 'valid' }).shape // → 2,16,15,15
 */
export const conv2d = (x: Tensor, weight: Tensor, bias?: Tensor | null, options: ConvOptions = {}): Tensor =>
  conv(2, x, weight, bias, options)
