import type { Backend } from '../dispatch/backend.ts'
import { type Call, takes } from '../dispatch/call.ts'
import type { ElementwiseAttrs } from '../dispatch/kernels.ts'
import { expressionWork, type Typed, type TypedProgram } from '../expr/program.ts'
import { interned, partOf, rebuild } from '../expr/rebuild.ts'
import type { LinearAttrs } from '../ops/linear.ts'
import { type DType, isHalf } from '../tensor/dtype.ts'
import { isContiguous, numel, sameShape } from '../tensor/layout.ts'
import type { Ref } from './capture.ts'
import { asViews, type CallStep, type Context, isSame, isTooLong } from './fuse.ts'

/** How an output of a call is computed element by element. */
export interface Recipe {
  readonly program: TypedProgram
  readonly inputs: readonly Ref[]
  readonly numbers: readonly number[]
}

const packings = new Map<string, TypedProgram>()

const converted = (t: Typed, dtype: DType): Typed => ({ id: 0, kind: 'cast', dtype, args: [t] })

/** The program of a layer as what it does in memory: it is of float32, and kernels convert operands of 16 bits themselves. */
function packed(
  program: TypedProgram,
  operands: readonly (Ref | null)[],
  outputs: readonly Ref[],
): TypedProgram {
  const dtypes = program.inputs.map((own, i) => operands[i]?.dtype ?? own)
  const results = program.exprs.map((own, i) => outputs[i]?.dtype ?? own.dtype)
  if (![...dtypes, ...results].some(isHalf)) return program
  const key = `${program.id} ${dtypes} ${results}`
  let whole = packings.get(key)
  if (!whole) {
    const exprs = rebuild(program.exprs, (t) =>
      t.kind === 'input' && isHalf(dtypes[t.index])
        ? converted({ ...t, dtype: dtypes[t.index] }, t.dtype)
        : t,
    ).map((t, i) => (t.dtype === results[i] ? t : converted(t, results[i])))
    whole = partOf(program, interned(exprs), dtypes)
    packings.set(key, whole)
  }
  return whole
}

/** The elementwise program of a call: all that it does, or what follows its product. */
export function programIn(
  { kernels }: Backend,
  { call, inputs, outputs }: CallStep,
): {
  readonly program: TypedProgram
  readonly operands: readonly (Ref | null)[]
  readonly isLinear: boolean
} | null {
  const { kernel, attrs } = call
  if (kernel === (kernels.elementwise as unknown))
    return { program: (attrs as ElementwiseAttrs).kernel, operands: inputs, isLinear: false }
  if (kernel !== (kernels.linear as unknown)) return null
  // The product itself lies nowhere.
  const operands = [null, ...inputs.slice(2)]
  return { program: packed((attrs as LinearAttrs).epilogue, operands, outputs), operands, isLinear: true }
}

const parts = new Map<string, TypedProgram>()

/**
 * How to compute output `o` of an elementwise call, or of one that ends with an elementwise program, of those of its inputs
 * and of its other outputs that are usable; null if they do not suffice. It gives the same bits.
 */
export function recipeOf(
  backend: Backend,
  step: CallStep,
  o: number,
  usable: (r: Ref) => boolean,
): Recipe | null {
  const found = programIn(backend, step)
  if (!found) return null
  const { program, operands } = found
  const { outputs, call } = step
  const { numbers } = call
  if (!found.isLinear && outputs.length === 1)
    return step.inputs.every(usable) ? { program, inputs: step.inputs, numbers } : null
  const inputs: Ref[] = []
  const index = new Map<Typed, number>()
  const seen = new Set<Typed>()
  const finds = (t: Typed): boolean => {
    if (seen.has(t)) return true
    seen.add(t)
    // Of 16 bits it is what has been rounded: the same to rounding, as all that is computed beside something else.
    const other = program.exprs.findIndex(
      (x, j) =>
        j !== o &&
        (x === t || (x.kind === 'cast' && isHalf(x.dtype) && x.args[0] === t)) &&
        usable(outputs[j]),
    )
    const from = other >= 0 ? outputs[other] : t.kind === 'input' ? operands[t.index] : undefined
    if (from === undefined) return t.args.every(finds)
    if (from === null || !usable(from)) return false
    index.set(t, inputs.push(from) - 1)
    return true
  }
  if (!finds(program.exprs[o])) return null
  const key = `${program.id} ${o} ${[...index.keys()].map(({ id }) => id)}`
  let part = parts.get(key)
  if (!part) {
    const exprs = rebuild([program.exprs[o]], (t) => {
      const at = index.get(t)
      if (at === undefined) return t
      const { dtype } = inputs[at]
      const input: Typed = { id: 0, kind: 'input', dtype, index: at, args: [] }
      return dtype === t.dtype ? input : converted(input, t.dtype)
    })
    part = partOf(
      program,
      interned(exprs),
      inputs.map(({ dtype }) => dtype),
    )
    parts.set(key, part)
  }
  return { program: part, inputs, numbers }
}

const joins = new Map<string, TypedProgram>()

/**
 * A call that computes a recipe as well, into `out`, as it reads all that the recipe needs, which has no numbers; null if it does
 * not, or takes no more.
 */
export function joined(
  { backend, capture }: Context,
  host: CallStep,
  { program: part, inputs, numbers }: Recipe,
  out: Ref,
): CallStep | null {
  const found = programIn(backend, host)
  if (!found || numbers.length > 0) return null
  const { program, operands, isLinear } = found
  const [{ shape, strides }] = host.outputs
  const size = numel(shape)
  const fits = (r: Ref): boolean => numel(r.shape) === size && isContiguous(r)
  const reshaped = !sameShape(shape, out.shape)
  if (!isContiguous(host.outputs[0]) || !fits(out) || (reshaped && (part.usesIndex || !inputs.every(fits))))
    return null
  const at = inputs.map((r) =>
    operands.findIndex(
      (p) =>
        p !== null &&
        (isSame(p, r) || (fits(p) && fits(r) && isSame({ ...p, shape: r.shape, strides: r.strides }, r))),
    ),
  )
  if (at.includes(-1) || isTooLong(program, part)) return null
  const outputs = [...host.outputs, { ...out, shape, strides }]
  const most = isLinear ? Number.POSITIVE_INFINITY : (backend.operands?.most ?? Number.POSITIVE_INFINITY)
  if (new Set([...outputs, ...host.inputs].map(({ slot }) => slot)).size > most) return null
  const key = `${program.id} ${part.id} ${at}`
  let whole = joins.get(key)
  if (!whole) {
    whole = withPart(program, part, at)
    joins.set(key, whole)
  }
  const kernel = whole
  const attrs: LinearAttrs | ElementwiseAttrs = isLinear ? { epilogue: kernel } : { kernel }
  if (isLinear && (kernel.usesIndex || !takes(host.call.kernel, asViews(capture, host.inputs), attrs)))
    return null
  const call: Call = {
    ...host.call,
    attrs,
    ...(!isLinear && { flops: () => expressionWork(kernel) * size }),
  }
  return { kind: 'call', call, outputs, inputs: host.inputs }
}

/** A program with the expression of another one as its last output, whose inputs are those at `at`. */
function withPart(program: TypedProgram, part: TypedProgram, at: readonly number[]): TypedProgram {
  const [root] = rebuild(part.exprs, (t) => (t.kind === 'input' ? { ...t, index: at[t.index] } : t))
  // What both compute is computed once.
  return partOf(program, interned([...program.exprs, root]), program.inputs)
}
