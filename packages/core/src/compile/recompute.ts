/**
 * Computes values a second time rather than keeping them (Chen et al. 2016; Jain et al. 2020 solve a linear program to
 * choose them, here the cheapest goes first): where a step needs most memory, what lies there unused until much later goes,
 * if it is cheap to compute again from what stays anyway. An activation is of the sum that its gradient needs; so is a
 * normalised input of its input.
 *
 * Programs that run again on the inputs that they had give the bits that they gave. Best is what a later call can compute beside its own, as it reads
 * the same: that takes no launch, and what both programs compute is computed once, which is to rounding.
 *
 * Test: recompute.test.ts.
 */

import type { Backend } from '../dispatch/backend.ts'
import type { ElementwiseAttrs } from '../dispatch/kernels.ts'
import { expressionWork, type TypedProgram, typedPostOrder } from '../expr/program.ts'
import { info } from '../tensor/dtype.ts'
import { isContiguous, numel } from '../tensor/layout.ts'
import type { Interval } from './arrange.ts'
import type { Ref, Step } from './capture.ts'
import { asViews, type CallStep, type Context, type Uses, usesOf } from './fuse.ts'
import { joined, programIn, recipeOf } from './recipe.ts'

/** What is smaller is kept. */
const least = 2 ** 14
/** The part of all work that may be added. */
const share = 1 / 50
/** Operations in the time of a byte, on processors and GPUs alike; and those of a function such as exp or erf. */
const flopsPerByte = 8
const functionFlops = 128
/** Bytes in the time of a launch. */
const launchBytes = ({ prepare }: Backend): number => (prepare ? 2 ** 24 : 2 ** 17)
/** So many steps after the one that needs a value, a call may compute it beside its own. */
const reach = 3

/** One way to compute a value again: what it costs, and all steps then. */
interface Choice {
  readonly bytes: number
  readonly cost: number
  make(): Step[]
}

/**
 * Steps that need less memory at a time, as some of what they compute is computed again; and how often.
 *
 * @param fixed slots that stay: results and gradients.
 * @param fusing says whether parts of calls may be computed by other calls, which is to rounding.
 * @param when says of steps when each slot is in use.
 */
export function recompute(
  context: Context,
  steps: readonly Step[],
  fixed: ReadonlySet<number>,
  fusing: boolean,
  when: (steps: readonly Step[]) => readonly Interval[],
): { readonly steps: readonly Step[]; readonly recomputed: number } {
  let list = steps
  let used = when(steps)
  let peak = peakOf(used)
  let best = { steps, recomputed: 0, bytes: peak.bytes }
  const most = peak.bytes
  let left = share * steps.reduce((n, step) => n + workOf(context, step), 0)
  for (let recomputed = 1; recomputed <= steps.length; recomputed++) {
    const choices = choicesAt(context, list, fixed, fusing, used, peak.at)
      .filter(({ cost }) => cost <= left)
      .sort((a, b) => b.bytes / b.cost - a.bytes / a.cost)
    let found = false
    for (const { cost, make } of choices) {
      const made = make()
      const then = when(made)
      const next = peakOf(then)
      if (next.bytes > peak.bytes) continue
      ;[list, used, peak, found] = [made, then, next, true]
      left -= cost
      break
    }
    if (!found) break
    if (peak.bytes < best.bytes) best = { steps: list, recomputed, bytes: peak.bytes }
  }
  // Less is not worth its time.
  return best.bytes <= 0.99 * most ? best : { steps, recomputed: 0 }
}

/** The most bytes that are in use at a time, and the step where it is. */
function peakOf(used: readonly Interval[]): { readonly bytes: number; readonly at: number } {
  const changes = new Map<number, number>()
  const add = (at: number, bytes: number): void => void changes.set(at, (changes.get(at) ?? 0) + bytes)
  for (const { from, to, bytes } of used) {
    add(from, bytes)
    add(to + 1, -bytes)
  }
  let [bytes, now, at] = [0, 0, -1]
  for (const [i, change] of [...changes].sort(([a], [b]) => a - b)) {
    now += change
    if (now > bytes) [bytes, at] = [now, i]
  }
  return { bytes, at }
}

const bytesOf = (refs: readonly Ref[]): number =>
  refs.reduce((n, { shape, dtype }) => n + numel(shape) * info[dtype].bytes, 0)

