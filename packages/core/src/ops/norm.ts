import { expectFloat, expectOptions, sizesOf } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { reduce } from '../primitives/reduce.ts'
import { reshapeView } from '../primitives/views.ts'
import { type DType, promote } from '../tensor/dtype.ts'
import { numel, sameShape } from '../tensor/layout.ts'
import { expectTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { centred } from './centred.ts'
import { add, div, mul, rsqrt } from './pointwise.ts'

/** What decides how layer normalisation is computed, beside its tensors. */
export interface LayerNormAttrs {
  /** Product of the normalised sizes. */
  readonly size: number
  /** What is added to the variance. */
  readonly eps: number
  /** Which parameters are among the inputs. */
  readonly affine: 'none' | 'weight' | 'both'
}

const SCALE = program('layer_norm.scale', 2, ([x, r]) => e.mul(x, r))

/** Mean 0 and variance 1 over the last dim of (rows, size). */
function standardise(x: Tensor, eps: number): Tensor {
  const c = centred(x, [1])
  const variance = div(reduce('sum', mul(c, c), [1], true), x.shape[1])
  return elementwise(SCALE, [c, rsqrt(add(variance, eps))])
}

declare module '../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Layer normalisation (Ba et al. 2016). */
    readonly layer_norm?: KernelOf<LayerNormAttrs>
    /** The gradients of layer normalisation. */
    readonly layer_normBackward?: KernelOf<GradientAttrs<LayerNormAttrs>>
    /** Root mean square normalisation (Zhang & Sennrich 2019). */
    readonly rms_norm?: KernelOf<RmsNormAttrs>
    /** The gradients of root mean square normalisation. */
    readonly rms_normBackward?: KernelOf<GradientAttrs<RmsNormAttrs>>
  }
}

const LAYER_NORM: Op<LayerNormAttrs> = {
  name: 'layer_norm',
  kernel: (kernels) => kernels.layer_norm,
  gradient: (kernels) => kernels.layer_normBackward,
  unread: true,
  infer: ([x], { size }) => {
    const rows = size === 0 ? 0 : x.numel / size
    return [
      { shape: x.shape, dtype: x.dtype },
      { shape: [rows], dtype: promote(x.dtype, 'float32') },
      { shape: [rows], dtype: promote(x.dtype, 'float32') },
    ]
  },
  compose: ([x, w, b], { size, eps }) => {
    const y = reshapeView(standardise(reshapeView(x, [size === 0 ? 0 : x.numel / size, size]), eps), x.shape)
    const scaled = w ? mul(y, w) : y
    return [b ? add(scaled, b) : scaled]
  },
}

function normalised(
  op: string,
  x: Tensor,
  sizes: number | readonly number[],
  params: readonly (Tensor | null | undefined)[],
): number {
  expectTensor(op, x)
  const shape = sizesOf(op, sizes, [])
  for (const p of params) if (p) expectTensor(op, p)
  expectFloat(op, x.dtype)
  const tail = x.shape.slice(x.rank - shape.length)
  if (shape.length === 0 || !sameShape(tail, shape))
    throw new ShapeError(
      `${op}: normalized shape ${show(shape)} must be the last dims of the input ${show(x.shape)}`,
    )
  for (const p of params) {
    if (p && !sameShape(p.shape, shape))
      throw new ShapeError(
        `${op}: weight and bias must have the normalized shape ${show(shape)}, got ${show(p.shape)}`,
      )
  }
  return numel(shape)
}

const EPS = { eps: 1 } as const

/** Options of `layerNorm`, `rmsNorm` and `groupNorm`. */
export interface NormOptions {
  /**
   * Added to the variance (of rmsNorm: the mean square) under the root. Default: 1e-5; of rmsNorm the
   * smallest step from 1 of the dtype, as in PyTorch.
   */
  eps?: number | null
}

/**
 * (x − mean) / √(variance + eps) · weight + bias over the last dims (Ba et al. 2016); the variance is the population's.
 *
 * @param normalizedShape the last dims of x; weight and bias have this shape.
 * @example
 * layerNorm(randn([2, 3, 4]), [4], ones([4]), zeros([4])).shape // → [2, 3, 4]
 */
export function layerNorm(
  x: Tensor,
  normalizedShape: number | readonly number[],
  weight?: Tensor | null,
  bias?: Tensor | null,
  options: NormOptions = {},
): Tensor {
  const eps = expectOptions('layer_norm', options, EPS).eps ?? 1e-5
  const size = normalised('layer_norm', x, normalizedShape, [weight, bias])
  if (bias && !weight) return add(layerNorm(x, normalizedShape, null, null, { eps }), bias)
  const inputs = [x, ...(weight ? [weight] : []), ...(bias ? [bias] : [])]
  return apply<LayerNormAttrs>(LAYER_NORM, inputs, {
    size,
    eps,
    affine: bias ? 'both' : weight ? 'weight' : 'none',
  })[0]
}

