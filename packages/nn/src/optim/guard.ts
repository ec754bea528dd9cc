/**
 * A step that a `GradScaler` takes: whatever program an optimiser updates a parameter by, its gradient is multiplied by the
 * inverse of the loss's scale while it is read, and where a gradient was not finite everything keeps its old value. Both come as
 * scalars on the device: nothing is read to decide it.
 */

import {
  add_,
  applyProgramIntoEach,
  type Backend,
  DTypeError,
  type Expr,
  expr as e,
  type InPlaceCall,
  type Program,
  program,
  scope,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import type { Counted, Update } from './optimizer.ts'
import type { ParamState } from './param-state.ts'

/** What a step is taken by. */
export interface Guard {
  /**
   * Numbers for all parameters, in one piece of memory, since GPUs bind few: 1 where a gradient was not finite, else 0; what
   * gradients are multiplied by; and then room for what an optimiser works out.
   */
  readonly numbers: Tensor
  /** Whether gradients are still to be multiplied. */
  readonly scaled: boolean
}

/** The numbers of a guard, as zeros. */
export const guardNumbers = (device: Backend): Tensor => zeros([32], { device })
/** One of them as a scalar. */
export const numberAt = (numbers: Tensor, i: number): Tensor => numbers.narrow(0, i, 1).reshape([])

/** How one parameter changes, and what the optimiser knows of it. */
export interface Due {
  readonly p: Tensor
  readonly grad: Tensor
  readonly update: Update
  readonly counted: Counted | undefined
  readonly state: ParamState
  /** The options, which those of one group have in common. */
  readonly group: object
}

let current: { readonly guard: Guard; used: boolean } | null = null

/** Runs a step by a guard. Says whether an optimiser has taken it. */
export function guarded(guard: Guard, step: () => void): boolean {
  const before = current
  const mine = { guard, used: false }
  current = mine
  try {
    step()
  } finally {
    current = before
  }
  return mine.used
}

/** The guard of the step that runs, for one optimiser alone, or null. */
export function takeGuard(): Guard | null {
  if (current === null || current.used) return null
  current.used = true
  return current.guard
}

/** Applies updates, all or none of them, and counts in each state the steps that were skipped; without a guard all of them. */
export function applyGuarded(op: string, list: readonly Due[], guard: Guard | null): void {
  if (list.length === 0) return
  for (const { p } of guard?.scaled ? list : []) refuseHalf(op, p)
  scope(() => {
    const room = guard?.numbers ?? guardNumbers(list[0].p.backend)
    const [found, inverse] = [numberAt(room, 0), guard?.scaled ? numberAt(room, 1) : null]
    let used = 2
    split(list)
    const calls = new Map<Program, InPlaceCall[]>()
    const corrected = new Map<object, Map<string, readonly Tensor[]>>()
    for (const { grad, update, counted, state, group } of list) {
      const { program: p, inputs, outputs, params = [] } = update
      const gradient = inverse ? inputs.indexOf(grad) : -1
      if (inverse && gradient < 0)
        throw new ValueError(
          `${op}: its update does not read the gradient itself, which cannot be unscaled on the way then; call scaler.unscale(optimizer) before scaler.step(optimizer)`,
        )
      const known = corrected.get(group) ?? new Map<string, readonly Tensor[]>()
      corrected.set(group, known)
      const skipped = state.skipped as Tensor
      const key = `${skipped.id} ${state.step}`
      let numbers = counted ? known.get(key) : []
      if (!numbers) {
        numbers = correct(counted as Counted, skipped, room, used)
        used += numbers.length
        known.set(key, numbers)
      }
      // What is only written keeps its old value as well, which has to be read for that.
      const more = outputs.filter((t) => !inputs.includes(t))
      const all = [...inputs, ...more, found, ...(inverse ? [inverse] : []), ...numbers]
      const old = outputs.map((t) => all.indexOf(t))
      const form = formOf(p, { gradient, old, extra: more.length, at: counted?.at ?? [] })
      const list = calls.get(form)
      const call = { outputs, inputs: all, params }
      if (list) list.push(call)
      else calls.set(form, [call])
    }
    for (const [form, some] of calls) applyProgramIntoEach(form, some)
    for (const skipped of new Set(list.map(({ state }) => state.skipped as Tensor))) add_(skipped, found)
  })
}

/** The numbers of an update as they are when skipped steps do not count: scalars on the device. */
function correct(
  { program: p, params, at }: Counted,
  skipped: Tensor,
  room: Tensor,
  from: number,
): readonly Tensor[] {
  const fits = from + at.length <= room.numel
  const outputs = at.map((_, i) => (fits ? numberAt(room, from + i) : zeros([], { device: room.backend })))
  applyProgramIntoEach(p, [{ outputs, inputs: [skipped], params }])
  return outputs
}

/** @throws DTypeError where unscaling would lose what scaling has saved. */
export function refuseHalf(op: string, { dtype }: Tensor): void {
  if (dtype === 'float16')
    throw new DTypeError(
      `${op}: gradients of float16 cannot be unscaled, they would lose what scaling has saved; keep parameters in float32, and compute in float16 within autocast('float16', …)`,
    )
}

/** How many states share a count of skipped steps. */
const sharing = new WeakMap<Tensor, number>()

/** Makes a count of skipped steps the one of a state, and of all others that say the same of it. */
export function share(states: readonly ParamState[], skipped: Tensor): void {
  for (const state of states) {
    if (state.skipped) sharing.set(state.skipped, (sharing.get(state.skipped) ?? 1) - 1)
    state.skipped = skipped
  }
  sharing.set(skipped, states.length)
}

/**
 * Gives every state a count of skipped steps. Parameters that have always been updated together share one; where only some of
 * them are due, these get one of their own.
 */
function split(list: readonly Due[]): void {
  const together = new Map<Tensor | undefined, Due[]>()
  for (const due of list) {
    const known = together.get(due.state.skipped)
    if (known) known.push(due)
    else together.set(due.state.skipped, [due])
  }
  for (const [skipped, some] of together) {
    if (skipped && sharing.get(skipped) === some.length) continue
    const own = skipped ? skipped.clone() : zeros([], { device: some[0].p.backend })
    share(
      some.map(({ state }) => state),
      own.keep(),
    )
  }
}

interface Shape {
  /** The input that is the gradient, and is multiplied; −1: none. */
  readonly gradient: number
  /** For each output, the input that holds its old value. */
  readonly old: readonly number[]
  /** How many inputs follow the program's own for that. */
  readonly extra: number
  /** The numbers in whose place inputs come. */
  readonly at: readonly number[]
}

const forms = new WeakMap<Program, Map<string, Program>>()

/** A program with the guard's inputs after its own: found, the inverse where it is multiplied by, corrected numbers. */
function formOf(p: Program, { gradient, old, extra, at }: Shape): Program {
  const known = forms.get(p) ?? new Map<string, Program>()
  forms.set(p, known)
  const key = `${gradient} ${old.join()} ${at.join()}`
  let form = known.get(key)
  if (!form) {
    const found = p.inputs + extra
    const inverse = found + 1
    const numbers = inverse + (gradient >= 0 ? 1 : 0)
    form = program(
      p.name,
      numbers + at.length,
      (inputs) => {
        const map = new Map<Expr, Expr>(at.map((slot, i) => [e.param(slot), inputs[numbers + i]]))
        if (gradient >= 0) map.set(inputs[gradient], e.mul(inputs[gradient], inputs[inverse]))
        return p.exprs.map((x, i) => e.select(e.gt(inputs[found], 0), inputs[old[i]], e.substitute(x, map)))
      },
      p.params,
    )
    known.set(key, form)
  }
  return form
}
