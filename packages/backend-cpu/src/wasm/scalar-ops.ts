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

type Lift<In> = (x: In) => Node
type Code = number | readonly number[]
const bytesOf = (code: Code): readonly number[] => (typeof code === 'number' ? [code] : code)

function unary<A, R extends ValType>(a: Lift<A>, result: R): (code: Code) => (x: A) => Exprs[R] {
  return (code) => {
    const bytes = bytesOf(code)
    return (x) => make(result, bytes, [a(x)])
  }
}

function binary<A, R extends ValType>(a: Lift<A>, result: R): (code: Code) => (x: A, y: A) => Exprs[R] {
  return (code) => {
    const bytes = bytesOf(code)
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

/** 32-bit integers: addresses, counters, conditions. Loads of 8 and 16 bits extend by sign (S) or zeros (U). */
export const i32 = {
  ...intOps('i32', liftI32, [0x45, 0x46, 0x67, 0x6a]),
  ...define({ extend8S: 0xc0, extend16S: 0xc1 }, unary(liftI32, 'i32')),
  ...define({ wrapI64: 0xa7 }, unary(liftI64, 'i32')),
  ...define({ truncF32S: 0xa8, truncF32U: 0xa9, reinterpretF32: 0xbc }, unary(liftF32, 'i32')),
  ...define({ truncF64S: 0xaa, truncF64U: 0xab }, unary(liftF64, 'i32')),
  ...define({ truncSatF32S: [0xfc, 0], truncSatF32U: [0xfc, 1] }, unary(liftF32, 'i32')),
  ...define({ truncSatF64S: [0xfc, 2], truncSatF64U: [0xfc, 3] }, unary(liftF64, 'i32')),
  ...define(
    {
      load: [[0x28], 2],
      load8S: [[0x2c], 0],
      load8U: [[0x2d], 0],
      load16S: [[0x2e], 1],
      load16U: [[0x2f], 1],
    },
    load('i32'),
  ),
} as const

/** 64-bit integers: random numbers, hashes, int64 tensors. */
export const i64 = {
  ...intOps('i64', liftI64, [0x50, 0x51, 0x79, 0x7c]),
  ...define({ extend8S: 0xc2, extend16S: 0xc3, extend32S: 0xc4 }, unary(liftI64, 'i64')),
  ...define({ extendI32S: 0xac, extendI32U: 0xad }, unary(liftI32, 'i64')),
  ...define({ truncF32S: 0xae, truncF32U: 0xaf }, unary(liftF32, 'i64')),
  ...define({ truncF64S: 0xb0, truncF64U: 0xb1, reinterpretF64: 0xbd }, unary(liftF64, 'i64')),
  ...define({ truncSatF32S: [0xfc, 4], truncSatF32U: [0xfc, 5] }, unary(liftF32, 'i64')),
  ...define({ truncSatF64S: [0xfc, 6], truncSatF64U: [0xfc, 7] }, unary(liftF64, 'i64')),
  ...define(
    {
      load: [[0x29], 3],
      load8S: [[0x30], 0],
      load8U: [[0x31], 0],
      load16S: [[0x32], 1],
      load16U: [[0x33], 1],
      load32S: [[0x34], 2],
      load32U: [[0x35], 2],
    },
    load('i64'),
  ),
} as const

/** 32-bit floats. `min` and `max` propagate NaN, `nearest` rounds ties to even. */
export const f32 = {
  ...floatOps('f32', liftF32, [0x5b, 0x8b, 0x92]),
  ...define({ convertI32S: 0xb2, convertI32U: 0xb3, reinterpretI32: 0xbe }, unary(liftI32, 'f32')),
  ...define({ convertI64S: 0xb4, convertI64U: 0xb5 }, unary(liftI64, 'f32')),
  ...define({ demoteF64: 0xb6 }, unary(liftF64, 'f32')),
  ...define({ load: [[0x2a], 2] }, load('f32')),
} as const

/** 64-bit floats. `min` and `max` propagate NaN, `nearest` rounds ties to even. */
export const f64 = {
  ...floatOps('f64', liftF64, [0x61, 0x99, 0xa0]),
  ...define({ convertI32S: 0xb7, convertI32U: 0xb8 }, unary(liftI32, 'f64')),
  ...define({ convertI64S: 0xb9, convertI64U: 0xba, reinterpretI64: 0xbf }, unary(liftI64, 'f64')),
  ...define({ promoteF32: 0xbb }, unary(liftF32, 'f64')),
  ...define({ load: [[0x2b], 3] }, load('f64')),
} as const

export type { F32, F64, I32, I64 }
