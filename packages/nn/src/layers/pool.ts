import {
  type AvgPoolOptions,
  adaptiveAvgPool1d,
  adaptiveAvgPool2d,
  adaptiveMaxPool1d,
  adaptiveMaxPool2d,
  avgPool1d,
  avgPool2d,
  expectOptions,
  type MaxPoolOptions,
  maxPool1d,
  maxPool2d,
  type Tensor,
  type WindowSizes,
} from '@tilegrad/core'
import { windowSizes } from '@tilegrad/core/kernel'
import { Module } from '../module/module.ts'

/** A size for messages and modules that are printed: a number, or several in brackets. */
const shown = (size: WindowSizes | readonly (number | null)[]): string =>
  typeof size === 'number' ? String(size) : `(${size.map(String).join(', ')})`

/** What `MaxPool1d` and `MaxPool2d` have in common. */
abstract class MaxPool extends Module {
  /** The size of the windows. */
  readonly kernelSize: WindowSizes
  /** Steps from one window to the next. */
  readonly stride: WindowSizes
  /** How far windows reach beyond the input. */
  readonly padding: WindowSizes
  /** Steps from one element of a window to the next. */
  readonly dilation: WindowSizes
  /** Whether windows may end beyond the padding. */
  readonly ceilMode: boolean

  constructor(dims: 1 | 2, kernelSize: WindowSizes, options: MaxPoolOptions) {
    super()
    const op = `MaxPool${dims}d`
    const {
      stride = kernelSize,
      padding = 0,
      dilation = 1,
      ceilMode = false,
    } = expectOptions(op, options, { stride: 1, padding: 1, dilation: 1, ceilMode: 1 })
    windowSizes(op, 'kernelSize', kernelSize, dims, 1)
    this.kernelSize = kernelSize
    this.stride = stride
    this.padding = padding
    this.dilation = dilation
    this.ceilMode = ceilMode
  }

  protected get options(): MaxPoolOptions {
    const { stride, padding, dilation, ceilMode } = this
    return { stride, padding, dilation, ceilMode }
  }

  override extraRepr(): string {
    return `kernelSize=${shown(this.kernelSize)}, stride=${shown(this.stride)}, padding=${shown(this.padding)}, dilation=${shown(this.dilation)}, ceilMode=${this.ceilMode}`
  }
}

/** What `AvgPool1d` and `AvgPool2d` have in common. */
abstract class AvgPool extends Module {
  /** The size of the windows. */
  readonly kernelSize: WindowSizes
  /** Steps from one window to the next. */
  readonly stride: WindowSizes
  /** Zeros around the input. */
  readonly padding: WindowSizes
  /** Whether windows may end beyond the padding. */
  readonly ceilMode: boolean
  /** Whether the padding's zeros count as elements. */
  readonly countIncludePad: boolean
  /** What sums are divided by rather than by the number of their elements, or null. */
  readonly divisorOverride: number | null

  constructor(dims: 1 | 2, kernelSize: WindowSizes, options: AvgPoolOptions) {
    super()
    const op = `AvgPool${dims}d`
    const {
      stride = kernelSize,
      padding = 0,
      ceilMode = false,
      countIncludePad = true,
      divisorOverride = null,
    } = expectOptions(op, options, {
      stride: 1,
      padding: 1,
      ceilMode: 1,
      countIncludePad: 1,
      divisorOverride: 1,
    })
    windowSizes(op, 'kernelSize', kernelSize, dims, 1)
    this.kernelSize = kernelSize
    this.stride = stride
    this.padding = padding
    this.ceilMode = ceilMode
    this.countIncludePad = countIncludePad
    this.divisorOverride = divisorOverride
  }

  protected get options(): AvgPoolOptions {
    const { stride, padding, ceilMode, countIncludePad, divisorOverride } = this
    return { stride, padding, ceilMode, countIncludePad, divisorOverride }
  }

  override extraRepr(): string {
    return `kernelSize=${shown(this.kernelSize)}, stride=${shown(this.stride)}, padding=${shown(this.padding)}`
  }
}

/** What the adaptive pools have in common. */
abstract class AdaptivePool extends Module {
  /** How many remain along each dim; null for all there are. */
  readonly outputSize: number | readonly (number | null)[]

  constructor(outputSize: number | readonly (number | null)[]) {
    super()
    this.outputSize = outputSize
  }

  override extraRepr(): string {
    return `outputSize=${shown(this.outputSize)}`
  }
}

