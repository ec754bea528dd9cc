import { describeValue, expectOptions, type Names, ValueError } from '@tilegrad/core'
import { type AnyOptimizer, expectOptimizer, finite, LRScheduler, perGroup, whole } from './lr-scheduler.ts'
import { inPhases } from './phases.ts'
import { oneCycle, type Schedule } from './schedule.ts'

/** Options that `OneCycleLR` and `CyclicLR` have in common. */
export interface CycleMomentumOptions {
  /** Whether momentum falls while rates rise, and rises while they fall: SGD's momentum, or Adam's β₁. Default: true. */
  cycleMomentum?: boolean
  /** The lowest momentum, at the peak of rates; default 0.85, of `CyclicLR` 0.8. */
  baseMomentum?: number | readonly number[]
  /** The highest momentum, at the ends; default 0.95, of `CyclicLR` 0.9. */
  maxMomentum?: number | readonly number[]
}

/** A group that has momentum by one of two names. */
interface WithMomentum {
  momentum?: number
  betas?: readonly [number, number]
}

/** Changes momentum with the rates. */
class CycledLR extends LRScheduler {
  readonly #momentum: readonly Schedule[]

  constructor(
    optimizer: AnyOptimizer,
    make: (lr: number, group: number) => Schedule,
    momentum: readonly Schedule[],
  ) {
    super(optimizer, make)
    this.#momentum = momentum
    this.#cycle(0)
  }

  /**
   * Sets rates and momentum of the next step.
   *
   * @param epoch goes to this step instead.
   * @throws ValueError for an epoch that is no number ≥ 0; nothing is changed then.
   */
  override step(epoch?: number): void {
    super.step(epoch)
    this.#cycle(epoch ?? this.lastEpoch)
  }

  #cycle(epoch: number): void {
    for (const [i, schedule] of this.#momentum.entries()) {
      const group = this.optimizer.paramGroups[i] as object as WithMomentum
      if (group.betas) group.betas = [schedule(epoch), group.betas[1]]
      else group.momentum = schedule(epoch)
    }
  }
}

/** The lowest and the highest momentum of each group, or null where it stays as it is. */
function momentumOf(
  op: string,
  optimizer: AnyOptimizer,
  { cycleMomentum = true, baseMomentum = 0.85, maxMomentum = 0.95 }: CycleMomentumOptions,
): readonly [base: number, max: number][] {
  if (!cycleMomentum) return []
  if (!optimizer.paramGroups.every((group) => 'momentum' in group || 'betas' in group))
    throw new ValueError(
      `${op}: ${optimizer.constructor.name} has neither momentum nor betas; pass { cycleMomentum: false }`,
    )
  const base = perGroup(op, 'baseMomentum', optimizer, baseMomentum)
  return perGroup(op, 'maxMomentum', optimizer, maxMomentum).map((max, i) => {
    if (!(base[i] >= 0 && base[i] <= max && max < 1))
      throw new ValueError(
        `${op}: momentum must lie within 0 ≤ baseMomentum ≤ maxMomentum < 1, got ${base[i]} and ${max}`,
      )
    return [base[i], max]
  })
}

/** Options of `OneCycleLR`: `totalSteps`, or `epochs` and `stepsPerEpoch`. */
export interface OneCycleLROptions extends CycleMomentumOptions {
  /** Steps of the whole cycle; the last is step totalSteps − 1, whose rate stays. */
  totalSteps?: number
  /** In place of totalSteps, with stepsPerEpoch: how many epochs there are. */
  epochs?: number
  /** In place of totalSteps, with epochs: how many steps an epoch has. */
  stepsPerEpoch?: number
  /** Share of the cycle spent rising; default 0.3. */
  pctStart?: number
  /** Half cosines, 'cos', or straight lines, 'linear'; default 'cos'. */
  annealStrategy?: 'cos' | 'linear'
  /** The first rate is maxLr / divFactor; default 25. */
  divFactor?: number
  /** The last rate is the first / finalDivFactor; default 1e4. */
  finalDivFactor?: number
  /** Whether rates fall as fast as they rose, to the first rate, and then on to the last; default false. */
  threePhase?: boolean
}

const ONE_CYCLE: Names<OneCycleLROptions> = {
  totalSteps: 1,
  epochs: 1,
  stepsPerEpoch: 1,
  pctStart: 1,
  annealStrategy: 1,
  divFactor: 1,
  finalDivFactor: 1,
  threePhase: 1,
  cycleMomentum: 1,
  baseMomentum: 1,
  maxMomentum: 1,
}

/**
 * One cycle (Smith & Topin 2018): rates rise from maxLr / divFactor to maxLr and fall to maxLr / divFactor / finalDivFactor, while
 * momentum (or Adam's β₁) does the opposite. Call `step()` after each batch.
 *
 * @param maxLr the peak, for all groups or for each.
 * @throws ValueError for options out of range, or an optimiser without momentum unless `cycleMomentum` is false.
 * @example
 * const optimizer = new AdamW(new Linear(2, 1).parameters())
 * const scheduler = new OneCycleLR(optimizer, 1, { totalSteps: 10, divFactor: 4 })
 * optimizer.lr // → 0.25
 * scheduler.step(2)
 * optimizer.lr // → 1
 */
