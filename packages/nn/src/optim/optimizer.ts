import {
  applyProgramIntoEach,
  type DType,
  describeValue,
  expectOptions,
  expr,
  type InPlaceCall,
  type Names,
  noGrad,
  Printable,
  type Program,
  program,
  ShapeError,
  scope,
  show,
  Tensor,
  ValueError,
} from '@tilegrad/core'
import { eachRun, live, outsideOnly, uncaptured, unchanged } from '@tilegrad/core/kernel'
import { list, takeUnlisted } from '../module/parameter.ts'
import { expectEntry } from '../module/state-dict.ts'
import { applyGuarded, type Due, takeGuard } from './guard.ts'
import { copiesOf, freeState, hasTensor, type ParamState, reserve } from './param-state.ts'

/** Parameters updated with the same options, which may be changed between steps. */
export type ParamGroup<O> = O & { params: Tensor[] }

/** Parameters, or groups of them with options of their own. */
export type ParamsOrGroups<O> =
  | readonly Tensor[]
  | readonly (Partial<O> & { readonly params: readonly Tensor[] })[]

/**
 * Numbers of an update that depend on how many there were before. What was skipped does not count, and is known to the device
 * alone: there these are worked out again, by a program.
 */
export interface Counted {
  /** Makes the numbers of a scalar, how many steps were skipped, and of `params`. With 0 they are those of the update. */
  readonly program: Program
  /** The numbers that the program takes. */
  readonly params: readonly number[]
  /** The number of the update, by its place, that each of the program's outputs replaces. */
  readonly at: readonly number[]
}

/** The update of one parameter: a program to apply in place. */
export interface Update extends InPlaceCall {
  /** What is computed of each element. */
  readonly program: Program
  /** The numbers that the program takes. */
  readonly params?: readonly number[]
  /** What of them depends on the number of steps, such as a correction of bias. Default: nothing. */
  readonly counted?: () => Counted
}

/** A parameter that has a gradient, with all that its update depends on. */
export interface DueParameter<O> {
  /** The parameter. */
  readonly p: Tensor
  /** Its gradient. */
  readonly grad: Tensor
  /** The options of its group. */
  readonly options: O
  /** What is known of it. */
  readonly state: ParamState
}

const ZERO = program('zero_grad', 0, () => expr.constant(0))

/** All an optimiser needs to continue: plain data and tensors, parameters by position. */
export interface OptimizerStateDict<O> {
  /** The state of each parameter, by its number. */
  state: Record<number, ParamState>
  /** The options of each group, with the numbers of its parameters. */
  paramGroups: (O & { params: number[] })[]
}

/** Options of `zeroGrad`. */
export interface ZeroGradOptions {
  /** Free the gradients (true) or fill them with zeros (false). Default: true. */
  setToNull?: boolean
}

/**
 * Base of the optimisers. A step updates every parameter that has a gradient, in place and untaped, and reads nothing
 * back. State tensors are made at a parameter's first update and kept.
 */
export abstract class Optimizer<O extends { lr: number }> extends Printable {
  /** The groups; options such as `lr` may be set on each. */
  readonly paramGroups: ParamGroup<O>[]
  readonly #state = new Map<Tensor, ParamState>()

  constructor(params: ParamsOrGroups<O>, defaults: O) {
    super()
    const name = this.constructor.name
    if (!Array.isArray(params)) {
      const fix = 'parameters' in Object(params) ? '; pass model.parameters()' : ''
      throw new ValueError(
        `${name}: takes an array of parameters, or of groups of them, got ${describeValue(params)}${fix}`,
      )
    }
    if (params.length === 0)
      throw new ValueError(
        `${name}: got no parameters. A module finds those in its properties, in arrays and in plain objects, not in private #fields`,
      )
    const known = Object.fromEntries(Object.keys(defaults).map((key) => [key, 1])) as Names<O>
    const groups = params.every((p) => p instanceof Tensor)
      ? [{ ...defaults, params: [...params] }]
      : (params as readonly (Partial<O> & { params: readonly Tensor[] })[]).map((group) => ({
          ...defaults,
          ...groupOf(name, group, known),
        }))
    const all = groups.flatMap((group) => group.params)
    if (new Set(all).size !== all.length) throw new ValueError(`${name}: a parameter appears twice`)
    for (const p of all) {
      if (!p.isLeaf)
        throw new ValueError(
          `${name}: a parameter ${show(p.shape)} is the result of an operator; only leaves can be optimised`,
        )
    }
    for (const p of all) list(p)
    for (const group of groups) this.validate(group)
    this.paramGroups = groups
  }

