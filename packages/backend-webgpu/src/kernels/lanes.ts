/**
 * How row kernels share out a workgroup of 256 threads: `lanes` threads work on one row, 256 / lanes rows at once.
 * Neighbouring threads take neighbouring elements of a row, or where rows lie side by side in memory neighbouring
 * rows, so that they read what is together in memory.
 */

import type { View } from '@tilegrad/core'

export const workgroup = 256

export interface Lanes {
  readonly lanes: number
  /** Neighbouring threads take neighbouring rows. */
  readonly across: boolean
}

const powerAtLeast = (n: number): number => 2 ** Math.ceil(Math.log2(Math.max(1, n)))

/** `each`: elements of a row for one thread, if there are enough. */
export function shareOut(
  rowDims: View,
  along: readonly number[],
  length: number,
  each: number,
  most = workgroup,
): Lanes {
  const inner = rowDims.strides.findLastIndex((_, d) => rowDims.shape[d] > 1)
  const nextRow = Math.abs(rowDims.strides[inner] ?? Infinity)
  const nextElement = Math.abs(along.at(-1) ?? 1)
  const across = nextRow < nextElement && rowDims.shape[inner] >= 8
  const lanes = Math.min(powerAtLeast(length / each), across ? Math.min(most, 16) : most)
  return { lanes, across }
}

/** Declares `lane` and `row`. */
export const laneCode = ({ lanes, across }: Lanes): string => {
  const rows = workgroup / lanes
  const [lane, slot] = across ? [`li / ${rows}u`, `li % ${rows}u`] : [`li % ${lanes}u`, `li / ${lanes}u`]
  return `let lane = ${lane};
let row = (wg.x + wg.y * groups.x) * ${rows}u + ${slot};`
}

/** The place in workgroup memory of `lane + by` of the same row. */
export const neighbour = ({ lanes, across }: Lanes, by: number): number =>
  across ? (by * workgroup) / lanes : by
