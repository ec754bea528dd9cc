/**
 * Core's typed scalar expressions as WebAssembly on four lanes. float32 is four floats, int32 four integers, bool a
 * mask: all ones or all zeros. A single element is computed in lane 0 of the same code.
 */

import { type Typed, typedPostOrder, UnsupportedOpError } from '@tilegrad/core'
import { type Gaussian, gaussian } from './gaussian.ts'
import { type Constants, type MathName, mathCode, pow } from './math.ts'
import { type FunctionBuilder, f32x4, i32x4, type V128, v128 } from './wasm/index.ts'

type Unary = Extract<Typed, { kind: 'unary' }>['op']
type Binary = Extract<Typed, { kind: 'binary' }>['op']
export type Leaf = Extract<Typed, { kind: 'input' | 'param' | 'index' | 'coord' }>

/** Values of nodes that have been emitted. */
export type Values = Map<Typed, V128>

/** Exponents that are known when code is made: by `pow` node. */
export type Powers = ReadonlyMap<Typed, number>

/**
 * Emits nodes, given in an order in which operands come first, and adds their values to `values`; nodes that are
 * there already are left out. `leaf` gives inputs (bools as masks), params, the index and coordinates.
 */
export function lowerNodes(
  f: FunctionBuilder,
  k: Constants,
  nodes: readonly Typed[],
  values: Values,
  leaf: (node: Leaf) => V128,
  powers: Powers,
): void {
  const gaussians = new Map<Typed, Gaussian | undefined>()
  for (const t of nodes) {
    const u = gaussianOf(t)
    if (u !== undefined) gaussians.set(u, undefined)
  }
  /** For an argument whose exponential is asked for: 1 + erf then comes with it. */
  const gaussianAt = (u: Typed | undefined): Gaussian | undefined => {
    if (u === undefined || !gaussians.has(u)) return undefined
    const known = gaussians.get(u) ?? gaussian(f, k, values.get(u) as V128)
    gaussians.set(u, known)
    return known
  }
  for (const t of nodes) {
    if (values.has(t)) continue
    const [a, b, c] = t.args.map((arg) => values.get(arg) as V128) as [V128, V128, V128]
    const value = gaussianAt(gaussianOf(t))?.density ?? gaussianAt(cumulativeOf(t))?.cumulative() ?? lower(t)
    values.set(t, t.kind === 'const' ? value : f.let(value))

    function lower(t: Typed): V128 {
      switch (t.kind) {
        case 'const':
          return constant(k, t)
        case 'unary':
          if (t.dtype === 'int32') return (ints1[t.op] ?? unsupported(t))(k, a)
          return t.op in floats1
            ? floats1[t.op as keyof typeof floats1](k, a)
            : mathCode(t.op as MathName, f, k, a)
        case 'binary':
          return binary(f, k, t, a, b, powers.get(t))
        case 'select':
          return i32x4.select(a, b, c)
        case 'cast':
          return cast(k, a, (t.args[0] as Typed).dtype, t.dtype)
        default:
          return leaf(t)
      }
    }
  }
}

/** The u of exp(−u·u), as in the derivative of erf. */
function gaussianOf(t: Typed): Typed | undefined {
  const square = t.args[0]?.args[0]
  const [minus] = t.args
  if (t.kind !== 'unary' || t.op !== 'exp' || minus?.kind !== 'unary' || minus.op !== 'neg') return undefined
  if (square?.kind !== 'binary' || square.op !== 'mul' || square.dtype !== 'float32') return undefined
  return square.args[0] === square.args[1] ? square.args[0] : undefined
}

/** The u of 1 + erf(u), as in GELU. */
function cumulativeOf(t: Typed): Typed | undefined {
  if (t.kind !== 'binary' || t.op !== 'add' || t.dtype !== 'float32') return undefined
  const [one, erf] = t.args as readonly [Typed, Typed]
  return one.kind === 'const' && one.value === 1 && erf.kind === 'unary' && erf.op === 'erf'
    ? erf.args[0]
    : undefined
}