  /** Throws ValueError for options out of range. */
  protected abstract validate(options: O): void

  /**
   * How one parameter changes, given its gradient, and what is kept of it. Updates by the same program are run together, where
   * the backend can as one launch. Called inside `noGrad`; where a step is replayed, again for its numbers alone.
   */
  protected abstract update(
    p: Tensor,
    grad: Tensor,
    options: O,
    state: ParamState,
  ): Update | readonly Update[]

  /**
   * Computes what updates need beside programs of single elements, such as products of matrices, of all parameters that are due,
   * for `update` to find. What it makes lives until the step's end. Default: nothing.
   */
  protected prepare(_due: readonly DueParameter<O>[]): void {}

  /** Whether it computes something before its updates. @internal */
  get prepares(): boolean {
    return this.prepare !== Optimizer.prototype.prepare
  }

  /** The shape of a state tensor. Default: the parameter's. */
  protected stateShape(_name: string, p: Tensor): readonly number[] {
    return p.shape
  }

  /**
   * What `update` with these options asks `stateTensor` for. Those of all parameters are made together then: a GPU
   * updates more parameters at once where their state lies in one piece of memory.
   */
  protected stateNames(_options: O): readonly string[] {
    return []
  }

  /** Learning rate of the first group; setting it sets that of all groups. */
  get lr(): number {
    return (this.paramGroups[0] as ParamGroup<O>).lr
  }

  set lr(value: number) {
    outsideOnly('setting lr', 'set it outside, before each call')
    for (const group of this.paramGroups) group.lr = value
  }

  /**
   * Updates every parameter that has a gradient.
   *
   * @throws ValueError for options set out of range since, such as a learning rate that is NaN; nothing is changed then.
   */
  step(): void {
    // It looks at gradients that are none of the step's.
    const lost = uncaptured(takeUnlisted)
    if (lost) {
      console.warn(
        `tilegrad: ${this.constructor.name}: a parameter ${show(lost.shape)} has a gradient but is in no optimiser, and no module lists it: modules and parameters in objects of other classes or in #private fields are not found; use public properties, arrays or plain objects`,
      )
    }
    // Options may be set between steps: a schedule given for a rate, or its NaN, would make every weight NaN.
    unchanged(this, `setting options of ${this.constructor.name}`, () =>
      this.paramGroups.map(({ params, ...options }) => Object.values(options).join()).join('; '),
    )
    eachRun(() => {
      for (const group of this.paramGroups) this.validate(group)
    })
    // What is made on the way goes with the step; states are kept.
    scope(() => noGrad(() => this.#update()))
  }

  #update(): void {
    const due: [p: Tensor, grad: Tensor, group: ParamGroup<O>, state: ParamState][] = []
    const missing = new Map<string, [Tensor, ParamState][]>()
    for (const group of this.paramGroups) {
      const names = this.stateNames(group)
      for (const p of group.params) {
        if (!p.grad) continue
        let state = this.#state.get(p)
        if (!state) {
          state = { step: 0, tensors: {} }
          this.#state.set(p, state)
        }
        due.push([p, p.grad, group, state])
        for (const name of names) {
          if (hasTensor(state, name)) continue
          const list = missing.get(name)
          if (list) list.push([p, state])
          else missing.set(name, [[p, state]])
        }
      }
    }
    for (const [name, list] of missing) reserve(name, list, (p) => this.stateShape(name, p))
    const updates = new Map<Program, Update[]>()
    eachRun(() => {
      for (const [, , , state] of due) state.step++
    })
    this.prepare(due.map(([p, grad, options, state]) => ({ p, grad, options, state })))
    const guard = takeGuard()
    // What was skipped once does not count any more, whoever takes the step.
    const counts = guard !== null || due.some(([, , , state]) => state.skipped)
    const guarded: Due[] = []
    for (const [p, grad, group, state] of due) {
      const updatesOf = (): readonly Update[] => [this.update(p, grad, group, state)].flat()
      for (const [i, update] of updatesOf().entries()) {
        if (update.params) live(update.params, () => updatesOf()[i].params ?? [])
        if (counts) {
          const counted = update.counted?.()
          if (counted) live(counted.params, () => updatesOf()[i].counted?.().params ?? [])
          guarded.push({ p, grad, update, counted, state, group })
          continue
        }
        const list = updates.get(update.program)
        if (list) list.push(update)
        else updates.set(update.program, [update])
      }
    }
    if (counts) applyGuarded(`${this.constructor.name}.step`, guarded, guard)
    for (const [program, list] of updates) applyProgramIntoEach(program, list)
  }

  /** Frees the gradients of all parameters; with `setToNull: false` fills them with zeros instead. */
  zeroGrad(options: ZeroGradOptions = {}): void {
    const { setToNull = true } = expectOptions('zeroGrad', options, { setToNull: 1 })
    if (!setToNull) {
      const grads = this.#all().flatMap((p) => p.grad ?? [])
      noGrad(() =>
        applyProgramIntoEach(
          ZERO,
          grads.map((g) => ({ outputs: [g], inputs: [] })),
        ),
      )
      return
    }
    for (const { params } of this.paramGroups) {
      for (const p of params) {
        p.grad?.dispose()
        p.grad = null
      }
    }
  }

  #all(): Tensor[] {
    return this.paramGroups.flatMap((group) => group.params)
  }

