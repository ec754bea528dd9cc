import type { TypedArray } from '@tilegrad/core'

export interface Tolerance {
  readonly rtol: number
  readonly atol: number
  /** Elements are sums whose terms may cancel: atol is then per unit of the largest expected element. */
  readonly cancels?: boolean
}

/** What PyTorch in float32 and we may differ by: a few roundings of each output. */
export const CLOSE: Tolerance = { rtol: 1e-5, atol: 1e-6 }
/** Gradients of single elements: products of several roundings, and the sums that undo broadcasting. */
export const GRADIENT: Tolerance = { rtol: 1e-4, atol: 1e-5 }
/**
 * Sums of many terms and their gradients: the order of summation differs, and where terms cancel PyTorch's own error
 * is some roundings (6e-8) of the largest of them.
 */
export const LOOSE: Tolerance = { rtol: 1e-4, atol: 1e-5, cancels: true }
/** Where both sides computed in float64. */
export const DOUBLE: Tolerance = { rtol: 1e-9, atol: 1e-11, cancels: true }
/**
 * Results of 16 bits: both round to 2⁻¹¹ or 2⁻⁸ of the number, PyTorch also what it computes on the way, so that a few such
 * roundings of the largest element may be between them.
 */
export const halves: Readonly<Record<string, Tolerance>> = {
  float16: { rtol: 2 ** -9, atol: 2 ** -9, cancels: true },
  bfloat16: { rtol: 2 ** -6, atol: 2 ** -6, cancels: true },
}
export type Half = 'float16' | 'bfloat16'
/**
 * Of what was computed in float32, computed here in 16 bits: inputs, and what lies between operators, are rounded, and layers
 * carry that on.
 */
export const HALF_INPUTS: Readonly<Record<Half, Tolerance>> = {
  float16: { rtol: 2 ** -7, atol: 2 ** -7, cancels: true },
  bfloat16: { rtol: 2 ** -4, atol: 2 ** -4, cancels: true },
}
export const EXACT: Tolerance = { rtol: 0, atol: 0 }

/** |got − want| ≤ atol + rtol · |want|; NaN equals NaN, and infinities of one sign are equal. */
const agrees = (got: number, want: number, { rtol, atol }: Tolerance): boolean =>
  got === want ||
  (Number.isNaN(got) && Number.isNaN(want)) ||
  Math.abs(got - want) <= atol + rtol * Math.abs(want)

const coordinates = (index: number, shape: readonly number[]): number[] => {
  const out = new Array<number>(shape.length)
  let left = index
  for (let d = shape.length - 1; d >= 0; d--) {
    out[d] = left % shape[d]
    left = Math.floor(left / shape[d])
  }
  return out
}

/** What disagrees, in one line: how much of it, where first, and by how much at worst; null if nothing does. */
export function difference(
  got: TypedArray,
  want: TypedArray,
  shape: readonly number[],
  { rtol, atol, cancels = false }: Tolerance,
): string | null {
  if (got.length !== want.length) return `${got.length} elements; expected ${want.length}`
  let largest = 1
  if (cancels) for (const v of want) if (Number.isFinite(v)) largest = Math.max(largest, Math.abs(v))
  const tolerance = { rtol, atol: atol * largest }
  let first = -1
  let wrong = 0
  let worst = 0
  let worstAt = 0
  for (let i = 0; i < got.length; i++) {
    if (agrees(got[i], want[i], tolerance)) continue
    if (first < 0) first = i
    wrong++
    const error = Math.abs(got[i] - want[i])
    if (error > worst || Number.isNaN(error)) {
      worst = Number.isNaN(error) ? Infinity : error
      worstAt = i
    }
  }
  if (wrong === 0) return null
  const at = (i: number): string => `[${coordinates(i, shape).join(', ')}]`
  return (
    `${wrong} of ${got.length} elements differ; first at ${at(first)}: expected ${want[first]}, got ${got[first]}; ` +
    `worst at ${at(worstAt)}: expected ${want[worstAt]}, got ${got[worstAt]}, off by ${worst.toPrecision(3)} ` +
    `(allowed ${tolerance.atol.toPrecision(3)} + ${rtol} · |expected|)`
  )
}
