import { describeValue, Printable, ValueError } from '@tilegrad/core'
import { type AnyOptimizer, LRScheduler, type LRSchedulerState, whole } from './lr-scheduler.ts'

/** What `ChainedScheduler` and `SequentialLR` need to continue, as plain data. */
export interface ChainedState {
  /** How many steps were taken. */
  lastEpoch: number
  /** The state of each scheduler. */
  schedulers: (LRSchedulerState | ChainedState)[]
}

/** Something with several schedulers of one optimiser. */
abstract class Schedulers extends Printable {
  /** The schedulers, in their order. */
  readonly schedulers: readonly (LRScheduler | Schedulers)[]
  /** How often `step()` was called. */
  lastEpoch = 0

  constructor(schedulers: readonly (LRScheduler | Schedulers)[]) {
    super()
    const name = this.constructor.name
    if (!Array.isArray(schedulers) || schedulers.length === 0)
      throw new ValueError(`${name}: takes a list of schedulers, got ${describeValue(schedulers)}`)
    for (const one of schedulers) {
      if (!(one instanceof LRScheduler || one instanceof Schedulers))
        throw new ValueError(
          `${name}: takes schedulers whose step() needs nothing, got ${one?.constructor?.name === 'ReduceLROnPlateau' ? 'ReduceLROnPlateau; call its step(metric) by itself' : describeValue(one)}`,
        )
      if (one.optimizer !== schedulers[0].optimizer)
        throw new ValueError(
          `${name}: its schedulers are of different optimisers; give each optimiser one of its own`,
        )
    }
    this.schedulers = [...schedulers]
  }

  /** The optimiser whose rates they set. */
  get optimizer(): AnyOptimizer {
    return this.schedulers[0].optimizer
  }

  /** Sets the rates of the next step: call it after `optimizer.step()`. */
  abstract step(): void

  /** The rates that the optimiser has, group by group. */
  getLastLr(): number[] {
    return this.optimizer.paramGroups.map((group) => group.lr)
  }

  /** How far each scheduler is, as plain data: what `loadStateDict` takes. */
  stateDict(): ChainedState {
    return { lastEpoch: this.lastEpoch, schedulers: this.schedulers.map((one) => one.stateDict()) }
  }

  /**
   * Goes on where another one with the same schedulers was. The rates are the optimiser's: load its state too.
   *
   * @throws ValueError for what is no such state, or one of other schedulers; nothing is changed then.
   */
  loadStateDict(state: ChainedState): void {
    this.checkStateDict(state)
    this.schedulers.forEach((one, i) => {
      one.loadStateDict(state.schedulers[i] as never)
    })
    this.lastEpoch = state.lastEpoch
  }

  /** Throws what `loadStateDict` would. @internal */
  checkStateDict(state: ChainedState): void {
    const op = `${this.constructor.name}.loadStateDict`
    if (!Array.isArray(state?.schedulers) || state.schedulers.length !== this.schedulers.length)
      throw new ValueError(
        `${op}: takes what stateDict() of ${this.schedulers.length} schedulers gave, got ${describeValue(state)}`,
      )
    whole(op, { lastEpoch: state.lastEpoch }, 0)
    this.schedulers.forEach((one, i) => {
      one.checkStateDict(state.schedulers[i] as never)
    })
  }

  /** The schedulers as text, one in a line. */
  toString(): string {
    return `${this.constructor.name} (\n${this.schedulers.map((one) => `  ${String(one).replaceAll('\n', '\n  ')}`).join('\n')}\n)`
  }
}

/**
 * Steps several schedulers of one optimiser together: their factors multiply.
 *
 * @throws ValueError for what are no schedulers, or those of several optimisers.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const warmup = new LinearLR(optimizer, { startFactor: 0.5, totalIters: 2 })
 * const scheduler = new ChainedScheduler([warmup, new ExponentialLR(optimizer, 0.5)])
 * scheduler.step()
 * optimizer.lr // → 0.375
 */
export class ChainedScheduler extends Schedulers {
  /** Steps all of them. */
  step(): void {
    for (const one of this.schedulers) one.step()
    this.lastEpoch++
  }
}

/**
 * Goes from one scheduler to the next at given steps; each begins with its step 0, from the rates that the optimiser had first.
 *
 * @param milestones the steps at which the second scheduler begins, the third, and so on.
 * @throws ValueError for what are no schedulers, or not one milestone less, or milestones that do not rise.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const warmup = new LinearLR(optimizer, { startFactor: 0.25, totalIters: 3 })
 * const scheduler = new SequentialLR(optimizer, [warmup, new CosineAnnealingLR(optimizer, 100)], [3])
 * optimizer.lr // → 0.25
 * for (let i = 0; i < 53; i++) scheduler.step()
 * optimizer.lr.toFixed(3) // → 0.500
 */
export class SequentialLR extends Schedulers {
  readonly #milestones: readonly number[]

  constructor(
    optimizer: AnyOptimizer,
    schedulers: readonly (LRScheduler | SequentialLR)[],
    milestones: readonly number[],
  ) {
    super(schedulers)
    if (schedulers.some((one) => !(one instanceof LRScheduler || one instanceof SequentialLR)))
      throw new ValueError(
        'SequentialLR: a ChainedScheduler cannot begin anew; chain the SequentialLRs instead, new ChainedScheduler([…])',
      )
    if (optimizer !== this.optimizer)
      throw new ValueError('SequentialLR: its schedulers are of another optimiser than the one given')
    if (!Array.isArray(milestones) || milestones.length !== schedulers.length - 1)
      throw new ValueError(
        `SequentialLR: takes ${schedulers.length - 1} milestones for ${schedulers.length} schedulers, got ${describeValue(milestones)}`,
      )
    for (const [i, milestone] of milestones.entries())
      whole('SequentialLR', { milestone }, i === 0 ? 1 : milestones[i - 1] + 1)
    this.#milestones = [...milestones]
    this.schedulers[0].step(0)
  }

  /**
   * Steps the scheduler whose turn it is.
   *
   * @param epoch goes to this step instead.
   */
  step(epoch?: number): void {
    const next = epoch ?? this.lastEpoch + 1
    whole('SequentialLR.step', { epoch: next }, 0)
    const turn = this.#milestones.filter((milestone) => milestone <= next).length
    const since = next - (turn === 0 ? 0 : this.#milestones[turn - 1])
    const one = this.schedulers[turn]
    if (epoch !== undefined || since === 0) one.step(since)
    else one.step()
    this.lastEpoch = next
  }
}
