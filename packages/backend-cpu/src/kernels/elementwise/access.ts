/**
 * How elements come from memory into lanes and back: float32 and int32 as they are, bools as masks, and those of 16 bits as
 * float32, rounded to the nearest and of two that are equally near to the even one.
 */

import type { DType } from '@tilegrad/core'
import type { Constants } from '../../lowering/math.ts'
import {
  type FunctionBuilder,
  f32x4,
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

/** How elements that do not fill a lane are widened to it and narrowed again. */
interface Packed {
  readonly bytes: 1 | 2
  /** Makes lanes of words of 32 bits, each with an element in its low bits. */
  widen(f: FunctionBuilder, x: V128): V128
  /** Makes words of lanes, with an element in the low bits and nothing above. */
  narrow(f: FunctionBuilder, k: Constants, x: V128): V128
}

const word = (n: number): V128 => i32x4.const(n)

const packings: Readonly<Partial<Record<DType, Packed>>> = {
  bool: {
    bytes: 1,
    widen: (_, x) => i32x4.ne(x, i32x4.const(0)),
    narrow: (_, k, x) => v128.and(x, k.i32(1)),
  },
  // The upper half of a float32.
  bfloat16: {
    bytes: 2,
    widen: (_, x) => i32x4.shl(x, 16),
    narrow(f, k, x) {
      const even = v128.and(i32x4.shrU(x, 16), k.i32(1))
      const rounded = f.let(i32x4.shrU(i32x4.add(i32x4.add(x, k.i32(0x7fff)), even), 16))
      // Rounding may make infinity of what is no number.
      return i32x4.select(f32x4.ne(x, x), k.i32(0x7fc0), rounded)
    },
  },
  float16: {
    bytes: 2,
    widen(f, x) {
      const size = f.let(i32x4.shl(v128.and(x, word(0x7fff)), 13))
      // The exponent is larger by 112; that of infinity is the largest.
      // What has no leading one gets one, which is taken off: processors are slow with such numbers of float32.
      const tiny = f32x4.sub(v128.or(size, word(113 << 23)), f32x4.const(2 ** -14))
      const finite = i32x4.select(i32x4.gtS(size, word(0x007fffff)), i32x4.add(size, word(112 << 23)), tiny)
      const top = v128.or(size, word(0x7f800000))
      const value = i32x4.select(i32x4.gtS(size, word(0x0f7fffff)), top, finite)
      return v128.or(value, i32x4.shl(v128.and(x, word(0x8000)), 16))
    },
    narrow(f, k, x) {
      const sign = v128.and(i32x4.shrU(x, 16), k.i32(0x8000))
      const size = f.let(v128.and(x, k.i32(0x7fffffff)))
      // Below 2⁻¹⁴ the last bit is worth 2⁻²⁴, as that of numbers from 1/2 to 1: adding 1/2 rounds.
      const tiny = i32x4.sub(f32x4.add(size, k.f32(0.5)), k.f32(0.5))
      const even = v128.and(i32x4.shrU(size, 13), k.i32(1))
      const usual = i32x4.shrU(i32x4.add(i32x4.add(size, k.i32(0xfff - (112 << 23))), even), 13)
      const finite = f.let(i32x4.select(i32x4.ltS(size, k.i32(113 << 23)), tiny, usual))
      const large = i32x4.select(i32x4.gtS(size, k.i32(0x7f800000)), k.i32(0x7e00), k.i32(0x7c00))
      // From 65520 on the nearest is infinity.
      return v128.or(i32x4.select(i32x4.ltS(size, k.i32(0x477ff000)), finite, large), sign)
    },
  },
}

/** The constants that `store` uses. */
export function storeConstants(f: FunctionBuilder, k: Constants, dtypes: readonly DType[]): void {
  for (const dtype of dtypes) packings[dtype]?.narrow(f, k, i32x4.const(0))
}

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
  const packed = packings[dtype]
  const one = (p: I32): I32 => (packed?.bytes === 1 ? i32.load8U(p) : i32.load16U(p))
  if (access === 'zero') return packed ? packed.widen(f, i32x4.splat(one(ptr))) : v128.load32Splat(ptr)
  if (count === 1) return packed ? packed.widen(f, i32x4.splat(one(ptr))) : v128.load32Zero(ptr)
  if (access === 'unit') {
    if (!packed) return v128.load(ptr, 4 * first)
    const shorts =
      packed.bytes === 1
        ? i16x8.extendLowI8x16U(v128.load32Zero(ptr, first))
        : v128.load64Zero(ptr, 2 * first)
    return packed.widen(f, f.let(i32x4.extendLowI16x8U(shorts)))
  }
  let p = ahead(f, operand, ptr, first)
  let x = f.let(packed ? i32x4.splat(one(p)) : v128.load32Zero(p))
  for (let lane = 1; lane < 4; lane++) {
    p = f.let(p.add(stride))
    x = f.let(packed ? i32x4.replaceLane(x, lane, one(p)) : v128.load32Lane(p, x, lane))
  }
  return packed ? packed.widen(f, x) : x
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
  const packed = packings[dtype]
  if (packed) results = results.map((x) => f.let(packed.narrow(f, k, x)))
  const lane = (p: I32, x: V128, n: number): void =>
    f.storeLane(packed ? ((8 * packed.bytes) as 8 | 16) : 32, p, x, packed ? (4 / packed.bytes) * n : n)
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
  } else if (!packed) {
    results.forEach((x, v) => {
      f.store(ptr, x, 16 * v)
    })
  } else {
    const pairs = (xs: readonly V128[], narrow: (a: V128, b: V128) => V128): V128[] =>
      xs.flatMap((x, v) => (v % 2 === 0 ? [narrow(x, xs[v + 1] ?? x)] : []))
    const shorts = pairs(results, i16x8.narrowI32x4U)
    const parts = packed.bytes === 1 ? pairs(shorts, i8x16.narrowI16x8U) : shorts
    const bytes = width * packed.bytes
    if (bytes < 16) f.storeLane((8 * bytes) as 32 | 64, ptr, parts[0] as V128, 0)
    else
      parts.forEach((x, v) => {
        f.store(ptr, x, 16 * v)
      })
  }
}
