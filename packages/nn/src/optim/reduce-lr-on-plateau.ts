import { describeValue, expectOptions, type Names, Printable, Tensor, ValueError } from '@tilegrad/core'
import { outsideOnly } from '@tilegrad/core/kernel'
import { type AnyOptimizer, expectOptimizer, expectRates, finite, perGroup, whole } from './lr-scheduler.ts'

/** Options of `ReduceLROnPlateau`. */
export interface ReduceLROnPlateauOptions {
  /** Whether a smaller metric is better, 'min', or a larger one, 'max'; default 'min'. */
  mode?: 'min' | 'max'
  /** What rates are multiplied by; default 0.1. */
  factor?: number
  /** For how many calls in a row the metric may be no better; default 10. */
  patience?: number
  /** How much better than the best counts as better; default 1e-4. */
  threshold?: number
  /** Whether the threshold is a share of the best, 'rel', or a difference, 'abs'; default 'rel'. */
  thresholdMode?: 'rel' | 'abs'
  /** How many calls to wait after a change before counting again; default 0. */
  cooldown?: number
  /** The lowest rate, for all groups or for each; default 0. */
  minLr?: number | readonly number[]
  /** Smaller changes of the rate are left out; default 1e-8. */
  eps?: number
}

/** What `ReduceLROnPlateau` needs to continue, as plain data. */
export interface ReduceLROnPlateauState {
  /** How often `step()` was called. */
  lastEpoch: number
  /** The best metric so far, null before there is one. */
  best: number | null
  /** How many calls in a row were no better. */
  numBadEpochs: number
  /** How many calls are still to wait. */
  cooldownCounter: number
  /** The rates at the last call. */
  lastLr: number[]
}

const OPTIONS: Names<ReduceLROnPlateauOptions> = {
  mode: 1,
  factor: 1,
  patience: 1,
  threshold: 1,
  thresholdMode: 1,
  cooldown: 1,
  minLr: 1,
  eps: 1,
}

/**
 * Multiplies rates by a factor when a metric, such as the loss of validation, has stopped getting better. A metric that is NaN is no
 * better.
 *
 * @throws ValueError for options out of range.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new ReduceLROnPlateau(optimizer, { factor: 0.5, patience: 1 })
 * for (const loss of [3, 2, 2, 2]) scheduler.step(loss)
 * optimizer.lr // → 0.5
 */
export class ReduceLROnPlateau extends Printable {
  /** The optimiser whose rates it sets. */
  readonly optimizer: AnyOptimizer
  readonly #options: Required<ReduceLROnPlateauOptions>
  readonly #minLrs: readonly number[]
  #state: ReduceLROnPlateauState

  constructor(optimizer: AnyOptimizer, options: ReduceLROnPlateauOptions = {}) {
    super()
    const op = 'ReduceLROnPlateau'
    expectOptimizer(op, optimizer)
    const all: Required<ReduceLROnPlateauOptions> = {
      mode: 'min',
      factor: 0.1,
      patience: 10,
      threshold: 1e-4,
      thresholdMode: 'rel',
      cooldown: 0,
      minLr: 0,
      eps: 1e-8,
      ...expectOptions(op, options, OPTIONS),
    }
    const { mode, factor, patience, threshold, thresholdMode, cooldown, minLr, eps } = all
    if (mode !== 'min' && mode !== 'max')
      throw new ValueError(`${op}: mode must be 'min' or 'max', got ${describeValue(mode)}`)
    if (thresholdMode !== 'rel' && thresholdMode !== 'abs')
      throw new ValueError(`${op}: thresholdMode must be 'rel' or 'abs', got ${describeValue(thresholdMode)}`)
    if (!(factor >= 0 && factor < 1))
      throw new ValueError(`${op}: factor must lie within 0 ≤ factor < 1, got ${describeValue(factor)}`)
    whole(op, { patience, cooldown }, 0)
    finite(op, { threshold, eps })
    this.#minLrs = perGroup(op, 'minLr', optimizer, minLr)
    this.#options = all
    this.optimizer = optimizer
    const lastLr = optimizer.paramGroups.map((group) => group.lr)
    this.#state = { lastEpoch: 0, best: null, numBadEpochs: 0, cooldownCounter: 0, lastLr }
  }

