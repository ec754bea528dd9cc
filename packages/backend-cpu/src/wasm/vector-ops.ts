/**
 * Operators on 128 bits: namespaces `v128` (bits, loads), `f32x4`, `f64x2`, `i32x4`, `i64x2`, `i16x8`, `i8x16`.
 * Names are WebAssembly's in camel case. Where lanes are floats or integers of known width, a plain number is
 * accepted as an operand and means a vector with that number in every lane: `f32x4.mul(x, 0.5)`.
 */

import { laneBytes, pushUnsigned } from './bytes.ts'
import {
  type F32In,
  type F64In,
  type I32,
  type I32In,
  type I64In,
  liftF32,
  liftF64,
  liftI32,
  liftI64,
  liftV128,
  make,
  type Node,
  type V128,
  type ValType,
} from './node.ts'
import { consecutive, define, type LoadCode, load, memoryCode, select } from './scalar-ops.ts'

function simd(opcode: number): number[] {
  const code = [0xfd]
  pushUnsigned(code, opcode)
  return code
}

type Lift<In> = (x: In) => Node
type Lanes = V128 | number
type Unary<A> = (x: A) => V128
type Binary<A> = (x: A, y: A) => V128

const unary =
  <A>(a: Lift<A>) =>
  (opcode: number): Unary<A> => {
    const code = simd(opcode)
    return (x) => make('v128', code, [a(x)])
  }

const binary =
  <A>(a: Lift<A>) =>
  (opcode: number): Binary<A> => {
    const code = simd(opcode)
    return (x, y) => make('v128', code, [a(x), a(y)])
  }

/** Lanes to one i32: any and all tests, bit masks. */
const test = (opcode: number) => {
  const code = simd(opcode)
  return (x: V128): I32 => make('i32', code, [x])
}

/** `shl(x, n)`: every lane by the same scalar n, modulo the width of a lane. */
const shift = (opcode: number) => {
  const code = simd(opcode)
  return (x: V128, by: I32In): V128 => make('v128', code, [x, liftI32(by)])
}

function checkLane(lane: number, count: number): void {
  if (!Number.isInteger(lane) || lane < 0 || lane >= count) {
    throw new RangeError(`lane: ${lane} is not an integer in 0 … ${count - 1}`)
  }
}

const extractLane =
  <R extends ValType>(count: number, type: R) =>
  (opcode: number) => {
    const code = simd(opcode)
    return (x: V128, lane: number) => {
      checkLane(lane, count)
      return make(type, [...code, lane], [x])
    }
  }

const replaceLane =
  <A>(count: number, a: Lift<A>) =>
  (opcode: number) => {
    const code = simd(opcode)
    return (x: V128, lane: number, value: A): V128 => {
      checkLane(lane, count)
      return make('v128', [...code, lane], [x, a(value)])
    }
  }

type Setter = (view: DataView, byte: number, value: number) => void

/** `const(…)`: one number for every lane, or one number per lane. */
function constant(count: number, set: Setter): (...lanes: number[]) => V128 {
  const width = 16 / count
  return (...lanes) => {
    if (lanes.length !== 1 && lanes.length !== count) {
      throw new RangeError(`vector constant: ${lanes.length} numbers; expected 1 or ${count}`)
    }
    const bytes = laneBytes(16, (view) => {
      for (let i = 0; i < count; i++) set(view, i * width, lanes[lanes.length === 1 ? 0 : i] as number)
    })
    return make('v128', [0xfd, 12, ...bytes], [])
  }
}

/** `shuffle(a, b, lanes)`: lane i of the result is lane `lanes[i]` of a followed by b. */
function shuffle(count: number): (a: V128, b: V128, lanes: readonly number[]) => V128 {
  const width = 16 / count
  return (a, b, lanes) => {
    if (lanes.length !== count) throw new RangeError(`shuffle: ${lanes.length} lanes; expected ${count}`)
    const code = simd(13)
    for (const lane of lanes) {
      checkLane(lane, 2 * count)
      for (let byte = 0; byte < width; byte++) code.push(lane * width + byte)
    }
    return make('v128', code, [a, b])
  }
}

const bitselectCode = simd(82)
const bitselect = (a: V128, b: V128, mask: V128): V128 => make('v128', bitselectCode, [a, b, mask])

