import type { Backend, View } from '../dispatch/backend.ts'
import { type Call, takes } from '../dispatch/call.ts'
import type { ElementwiseAttrs } from '../dispatch/kernels.ts'
import { expressionWork, program, specialize, type TypedProgram, typedPostOrder } from '../expr/program.ts'
import { partOf, rebuild } from '../expr/rebuild.ts'
import type { LinearAttrs } from '../ops/linear.ts'
import { isContiguous, numel, sameShape } from '../tensor/layout.ts'
import type { Capture, Ref, Step } from './capture.ts'

/** A step that is a call. */
export type CallStep = Step & { kind: 'call' }

/** The nodes of an expression from which on registers run out. A draw of dropout has about a hundred. */
const mostNodes = 192

/** Two calls as one, at the place of the second; null where they do not go together. */
type Rule = (first: CallStep, second: CallStep, context: Context) => CallStep | null

/** What is planned, and for which backend. */
export interface Context {
  readonly backend: Backend
  readonly capture: Capture
}

/**
 * Calls whose result only one later call needs become part of it, so that it is neither written nor read: elementwise
 * expressions are put in the place of an input, also where there are many of them in one launch, and what follows a
 * product of matrices is computed while its elements are at hand.
 */
export function fuse(
  context: Context,
  steps: readonly Step[],
  wanted: ReadonlySet<number>,
): { steps: Step[]; fused: number } {
  const list: (Step | null)[] = [...steps]
  let fused = 0
  let uses = usesOf(list)
  for (let i = 0; i < list.length; i++) {
    const first = list[i]
    if (first?.kind !== 'call') continue
    const at = reader(context, first, i, uses, wanted)
    const second = at === null ? null : list[at]
    if (at === null || second?.kind !== 'call') continue
    const whole =
      elementwise(first, second, context) ??
      foreach(first, second, context) ??
      epilogue(first, second, context)
    if (!whole) continue
    list[at] = whole
    list[i] = null
    fused++
    uses = usesOf(list)
  }
  return { steps: list.filter((step) => step !== null), fused }
}

/** The steps that read and write each slot. */
export interface Uses {
  readonly reads: ReadonlyMap<number, readonly number[]>
  readonly writes: ReadonlyMap<number, readonly number[]>
}

/** Which steps read and write each slot, in order. */
export function usesOf(list: readonly (Step | null)[]): Uses {
  const reads = new Map<number, number[]>()
  const writes = new Map<number, number[]>()
  const add = (to: Map<number, number[]>, { slot }: Ref, i: number): void => {
    const known = to.get(slot)
    if (!known) to.set(slot, [i])
    else if (known[known.length - 1] !== i) known.push(i)
  }
  list.forEach((step, i) => {
    if (step?.kind === 'call') {
      for (const r of step.inputs) add(reads, r, i)
      for (const r of step.outputs) add(writes, r, i)
    } else if (step) add(writes, step.to, i)
  })
  return { reads, writes }
}

/** The one later step that needs what a step makes, where nothing that it reads changes until then; else null. */
function reader(
  { capture }: Context,
  { outputs, inputs }: CallStep,
  i: number,
  { reads, writes }: Uses,
  wanted: ReadonlySet<number>,
): number | null {
  let at: number | null = null
  for (const out of outputs) {
    if (capture.slots[out.slot].outer !== null || wanted.has(out.slot)) return null
    const later = (reads.get(out.slot) ?? []).filter((r) => r > i)
    if (later.length !== 1 || (at !== null && later[0] !== at)) return null
    at = later[0]
    for (const w of writes.get(out.slot) ?? []) {
      if (w > i && w !== at) return null
      // What others have written of it is still needed, unless it is read and overwritten in place.
      if (w < i && !inputs.some((r) => isSame(r, out))) return null
    }
  }
  if (at === null) return null
  const end = at
  return inputs.some(({ slot }) => (writes.get(slot) ?? []).some((w) => w > i && w < end)) ? null : at
}

/** Are two the same elements? */
export const isSame = (r: Ref, s: Ref): boolean =>
  r.slot === s.slot &&
  r.dtype === s.dtype &&
  r.offset === s.offset &&
  sameShape(r.shape, s.shape) &&
  sameShape(r.strides, s.strides)

/** Do outputs lie where inputs do, other than element on element? */
const spoil = (outputs: readonly Ref[], inputs: readonly Ref[]): boolean =>
  outputs.some((o) => inputs.some((r) => r.slot === o.slot && !isSame(r, o)))

/** Have two programs more nodes together than one may have? */
export const isTooLong = (a: TypedProgram, b: TypedProgram): boolean =>
  typedPostOrder(a.exprs).length + typedPostOrder(b.exprs).length > mostNodes