  /** How often `step()` was called. */
  get lastEpoch(): number {
    return this.#state.lastEpoch
  }

  /**
   * Takes the metric of an epoch, and multiplies the rates if it is time.
   *
   * @param metric a number, such as `await loss.item()`.
   * @throws ValueError for what is no number.
   */
  step(metric: number): void {
    const op = 'ReduceLROnPlateau.step'
    outsideOnly(op, 'call it outside, after each call')
    if (typeof metric !== 'number')
      throw new ValueError(
        `${op}: takes a number, got ${describeValue(metric)}${(metric as unknown) instanceof Tensor ? '; read it, as await loss.item()' : ''}`,
      )
    const { factor, patience, cooldown, eps } = this.#options
    const state = this.#state
    state.lastEpoch++
    if (this.#better(metric)) {
      state.best = metric
      state.numBadEpochs = 0
    } else state.numBadEpochs++
    if (state.cooldownCounter > 0) {
      state.cooldownCounter--
      state.numBadEpochs = 0
    }
    if (state.numBadEpochs > patience) {
      this.optimizer.paramGroups.forEach((group, i) => {
        const next = Math.max(group.lr * factor, this.#minLrs[i])
        if (group.lr - next > eps) group.lr = next
      })
      state.cooldownCounter = cooldown
      state.numBadEpochs = 0
    }
    state.lastLr = this.optimizer.paramGroups.map((group) => group.lr)
  }

  #better(metric: number): boolean {
    const { mode, threshold, thresholdMode } = this.#options
    const { best } = this.#state
    if (best === null) return !Number.isNaN(metric) && metric !== (mode === 'min' ? Infinity : -Infinity)
    const sign = mode === 'min' ? -1 : 1
    const bar = thresholdMode === 'rel' ? best * (1 + sign * threshold) : best + sign * threshold
    return mode === 'min' ? metric < bar : metric > bar
  }

  /** The rates at the last call, group by group. */
  getLastLr(): number[] {
    return [...this.#state.lastLr]
  }

  /** The best metric and the counts, as plain data: what `loadStateDict` takes. */
  stateDict(): ReduceLROnPlateauState {
    return { ...this.#state, lastLr: [...this.#state.lastLr] }
  }

  /**
   * Goes on where another one with the same options was. The rates are the optimiser's: load its state too.
   *
   * @throws ValueError for what is no such state, or one of another number of groups; nothing is changed then.
   */
  loadStateDict(state: ReduceLROnPlateauState): void {
    this.checkStateDict(state)
    const { lastEpoch, best, numBadEpochs, cooldownCounter, lastLr } = state
    this.#state = { lastEpoch, best, numBadEpochs, cooldownCounter, lastLr: [...lastLr] }
  }

  /** Throws what `loadStateDict` would. @internal */
  checkStateDict(state: ReduceLROnPlateauState): void {
    const op = 'ReduceLROnPlateau.loadStateDict'
    if (typeof state !== 'object' || state === null)
      throw new ValueError(`${op}: takes what stateDict() gave, got ${describeValue(state)}`)
    const { lastEpoch, best, numBadEpochs, cooldownCounter, lastLr } = state
    whole(op, { lastEpoch, numBadEpochs, cooldownCounter }, 0)
    if (best !== null && typeof best !== 'number')
      throw new ValueError(`${op}: best must be a number or null, got ${describeValue(best)}`)
    expectRates(op, 'lastLr', lastLr, this.optimizer.paramGroups.length)
  }

  /** The scheduler as text: the best metric and the rates. */
  toString(): string {
    const { best, numBadEpochs, lastLr } = this.#state
    return `ReduceLROnPlateau (best: ${best}, numBadEpochs: ${numBadEpochs}, lr: [${lastLr.join(', ')}])`
  }
}
