import { DTypeError } from '../errors.ts'
import { checkFits, type DType, isFloat, promote, toFloat, toSum } from '../tensor/dtype.ts'
import { derive } from './derive.ts'
import type { Expr } from './expr.ts'
import * as e from './expr.ts'

/** An expression whose every node has a dtype and whose conversions are explicit: what backends lower. */
export type Typed =
  | {
      readonly id: number
      readonly kind: 'input'
      readonly dtype: DType
      readonly index: number
      readonly args: readonly Typed[]
    }
  /** Reads slot `slot` of the kernel's params. */
  | {
      readonly id: number
      readonly kind: 'param'
      readonly dtype: DType
      readonly slot: number
      readonly args: readonly Typed[]
    }
  | {
      readonly id: number
      readonly kind: 'const'
      readonly dtype: DType
      readonly value: number
      readonly args: readonly Typed[]
    }
  | { readonly id: number; readonly kind: 'index'; readonly dtype: DType; readonly args: readonly Typed[] }
  | {
      readonly id: number
      readonly kind: 'coord'
      readonly dtype: DType
      readonly dim: number
      readonly args: readonly Typed[]
    }
  /** A node of one operand, which has the node's dtype, except of `isnan` and `not` (bool results). */
  | {
      readonly id: number
      readonly kind: 'unary'
      readonly dtype: DType
      readonly op: e.Unary
      readonly args: readonly Typed[]
    }
  /** A node of two operands of one dtype, which is the node's, or for comparisons (bool results) their own. */
  | {
      readonly id: number
      readonly kind: 'binary'
      readonly dtype: DType
      readonly op: e.Binary
      readonly args: readonly Typed[]
    }
  /** A choice; its args are the condition (bool), the value where it is true and the value where it is false. */
  | { readonly id: number; readonly kind: 'select'; readonly dtype: DType; readonly args: readonly Typed[] }
  | { readonly id: number; readonly kind: 'cast'; readonly dtype: DType; readonly args: readonly Typed[] }

/** Counts the arithmetic nodes of an expression: its operations per element. */
export const expressionWork = ({ exprs }: TypedProgram): number =>
  typedPostOrder(exprs).filter((t) => t.kind === 'unary' || t.kind === 'binary').length

/** A program typed for given input dtypes. `id` is unique per process: backends cache their kernels by it. */
export interface TypedProgram {
  /** A number that no other kernel has, by which backends keep compiled code. */
  readonly id: number
  /** What profiles and errors call it. */
  readonly name: string
  /** The program that it is a form of. */
  readonly program: Program
  /** The expression of each output, whose dtype is the output's. */
  readonly exprs: readonly Typed[]
  /** The dtypes of the inputs. */
  readonly inputs: readonly DType[]
  /** How many numbers a call brings. */
  readonly numbers: number
  /** What each param slot holds: the call's number `source`, as the slot's dtype. */
  readonly params: readonly { readonly source: number; readonly dtype: DType }[]
  /** Says whether an element depends on where it stands. */
  readonly usesIndex: boolean
  /** Says whether there are numbers of a call that must fit int32. */
  readonly whole: boolean
  /** The first result that its output, asked for in another dtype, cannot hold (PyTorch's canCast), and that dtype. */
  readonly lost: readonly [result: DType, output: DType] | null
}

/**
 * Expressions over `inputs` tensors and `params` numbers, with one output each: the definition of an elementwise
 * operator. Build one with `program('gelu', 1, ([x]) => …)`.
 */
export interface Program {
  /** What profiles and errors call it. */
  readonly name: string
  /** How many tensors it takes. */
  readonly inputs: number
  /** How many numbers it takes. */
  readonly params: number
  /** What it computes, one expression for each output. */
  readonly exprs: readonly Expr[]
  /** The program's typed forms, made so far. */
  readonly kernels: Map<string, TypedProgram>
  /** The program's gradients, made so far. */
  readonly gradients: Map<string, Gradient>
  /** The kernel that was asked for last, and for what. */
  latest: Request | null
}

