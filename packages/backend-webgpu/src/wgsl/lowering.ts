/** Core's typed scalar expressions as WGSL: one `let` per node, in the types of values that `element.ts` names: 16 bits are float32 here. */

import { type Typed, typedPostOrder, UnsupportedOpError } from '@tilegrad/core'
import { elements, type Lane, laneOf } from './element.ts'
import type { MathName } from './math.ts'

type Unary = Extract<Typed, { kind: 'unary' }>['op']
type Binary = Extract<Typed, { kind: 'binary' }>['op']
type Leaf = Extract<Typed, { kind: 'input' | 'param' | 'index' | 'coord' }>

export interface Lowered {
  /** Statements that compute the nodes. */
  readonly code: string
  /** The name of the value of each expression. */
  readonly values: readonly string[]
  /** Functions of `math.ts` that the code calls. */
  readonly functions: ReadonlySet<MathName>
}

/** Emits all of some expressions; `leaf` names the values of inputs (bools as bool), params, the index, coordinates. */
export function lower(exprs: readonly Typed[], leaf: (node: Leaf) => string): Lowered {
  const names = new Map<Typed, string>()
  const functions = new Set<MathName>()
  const call: Call = (name, ...args) => {
    functions.add(name)
    return `${name}(${args.join(', ')})`
  }
  const lines: string[] = []
  for (const t of typedPostOrder(exprs)) {
    const [a, b, c] = t.args.map((arg) => names.get(arg) as string)
    const value = emit(t, a, b, c, leaf, call)
    if (t.kind === 'const' || t.kind === 'input') names.set(t, value)
    else {
      const name = `v${lines.length}`
      lines.push(`let ${name} = ${value};`)
      names.set(t, name)
    }
  }
  return { code: lines.join('\n'), values: exprs.map((t) => names.get(t) as string), functions }
}

/** Calls a function of `math.ts`. */
type Call = (name: MathName, ...args: string[]) => string

function emit(t: Typed, a: string, b: string, c: string, leaf: (node: Leaf) => string, call: Call): string {
  switch (t.kind) {
    case 'const':
      return constants[laneOf(t.dtype)](t.value, call)
    case 'unary':
      return (unaries[t.op][operandOf(t)] ?? unsupported(t))(a, call)
    case 'binary':
      return (binaries[t.op][operandOf(t)] ?? unsupported(t))(a, b, call, t.args[1])
    case 'select':
      return `select(${c}, ${b}, ${a})`
    case 'cast':
      return casts[operandOf(t)][laneOf(t.dtype)](a, call)
    default:
      return leaf(t)
  }
}

/** The dtype of what a node works on. */
const operandOf = (t: Typed): Lane => laneOf(t.args[0].dtype)

function unsupported(t: Typed): never {
  throw new UnsupportedOpError(`elementwise: no WGSL for ${'op' in t ? t.op : t.kind} of ${operandOf(t)}`)
}

const bits = new Float32Array(1)
const word = new Uint32Array(bits.buffer)

/** Numbers as WGSL. NaN and infinities are made at run time: constant expressions must be finite. */
const constants: Readonly<Record<Lane, (value: number, call: Call) => string>> = {
  float32: (value, call) => {
    bits[0] = value
    const rounded = bits[0]
    if (!Number.isFinite(rounded) || Object.is(rounded, -0))
      return call('tg_bits', `0x${word[0]?.toString(16)}u`)
    const text = `${rounded}${Number.isInteger(rounded) && Math.abs(rounded) < 1e21 ? '.0' : ''}f`
    return rounded < 0 ? `(${text})` : text
  },
  int32: (value) => {
    const n = Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.trunc(value))) || 0
    return n === -(2 ** 31) ? 'i32(-2147483648)' : `${n}i`.replace(/^-(.*)$/, '(-$1)')
  },
  bool: (value) => (value !== 0 ? 'true' : 'false'),
}

type One = (x: string, call: Call) => string
type Two = (a: string, b: string, call: Call, right: Typed) => string

const { float32, int32 } = elements
const same: One = (x) => x

