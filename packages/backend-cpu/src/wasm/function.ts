/** The body of one function: variables, control flow, stores, calls. Statements are emitted as they are called. */

import { pushAll, pushUnsigned } from './bytes.ts'
import {
  type Exprs,
  type I32In,
  type I64In,
  type Inputs,
  lift,
  liftI32,
  liftI64,
  make,
  type Node,
  type V128,
  type ValType,
} from './node.ts'
import { checkLane, memoryCode } from './scalar-ops.ts'

export const typeByte: Readonly<Record<ValType, number>> = {
  i32: 0x7f,
  i64: 0x7e,
  f32: 0x7d,
  f64: 0x7c,
  v128: 0x7b,
}

/** A local variable: an expression that reads it, and `set` to assign it. */
export type Var<T extends ValType> = Exprs[T] & {
  /** Emits the assignment. */
  set(value: Inputs[T]): void
}

/** The variables of a list of parameter types. */
export type Vars<P extends readonly ValType[]> = { [I in keyof P]: Var<P[I]> }

/** A function of the module under construction, for `f.call` and `m.export`. */
export interface Func<
  P extends readonly ValType[] = readonly ValType[],
  R extends ValType | null = ValType | null,
> {
  readonly index: number
  readonly params: P
  readonly result: R
}

/** The place that a branch goes to: past the end of a block, or the start of a loop. */
export interface Label {
  /** Branches. What follows in the same block is never run. */
  br(): void
  /** Branches where the condition is not 0. */
  brIf(condition: I32In): void
}

type Locals = { readonly [T in ValType]: (initial?: Inputs[T]) => Var<T> }
type Arguments<P extends readonly ValType[]> = { [I in keyof P]: Inputs[P[I]] }

const stores: Readonly<Record<ValType, readonly [opcode: readonly number[], align: number]>> = {
  i32: [[0x36], 2],
  i64: [[0x37], 3],
  f32: [[0x38], 2],
  f64: [[0x39], 3],
  v128: [[0xfd, 11], 0],
}
const narrowStores = {
  i32: { 8: 0x3a, 16: 0x3b, 32: 0x36 },
  i64: { 8: 0x3c, 16: 0x3d, 32: 0x3e },
} as const
const log2 = { 8: 0, 16: 1, 32: 2, 64: 3 } as const
const atomicRmw = { add: 0x1e, sub: 0x25, and: 0x2c, or: 0x33, xor: 0x3a, exchange: 0x41 } as const

/** Builds the body of one function; `ModuleBuilder.func` and `.kernel` hand it to their callback as `f`. */
export class FunctionBuilder {
  readonly #relaxed: boolean
  readonly #body: number[] = []
  readonly #params: number
  /** Types of parameters and locals, by index. */
  readonly #types: ValType[] = []
  #depth = 0
  #returns: ValType | null | undefined

  /**
   * Declares a variable: `f.local.v128()`, `f.local.i32(7)`. An initial value is assigned where the declaration
   * stands (again in every iteration of a loop around it); without one it is 0 when the function starts.
   */
  readonly local: Locals = {
    i32: (initial) => this.#local('i32', initial),
    i64: (initial) => this.#local('i64', initial),
    f32: (initial) => this.#local('f32', initial),
    f64: (initial) => this.#local('f64', initial),
    v128: (initial) => this.#local('v128', initial),
  }

  constructor(params: readonly ValType[], relaxed: boolean) {
    this.#relaxed = relaxed
    this.#params = params.length
    for (const type of params) this.#types.push(type)
  }

