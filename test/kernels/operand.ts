/** Operands of kernels under test: a layout, and the elements of the whole storage behind it. */

import { type DType, dtypeInfo, type Layout, layout, type TypedArray } from '@tilegrad/core'
import { randomRows } from './random.ts'

export interface Operand {
  readonly layout: Layout
  readonly dtype: DType
  readonly data: TypedArray
}

/** How many elements a storage needs for a layout. */
export function extent(l: Layout): number {
  let end = l.offset
  for (let d = 0; d < l.shape.length; d++) end += Math.max(0, (l.shape[d] - 1) * l.strides[d])
  return end + 1
}

/** `value`: by position in the storage. */
export function operand(l: Layout, dtype: DType, value: (i: number) => number): Operand {
  const data = new dtypeInfo[dtype].Memory(extent(l))
  for (let i = 0; i < data.length; i++) data[i] = value(i)
  return { layout: l, dtype, data }
}

/** A contiguous operand. */
export function dense(
  shape: readonly number[],
  value: (i: number) => number,
  dtype: DType = 'float32',
): Operand {
  const data = new dtypeInfo[dtype].Memory(layout.numel(shape))
  for (let i = 0; i < data.length; i++) data[i] = value(i)
  return { layout: layout.contiguous(shape), dtype, data }
}

/** An operand of rows of any kind: permuted, with gaps, backwards, expanded; its dims `run` are one run. */
export const rows = (
  rnd: () => number,
  lead: readonly number[],
  run: readonly number[],
  value: (i: number) => number,
  dtype: DType = 'float32',
): Operand => operand(randomRows(rnd, lead, run), dtype, value)

/** A contiguous output, full of rubbish. */
export const output = (shape: readonly number[], dtype: DType): Operand =>
  dense(shape, () => (dtype === 'bool' ? 1 : -77), dtype)

/** The elements in row-major order, in float64. */
export function elements({ layout: l, data }: Operand): Float64Array {
  const out = new Float64Array(layout.numel(l.shape))
  layout.forEachOffset(l, (at, i) => {
    out[i] = data[at]
  })
  return out
}

/** The first place where two results differ by more than `atol + rtol · |want|`, or null. NaN equals NaN. */
export function mismatch(got: TypedArray, want: TypedArray, atol = 0, rtol = 0): string | null {
  if (got.length !== want.length) return `${got.length} elements, expected ${want.length}`
  for (let i = 0; i < got.length; i++) {
    const [g, w] = [got[i], want[i]]
    if (Object.is(g, w) || g === w) continue
    if (!(Math.abs(g - w) <= atol + rtol * Math.abs(w))) return `element ${i}: ${g}, expected ${w}`
  }
  return null
}

/** The largest magnitude among numbers; NaN does not count. */
export function largest(x: ArrayLike<number>): number {
  let most = 0
  for (let i = 0; i < x.length; i++) most = Math.max(most, Math.abs(x[i]) || 0)
  return most
}