/**
 * Takes the largest of each window that slides over the last dim of (N, C, L) or (C, L), as core's `maxPool1d`; windows lie side by
 * side unless `stride` says otherwise.
 *
 * @throws ValueError for a size that is none; `forward` throws it for other options, and ShapeError where there is no room for a window.
 * @example
 * new MaxPool1d(2).forward(randn([2, 3, 8])).shape // → 2,3,4
 */
export class MaxPool1d extends MaxPool {
  constructor(kernelSize: WindowSizes, options: MaxPoolOptions = {}) {
    super(1, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return maxPool1d(x, this.kernelSize, this.options)
  }
}

/**
 * Takes the largest of each window that slides over the last two dims of (N, C, H, W) or (C, H, W), as core's `maxPool2d`; windows lie side by
 * side unless `stride` says otherwise.
 *
 * @throws ValueError for a size that is none; `forward` throws it for other options, and ShapeError where there is no room for a window.
 * @example
 * new MaxPool2d(2).forward(randn([2, 3, 8, 8])).shape // → 2,3,4,4
 */
export class MaxPool2d extends MaxPool {
  constructor(kernelSize: WindowSizes, options: MaxPoolOptions = {}) {
    super(2, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return maxPool2d(x, this.kernelSize, this.options)
  }
}

/**
 * Takes the mean of each window that slides over the last dim of (N, C, L) or (C, L), as core's `avgPool1d`; windows lie side by
 * side unless `stride` says otherwise.
 *
 * @throws ValueError for a size that is none; `forward` throws it for other options, and ShapeError where there is no room for a window.
 * @example
 * new AvgPool1d(2).forward(randn([2, 3, 8])).shape // → 2,3,4
 */
export class AvgPool1d extends AvgPool {
  constructor(kernelSize: WindowSizes, options: AvgPoolOptions = {}) {
    super(1, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return avgPool1d(x, this.kernelSize, this.options)
  }
}

/**
 * Takes the mean of each window that slides over the last two dims of (N, C, H, W) or (C, H, W), as core's `avgPool2d`; windows lie side by
 * side unless `stride` says otherwise.
 *
 * @throws ValueError for a size that is none; `forward` throws it for other options, and ShapeError where there is no room for a window.
 * @example
 * new AvgPool2d(2).forward(randn([2, 3, 8, 8])).shape // → 2,3,4,4
 */
export class AvgPool2d extends AvgPool {
  constructor(kernelSize: WindowSizes, options: AvgPoolOptions = {}) {
    super(2, kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return avgPool2d(x, this.kernelSize, this.options)
  }
}

/**
 * Takes means over the last dim of (N, C, L) or (C, L) so that `outputSize` remain, as core's `adaptiveAvgPool1d`.
 *
 * @throws ValueError in `forward` for a size that is none.
 * @example
 * new AdaptiveAvgPool1d(1).forward(randn([2, 3, 8])).shape // → 2,3,1
 */
export class AdaptiveAvgPool1d extends AdaptivePool {
  forward(x: Tensor): Tensor {
    return adaptiveAvgPool1d(x, this.outputSize)
  }
}

/**
 * Takes means over the last two dims of (N, C, H, W) or (C, H, W) so that `outputSize` remain, as core's `adaptiveAvgPool2d`.
 *
 * @throws ValueError in `forward` for a size that is none.
 * @example
 * new AdaptiveAvgPool2d(1).forward(randn([2, 3, 8, 8])).shape // → 2,3,1,1
 */
export class AdaptiveAvgPool2d extends AdaptivePool {
  forward(x: Tensor): Tensor {
    return adaptiveAvgPool2d(x, this.outputSize)
  }
}

/**
 * Takes the largest over the last dim of (N, C, L) or (C, L) so that `outputSize` remain, as core's `adaptiveMaxPool1d`.
 *
 * @throws ValueError in `forward` for a size that is none.
 * @example
 * new AdaptiveMaxPool1d(1).forward(randn([2, 3, 8])).shape // → 2,3,1
 */
export class AdaptiveMaxPool1d extends AdaptivePool {
  forward(x: Tensor): Tensor {
    return adaptiveMaxPool1d(x, this.outputSize)
  }
}

/**
 * Takes the largest over the last two dims of (N, C, H, W) or (C, H, W) so that `outputSize` remain, as core's `adaptiveMaxPool2d`.
 *
 * @throws ValueError in `forward` for a size that is none.
 * @example
 * new AdaptiveMaxPool2d(1).forward(randn([2, 3, 8, 8])).shape // → 2,3,1,1
 */
export class AdaptiveMaxPool2d extends AdaptivePool {
  forward(x: Tensor): Tensor {
    return adaptiveMaxPool2d(x, this.outputSize)
  }
}
