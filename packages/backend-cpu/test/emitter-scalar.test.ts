/** Every scalar operator of the emitter, computed by WebAssembly and by JavaScript: equal to the bit. */
import { describe, expect, test } from 'vitest'
import { f32, f64, i32, i64, ModuleBuilder, type Node, type ValType } from '../src/wasm/index.ts'

type Scalar = number | bigint

/** Compiles a function of scalars and calls it. */
function compile(
  params: readonly ValType[],
  body: (...args: never[]) => Node,
): (...args: Scalar[]) => Scalar {
  const m = new ModuleBuilder()
  const func = m.func(params, (_, ...args) => body(...(args as never[])))
  m.export('run', func)
  const memory = new WebAssembly.Memory({ initial: 1 })
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(m.build()), { env: { memory } })
  return exports.run as (...args: Scalar[]) => Scalar
}

const ints = [0, 1, 2, 5, 31, 33, 127, 128, -1, -2, -128, 0x12345678, 0x7fffffff, -0x80000000]
const longs = [...ints.map(BigInt), 0x0123456789abcdefn, 0x7fffffffffffffffn, -0x8000000000000000n, 1n << 40n]
const floats = [0, -0, 1, -1, 0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e-3, 1e10, -1e30, Infinity, -Infinity, NaN]

const fr = Math.fround
const u32 = (x: number) => x >>> 0
const s64 = (x: bigint) => BigInt.asIntN(64, x)
const u64 = (x: bigint) => BigInt.asUintN(64, x)
const bool = (x: boolean) => (x ? 1 : 0)
const nearest = (x: number) => {
  const r = Math.round(x)
  return r - x === 0.5 && r % 2 !== 0 ? r - 1 : r
}
const copysign = (x: number, y: number) => {
  const negative = y < 0 || Object.is(y, -0)
  return negative ? -Math.abs(x) : Math.abs(x)
}

type Case = readonly [name: string, build: (...args: never[]) => Node, js: (...args: never[]) => Scalar]

function check(cases: readonly Case[], params: readonly ValType[], inputs: readonly Scalar[]): void {
  for (const [name, build, js] of cases) {
    const run = compile(params.slice(0, build.length), build)
    for (const a of inputs) {
      for (const b of build.length > 1 ? inputs : [a]) {
        const got = run(a, b)
        const want = js(a as never, b as never)
        expect(got, `${name}(${a}, ${b})`).toBe(want)
      }
    }
  }
}

test('i32', () => {
  type A = Parameters<typeof i32.add>[0]
  const two = (k: Exclude<keyof typeof i32, 'const' | 'select'>) => (a: A, b: A) =>
    (i32[k] as (a: A, b: A) => Node)(a, b)
  const cases: Case[] = [
    ['add', two('add'), (a: number, b: number) => (a + b) | 0],
    ['sub', two('sub'), (a: number, b: number) => (a - b) | 0],
    ['mul', two('mul'), (a: number, b: number) => Math.imul(a, b)],
    ['and', two('and'), (a: number, b: number) => a & b],
    ['or', two('or'), (a: number, b: number) => a | b],
    ['xor', two('xor'), (a: number, b: number) => a ^ b],
    ['shl', two('shl'), (a: number, b: number) => a << b],
    ['shrS', two('shrS'), (a: number, b: number) => a >> b],
    ['shrU', two('shrU'), (a: number, b: number) => (a >>> b) | 0],
    ['rotl', two('rotl'), (a: number, b: number) => (a << b) | (b & 31 ? a >>> (32 - (b & 31)) : 0)],
    ['rotr', two('rotr'), (a: number, b: number) => (b & 31 ? a << (32 - (b & 31)) : 0) | (a >>> b)],
    ['eq', two('eq'), (a: number, b: number) => bool(a === b)],
    ['ne', two('ne'), (a: number, b: number) => bool(a !== b)],
    ['ltS', two('ltS'), (a: number, b: number) => bool(a < b)],
    ['ltU', two('ltU'), (a: number, b: number) => bool(u32(a) < u32(b))],
    ['gtS', two('gtS'), (a: number, b: number) => bool(a > b)],
    ['gtU', two('gtU'), (a: number, b: number) => bool(u32(a) > u32(b))],
    ['leS', two('leS'), (a: number, b: number) => bool(a <= b)],
    ['leU', two('leU'), (a: number, b: number) => bool(u32(a) <= u32(b))],
    ['geS', two('geS'), (a: number, b: number) => bool(a >= b)],
    ['geU', two('geU'), (a: number, b: number) => bool(u32(a) >= u32(b))],
    ['eqz', (a: A) => i32.eqz(a), (a: number) => bool(a === 0)],
    ['clz', (a: A) => i32.clz(a), (a: number) => Math.clz32(a)],
    ['ctz', (a: A) => i32.ctz(a), (a: number) => (a === 0 ? 32 : 31 - Math.clz32(a & -a))],
    ['popcnt', (a: A) => i32.popcnt(a), (a: number) => u32(a).toString(2).replaceAll('0', '').length],
    ['select', (a: A, b: A) => i32.select(i32.ltS(a, b), a, b), (a: number, b: number) => Math.min(a, b)],
    ['const', (a: A) => i32.add(a, -129), (a: number) => (a - 129) | 0],
    ['const u', (a: A) => i32.add(a, 0xfffffff0), (a: number) => (a - 16) | 0],
    [
      'methods',
      (a: A, b: A) => i32.add(a, 1).mul(b).ltS(5),
      (a: number, b: number) => bool(Math.imul(a + 1, b) < 5),
    ],
  ]
  check(cases, ['i32', 'i32'], ints)
  const division: Case[] = [
    ['divS', two('divS'), (a: number, b: number) => (a / b) | 0],
    ['divU', two('divU'), (a: number, b: number) => (u32(a) / u32(b)) | 0],
    ['remS', two('remS'), (a: number, b: number) => (a % b) | 0],
    ['remU', two('remU'), (a: number, b: number) => (u32(a) % u32(b)) | 0],
  ]
  // 0 and −2³¹ / −1 trap.
  check(
    division,
    ['i32', 'i32'],
    ints.filter((x) => x !== 0 && x !== -0x80000000),
  )
})

