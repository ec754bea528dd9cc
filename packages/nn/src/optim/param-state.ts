import { copy_, to as moveTensor, scope, type Tensor, zeros } from '@tilegrad/core'
import { wide } from '../module/parameter.ts'
import { share } from './guard.ts'
import { packedZeros } from './packed.ts'

/** What an optimiser remembers of one parameter. */
export interface ParamState {
  /** Updates so far, those included that a `GradScaler` has skipped. */
  step: number
  /** State tensors by name, most of the parameter's shape. */
  tensors: Record<string, Tensor>
  /** How many of the updates a `GradScaler` has skipped, a scalar, once it has taken a step. Parameters share it. */
  skipped?: Tensor
}

/** State tensors made together, until `stateTensor` asks for them. */
const reserved = new WeakMap<ParamState, Record<string, Tensor>>()

/** Whether a state has a tensor of that name, or one lies ready. */
export const hasTensor = (state: ParamState, name: string): boolean =>
  Boolean(state.tensors[name] ?? reserved.get(state)?.[name])

/**
 * Makes zeros for `stateTensor` to give, of several parameters together.
 *
 * @param shapeOf the shape that the tensor of a parameter has.
 */
export function reserve(
  name: string,
  list: readonly (readonly [p: Tensor, state: ParamState])[],
  shapeOf: (p: Tensor) => readonly number[],
): void {
  const params = list.map(([p]) => p)
  const made = packedZeros(params, params.map(shapeOf))
  for (const [i, [, state]] of list.entries())
    reserved.set(state, { ...reserved.get(state), [name]: made[i] as Tensor })
}

/** Frees all that is kept of a parameter. */
export function freeState(state: ParamState): void {
  for (const t of Object.values({ ...reserved.get(state), ...state.tensors })) t.dispose()
  state.skipped?.dispose()
}

/**
 * A state tensor of the parameter's shape, or another one, zeros at first: of its dtype, or float32 for a parameter of 16 bits.
 *
 * @example
 * const state = { step: 0, tensors: {} }
 * stateTensor(state, zeros([2]), 'momentum').shape // → [2]
 */
export function stateTensor(
  state: ParamState,
  p: Tensor,
  name: string,
  shape: readonly number[] = p.shape,
): Tensor {
  let t = state.tensors[name]
  if (!t) {
    const ready = reserved.get(state)
    t = ready?.[name] ?? zeros(shape, { dtype: wide(p.dtype), device: p.backend }).keep()
    if (ready) delete ready[name]
    state.tensors[name] = t
  }
  return t
}

/** Makes copies of states, as the parameters' own: on their devices, those of a name together. */
export function copiesOf(
  states: readonly (ParamState | null)[],
  params: readonly Tensor[],
): readonly (ParamState | null)[] {
  const copies = states.map((state) => state && { step: state.step, tensors: {} as Record<string, Tensor> })
  for (const name of new Set(states.flatMap((state) => (state ? Object.keys(state.tensors) : [])))) {
    const which = [...states.keys()].filter((i) => states[i]?.tensors[name])
    const made = packedZeros(
      which.map((i) => params[i]),
      which.map((i) => states[i]?.tensors[name].shape ?? []),
    )
    for (const [k, i] of which.entries()) {
      const [state, copy, p, to] = [states[i], copies[i], params[i], made[k]] as [
        ParamState,
        ParamState,
        Tensor,
        Tensor,
      ]
      const from = state.tensors[name]
      scope(() => void copy_(to, moveTensor(moveTensor(from.detach(), to.dtype), p.backend)))
      copy.tensors[name] = to
    }
  }
  for (const skipped of new Set(states.map((state) => state?.skipped))) {
    if (!skipped) continue
    const which = [...states.keys()].filter((i) => states[i]?.skipped === skipped)
    const own = scope(() => moveTensor(skipped.detach(), params[which[0]].backend).clone().keep())
    share(
      which.map((i) => copies[i] as ParamState),
      own,
    )
  }
  return copies
}
