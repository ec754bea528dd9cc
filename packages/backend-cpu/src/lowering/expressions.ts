/**
 * Core's typed scalar expressions as WebAssembly on four lanes. float32 is four floats, int32 four integers, bool a
 * mask: all ones or all zeros. A single element is computed in lane 0 of the same code.
 */

import { type Typed, typedPostOrder, UnsupportedOpError } from '@tilegrad/core'
import { fillsLanes, type Lane, laneOf, toInt32 } from '../element.ts'
import { type FunctionBuilder, f32x4, i32x4, type V128, v128 } from '../wasm/index.ts'
import { type Gaussian, gaussian } from './gaussian.ts'
import { type Constants, type MathName, mathCode, pow } from './math.ts'

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
  /** The Gaussian of an argument whose exponential is asked for, with which 1 + erf comes. */
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
          return constants[laneOf(t.dtype)](k, t.value)
        case 'unary':
          return (unaries[t.op][operandOf(t)] ?? unsupported(t))(k, a, f)
        case 'binary':
          return (binaries[t.op][operandOf(t)] ?? unsupported(t))(a, b, { f, k, t, power: powers.get(t) })
        case 'select':
          return i32x4.select(a, b, c)
        case 'cast':
          return casts[operandOf(t)][laneOf(t.dtype)](k, a)
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
  if (square?.kind !== 'binary' || square.op !== 'mul' || laneOf(square.dtype) !== 'float32') return undefined
  return square.args[0] === square.args[1] ? square.args[0] : undefined
}

