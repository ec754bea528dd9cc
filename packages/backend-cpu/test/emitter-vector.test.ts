/** Every vector operator of the emitter, lane by lane against JavaScript: equal to the bit. */
import { describe, expect, test } from 'vitest'
import type { V128 } from '../src/wasm/index.ts'
import {
  f32x4,
  f64x2,
  i8x16,
  i16x8,
  i32,
  i32x4,
  i64x2,
  ModuleBuilder,
  type Node,
  v128,
} from '../src/wasm/index.ts'

const memory = new WebAssembly.Memory({ initial: 1 })
const bytes = new Uint8Array(memory.buffer)

/** Runs an expression of up to three vectors, which lie at 0, 16 and 32; the result as 16 bytes (an i32: 4). */
function compile(build: (a: V128, b: V128, c: V128) => Node): () => Uint8Array {
  const m = new ModuleBuilder()
  m.kernel('run', (f) => f.store(48, build(v128.load(0), v128.load(0, 16), v128.load(32))))
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(m.build()), { env: { memory } })
  return () => {
    bytes.fill(0, 48, 64)
    ;(exports.run as (...rows: number[]) => void)(0, 0, 0, 0)
    return bytes.slice(48, 64)
  }
}

interface Shape {
  readonly bits: number
  readonly get: (view: DataView, at: number) => number
  readonly set: (view: DataView, at: number, value: number) => void
}

const view = new DataView(memory.buffer)
const int = (bits: number): Shape => ({
  bits,
  get: (v, at) =>
    bits === 8
      ? v.getInt8(at)
      : bits === 16
        ? v.getInt16(at, true)
        : bits === 32
          ? v.getInt32(at, true)
          : Number(v.getBigInt64(at, true)),
  set: (v, at, x) => {
    if (bits === 8) v.setInt8(at, x)
    else if (bits === 16) v.setInt16(at, x, true)
    else if (bits === 32) v.setInt32(at, x, true)
    else v.setBigInt64(at, BigInt(x), true)
  },
})
const float = (bits: number): Shape => ({
  bits,
  get: (v, at) => (bits === 32 ? v.getFloat32(at, true) : v.getFloat64(at, true)),
  set: (v, at, x) => (bits === 32 ? v.setFloat32(at, x, true) : v.setFloat64(at, x, true)),
})

/** A lane-wise operator: its name, how to build it, what one lane of the result is. */
type Case = readonly [
  name: string,
  build: (a: V128, b: V128, c: V128) => Node,
  js: (a: number, b: number, c: number) => number,
  out?: Shape,
]

function check(shape: Shape, values: readonly number[], cases: readonly Case[]): void {
  const lanes = 128 / shape.bits
  const width = shape.bits / 8
  for (const [name, build, js, out = shape] of cases) {
    const run = compile(build)
    // Steps without a common divisor walk through all combinations of values.
    for (let start = 0; start < values.length * 7; start++) {
      const operands = Array.from({ length: 3 * lanes }, (_, i) => {
        const operand = Math.floor(i / lanes)
        return values[(start * [1, 3, 5][operand] + i * [1, 2, 3][operand]) % values.length]
      })
      operands.forEach((value, i) => {
        shape.set(view, i * width, value)
      })
      const result = new DataView(run().buffer)
      for (let lane = 0; lane < lanes; lane++) {
        const [a, b, c] = [operands[lane], operands[lanes + lane], operands[2 * lanes + lane]]
        // What the lane can hold of the exact result.
        const want = new DataView(new ArrayBuffer(16))
        out.set(want, 0, js(a, b, c))
        const got = out.get(result, (lane * out.bits) / 8)
        expect(got, `${name}(${a}, ${b}, ${c})`).toBe(out.get(want, 0))
      }
    }
  }
}

const fr = Math.fround
const mask = (x: boolean) => (x ? -1 : 0)
const min = (a: number, b: number) => Math.min(a, b)
const max = (a: number, b: number) => Math.max(a, b)
// The second where it is smaller (larger): not Math.min, for NaN and for zeros of unlike sign.
const second = (condition: boolean, a: number, b: number) => (condition ? b : a)
const pmin = (a: number, b: number) => second(b < a, a, b)
const pmax = (a: number, b: number) => second(a < b, a, b)
const nearest = (x: number) => {
  const r = Math.round(x)
  return r - x === 0.5 && r % 2 !== 0 ? r - 1 : r
}

