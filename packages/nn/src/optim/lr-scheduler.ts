import { describeValue, Printable, ValueError } from '@tilegrad/core'
import { outsideOnly } from '@tilegrad/core/kernel'
import { Optimizer } from './optimizer.ts'
import type { Schedule } from './schedule.ts'

/** An optimiser, whatever its options. */
export type AnyOptimizer = Optimizer<{ lr: number }>

/** What a scheduler needs to continue, as plain data. */
export interface LRSchedulerState {
  /** How many steps were taken. */
  lastEpoch: number
  /** The rates that it began with, group by group. */
  baseLrs: number[]
  /** The rates that it set last. */
  lastLr: number[]
}

/** Options of `LRScheduler`. */
export interface LRSchedulerOptions {
  /**
   * With it, several schedulers of one optimiser work together: each multiplies what of the rate lies above this number, where
   * another one has changed the rate, instead of setting it. Default: it sets the rate.
   */
  chainedAbove?: number
}

/** The rates that groups had before any scheduler changed them: PyTorch's `initial_lr`. */
const initialRates = new WeakMap<object, number>()

/** @internal @throws ValueError for what is no optimiser. */
export function expectOptimizer(op: string, optimizer: unknown): void {
  if (!(optimizer instanceof Optimizer))
    throw new ValueError(`${op}: takes an optimiser, got ${describeValue(optimizer)}`)
}

/** @internal One number per group, from one for all or a list. @throws ValueError where the list has another length. */
export function perGroup(
  op: string,
  name: string,
  { paramGroups }: AnyOptimizer,
  value: number | readonly number[],
): readonly number[] {
  const list = typeof value === 'number' ? paramGroups.map(() => value) : value
  if (!Array.isArray(list) || list.length !== paramGroups.length)
    throw new ValueError(
      `${op}: ${name} must be a number, or one for each of ${paramGroups.length} groups, got ${describeValue(value)}`,
    )
  for (const one of list) finite(op, { [name]: one })
  return list
}

/** @internal @throws ValueError naming what is no finite number, or one below `least`. */
export function finite(op: string, numbers: Readonly<Record<string, unknown>>, least = 0): void {
  for (const [name, value] of Object.entries(numbers)) {
    if (!(Number.isFinite(value) && (value as number) >= least))
      throw new ValueError(`${op}: ${name} must be a finite number ≥ ${least}, got ${describeValue(value)}`)
  }
}

/** @internal @throws ValueError naming what is no whole number, or one below `least`. */
export function whole(op: string, numbers: Readonly<Record<string, unknown>>, least = 1): void {
  for (const [name, value] of Object.entries(numbers)) {
    if (!(Number.isSafeInteger(value) && (value as number) >= least))
      throw new ValueError(`${op}: ${name} must be a whole number ≥ ${least}, got ${describeValue(value)}`)
  }
}

/** @internal @throws ValueError where a saved state lacks something or is of another number of groups. */
export function expectRates(op: string, name: string, rates: unknown, groups: number): void {
  if (!Array.isArray(rates) || rates.length !== groups || !rates.every(Number.isFinite))
    throw new ValueError(`${op}: ${name} must be ${groups} rates, got ${describeValue(rates)}`)
}

/**
 * A learning-rate scheduler as PyTorch has them: it gives each group of an optimiser the rate of a schedule, at once that of
 * step 0, and with each `step()` that of the next. The schedule is a function from the step to the rate, made for each group
 * from the rate it has at first; the functions in `schedule` are such.
 *
 * A second scheduler of the same optimiser begins with the rates that the first one began with. Call `step()` outside of a
 * compiled function.
 *
 * @throws ValueError for what is no optimiser, or a schedule that gives no finite number.
 * @example
 * const optimizer = new AdamW(new Linear(2, 1).parameters(), { lr: 0.1 })
 * const scheduler = new LRScheduler(optimizer, (lr) => schedule.warmupCosine({ lr, warmupSteps: 4, decaySteps: 100 }))
 * for (let step = 0; step < 4; step++) {
 *   optimizer.step()
 *   scheduler.step()
 * }
 * optimizer.lr // → 0.1
 */
export class LRScheduler extends Printable {
  /** The optimiser whose rates it sets. */
  readonly optimizer: AnyOptimizer
  /** The step whose rates are set, counted from 0; how often `step()` was called. */
  lastEpoch = -1
  readonly #make: (lr: number, group: number) => Schedule
  readonly #above: number | undefined
  #schedules: Schedule[]
  #baseLrs: number[]
  #lastLr: number[] = []