/** The u of 1 + erf(u), as in GELU. */
function cumulativeOf(t: Typed): Typed | undefined {
  if (t.kind !== 'binary' || t.op !== 'add' || laneOf(t.dtype) !== 'float32') return undefined
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
export const isLowerable = (nodes: readonly Typed[]): boolean => nodes.every((t) => fillsLanes(t.dtype))

/** The dtype of what a node works on. */
const operandOf = (t: Typed): Lane => laneOf((t.args[0] as Typed).dtype)

function unsupported(t: Typed): never {
  throw new UnsupportedOpError(
    `elementwise: no WebAssembly for ${'op' in t ? t.op : t.kind} of ${operandOf(t)}`,
  )
}

const constants: Readonly<Record<Lane, (k: Constants, value: number) => V128>> = {
  float32: (k, value) => k.f32(value),
  int32: (k, value) => k.i32(toInt32(value)),
  bool: (k, value) => k.i32(value === 0 ? 0 : -1),
}

type One = (k: Constants, x: V128, f: FunctionBuilder) => V128
const same = (_: Constants, x: V128): V128 => x

/** The code that converts a dtype (outer key) to another. */
const casts: Readonly<Record<Lane, Readonly<Record<Lane, (k: Constants, x: V128) => V128>>>> = {
  float32: {
    float32: same,
    int32: (_, x) => i32x4.truncSatF32x4S(x),
    bool: (k, x) => f32x4.ne(x, k.f32(0)),
  },
  int32: {
    float32: (_, x) => f32x4.convertI32x4S(x),
    int32: same,
    bool: (k, x) => i32x4.ne(x, k.i32(0)),
  },
  bool: {
    float32: (k, x) => v128.and(x, k.f32(1)),
    int32: (k, x) => v128.and(x, k.i32(1)),
    bool: same,
  },
}

/** A function for each dtype that typing lets operands have. */
type ByDType<F> = Readonly<Partial<Record<Lane, F>>>

/** A function of math.ts. */
const ours = (name: MathName): ByDType<One> => ({ float32: (k, x, f) => mathCode(name, f, k, x) })

const unaries: Readonly<Record<Unary, ByDType<One>>> = {
  neg: { float32: (_, x) => f32x4.neg(x), int32: (_, x) => i32x4.neg(x) },
  abs: { float32: (_, x) => f32x4.abs(x), int32: (_, x) => i32x4.abs(x) },
  sign: {
    float32: (k, x) =>
      f32x4.sub(v128.and(f32x4.gt(x, k.f32(0)), k.f32(1)), v128.and(f32x4.lt(x, k.f32(0)), k.f32(1))),
    int32: (k, x) => i32x4.maxS(i32x4.minS(x, k.i32(1)), k.i32(-1)),
  },
  floor: { float32: (_, x) => f32x4.floor(x) },
  ceil: { float32: (_, x) => f32x4.ceil(x) },
  round: { float32: (_, x) => f32x4.nearest(x) },
  sqrt: { float32: (_, x) => f32x4.sqrt(x) },
  exp: ours('exp'),
  log: ours('log'),
  log1p: ours('log1p'),
  expm1: ours('expm1'),
  sin: ours('sin'),
  cos: ours('cos'),
  tanh: ours('tanh'),
  sigmoid: ours('sigmoid'),
  erf: ours('erf'),
  isnan: { float32: (_, x) => f32x4.ne(x, x) },
  not: { bool: (_, x) => v128.not(x) },
}

/** What the code of a binary node may use besides the values of its operands. */
interface At {
  readonly f: FunctionBuilder
  readonly k: Constants
  readonly t: Typed
  readonly power: number | undefined
}
type Two = (a: V128, b: V128, at: At) => V128

const binaries: Readonly<Record<Binary, ByDType<Two>>> = {
  add: { float32: f32x4.add, int32: i32x4.add },
  sub: { float32: f32x4.sub, int32: i32x4.sub },
  mul: { float32: f32x4.mul, int32: i32x4.mul },
  div: { float32: f32x4.div },
  pow: {
    float32: (a, b, { f, k, power }) => (power === undefined ? pow(f, k, a, b) : knownPower(f, k, a, power)),
    int32: (a, b, { f, k }) => intPow(f, k, a, b),
  },
  max: { float32: f32x4.max, int32: i32x4.maxS, bool: v128.or },
  min: { float32: f32x4.min, int32: i32x4.minS, bool: v128.and },
  lt: { float32: f32x4.lt, int32: i32x4.ltS },
  le: { float32: f32x4.le, int32: i32x4.leS },
  gt: { float32: f32x4.gt, int32: i32x4.gtS },
  ge: { float32: f32x4.ge, int32: i32x4.geS },
  eq: { float32: f32x4.eq, int32: i32x4.eq, bool: i32x4.eq },
  ne: { float32: f32x4.ne, int32: i32x4.ne, bool: i32x4.ne },
  and: { int32: v128.and, bool: v128.and },
  or: { int32: v128.or, bool: v128.or },
  xor: { int32: v128.xor, bool: v128.xor },
  shl: { int32: (a, b, { f, t }) => shift(f, 'shl', a, b, t.args[1] as Typed) },
  shr: { int32: (a, b, { f, t }) => shift(f, 'shr', a, b, t.args[1] as Typed) },
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

/** The approximate number of instructions on 4 lanes that a function of floats takes. */
const costs: Readonly<Record<Unary, number>> = {
  neg: 1,
  abs: 1,
  sign: 1,
  floor: 1,
  ceil: 1,
  round: 1,
  sqrt: 1,
  exp: 20,
  log: 20,
  log1p: 20,
  expm1: 20,
  sin: 50,
  cos: 50,
  tanh: 20,
  sigmoid: 20,
  erf: 20,
  isnan: 1,
  not: 1,
}

/** The approximate number of instructions on 4 lanes that a node takes, by which work is cut for threads. */
export function costOf(t: Typed): number {
  if (t.kind === 'unary') return costs[t.op]
  if (t.kind === 'binary') return t.op === 'pow' ? 120 : t.op === 'div' ? 4 : 1
  return t.kind === 'input' || t.kind === 'const' || t.kind === 'param' ? 0 : 1
}
