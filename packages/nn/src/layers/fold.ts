import {
  col2im,
  expectOptions,
  im2col,
  type Tensor,
  type WindowOptions,
  type WindowSizes,
} from '@tilegrad/core'
import { windowSizes } from '@tilegrad/core/kernel'
import { Module } from '../module/module.ts'

/** What `Unfold` and `Fold` have in common. */
abstract class Windows extends Module {
  /** The size of the windows. */
  readonly kernelSize: WindowSizes
  /** Steps from one element of a window to the next. */
  readonly dilation: WindowSizes
  /** Zeros around the image. */
  readonly padding: WindowSizes
  /** Steps from one window to the next. */
  readonly stride: WindowSizes

  constructor(kernelSize: WindowSizes, options: WindowOptions) {
    super()
    const op = new.target.name
    const names = { dilation: 1, padding: 1, stride: 1 } as const
    const { dilation = 1, padding = 0, stride = 1 } = expectOptions(op, options, names)
    windowSizes(op, 'kernelSize', kernelSize, 2, 1)
    this.kernelSize = kernelSize
    this.dilation = dilation
    this.padding = padding
    this.stride = stride
  }

  protected get options(): WindowOptions {
    const { dilation, padding, stride } = this
    return { dilation, padding, stride }
  }

  override extraRepr(): string {
    return Object.entries({ kernelSize: this.kernelSize, ...this.options })
      .map(([name, size]) => `${name}=${typeof size === 'number' ? size : `(${size.join(', ')})`}`)
      .join(', ')
  }
}

/**
 * Lays out the windows that slide over images as columns, as core's `im2col`: (N, C, H, W) → (N, C · elements of a window, windows).
 *
 * @throws ValueError for a size that is none; `forward` throws ShapeError where there is no room for a window.
 * @example
 * new Unfold(4, { stride: 4 }).forward(randn([2, 3, 8, 8])).shape // → 2,48,4
 */
export class Unfold extends Windows {
  constructor(kernelSize: WindowSizes, options: WindowOptions = {}) {
    super(kernelSize, options)
  }

  forward(x: Tensor): Tensor {
    return im2col(x, this.kernelSize, this.options)
  }
}

/**
 * Adds columns up where windows take them from, as core's `col2im`: (N, C · elements of a window, windows) → (N, C, …outputSize).
 *
 * @throws ValueError for a size that is none; `forward` throws ShapeError for other columns.
 * @example
 * new Fold(8, 4, { stride: 4 }).forward(randn([2, 48, 4])).shape // → 2,3,8,8
 */
export class Fold extends Windows {
  /** The height and the width of the images. */
  readonly outputSize: WindowSizes

  constructor(outputSize: WindowSizes, kernelSize: WindowSizes, options: WindowOptions = {}) {
    super(kernelSize, options)
    windowSizes('Fold', 'outputSize', outputSize, 2, 1)
    this.outputSize = outputSize
  }

  forward(x: Tensor): Tensor {
    return col2im(x, this.outputSize, this.kernelSize, this.options)
  }

  override extraRepr(): string {
    const { outputSize: size } = this
    return `outputSize=${typeof size === 'number' ? size : `(${size.join(', ')})`}, ${super.extraRepr()}`
  }
}
