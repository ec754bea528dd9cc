import { compile, ones, tensor } from '@tilegrad/core'
import {
  AdamW,
  ChainedScheduler,
  ConstantLR,
  CosineAnnealingLR,
  CosineAnnealingWarmRestarts,
  CyclicLR,
  ExponentialLR,
  LambdaLR,
  LinearLR,
  LRScheduler,
  MultiplicativeLR,
  MultiStepLR,
  OneCycleLR,
  parameter,
  ReduceLROnPlateau,
  SequentialLR,
  SGD,
  StepLR,
  schedule,
} from '@tilegrad/nn'
import { describe, expect, it } from 'vitest'
import { expectNumbers } from './helpers.ts'

// Numbers of PyTorch 1.13 are written with ten decimals. Its rates of whole runs, of 2.11, are in test/conformance.
const WRITTEN = { atol: 1e-10, rtol: 1e-9 }
const sgd = (lr = 0.4): SGD => new SGD([parameter(ones([1]))], { lr, momentum: 0.9 })
const adam = (): AdamW => new AdamW([parameter(ones([1]))], { lr: 0.4 })

/** What is read before each of so many steps. */
function watch(n: number, scheduler: { step(): void }, read: () => number): number[] {
  return Array.from({ length: n }, () => {
    const value = read()
    scheduler.step()
    return value
  })
}