interface Request {
  readonly kernel: TypedProgram
  readonly inputs: readonly DType[]
  readonly params: readonly number[]
  readonly outputs: readonly DType[] | undefined
}

/**
 * An elementwise operator as data: `build` gets an expression for each input and each param and returns the output's
 * expression, or a list with one for each output. It runs at the program's first use, so that importing costs nothing.
 *
 * @example
 * const SQUARED_ERROR = program('squared_error', 2, ([a, b]) => expr.square(expr.sub(a, b)))
 */
// What is not used can be left out of a bundle: calling it has no effect of its own.
/* @__NO_SIDE_EFFECTS__ */
export function program<I extends number, P extends number = 0>(
  name: string,
  inputs: I,
  build: (inputs: Exprs<I>, params: Exprs<P>) => Expr | readonly Expr[],
  params: P = 0 as P,
): Program {
  return new BuiltLater(name, inputs, params, build as Build)
}

/** So many expressions; where it is only known when the program runs how many, any number. */
export type Exprs<N extends number> = number extends N ? readonly Expr[] : ExactlySo<N>
type ExactlySo<N extends number, Found extends readonly Expr[] = []> = Found['length'] extends N
  ? Found
  : ExactlySo<N, readonly [...Found, Expr]>

type Build = (inputs: readonly Expr[], params: readonly Expr[]) => Expr | readonly Expr[]

class BuiltLater implements Program {
  readonly name: string
  readonly inputs: number
  readonly params: number
  readonly kernels = new Map<string, TypedProgram>()
  readonly gradients = new Map<string, Gradient>()
  latest: Request | null = null
  #exprs: readonly Expr[] | null = null
  readonly #build: Build

  constructor(name: string, inputs: number, params: number, build: Build) {
    this.name = name
    this.inputs = inputs
    this.params = params
    this.#build = build
  }

  get exprs(): readonly Expr[] {
    if (this.#exprs === null) {
      const list = <T>(n: number, f: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => f(i))
      const built = this.#build(list(this.inputs, e.input), list(this.params, e.param))
      this.#exprs = Array.isArray(built) ? (built as readonly Expr[]) : [built as Expr]
    }
    return this.#exprs
  }
}

/** How to compute the gradients of some inputs of a program: a program over picked inputs, outputs and output gradients. */
export interface Gradient {
  /** The program that computes them. */
  readonly program: Program
  /** The origin of each input of the gradient's program. */
  readonly sources: readonly { readonly from: 'input' | 'output' | 'dout'; readonly index: number }[]
  /** The input whose gradient each output of the gradient's program is; inputs without one are absent. */
  readonly targets: readonly number[]
  /** Inputs whose gradient is an output's gradient as it stands, so that nothing needs computing. */
  readonly direct: readonly { readonly target: number; readonly dout: number }[]
}

/**
 * The gradient program for the inputs in `wanted`, given which outputs have a gradient. Where the derivative repeats
 * the forward expression (exp, tanh, sigmoid), the saved output is read instead.
 */
export function gradient(p: Program, wanted: readonly number[], douts: readonly number[]): Gradient {
  const key = `${wanted.join()}|${douts.join()}`
  const known = p.gradients.get(key)
  if (known) return known
  // Outputs and their gradients become inputs after the program's own; unused ones are dropped below.
  const outBase = p.inputs
  const dBase = p.inputs + p.exprs.length
  const sum = new Map<number, Expr>()
  for (const o of douts) {
    for (const [i, d] of derive(p.exprs[o], e.input(dBase + o))) {
      if (!wanted.includes(i)) continue
      const have = sum.get(i)
      sum.set(i, have ? e.add(have, d) : d)
    }
  }
  const asOutput = new Map<Expr, Expr>()
  p.exprs.forEach((x, o) => {
    if (x.kind === 'unary' || x.kind === 'binary') asOutput.set(x, e.input(outBase + o))
  })
  const direct: { target: number; dout: number }[] = []
  for (const [target, d] of sum) {
    if (d.kind !== 'input' || d.index < dBase) continue
    direct.push({ target, dout: d.index - dBase })
    sum.delete(target)
  }
  const targets = [...sum.keys()].sort((a, b) => a - b)
  const exprs = targets.map((i) => e.substitute(sum.get(i) as Expr, asOutput))
  const used = e
    .postOrder(exprs)
    .flatMap((x) => (x.kind === 'input' ? [x.index] : []))
    .sort((a, b) => a - b)
  const renumber = new Map<Expr, Expr>(used.map((old, now) => [e.input(old), e.input(now)]))
  const sources = used.map((i) =>
    i < outBase
      ? ({ from: 'input', index: i } as const)
      : i < dBase
        ? ({ from: 'output', index: i - outBase } as const)
        : ({ from: 'dout', index: i - dBase } as const),
  )
  const g: Gradient = {
    program: {
      name: `${p.name}.grad`,
      inputs: used.length,
      params: p.params,
      exprs: exprs.map((x) => e.substitute(x, renumber)),
      kernels: new Map(),
      gradients: new Map(),
      latest: null,
    },
    sources,
    targets,
    direct,
  }
  p.gradients.set(key, g)
  return g
}

