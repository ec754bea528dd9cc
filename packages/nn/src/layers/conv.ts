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
} from '@tilegrad/core'
import { windowSizes } from '@tilegrad/core/kernel'
import { FILTER_OPTIONS, Filters, unless } from './filters.ts'

/** Options of `Conv1d` and `Conv2d`. */
export interface ConvLayerOptions extends ConvOptions {
  /** Learn an additive bias; default true. */
  bias?: boolean
  /** What lies around the input: zeros (default), its mirror image, its edge, or its other end. */
  paddingMode?: 'zeros' | Exclude<PadMode, 'constant'>
}

const modes = ['zeros', 'reflect', 'replicate', 'circular']

/** What `Conv1d` and `Conv2d` have in common. */
abstract class Convolution extends Filters {
  /** Elements around each dim, or 'same' or 'valid'. */
  readonly padding: readonly number[] | 'same' | 'valid'
  /** What lies around the input. */
  readonly paddingMode: NonNullable<ConvLayerOptions['paddingMode']>

  constructor(
    dims: 1 | 2,
    inChannels: number,
    outChannels: number,
    kernelSize: WindowSizes,
    options: ConvLayerOptions,
  ) {
    const op = `Conv${dims}d`
    const {
      padding = 0,
      paddingMode = 'zeros',
      ...rest
    } = expectOptions(op, options, { ...FILTER_OPTIONS, padding: 1, paddingMode: 1 })
    if (!modes.includes(paddingMode))
      throw new ValueError(
        `${op}: paddingMode must be '${modes.join("', '")}', got ${describeValue(paddingMode)}`,
      )
    if (typeof padding === 'string' && padding !== 'same' && padding !== 'valid')
      throw new ValueError(
        `${op}: padding is a number, an array, 'same' or 'valid', got ${describeValue(padding)}`,
      )
    super(op, dims, [inChannels, outChannels], kernelSize, rest, false)
    this.padding = typeof padding === 'string' ? padding : windowSizes(op, 'padding', padding, dims, 0)
    this.paddingMode = paddingMode
    if (this.padding === 'same' && this.stride.some((s) => s !== 1))
      throw new ValueError(`${op}: padding 'same' needs a stride of 1, got ${show(this.stride)}`)
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

  protected shownPadding(): readonly string[] {
    const { padding } = this
    return typeof padding === 'string' ? [`padding='${padding}'`] : unless(0, 'padding', padding)
  }

  override extraRepr(): string {
    const mode = this.paddingMode
    return `${super.extraRepr()}${mode === 'zeros' ? '' : `, paddingMode='${mode}'`}`
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
