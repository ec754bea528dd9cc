import { type DType, isFloat, promote, toFloat, toSum } from './dtype.ts'
import { DTypeError } from './errors.ts'
import type { Expr } from './expr.ts'
import * as e from './expr.ts'
import { derive } from './expr-grad.ts'

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
  /** Operands have the node's dtype, except of `isnan` and `not` (bool results). */
  | {
      readonly id: number
      readonly kind: 'unary'
      readonly dtype: DType
      readonly op: e.Unary
      readonly args: readonly Typed[]
    }
  /** Both operands have the same dtype: the node's, or for comparisons (bool results) their own. */
  | {
      readonly id: number
      readonly kind: 'binary'
      readonly dtype: DType
      readonly op: e.Binary
      readonly args: readonly Typed[]
    }
  /** args: condition (bool), then, else. */
  | { readonly id: number; readonly kind: 'select'; readonly dtype: DType; readonly args: readonly Typed[] }
  | { readonly id: number; readonly kind: 'cast'; readonly dtype: DType; readonly args: readonly Typed[] }

/** A program typed for given input dtypes. `id` is unique per process: backends cache their kernels by it. */
export interface Kernel {
  readonly id: number
  readonly name: string
  /** One per output; the root's dtype is the output's. */
  readonly exprs: readonly Typed[]
  readonly inputs: readonly DType[]
  /** What each param slot holds: the call's number `source`, as the slot's dtype. */
  readonly params: readonly { readonly source: number; readonly dtype: DType }[]
  readonly usesIndex: boolean
}

/**
 * Expressions over `inputs` tensors and `params` numbers, with one output each: the definition of an elementwise
 * operator. Build one with `program('gelu', 1, ([x]) => …)`.
 */
export interface Program {
  readonly name: string
  readonly inputs: number
  readonly params: number
  readonly exprs: readonly Expr[]
  readonly kernels: Map<string, Kernel>
  readonly gradients: Map<string, Gradient>
}

export function program(
  name: string,
  inputs: number,
  build: (inputs: readonly Expr[], params: readonly Expr[]) => Expr | readonly Expr[],
  params = 0,
): Program {
  const list = <T>(n: number, f: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => f(i))
  const built = build(list(inputs, e.input), list(params, e.param))
  const exprs = Array.isArray(built) ? (built as readonly Expr[]) : [built as Expr]
  return { name, inputs, params, exprs, kernels: new Map(), gradients: new Map() }
}

/** How to compute the gradients of some inputs of a program: a program over picked inputs, outputs and output gradients. */
export interface Gradient {
  readonly program: Program
  /** For each input of the gradient's program, where it comes from. */
  readonly sources: readonly { readonly from: 'input' | 'output' | 'dout'; readonly index: number }[]
  /** For each output of the gradient's program, the input whose gradient it is; inputs without one are absent. */
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
    },
    sources,
    targets,
    direct,
  }
  p.gradients.set(key, g)
  return g
}

let kernelCount = 0

/**
 * Types a program for input dtypes. A whole-valued param counts as an integer, a fraction as a float; both are weak:
 * they take the dtype of what they meet where that loses nothing. `outputs` forces the outputs' dtypes.
 */
export function specialize(
  p: Program,
  inputs: readonly DType[],
  params: readonly number[],
  outputs?: readonly DType[],
): Kernel {
  let key = ''
  for (const d of inputs) key += d
  for (const v of params) key += Number.isInteger(v) ? 'i' : 'f'
  if (outputs) key += `>${outputs.join()}`
  const known = p.kernels.get(key)
  if (known) return known
  const kernel = typeProgram(p, inputs, params, outputs)
  p.kernels.set(key, kernel)
  return kernel
}

/** During typing a number that has not met a tensor yet is weak. */
type Draft = { readonly typed: Typed; readonly weak: 'int' | 'float' | null }