/** What every lane shape has. Lane selection is relaxed SIMD (one blend), or a bit selection. */
function shape(count: number, set: Setter, relaxedLaneSelect: number) {
  const constantOf = constant(count, set)
  const selectCode = simd(relaxedLaneSelect)
  return {
    const: constantOf,
    /** `lift(x)`: x itself, or a constant vector for a plain number. */
    lift: (x: Lanes): V128 => (typeof x === 'number' ? constantOf(x) : x),
    shuffle: shuffle(count),
    /** `select(mask, a, b)`: lane of a where the mask's lane is all ones, of b where it is all zeros. */
    select: (mask: V128, a: V128, b: V128): V128 =>
      make('v128', selectCode, [a, b, mask], bitselect(a, b, mask)),
  }
}

const loads = {
  load: 0,
  load8x8S: 1,
  load8x8U: 2,
  load16x4S: 3,
  load16x4U: 4,
  load32x2S: 5,
  load32x2U: 6,
  load8Splat: 7,
  load16Splat: 8,
  load32Splat: 9,
  load64Splat: 10,
  load32Zero: 92,
  load64Zero: 93,
} as const

const loadLane = (opcode: number) => {
  const log2 = opcode - 84
  const code = simd(opcode)
  return (ptr: I32In, x: V128, lane: number, offset = 0): V128 => {
    checkLane(lane, 16 >> log2)
    return make('v128', [...memoryCode(code, log2, offset), lane], [liftI32(ptr), x])
  }
}

/** Bits, loads and lane loads. Loads need no alignment. */
export const v128 = {
  const: (bytes: readonly number[]): V128 => i8x16.const(...bytes),
  ...define(
    // The alignment is only a hint; 0 ("none promised") costs nothing on today's engines.
    define(loads, (opcode): LoadCode => [simd(opcode), 0]),
    load('v128'),
  ),
  /** `load32Lane(ptr, x, lane, offset)`: x with one lane read from memory. */
  ...define(consecutive(['load8Lane', 'load16Lane', 'load32Lane', 'load64Lane'], 84), loadLane),
  ...define({ not: 77 }, unary(liftV128)),
  /** `andnot(a, b)` is a & ~b. */
  ...define(consecutive(['and', 'andnot', 'or', 'xor'], 78), binary(liftV128)),
  ...define({ anyTrue: 83 }, test),
  /** `bitselect(a, b, mask)`: bits of a where the mask is 1, of b where it is 0. */
  bitselect,
  /** `select(condition, a, b)`: whole vectors by a scalar condition. */
  select: select('v128', liftV128),
} as const

const floatCompare = ['eq', 'ne', 'lt', 'gt', 'le', 'ge'] as const
const floatArithmetic = ['add', 'sub', 'mul', 'div', 'min', 'max', 'pmin', 'pmax'] as const

function floatShape(count: 4 | 2, set: Setter, base: readonly number[]) {
  const [compare = 0, arithmetic = 0, madd = 0, relaxedMin = 0, laneSelect = 0] = base
  const common = shape(count, set, laneSelect)
  const { lift } = common
  const ops = {
    ...common,
    ...define(consecutive(floatCompare, compare), binary(lift)),
    ...define({ abs: arithmetic - 4, neg: arithmetic - 3, sqrt: arithmetic - 1 }, unary(lift)),
    /** `pmin(a, b)` is b < a ? b : a and `pmax(a, b)` is a < b ? b : a; `min` and `max` propagate NaN. */
    ...define(consecutive(floatArithmetic, arithmetic), binary(lift)),
  }
  const relaxed2 = (code: readonly number[], other: Binary<Lanes>) => (a: Lanes, b: Lanes) =>
    make('v128', code, [lift(a), lift(b)], other(a, b))
  const maddCode = simd(madd)
  const nmaddCode = simd(madd + 1)
  return {
    ...ops,
    /**
     * a·b + c. With relaxed SIMD one instruction, rounded once where the hardware has FMA; without, multiply
     * and add, rounded twice.
     */
    madd: (a: Lanes, b: Lanes, c: Lanes): V128 =>
      make('v128', maddCode, [lift(a), lift(b), lift(c)], ops.add(ops.mul(a, b), c)),
    /** Computes c − a·b with the instructions, and the rounding, of `madd`. */
    nmadd: (a: Lanes, b: Lanes, c: Lanes): V128 =>
      make('v128', nmaddCode, [lift(a), lift(b), lift(c)], ops.sub(c, ops.mul(a, b))),
    /** Takes the smaller lanes by one instruction; which operand wins for NaN or zeros of unlike sign, hardware chooses. */
    relaxedMin: relaxed2(simd(relaxedMin), ops.pmin),
    relaxedMax: relaxed2(simd(relaxedMin + 1), ops.pmax),
  }
}

