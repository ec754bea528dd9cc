/** Core's typed scalar expressions as WGSL: one `let` per node. float32 is f32, int32 i32, bool bool. */

import { type DType, type Typed, typedPostOrder, UnsupportedOpError } from '@tilegrad/core'

type Leaf = Extract<Typed, { kind: 'input' | 'param' | 'index' | 'coord' }>

export interface Lowered {
  /** Statements that compute the nodes. */
  readonly code: string
  /** One per expression: the name of its value. */
  readonly values: readonly string[]
  /** Functions of `math.ts` that the code calls. */
  readonly functions: ReadonlySet<string>
}

export const typeOf = (dtype: DType): 'f32' | 'i32' | 'bool' =>
  dtype === 'float32' ? 'f32' : dtype === 'int32' ? 'i32' : 'bool'

/** The type in memory: bools are u32. */
export const itemOf = (dtype: DType): 'f32' | 'i32' | 'u32' =>
  dtype === 'float32' ? 'f32' : dtype === 'int32' ? 'i32' : 'u32'

/** A loaded item as a value, and a value as an item to store. */
export const loaded = (item: string, dtype: DType): string => (dtype === 'bool' ? `(${item} != 0u)` : item)
export const stored = (value: string, dtype: DType): string =>
  dtype === 'bool' ? `select(0u, 1u, ${value})` : value

/** Emits all of some expressions; `leaf` names the values of inputs (bools as bool), params, the index, coordinates. */
export function lower(exprs: readonly Typed[], leaf: (node: Leaf) => string): Lowered {
  const names = new Map<Typed, string>()
  const functions = new Set<string>()
  const call = (name: string, ...args: string[]): string => {
    functions.add(name)
    return `${name}(${args.join(', ')})`
  }
  const lines: string[] = []
  for (const t of typedPostOrder(exprs)) {
    const [a, b, c] = t.args.map((arg) => names.get(arg) as string) as [string, string, string]
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

type Call = (name: string, ...args: string[]) => string

function emit(t: Typed, a: string, b: string, c: string, leaf: (node: Leaf) => string, call: Call): string {
  switch (t.kind) {
    case 'const':
      return constant(t.value, t.dtype, call)
    case 'unary':
      return unary(t, a, call)
    case 'binary':
      return binary(t, a, b, call)
    case 'select':
      return `select(${c}, ${b}, ${a})`
    case 'cast':
      return cast(a, (t.args[0] as Typed).dtype, t.dtype, call)
    default:
      return leaf(t)
  }
}

/** A number as WGSL. NaN and infinities are made at run time: constant expressions must be finite. */
export function constant(value: number, dtype: DType, call: Call): string {
  if (dtype === 'bool') return value !== 0 ? 'true' : 'false'
  if (dtype === 'int32') {
    const n = Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.trunc(value))) || 0
    return n === -(2 ** 31) ? 'i32(-2147483648)' : `${n}i`.replace(/^-(.*)$/, '(-$1)')
  }
  bits[0] = value
  const rounded = bits[0] as number
  if (!Number.isFinite(rounded) || Object.is(rounded, -0))
    return call('tg_bits', `0x${word[0]?.toString(16)}u`)
  const text = `${rounded}${Number.isInteger(rounded) && Math.abs(rounded) < 1e21 ? '.0' : ''}f`
  return rounded < 0 ? `(${text})` : text
}
const bits = new Float32Array(1)
const word = new Uint32Array(bits.buffer)

export function cast(x: string, from: DType, to: DType, call: Call): string {
  if (from === to) return x
  if (to === 'bool') return from === 'float32' ? notEqual(x, '0.0', call) : `(${x} != 0)`
  if (from === 'bool') return to === 'float32' ? `select(0.0, 1.0, ${x})` : `select(0, 1, ${x})`
  return to === 'float32' ? `f32(${x})` : call('tg_to_i32', x)
}

/** NaN differs from everything. Drivers may take `!=` for a comparison that NaN fails. */
const notEqual = (a: string, b: string, call: Call): string =>
  b === '0.0'
    ? `(${a} != 0.0 || ${call('tg_isnan', a)})`
    : `(${a} != ${b} || ${call('tg_isnan', a)} || ${call('tg_isnan', b)})`

function unsupported(t: Typed): never {
  throw new UnsupportedOpError(`elementwise: no WGSL for ${'op' in t ? t.op : t.kind} of ${t.dtype}`)
}

function unary(t: Extract<Typed, { kind: 'unary' }>, x: string, call: Call): string {
  if (t.op === 'not') return `!${x}`
  if (t.dtype === 'int32') {
    if (t.op === 'neg') return `-${x}`
    if (t.op === 'abs') return `abs(${x})`
    if (t.op === 'sign') return `sign(${x})`
    return unsupported(t)
  }
  switch (t.op) {
    case 'neg':
      return `-${x}`
    case 'abs':
    case 'floor':
    case 'ceil':
    case 'round':
    case 'sqrt':
      return `${t.op}(${x})`
    case 'sign':
      return `(select(0.0, 1.0, ${x} > 0.0) - select(0.0, 1.0, ${x} < 0.0))`
    default:
      return call(`tg_${t.op}`, x)
  }
}

const infix: Readonly<Record<string, string>> = {
  add: '+',
  sub: '-',
  mul: '*',
  div: '/',
  lt: '<',
  le: '<=',
  gt: '>',
  ge: '>=',
  eq: '==',
  ne: '!=',
}

function binary(t: Extract<Typed, { kind: 'binary' }>, a: string, b: string, call: Call): string {
  const { dtype } = t.args[0] as Typed
  if (dtype === 'bool') {
    if (t.op === 'and' || t.op === 'min') return `(${a} && ${b})`
    if (t.op === 'or' || t.op === 'max') return `(${a} || ${b})`
    if (t.op === 'xor' || t.op === 'ne') return `(${a} != ${b})`
    if (t.op === 'eq') return `(${a} == ${b})`
    return unsupported(t)
  }
  if (t.op === 'ne' && dtype === 'float32') return notEqual(a, b, call)
  const op = infix[t.op]
  if (op) return `(${a} ${op} ${b})`
  if (dtype === 'float32') {
    const power = t.op === 'pow' ? (t.args[1] as Typed) : null
    if (power?.kind === 'const') {
      if (power.value === 2) return `(${a} * ${a})`
      if (power.value === 3) return `(${a} * ${a} * ${a})`
      if (power.value === -1) return `(1.0 / ${a})`
    }
    return t.op === 'pow' || t.op === 'max' || t.op === 'min' ? call(`tg_${t.op}`, a, b) : unsupported(t)
  }
  switch (t.op) {
    case 'max':
    case 'min':
      return `${t.op}(${a}, ${b})`
    case 'and':
      return `(${a} & ${b})`
    case 'or':
      return `(${a} | ${b})`
    case 'xor':
      return `(${a} ^ ${b})`
    case 'shl':
      return `(${a} << (u32(${b}) & 31u))`
    case 'shr':
      return `bitcast<i32>(bitcast<u32>(${a}) >> (u32(${b}) & 31u))`
    case 'pow':
      return call('tg_ipow', a, b)
    default:
      return unsupported(t)
  }
}