/** Emits all of some expressions; their values. */
export function lowerTyped(
  f: FunctionBuilder,
  k: Constants,
  exprs: readonly Typed[],
  leaf: (node: Leaf) => V128,
): V128[] {
  const values: Values = new Map()
  lowerNodes(f, k, typedPostOrder(exprs), values, leaf, new Map())
  return exprs.map((t) => values.get(t) as V128)
}

/** Whether all nodes have dtypes that lanes hold. */
export const isLowerable = (nodes: readonly Typed[]): boolean =>
  nodes.every((t) => t.dtype === 'float32' || t.dtype === 'int32' || t.dtype === 'bool')

function unsupported(t: Typed): never {
  throw new UnsupportedOpError(`elementwise: no WebAssembly for ${'op' in t ? t.op : t.kind} of ${t.dtype}`)
}

function constant(k: Constants, t: Extract<Typed, { kind: 'const' }>): V128 {
  if (t.dtype === 'float32') return k.f32(t.value)
  if (t.dtype === 'bool') return k.i32(t.value === 0 ? 0 : -1)
  return k.i32(toInt32(t.value))
}

/** Truncates and saturates, NaN is 0: as int32 conversions do everywhere. */
export const toInt32 = (x: number): number => Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.trunc(x))) || 0

function cast(k: Constants, a: V128, from: Typed['dtype'], to: Typed['dtype']): V128 {
  if (from === to) return a
  if (to === 'bool') return from === 'float32' ? f32x4.ne(a, k.f32(0)) : i32x4.ne(a, k.i32(0))
  if (from === 'bool') return v128.and(a, to === 'float32' ? k.f32(1) : k.i32(1))
  return to === 'float32' ? f32x4.convertI32x4S(a) : i32x4.truncSatF32x4S(a)
}

/** Functions of floats, but for those in math.ts; `not` of bools. */
const floats1 = {
  neg: (_: Constants, x: V128) => f32x4.neg(x),
  abs: (_: Constants, x: V128) => f32x4.abs(x),
  sign: (k: Constants, x: V128) =>
    f32x4.sub(v128.and(f32x4.gt(x, k.f32(0)), k.f32(1)), v128.and(f32x4.lt(x, k.f32(0)), k.f32(1))),
  floor: (_: Constants, x: V128) => f32x4.floor(x),
  ceil: (_: Constants, x: V128) => f32x4.ceil(x),
  round: (_: Constants, x: V128) => f32x4.nearest(x),
  sqrt: (_: Constants, x: V128) => f32x4.sqrt(x),
  isnan: (_: Constants, x: V128) => f32x4.ne(x, x),
  not: (_: Constants, x: V128) => v128.not(x),
} satisfies Record<Exclude<Unary, MathName>, (k: Constants, x: V128) => V128>

const ints1: Partial<Record<Unary, (k: Constants, x: V128) => V128>> = {
  neg: (_, x) => i32x4.neg(x),
  abs: (_, x) => i32x4.abs(x),
  sign: (k, x) => i32x4.maxS(i32x4.minS(x, k.i32(1)), k.i32(-1)),
}

const floats2: Partial<Record<Binary, (a: V128, b: V128) => V128>> = {
  add: f32x4.add,
  sub: f32x4.sub,
  mul: f32x4.mul,
  div: f32x4.div,
  max: f32x4.max,
  min: f32x4.min,
  lt: f32x4.lt,
  le: f32x4.le,
  gt: f32x4.gt,
  ge: f32x4.ge,
  eq: f32x4.eq,
  ne: f32x4.ne,
}

const ints2: Partial<Record<Binary, (a: V128, b: V128) => V128>> = {
  add: i32x4.add,
  sub: i32x4.sub,
  mul: i32x4.mul,
  max: i32x4.maxS,
  min: i32x4.minS,
  lt: i32x4.ltS,
  le: i32x4.leS,
  gt: i32x4.gtS,
  ge: i32x4.geS,
  eq: i32x4.eq,
  ne: i32x4.ne,
  and: v128.and,
  or: v128.or,
  xor: v128.xor,
}

const bools2: Partial<Record<Binary, (a: V128, b: V128) => V128>> = {
  max: v128.or,
  min: v128.and,
  and: v128.and,
  or: v128.or,
  xor: v128.xor,
  eq: i32x4.eq,
  ne: i32x4.ne,
}