const setF32: Setter = (view, byte, value) => view.setFloat32(byte, value, true)
const setF64: Setter = (view, byte, value) => view.setFloat64(byte, value, true)
const setI8: Setter = (view, byte, value) => view.setInt8(byte, value)
const setI16: Setter = (view, byte, value) => view.setInt16(byte, value, true)
const setI32: Setter = (view, byte, value) => view.setInt32(byte, value, true)
const setI64: Setter = (view, byte, value) => view.setBigInt64(byte, BigInt(value), true)

/** Four 32-bit floats. */
export const f32x4 = {
  ...floatShape(4, setF32, [65, 228, 0x105, 0x10d, 0x10b]),
  ...define(consecutive(['ceil', 'floor', 'trunc', 'nearest'], 103), unary(liftV128)),
  ...define({ demoteF64x2Zero: 94, convertI32x4S: 250, convertI32x4U: 251 }, unary(liftV128)),
  ...define({ splat: 19 }, unary<F32In>(liftF32)),
  ...define({ extractLane: 31 }, extractLane(4, 'f32')),
  ...define({ replaceLane: 32 }, replaceLane<F32In>(4, liftF32)),
} as const

/** Two 64-bit floats. */
export const f64x2 = {
  ...floatShape(2, setF64, [71, 240, 0x107, 0x10f, 0x10c]),
  ...define({ ceil: 116, floor: 117, trunc: 122, nearest: 148 }, unary(liftV128)),
  ...define({ promoteLowF32x4: 95, convertLowI32x4S: 254, convertLowI32x4U: 255 }, unary(liftV128)),
  ...define({ splat: 20 }, unary<F64In>(liftF64)),
  ...define({ extractLane: 33 }, extractLane(2, 'f64')),
  ...define({ replaceLane: 34 }, replaceLane<F64In>(2, liftF64)),
} as const

const shifts = ['shl', 'shrS', 'shrU'] as const
const intCompare = ['eq', 'ne', 'ltS', 'ltU', 'gtS', 'gtU', 'leS', 'leU', 'geS', 'geU'] as const
const minMax = ['minS', 'minU', 'maxS', 'maxU'] as const

/** What the four integer shapes share. `base`: opcodes of abs, shl, relaxed lane selection. */
function intShape(count: number, set: Setter, base: readonly number[]) {
  const [abs = 0, shl = 0, laneSelect = 0] = base
  const common = shape(count, set, laneSelect)
  return {
    ...common,
    ...define({ abs, neg: abs + 1 }, unary(common.lift)),
    ...define({ allTrue: abs + 3, bitmask: abs + 4 }, test),
    ...define(consecutive(shifts, shl), shift),
    ...define({ add: shl + 3, sub: shl + 6 }, binary(common.lift)),
  }
}

const i32x4Shape = intShape(4, setI32, [160, 171, 0x10b])
/** Relaxed conversions differ only for NaN and values out of range: 0 and the nearest bound when strict. */
const relaxedTrunc = (opcode: number, strict: number): Unary<V128> => {
  const code = simd(opcode)
  const saturating = unary(liftV128)(strict)
  return (x) => make('v128', code, [x], saturating(x))
}

/** Four 32-bit integers. */
export const i32x4 = {
  ...i32x4Shape,
  ...define(
    { mul: 181, ...consecutive(minMax, 182), ...consecutive(intCompare, 55) },
    binary(i32x4Shape.lift),
  ),
  ...define({ dotI16x8S: 186 }, binary(liftV128)),
  ...define(
    consecutive(['extmulLowI16x8S', 'extmulHighI16x8S', 'extmulLowI16x8U', 'extmulHighI16x8U'], 188),
    binary(liftV128),
  ),
  ...define(
    consecutive(['extendLowI16x8S', 'extendHighI16x8S', 'extendLowI16x8U', 'extendHighI16x8U'], 167),
    unary(liftV128),
  ),
  ...define({ extaddPairwiseI16x8S: 126, extaddPairwiseI16x8U: 127 }, unary(liftV128)),
  ...define(consecutive(['truncSatF32x4S', 'truncSatF32x4U'], 248), unary(liftV128)),
  ...define(consecutive(['truncSatF64x2SZero', 'truncSatF64x2UZero'], 252), unary(liftV128)),
  relaxedTruncF32x4S: relaxedTrunc(0x101, 248),
  relaxedTruncF32x4U: relaxedTrunc(0x102, 249),
  ...define({ splat: 17 }, unary<I32In>(liftI32)),
  ...define({ extractLane: 27 }, extractLane(4, 'i32')),
  ...define({ replaceLane: 28 }, replaceLane<I32In>(4, liftI32)),
} as const

