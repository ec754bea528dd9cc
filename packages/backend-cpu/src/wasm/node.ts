/**
 * Typed expressions. A `Node` is a value that WebAssembly code will compute: its operands, then the bytes of
 * one instruction. Nodes are immutable descriptions; nothing is emitted until a statement of a
 * `FunctionBuilder` uses them, and a node used twice is emitted (and computed) twice: see `f.let`.
 */

import { laneBytes, pushSigned32, pushSigned64 } from './bytes.ts'

/** The value types of WebAssembly that kernels use. */
export type ValType = 'i32' | 'i64' | 'f32' | 'f64' | 'v128'

/** An expression of type `T`. The scalar types carry their operators as methods: see `I32`, `F32` …. */
export class Node<T extends ValType = ValType> {
  readonly type: T
  /** The instruction with its immediates, emitted after the operands. */
  readonly code: readonly number[]
  readonly args: readonly Node[]
  /** The node that is emitted in place of this one in modules built without relaxed SIMD. */
  readonly fallback: Node | undefined
  /** The function that a local variable belongs to, so that use in another one can be reported. */
  readonly owner: object | undefined

  constructor(type: T, code: readonly number[], args: readonly Node[], fallback?: Node, owner?: object) {
    this.type = type
    this.code = code
    this.args = args
    this.fallback = fallback
    this.owner = owner
  }
}

// In the order of their opcodes, which are consecutive: opcode = base of the type + position.
export const intUnary = ['clz', 'ctz', 'popcnt'] as const
export const intBinary = [
  ...(['add', 'sub', 'mul', 'divS', 'divU', 'remS', 'remU', 'and', 'or', 'xor'] as const),
  ...(['shl', 'shrS', 'shrU', 'rotl', 'rotr'] as const),
] as const
export const intCompare = ['eq', 'ne', 'ltS', 'ltU', 'gtS', 'gtU', 'leS', 'leU', 'geS', 'geU'] as const
export const floatUnary = ['abs', 'neg', 'ceil', 'floor', 'trunc', 'nearest', 'sqrt'] as const
export const floatBinary = ['add', 'sub', 'mul', 'div', 'min', 'max', 'copysign'] as const
export const floatCompare = ['eq', 'ne', 'lt', 'gt', 'le', 'ge'] as const

type Method0<K extends readonly string[], R> = { readonly [P in K[number]]: () => R }
type Method1<K extends readonly string[], B, R> = { readonly [P in K[number]]: (b: B) => R }

interface IntMethods<Self, In>
  extends Method0<typeof intUnary, Self>,
    Method1<typeof intBinary, In, Self>,
    Method1<typeof intCompare, In, I32>,
    Method0<readonly ['eqz'], I32> {}
interface FloatMethods<Self, In>
  extends Method0<typeof floatUnary, Self>,
    Method1<typeof floatBinary, In, Self>,
    Method1<typeof floatCompare, In, I32> {}

/** A 32-bit integer; also a condition (0 is false) and an address in bytes. `i.add(1).shl(2)` */
export interface I32 extends Node<'i32'>, IntMethods<I32, I32In> {}
/** A 64-bit integer. */
export interface I64 extends Node<'i64'>, IntMethods<I64, I64In> {}
/** A 32-bit float. `x.mul(x).add(1)` */
export interface F32 extends Node<'f32'>, FloatMethods<F32, F32In> {}
/** A 64-bit float. */
export interface F64 extends Node<'f64'>, FloatMethods<F64, F64In> {}
/** 128 bits; what the lanes are is chosen by the namespace used: `f32x4.add(a, b)`, `i8x16.eq(a, b)`. */
export interface V128 extends Node<'v128'> {}

/** An operand: an expression, or a plain number, which becomes a constant of the operand's type. */
export type I32In = I32 | number
export type I64In = I64 | bigint | number
export type F32In = F32 | number
export type F64In = F64 | number

/** The expression type of each value type. */
export interface Exprs {
  i32: I32
  i64: I64
  f32: F32
  f64: F64
  v128: V128
}
/** What may be given where an expression of each value type is expected. */
export interface Inputs {
  i32: I32In
  i64: I64In
  f32: F32In
  f64: F64In
  v128: V128
}

class I32Node extends Node<'i32'> {}
class I64Node extends Node<'i64'> {}
class F32Node extends Node<'f32'> {}
class F64Node extends Node<'f64'> {}
class V128Node extends Node<'v128'> {}
const classes = { i32: I32Node, i64: I64Node, f32: F32Node, f64: F64Node, v128: V128Node }

/** The class of a type; its prototype receives the operators as methods (see `ops.ts`). */
export function classOf(type: ValType): { prototype: object } {
  return classes[type]
}

/** A new expression node of the given type. */
export function make<T extends ValType>(
  type: T,
  code: readonly number[],
  args: readonly Node[],
  fallback?: Node,
  owner?: object,
): Exprs[T] {
  // The methods that the interface promises are on the prototype: attached once, in ops.ts.
  return new classes[type](type as never, code, args, fallback, owner) as unknown as Exprs[T]
}

const none: readonly Node[] = []

function float(opcode: number, bytes: number, value: number): number[] {
  const lanes = laneBytes(bytes, (v) =>
    bytes === 4 ? v.setFloat32(0, value, true) : v.setFloat64(0, value, true),
  )
  return [opcode, ...lanes]
}

function constI32(value: number): I32 {
  if (!Number.isInteger(value) || value < -0x80000000 || value > 0xffffffff) {
    throw new RangeError(`i32 constant: ${value} is not an integer of 32 bits`)
  }
  const code = [0x41]
  pushSigned32(code, value)
  return make('i32', code, none)
}

function constI64(value: bigint | number): I64 {
  const code = [0x42]
  pushSigned64(code, BigInt(value))
  return make('i64', code, none)
}

/** Turn operands into expressions: constants for plain numbers, anything else as it is. */
export const liftI32 = (x: I32In): I32 => (typeof x === 'number' ? constI32(x) : x)
export const liftI64 = (x: I64In): I64 => (typeof x === 'object' ? x : constI64(x))
export const liftF32 = (x: F32In): F32 => (typeof x === 'number' ? make('f32', float(0x43, 4, x), none) : x)
export const liftF64 = (x: F64In): F64 => (typeof x === 'number' ? make('f64', float(0x44, 8, x), none) : x)
export const liftV128 = (x: V128): V128 => x

const lifts = { i32: liftI32, i64: liftI64, f32: liftF32, f64: liftF64, v128: liftV128 }

/** `lift` for a type known only at generation time. */
export function lift<T extends ValType>(type: T, value: Inputs[T]): Exprs[T] {
  return (lifts[type] as unknown as (x: Inputs[T]) => Exprs[T])(value)
}
