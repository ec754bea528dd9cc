import {
  type ConvOptions,
  conv1d,
  conv2d,
  describeValue,
  expectOptions,
  type PadMode,
  pad,
  show,
  type Tensor,
  ValueError,
  type WindowSizes,
  zeros,
} from '@tilegrad/core'
import { windowSizes } from '@tilegrad/core/kernel'
import * as init from './init.ts'
import { positive } from './linear.ts'
import { Module, parameter } from './module.ts'

/** Options of `Conv1d` and `Conv2d`. */
export interface ConvLayerOptions extends ConvOptions {
  /** Learn an additive bias; default true. */
  bias?: boolean
  /** What lies around the input: zeros (default), its mirror image, its edge, or its other end. */
  paddingMode?: 'zeros' | Exclude<PadMode, 'constant'>
}

/** @internal Sizes as Python shows them. */
export const shownSizes = (sizes: readonly number[]): string =>
  `(${sizes.join(', ')}${sizes.length === 1 ? ',' : ''})`

const modes = ['zeros', 'reflect', 'replicate', 'circular']

/** What `Conv1d` and `Conv2d` have in common. */
abstract class Convolution extends Module {
  /** How many channels the input has. */
  readonly inChannels: number
  /** How many channels the output has. */
  readonly outChannels: number
  /** The size of the windows, along each dim. */
  readonly kernelSize: readonly number[]
  /** Steps from one window to the next, along each dim. */
  readonly stride: readonly number[]
  /** Elements around each dim, or 'same' or 'valid'. */
  readonly padding: readonly number[] | 'same' | 'valid'
  /** Steps from one element of a window to the next, along each dim. */
  readonly dilation: readonly number[]
  /** Into how many groups channels fall, each with filters of its own. */
  readonly groups: number
  /** What lies around the input. */
  readonly paddingMode: NonNullable<ConvLayerOptions['paddingMode']>
  /** The filters, (outChannels, inChannels / groups, …kernelSize). */
  weight: Tensor
  /** What is added to each channel, (outChannels), or null. */
  bias: Tensor | null

  constructor(
    dims: 1 | 2,
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvLayerOptions,
  ) {
    super()
    const op = `Conv${dims}d`
    const {
      stride = 1,
      padding = 0,
      dilation = 1,
      groups = 1,
      bias = true,
      paddingMode = 'zeros',
    } = expectOptions(op, options, {
      ...{ stride: 1, padding: 1, dilation: 1, groups: 1 },
      ...{ bias: 1, paddingMode: 1 },
    })
    positive(op, { inChannels, outChannels, groups })
    if (inChannels % groups !== 0 || outChannels % groups !== 0)
      throw new ValueError(
        `${op}: groups ${groups} must divide inChannels ${inChannels} and outChannels ${outChannels}`,
      )
    if (!modes.includes(paddingMode))
      throw new ValueError(
        `${op}: paddingMode must be '${modes.join("', '")}', got ${describeValue(paddingMode)}`,
      )
    this.inChannels = inChannels
    this.outChannels = outChannels
    this.kernelSize = windowSizes(op, 'kernelSize', kernelSize, dims, 1)
    this.stride = windowSizes(op, 'stride', stride, dims, 1)
    this.padding = typeof padding === 'string' ? padding : windowSizes(op, 'padding', padding, dims, 0)
    if (typeof padding === 'string' && padding !== 'same' && padding !== 'valid')
      throw new ValueError(
        `${op}: padding is a number, an array, 'same' or 'valid', got ${describeValue(padding)}`,
      )
    this.dilation = windowSizes(op, 'dilation', dilation, dims, 1)
    this.groups = groups
    this.paddingMode = paddingMode
    if (this.padding === 'same' && this.stride.some((s) => s !== 1))
      throw new ValueError(`${op}: padding 'same' needs a stride of 1, got ${show(this.stride)}`)
    this.weight = parameter(zeros([outChannels, inChannels / groups, ...this.kernelSize]))
    this.bias = bias ? parameter(zeros([outChannels])) : null
    this.resetParameters()
  }