/** What decides how root mean square normalisation is computed, beside its tensors. */
export interface RmsNormAttrs {
  /** Product of the normalised sizes. */
  readonly size: number
  /** What is added to the mean square. */
  readonly eps: number
  /** Which parameters are among the inputs. */
  readonly affine: 'none' | 'weight'
}

const RMS_NORM: Op<RmsNormAttrs> = {
  name: 'rms_norm',
  kernel: (kernels) => kernels.rms_norm,
  gradient: (kernels) => kernels.rms_normBackward,
  unread: true,
  infer: ([x], { size }) => [
    { shape: x.shape, dtype: x.dtype },
    { shape: [size === 0 ? 0 : x.numel / size], dtype: promote(x.dtype, 'float32') },
  ],
  compose: ([x, w], { size, eps }) => {
    const rows = reshapeView(x, [size === 0 ? 0 : x.numel / size, size])
    const meanSquare = div(reduce('sum', mul(rows, rows), [1], true), size)
    const y = reshapeView(elementwise(SCALE, [rows, rsqrt(add(meanSquare, eps))]), x.shape)
    return [w ? mul(y, w) : y]
  },
}

/** The smallest step from 1: what PyTorch takes where no eps is given, for 16 bits that of float32. */
const epsilonOf = (dtype: DType): number => (dtype === 'float64' ? 2 ** -52 : 2 ** -23)

/**
 * x / √(mean x² + eps) · weight over the last dims (Zhang & Sennrich 2019).
 *
 * `eps` defaults to the machine epsilon of the dtype, as in PyTorch.
 *
 * @example
 * rmsNorm(randn([2, 3, 4]), [4], ones([4])).shape // → [2, 3, 4]
 */
export function rmsNorm(
  x: Tensor,
  normalizedShape: number | readonly number[],
  weight?: Tensor | null,
  options: NormOptions = {},
): Tensor {
  const { eps } = expectOptions('rms_norm', options, EPS)
  const size = normalised('rms_norm', x, normalizedShape, [weight])
  const small = eps ?? epsilonOf(x.dtype)
  return apply<RmsNormAttrs>(RMS_NORM, weight ? [x, weight] : [x], {
    size,
    eps: small,
    affine: weight ? 'weight' : 'none',
  })[0]
}

const GROUP_NORM: Op<{ numGroups: number; eps: number; weight: boolean; bias: boolean }> = {
  name: 'group_norm',
  compose: ([x, ...params], { numGroups, eps, weight, bias }) => {
    const [n, c] = x.shape
    const y = reshapeView(
      standardise(
        reshapeView(x, [n * numGroups, numGroups === 0 || n === 0 ? 0 : x.numel / (n * numGroups)]),
        eps,
      ),
      x.shape,
    )
    const column = (p: Tensor): Tensor => reshapeView(p, [c, ...x.shape.slice(2).map(() => 1)])
    const scaled = weight ? mul(y, column(params[0])) : y
    return [bias ? add(scaled, column(params[weight ? 1 : 0])) : scaled]
  },
}

/**
 * Normalises each of `numGroups` groups of channels of x (N, C, …) (Wu & He 2018); weight and bias are (C).
 *
 * @example
 * groupNorm(randn([2, 6, 5]), 3, ones([6]), zeros([6])).shape // → [2, 6, 5]
 */
export function groupNorm(
  x: Tensor,
  numGroups: number,
  weight?: Tensor | null,
  bias?: Tensor | null,
  options: NormOptions = {},
): Tensor {
  const eps = expectOptions('group_norm', options, EPS).eps ?? 1e-5
  expectTensor('group_norm', x)
  expectFloat('group_norm', x.dtype)
  const c = x.shape[1]
  if (x.rank < 2 || !Number.isInteger(numGroups) || numGroups < 1 || c % numGroups !== 0) {
    throw new ShapeError(
      `group_norm: ${show(x.shape)} must be (N, C, …) with C a multiple of numGroups = ${numGroups}`,
    )
  }
  for (const p of [weight, bias])
    if (p && !sameShape(p.shape, [c]))
      throw new ShapeError(`group_norm: weight and bias must be [${c}], got ${show(p.shape)}`)
  return apply(GROUP_NORM, [x, ...(weight ? [weight] : []), ...(bias ? [bias] : [])], {
    numGroups,
    eps,
    weight: Boolean(weight),
    bias: Boolean(bias),
  })[0]
}
