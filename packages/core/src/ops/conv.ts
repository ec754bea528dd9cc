import { type GradNode, gradEnabled } from '../autograd/tape.ts'
import { describe, expectFloat, expectOptions } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { addInto, copyInto, elementwise, elementwiseInto, fill } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { part, permuteView, reshapeView, transposeView } from '../primitives/views.ts'
import { addWindows, type Span, sumOfWindows, windowsOf } from '../primitives/windows.ts'
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

interface ConvAttrs {
  readonly spans: readonly Span[]
  readonly groups: number
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

function compose([x, w, bias]: readonly Tensor[], attrs: ConvAttrs): Tensor[] {
  const { groups, spans } = attrs
  const dtype = promote(x.dtype, w.dtype)
  const shape = [x.shape[0], w.shape[0], ...spans.map((s) => s.count)]
  const kernels = filters(w, groups)
  const b = bias && reshapeView(bias, [bias.shape[0], ...spans.map(() => 1)])
  if (isPointwise(attrs)) {
    const y = reshapeView(matmulPrimitive('conv', kernels, matrices(x, groups)), shape)
    return [b ? elementwise(BIAS, [y, b], [], dtype) : y]
  }
  const out = allocate(x.backend, shape, dtype)
  chunks(x, attrs, (from, n) => {
    const product = matmulPrimitive('conv', kernels, columns(samples(x, from, n), attrs))
    const y = transposeView(reshapeView(product, [shape[1], n, ...shape.slice(2)]), 0, 1)
    const to = samples(out, from, n)
    if (b) elementwiseInto([to], BIAS, [y, b])
    else copyInto(to, y)
  })
  return [out]
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
  const kernels = filters(w, groups)
  const [needsX, needsW] = [node.needs(0), node.needs(1)]
  const direct = needsX && isPointwise(attrs)
  if (direct) out[0] = reshapeView(matmulPrimitive('conv', t(kernels), matrices(dy, groups)), x.shape)
  if (!needsW && (direct || !needsX)) return out
  const windowsShape = (n: number): readonly number[] => [
    ...[groups, x.shape[1] / groups, ...spans.map((s) => s.size)],
    ...[n, ...spans.map((s) => s.count)],
  ]
  /** The gradients of windows, as `windowsOf` has these. */
  const windows = (rows: Tensor, n: number): Tensor => {
    const d = reshapeView(matmulPrimitive('conv', t(kernels), rows), windowsShape(n))
    const places = d.shape.map((_, i) => i)
    const samplesAt = 2 + spans.length
    const ordered = permuteView(d, [samplesAt, ...places.filter((i) => i !== samplesAt)])
    return reshapeView(ordered, [n, x.shape[1], ...ordered.shape.slice(3)])
  }
  if (gradEnabled()) {
    const rows = rowsOf(dy, groups)
    if (needsX && !direct) out[0] = sumOfWindows(windows(rows, x.shape[0]), x.shape, spans)
    if (needsW) out[1] = reshapeView(matmulPrimitive('conv', rows, t(columns(x, attrs))), w.shape)
    return out
  }
  const dtype = isHalf(dy.dtype) ? 'float32' : dy.dtype
  const [dx, dw] = [
    needsX && !direct ? fill(x.backend, x.shape, 0, dtype) : null,
    needsW ? fill(x.backend, kernels.shape, 0, dtype) : null,
  ]
  chunks(x, attrs, (from, n) => {
    const rows = rowsOf(samples(dy, from, n), groups)
    if (dw) addInto(dw, matmulPrimitive('conv', rows, t(columns(samples(x, from, n), attrs))))
    if (dx) addWindows(samples(dx, from, n), windows(rows, n), spans)
  })
  if (dx) out[0] = dx
  if (dw) out[1] = reshapeView(dw, w.shape)
  return out
}

const named = (name: string): Op<ConvAttrs> => ({ name, precision: 2, roundsOnce: true, compose, backward })

const CONV = [named('conv1d'), named('conv2d')] as const

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