  /** Draws the initial values again: uniform within ±1 / √(inputs of one output), weight and bias. */
  resetParameters(): void {
    init.kaimingUniform_(this.weight, { a: Math.sqrt(5) })
    const bound = 1 / Math.sqrt(this.weight.numel / this.outChannels)
    if (this.bias) init.uniform_(this.bias, -bound, bound)
  }

  protected convolve(conv: typeof conv2d, x: Tensor): Tensor {
    const { stride, padding, dilation, groups, paddingMode, kernelSize } = this
    if (paddingMode === 'zeros') return conv(x, this.weight, this.bias, { stride, padding, dilation, groups })
    const around = kernelSize.map((k, i): readonly number[] => {
      const reach = dilation[i] * (k - 1)
      if (padding === 'same') return [Math.floor(reach / 2), Math.ceil(reach / 2)]
      return padding === 'valid' ? [0, 0] : [padding[i], padding[i]]
    })
    const whole = pad(x, around.reverse().flat(), { mode: paddingMode })
    return conv(whole, this.weight, this.bias, { stride, dilation, groups })
  }

  override extraRepr(): string {
    const { padding, paddingMode } = this
    const all = (sizes: readonly number[], usual: number): boolean => sizes.every((n) => n === usual)
    return [
      `${this.inChannels}, ${this.outChannels}, kernelSize=${shownSizes(this.kernelSize)}, stride=${shownSizes(this.stride)}`,
      ...(typeof padding === 'string'
        ? [`padding='${padding}'`]
        : all(padding, 0)
          ? []
          : [`padding=${shownSizes(padding)}`]),
      ...(all(this.dilation, 1) ? [] : [`dilation=${shownSizes(this.dilation)}`]),
      ...(this.groups === 1 ? [] : [`groups=${this.groups}`]),
      ...(this.bias ? [] : ['bias=false']),
      ...(paddingMode === 'zeros' ? [] : [`paddingMode='${paddingMode}'`]),
    ].join(', ')
  }
}

/**
 * Convolves (N, C, L) or (C, L) with `outChannels` filters of its own, as core's `conv1d`: (N, inChannels, L) → (N, outChannels,
 * L′). Weight (outChannels, inChannels / groups, kernelSize) and bias (outChannels) start uniform within ±1 / √(inputs of one
 * output), as in PyTorch.
 *
 * @throws ValueError for sizes and options that are none; `forward` throws ShapeError for other channels, and where there is no room
 * for a window.
 * @example
 * new Conv1d(4, 8, 3, { padding: 1 }).forward(randn([2, 4, 10])).shape // → 2,8,10
 */
export class Conv1d extends Convolution {
  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvLayerOptions = {},
  ) {
    super(1, inChannels, outChannels, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return this.convolve(conv1d, x)
  }
}

/**
 * Convolves images (N, C, H, W) or (C, H, W) with `outChannels` filters of its own, as core's `conv2d` (LeCun et al. 1989): (N,
 * inChannels, H, W) → (N, outChannels, H′, W′). Weight (outChannels, inChannels / groups, …kernelSize) and bias (outChannels) start
 * uniform within ±1 / √(inputs of one output), as in PyTorch.
 *
 * @throws ValueError for sizes and options that are none; `forward` throws ShapeError for other channels, and where there is no room
 * for a window.
 * @example
 * const layer = new Conv2d(3, 8, 3, { stride: 2, padding: 1 })
 * layer.forward(randn([2, 3, 32, 32])).shape // → 2,8,16,16
 * String(layer) // → Conv2d(3, 8, kernelSize=(3, 3), stride=(2, 2), padding=(1, 1))
 */
export class Conv2d extends Convolution {
  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvLayerOptions = {},
  ) {
    super(2, inChannels, outChannels, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return this.convolve(conv2d, x)
  }
}
