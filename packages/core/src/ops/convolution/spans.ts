import { describe } from '../../checks.ts'
import { ShapeError, show, ValueError } from '../../errors.ts'
import type { Span } from '../../primitives/windows.ts'

/** How windows lie: what convolutions and pools are told of sizes, strides and paddings. */

/** A number for all dims that windows slide along, or one for each of them. */
export type WindowSizes = number | readonly number[]

/** Elements around each dim: for all dims, or for each; 'valid' for none, 'same' for as many as keep the sizes. */
export type WindowPadding = WindowSizes | 'valid' | 'same'

/**
 * One whole number of at least `least` for each of `dims` dims.
 *
 * @throws ValueError for anything else.
 * @internal
 */
export function windowSizes(
  op: string,
  name: string,
  value: WindowSizes,
  dims: number,
  least: number,
): number[] {
  const list =
    typeof value === 'number' ? new Array<number>(dims).fill(value) : [...(Array.isArray(value) ? value : [])]
  if (list.length === 1 && dims > 1) return windowSizes(op, name, list[0], dims, least)
  if (list.length !== dims || !list.every((n) => Number.isInteger(n) && n >= least))
    throw new ValueError(
      `${op}: ${name} must be a whole number ≥ ${least}${dims > 1 ? `, or ${dims} of them` : ''}, got ${describe(value)}`,
    )
  return list
}

/** How windows lie over the last dims, by PyTorch's words. */
export interface Windows {
  readonly size: readonly number[]
  readonly stride: WindowSizes
  readonly padding: WindowPadding
  readonly dilation?: WindowSizes | undefined
  /** Windows that begin within x, or the padding before it, may end beyond. */
  readonly ceilMode?: boolean | undefined
}

/**
 * The windows over the last dims of a shape.
 *
 * @throws ShapeError where one dim has no room for a window.
 */
export function spansOf(
  op: string,
  shape: readonly number[],
  { size, stride, padding, dilation = 1, ceilMode = false }: Windows,
): Span[] {
  const dims = size.length
  const steps = windowSizes(op, 'stride', stride, dims, 1)
  const dilations = windowSizes(op, 'dilation', dilation, dims, 1)
  if (typeof padding === 'string' && padding !== 'same' && padding !== 'valid')
    throw new ValueError(`${op}: padding is a number, an array, 'same' or 'valid', got ${describe(padding)}`)
  if (padding === 'same' && steps.some((s) => s !== 1))
    throw new ValueError(`${op}: padding 'same' needs a stride of 1, got ${show(steps)}`)
  const reach = size.map((k, i) => dilations[i] * (k - 1))
  const before =
    typeof padding === 'string'
      ? reach.map((r) => (padding === 'same' ? Math.floor(r / 2) : 0))
      : windowSizes(op, 'padding', padding, dims, 0)
  const after = padding === 'same' ? reach.map((r) => Math.ceil(r / 2)) : before
  return size.map((k, i): Span => {
    const n = shape[shape.length - dims + i]
    const room = n + before[i] + after[i] - reach[i] - 1
    let count = (ceilMode ? Math.ceil : Math.floor)(room / steps[i]) + 1
    if (ceilMode && (count - 1) * steps[i] >= n + before[i]) count--
    if (count < 1)
      throw new ShapeError(
        `${op}: a window over ${reach[i] + 1} elements is larger than dim ${i - dims} of ${show(shape)} with padding ${before[i]}; pad more, or make it smaller`,
      )
    return { size: k, stride: steps[i], dilation: dilations[i], padding: before[i], count }
  })
}