test('i64', () => {
  type A = Parameters<typeof i64.add>[0]
  const two =
    (k: 'add' | 'sub' | 'mul' | 'and' | 'or' | 'xor' | 'shl' | 'shrS' | 'shrU' | 'ltS' | 'ltU' | 'geU') =>
    (a: A, b: A) =>
      (i64[k] as (a: A, b: A) => Node)(a, b)
  const cases: Case[] = [
    ['add', two('add'), (a: bigint, b: bigint) => s64(a + b)],
    ['sub', two('sub'), (a: bigint, b: bigint) => s64(a - b)],
    ['mul', two('mul'), (a: bigint, b: bigint) => s64(a * b)],
    ['and', two('and'), (a: bigint, b: bigint) => a & b],
    ['or', two('or'), (a: bigint, b: bigint) => a | b],
    ['xor', two('xor'), (a: bigint, b: bigint) => a ^ b],
    ['shl', two('shl'), (a: bigint, b: bigint) => s64(a << (u64(b) & 63n))],
    ['shrS', two('shrS'), (a: bigint, b: bigint) => a >> (u64(b) & 63n)],
    ['shrU', two('shrU'), (a: bigint, b: bigint) => s64(u64(a) >> (u64(b) & 63n))],
    ['rotl', (a: A) => i64.rotl(a, 8), (a: bigint) => s64((u64(a) << 8n) | (u64(a) >> 56n))],
    ['rotr', (a: A) => i64.rotr(a, 8n), (a: bigint) => s64((u64(a) >> 8n) | (u64(a) << 56n))],
    ['ltS', two('ltS'), (a: bigint, b: bigint) => bool(a < b)],
    ['ltU', two('ltU'), (a: bigint, b: bigint) => bool(u64(a) < u64(b))],
    ['geU', two('geU'), (a: bigint, b: bigint) => bool(u64(a) >= u64(b))],
    ['eq', (a: A, b: A) => i64.eq(a, b), (a: bigint, b: bigint) => bool(a === b)],
    ['gtS', (a: A, b: A) => i64.gtS(a, b), (a: bigint, b: bigint) => bool(a > b)],
    ['ne', (a: A, b: A) => i64.ne(a, b), (a: bigint, b: bigint) => bool(a !== b)],
    ['gtU', (a: A, b: A) => i64.gtU(a, b), (a: bigint, b: bigint) => bool(u64(a) > u64(b))],
    ['leS', (a: A, b: A) => i64.leS(a, b), (a: bigint, b: bigint) => bool(a <= b)],
    ['leU', (a: A, b: A) => i64.leU(a, b), (a: bigint, b: bigint) => bool(u64(a) <= u64(b))],
    ['geS', (a: A, b: A) => i64.geS(a, b), (a: bigint, b: bigint) => bool(a >= b)],
    ['ctz', (a: A) => i64.ctz(a), (a: bigint) => BigInt(a === 0n ? 64 : u64(a & -a).toString(2).length - 1)],
    ['eqz', (a: A) => i64.eqz(a), (a: bigint) => bool(a === 0n)],
    ['popcnt', (a: A) => i64.popcnt(a), (a: bigint) => BigInt(u64(a).toString(2).replaceAll('0', '').length)],
    ['clz', (a: A) => i64.clz(a), (a: bigint) => BigInt(a === 0n ? 64 : 64 - u64(a).toString(2).length)],
    ['const', (a: A) => i64.xor(a, 0xfedcba9876543210n), (a: bigint) => s64(a ^ 0xfedcba9876543210n)],
    ['select', (a: A, b: A) => i64.select(i64.gtS(a, b), a, b), (a: bigint, b: bigint) => (a > b ? a : b)],
  ]
  check(cases, ['i64', 'i64'], longs)
  const division: Case[] = [
    ['divS', (a: A, b: A) => i64.divS(a, b), (a: bigint, b: bigint) => a / b],
    ['divU', (a: A, b: A) => i64.divU(a, b), (a: bigint, b: bigint) => s64(u64(a) / u64(b))],
    ['remS', (a: A, b: A) => i64.remS(a, b), (a: bigint, b: bigint) => a % b],
    ['remU', (a: A, b: A) => i64.remU(a, b), (a: bigint, b: bigint) => s64(u64(a) % u64(b))],
  ]
  check(
    division,
    ['i64', 'i64'],
    longs.filter((x) => x !== 0n && x > -0x8000000000000000n),
  )
})