/** The code that converts a dtype (outer key) to another. */
const casts: Readonly<Record<Lane, Readonly<Record<Lane, One>>>> = {
  float32: {
    float32: same,
    int32: (x, call) => call('tg_to_i32', x),
    bool: (x, call) => `(${x} != ${float32.zero} || ${call('tg_isnan', x)})`,
  },
  int32: {
    float32: (x) => `f32(${x})`,
    int32: same,
    bool: (x) => `(${x} != ${int32.zero})`,
  },
  bool: {
    float32: (x) => `select(${float32.zero}, ${float32.one}, ${x})`,
    int32: (x) => `select(${int32.zero}, ${int32.one}, ${x})`,
    bool: same,
  },
}

/** A function for each dtype that typing lets operands have. */
type ByDType<F> = Readonly<Partial<Record<Lane, F>>>

const minus: One = (x) => `-${x}`
const builtin =
  (name: string): One =>
  (x) =>
    `${name}(${x})`
/** A function of `math.ts`. */
const ours =
  (name: MathName): One =>
  (x, call) =>
    call(name, x)

const unaries: Readonly<Record<Unary, ByDType<One>>> = {
  neg: { float32: minus, int32: minus },
  abs: { float32: builtin('abs'), int32: builtin('abs') },
  sign: {
    float32: (x) => `(select(0.0, 1.0, ${x} > 0.0) - select(0.0, 1.0, ${x} < 0.0))`,
    int32: builtin('sign'),
  },
  floor: { float32: builtin('floor') },
  ceil: { float32: builtin('ceil') },
  round: { float32: builtin('round') },
  sqrt: { float32: builtin('sqrt') },
  exp: { float32: ours('tg_exp') },
  log: { float32: ours('tg_log') },
  log1p: { float32: ours('tg_log1p') },
  expm1: { float32: ours('tg_expm1') },
  sin: { float32: ours('tg_sin') },
  cos: { float32: ours('tg_cos') },
  tanh: { float32: ours('tg_tanh') },
  sigmoid: { float32: ours('tg_sigmoid') },
  erf: { float32: ours('tg_erf') },
  isnan: { float32: ours('tg_isnan') },
  not: { bool: (x) => `!${x}` },
}

const infix =
  (op: string): Two =>
  (a, b) =>
    `(${a} ${op} ${b})`
const numbers = (op: string): ByDType<Two> => ({ float32: infix(op), int32: infix(op) })

const power: Two = (a, b, call, right) => {
  if (right.kind === 'const') {
    if (right.value === 2) return `(${a} * ${a})`
    if (right.value === 3) return `(${a} * ${a} * ${a})`
    if (right.value === -1) return `(1.0 / ${a})`
  }
  return call('tg_pow', a, b)
}

const binaries: Readonly<Record<Binary, ByDType<Two>>> = {
  add: numbers('+'),
  sub: numbers('-'),
  mul: numbers('*'),
  div: { float32: infix('/') },
  pow: { float32: power, int32: (a, b, call) => call('tg_ipow', a, b) },
  max: {
    float32: (a, b, call) => call('tg_max', a, b),
    int32: (a, b) => `max(${a}, ${b})`,
    bool: infix('||'),
  },
  min: {
    float32: (a, b, call) => call('tg_min', a, b),
    int32: (a, b) => `min(${a}, ${b})`,
    bool: infix('&&'),
  },
  lt: numbers('<'),
  le: numbers('<='),
  gt: numbers('>'),
  ge: numbers('>='),
  eq: { ...numbers('=='), bool: infix('==') },
  ne: {
    // NaN differs from everything. Drivers may take `!=` for a comparison that NaN fails.
    float32: (a, b, call) => `(${a} != ${b} || ${call('tg_isnan', a)} || ${call('tg_isnan', b)})`,
    int32: infix('!='),
    bool: infix('!='),
  },
  and: { int32: infix('&'), bool: infix('&&') },
  or: { int32: infix('|'), bool: infix('||') },
  xor: { int32: infix('^'), bool: infix('!=') },
  shl: { int32: (a, b) => `(${a} << (u32(${b}) & 31u))` },
  shr: { int32: (a, b) => `bitcast<i32>(bitcast<u32>(${a}) >> (u32(${b}) & 31u))` },
}