/** The time of a step in bytes that are moved meanwhile. */
function workOf({ backend, capture }: Context, step: Step): number {
  if (step.kind !== 'call') return 0
  const { call, outputs, inputs } = step
  const moved = bytesOf([...outputs, ...inputs])
  if (call.kernel === (backend.kernels.elementwise as unknown))
    return moved + programWork((call.attrs as ElementwiseAttrs).kernel, numel(outputs[0].shape))
  const flops = call.flops?.(asViews(capture, inputs), call.attrs, asViews(capture, outputs)) ?? 0
  return moved + flops / flopsPerByte
}

/** The time of a program for so many elements, in bytes that are moved meanwhile. */
const programWork = ({ exprs }: TypedProgram, size: number): number =>
  (size / flopsPerByte) *
  typedPostOrder(exprs).reduce(
    (n, t) => n + (t.kind === 'binary' ? 1 : t.kind === 'unary' ? (simple.has(t.op) ? 1 : functionFlops) : 0),
    0,
  )
const simple: ReadonlySet<string> = new Set([
  'neg',
  'abs',
  'sign',
  'floor',
  'ceil',
  'round',
  'sqrt',
  'not',
  'isnan',
])

/** What need not lie there at a step. */
function choicesAt(
  context: Context,
  steps: readonly Step[],
  fixed: ReadonlySet<number>,
  fusing: boolean,
  used: readonly Interval[],
  at: number,
): Choice[] {
  const { slots } = context.capture
  const uses = usesOf(steps)
  const stays = new Map(used.map((part) => [part.slot, part]))
  const choices: Choice[] = []
  for (const { slot, from, to, bytes } of used) {
    if (from < 0 || from >= at || to <= at || to >= steps.length || bytes < least) continue
    if (fixed.has(slot) || slots[slot].outer !== null) continue
    const reads = uses.reads.get(slot) ?? []
    if (uses.writes.get(slot)?.length !== 1 || reads.length === 0 || reads[0] >= at || reads.includes(at))
      continue
    const next = reads.find((i) => i > at)
    const step = steps[from]
    if (next === undefined || step.kind !== 'call') continue
    const o = step.outputs.findIndex((r) => r.slot === slot)
    if (o < 0 || !isWhole(step.outputs[o], bytes)) continue
    /** Is it as it was for the call, until a later step? */
    const still = (r: Ref, until: number): boolean =>
      (uses.writes.get(r.slot) ?? []).every(
        (w) => w < from || w >= until || (w === from && step.outputs.includes(r)),
      )
    const usable = (r: Ref): boolean =>
      still(r, next) && (slots[r.slot].outer !== null || (stays.get(r.slot)?.to ?? -1) >= next)
    const value = { context, steps, uses, fixed, from, step, slot, o, next, bytes, still, usable }
    const choice = (fusing ? (beside(value) ?? alone(value)) : null) ?? repeated(value)
    if (choice) choices.push(choice)
  }
  return choices
}

const isWhole = (r: Ref, bytes: number): boolean =>
  r.offset === 0 && isContiguous(r) && bytesOf([r]) === bytes

/** An output that a call of step `from` made, and that step `next` needs again. */
interface Value {
  readonly context: Context
  readonly steps: readonly Step[]
  readonly uses: Uses
  readonly fixed: ReadonlySet<number>
  readonly from: number
  readonly step: CallStep
  readonly slot: number
  readonly o: number
  readonly next: number
  readonly bytes: number
  still(r: Ref, until: number): boolean
  usable(r: Ref): boolean
}

/** A slot like another one. */
const another = ({ capture: { slots } }: Context, slot: number): number => slots.push({ ...slots[slot] }) - 1

/** Steps that read other slots. */
const reading = (steps: readonly Step[], instead: ReadonlyMap<number, number>): Step[] =>
  steps.map((step) => {
    if (step.kind !== 'call' || !step.inputs.some(({ slot }) => instead.has(slot))) return step
    const inputs = step.inputs.map((r) => ({ ...r, slot: instead.get(r.slot) ?? r.slot }))
    return { ...step, inputs }
  })