  /**
   * Options and state, the parameters named by their position. Its tensors are the live ones, not copies.
   *
   * @example
   * const make = () => new SGD([parameter(ones([2]))], { lr: 0.1, momentum: 0.9 })
   * make().loadStateDict(make().stateDict())
   */
  stateDict(): OptimizerStateDict<O> {
    const all = this.#all()
    const state: Record<number, ParamState> = {}
    all.forEach((p, i) => {
      const mine = this.#state.get(p)
      if (mine) state[i] = { ...mine, tensors: { ...mine.tensors } }
    })
    const paramGroups = this.paramGroups.map((group) => ({
      ...group,
      params: group.params.map((p) => all.indexOf(p)),
    }))
    return { state, paramGroups }
  }

  /**
   * Takes over options and copies of the state of an optimiser with the same groups. Nothing is changed if anything is
   * wrong.
   *
   * @throws ValueError if groups or parameters differ in number, ShapeError if a state tensor has not its parameter's shape.
   */
  loadStateDict(dict: OptimizerStateDict<O>): void {
    const loaded = this.#fitting(dict)
    const all = this.#all()
    const copies = noGrad(() => copiesOf(loaded, all))
    this.#forget()
    copies.forEach((copy, i) => {
      if (copy) this.#state.set(all[i], copy)
    })
    dict.paramGroups.forEach((saved, i) => {
      const group = this.paramGroups[i] as ParamGroup<O>
      Object.assign(group, saved, { params: group.params })
    })
  }

  /** Throws what `loadStateDict` would. @internal */
  checkStateDict(dict: OptimizerStateDict<O>): void {
    this.#fitting(dict)
  }

