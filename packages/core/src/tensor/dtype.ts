import { DTypeError } from '../errors.ts'

/**
 * Element types. `bool` is stored as one byte, 0 or 1; `float16` and `bfloat16` as 2 bytes, and computed with in float32.
 * There is no int64: indices and integer sums are int32 and wrap.
 */
export type DType = 'float32' | 'float64' | 'float16' | 'bfloat16' | 'int32' | 'bool'

/** The arrays that hold elements outside of tensors; those of 16 bits are numbers in a Float32Array there. */
export type TypedArray = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array

/** The typed arrays that tensors are made of; a Float16Array, where there is one, counts as an array of numbers. */
export type NumberArray =
  | TypedArray
  | Int8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array
  | (ArrayBufferView & ArrayLike<number>)

/** How a number is stored in 16 bits. */
export interface Half {
  /** The number that bits stand for. */
  load(bits: number): number
  /** The bits of the nearest number, of two that are equally near the even one; beyond the largest it is ∞. */
  store(value: number): number
}

const single = new Float32Array(1)
const word = new Uint32Array(single.buffer)

/** A floating format of a sign, an exponent, and so many bits of fraction. */
function half(fraction: number, bias: number): Half {
  const one = 2 ** fraction
  const top = 2 * bias + 1
  /** What the last bit of the fraction is worth, by the exponent; 0 stands for numbers without a leading one. */
  const unit = Float64Array.from({ length: top + 1 }, (_, e) => 2 ** ((e || 1) - bias - fraction))
  return {
    load(bits) {
      const e = (bits >> fraction) & top
      const f = bits & (one - 1)
      const size = e === top ? (f ? NaN : Infinity) : (e ? one + f : f) * unit[e]
      return bits >> 15 ? -size : size
    },
    store(value) {
      const size = Math.abs(value)
      single[0] = size
      const e = Math.min(Math.max((word[0] >> 23) - 127 + bias, 1), top)
      // Numbers from 2⁵² on are whole: adding it rounds. A carry goes into the exponent.
      const bits = size / unit[e] + 2 ** 52 - 2 ** 52 + (e - 1) * one
      const sign = value < 0 || 1 / value < 0 ? 2 ** 15 : 0
      return sign + (size >= 0 ? Math.min(bits, top * one) : top * one + 1)
    },
  }
}

interface Info {
  readonly bytes: number
  /** Order of promotion: the result of mixing two dtypes is the one with the higher rank, of two of one rank float32. */
  readonly rank: number
  readonly float: boolean
  /** An array of elements as they lie in memory, a new one or a part of a buffer. */
  readonly Memory: {
    new (length: number): TypedArray
    new (buffer: ArrayBufferLike, byteOffset: number, length: number): TypedArray
  }
  /** How numbers lie there, where not as they are. */
  readonly half?: Half
}

/** What is known of each dtype: bytes of an element, order of promotion, and what it is in memory. */
export const info: Record<DType, Info> = {
  bool: { bytes: 1, rank: 0, float: false, Memory: Uint8Array },
  int32: { bytes: 4, rank: 1, float: false, Memory: Int32Array },
  float16: { bytes: 2, rank: 2, float: true, Memory: Uint16Array, half: half(10, 15) },
  bfloat16: { bytes: 2, rank: 2, float: true, Memory: Uint16Array, half: half(7, 127) },
  float32: { bytes: 4, rank: 3, float: true, Memory: Float32Array },
  float64: { bytes: 8, rank: 4, float: true, Memory: Float64Array },
}

/** Has it 16 bits, which are kept and not computed with? */
export const isHalf = (dtype: DType): boolean => info[dtype].half !== undefined

/** An array for so many numbers of a dtype. */
export const numbersOf = (dtype: DType, length: number): TypedArray =>
  new (info[dtype].half ? Float32Array : info[dtype].Memory)(length)

/**
 * Elements as they lie in memory: those of 16 bits as a Uint16Array, others as they are.
 *
 * @example
 * import { pack } from '@tilegrad/core/kernel'
 *
 * pack('bfloat16', Float32Array.of(1)) // → 16256
 */
export function pack(dtype: DType, elements: TypedArray): TypedArray {
  const { half } = info[dtype]
  return half ? Uint16Array.from(elements, half.store) : elements
}

/**
 * A copy of elements that lie in memory, as numbers.
 *
 * @example
 * import { unpack } from '@tilegrad/core/kernel'
 *
 * unpack('bfloat16', Uint16Array.of(16256)) // → 1
 */
export function unpack(dtype: DType, memory: TypedArray): TypedArray {
  const { half } = info[dtype]
  return half ? Float32Array.from(memory, half.load) : memory.slice()
}

/**
 * Says whether elements of a dtype are floating.
 *
 * @example
 * isFloat('int32') // → false
 */
export const isFloat = (dtype: DType): boolean => info[dtype].float

/**
 * The dtype two tensors promote to: bool < int32 < float16, bfloat16 < float32 < float64; float16 and bfloat16 to float32.
 * A plain number is weak: it takes the tensor's dtype, except that a fraction lifts int32 and bool to float32.
 *
 * @example
 * promote('int32', 'float32') // → float32
 */
export function promote(a: DType, b: DType): DType {
  const above = info[a].rank - info[b].rank
  return a === b || above > 0 ? a : above < 0 ? b : 'float32'
}

/**
 * Tells what a true division or a transcendental gives: floats stay, integers and bools become float32.
 *
 * @example
 * toFloat('int32') // → float32
 */
export const toFloat = (dtype: DType): DType => (info[dtype].float ? dtype : 'float32')

/** What sums and products give: bools count as int32. */
export const toSum = (dtype: DType): DType => (dtype === 'bool' ? 'int32' : dtype)

/**
 * The dtype that keeps the numbers of a typed array: of 8, 16 and 32 bits int32, of float16 float16. Those that need not fit, of
 * Uint32Array and BigInt64Array, are looked at where they are stored.
 */
export function dtypeOf(data: unknown): DType {
  const name = Object.prototype.toString.call(data).slice(8, -1)
  const found = /^(Float(16|32|64)|(Big)?(Ui|I)nt)/.exec(name)
  if (found && name.endsWith('Array')) return found[2] ? (`float${found[2]}` as DType) : 'int32'
  throw new DTypeError(
    `tensor: no dtype for ${name}; pass Float32Array, Int32Array or another array of numbers`,
  )
}

/** Throws DTypeError for a number that `dtype` cannot hold even approximately: int32 has no ∞, no NaN, and an end. */
export function checkFits(op: string, value: number, dtype: DType): void {
  if (dtype === 'int32' && !(value > -2147483649 && value < 2147483648))
    throw new DTypeError(`${op}: ${value} cannot be stored in int32 (±2147483647); use float32 or float64`)
}
