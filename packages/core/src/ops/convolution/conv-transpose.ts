import type { GradNode } from '../../autograd/tape.ts'
import { noGrad } from '../../autograd/tape.ts'
import { describe, expectOptions } from '../../checks.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import { ShapeError, show, ValueError } from '../../errors.ts'
import { copy } from '../../primitives/elementwise.ts'
import type { Span } from '../../primitives/windows.ts'
import { promote } from '../../tensor/dtype.ts'
import { sameShape } from '../../tensor/layout.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { checkOperands, squeezed, unsqueezed } from './conv.ts'
import { addBias, biasGradient, CONV, type ConvAttrs, filterGradient, inputGradient } from './convolution.ts'
import { type WindowSizes, windowSizes } from './spans.ts'

/** Options of `convTranspose1d` and `convTranspose2d`. */
export interface ConvTransposeOptions {
  /** Steps from one window of the result to the next: for all dims, or one for each. Default: 1. */
  stride?: WindowSizes
  /** By how much the result is smaller before and behind, for all dims, or one for each. Default: 0. */
  padding?: WindowSizes
  /** By how much the result is larger behind; smaller than the stride or the dilation. Default: 0. */
  outputPadding?: WindowSizes
  /** Into how many groups channels fall, each with filters of its own. Default: 1. */
  groups?: number
  /** Steps from one element of a window to the next. Default: 1. */
  dilation?: WindowSizes
}

interface TransposeAttrs extends ConvAttrs {
  /** The result's. */
  readonly shape: readonly number[]
}

/** What is a convolution's gradient is an operator itself, and has a convolution for gradient. */
const named = (name: string): Op<TransposeAttrs> => ({
  name,
  precision: 2,
  roundsOnce: true,
  compose([x, w, bias], attrs) {
    const y = noGrad(() => inputGradient(x, w, attrs.shape, attrs))
    const dtype = promote(x.dtype, w.dtype)
    return [addBias(y.dtype === dtype ? y : copy(y, dtype), bias)]
  },
  backward(node: GradNode<TransposeAttrs>, [dy]) {
    if (!dy) return node.inputs.map(() => null)
    const [x, w] = [node.input(0), node.input(1)]
    const { spans, groups } = node.attrs
    const attrs = { spans, groups }
    return [
      node.needs(0) ? apply(CONV[spans.length - 1], [dy, w], attrs)[0] : null,
      node.needs(1) ? filterGradient(dy, x, w.shape, attrs) : null,
      ...(node.inputs.length > 2 ? [biasGradient(dy)] : []),
    ]
  },
})

const TRANSPOSED = [named('conv_transpose1d'), named('conv_transpose2d')] as const

function convTranspose(
  dims: 1 | 2,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null | undefined,
  options: ConvTransposeOptions,
): Tensor {
  const op = `conv_transpose${dims}d`
  const names = { stride: 1, padding: 1, outputPadding: 1, groups: 1, dilation: 1 } as const
  const known = expectOptions(op, options, names)
  const { groups = 1 } = known
  checkOperands(op, dims, x, weight, bias)
  if (x.rank === dims + 1) return squeezed(convTranspose(dims, unsqueezed(x), weight, bias, options))
  const [n, c] = x.shape
  if (!Number.isInteger(groups) || groups < 1 || c % groups !== 0)
    throw new ShapeError(
      `${op}: groups must be a whole number that divides the ${c} channels of ${show(x.shape)}, got ${describe(groups)}`,
    )
  if (weight.rank !== dims + 2 || weight.shape[0] !== c)
    throw new ShapeError(
      `${op}: weight ${show(weight.shape)} does not fit the input ${show(x.shape)}; expected [${c}, outChannels / groups, ${dims === 1 ? 'size' : 'height, width'}]`,
    )
  const o = weight.shape[1] * groups
  if (bias && !sameShape(bias.shape, [o]))
    throw new ShapeError(
      `${op}: bias ${show(bias.shape)} does not fit weight ${show(weight.shape)}; expected [${o}]`,
    )
  const each = (name: 'stride' | 'padding' | 'outputPadding' | 'dilation', usual: number): number[] =>
    windowSizes(op, name, known[name] ?? usual, dims, usual)
  const [stride, padding, dilation] = [each('stride', 1), each('padding', 0), each('dilation', 1)]
  const more = each('outputPadding', 0)
  const spans = weight.shape.slice(2).map((size, i): Span => {
    if (more[i] >= Math.max(stride[i], dilation[i]))
      throw new ValueError(`${op}: outputPadding ${more[i]} must be smaller than the stride or the dilation`)
    return { size, stride: stride[i], dilation: dilation[i], padding: padding[i], count: x.shape[2 + i] }
  })
  const sizes = spans.map(
    (s, i) => (s.count - 1) * s.stride - 2 * s.padding + s.dilation * (s.size - 1) + more[i] + 1,
  )
  if (sizes.some((size) => size < 1))
    throw new ShapeError(
      `${op}: padding ${show(padding)} leaves nothing of the result: ${show([n, o, ...sizes])}`,
    )
  const attrs = { spans, groups, shape: [n, o, ...sizes] }
  return apply(TRANSPOSED[dims - 1], bias ? [x, weight, bias] : [x, weight], attrs)[0]
}

/**
 * Spreads x (N, C, L) or (C, L) by filters, weight (C, O / groups, K), and adds bias (O): the gradient of `conv1d` by its input, as an
 * operator (Zeiler et al. 2010). The result is (N, O, L′) or (O, L′) with L′ = (L − 1) · stride − 2·padding + dilation·(K − 1) +
 * outputPadding + 1.
 *
 * @throws ShapeError if sizes do not fit or nothing is left; ValueError for options that are none.
 * @example
 * await convTranspose1d(tensor([[1, 2]]), tensor([[[1, 1, 1]]]), null, { stride: 2 }).toArray() // → [[1, 1, 3, 2, 2]]
 */
export const convTranspose1d = (
  x: Tensor,
  weight: Tensor,
  bias?: Tensor | null,
  options: ConvTransposeOptions = {},
): Tensor => convTranspose(1, x, weight, bias, options)

/**
 * Spreads images x (N, C, H, W) or (C, H, W) by filters, weight (C, O / groups, K₁, K₂), and adds bias (O): the gradient of `conv2d` by
 * its input, as an operator (Zeiler et al. 2010). The result is (N, O, H′, W′) or (O, H′, W′) with H′ = (H − 1) · stride − 2·padding
 * + dilation·(K₁ − 1) + outputPadding + 1.
 *
 * @throws ShapeError if sizes do not fit or nothing is left; ValueError for options that are none.
 * @example
 * const weight = randn([8, 3, 4, 4])
 * convTranspose2d(randn([2, 8, 7, 7]), weight, null, { stride: 2, padding: 1 }).shape // → 2,3,14,14
 */
export const convTranspose2d = (
  x: Tensor,
  weight: Tensor,
  bias?: Tensor | null,
  options: ConvTransposeOptions = {},
): Tensor => convTranspose(2, x, weight, bias, options)
