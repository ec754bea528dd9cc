import { DTypeError } from '../errors.ts'

/**
 * Element types. `bool` is stored as one byte, 0 or 1. `float16` exists as a dtype; no backend stores it yet.
 * There is no int64: indices and integer sums are int32 and wrap.
 */
export type DType = 'float32' | 'float64' | 'float16' | 'int32' | 'bool'

/** The arrays that hold elements outside of tensors. */
export type TypedArray = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array

interface Info {
  readonly bytes: number
  /** Order of promotion: the result of mixing two dtypes is the one with the higher rank. */
  readonly rank: number
  readonly float: boolean
  readonly make: (length: number) => TypedArray
}

/** What is known of each dtype: bytes of an element, order of promotion, and how to make an array. */
export const info: Record<DType, Info> = {
  bool: { bytes: 1, rank: 0, float: false, make: (n) => new Uint8Array(n) },
  int32: { bytes: 4, rank: 1, float: false, make: (n) => new Int32Array(n) },
  float16: { bytes: 2, rank: 2, float: true, make: (n) => new Uint16Array(n) },
  float32: { bytes: 4, rank: 3, float: true, make: (n) => new Float32Array(n) },
  float64: { bytes: 8, rank: 4, float: true, make: (n) => new Float64Array(n) },
}

/**
 * Says whether elements of a dtype are floating.
 *
 * @example
 * isFloat('int32') // → false
 */
export const isFloat = (dtype: DType): boolean => info[dtype].float

/**
 * The dtype two tensors promote to: bool < int32 < float16 < float32 < float64.
 * A plain number is weak: it takes the tensor's dtype, except that a fraction lifts int32 and bool to float32.
 *
 * @example
 * promote('int32', 'float32') // → float32
 */
export const promote = (a: DType, b: DType): DType => (info[a].rank >= info[b].rank ? a : b)

/**
 * Tells what a true division or a transcendental gives: floats stay, integers and bools become float32.
 *
 * @example
 * toFloat('int32') // → float32
 */
export const toFloat = (dtype: DType): DType => (info[dtype].float ? dtype : 'float32')

/** What sums and products give: bools count as int32. */
export const toSum = (dtype: DType): DType => (dtype === 'bool' ? 'int32' : dtype)

/** The dtype of a typed array as tensors see it; plain arrays are float32 unless they hold booleans. */
export function dtypeOf(data: unknown): DType {
  if (data instanceof Float32Array) return 'float32'
  if (data instanceof Float64Array) return 'float64'
  if (data instanceof Int32Array) return 'int32'
  if (data instanceof Uint8Array) return 'bool'
  throw new DTypeError(
    `tensor: no dtype for ${Object.prototype.toString.call(data)}; pass Float32Array, Float64Array, Int32Array or Uint8Array (bool)`,
  )
}

/** Throws DTypeError for a number that `dtype` cannot hold even approximately: int32 has no ∞, no NaN, and an end. */
export function checkFits(op: string, value: number, dtype: DType): void {
  if (dtype === 'int32' && !(value > -2147483649 && value < 2147483648))
    throw new DTypeError(`${op}: ${value} cannot be stored in int32 (±2147483647); use float32 or float64`)
}