function typeProgram(
  p: Program,
  inputs: readonly DType[],
  params: readonly number[],
  outputs?: readonly DType[],
): Kernel {
  const built = new Map<string, Typed>()
  let ids = 0
  const node = (key: string, make: (id: number) => Typed): Typed => {
    let t = built.get(key)
    if (!t) {
      t = make(ids++)
      built.set(key, t)
    }
    return t
  }
  const slots: { source: number; dtype: DType }[] = []
  const paramAs = (source: number, dtype: DType): Typed =>
    node(`p${source}${dtype}`, (id) => ({
      id,
      kind: 'param',
      dtype,
      slot: slots.push({ source, dtype }) - 1,
      args: [],
    }))
  const sourceOf = new Map<Typed, number>()
  const convert = (t: Typed, to: DType): Typed => {
    const source = sourceOf.get(t)
    if (source !== undefined) return paramAs(source, to)
    if (t.dtype === to) return t
    if (t.kind === 'const')
      return node(`c${t.value}${to}`, (id) => ({
        id,
        kind: 'const',
        dtype: to,
        value: to === 'bool' ? Number(t.value !== 0) : t.value,
        args: [],
      }))
    return node(`t${t.id}${to}`, (id) => ({ id, kind: 'cast', dtype: to, args: [t] }))
  }
  const drafts = new Map<Expr, Draft>()
  const solid = (typed: Typed): Draft => ({ typed, weak: null })
  const draft = (x: Expr): Draft => {
    let d = drafts.get(x)
    if (!d) {
      d = make(x)
      drafts.set(x, d)
    }
    return d
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
  const weakOf = (...ds: readonly Draft[]): Draft['weak'] =>
    ds.every((d) => d.weak) ? (ds.some((d) => d.weak === 'float') ? 'float' : 'int') : null
  const apply = (
    kind: 'unary' | 'binary',
    op: e.Unary | e.Binary,
    dtype: DType,
    args: readonly Typed[],
  ): Typed =>
    node(`${op},${dtype},${args.map((a) => a.id).join()}`, (id) => ({ id, kind, op, dtype, args }) as Typed)

  const make = (x: Expr): Draft => {
    switch (x.kind) {
      case 'input':
        return solid(
          node(`i${x.index}`, (id) => ({
            id,
            kind: 'input',
            dtype: inputs[x.index],
            index: x.index,
            args: [],
          })),
        )
      case 'param': {
        // Weak until it meets a tensor; `convert` then gives it a slot of that dtype. The draft itself is never lowered.
        const whole = Number.isInteger(params[x.index])
        const typed: Typed = {
          id: -1 - x.index,
          kind: 'param',
          dtype: whole ? 'int32' : 'float64',
          slot: -1,
          args: [],
        }
        sourceOf.set(typed, x.index)
        return { typed, weak: whole ? 'int' : 'float' }
      }
      case 'const': {
        const whole = Number.isInteger(x.value)
        const dtype = whole ? 'int32' : 'float64'
        return {
          typed: node(`c${x.value}${dtype}`, (id) => ({
            id,
            kind: 'const',
            dtype,
            value: x.value,
            args: [],
          })),
          weak: whole ? 'int' : 'float',
        }
      }
      case 'index':
        return solid(node('x', (id) => ({ id, kind: 'index', dtype: 'int32', args: [] })))
      case 'coord':
        return solid(node(`d${x.dim}`, (id) => ({ id, kind: 'coord', dtype: 'int32', dim: x.dim, args: [] })))
      case 'cast':
        return solid(convert(draft(x.a).typed, x.to))
      case 'select': {
        const [c, a, b] = [draft(x.cond), draft(x.a), draft(x.b)]
        const dtype = common(a, b)
        const args = [convert(c.typed, 'bool'), convert(a.typed, dtype), convert(b.typed, dtype)]
        const typed = node(`s${args.map((t) => t.id).join()}`, (id) => ({ id, kind: 'select', dtype, args }))
        return { typed, weak: weakOf(a, b) }
      }
      case 'unary': {
        const a = draft(x.a)
        const from = common(a)
        if (x.op === 'not') return solid(apply('unary', 'not', 'bool', [convert(a.typed, 'bool')]))
        if (x.op === 'isnan')
          return solid(
            apply('unary', 'isnan', 'bool', [
              isFloat(from) ? convert(a.typed, from) : convert(a.typed, 'float32'),
            ]),
          )
        const integer = x.op === 'neg' || x.op === 'abs' || x.op === 'sign'
        const rounding = x.op === 'floor' || x.op === 'ceil' || x.op === 'round'
        if (rounding && !isFloat(from)) return a
        const dtype = integer ? toSum(from) : toFloat(from)
        return {
          typed: apply('unary', x.op, dtype, [convert(a.typed, dtype)]),
          weak: a.weak && integer ? a.weak : a.weak ? 'float' : null,
        }
      }
      case 'binary':
        return binary(x)
    }
  }
  const binary = (x: Extract<Expr, { kind: 'binary' }>): Draft => {
    const a = draft(x.a)
    const b = draft(x.b)
    let dtype = common(a, b)
    let weak = weakOf(a, b)
    switch (x.op) {
      case 'lt':
      case 'le':
      case 'gt':
      case 'ge':
      case 'eq':
      case 'ne': {
        // Bools compare as 0 and 1.
        const of = toSum(dtype)
        return solid(apply('binary', x.op, 'bool', [convert(a.typed, of), convert(b.typed, of)]))
      }
      case 'and':
      case 'or':
      case 'xor':
        if (isFloat(dtype)) throw new DTypeError(`${p.name}: ${x.op} takes bool or int32, not ${dtype}`)
        break
      case 'shl':
      case 'shr':
        dtype = 'int32'
        break
      case 'div':
        dtype = toFloat(dtype)
        if (weak) weak = 'float'
        break
      case 'max':
      case 'min':
        break
      default:
        dtype = toSum(dtype)
    }
    return { typed: apply('binary', x.op, dtype, [convert(a.typed, dtype), convert(b.typed, dtype)]), weak }
  }
  const exprs = p.exprs.map((x, i) => {
    const d = draft(x)
    const want = outputs?.[i] ?? (d.weak ? common(d) : d.typed.dtype)
    return convert(d.typed, want)
  })
  const usesIndex = typedPostOrder(exprs).some((t) => t.kind === 'index' || t.kind === 'coord')
  return { id: kernelCount++, name: p.name, exprs, inputs, params: slots, usesIndex }
}

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
