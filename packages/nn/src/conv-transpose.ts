import {
  type ConvTransposeOptions,
  convTranspose1d,
  convTranspose2d,
  expectOptions,
  type Tensor,
  ValueError,
  type WindowSizes,
  zeros,
} from '@tilegrad/core'
import { windowSizes } from '@tilegrad/core/kernel'
import { shownSizes } from './conv.ts'
import * as init from './init.ts'
import { positive } from './linear.ts'
import { Module, parameter } from './module.ts'

/** Options of `ConvTranspose1d` and `ConvTranspose2d`. */
export interface ConvTransposeLayerOptions extends ConvTransposeOptions {
  /** Learn an additive bias; default true. */
  bias?: boolean
}

/** What `ConvTranspose1d` and `ConvTranspose2d` have in common. */
abstract class TransposedConvolution extends Module {
  /** How many channels the input has. */
  readonly inChannels: number
  /** How many channels the output has. */
  readonly outChannels: number
  /** The size of the windows, along each dim. */
  readonly kernelSize: readonly number[]
  /** Steps from one window of the output to the next, along each dim. */
  readonly stride: readonly number[]
  /** By how much the output is smaller before and behind each dim. */
  readonly padding: readonly number[]
  /** By how much the output is larger behind each dim. */
  readonly outputPadding: readonly number[]
  /** Steps from one element of a window to the next, along each dim. */
  readonly dilation: readonly number[]
  /** Into how many groups channels fall, each with filters of its own. */
  readonly groups: number
  /** The filters, (inChannels, outChannels / groups, …kernelSize). */
  weight: Tensor
  /** What is added to each channel, (outChannels), or null. */
  bias: Tensor | null

  constructor(
    dims: 1 | 2,
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvTransposeLayerOptions,
  ) {
    super()
    const op = `ConvTranspose${dims}d`
    const {
      stride = 1,
      padding = 0,
      outputPadding = 0,
      groups = 1,
      bias = true,
      dilation = 1,
    } = expectOptions(op, options, {
      ...{ stride: 1, padding: 1, outputPadding: 1 },
      ...{ groups: 1, bias: 1, dilation: 1 },
    })
    positive(op, { inChannels, outChannels, groups })
    if (inChannels % groups !== 0 || outChannels % groups !== 0)
      throw new ValueError(
        `${op}: groups ${groups} must divide inChannels ${inChannels} and outChannels ${outChannels}`,
      )
    this.inChannels = inChannels
    this.outChannels = outChannels
    this.kernelSize = windowSizes(op, 'kernelSize', kernelSize, dims, 1)
    this.stride = windowSizes(op, 'stride', stride, dims, 1)
    this.padding = windowSizes(op, 'padding', padding, dims, 0)
    this.outputPadding = windowSizes(op, 'outputPadding', outputPadding, dims, 0)
    this.dilation = windowSizes(op, 'dilation', dilation, dims, 1)
    this.groups = groups
    this.weight = parameter(zeros([inChannels, outChannels / groups, ...this.kernelSize]))
    this.bias = bias ? parameter(zeros([outChannels])) : null
    this.resetParameters()
  }

  /** Draws the initial values again: uniform within ±1 / √(outChannels / groups · size of a window), weight and bias. */
  resetParameters(): void {
    init.kaimingUniform_(this.weight, { a: Math.sqrt(5) })
    const bound = 1 / Math.sqrt(this.weight.numel / this.inChannels)
    if (this.bias) init.uniform_(this.bias, -bound, bound)
  }

  protected spread(conv: typeof convTranspose2d, x: Tensor): Tensor {
    const { stride, padding, outputPadding, groups, dilation } = this
    return conv(x, this.weight, this.bias, { stride, padding, outputPadding, groups, dilation })
  }

  override extraRepr(): string {
    const all = (sizes: readonly number[], usual: number): boolean => sizes.every((n) => n === usual)
    return [
      `${this.inChannels}, ${this.outChannels}, kernelSize=${shownSizes(this.kernelSize)}, stride=${shownSizes(this.stride)}`,
      ...(all(this.padding, 0) ? [] : [`padding=${shownSizes(this.padding)}`]),
      ...(all(this.dilation, 1) ? [] : [`dilation=${shownSizes(this.dilation)}`]),
      ...(all(this.outputPadding, 0) ? [] : [`outputPadding=${shownSizes(this.outputPadding)}`]),
      ...(this.groups === 1 ? [] : [`groups=${this.groups}`]),
      ...(this.bias ? [] : ['bias=false']),
    ].join(', ')
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