let kernelCount = 0

/** A number for a kernel that no other one has. @internal */
export const nextKernel = (): number => kernelCount++

/**
 * Types a program for input dtypes. A whole-valued param counts as an integer, a fraction as a float; both are weak:
 * they take the dtype of what they meet where that loses nothing. `outputs` forces the outputs' dtypes.
 *
 * @throws DTypeError for a number that would have to be an int32 and is out of its range.
 */
export function specialize(
  p: Program,
  inputs: readonly DType[],
  params: readonly number[],
  outputs?: readonly DType[],
): TypedProgram {
  const { latest } = p
  if (latest && asks(latest, inputs, params, outputs)) {
    if (latest.kernel.whole) checkNumbers(latest.kernel, params)
    return latest.kernel
  }
  let key = ''
  for (const d of inputs) key += d
  for (const v of params) key += Number.isInteger(v) ? 'i' : 'f'
  if (outputs) key += `>${outputs.join()}`
  let kernel = p.kernels.get(key)
  if (!kernel) {
    kernel = typeProgram(p, inputs, params, outputs)
    p.kernels.set(key, kernel)
  }
  if (kernel.whole) checkNumbers(kernel, params)
  p.latest = { kernel, inputs: [...inputs], params: [...params], outputs: outputs && [...outputs] }
  return kernel
}

function checkNumbers({ name, params: slots }: TypedProgram, params: readonly number[]): void {
  for (const { source, dtype } of slots) checkFits(name, params[source], dtype)
}

/** Whether a call asks for the kernel of the latest request. */
function asks(
  latest: Request,
  inputs: readonly DType[],
  params: readonly number[],
  outputs: readonly DType[] | undefined,
): boolean {
  if (latest.inputs.length !== inputs.length || latest.params.length !== params.length) return false
  if (latest.outputs?.length !== outputs?.length) return false
  for (let i = 0; i < inputs.length; i++) if (latest.inputs[i] !== inputs[i]) return false
  for (let i = 0; i < params.length; i++)
    if (Number.isInteger(latest.params[i]) !== Number.isInteger(params[i])) return false
  if (latest.outputs && outputs)
    for (let i = 0; i < outputs.length; i++) if (latest.outputs[i] !== outputs[i]) return false
  return true
}

/** A node without its number, and without operands where it has none. */
type Node<T = Typed> = T extends Typed ? Omit<T, 'id' | 'args'> & Partial<Pick<T, 'args'>> : never

/**
 * During typing, an expression of numbers alone is weak: it is built only once it is known what it meets, in that
 * dtype, so that a float64 program does not round its constants to float32.
 */
type Draft =
  | { readonly typed: Typed; readonly weak: null }
  | { readonly x: Expr; readonly weak: 'int' | 'float' }