  /** The state of each parameter in what fits, which may come from a file. */
  #fitting(dict: OptimizerStateDict<O>): (ParamState | null)[] {
    const name = `${this.constructor.name}.loadStateDict`
    const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null
    const groups = dict?.paramGroups
    if (!Array.isArray(groups) || !groups.every((g) => Array.isArray(g?.params)) || !isObject(dict.state))
      throw new ValueError(`${name}: takes what stateDict() gave, got ${describeValue(dict)}`)
    const count = (groups: readonly { params: readonly unknown[] }[]): string =>
      `[${groups.map((g) => g.params.length).join(', ')}]`
    if (count(groups) !== count(this.paramGroups)) {
      throw new ValueError(
        `${name}: the groups hold ${count(groups)} parameters, here ${count(this.paramGroups)}`,
      )
    }
    for (const group of groups) this.validate(group)
    // A parameter's key is its number in the dict's groups, which need not count from 0 in order.
    const keys = groups.flatMap((group) => group.params)
    return this.#all().map((p, i): ParamState | null => {
      const saved = dict.state[keys[i]]
      if (!saved) return null
      if (!isObject(saved.tensors) || !Number.isSafeInteger(saved.step))
        throw new ValueError(
          `${name}: the state of parameter ${i} must be { step, tensors }, got ${describeValue(saved)}`,
        )
      if (saved.skipped) expectEntry(`${name}: skipped of parameter ${i}`, saved.skipped)
      for (const [slot, t] of Object.entries(saved.tensors)) {
        expectEntry(`${name}: ${slot} of parameter ${i}`, t)
        const shape = this.stateShape(slot, p)
        if (t.shape.join() !== shape.join()) {
          throw new ShapeError(
            `${name}: ${slot} of parameter ${i} is ${show(t.shape)}, ${shape === p.shape ? 'the parameter' : `of the parameter ${show(p.shape)} it is`} ${show(shape)}`,
          )
        }
      }
      return saved
    })
  }

  /**
   * The optimiser as text: its options, and how many parameters they are for.
   *
   * @example
   * String(new SGD([parameter(zeros([2]))], { lr: 0.1 })) // → SGD (lr: 0.1, momentum: 0, dampening: 0, weightDecay: 0, nesterov: false, params: 1 tensor of 2 elements)
   */
  toString(): string {
    const name = this.constructor.name
    const groups = this.paramGroups.map(describeGroup)
    if (groups.length === 1) return `${name} (${groups[0]})`
    return `${name} (\n${groups.map((group, i) => `  group ${i}: ${group}`).join('\n')}\n)`
  }

  /** What `JSON.stringify` writes of an optimiser: options, and shapes in place of parameters. See `stateDict` for its state. */
  toJSON(): { optimizer: string; paramGroups: object[] } {
    const shapes = (params: readonly Tensor[]): { dtype: DType; shape: readonly number[] }[] =>
      params.map(({ dtype, shape }) => ({ dtype, shape }))
    return {
      optimizer: this.constructor.name,
      paramGroups: this.paramGroups.map((group) => ({ ...group, params: shapes(group.params) })),
    }
  }

  #forget(): void {
    for (const state of this.#state.values()) freeState(state)
    this.#state.clear()
  }

  /** Frees the state; the next step starts afresh. */
  dispose(): void {
    this.#forget()
  }

  [Symbol.dispose](): void {
    this.#forget()
  }
}

/** A group as it was given, if it is one. */
function groupOf<O>(
  name: string,
  group: Partial<O> & { readonly params: readonly Tensor[] },
  known: Names<O>,
): Partial<O> & { params: Tensor[] } {
  if (Array.isArray(group) && typeof group[0] === 'string')
    throw new ValueError(`${name}: got names with parameters; pass model.parameters(), not namedParameters()`)
  if (typeof group !== 'object' || group === null || !Array.isArray(group.params))
    throw new ValueError(`${name}: takes parameters, or groups { params: […] }, got ${describeValue(group)}`)
  for (const p of group.params)
    if (!(p instanceof Tensor))
      throw new ValueError(`${name}: takes tensors as params, got ${describeValue(p)}`)
  expectOptions<object>(name, group, { ...known, params: 1 })
  return { ...group, params: [...group.params] }
}

/** @throws ValueError naming an option that is not a number ≥ 0. @internal */
export function nonNegative(op: string, options: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(options)) {
    if (!(typeof value === 'number' && value >= 0))
      throw new ValueError(`${op}: ${name} must be ≥ 0, got ${describeValue(value)}`)
  }
}

function describeGroup<O>({ params, ...options }: ParamGroup<O>): string {
  const list = Object.entries(options).map(
    ([name, value]) => `${name}: ${Array.isArray(value) ? `[${value.join(', ')}]` : String(value)}`,
  )
  const elements = params.reduce((n, p) => n + p.numel, 0).toLocaleString('en')
  return [
    ...list,
    `params: ${params.length} tensor${params.length === 1 ? '' : 's'} of ${elements} elements`,
  ].join(', ')
}
