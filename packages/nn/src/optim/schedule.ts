import { describeValue, expectOptions, shownAs, ValueError } from '@tilegrad/core'
import { inPhases } from './phases.ts'

/**
 * Learning-rate schedules: functions from the step number, counted from 0, to the learning rate. Set it before each
 * step, on the optimiser or on one of its groups:
 *
 * @example
 * const optimizer = new AdamW(new Linear(2, 1).parameters())
 * const lr = schedule.warmupCosine({ lr: 1e-3, minLr: 1e-4, warmupSteps: 100, decaySteps: 2000 })
 * for (let step = 0; step < 3; step++) {
 *   optimizer.lr = lr(step)
 *   // … a training step
 * }
 * lr(100) // → 0.001
 */
export type Schedule = (step: number) => number

/** A schedule that shows itself by its name and options. */
const named = (op: string, options: object, schedule: Schedule): Schedule =>
  shownAs(schedule, () => {
    const list = Object.entries(options).map(([name, value]) => `${name}: ${value}`)
    return `schedule.${op}({ ${list.join(', ')} })`
  })

/** Fails unless each number is above 0 (or, where named in `orZero`, at least 0). */
function check(op: string, numbers: Readonly<Record<string, number>>, orZero: readonly string[] = []): void {
  for (const [name, value] of Object.entries(numbers)) {
    const zero = orZero.includes(name)
    if (!(value > 0 || (zero && value === 0))) {
      throw new ValueError(
        `schedule.${op}: ${name} must be ${zero ? '≥' : '>'} 0, got ${describeValue(value)}`,
      )
    }
  }
}

/**
 * Keeps one rate at every step.
 *
 * @example
 * schedule.constant(0.1)(5) // → 0.1
 */
export function constant(lr: number): Schedule {
  check('constant', { lr }, ['lr'])
  return named('constant', { lr }, () => lr)
}

/** Options of `warmupCosine`. */
export interface WarmupCosineOptions {
  /** The highest rate, reached after the warm-up. */
  lr: number
  /** The rate at `decaySteps` and after; default 0. */
  minLr?: number
  /** Steps of linear warm-up; default 0. */
  warmupSteps?: number
  /** Step at which the cosine ends, warm-up included. */
  decaySteps: number
}

/**
 * nanoGPT's schedule: lr · (step + 1) / (warmupSteps + 1) while warming up, then half a cosine from lr down to minLr at
 * decaySteps (Loshchilov & Hutter 2017), then minLr.
 *
 * @throws ValueError for negative numbers or a warm-up longer than decaySteps.
 * @example
 * const rate = schedule.warmupCosine({ lr: 1, warmupSteps: 2, decaySteps: 10 })
 * rate(10) // → 0
 */
export function warmupCosine(options: WarmupCosineOptions): Schedule {
  const {
    lr,
    minLr = 0,
    warmupSteps = 0,
    decaySteps,
  } = expectOptions('schedule.warmupCosine', options, { lr: 1, minLr: 1, warmupSteps: 1, decaySteps: 1 })
  check('warmupCosine', { lr, minLr, warmupSteps, decaySteps }, ['lr', 'minLr', 'warmupSteps'])
  if (warmupSteps > decaySteps)
    throw new ValueError(`schedule.warmupCosine: ${warmupSteps} warmupSteps exceed ${decaySteps} decaySteps`)
  return named('warmupCosine', options, (step) => {
    if (step < warmupSteps) return (lr * (step + 1)) / (warmupSteps + 1)
    if (step >= decaySteps) return minLr
    const ratio = (step - warmupSteps) / (decaySteps - warmupSteps)
    return minLr + 0.5 * (1 + Math.cos(Math.PI * ratio)) * (lr - minLr)
  })
}

/** Options of `linear`. */
export interface LinearOptions {
  /** The rate at step 0. */
  from: number
  /** The rate at step `steps` and after. */
  to: number
  /** How many steps the line takes. */
  steps: number
}

/**
 * Makes a schedule that goes in a straight line from `from` at step 0 to `to` at step `steps` and after.
 *
 * @example
 * schedule.linear({ from: 1, to: 0, steps: 4 })(1) // → 0.75
 */
export function linear(options: LinearOptions): Schedule {
  const { from, to, steps } = expectOptions('schedule.linear', options, { from: 1, to: 1, steps: 1 })
  check('linear', { from, to, steps }, ['from', 'to'])
  return named('linear', options, (step) => from + (to - from) * Math.min(1, step / steps))
}

