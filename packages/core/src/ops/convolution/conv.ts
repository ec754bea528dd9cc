import { describe, expectFloat, expectOptions } from '../../checks.ts'
import { apply } from '../../dispatch/op.ts'
import { ShapeError, show } from '../../errors.ts'
import { reshapeView } from '../../primitives/views.ts'
import { sameShape } from '../../tensor/layout.ts'
import { expectTensor } from '../../tensor/operands.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { CONV } from './convolution.ts'
import { spansOf, type WindowPadding, type WindowSizes } from './spans.ts'

export type { ConvAttrs } from './convolution.ts'

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

/** What convolutions and transposed ones ask of their operands. @internal */
export function checkOperands(
  op: string,
  dims: number,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null | undefined,
): void {
  expectTensor(op, x)
  expectTensor(op, weight)
  if (bias) expectTensor(op, bias)
  expectFloat(op, x.dtype)
  const form = dims === 1 ? '(N, C, L) or (C, L)' : '(N, C, H, W) or (C, H, W)'
  if (x.rank !== dims + 1 && x.rank !== dims + 2)
    throw new ShapeError(`${op}: the input ${show(x.shape)} must be ${form}`)
}

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
  checkOperands(op, dims, x, weight, bias)
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
  const spans = spansOf(op, x.shape, { size: weight.shape.slice(2), stride, padding, dilation })
  return apply(CONV[dims - 1], bias ? [x, weight, bias] : [x, weight], { spans, groups })[0]
}

/** @internal One sample as a batch. */
export const unsqueezed = (x: Tensor): Tensor => reshapeView(x, [1, ...x.shape])
/** @internal */
export const squeezed = (x: Tensor): Tensor => reshapeView(x, x.shape.slice(1))

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
