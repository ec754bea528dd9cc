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
  liftF32,
  liftF64,
  liftI32,
  liftV128,
  make,
  type Node,
  type V128,
  type ValType,
} from './node.ts'
import { checkLane, consecutive, define, type LoadCode, load, memoryCode, select } from './scalar-ops.ts'

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

const extractLane =
  <R extends ValType>(type: R) =>
  (opcode: number) => {
    const code = simd(opcode)
    return (x: V128, lane: number) => {
      checkLane(lane, 4)
      return make(type, [...code, lane], [x])
    }
  }

const replaceLane = (opcode: number) => {
  const code = simd(opcode)
  return (x: V128, lane: number, value: I32In): V128 => {
    checkLane(lane, 4)
    return make('v128', [...code, lane], [x, liftI32(value)])
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
  load32Splat: 9,
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
  ...define({ load32Lane: 86 }, loadLane),
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
  const [compare = 0, arithmetic = 0, madd = 0, laneSelect = 0] = base
  const common = shape(count, set, laneSelect)
  const { lift } = common
  const ops = {
    ...common,
    ...define(consecutive(floatCompare, compare), binary(lift)),
    ...define({ abs: arithmetic - 4, neg: arithmetic - 3, sqrt: arithmetic - 1 }, unary(lift)),
    /** `pmin(a, b)` is b < a ? b : a and `pmax(a, b)` is a < b ? b : a; `min` and `max` propagate NaN. */
    ...define(consecutive(floatArithmetic, arithmetic), binary(lift)),
  }
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
  }
}

const setF32: Setter = (view, byte, value) => view.setFloat32(byte, value, true)
const setF64: Setter = (view, byte, value) => view.setFloat64(byte, value, true)
const setI8: Setter = (view, byte, value) => view.setInt8(byte, value)
const setI32: Setter = (view, byte, value) => view.setInt32(byte, value, true)

/** Four 32-bit floats. */
export const f32x4 = {
  ...floatShape(4, setF32, [65, 228, 0x105, 0x10b]),
  ...define(consecutive(['ceil', 'floor', 'trunc', 'nearest'], 103), unary(liftV128)),
  ...define({ demoteF64x2Zero: 94, convertI32x4S: 250 }, unary(liftV128)),
  ...define({ splat: 19 }, unary<F32In>(liftF32)),
  ...define({ extractLane: 31 }, extractLane('f32')),
} as const

/** Two 64-bit floats. */
export const f64x2 = {
  ...floatShape(2, setF64, [71, 240, 0x107, 0x10c]),
  ...define({ nearest: 148, promoteLowF32x4: 95, convertLowI32x4S: 254 }, unary(liftV128)),
  ...define({ splat: 20 }, unary<F64In>(liftF64)),
} as const

const shifts = ['shl', 'shrS', 'shrU'] as const
const intCompare = ['eq', 'ne', 'ltS', 'ltU', 'gtS', 'gtU', 'leS', 'leU', 'geS', 'geU'] as const

const i32x4Shape = shape(4, setI32, 0x10b)
/** Four 32-bit integers. */
export const i32x4 = {
  ...i32x4Shape,
  ...define(
    {
      ...{ add: 174, sub: 177, mul: 181, minS: 182, maxS: 184 },
      ...consecutive(intCompare, 55),
    },
    binary(i32x4Shape.lift),
  ),
  ...define(consecutive(shifts, 171), shift),
  ...define({ bitmask: 164 }, test),
  ...define({ abs: 160, neg: 161, extendLowI16x8U: 169, truncSatF32x4S: 248 }, unary<Lanes>(i32x4Shape.lift)),
  ...define({ splat: 17 }, unary<I32In>(liftI32)),
  ...define({ extractLane: 27 }, extractLane('i32')),
  ...define({ replaceLane: 28 }, replaceLane),
} as const

/** Two 64-bit integers. */
export const i64x2 = { ...define({ shl: 203 }, shift) } as const

/** Eight 16-bit integers. */
export const i16x8 = {
  ...define({ narrowI32x4U: 134, maxS: 152, maxU: 153 }, binary(liftV128)),
  ...define({ extendLowI8x16U: 137 }, unary(liftV128)),
} as const

/** Sixteen 8-bit integers. */
export const i8x16 = {
  const: constant(16, setI8),
  /** `swizzle(x, at)`: byte i of the result is byte `at[i]` of x, or 0 where there is none. */
  ...define({ narrowI16x8U: 102, swizzle: 14 }, binary(liftV128)),
} as const
