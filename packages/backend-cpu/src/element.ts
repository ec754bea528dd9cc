/**
 * Element types: what this backend stores of each dtype, and how it looks in a lane of WebAssembly's kernels. What
 * depends on the dtype asks here, or has a table of its own over `Lane`: a dtype that is added is then missing wherever
 * the compiler says so. Bytes of elements are in core's `dtypeInfo`.
 */

import { type DType, dtypeInfo, type TypedArray, UnsupportedOpError } from '@tilegrad/core'

/** Elements in WebAssembly's memory, from a byte address on. */
export const viewOf = (memory: ArrayBufferLike, dtype: DType, address: number, count: number): TypedArray =>
  new dtypeInfo[dtype].Memory(memory, address, count)

/** What kernels of expressions compute with: float32, int32, and bool as a mask of all ones or zeros. */
export type Lane = 'float32' | 'int32' | 'bool'

/** How elements of each dtype that these kernels take look in a lane. */
const lanes: Readonly<Partial<Record<DType, Lane>>> = {
  float32: 'float32',
  float16: 'float32',
  bfloat16: 'float32',
  int32: 'int32',
  bool: 'bool',
}

/** Truncates and saturates, NaN is 0: as int32 conversions do everywhere. */
export const toInt32 = (x: number): number => Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.trunc(x))) || 0

/** The bits of a float32, as an i32 word for a parameter block. */
export function f32bits(value: number): number {
  floats[0] = value
  return bits[0] as number
}
const floats = new Float32Array(1)
const bits = new Int32Array(floats.buffer)

const words: Readonly<Record<Lane, (value: number) => number>> = {
  float32: f32bits,
  int32: toInt32,
  bool: (value) => (value === 0 ? 0 : -1),
}

export const fillsLanes = (dtype: DType): boolean => lanes[dtype] !== undefined

/** What a dtype is in a lane. Throws UnsupportedOpError for others: kernels ask `fillsLanes` before. */
export function laneOf(dtype: DType): Lane {
  const lane = lanes[dtype]
  if (lane) return lane
  throw new UnsupportedOpError(`elementwise: no WebAssembly for ${dtype}`)
}

/** A number of a call as an i32 word for a parameter block. */
export const wordOf = (dtype: DType, value: number): number => words[laneOf(dtype)](value)