/** An elementwise call in the place of an input of another one of the same shape. */
const elementwise: Rule = (first, second, { backend, capture }) => {
  const kernel: unknown = backend.kernels.elementwise
  if (first.call.kernel !== kernel || second.call.kernel !== kernel || first.outputs.length !== 1) return null
  const [out] = first.outputs
  if (!isContiguous(out) || !sameShape(out.shape, second.outputs[0].shape)) return null
  const place = second.inputs.map((r) => r.slot === out.slot)
  if (!second.inputs.every((r, i) => !place[i] || isSame(r, out)) || spoil(second.outputs, first.inputs))
    return null
  const [a, b] = [programOf(first), programOf(second)]
  const inputs = [...second.inputs.filter((_, i) => !place[i]), ...first.inputs]
  const most = backend.operands?.most ?? Number.POSITIVE_INFINITY
  if (isTooLong(a, b) || new Set([...inputs, ...second.outputs].map(({ slot }) => slot)).size > most)
    return null
  const whole = joined(a, b, place)
  const numbers = merged(capture, second.call.numbers, first.call.numbers)
  const flops = (): number => expressionWork(whole) * numel(second.outputs[0].shape)
  const call: Call = { ...second.call, op: nameOf(first, second), attrs: { kernel: whole }, numbers, flops }
  return { kind: 'call', call, outputs: second.outputs, inputs }
}

/** Many elementwise calls in one launch, each in the place of the same input of one among many others. */
const foreach: Rule = (first, second, { backend, capture }) => {
  const kernel = backend.kernels.foreach
  if (!kernel || first.call.kernel !== (kernel as unknown) || second.call.kernel !== (kernel as unknown))
    return null
  const [a, b] = [programOf(first), programOf(second)]
  const count = first.outputs.length
  if (a.exprs.length !== 1 || isTooLong(a, b) || second.outputs.length !== count * b.exprs.length) return null
  const [m, n] = [a.inputs.length, b.inputs.length]
  const at = second.inputs.slice(0, n).findIndex((r) => first.outputs.some((out) => isSame(r, out)))
  if (at < 0) return null
  const place = Array.from({ length: n }, (_, k) => k === at)
  const inputs: Ref[] = []
  /** Which call of the first each of the second goes on with. */
  const order: number[] = []
  for (let c = 0; c < count; c++) {
    const mine = second.inputs.slice(n * c, n * c + n)
    const from = first.outputs.findIndex((out) => isSame(mine[at], out))
    if (from < 0 || order.includes(from)) return null
    order.push(from)
    const its = first.inputs.slice(m * from, m * from + m)
    const outputs = second.outputs.slice(b.exprs.length * c, b.exprs.length * (c + 1))
    if (!sameShape(outputs[0].shape, mine[at].shape) || spoil(outputs, its)) return null
    inputs.push(...mine.filter((_, k) => k !== at), ...its)
  }
  const whole = joined(a, b, place)
  const attrs: ElementwiseAttrs = { kernel: whole }
  const size = n - 1 + m
  for (let c = 0; c < count; c++) {
    const outputs = second.outputs.slice(b.exprs.length * c, b.exprs.length * (c + 1))
    if (!takes(kernel, asViews(capture, [...outputs, ...inputs.slice(size * c, size * c + size)]), attrs))
      return null
  }
  const numbers = merged(capture, second.call.numbers, first.call.numbers, order)
  const call: Call = { ...second.call, op: nameOf(first, second), attrs, numbers }
  return { kind: 'call', call, outputs: second.outputs, inputs }
}

const PRODUCT = program('product', 1, ([x]) => x)

/** A product of matrices in the words of `linear`: what follows it, and its weight, (N, K) where that of `matmul` is (K, N). */
export function asLinear(
  { call, inputs: [, w] }: CallStep,
  { backend: { kernels } }: Context,
): { readonly attrs: LinearAttrs; readonly weight: Ref } | null {
  if (w?.shape.length !== 2) return null
  if (call.kernel === (kernels.linear as unknown)) return { attrs: call.attrs as LinearAttrs, weight: w }
  if (call.kernel !== (kernels.matmul as unknown)) return null
  const weight = { ...w, shape: [w.shape[1], w.shape[0]], strides: [w.strides[1], w.strides[0]] }
  return { attrs: { epilogue: specialize(PRODUCT, ['float32'], []) }, weight }
}

/** The work of a call, whatever becomes part of it. */
export function workOf({ capture }: Context, { call, inputs, outputs }: CallStep): Call['flops'] {
  const flops = call.flops?.(asViews(capture, inputs), call.attrs, asViews(capture, outputs))
  return flops === undefined ? undefined : () => flops
}