/** Options of `stepDecay`. */
export interface StepDecayOptions {
  /** The rate at step 0. */
  lr: number
  /** How many steps a rate lasts. */
  stepSize: number
  /** What the rate is multiplied by. Default: 0.1. */
  gamma?: number
}

/**
 * lr · gamma^⌊step / stepSize⌋: a drop by gamma (default 0.1) every stepSize steps.
 *
 * @example
 * schedule.stepDecay({ lr: 1, stepSize: 2, gamma: 0.5 })(4) // → 0.25
 */
export function stepDecay(options: StepDecayOptions): Schedule {
  const {
    lr,
    stepSize,
    gamma = 0.1,
  } = expectOptions('schedule.stepDecay', options, { lr: 1, stepSize: 1, gamma: 1 })
  check('stepDecay', { lr, stepSize, gamma }, ['lr'])
  return named('stepDecay', options, (step) => lr * gamma ** Math.floor(step / stepSize))
}

/** Options of `exponential`. */
export interface ExponentialOptions {
  /** The rate at step 0. */
  lr: number
  /** What each step multiplies the rate by. */
  gamma: number
}

/**
 * Multiplies the rate by gamma at every step: lr · gamma^step.
 *
 * @throws ValueError for a negative rate.
 * @example
 * schedule.exponential({ lr: 1, gamma: 0.5 })(2) // → 0.25
 */
export function exponential(options: ExponentialOptions): Schedule {
  const { lr, gamma } = expectOptions('schedule.exponential', options, { lr: 1, gamma: 1 })
  check('exponential', { lr, gamma }, ['lr'])
  return named('exponential', options, (step) => lr * gamma ** step)
}

/** Options of `oneCycle`. */
export interface OneCycleOptions {
  /** The peak. */
  maxLr: number
  /** Steps of the whole cycle; the last is step totalSteps − 1. */
  totalSteps: number
  /** Share of the cycle spent rising; default 0.3. */
  pctStart?: number
  /** The first rate is maxLr / divFactor; default 25. */
  divFactor?: number
  /** The last rate is the first / finalDivFactor; default 1e4. */
  finalDivFactor?: number
  /** Half cosines, 'cos', or straight lines, 'linear'; default 'cos'. */
  annealStrategy?: 'cos' | 'linear'
  /** Whether it falls as fast as it rose, to the first rate, and then on to the last; default false. */
  threePhase?: boolean
}

/**
 * One cycle (Smith & Topin 2018) as PyTorch's OneCycleLR: half a cosine up from maxLr / divFactor to maxLr, then half a
 * cosine down to maxLr / divFactor / finalDivFactor.
 *
 * @throws ValueError for numbers that are not positive or a pctStart outside 0 … 1.
 * @example
 * schedule.oneCycle({ maxLr: 1, totalSteps: 10, divFactor: 4 })(0) // → 0.25
 */
export function oneCycle(options: OneCycleOptions): Schedule {
  const {
    maxLr,
    totalSteps,
    pctStart = 0.3,
    divFactor = 25,
    finalDivFactor = 1e4,
    annealStrategy = 'cos',
    threePhase = false,
  } = expectOptions('schedule.oneCycle', options, {
    maxLr: 1,
    totalSteps: 1,
    pctStart: 1,
    divFactor: 1,
    finalDivFactor: 1,
    annealStrategy: 1,
    threePhase: 1,
  })
  check('oneCycle', { maxLr, totalSteps, pctStart, divFactor, finalDivFactor }, ['pctStart'])
  if (pctStart > 1) throw new ValueError(`schedule.oneCycle: pctStart must lie within 0 … 1, got ${pctStart}`)
  if (annealStrategy !== 'cos' && annealStrategy !== 'linear')
    throw new ValueError(
      `schedule.oneCycle: annealStrategy must be 'cos' or 'linear', got ${describeValue(annealStrategy)}`,
    )
  const first = maxLr / divFactor
  const last = first / finalDivFactor
  const peak = pctStart * totalSteps - 1
  const phases = [
    { end: peak, from: first, to: maxLr },
    ...(threePhase ? [{ end: 2 * pctStart * totalSteps - 2, from: maxLr, to: first }] : []),
    { end: totalSteps - 1, from: threePhase ? first : maxLr, to: last },
  ]
  return named('oneCycle', options, inPhases(phases, annealStrategy === 'cos'))
}
