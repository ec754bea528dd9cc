import {
  type ConvTransposeOptions,
  convTranspose1d,
  convTranspose2d,
  expectOptions,
  type Tensor,
  type WindowSizes,
} from '@tilegrad/core'
import { windowSizes } from '@tilegrad/core/kernel'
import { FILTER_OPTIONS, Filters, unless } from './filters.ts'

/** Options of `ConvTranspose1d` and `ConvTranspose2d`. */
export interface ConvTransposeLayerOptions extends ConvTransposeOptions {
  /** Learn an additive bias; default true. */
  bias?: boolean
}

/** What `ConvTranspose1d` and `ConvTranspose2d` have in common. */
abstract class TransposedConvolution extends Filters {
  /** By how much the output is smaller before and behind each dim. */
  readonly padding: readonly number[]
  /** By how much the output is larger behind each dim. */
  readonly outputPadding: readonly number[]

  constructor(
    dims: 1 | 2,
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvTransposeLayerOptions,
  ) {
    const op = `ConvTranspose${dims}d`
    const {
      padding = 0,
      outputPadding = 0,
      ...rest
    } = expectOptions(op, options, { ...FILTER_OPTIONS, padding: 1, outputPadding: 1 })
    super(op, dims, [inChannels, outChannels], kernelSize, rest, true)
    this.padding = windowSizes(op, 'padding', padding, dims, 0)
    this.outputPadding = windowSizes(op, 'outputPadding', outputPadding, dims, 0)
  }

  protected spread(conv: typeof convTranspose2d, x: Tensor): Tensor {
    const { stride, padding, outputPadding, groups, dilation } = this
    return conv(x, this.weight, this.bias, { stride, padding, outputPadding, groups, dilation })
  }

  protected shownPadding(): readonly string[] {
    return [...unless(0, 'padding', this.padding), ...unless(0, 'outputPadding', this.outputPadding)]
  }
}

/**
 * Spreads (N, C, L) or (C, L) by filters of its own, as core's `convTranspose1d`: (N, inChannels, L) → (N, outChannels, L′). Weight
 * (inChannels, outChannels / groups, kernelSize) and bias (outChannels) start as in PyTorch.
 *
 * @throws ValueError for sizes and options that are none; `forward` throws ShapeError for other channels.
 * @example
 * new ConvTranspose1d(4, 8, 4, { stride: 2, padding: 1 }).forward(randn([2, 4, 10])).shape // → 2,8,20
 */
export class ConvTranspose1d extends TransposedConvolution {
  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvTransposeLayerOptions = {},
  ) {
    super(1, inChannels, outChannels, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return this.spread(convTranspose1d, x)
  }
}

/**
 * Spreads images (N, C, H, W) or (C, H, W) by filters of its own, as core's `convTranspose2d` (Zeiler et al. 2010): (N, inChannels, H,
 * W) → (N, outChannels, H′, W′). Weight (inChannels, outChannels / groups, …kernelSize) and bias (outChannels) start as in PyTorch.
 *
 * @throws ValueError for sizes and options that are none; `forward` throws ShapeError for other channels.
 * @example
 * const layer = new ConvTranspose2d(8, 3, 4, { stride: 2, padding: 1 })
 * layer.forward(randn([2, 8, 7, 7])).shape // → 2,3,14,14
 */
export class ConvTranspose2d extends TransposedConvolution {
  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvTransposeLayerOptions = {},
  ) {
    super(2, inChannels, outChannels, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return this.spread(convTranspose2d, x)
  }
}