const i64x2Shape = intShape(2, setI64, [192, 203, 0x10c])
/** Two 64-bit integers. */
export const i64x2 = {
  ...i64x2Shape,
  ...define({ mul: 213 }, binary(i64x2Shape.lift)),
  ...define(consecutive(['eq', 'ne', 'ltS', 'gtS', 'leS', 'geS'], 214), binary(i64x2Shape.lift)),
  ...define(
    consecutive(['extmulLowI32x4S', 'extmulHighI32x4S', 'extmulLowI32x4U', 'extmulHighI32x4U'], 220),
    binary(liftV128),
  ),
  ...define(
    consecutive(['extendLowI32x4S', 'extendHighI32x4S', 'extendLowI32x4U', 'extendHighI32x4U'], 199),
    unary(liftV128),
  ),
  ...define({ splat: 18 }, unary<I64In>(liftI64)),
  ...define({ extractLane: 29 }, extractLane(2, 'i64')),
  ...define({ replaceLane: 30 }, replaceLane<I64In>(2, liftI64)),
} as const

const i16x8Shape = intShape(8, setI16, [128, 139, 0x10a])
/** Eight 16-bit integers. */
export const i16x8 = {
  ...i16x8Shape,
  ...define(
    { mul: 149, avgrU: 155, ...consecutive(minMax, 150), ...consecutive(intCompare, 45) },
    binary(i16x8Shape.lift),
  ),
  ...define({ addSatS: 143, addSatU: 144, subSatS: 146, subSatU: 147 }, binary(i16x8Shape.lift)),
  ...define({ q15mulrSatS: 130, narrowI32x4S: 133, narrowI32x4U: 134 }, binary(liftV128)),
  ...define(
    consecutive(['extmulLowI8x16S', 'extmulHighI8x16S', 'extmulLowI8x16U', 'extmulHighI8x16U'], 156),
    binary(liftV128),
  ),
  ...define(
    consecutive(['extendLowI8x16S', 'extendHighI8x16S', 'extendLowI8x16U', 'extendHighI8x16U'], 135),
    unary(liftV128),
  ),
  ...define({ extaddPairwiseI8x16S: 124, extaddPairwiseI8x16U: 125 }, unary(liftV128)),
  ...define({ splat: 16 }, unary<I32In>(liftI32)),
  ...define({ extractLaneS: 24, extractLaneU: 25 }, extractLane(8, 'i32')),
  ...define({ replaceLane: 26 }, replaceLane<I32In>(8, liftI32)),
} as const

const i8x16Shape = intShape(16, setI8, [96, 107, 0x109])
/** Sixteen 8-bit integers. */
export const i8x16 = {
  ...i8x16Shape,
  ...define(
    { avgrU: 123, ...consecutive(minMax, 118), ...consecutive(intCompare, 35) },
    binary(i8x16Shape.lift),
  ),
  ...define({ addSatS: 111, addSatU: 112, subSatS: 114, subSatU: 115 }, binary(i8x16Shape.lift)),
  ...define({ popcnt: 98 }, unary(liftV128)),
  /** `swizzle(x, at)`: byte i of the result is byte at[i] of x, or 0 where at[i] ≥ 16. */
  ...define({ narrowI16x8S: 101, narrowI16x8U: 102, swizzle: 14 }, binary(liftV128)),
  ...define({ splat: 15 }, unary<I32In>(liftI32)),
  ...define({ extractLaneS: 21, extractLaneU: 22 }, extractLane(16, 'i32')),
  ...define({ replaceLane: 23 }, replaceLane<I32In>(16, liftI32)),
} as const