export class OneCycleLR extends CycledLR {
  constructor(optimizer: AnyOptimizer, maxLr: number | readonly number[], options: OneCycleLROptions) {
    const name = 'OneCycleLR'
    expectOptimizer(name, optimizer)
    // First the peak: what is given by name here has left out the peak itself.
    const peaks = perGroup(name, 'maxLr', optimizer, maxLr)
    const given = expectOptions(name, options ?? {}, ONE_CYCLE)
    const { totalSteps, epochs, stepsPerEpoch, pctStart = 0.3, divFactor = 25, finalDivFactor = 1e4 } = given
    const { annealStrategy = 'cos', threePhase = false } = given
    if (totalSteps === undefined && (epochs === undefined || stepsPerEpoch === undefined))
      throw new ValueError(`${name}: needs totalSteps, or epochs and stepsPerEpoch`)
    if (totalSteps === undefined) whole(name, { epochs, stepsPerEpoch })
    const steps = totalSteps ?? (epochs as number) * (stepsPerEpoch as number)
    whole(name, { totalSteps: steps })
    finite(name, { divFactor, finalDivFactor }, Number.MIN_VALUE)
    const shape = { totalSteps: steps, pctStart, divFactor, finalDivFactor, annealStrategy, threePhase }
    const rates = peaks.map((peak) => oneCycle({ maxLr: peak, ...shape }))
    const end = pctStart * steps - 1
    const momentum = momentumOf(name, optimizer, given).map(([base, max]) =>
      inPhases(
        [
          { end, from: max, to: base },
          { end: threePhase ? 2 * end : steps - 1, from: base, to: max },
          { end: steps - 1, from: max, to: max },
        ],
        annealStrategy === 'cos',
      ),
    )
    super(optimizer, (_, i) => rates[i], momentum)
  }
}

/** Options of `CyclicLR`. */
export interface CyclicLROptions extends CycleMomentumOptions {
  /** Steps of a rise; default 2000. */
  stepSizeUp?: number
  /** Steps of a fall; default stepSizeUp. */
  stepSizeDown?: number
  /** Cycles of one height, 'triangular', each half as high as the one before, 'triangular2', or gamma^step as high, 'exp_range'; default 'triangular'. */
  mode?: 'triangular' | 'triangular2' | 'exp_range'
  /** The base of 'exp_range'; default 1. */
  gamma?: number
}

const CYCLIC: Names<CyclicLROptions> = {
  stepSizeUp: 1,
  stepSizeDown: 1,
  mode: 1,
  gamma: 1,
  cycleMomentum: 1,
  baseMomentum: 1,
  maxMomentum: 1,
}

/**
 * Lets rates rise and fall between baseLr and maxLr in straight lines, again and again (Smith 2017), while momentum (or Adam's β₁)
 * does the opposite. Call `step()` after each batch.
 *
 * @param baseLr the lowest rate, for all groups or for each.
 * @param maxLr the highest rate, for all groups or for each.
 * @throws ValueError for options out of range, or an optimiser without momentum unless `cycleMomentum` is false.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { momentum: 0.9 })
 * const scheduler = new CyclicLR(optimizer, 0, 1, { stepSizeUp: 4 })
 * scheduler.step()
 * optimizer.lr // → 0.25
 */
export class CyclicLR extends CycledLR {
  constructor(
    optimizer: AnyOptimizer,
    baseLr: number | readonly number[],
    maxLr: number | readonly number[],
    options: CyclicLROptions = {},
  ) {
    const name = 'CyclicLR'
    expectOptimizer(name, optimizer)
    const given = expectOptions(name, options, CYCLIC)
    const { stepSizeUp = 2000, stepSizeDown = stepSizeUp, mode = 'triangular', gamma = 1 } = given
    whole(name, { stepSizeUp, stepSizeDown })
    finite(name, { gamma }, Number.MIN_VALUE)
    if (!['triangular', 'triangular2', 'exp_range'].includes(mode))
      throw new ValueError(
        `${name}: mode must be 'triangular', 'triangular2' or 'exp_range', got ${describeValue(mode)}`,
      )
    const lowest = perGroup(name, 'baseLr', optimizer, baseLr)
    const highest = perGroup(name, 'maxLr', optimizer, maxLr)
    const length = stepSizeUp + stepSizeDown
    // How high it is at a step, where 1 is the highest.
    const height = (step: number): number => {
      const cycle = Math.floor(step / length)
      const at = step - cycle * length
      const up = at <= stepSizeUp ? at / stepSizeUp : (length - at) / stepSizeDown
      return up * (mode === 'triangular2' ? 0.5 ** cycle : mode === 'exp_range' ? gamma ** step : 1)
    }
    const between =
      (from: number, to: number): Schedule =>
      (step) =>
        from + (to - from) * height(step)
    const momentum = momentumOf(name, optimizer, { baseMomentum: 0.8, maxMomentum: 0.9, ...given })
    super(
      optimizer,
      (_, i) => between(lowest[i], highest[i]),
      momentum.map(([base, max]) => between(max, base)),
    )
  }
}