/** What follows a product of matrices, element by element. */
const epilogue: Rule = (first, second, context) => {
  const { backend, capture } = context
  const { linear, elementwise: kernel } = backend.kernels
  if (!linear || second.call.kernel !== (kernel as unknown) || first.outputs.length !== 1) return null
  const own = asLinear(first, context)
  const [out] = first.outputs
  const [x, , ...extras] = first.inputs
  if (!own || out.dtype !== 'float32' || !isContiguous(out) || out.shape.length < 1) return null
  // What a product reads, others write while it runs.
  const slots = new Set([...first.inputs, ...second.inputs].map(({ slot }) => slot))
  if (second.outputs.some(({ slot }) => slots.has(slot))) return null
  const size = numel(out.shape)
  const fits = (r: Ref): boolean => r.dtype === 'float32' && numel(r.shape) === size && isContiguous(r)
  const place = second.inputs.map((r) => r.slot === out.slot)
  if (
    !second.outputs.every(fits) ||
    !second.inputs.every((r, i) => fits(r) && (!place[i] || r.offset === out.offset))
  )
    return null
  const [a, b] = [own.attrs.epilogue, programOf(second)]
  if (b.usesIndex || isTooLong(a, b)) return null
  const whole = joined(a, b, place, true)
  const laid = (r: Ref): Ref => ({ ...r, shape: out.shape, strides: out.strides })
  const inputs = [x, own.weight, ...extras, ...second.inputs.filter((_, i) => !place[i]).map(laid)]
  const { blockSize } = own.attrs
  const attrs: LinearAttrs = { epilogue: whole, ...(blockSize !== undefined && { blockSize }) }
  if (!takes(linear, asViews(capture, inputs), attrs)) return null
  const numbers = merged(capture, second.call.numbers, first.call.numbers)
  const call: Call = {
    ...first.call,
    op: nameOf(first, second),
    path: 'fused',
    kernel: linear as Call['kernel'],
    attrs,
    numbers,
    flops: workOf(context, first),
  }
  return { kind: 'call', call, outputs: second.outputs.map(laid), inputs }
}

const programOf = ({ call }: CallStep): TypedProgram => (call.attrs as ElementwiseAttrs).kernel

const nameOf = (first: CallStep, second: CallStep): string => `${first.call.op}+${second.call.op}`

/** Views that tell layouts, and which of them share memory. */
export const asViews = ({ slots }: Capture, refs: readonly Ref[]): View[] =>
  refs.map((r) => ({ ...r, buffer: slots[r.slot].outer ?? slots[r.slot] }))

/**
 * The numbers of two calls as those of the call that they became; of many in one launch, where call c of the second goes on
 * with call `order[c]` of the first.
 */
function merged(
  capture: Capture,
  second: readonly number[],
  first: readonly number[],
  order: readonly number[] = [0],
): readonly number[] {
  if (first.length === 0) return second
  const [m, n] = [first.length / order.length, second.length / order.length]
  const all = (): number[] =>
    order.flatMap((from, c) => [...second.slice(n * c, n * c + n), ...first.slice(m * from, m * from + m)])
  const numbers = all()
  if (capture.isLive(second) || capture.isLive(first)) capture.live(numbers, all)
  return numbers
}

const known = new Map<string, TypedProgram>()

/**
 * The second expression with the first in the place of some of its inputs. The inputs of the first come after the others of
 * the second, or with `leads` before them.
 */
function joined(
  first: TypedProgram,
  second: TypedProgram,
  place: readonly boolean[],
  leads = false,
): TypedProgram {
  const key = `${first.id} ${second.id} ${place.join()} ${leads}`
  const found = known.get(key)
  if (found) return found
  let next = leads ? first.inputs.length : 0
  const index = place.map((placed) => (placed ? -1 : next++))
  const offset = leads ? 0 : next
  const slots = second.params.length
  const [root] = rebuild(first.exprs, (t) =>
    t.kind === 'input'
      ? { ...t, index: offset + t.index }
      : t.kind === 'param'
        ? { ...t, slot: slots + t.slot }
        : t,
  )
  const exprs = rebuild(second.exprs, (t) =>
    t.kind !== 'input' ? t : place[t.index] ? root : { ...t, index: index[t.index] },
  )
  const rest = second.inputs.filter((_, i) => !place[i])
  const kernel: TypedProgram = {
    // Once more, so that numbers of nodes are unique.
    ...partOf(
      second,
      rebuild(exprs, (t) => t),
      leads ? [...first.inputs, ...rest] : [...rest, ...first.inputs],
    ),
    name: `${first.name}+${second.name}`,
    params: [
      ...second.params,
      ...first.params.map(({ source, dtype }) => ({ source: second.numbers + source, dtype })),
    ],
    numbers: second.numbers + first.numbers,
    whole: first.whole || second.whole,
  }
  known.set(key, kernel)
  return kernel
}
