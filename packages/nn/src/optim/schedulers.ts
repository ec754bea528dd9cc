/** PyTorch's schedules by their names, each as the function from step to rate that it is. */

import { describeValue, expectOptions, ValueError } from '@tilegrad/core'
import { type AnyOptimizer, finite, LRScheduler, whole } from './lr-scheduler.ts'
import { exponential, linear, stepDecay } from './schedule.ts'

/** Options of `StepLR` and `MultiStepLR`. */
export interface StepLROptions {
  /** What the rate is multiplied by; default 0.1. */
  gamma?: number
}

/** @throws ValueError for a factor that is not above 0. */
function positive(op: string, numbers: Readonly<Record<string, unknown>>): void {
  finite(op, numbers, Number.MIN_VALUE)
}

function gammaOf(op: string, options: StepLROptions): number {
  const { gamma = 0.1 } = expectOptions(op, options, { gamma: 1 })
  positive(op, { gamma })
  return gamma
}

/**
 * Multiplies rates by gamma every stepSize steps: lr · gamma^⌊step / stepSize⌋.
 *
 * @throws ValueError for options out of range.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 0.1 })
 * const scheduler = new StepLR(optimizer, 30, { gamma: 0.5 })
 * for (let epoch = 0; epoch < 30; epoch++) scheduler.step()
 * scheduler.getLastLr() // → 0.05
 */
export class StepLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, stepSize: number, options: StepLROptions = {}) {
    whole('StepLR', { stepSize })
    const gamma = gammaOf('StepLR', options)
    super(optimizer, (lr) => stepDecay({ lr, stepSize, gamma }), { chainedAbove: 0 })
  }
}

/**
 * Multiplies rates by gamma at each of the steps in `milestones`; a step that is there twice counts twice.
 *
 * @throws ValueError for milestones that are no whole numbers.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new MultiStepLR(optimizer, [1, 3], { gamma: 0.5 })
 * scheduler.step()
 * optimizer.lr // → 0.5
 */
export class MultiStepLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, milestones: readonly number[], options: StepLROptions = {}) {
    if (!Array.isArray(milestones))
      throw new ValueError(`MultiStepLR: takes a list of steps, got ${describeValue(milestones)}`)
    for (const milestone of milestones) whole('MultiStepLR', { milestone }, 0)
    const at = [...milestones]
    const gamma = gammaOf('MultiStepLR', options)
    super(optimizer, (lr) => (step) => lr * gamma ** at.filter((m) => m <= step).length, { chainedAbove: 0 })
  }
}

/**
 * Multiplies rates by gamma at every step.
 *
 * @throws ValueError for a gamma that is not above 0.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new ExponentialLR(optimizer, 0.5)
 * scheduler.step()
 * optimizer.lr // → 0.5
 */
export class ExponentialLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, gamma: number) {
    positive('ExponentialLR', { gamma })
    super(optimizer, (lr) => exponential({ lr, gamma }), { chainedAbove: 0 })
  }
}

/** Options of `ConstantLR`. */
export interface ConstantLROptions {
  /** What rates are multiplied by at first; default 1 / 3. */
  factor?: number
  /** For how many steps; default 5. */
  totalIters?: number
}

/**
 * Multiplies rates by a factor for the first totalIters steps; then they are as before.
 *
 * @throws ValueError for options out of range.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * new ConstantLR(optimizer, { factor: 0.5, totalIters: 4 })
 * optimizer.lr // → 0.5
 */
export class ConstantLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, options: ConstantLROptions = {}) {
    const { factor = 1 / 3, totalIters = 5 } = expectOptions('ConstantLR', options, {
      factor: 1,
      totalIters: 1,
    })
    finite('ConstantLR', { factor })
    whole('ConstantLR', { totalIters }, 0)
    super(optimizer, (lr) => (step) => (step < totalIters ? lr * factor : lr), { chainedAbove: 0 })
  }
}

/** Options of `LinearLR`. */
export interface LinearLROptions {
  /** What rates are multiplied by at first; default 1 / 3. */
  startFactor?: number
  /** What rates are multiplied by at the end and after; default 1. */
  endFactor?: number
  /** How many steps the line takes; default 5. */
  totalIters?: number
}

/**
 * Multiplies rates by a factor that goes in a straight line from startFactor to endFactor: a warm-up.
 *
 * @throws ValueError for options out of range.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new LinearLR(optimizer, { startFactor: 0.5, totalIters: 2 })
 * scheduler.step()
 * optimizer.lr // → 0.75
 */
export class LinearLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, options: LinearLROptions = {}) {
    const {
      startFactor = 1 / 3,
      endFactor = 1,
      totalIters = 5,
    } = expectOptions('LinearLR', options, { startFactor: 1, endFactor: 1, totalIters: 1 })
    positive('LinearLR', { startFactor })
    finite('LinearLR', { endFactor })
    whole('LinearLR', { totalIters })
    super(optimizer, (lr) => linear({ from: lr * startFactor, to: lr * endFactor, steps: totalIters }), {
      chainedAbove: 0,
    })
  }
}

/** Options of `PolynomialLR`. */
export interface PolynomialLROptions {
  /** How many steps it takes to 0; default 5. */
  totalIters?: number
  /** The power; default 1, a straight line. */
  power?: number
}

/**
 * Lets rates fall to 0: lr · (1 − step / totalIters)^power.
 *
 * @throws ValueError for options out of range.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new PolynomialLR(optimizer, { totalIters: 2, power: 2 })
 * scheduler.step()
 * optimizer.lr // → 0.25
 */
