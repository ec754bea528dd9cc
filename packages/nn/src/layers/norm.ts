import {
  describeValue,
  expectOptions,
  groupNorm,
  layerNorm,
  ones,
  rmsNorm,
  show,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import { Module, parameter } from '../module/module.ts'
import { positive } from './linear.ts'

/** Options of `LayerNorm`. */
export interface LayerNormOptions {
  /** Added to the variance; default 1e-5. */
  eps?: number
  /** Learn a weight, and a bias unless `bias` is false; default true. */
  elementwiseAffine?: boolean
  /** Learn an additive bias beside the weight; default true. */
  bias?: boolean
}

/** A size or the last sizes of the input. */
export type NormalizedShape = number | readonly number[]

function sizes(op: string, shape: NormalizedShape): readonly number[] {
  if (typeof shape !== 'number' && !Array.isArray(shape))
    throw new ValueError(`${op}: normalizedShape is a size or an array of sizes, got ${describeValue(shape)}`)
  const list: readonly number[] = typeof shape === 'number' ? [shape] : [...shape]
  if (list.length === 0) throw new ValueError(`${op}: normalizedShape must have at least one dim`)
  positive(op, Object.fromEntries(list.map((n, i) => [`normalizedShape[${i}]`, n])))
  return list
}

/**
 * (x − mean) / √(variance + eps) · weight + bias over the last dims (Ba et al. 2016); keeps the shape. Weight starts
 * as ones, bias as zeros.
 *
 * @param normalizedShape the last dims of the input; weight and bias have this shape.
 * @throws ValueError for sizes that are not positive integers; `forward` throws ShapeError for other last dims.
 * @example
 * const y = new LayerNorm(8).forward(randn([2, 5, 8]))
 * Math.abs(await y.mean().item()) < 1e-5 // → true
 */
export class LayerNorm extends Module {
  /** The last dims, over which it normalises. */
  readonly normalizedShape: readonly number[]
  /** What is added to the variance. */
  readonly eps: number
  /** What the result is multiplied by, or null. */
  weight: Tensor | null
  /** What is added to the result, or null. */
  bias: Tensor | null

  constructor(normalizedShape: NormalizedShape, options: LayerNormOptions = {}) {
    super()
    const {
      eps = 1e-5,
      elementwiseAffine = true,
      bias = true,
    } = expectOptions('LayerNorm', options, {
      eps: 1,
      elementwiseAffine: 1,
      bias: 1,
    })
    this.normalizedShape = sizes('LayerNorm', normalizedShape)
    this.eps = eps
    this.weight = elementwiseAffine ? parameter(ones(this.normalizedShape)) : null
    this.bias = elementwiseAffine && bias ? parameter(zeros(this.normalizedShape)) : null
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.normalizedShape, this.weight, this.bias, { eps: this.eps })
  }

  override extraRepr(): string {
    return `${show(this.normalizedShape)}, eps=${this.eps}${this.weight ? (this.bias ? '' : ', bias=false') : ', elementwiseAffine=false'}`
  }
}

/** Options of `RMSNorm`. */
export interface RMSNormOptions {
  /** Added to the mean square; default the machine epsilon of the input's dtype. */
  eps?: number | null
  /** Learn a weight; default true. */
  elementwiseAffine?: boolean
}

/**
 * x / √(mean x² + eps) · weight over the last dims (Zhang & Sennrich 2019); keeps the shape. Weight starts as ones.
 *
 * @param normalizedShape the last dims of the input; weight has this shape.
 * @throws ValueError for sizes that are not positive integers; `forward` throws ShapeError for other last dims.
 * @example
 * const y = new RMSNorm(8, { eps: 1e-6 }).forward(randn([2, 8]))
 * Math.round(await y.square().mean().item()) // → 1
 */
export class RMSNorm extends Module {
  /** The last dims, over which it normalises. */
  readonly normalizedShape: readonly number[]
  /** What is added to the mean square; null for the smallest step from 1 of the dtype. */
  readonly eps: number | null
  /** What the result is multiplied by, or null. */
  weight: Tensor | null

  constructor(normalizedShape: NormalizedShape, options: RMSNormOptions = {}) {
    super()
    const { eps = null, elementwiseAffine = true } = expectOptions('RMSNorm', options, {
      eps: 1,
      elementwiseAffine: 1,
    })
    this.normalizedShape = sizes('RMSNorm', normalizedShape)
    this.eps = eps
    this.weight = elementwiseAffine ? parameter(ones(this.normalizedShape)) : null
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.normalizedShape, this.weight, { eps: this.eps })
  }

  override extraRepr(): string {
    return `${show(this.normalizedShape)}${this.eps === null ? '' : `, eps=${this.eps}`}${this.weight ? '' : ', elementwiseAffine=false'}`
  }
}

/** Options of `GroupNorm`. */
export interface GroupNormOptions {
  /** Added to the variance; default 1e-5. */
  eps?: number
  /** Learn a weight and a bias per channel; default true. */
  affine?: boolean
}

/**
 * Normalises each of `numGroups` groups of channels of x (N, C, …) to mean 0 and variance 1 (Wu & He 2018), then
 * scales and shifts each channel; keeps the shape. Weight (C) starts as ones, bias (C) as zeros.
 *
 * @throws ValueError unless numGroups divides numChannels; `forward` throws ShapeError for another number of channels.
 * @example
 * new GroupNorm(2, 6).forward(randn([4, 6, 5, 5])).shape // → 4,6,5,5
 */
export class GroupNorm extends Module {
  /** How many groups the channels make. */
  readonly numGroups: number
  /** How many channels there are. */
  readonly numChannels: number
  /** What is added to the variance. */
  readonly eps: number
  /** What each channel is multiplied by, or null. */
  weight: Tensor | null
  /** What is added to each channel, or null. */
  bias: Tensor | null

  constructor(numGroups: number, numChannels: number, options: GroupNormOptions = {}) {
    super()
    const { eps = 1e-5, affine = true } = expectOptions('GroupNorm', options, { eps: 1, affine: 1 })
    positive('GroupNorm', { numGroups, numChannels })
    if (numChannels % numGroups !== 0) {
      throw new ValueError(
        `GroupNorm: numChannels ${numChannels} must be a multiple of numGroups ${numGroups}`,
      )
    }
    this.numGroups = numGroups
    this.numChannels = numChannels
    this.eps = eps
    this.weight = affine ? parameter(ones([numChannels])) : null
    this.bias = affine ? parameter(zeros([numChannels])) : null
  }

  forward(x: Tensor): Tensor {
    return groupNorm(x, this.numGroups, this.weight, this.bias, { eps: this.eps })
  }

  override extraRepr(): string {
    return `numGroups=${this.numGroups}, numChannels=${this.numChannels}, eps=${this.eps}${this.weight ? '' : ', affine=false'}`
  }
}