function binary(
  f: FunctionBuilder,
  k: Constants,
  t: Extract<Typed, { kind: 'binary' }>,
  a: V128,
  b: V128,
  power: number | undefined,
): V128 {
  const [left, right] = t.args as readonly [Typed, Typed]
  if (left.dtype === 'float32') {
    if (t.op === 'pow') return power === undefined ? pow(f, k, a, b) : knownPower(f, k, a, power)
    return (floats2[t.op] ?? unsupported(t))(a, b)
  }
  if (left.dtype === 'bool') return (bools2[t.op] ?? unsupported(t))(a, b)
  if (t.op === 'pow') return intPow(f, k, a, b)
  if (t.op === 'shl' || t.op === 'shr') return shift(f, t.op, a, b, right)
  return (ints2[t.op] ?? unsupported(t))(a, b)
}

/** Exponents for which there is something better than `pow`. */
export const isKnownPower = (y: number): boolean => [-1, -0.5, 0.5, 1, 2, 3].includes(y)

function knownPower(f: FunctionBuilder, k: Constants, x: V128, y: number): V128 {
  const one = k.f32(1)
  if (y === 1) return x
  if (y === 2) return f32x4.mul(x, x)
  if (y === 3) return f32x4.mul(f32x4.mul(x, x), x)
  if (y === -1) return f32x4.div(one, x)
  // Unlike the square root, powers take −0 as 0 and −∞ as ∞.
  const root = f32x4.sqrt(f32x4.add(x, k.f32(0)))
  const power = f32x4.select(f32x4.eq(x, k.f32(-Infinity)), k.f32(Infinity), root)
  return y === 0.5 ? power : f32x4.div(one, f.let(power))
}

/** Powers of integers, modulo 2³²; by squaring, for as many rounds as the largest exponent takes. */
function intPow(f: FunctionBuilder, k: Constants, a: V128, b: V128): V128 {
  const one = k.i32(1)
  const negative = f.let(i32x4.ltS(b, k.i32(0)))
  const parity = f.let(i32x4.eq(v128.and(b, one), one))
  const result = f.local.v128(one)
  const base = f.local.v128(a)
  const n = f.local.v128(v128.andnot(b, negative))
  f.while(v128.anyTrue(n), () => {
    const odd = i32x4.eq(v128.and(n, one), one)
    result.set(i32x4.select(odd, i32x4.mul(result, base), result))
    base.set(i32x4.mul(base, base))
    n.set(i32x4.shrU(n, 1))
  })
  // 1 / aⁿ, truncated: of ±1 it is ±1, of anything else 0.
  const unit = v128.or(i32x4.eq(a, one), i32x4.eq(a, k.i32(-1)))
  const inverse = v128.and(unit, i32x4.select(parity, a, one))
  return i32x4.select(negative, inverse, result)
}

function shift(f: FunctionBuilder, op: 'shl' | 'shr', a: V128, b: V128, by: Typed): V128 {
  if (by.kind === 'const') return op === 'shl' ? i32x4.shl(a, by.value | 0) : i32x4.shrU(a, by.value | 0)
  // WebAssembly shifts all lanes by the same scalar.
  let result = a
  for (let lane = 0; lane < 4; lane++) {
    const [x, n] = [i32x4.extractLane(a, lane), i32x4.extractLane(b, lane)]
    result = i32x4.replaceLane(result, lane, op === 'shl' ? x.shl(n) : x.shrU(n))
  }
  return f.let(result)
}

/** About how many instructions on 4 lanes a node takes: to choose how much work goes to a thread at a time. */
export function costOf(t: Typed): number {
  if (t.kind === 'unary')
    return t.op in floats1 || t.dtype === 'int32' ? 1 : t.op === 'sin' || t.op === 'cos' ? 50 : 20
  if (t.kind === 'binary') return t.op === 'pow' ? 120 : t.op === 'div' ? 4 : 1
  return t.kind === 'input' || t.kind === 'const' || t.kind === 'param' ? 0 : 1
}