function typeProgram(
  p: Program,
  inputs: readonly DType[],
  params: readonly number[],
  outputs?: readonly DType[],
): TypedProgram {
  const built = new Map<string, Typed>()
  const node = (key: string, what: Node): Typed => {
    const t = built.get(key) ?? ({ args: [], ...what, id: built.size } as Typed)
    built.set(key, t)
    return t
  }
  const slots: { source: number; dtype: DType }[] = []
  const paramAs = (source: number, dtype: DType): Typed => {
    const key = `p${source}${dtype}`
    return built.get(key) ?? node(key, { kind: 'param', dtype, slot: slots.push({ source, dtype }) - 1 })
  }
  const constant = (value: number, dtype: DType): Typed =>
    node(`c${Object.is(value, -0) ? '-0' : value}${dtype}`, {
      kind: 'const',
      dtype,
      value: dtype === 'bool' ? Number(value !== 0) : value,
    })
  const apply = (
    kind: 'unary' | 'binary',
    op: e.Unary | e.Binary,
    dtype: DType,
    args: readonly Typed[],
  ): Typed => node(`${op},${dtype},${args.map((a) => a.id).join()}`, { kind, op, dtype, args } as Node)
  const choose = (dtype: DType, args: readonly Typed[]): Typed =>
    node(`s${args.map((t) => t.id).join()}`, { kind: 'select', dtype, args })
  const cast = (t: Typed, to: DType): Typed =>
    t.dtype === to ? t : node(`t${t.id}${to}`, { kind: 'cast', dtype: to, args: [t] })

  const drafts = new Map<Expr, Draft>()
  const draft = (x: Expr): Draft => {
    let d = drafts.get(x)
    if (!d) {
      d = make(x)
      drafts.set(x, d)
    }
    return d
  }
  const solid = (typed: Typed): Draft => ({ typed, weak: null })
  const convert = (d: Draft, to: DType): Typed => (d.weak ? weakAs(d.x, d.weak, to) : cast(d.typed, to))
  /** An expression of numbers computed in `to`, or where that is too narrow for it converted afterwards. */
  const weakAs = (x: Expr, weak: 'int' | 'float', to: DType): Typed => {
    if (x.kind === 'param') return paramAs(x.index, to)
    if (x.kind === 'const') return constant(x.value, to)
    if (weak === 'float' && !isFloat(to)) return cast(weakAs(x, weak, 'float32'), to)
    if (to === 'bool') return cast(weakAs(x, weak, 'int32'), to)
    if (x.kind === 'unary') return apply('unary', x.op, to, [convert(draft(x.a), to)])
    if (x.kind === 'binary')
      return apply('binary', x.op, to, [convert(draft(x.a), to), convert(draft(x.b), to)])
    if (x.kind !== 'select') throw new DTypeError(`${p.name}: ${x.kind} is no number`)
    return choose(to, [convert(draft(x.cond), 'bool'), convert(draft(x.a), to), convert(draft(x.b), to)])
  }
  /** The common dtype of operands: tensors' dtypes promote; a weak fraction lifts integers to float32. */
  const common = (...ds: readonly Draft[]): DType => {
    let out: DType | null = null
    for (const d of ds) if (!d.weak) out = out ? promote(out, d.typed.dtype) : d.typed.dtype
    const fraction = ds.some((d) => d.weak === 'float')
    if (!out) return fraction ? 'float32' : 'int32'
    if (fraction) return toFloat(out)
    return out === 'bool' && ds.some((d) => d.weak) ? 'int32' : out
  }
  /** The weak type of an operation on operands that are all weak, for which nothing is built yet; otherwise null. */
  const weakOf = (...ds: readonly Draft[]): 'int' | 'float' | null =>
    ds.every((d) => d.weak) ? (ds.some((d) => d.weak === 'float') ? 'float' : 'int') : null

  const make = (x: Expr): Draft => {
    switch (x.kind) {
      case 'input':
        return solid(node(`i${x.index}`, { ...x, dtype: inputs[x.index] }))
      case 'param':
        return { x, weak: Number.isInteger(params[x.index]) ? 'int' : 'float' }
      case 'const':
        return { x, weak: Number.isInteger(x.value) ? 'int' : 'float' }
      case 'index':
        return solid(node('x', { ...x, dtype: 'int32' }))
      case 'coord':
        return solid(node(`d${x.dim}`, { ...x, dtype: 'int32' }))
      case 'cast':
        return solid(convert(draft(x.a), x.to))
      case 'select': {
        const [a, b] = [draft(x.a), draft(x.b)]
        const weak = weakOf(a, b)
        if (weak) return { x, weak }
        const dtype = common(a, b)
        return solid(choose(dtype, [convert(draft(x.cond), 'bool'), convert(a, dtype), convert(b, dtype)]))
      }
      case 'unary':
        return unary(x)
      case 'binary':
        return binary(x)
    }
  }
  const unary = (x: Extract<Expr, { kind: 'unary' }>): Draft => {
    const a = draft(x.a)
    const from = common(a)
    const integer = x.op === 'neg' || x.op === 'abs' || x.op === 'sign'
    if (x.op === 'not') return solid(apply('unary', 'not', 'bool', [convert(a, 'bool')]))
    if (x.op === 'isnan') return solid(apply('unary', 'isnan', 'bool', [convert(a, toFloat(from))]))
    if ((x.op === 'floor' || x.op === 'ceil' || x.op === 'round') && !isFloat(from)) return a
    if (a.weak) return { x, weak: integer ? a.weak : 'float' }
    if (x.op === 'sign' && from === 'bool') return a
    const dtype = integer ? toSum(from) : toFloat(from)
    return solid(apply('unary', x.op, dtype, [convert(a, dtype)]))
  }
  const binary = (x: Extract<Expr, { kind: 'binary' }>): Draft => {
    const a = draft(x.a)
    const b = draft(x.b)
    const at = (op: e.Binary, dtype: DType, result = dtype): Draft =>
      solid(apply('binary', op, result, [convert(a, dtype), convert(b, dtype)]))
    const dtype = common(a, b)
    const weak = weakOf(a, b)
    switch (x.op) {
      case 'lt':
      case 'le':
      case 'gt':
      case 'ge':
      case 'eq':
      case 'ne':
        // Bools compare as 0 and 1.
        return at(x.op, toSum(dtype), 'bool')
      case 'and':
      case 'or':
      case 'xor':
        if (isFloat(dtype)) throw new DTypeError(`${p.name}: ${x.op} takes bool or int32, not ${dtype}`)
        return at(x.op, dtype)
      case 'shl':
      case 'shr':
        return at(x.op, 'int32')
      case 'div':
        return weak ? { x, weak: 'float' } : at(x.op, toFloat(dtype))
      default:
    }
    if (weak) return { x, weak }
    if (dtype !== 'bool') return at(x.op, dtype)
    // Two bools stay bool where that means something, as in PyTorch.
    if (x.op === 'max' || x.op === 'add') return at('or', 'bool')
    if (x.op === 'min' || x.op === 'mul') return at('and', 'bool')
    return at(x.op, 'int32')
  }
  let lost: [DType, DType] | null = null
  const exprs = p.exprs.map((x, i) => {
    const d = draft(x)
    const own = common(d)
    const dtype = outputs?.[i] ?? own
    if (isFloat(own) ? !isFloat(dtype) : own === 'int32' && dtype === 'bool') lost ??= [own, dtype]
    return convert(d, dtype)
  })
  const whole = slots.some((slot) => slot.dtype === 'int32')
  const positions = usesIndex(exprs)
  const slotted = { exprs, inputs, numbers: p.params, params: slots, usesIndex: positions, whole, lost }
  return { id: kernelCount++, name: p.name, program: p, ...slotted }
}

/** Does an element depend on where it stands? @internal */
export const usesIndex = (exprs: readonly Typed[]): boolean =>
  typedPostOrder(exprs).some((t) => t.kind === 'index' || t.kind === 'coord')

/** Every node of some typed expressions once, operands before their users: the order to emit code in. */
export function typedPostOrder(roots: readonly Typed[]): Typed[] {
  const seen = new Set<Typed>()
  const out: Typed[] = []
  const visit = (t: Typed): void => {
    if (seen.has(t)) return
    seen.add(t)
    t.args.forEach(visit)
    out.push(t)
  }
  roots.forEach(visit)
  return out
}
