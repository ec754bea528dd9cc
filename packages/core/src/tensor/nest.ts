/**
 * Questions that kernels ask of layouts: which loops go over several operands, and whether elements lie dense. All of it
 * is arithmetic on sizes and strides, in elements.
 */

import type { View } from '../dispatch/backend.ts'
import type { Layout } from './layout.ts'

/** Loops over dims that several operands walk together. */
export interface Nest {
  /** The size of each dim, the outermost first. */
  readonly sizes: readonly number[]
  /** The strides of each operand along these dims. */
  readonly strides: readonly (readonly number[])[]
}

/**
 * Gives the strides of a layout that broadcasts to `shape`: 0 along dims that are new, or of size 1 in the layout.
 *
 * @example
 * import { stridesOver } from '@tilegrad/core/kernel'
 *
 * stridesOver(ones([3, 1]), [2, 3, 4]) // → [0, 1, 0]
 */
export function stridesOver({ shape: own, strides }: Layout, shape: readonly number[]): number[] {
  const missing = shape.length - own.length
  return shape.map((_, d) => (d < missing || own[d - missing] === 1 ? 0 : strides[d - missing]))
}

/**
 * Merges dims that all operands walk as one, in the same order, and drops those of size 1; none may be left.
 *
 * @example
 * import { collapse } from '@tilegrad/core/kernel'
 *
 * collapse([2, 3, 1], [[3, 1, 1], [6, 2, 0]]).sizes // → [6]
 */
export function collapse(sizes: readonly number[], strides: readonly (readonly number[])[]): Nest {
  const merged: number[] = []
  const out: number[][] = strides.map(() => [])
  for (let d = 0; d < sizes.length; d++) {
    const size = sizes[d]
    if (size === 1) continue
    const last = merged.length - 1
    let merge = last >= 0
    for (let k = 0; merge && k < strides.length; k++) merge = out[k][last] === strides[k][d] * size
    if (merge) merged[last] *= size
    else merged.push(size)
    for (let k = 0; k < strides.length; k++) out[k][merged.length - 1] = strides[k][d]
  }
  return { sizes: merged, strides: out }
}

/**
 * Says whether the dims of a layout from `lead` on are one dense, row-major run. Strides of dims of size 1 do not matter.
 *
 * @example
 * import { denseFrom } from '@tilegrad/core/kernel'
 *
 * denseFrom(1, ones([2, 3, 4]).narrow(0, 0, 1)) // → true
 */
export function denseFrom(lead: number, { shape, strides }: Layout): boolean {
  let step = 1
  for (let d = shape.length - 1; d >= lead; d--) {
    if (shape[d] === 1) continue
    if (strides[d] !== step) return false
    step *= shape[d]
  }
  return true
}

/**
 * Counts the leading dims before the trailing ones whose sizes multiply to `size`.
 *
 * @example
 * import { leadOf } from '@tilegrad/core/kernel'
 *
 * leadOf(ones([2, 3, 4]), 12) // → 1
 */
export function leadOf({ shape }: Layout, size: number): number {
  let lead = shape.length
  for (let n = 1; n < size && lead > 0; ) n *= shape[--lead]
  return lead
}

/**
 * Makes a view of another layout on a view's memory. Tensors are views with getters, which `{ ...view }` would lose.
 *
 * @example
 * import { viewOf } from '@tilegrad/core/kernel'
 *
 * viewOf(ones([2, 3]), [6], [1]).shape // → [6]
 */
export const viewOf = (
  { buffer, dtype, offset: start }: View,
  shape: readonly number[],
  strides: readonly number[],
  offset = start,
): View => ({ buffer, dtype, shape, strides, offset })
