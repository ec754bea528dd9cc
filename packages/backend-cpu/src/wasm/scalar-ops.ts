/**
 * Operators of the scalar types: namespaces `i32`, `i64`, `f32`, `f64`. Names are WebAssembly's in camel case:
 * `i32.div_s` is `i32.divS`, `f32.convert_i32_s` is `f32.convertI32S`. Most are also methods: `a.add(b)`.
 */

import { pushUnsigned } from './bytes.ts'
import {
  classOf,
  type Exprs,
  type F32,
  type F64,
  floatBinary,
  floatCompare,
  floatUnary,
  type I32,
  type I32In,
  type I64,
  type Inputs,
  intBinary,
  intCompare,
  intUnary,
  liftF32,
  liftF64,
  liftI32,
  liftI64,
  make,
  type Node,
  type ValType,
} from './node.ts'

/** The immediates of a memory instruction: alignment (as a power of two), then the constant byte offset. */
export function memoryCode(opcode: readonly number[], align: number, offset: number): number[] {
  // Offsets are unsigned in the format; a negative one would wrap to an address 4 GiB away.
  if (!Number.isInteger(offset) || offset < 0 || offset > 0xffffffff) {
    throw new RangeError(`memory offset: ${offset} is not an integer in 0 … 2³² − 1; add it to the pointer`)
  }
  const code = [...opcode, align]
  pushUnsigned(code, offset)
  return code
}

/** Makes a function for each entry of an opcode table. */
export function define<K extends string, Code, F>(
  table: Readonly<Record<K, Code>>,
  create: (code: Code) => F,
): Readonly<Record<K, F>> {
  const out = {} as Record<K, F>
  for (const name in table) out[name] = create(table[name])
  return out
}

/** A table of opcodes that follow each other. */
export function consecutive<const N extends readonly string[]>(
  names: N,
  first: number,
): Record<N[number], number> {
  return Object.fromEntries(names.map((name, i) => [name, first + i])) as Record<N[number], number>
}

/** Throws for a number that no lane has. */
export function checkLane(lane: number, count: number): void {
  if (!Number.isInteger(lane) || lane < 0 || lane >= count) {
    throw new RangeError(`lane: ${lane} is not an integer in 0 … ${count - 1}`)
  }
}

type Lift<In> = (x: In) => Node
function unary<A, R extends ValType>(a: Lift<A>, result: R): (code: number) => (x: A) => Exprs[R] {
  return (code) => {
    const bytes = [code]
    return (x) => make(result, bytes, [a(x)])
  }
}

function binary<A, R extends ValType>(a: Lift<A>, result: R): (code: number) => (x: A, y: A) => Exprs[R] {
  return (code) => {
    const bytes = [code]
    return (x, y) => make(result, bytes, [a(x), a(y)])
  }
}

/** Opcode and alignment of a load. */
export type LoadCode = readonly [opcode: readonly number[], align: number]

/** `load(ptr, offset)`: reads at `ptr + offset` bytes; `offset` is a constant ≥ 0 and costs nothing. */
export function load<R extends ValType>(
  result: R,
): (code: LoadCode) => (ptr: I32In, offset?: number) => Exprs[R] {
  return ([opcode, align]) =>
    (ptr, offset = 0) =>
      make(result, memoryCode(opcode, align, offset), [liftI32(ptr)])
}

const selectCode = [0x1b]

/** `select(condition, a, b)`: a where the condition is not 0, else b; both are always computed. */
export function select<T extends ValType>(
  type: T,
  liftT: Lift<Inputs[T]>,
): (condition: I32In, a: Inputs[T], b: Inputs[T]) => Exprs[T] {
  return (condition, a, b) => make(type, selectCode, [liftT(a), liftT(b), liftI32(condition)])
}

function intOps<T extends 'i32' | 'i64'>(
  type: T,
  liftT: (x: Inputs[T]) => Exprs[T],
  base: readonly number[],
) {
  const [eqz = 0, compare = 0, unaries = 0, binaries = 0] = base
  const methods = {
    ...define(consecutive(['eqz'], eqz), unary(liftT, 'i32')),
    ...define(consecutive(intCompare, compare), binary(liftT, 'i32')),
    ...define(consecutive(intUnary, unaries), unary(liftT, type)),
    ...define(consecutive(intBinary, binaries), binary(liftT, type)),
  }
  attach(type, methods)
  return { ...methods, const: liftT, select: select(type, liftT) }
}

function floatOps<T extends 'f32' | 'f64'>(
  type: T,
  liftT: (x: Inputs[T]) => Exprs[T],
  base: readonly number[],
) {
  const [compare = 0, unaries = 0, binaries = 0] = base
  const methods = {
    ...define(consecutive(floatCompare, compare), binary(liftT, 'i32')),
    ...define(consecutive(floatUnary, unaries), unary(liftT, type)),
    ...define(consecutive(floatBinary, binaries), binary(liftT, type)),
  }
  attach(type, methods)
  const { add, mul, sub } = methods
  return {
    ...methods,
    const: liftT,
    select: select(type, liftT),
    /** a·b + c, rounded twice: the counterpart of `f32x4.madd`, for code written for lanes and scalars alike. */
    madd: (a: Inputs[T], b: Inputs[T], c: Inputs[T]): Exprs[T] => add(mul(a, b), c),
    /** c − a·b, rounded twice. */
    nmadd: (a: Inputs[T], b: Inputs[T], c: Inputs[T]): Exprs[T] => sub(c, mul(a, b)),
  }
}

/** Makes `ops.name(x, …)` available as `x.name(…)`. */
function attach(type: ValType, ops: object): void {
  for (const [name, op] of Object.entries(ops) as [string, (...operands: unknown[]) => unknown][]) {
    const method = function (this: unknown, operand: unknown) {
      return op(this, operand)
    }
    Object.defineProperty(classOf(type).prototype, name, { value: method })
  }
}

/** 32-bit integers: addresses, counters, conditions. Loads of 8 and 16 bits extend by zeros. */
export const i32 = {
  ...intOps('i32', liftI32, [0x45, 0x46, 0x67, 0x6a]),
  ...define({ load: [[0x28], 2], load8U: [[0x2d], 0], load16U: [[0x2f], 1] }, load('i32')),
} as const

/** 64-bit integers: pairs of 32 bits that are moved as one. */
export const i64 = {
  ...intOps('i64', liftI64, [0x50, 0x51, 0x79, 0x7c]),
  ...define({ load: [[0x29], 3] }, load('i64')),
} as const

/** 32-bit floats. `min` and `max` propagate NaN, `nearest` rounds ties to even. */
export const f32 = {
  ...floatOps('f32', liftF32, [0x5b, 0x8b, 0x92]),
  ...define({ convertI32S: 0xb2 }, unary(liftI32, 'f32')),
  ...define({ demoteF64: 0xb6 }, unary(liftF64, 'f32')),
  ...define({ load: [[0x2a], 2] }, load('f32')),
} as const

/** 64-bit floats. `min` and `max` propagate NaN, `nearest` rounds ties to even. */
export const f64 = {
  ...floatOps('f64', liftF64, [0x61, 0x99, 0xa0]),
  ...define({ convertI32S: 0xb7 }, unary(liftI32, 'f64')),
  ...define({ promoteF32: 0xbb }, unary(liftF32, 'f64')),
  ...define({ load: [[0x2b], 3] }, load('f64')),
} as const

export type { F32, F64, I32, I64 }
