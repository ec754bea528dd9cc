import { expectFloat, expectOptions } from '../../checks.ts'
import { ShapeError, show } from '../../errors.ts'
import { reshapeView } from '../../primitives/views.ts'
import { type Span, sumOfWindows, windowsOf } from '../../primitives/windows.ts'
import { expectTensor } from '../../tensor/operands.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { composed } from '../composed.ts'
import { squeezed, unsqueezed } from './conv.ts'
import { spansOf, type WindowSizes, windowSizes } from './spans.ts'

/** Options of `im2col` and `col2im`. */
export interface WindowOptions {
  /** Steps from one element of a window to the next: for both dims, or one for each. Default: 1. */
  dilation?: WindowSizes
  /** Zeros around each dim: for both dims, or one for each. Default: 0. */
  padding?: WindowSizes
  /** Steps from one window to the next: for both dims, or one for each. Default: 1. */
  stride?: WindowSizes
}

const names = { dilation: 1, padding: 1, stride: 1 } as const

function spansFor(
  op: string,
  shape: readonly number[],
  kernelSize: WindowSizes,
  options: WindowOptions,
): Span[] {
  const { dilation, padding = 0, stride = 1 } = expectOptions(op, options, names)
  const size = windowSizes(op, 'kernelSize', kernelSize, 2, 1)
  return spansOf(op, shape, { size, stride, padding, dilation })
}

/**
 * Lays out the windows that slide over images (N, C, H, W) or (C, H, W) as columns: (N, C · elements of a window, windows), which is
 * what PyTorch's `nn.functional.unfold` does. A convolution is a product of filters with these.
 *
 * @throws ShapeError where there is no room for a window, ValueError for sizes that are none.
 * @example
 * im2col(randn([2, 3, 8, 8]), 4, { stride: 4 }).shape // → [2, 48, 4]
 */
export function im2col(x: Tensor, kernelSize: WindowSizes, options: WindowOptions = {}): Tensor {
  expectTensor('im2col', x)
  if (x.rank !== 4 && x.rank !== 3)
    throw new ShapeError(`im2col: the input ${show(x.shape)} must be (N, C, H, W) or (C, H, W)`)
  if (x.rank === 3) return squeezed(im2col(unsqueezed(x), kernelSize, options))
  const spans = spansFor('im2col', x.shape, kernelSize, options)
  const [n, c] = x.shape
  const columns = [n, c * spans[0].size * spans[1].size, spans[0].count * spans[1].count]
  return composed('im2col', [x], ([t]) => [reshapeView(windowsOf(t, spans), columns)], true)[0]
}

/**
 * Adds columns (N, C · elements of a window, windows), or those of one image, up where `im2col` takes them from, in images of
 * `outputSize`: (N, C, H, W), which is what PyTorch's `nn.functional.fold` does.
 *
 * @throws ShapeError if the columns are not those of such windows, ValueError for sizes that are none.
 * @example
 * await col2im(ones([1, 4, 4]), 3, 2).toArray() // → [[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]]
 */
export function col2im(
  x: Tensor,
  outputSize: WindowSizes,
  kernelSize: WindowSizes,
  options: WindowOptions = {},
): Tensor {
  expectTensor('col2im', x)
  expectFloat('col2im', x.dtype)
  if (x.rank === 2) return squeezed(col2im(unsqueezed(x), outputSize, kernelSize, options))
  const image = windowSizes('col2im', 'outputSize', outputSize, 2, 1)
  const spans = spansFor('col2im', image, kernelSize, options)
  const [sizes, counts] = [spans.map((s) => s.size), spans.map((s) => s.count)]
  const [n, rows, columns] = x.shape
  const c = rows / (sizes[0] * sizes[1])
  if (x.rank !== 3 || !Number.isInteger(c) || columns !== counts[0] * counts[1])
    throw new ShapeError(
      `col2im: the input ${show(x.shape)} must be (N, C · ${sizes[0] * sizes[1]}, ${counts[0] * counts[1]}) for windows of ${show(sizes)} over ${show(image)}`,
    )
  return composed('col2im', [x], ([t]) => [
    sumOfWindows(reshapeView(t, [n, c, ...sizes, ...counts]), [n, c, ...image], spans),
  ])[0]
}