describe.each([
  ['f32', f32, fr],
  ['f64', f64, (x: number) => x],
] as const)('%s', (type, ops, round) => {
  test('arithmetic and comparison', () => {
    type A = ReturnType<typeof f32.const>
    const op = ops as typeof f32
    const cases: Case[] = [
      ['add', (a: A, b: A) => op.add(a, b), (a: number, b: number) => round(a + b)],
      ['sub', (a: A, b: A) => op.sub(a, b), (a: number, b: number) => round(a - b)],
      ['mul', (a: A, b: A) => op.mul(a, b), (a: number, b: number) => round(a * b)],
      ['div', (a: A, b: A) => op.div(a, b), (a: number, b: number) => round(a / b)],
      ['min', (a: A, b: A) => op.min(a, b), Math.min],
      ['max', (a: A, b: A) => op.max(a, b), Math.max],
      [
        'copysign',
        (a: A, b: A) => op.copysign(a, op.select(op.eq(b, b), b, 1)),
        (a: number, b: number) => copysign(a, b),
      ],
      ['abs', (a: A) => op.abs(a), Math.abs],
      ['neg', (a: A) => op.neg(a), (a: number) => -a],
      ['ceil', (a: A) => op.ceil(a), Math.ceil],
      ['floor', (a: A) => op.floor(a), Math.floor],
      ['trunc', (a: A) => op.trunc(a), Math.trunc],
      ['nearest', (a: A) => op.nearest(a), nearest],
      ['sqrt', (a: A) => op.sqrt(a), (a: number) => round(Math.sqrt(a))],
      ['eq', (a: A, b: A) => op.eq(a, b), (a: number, b: number) => bool(a === b)],
      ['ne', (a: A, b: A) => op.ne(a, b), (a: number, b: number) => bool(a !== b)],
      ['lt', (a: A, b: A) => op.lt(a, b), (a: number, b: number) => bool(a < b)],
      ['gt', (a: A, b: A) => op.gt(a, b), (a: number, b: number) => bool(a > b)],
      ['le', (a: A, b: A) => op.le(a, b), (a: number, b: number) => bool(a <= b)],
      ['ge', (a: A, b: A) => op.ge(a, b), (a: number, b: number) => bool(a >= b)],
      ['madd', (a: A, b: A) => op.madd(a, b, 0.5), (a: number, b: number) => round(round(a * b) + 0.5)],
      ['nmadd', (a: A, b: A) => op.nmadd(a, b, 0.5), (a: number, b: number) => round(0.5 - round(a * b))],
      ['const', (a: A) => op.mul(a, 0.1), (a: number) => round(a * round(0.1))],
      [
        'method',
        (a: A, b: A) => a.add(1).mul(b).sqrt(),
        (a: number, b: number) => round(Math.sqrt(round(round(a + 1) * b))),
      ],
    ]
    check(cases, [type, type], floats.map(round))
  })
})

test('conversions between scalar types', () => {
  type I = Parameters<typeof i32.add>[0]
  type F = ReturnType<typeof f32.const>
  type D = ReturnType<typeof f64.const>
  check(
    [
      ['f32.convertI32S', (a: I) => f32.convertI32S(a), (a: number) => fr(a)],
      ['f64.convertI32S', (a: I) => f64.convertI32S(a), (a: number) => a],
    ],
    ['i32'],
    ints,
  )
  check([['f64.promoteF32', (a: F) => f64.promoteF32(a), (a: number) => a]], ['f32'], floats.map(fr))
  check(
    [['f32.demoteF64', (a: D) => f32.demoteF64(a), (a: number) => fr(a)]],
    ['f64'],
    [...floats, Math.PI, 1e-300],
  )
})

test('constants of every size survive their encoding', () => {
  for (let bit = 0; bit < 32; bit++) {
    for (const value of [2 ** bit, 2 ** bit - 1, -(2 ** bit), -(2 ** bit) - 1]) {
      if (value < -0x80000000) continue
      expect(compile([], () => i32.const(value))()).toBe(value | 0)
    }
  }
  for (let bit = 0n; bit < 64n; bit++) {
    for (const value of [1n << bit, (1n << bit) - 1n, -(1n << bit), -(1n << bit) - 1n]) {
      expect(compile([], () => i64.const(value))()).toBe(s64(value))
    }
  }
  expect(() => i32.const(0.5)).toThrow(RangeError)
  expect(() => i32.const(2 ** 32)).toThrow(RangeError)
})