describe.each([
  ['f32x4', f32x4, float(32), int(32), fr],
  ['f64x2', f64x2 as unknown as typeof f32x4, float(64), int(64), (x: number) => x],
] as const)('%s', (_, op, shape, masks, round) => {
  const values = [0, -0, 1, -1, 0.5, 1.5, 2.5, -2.5, 3.7, 1e-3, 1e10, -1e30, Infinity, -Infinity, NaN].map(
    round,
  )
  test('arithmetic', () => {
    check(shape, values, [
      ['add', op.add, (a, b) => a + b],
      ['sub', op.sub, (a, b) => a - b],
      ['mul', op.mul, (a, b) => a * b],
      ['div', op.div, (a, b) => a / b],
      ['min', op.min, min],
      ['max', op.max, max],
      ['pmin', op.pmin, pmin],
      ['pmax', op.pmax, pmax],
      ['abs', op.abs, Math.abs],
      ['neg', op.neg, (a) => -a],
      ['sqrt', op.sqrt, Math.sqrt],
      ['nearest', op.nearest, nearest],
      ['madd', op.madd, (a, b, c) => round(a * b) + c],
      ['nmadd', op.nmadd, (a, b, c) => c - round(a * b)],
      ['number operands', (a) => op.mul(op.add(a, 0.1), 3), (a) => round(a + round(0.1)) * 3],
      ['const', (a) => op.add(a, op.const(-1.5)), (a) => a - 1.5],
    ])
    // Of 64 bits there is what kernels use.
    if (shape.bits === 32)
      check(shape, values, [
        ['ceil', op.ceil, Math.ceil],
        ['floor', op.floor, Math.floor],
        ['trunc', op.trunc, Math.trunc],
      ])
  })
  test('comparison and selection', () => {
    check(shape, values, [
      ['eq', op.eq, (a, b) => mask(a === b), masks],
      ['ne', op.ne, (a, b) => mask(a !== b), masks],
      ['lt', op.lt, (a, b) => mask(a < b), masks],
      ['gt', op.gt, (a, b) => mask(a > b), masks],
      ['le', op.le, (a, b) => mask(a <= b), masks],
      ['ge', op.ge, (a, b) => mask(a >= b), masks],
      ['select', (a, b, c) => op.select(op.lt(a, b), b, c), (a, b, c) => (a < b ? b : c)],
      ['bitselect', (a, b, c) => v128.bitselect(b, c, op.lt(a, b)), (a, b, c) => (a < b ? b : c)],
    ])
  })
})

const ints = [
  0,
  1,
  2,
  3,
  7,
  100,
  127,
  128,
  255,
  -1,
  -2,
  -100,
  -128,
  1000,
  32767,
  -32768,
  70000,
  2 ** 31 - 1,
  -(2 ** 31),
]
describe('i32x4', () => {
  const [op, bits] = [i32x4, 32]
  const shape = int(bits)
  const s = (x: number) => Number(BigInt.asIntN(bits, BigInt(x)))
  const u = (x: number) => Number(BigInt.asUintN(bits, BigInt(x)))
  const values = ints.filter((x) => s(x) === x)
  test('arithmetic', () => {
    check(shape, values, [
      ['add', op.add, (a, b) => s(a + b)],
      ['sub', op.sub, (a, b) => s(a - b)],
      ['neg', op.neg, (a) => s(-a)],
      ['abs', op.abs, (a) => s(Math.abs(a))],
      ['number operands', (a) => op.sub(op.add(a, 5), 3), (a) => s(a + 2)],
      ['shl', (a) => op.shl(a, 3), (a) => s(a * 8)],
      ['shrS', (a) => op.shrS(a, 2), (a) => Math.floor(a / 4)],
    ])
    check(shape, values, [['shrU', (a) => op.shrU(a, 1), (a) => Math.floor(u(a) / 2)]])
    check(shape, values, [
      ['eq', op.eq, (a, b) => mask(a === b)],
      ['ne', op.ne, (a, b) => mask(a !== b)],
      ['ltS', op.ltS, (a, b) => mask(a < b)],
      ['gtS', op.gtS, (a, b) => mask(a > b)],
      ['leS', op.leS, (a, b) => mask(a <= b)],
      ['geS', op.geS, (a, b) => mask(a >= b)],
      ['select', (a, b, c) => op.select(op.ltS(a, b), b, c), (a, b, c) => (a < b ? b : c)],
      ['ltU', op.ltU, (a, b) => mask(u(a) < u(b))],
      ['gtU', op.gtU, (a, b) => mask(u(a) > u(b))],
      ['leU', op.leU, (a, b) => mask(u(a) <= u(b))],
      ['geU', op.geU, (a, b) => mask(u(a) >= u(b))],
      ['minS', op.minS, min],
      ['maxS', op.maxS, max],
    ])
    check(
      shape,
      values.filter((x) => Math.abs(x) < 2 ** 26),
      [['mul', op.mul, (a, b) => s(a * b)]],
    )
  })
  test('reductions to a bit', () => {
    const run = compile((a) => op.bitmask(a))
    const anyTrue = compile((a) => v128.anyTrue(a))
    const lanes = 128 / bits
    for (const set of [0, 1, 2, 2 ** lanes - 1, 2 ** (lanes - 1)]) {
      for (let lane = 0; lane < lanes; lane++) shape.set(view, (lane * bits) / 8, (set >> lane) & 1 ? -1 : 0)
      expect(new DataView(run().buffer).getInt32(0, true)).toBe(set)
      expect(anyTrue()[0]).toBe(set === 0 ? 0 : 1)
    }
  })
})