describe('schedulers', () => {
  it('OneCycleLR moves momentum against the rate, of SGD and of Adam', () => {
    const two = [0.95, 0.9, 0.85, 0.8549515566, 0.8688255099, 0.8888739533, 0.9111260467, 0.9311744901]
    const three = [0.95, 0.9, 0.85, 0.9, 0.95, 0.95, 0.95, 0.95]
    for (const [threePhase, want] of [
      [false, two],
      [true, three],
    ] as const) {
      const [a, b] = [sgd(), adam()]
      const options = { totalSteps: 10, threePhase }
      expectNumbers(
        watch(8, new OneCycleLR(a, 0.5, options), () => a.paramGroups[0].momentum),
        want,
        WRITTEN,
      )
      expectNumbers(
        watch(8, new OneCycleLR(b, 0.5, options), () => b.paramGroups[0].betas[0]),
        want,
        WRITTEN,
      )
      expect(b.paramGroups[0].betas[1]).toBe(0.999)
    }
    const still = sgd()
    new OneCycleLR(still, 0.5, { totalSteps: 10, cycleMomentum: false }).step(5)
    expect(still.paramGroups[0].momentum).toBe(0.9)
  })

  it('CyclicLR: momentum, heights that halve, heights that fall', () => {
    const halves = sgd()
    const scheduler = new CyclicLR(halves, 0.1, 0.5, {
      stepSizeUp: 2,
      stepSizeDown: 3,
      mode: 'triangular2',
    })
    expectNumbers(
      watch(9, scheduler, () => halves.paramGroups[0].momentum),
      [0.9, 0.85, 0.8, 0.8333333333, 0.8666666667, 0.9, 0.875, 0.85, 0.8666666667],
      WRITTEN,
    )
    const falls = sgd()
    expectNumbers(
      watch(
        7,
        new CyclicLR(falls, 0.1, 0.5, { stepSizeUp: 2, mode: 'exp_range', gamma: 0.9 }),
        () => falls.lr,
      ),
      [0.1, 0.28, 0.424, 0.2458, 0.1, 0.218098, 0.3125764],
      WRITTEN,
    )
  })

  it('two of one optimiser work together, as PyTorch’s', () => {
    const optimizer = sgd()
    const [a, b] = [
      new StepLR(optimizer, 2, { gamma: 0.5 }),
      new CosineAnnealingLR(optimizer, 4, { etaMin: 0.05 }),
    ]
    const both = {
      step: () => {
        a.step()
        b.step()
      },
    }
    expectNumbers(
      watch(11, both, () => optimizer.lr),
      [
        ...[0.4, 0.348743686708, 0.122855339059, 0.071338834765, 0.05, 0.101256313292, 0.052144660941],
        ...[0.053661165235, 0.022855339059, 0.026830582618, 0.028569173824],
      ],
      WRITTEN,
    )
    // Rates set by hand are multiplied; a schedule that sets rates sets them.
    const hand = sgd()
    const exponential = new ExponentialLR(hand, 0.5)
    exponential.step()
    hand.lr = 1
    exponential.step()
    expect(hand.lr).toBe(0.5)
    // The second one begins with the rates that the first one found.
    const lambda = new LambdaLR(hand, [(step) => 1 / (1 + step)])
    expect(lambda.baseLrs).toEqual([0.4])
    expect(hand.lr).toBe(0.4)
  })

  it('goes to any step, and to fractions of steps', () => {
    const optimizer = sgd()
    const restarts = new CosineAnnealingWarmRestarts(optimizer, 4)
    const rates = [0, 0.5, 1, 1.5, 2, 2.5].map((epoch) => {
      restarts.step(epoch)
      return optimizer.lr
    })
    expectNumbers(rates, [0.4, 0.384775906502, 0.341421356237, 0.276536686473, 0.2, 0.123463313527], WRITTEN)
    expect(restarts.lastEpoch).toBe(2)
    const sequential = new SequentialLR(
      optimizer,
      [new ConstantLR(optimizer, { factor: 0.5, totalIters: 9 }), new ExponentialLR(optimizer, 0.5)],
      [3],
    )
    expect(optimizer.lr).toBe(0.2)
    sequential.step(4)
    expect(optimizer.lr).toBe(0.2)
    sequential.step()
    expect(optimizer.lr).toBe(0.1)
  })

  it('takes any function from step to rate, for each group', () => {
    const optimizer = new SGD([
      { params: [parameter(ones([1]))], lr: 0.4 },
      { params: [parameter(ones([1]))], lr: 0.1 },
    ])
    const scheduler = new LRScheduler(optimizer, (lr) =>
      schedule.warmupCosine({ lr, warmupSteps: 3, decaySteps: 10 }),
    )
    expect(scheduler.getLastLr()).toEqual([0.1, 0.025])
    scheduler.step(3)
    expect(optimizer.paramGroups.map((group) => group.lr)).toEqual([0.4, 0.1])
    const factors = [() => 0.5, () => 2]
    const each = new MultiplicativeLR(optimizer, factors)
    each.step()
    expect(each.getLastLr()).toEqual([0.2, 0.2])
    expect(String(each)).toBe('MultiplicativeLR (lastEpoch: 1, lr: [0.2, 0.2])')
  })

  it('continues from what it said, which is JSON', () => {
    const make = (optimizer: SGD) => {
      const warmup = new LinearLR(optimizer, { startFactor: 0.5, totalIters: 3 })
      const decay = new MultiStepLR(optimizer, [2, 4], { gamma: 0.5 })
      const inner = new SequentialLR(optimizer, [warmup, decay], [3])
      return new ChainedScheduler([inner, new ExponentialLR(optimizer, 0.9)])
    }
    const whole = sgd()
    const uninterrupted = make(whole)
    watch(4, uninterrupted, () => whole.lr)
    const saved = JSON.parse(JSON.stringify([whole.stateDict(), uninterrupted.stateDict()]))
    const resumed = sgd(7)
    const scheduler = make(resumed)
    resumed.loadStateDict(saved[0])
    scheduler.loadStateDict(saved[1])
    expect(watch(5, scheduler, () => resumed.lr)).toEqual(watch(5, uninterrupted, () => whole.lr))
  })

  it('ReduceLROnPlateau: NaN is no better, state continues', () => {
    const optimizer = sgd()
    const scheduler = new ReduceLROnPlateau(optimizer, { factor: 0.5, patience: 1 })
    for (const loss of [Number.NaN, 2, Number.NaN]) scheduler.step(loss)
    expect(scheduler.stateDict()).toMatchObject({ best: 2, numBadEpochs: 1, lastEpoch: 3 })
    const resumed = new ReduceLROnPlateau(optimizer, { factor: 0.5, patience: 1 })
    resumed.loadStateDict(JSON.parse(JSON.stringify(scheduler.stateDict())))
    resumed.step(2)
    expect(optimizer.lr).toBe(0.2)
    expect(resumed.getLastLr()).toEqual([0.2])
    expect(() => scheduler.step(tensor(1) as never)).toThrow(/takes a number, got .*; read it, as await loss/)
  })

  it('refuses what makes no sense, and changes nothing then', () => {
    const optimizer = sgd()
    const scheduler = new StepLR(optimizer, 1)
    expect(() => scheduler.step(Number.NaN)).toThrow(/StepLR.step: takes nothing, or the number of a step/)
    expect(() => scheduler.loadStateDict({ lastEpoch: 1, baseLrs: [1, 2], lastLr: [1] })).toThrow(
      /StepLR.loadStateDict: baseLrs must be 1 rates/,
    )
    expect(() => scheduler.loadStateDict({ lastEpoch: -1, baseLrs: [1], lastLr: [1] })).toThrow(
      /lastEpoch must be a whole number ≥ 0, got -1/,
    )
    expect(scheduler.stateDict()).toEqual({ lastEpoch: 0, baseLrs: [0.4], lastLr: [0.4] })
    const bad = new LambdaLR(optimizer, (step) => (step === 0 ? 1 : Number.NaN))
    expect(() => bad.step()).toThrow(/LambdaLR: the rate of step 1 must be ≥ 0, got NaN for group 0/)
    expect([optimizer.lr, bad.lastEpoch]).toEqual([0.4, 0])
    expect(() => new StepLR(optimizer, 0)).toThrow(/StepLR: stepSize must be a whole number ≥ 1, got 0/)
    expect(() => new StepLR(optimizer, { stepSize: 3 } as never)).toThrow(/stepSize must be a whole number/)
    expect(() => new StepLR({} as never, 3)).toThrow(/StepLR: takes an optimiser/)
    expect(() => new ExponentialLR(optimizer, 0)).toThrow(/gamma must be a finite number/)
    expect(() => new OneCycleLR(optimizer, 1, {})).toThrow(/needs totalSteps, or epochs and stepsPerEpoch/)
    expect(() => new OneCycleLR(optimizer, [1, 2], { totalSteps: 3 })).toThrow(
      /maxLr must be a number, or one for each of 1 groups/,
    )
    // As PyTorch's keywords are written by those who guess.
    expect(() => new OneCycleLR(optimizer, { maxLr: 1, totalSteps: 3 } as never, undefined as never)).toThrow(
      /maxLr must be a number, .* got an object with maxLr, totalSteps/,
    )
    expect(() => new OneCycleLR(optimizer, 1, undefined as never)).toThrow(/needs totalSteps, or epochs/)
    expect(() => new LambdaLR(optimizer, 0.5 as never)).toThrow(/takes a function from the step to a factor/)
    expect(() => new SequentialLR(optimizer, [scheduler], [1])).toThrow(/takes 0 milestones for 1 schedulers/)
    expect(() => new ChainedScheduler([scheduler, new StepLR(sgd(), 1)])).toThrow(/of different optimisers/)
    expect(() => new ChainedScheduler([new ReduceLROnPlateau(optimizer) as never])).toThrow(
      /got ReduceLROnPlateau; call its step\(metric\) by itself/,
    )
    const chained = new ChainedScheduler([new StepLR(optimizer, 1), new ExponentialLR(optimizer, 0.5)])
    const before = chained.stateDict()
    const broken = { lastEpoch: 3, schedulers: [{ lastEpoch: 3, baseLrs: [1], lastLr: [1] }, {} as never] }
    expect(() => chained.loadStateDict(broken)).toThrow(/ExponentialLR.loadStateDict/)
    expect(chained.stateDict()).toEqual(before)
    const step = compile(() => {
      scheduler.step()
      return ones([1])
    })
    expect(() => step()).toThrow(/StepLR.step/)
  })
})
