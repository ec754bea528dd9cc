/** How elements come from memory into lanes and back: float32 and int32 as they are, bools as masks. */

import type { DType } from '@tilegrad/core'
import type { Constants } from '../../lowering/math.ts'
import {
  type FunctionBuilder,
  type I32,
  i8x16,
  i16x8,
  i32,
  i32x4,
  type V128,
  type Var,
  v128,
} from '../../wasm/index.ts'

/**
 * How an operand moves along the innermost dim: by one element, not at all, by a stride; or by a stride, but by one
 * element along the dim around it, where that is walked in tiles.
 */
export type Access = 'unit' | 'zero' | 'strided' | 'across'

export interface Operand {
  readonly dtype: DType
  readonly access: Access
  /** Bytes from one element to the next along the innermost dim. */
  readonly stride: I32 | number
}

/** Four bools that are true, in memory. */
const trueBits = 0x01010101

/** The constants that `store` uses. */
export function storeConstants(k: Constants, dtypes: readonly DType[]): void {
  if (dtypes.includes('bool')) k.i32(trueBits)
}

/** Turns four numbers into masks: anything but 0 is true. */
const mask = (x: V128): V128 => i32x4.ne(x, i32x4.const(0))

/** The address `n` elements further along the innermost dim. */
export function ahead(f: FunctionBuilder, { access, stride }: Operand, ptr: I32, n: I32 | number): I32 {
  if (access === 'zero' || n === 0) return ptr
  if (typeof n === 'number') return f.let(ptr.add(typeof stride === 'number' ? n * stride : stride.mul(n)))
  return f.let(ptr.add(typeof stride === 'number' ? n.shl(Math.log2(stride)) : n.mul(stride)))
}

/**
 * The elements from number `first` after `ptr` on: four, or one in lane 0; where the operand does not move, the same
 * one in every lane. Dense ones are at a fixed distance from `ptr`: V8 then loads two neighbours as one of 256 bits.
 */
export function load(f: FunctionBuilder, operand: Operand, ptr: I32, count: 4 | 1, first = 0): V128 {
  const { dtype, access, stride } = operand
  const isBool = dtype === 'bool'
  if (access === 'zero') return isBool ? mask(i32x4.splat(i32.load8U(ptr))) : v128.load32Splat(ptr)
  if (count === 1) return isBool ? mask(i32x4.splat(i32.load8U(ptr))) : v128.load32Zero(ptr)
  if (access === 'unit') {
    if (!isBool) return v128.load(ptr, 4 * first)
    return mask(i32x4.extendLowI16x8U(i16x8.extendLowI8x16U(v128.load32Zero(ptr, first))))
  }
  let p = ahead(f, operand, ptr, first)
  let x = f.let(isBool ? i32x4.splat(i32.load8U(p)) : v128.load32Zero(p))
  for (let lane = 1; lane < 4; lane++) {
    p = f.let(p.add(stride))
    x = f.let(isBool ? i32x4.replaceLane(x, lane, i32.load8U(p)) : v128.load32Lane(p, x, lane))
  }
  return isBool ? mask(x) : x
}

/** Four rows of four elements of an operand with access 'across', whose first element is at `ptr`. */
export function loadAcross(f: FunctionBuilder, { dtype, stride }: Operand, ptr: I32): V128[] {
  let p = ptr
  const column = (): Var<'v128'> => f.let(load(f, { dtype, access: 'unit', stride: 4 }, p, 4))
  const next = (): Var<'v128'> => {
    p = f.let(p.add(stride))
    return column()
  }
  const [c0, c1, c2, c3] = [column(), next(), next(), next()]
  const zip = (x: V128, y: V128, half: 0 | 2): Var<'v128'> =>
    f.let(i32x4.shuffle(x, y, [half, half + 4, half + 1, half + 5]))
  const [a, b, c, d] = [zip(c0, c2, 0), zip(c1, c3, 0), zip(c0, c2, 2), zip(c1, c3, 2)]
  return [zip(a, b, 0), zip(a, b, 2), zip(c, d, 0), zip(c, d, 2)]
}

/** Stores `width` elements from `ptr` on: lane 0 of one vector, or all lanes of `width` / 4 of them. */
export function store(
  f: FunctionBuilder,
  k: Constants,
  { dtype, access, stride }: Operand,
  ptr: I32,
  results: readonly V128[],
  width: number,
): void {
  const isBool = dtype === 'bool'
  const lane = (p: I32, x: V128, n: number): void => {
    if (isBool) f.storeLow(8, p, i32x4.extractLane(x, n).and(1))
    else f.storeLane(32, p, x, n)
  }
  if (width === 1) {
    lane(ptr, results[0] as V128, 0)
  } else if (access !== 'unit') {
    let p = ptr
    results.forEach((x, v) => {
      for (let n = 0; n < 4; n++) {
        if (v + n > 0) p = f.let(p.add(stride))
        lane(p, x, n)
      }
    })
  } else if (!isBool) {
    results.forEach((x, v) => {
      f.store(ptr, x, 16 * v)
    })
  } else {
    const pairs = (xs: readonly V128[], narrow: (a: V128, b: V128) => V128): V128[] =>
      xs.flatMap((x, v) => (v % 2 === 0 ? [narrow(x, xs[v + 1] ?? x)] : []))
    const bytes = pairs(pairs(results, i16x8.narrowI32x4S), i8x16.narrowI16x8S)
    const bits = v128.and(bytes[0] as V128, k.i32(trueBits))
    if (width === 16) f.store(ptr, bits)
    else f.storeLane(width === 8 ? 64 : 32, ptr, bits, 0)
  }
}