test('bits', () => {
  check(int(32), ints, [
    ['and', v128.and, (a, b) => a & b],
    ['andnot', v128.andnot, (a, b) => a & ~b],
    ['or', v128.or, (a, b) => a | b],
    ['xor', v128.xor, (a, b) => a ^ b],
    ['not', v128.not, (a) => ~a],
    ['bitselect', v128.bitselect, (a, b, c) => (a & c) | (b & ~c)],
    ['select', (a, b) => v128.select(7, a, b), (a) => a],
    ['select', (a, b) => v128.select(i32.load(0).ne(i32.load(0)), a, b), (_, b) => b],
  ])
})

test('conversions of 32-bit lanes', () => {
  const saturate = (low: number, high: number) => (x: number) =>
    Number.isNaN(x) ? 0 : Math.min(high, Math.max(low, Math.trunc(x)))
  const i = int(32)
  check(int(32), ints, [['convertI32x4S', f32x4.convertI32x4S, (a) => a, float(32)]])
  const floats = [0, -0.9, 1.9, -1.9, 1e6, 3e9, -3e9, 5e9, NaN, Infinity, -Infinity].map(fr)
  check(float(32), floats, [['truncSatF32x4S', i32x4.truncSatF32x4S, saturate(-(2 ** 31), 2 ** 31 - 1), i]])
})

/** Operators that change the number of lanes, on one example each: a, b as given, the result by JavaScript. */
test('widening, narrowing', () => {
  const a8 = [1, -2, 3, 127, -128, 6, 7, 8, -9, 10, -11, 12, 13, 14, 15, -16]
  const a16 = [1, -2, 300, 32767, -32768, 6, -7, 8]
  const b16 = [2, 3, -4, 32767, -32768, 60, 70, -80]
  const a32 = [1, -2, 70000, -(2 ** 31)]
  const b32 = [3, 4, -70000, 2 ** 31 - 1]
  const u = (bits: number) => (x: number) => (x < 0 ? x + 2 ** bits : x)
  const low = <T>(x: T[]) => x.slice(0, x.length / 2)
  const clamp = (min: number, max: number) => (x: number) => Math.min(max, Math.max(min, x))
  type Array = Int8Array | Int16Array | Int32Array | Float32Array | Float64Array | BigInt64Array
  const run = (build: (a: V128, b: V128) => V128, a: Array, b: Array, wants: Array) => {
    bytes.set(new Uint8Array(a.buffer), 0)
    bytes.set(new Uint8Array(b.buffer), 16)
    expect(compile(build)()).toEqual(new Uint8Array(wants.buffer))
  }
  const x8 = Int8Array.from(a8)
  const x16 = Int16Array.from(a16)
  const y16 = Int16Array.from(b16)
  const x32 = Int32Array.from(a32)
  const y32 = Int32Array.from(b32)
  const to16 = (x: number[]) => Int16Array.from(x)
  const to32 = (x: number[]) => Int32Array.from(x)

  run(i16x8.extendLowI8x16U, x8, x8, to16(low(a8).map(u(8))))
  run(i32x4.extendLowI16x8U, x16, y16, to32(low(a16).map(u(16))))
  run(i8x16.narrowI16x8U, x16, y16, Int8Array.from([...a16, ...b16].map(clamp(0, 255))))
  run(i16x8.narrowI32x4U, x32, y32, to16([...a32, ...b32].map(clamp(0, 65535))))

  const d = Float64Array.from([1.9, -3e9])
  run(f64x2.convertLowI32x4S, x32, y32, Float64Array.from([1, -2]))
  run(f64x2.promoteLowF32x4, Float32Array.from([0.5, -3, 7, 8]), d, Float64Array.from([0.5, -3]))
  run(f32x4.demoteF64x2Zero, Float64Array.from([0.1, -3]), d, Float32Array.from([0.1, -3, 0, 0]))
})