  /** The parameters as variables. */
  params<P extends readonly ValType[]>(types: P): Vars<P> {
    return types.map((type, index) => this.#variable(type, index)) as unknown as Vars<P>
  }

  /**
   * Computes an expression here, once, and returns a variable that holds it. Use it for whatever is used more
   * than once, and to read memory before a later store changes it.
   */
  let<T extends ValType>(value: Node<T>): Var<T> {
    const variable = this.#variable(value.type, this.#types.length)
    this.#types.push(value.type)
    this.#emit(value)
    this.#push(0x21, variable)
    return variable
  }

  /** Stores all bits of the value at `ptr + offset` bytes; its type says how many. `offset`: a constant ≥ 0. */
  store(ptr: I32In, value: Node, offset = 0): void {
    const [opcode, align] = stores[value.type]
    this.#statement(memoryCode(opcode, align, offset), liftI32(ptr), value)
  }

  /** Stores the low 8, 16 or 32 bits of an integer at `ptr + offset` bytes. */
  storeLow(bits: 8 | 16 | 32, ptr: I32In, value: Node<'i32'> | Node<'i64'>, offset = 0): void {
    this.#statement(memoryCode([narrowStores[value.type][bits]], log2[bits], offset), liftI32(ptr), value)
  }

  /** Stores one lane of 8, 16, 32 or 64 bits at `ptr + offset` bytes. */
  storeLane(bits: 8 | 16 | 32 | 64, ptr: I32In, value: V128, lane: number, offset = 0): void {
    checkLane(lane, 128 / bits)
    const code = memoryCode([0xfd, 88 + log2[bits]], log2[bits], offset)
    this.#statement([...code, lane], liftI32(ptr), value)
  }

  /** Sets `bytes` bytes at `ptr` to `value` (0 … 255). */
  fill(ptr: I32In, value: I32In, bytes: I32In): void {
    this.#statement([0xfc, 11, 0], liftI32(ptr), liftI32(value), liftI32(bytes))
  }

  /** Copies `bytes` bytes; the two places may overlap. */
  copy(to: I32In, from: I32In, bytes: I32In): void {
    this.#statement([0xfc, 10, 0, 0], liftI32(to), liftI32(from), liftI32(bytes))
  }

  /**
   * for (i = start; i < end; i += step), signed, with `end` and `step` computed once, before the loop; step > 0.
   * `exit` leaves the loop early.
   */
  for(start: I32In, end: I32In, step: I32In, body: (i: Var<'i32'>, exit: Label) => void): void {
    const limit = this.#once(end)
    const by = this.#once(step)
    const i = this.local.i32(start)
    this.block((exit) => {
      exit.brIf(i.geS(limit))
      this.loop((again) => {
        body(i, exit)
        i.set(i.add(by))
        again.brIf(i.ltS(limit))
      })
    })
  }

  /**
   * Covers [start, end) by strips of decreasing width: for each of `widths` one loop whose body is generated
   * with that width, while as many elements are left. `f.strips(start, end, [16, 4, 1], (i, width) => …)`.
   */
  strips(
    start: I32In,
    end: I32In,
    widths: readonly number[],
    body: (i: Var<'i32'>, width: number) => void,
  ): void {
    const limit = this.#once(end)
    const i = this.local.i32(start)
    for (const width of widths) {
      const last = this.let(lift('i32', limit).sub(width))
      this.while(i.leS(last), () => {
        body(i, width)
        i.set(i.add(width))
      })
    }
  }

  /** Repeats the body while the condition, computed before every iteration, is not 0. */
  while(condition: I32In, body: (exit: Label) => void): void {
    this.block((exit) => {
      exit.brIf(liftI32(condition).eqz())
      this.loop((again) => {
        body(exit)
        again.brIf(condition)
      })
    })
  }

  /** Runs the body once; branching to `again` starts it anew. */
  loop(body: (again: Label) => void): void {
    this.#nested(0x03, body)
  }

  /** Runs the body once; branching to `exit` leaves it. */
  block(body: (exit: Label) => void): void {
    this.#nested(0x02, body)
  }

  /** Runs `then` where the condition is not 0, else `otherwise`. */
  if(condition: I32In, then: () => void, otherwise?: () => void): void {
    this.#emit(liftI32(condition))
    this.#nested(0x04, () => {
      then()
      if (otherwise !== undefined) {
        this.#body.push(0x05)
        otherwise()
      }
    })
  }

  /** Ends the function, with its result where it has one. */
  return(value?: Node): void {
    const type = value === undefined ? null : value.type
    if (this.#returns !== undefined && this.#returns !== type) {
      throw new TypeError(`f.return: ${type ?? 'no value'} here, ${this.#returns ?? 'no value'} before`)
    }
    this.#returns = type
    if (value !== undefined) this.#emit(value)
    this.#body.push(0x0f)
  }

  /** Traps: the caller gets a `WebAssembly.RuntimeError: unreachable`. */
  unreachable(): void {
    this.#body.push(0x00)
  }

  /** Calls a function here, once; its result, where it has one, comes in a variable. */
  call<P extends readonly ValType[], R extends ValType | null>(
    func: Func<P, R>,
    ...args: Arguments<P>
  ): R extends ValType ? Var<R> : undefined
  call(func: Func, ...args: readonly Inputs[ValType][]): Var<ValType> | undefined {
    const nodes = func.params.map((type, i) => lift(type, args[i] as never))
    const code = [0x10]
    pushUnsigned(code, func.index)
    if (func.result !== null) return this.let(make(func.result, code, nodes))
    this.#statement(code, ...nodes)
    return undefined
  }

  /** Reads an i32 atomically, here. Atomics need `ptr + offset` to be a multiple of 4, else they trap. */
  atomicLoad(ptr: I32In, offset = 0): Var<'i32'> {
    return this.#atomic(0x10, offset, liftI32(ptr))
  }

  /** Stores an i32 atomically. */
  atomicStore(ptr: I32In, value: I32In, offset = 0): void {
    this.#statement(memoryCode([0xfe, 0x17], 2, offset), liftI32(ptr), liftI32(value))
  }

  /** Combines memory with a value, atomically; returns what was there before. */
  atomicRmw(op: keyof typeof atomicRmw, ptr: I32In, value: I32In, offset = 0): Var<'i32'> {
    return this.#atomic(atomicRmw[op], offset, liftI32(ptr), liftI32(value))
  }

  /** Writes `replacement` where memory holds `expected`, atomically; returns what was there before. */
  atomicCompareExchange(ptr: I32In, expected: I32In, replacement: I32In, offset = 0): Var<'i32'> {
    return this.#atomic(0x48, offset, liftI32(ptr), liftI32(expected), liftI32(replacement))
  }

  /** Sleeps while memory holds `expected`, for at most `timeout` nanoseconds (< 0: for ever): 0 woken, 1 unlike, 2 late. */
  atomicWait(ptr: I32In, expected: I32In, timeout: I64In, offset = 0): Var<'i32'> {
    return this.#atomic(0x01, offset, liftI32(ptr), liftI32(expected), liftI64(timeout))
  }

  /** Wakes up to `count` sleepers; returns how many. */
  atomicNotify(ptr: I32In, count: I32In, offset = 0): Var<'i32'> {
    return this.#atomic(0x00, offset, liftI32(ptr), liftI32(count))
  }

  /** Orders the atomic accesses before and after it. */
  atomicFence(): void {
    this.#body.push(0xfe, 0x03, 0x00)
  }

  /** The finished body with its locals, and the result type. `result`: the value that the function ends with. */
  finish(result: Node | undefined): { readonly code: readonly number[]; readonly result: ValType | null } {
    const type = result === undefined ? null : result.type
    if (this.#returns !== undefined && this.#returns !== type) {
      throw new TypeError(
        `function: ends with ${type ?? 'no value'}, but f.return gave ${this.#returns ?? 'none'}`,
      )
    }
    if (result !== undefined) this.#emit(result)
    this.#body.push(0x0b)
    const runs: { type: ValType; count: number }[] = []
    for (const local of this.#types.slice(this.#params)) {
      const last = runs[runs.length - 1]
      if (last?.type === local) last.count++
      else runs.push({ type: local, count: 1 })
    }
    const code: number[] = []
    pushUnsigned(code, runs.length)
    for (const run of runs) {
      pushUnsigned(code, run.count)
      code.push(typeByte[run.type])
    }
    pushAll(code, this.#body)
    return { code, result: type }
  }

  #variable<T extends ValType>(type: T, index: number): Var<T> {
    const code = [0x20]
    pushUnsigned(code, index)
    const node = make(type, code, [], undefined, this)
    return Object.assign(node, {
      set: (value: Inputs[T]) => {
        this.#emit(lift(type, value))
        this.#push(0x21, node)
      },
    })
  }

  #local<T extends ValType>(type: T, initial: Inputs[T] | undefined): Var<T> {
    const variable = this.#variable(type, this.#types.length)
    this.#types.push(type)
    if (initial !== undefined) variable.set(initial)
    return variable
  }

  /** A number as it is (it becomes an immediate), anything else computed here. */
  #once(value: I32In): I32In {
    return typeof value === 'number' ? value : this.let(value)
  }

  /** An instruction on a local: its opcode, then the index, which follows the opcode in the reading instruction. */
  #push(opcode: number, variable: Node): void {
    this.#body.push(opcode)
    for (let i = 1; i < variable.code.length; i++) this.#body.push(variable.code[i] as number)
  }

  #atomic(opcode: number, offset: number, ...args: readonly Node[]): Var<'i32'> {
    return this.let(make('i32', memoryCode([0xfe, opcode], 2, offset), args))
  }

  #statement(code: readonly number[], ...args: readonly Node[]): void {
    for (const arg of args) this.#emit(arg)
    pushAll(this.#body, code)
  }

  #nested(opcode: number, body: (label: Label) => void): void {
    this.#body.push(opcode, 0x40)
    const depth = ++this.#depth
    const branch = (code: number) => {
      if (depth > this.#depth) throw new Error('branch: the block or loop of this label has ended')
      this.#body.push(code)
      pushUnsigned(this.#body, this.#depth - depth)
    }
    body({
      br: () => branch(0x0c),
      brIf: (condition) => {
        this.#emit(liftI32(condition))
        branch(0x0d)
      },
    })
    this.#body.push(0x0b)
    this.#depth--
  }

  #emit(node: Node): void {
    const chosen = node.fallback !== undefined && !this.#relaxed ? node.fallback : node
    if (chosen.owner !== undefined && chosen.owner !== this) {
      throw new Error('expression: uses a local variable of another function')
    }
    const { args, code } = chosen
    for (let i = 0; i < args.length; i++) this.#emit(args[i] as Node)
    pushAll(this.#body, code)
  }
}