  constructor(
    optimizer: AnyOptimizer,
    make: (lr: number, group: number) => Schedule,
    { chainedAbove }: LRSchedulerOptions = {},
  ) {
    super()
    const name = this.constructor.name
    expectOptimizer(name, optimizer)
    if (typeof make !== 'function')
      throw new ValueError(
        `${name}: takes a function that makes a schedule from a rate, as (lr) => schedule.exponential({ lr, gamma: 0.9 }), got ${describeValue(make)}`,
      )
    outsideOnly(`making ${name}`, 'make it outside')
    this.optimizer = optimizer
    this.#make = make
    this.#above = chainedAbove
    this.#baseLrs = optimizer.paramGroups.map((group) => initialRates.get(group) ?? group.lr)
    this.#schedules = this.#baseLrs.map(make)
    this.#set(0, false)
    optimizer.paramGroups.forEach((group, i) => {
      if (!initialRates.has(group)) initialRates.set(group, this.#baseLrs[i])
    })
  }

  /** The rates that it began with, group by group. */
  get baseLrs(): readonly number[] {
    return this.#baseLrs
  }

  /**
   * Sets the rates of the next step: call it after `optimizer.step()`, once for each step or each epoch, whichever the schedule
   * counts.
   *
   * @param epoch goes to this step instead, which may be a fraction where the schedule takes one.
   * @throws ValueError for an epoch that is no number ≥ 0, or a rate that is none; nothing is changed then.
   */
  step(epoch?: number): void {
    const name = this.constructor.name
    outsideOnly(`${name}.step`, 'call it outside, after each call')
    if (epoch !== undefined && !(Number.isFinite(epoch) && epoch >= 0))
      throw new ValueError(
        `${name}.step: takes nothing, or the number of a step ≥ 0, got ${describeValue(epoch)}; a metric is for ReduceLROnPlateau`,
      )
    this.#set(epoch ?? this.lastEpoch + 1, epoch !== undefined)
  }

  #set(epoch: number, absolute: boolean): void {
    const { paramGroups } = this.optimizer
    const above = this.#above
    const rates = paramGroups.map(({ lr }, i) => {
      const to = this.#schedules[i](epoch)
      if (absolute || above === undefined) return to
      const from = this.lastEpoch < 0 ? this.#baseLrs[i] : this.#schedules[i](this.lastEpoch)
      // The rate itself where nobody else has changed it, so that no error of rounding adds up.
      if (lr === from) return to
      if (from === to) return lr
      return from === above ? lr + (to - from) : above + ((lr - above) * (to - above)) / (from - above)
    })
    for (const [i, rate] of rates.entries()) {
      if (!(rate >= 0 && rate < Infinity))
        throw new ValueError(
          `${this.constructor.name}: the rate of step ${epoch} must be ≥ 0, got ${describeValue(rate)} for group ${i}; nothing was changed`,
        )
    }
    paramGroups.forEach((group, i) => {
      group.lr = rates[i]
    })
    this.lastEpoch = Math.floor(epoch)
    this.#lastLr = rates
  }

  /** The rates that it set last, group by group. */
  getLastLr(): number[] {
    return [...this.#lastLr]
  }

  /** How far it is, as plain data: what `loadStateDict` takes. Functions and options are not in it. */
  stateDict(): LRSchedulerState {
    return { lastEpoch: this.lastEpoch, baseLrs: [...this.#baseLrs], lastLr: [...this.#lastLr] }
  }

  /**
   * Goes on where another one with the same options was. The rates are the optimiser's: load its state too.
   *
   * @throws ValueError for what is no such state, or one of another number of groups; nothing is changed then.
   */
  loadStateDict(state: LRSchedulerState): void {
    this.checkStateDict(state)
    this.#schedules = state.baseLrs.map(this.#make)
    this.#baseLrs = [...state.baseLrs]
    this.lastEpoch = state.lastEpoch
    this.#lastLr = [...state.lastLr]
  }

  /** Throws what `loadStateDict` would. @internal */
  checkStateDict(state: LRSchedulerState): void {
    const op = `${this.constructor.name}.loadStateDict`
    if (typeof state !== 'object' || state === null)
      throw new ValueError(`${op}: takes what stateDict() gave, got ${describeValue(state)}`)
    whole(op, { lastEpoch: state.lastEpoch }, 0)
    expectRates(op, 'baseLrs', state.baseLrs, this.#baseLrs.length)
    expectRates(op, 'lastLr', state.lastLr, this.#baseLrs.length)
  }

  /** The scheduler as text: the step and the rates. */
  toString(): string {
    return `${this.constructor.name} (lastEpoch: ${this.lastEpoch}, lr: [${this.#lastLr.join(', ')}])`
  }
}