test('lanes: splat, extract, replace, shuffle, constants', () => {
  const source = Uint8Array.from({ length: 32 }, (_, i) => 200 + i)
  bytes.set(source, 0)
  const word = (x: Uint8Array) => new DataView(x.buffer)
  for (let lane = 0; lane < 4; lane++) {
    expect(word(compile((a) => i32x4.extractLane(a, lane))()).getInt32(0, true)).toBe(
      view.getInt32(4 * lane, true),
    )
    expect(word(compile((a) => f32x4.extractLane(a, lane))()).getInt32(0, true)).toBe(
      view.getInt32(4 * lane, true),
    )
    expect(word(compile((a) => i32x4.replaceLane(a, lane, 5))()).getInt32(4 * lane, true)).toBe(5)
  }
  const same = (build: (a: V128, b: V128) => V128, want: ArrayBufferView) => {
    expect(compile(build)()).toEqual(new Uint8Array(want.buffer))
  }
  same(() => i32x4.splat(-3), new Int32Array(4).fill(-3))
  same(() => f32x4.splat(0.1), new Float32Array(4).fill(0.1))
  same(() => f64x2.splat(0.1), new Float64Array(2).fill(0.1))
  same(() => f32x4.const(1, 2, 3, 4), Float32Array.of(1, 2, 3, 4))
  same(() => f64x2.const(1, 2), Float64Array.of(1, 2))
  same(() => i32x4.const(1, -2, 3, 0xffffffff), Int32Array.of(1, -2, 3, -1))
  same(() => v128.const([...source.subarray(0, 16)]), source.slice(0, 16))
  const u32 = new Uint32Array(source.buffer)
  same(
    (a, b) => i32x4.shuffle(a, b, [7, 0, 5, 2]),
    Uint32Array.from([7, 0, 5, 2], (i) => u32[i]),
  )
  same(
    (a, b) => f32x4.shuffle(a, b, [1, 1, 4, 4]),
    Uint32Array.from([1, 1, 4, 4], (i) => u32[i]),
  )
  const at = [15, 0, -1, 3, 16, 127, -128, 8, 1, 2, 4, 5, 6, 7, 9, 10]
  same(
    (a) => i8x16.swizzle(a, i8x16.const(...at)),
    Uint8Array.from(at, (i) => (i >= 0 && i < 16 ? source[i] : 0)),
  )
  const [shorts, others] = [new Int16Array(source.buffer, 0, 8), new Int16Array(source.buffer, 16, 8)]
  same(
    (a, b) => i16x8.maxS(a, b),
    Int16Array.from(shorts, (v, i) => Math.max(v, others[i])),
  )
  same(
    (a, b) => i16x8.maxU(a, b),
    Uint16Array.from(shorts, (v, i) => Math.max(v & 0xffff, others[i] & 0xffff)),
  )
  same(
    (a) => i64x2.shl(a, 5),
    BigUint64Array.from([0, 8], (i) => BigInt.asUintN(64, view.getBigUint64(i, true) << 5n)),
  )
  expect(() => f32x4.extractLane(f32x4.const(0), 4)).toThrow(RangeError)
  expect(() => f32x4.const(1, 2)).toThrow(RangeError)
  expect(() => i32x4.shuffle(i32x4.const(0), i32x4.const(0), [0, 1, 2, 8])).toThrow(RangeError)
})