/** By a call of its own, before it is needed. */
function alone(value: Value): Choice | null {
  const { context, steps, step, slot, o, next, bytes } = value
  const recipe = recipeOf(context.backend, step, o, value.usable)
  if (!recipe) return null
  const out = step.outputs[o]
  const size = numel(out.shape)
  const { program, inputs, numbers } = recipe
  const kernel = context.backend.kernels.elementwise
  return {
    bytes,
    cost: bytesOf([out, ...inputs]) + programWork(recipe.program, size) + launchBytes(context.backend),
    make: () => {
      const to = another(context, slot)
      const call = {
        ...step.call,
        ...{ op: `${step.call.op} again`, path: 'primitive', kernel, attrs: { kernel: program }, numbers },
        flops: () => expressionWork(program) * size,
      } as CallStep['call']
      const again: Step = { kind: 'call', call, outputs: [{ ...out, slot: to }], inputs }
      const instead = new Map([[slot, to]])
      return [...steps.slice(0, next), again, ...reading(steps.slice(next), instead)]
    },
  }
}

/** By a later call that reads all that it takes; what needs it waits until then. */
function beside(value: Value): Choice | null {
  const { context, steps, uses, step, slot, o, next, bytes } = value
  const recipe = recipeOf(context.backend, step, o, value.usable)
  if (!recipe) return null
  const reads = uses.reads.get(slot) ?? []
  const touches = (i: number, { slot }: Ref): boolean =>
    [...(uses.reads.get(slot) ?? []), ...(uses.writes.get(slot) ?? [])].includes(i)
  for (let at = next + 1; at <= next + reach && at < steps.length; at++) {
    const host = steps[at]
    if (host.kind !== 'call' || reads.includes(at) || !recipe.inputs.every((r) => value.still(r, at)))
      continue
    const waiting = reads.filter((i) => next <= i && i < at)
    const mayWait = (i: number): boolean => {
      const waits = steps[i] as CallStep
      for (let j = i + 1; j <= at; j++) {
        if (waits.outputs.some((r) => touches(j, r))) return false
        if (waits.inputs.some((r) => uses.writes.get(r.slot)?.includes(j))) return false
      }
      return true
    }
    if (!waiting.every(mayWait)) continue
    const trial = joined(context, host, recipe, step.outputs[o])
    if (!trial) continue
    const work = (call: CallStep): number =>
      programWork(programIn(context.backend, call)?.program as TypedProgram, numel(step.outputs[o].shape))
    return {
      bytes,
      cost: bytes + work(trial) - work(host),
      make: () => {
        const to = another(context, slot)
        const both = joined(context, host, recipe, { ...step.outputs[o], slot: to }) as CallStep
        const op = `${host.call.op}+${step.call.op} again`
        const between = steps.slice(next, at).filter((_, i) => !waiting.includes(next + i))
        const after = [...waiting.map((i) => steps[i]), ...steps.slice(at + 1)]
        return [
          ...steps.slice(0, next),
          ...between,
          { ...both, call: { ...both.call, op } },
          ...reading(after, new Map([[slot, to]])),
        ]
      },
    }
  }
  return null
}

/** By the same call, all of whose outputs are made again. */
function repeated(value: Value): Choice | null {
  const { context, steps, uses, fixed, step, next, bytes } = value
  const { kernels } = context.backend
  const { call, inputs, outputs } = step
  // Each goes over its inputs once.
  const passes: readonly unknown[] = [
    ...[kernels.elementwise, kernels.gather, kernels.cat, kernels.embedding, kernels.rotary_embedding],
    ...[kernels.layer_norm, kernels.rms_norm, kernels.softmax, kernels.log_softmax],
  ].filter((kernel) => kernel !== undefined)
  const { slots } = context.capture
  const ownAlone = ({ slot }: Ref): boolean =>
    !fixed.has(slot) && slots[slot].outer === null && uses.writes.get(slot)?.length === 1
  if (!passes.includes(call.kernel) || !inputs.every(value.usable) || !outputs.every(ownAlone)) return null
  return {
    bytes,
    cost: workOf(context, step) + launchBytes(context.backend),
    make: () => {
      const instead = new Map(outputs.map(({ slot }) => [slot, another(context, slot)]))
      const made = outputs.map((r) => ({ ...r, slot: instead.get(r.slot) as number }))
      const again: Step = { ...step, call: { ...call, op: `${call.op} again` }, outputs: made }
      return [...steps.slice(0, next), again, ...reading(steps.slice(next), instead)]
    },
  }
}