export class PolynomialLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, options: PolynomialLROptions = {}) {
    const { totalIters = 5, power = 1 } = expectOptions('PolynomialLR', options, { totalIters: 1, power: 1 })
    whole('PolynomialLR', { totalIters })
    positive('PolynomialLR', { power })
    super(optimizer, (lr) => (step) => lr * Math.max(0, 1 - step / totalIters) ** power, { chainedAbove: 0 })
  }
}

/** Options of `CosineAnnealingLR`. */
export interface CosineAnnealingLROptions {
  /** The lowest rate; default 0. */
  etaMin?: number
}

const halfCosine = (from: number, to: number, ratio: number): number =>
  to + 0.5 * (from - to) * (1 + Math.cos(Math.PI * ratio))

/**
 * Lets rates fall along half a cosine to etaMin at step tMax (Loshchilov & Hutter 2017); they rise again after it.
 *
 * @param tMax PyTorch's T_max.
 * @throws ValueError for options out of range.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new CosineAnnealingLR(optimizer, 2)
 * scheduler.step()
 * optimizer.lr // → 0.5
 */
export class CosineAnnealingLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, tMax: number, options: CosineAnnealingLROptions = {}) {
    const { etaMin = 0 } = expectOptions('CosineAnnealingLR', options, { etaMin: 1 })
    whole('CosineAnnealingLR', { tMax })
    finite('CosineAnnealingLR', { etaMin })
    super(optimizer, (lr) => (step) => halfCosine(lr, etaMin, step / tMax), { chainedAbove: etaMin })
  }
}

/** Options of `CosineAnnealingWarmRestarts`. */
export interface CosineAnnealingWarmRestartsOptions {
  /** How many times longer each fall is than the one before; default 1. */
  tMult?: number
  /** The lowest rate; default 0. */
  etaMin?: number
}

/**
 * Lets rates fall along half a cosine again and again, the first time in t0 steps, then each time tMult times longer (Loshchilov &
 * Hutter 2017). `step(epoch + i / batches)` takes fractions.
 *
 * @param t0 PyTorch's T_0.
 * @throws ValueError for options out of range.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new CosineAnnealingWarmRestarts(optimizer, 10, { tMult: 2 })
 * scheduler.step(20) // the middle of the second fall
 * optimizer.lr // → 0.5
 */
export class CosineAnnealingWarmRestarts extends LRScheduler {
  constructor(optimizer: AnyOptimizer, t0: number, options: CosineAnnealingWarmRestartsOptions = {}) {
    const name = 'CosineAnnealingWarmRestarts'
    const { tMult = 1, etaMin = 0 } = expectOptions(name, options, { tMult: 1, etaMin: 1 })
    whole(name, { t0 })
    whole(name, { tMult })
    finite(name, { etaMin })
    super(optimizer, (lr) => (step) => {
      let [at, length] = [step, t0]
      if (tMult === 1) at %= t0
      else
        while (at >= length) {
          at -= length
          length *= tMult
        }
      return halfCosine(lr, etaMin, at / length)
    })
  }
}

/** Factors of the rate by the step, for all groups or for each. */
export type LRLambda = (epoch: number) => number

function lambdaOf(op: string, { paramGroups }: AnyOptimizer, lambda: LRLambda | readonly LRLambda[]) {
  const list = Array.isArray(lambda)
    ? (lambda as readonly LRLambda[])
    : paramGroups.map(() => lambda as LRLambda)
  if (list.length !== paramGroups.length || list.some((f) => typeof f !== 'function'))
    throw new ValueError(
      `${op}: takes a function from the step to a factor, or one for each of ${paramGroups.length} groups, got ${describeValue(lambda)}`,
    )
  return list
}

/**
 * Multiplies the rates that groups began with by what a function gives for the step: lr · lrLambda(step).
 *
 * @param lrLambda one for all groups, or one for each.
 * @throws ValueError for what is no function.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new LambdaLR(optimizer, (step) => 1 / (step + 1))
 * scheduler.step()
 * optimizer.lr // → 0.5
 */
export class LambdaLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, lrLambda: LRLambda | readonly LRLambda[]) {
    let list: readonly LRLambda[] | null = null
    super(optimizer, (lr, i) => {
      list ??= lambdaOf('LambdaLR', optimizer, lrLambda)
      const factor = list[i]
      return (step) => lr * factor(step)
    })
  }
}

/**
 * Multiplies rates at each step by what a function gives for it: lr · lrLambda(1) · lrLambda(2) · … · lrLambda(step).
 *
 * @param lrLambda one for all groups, or one for each.
 * @throws ValueError for what is no function.
 * @example
 * const optimizer = new SGD([parameter(zeros([2]))], { lr: 1 })
 * const scheduler = new MultiplicativeLR(optimizer, () => 0.5)
 * scheduler.step()
 * optimizer.lr // → 0.5
 */
export class MultiplicativeLR extends LRScheduler {
  constructor(optimizer: AnyOptimizer, lrLambda: LRLambda | readonly LRLambda[]) {
    let list: readonly LRLambda[] | null = null
    const make = (lr: number, i: number) => {
      list ??= lambdaOf('MultiplicativeLR', optimizer, lrLambda)
      const factor = list[i]
      // The products so far, so that each factor is asked for once.
      const products = [1]
      return (step: number) => {
        while (products.length <= step) products.push(products[products.length - 1] * factor(products.length))
        return lr * products[Math.floor(step)]
      }
    }
    super(optimizer, make, { chainedAbove: 0 })
  }
}
