import { ones } from '@tilegrad/core'
import { parameter, SGD, schedule } from '@tilegrad/nn'
import { describe, expect, it } from 'vitest'
import { expectNumbers } from './helpers.ts'

// Double precision, a few operations.
const EXACT = { atol: 1e-15, rtol: 1e-12 }
const take = (lr: schedule.Schedule, steps: readonly number[]): number[] => steps.map(lr)

describe('schedules', () => {
  it('constant', () => expect(take(schedule.constant(0.3), [0, 5, 1e6])).toEqual([0.3, 0.3, 0.3]))

  it('warmupCosine: warm-up, half a cosine, floor', () => {
    const lr = schedule.warmupCosine({ lr: 1, minLr: 0.1, warmupSteps: 4, decaySteps: 12 })
    const cosine = (ratio: number): number => 0.1 + 0.9 * 0.5 * (1 + Math.cos(Math.PI * ratio))
    expectNumbers(
      take(lr, [0, 1, 3, 4, 6, 8, 11, 12, 100]),
      [0.2, 0.4, 0.8, 1, cosine(0.25), 0.55, cosine(7 / 8), 0.1, 0.1],
      EXACT,
    )
    expectNumbers(take(schedule.warmupCosine({ lr: 2, decaySteps: 2 }), [0, 1, 2]), [2, 1, 0], EXACT)
    expect(schedule.warmupCosine({ lr: 2, minLr: 1, warmupSteps: 3, decaySteps: 3 })(3)).toBe(1)
  })

  it('linear, stepDecay and exponential', () => {
    expectNumbers(
      take(schedule.linear({ from: 1, to: 0.2, steps: 4 }), [0, 1, 4, 9]),
      [1, 0.8, 0.2, 0.2],
      EXACT,
    )
    expectNumbers(
      take(schedule.stepDecay({ lr: 1, stepSize: 3 }), [0, 2, 3, 8, 9]),
      [1, 1, 0.1, 0.01, 0.001],
      EXACT,
    )
    expectNumbers(take(schedule.stepDecay({ lr: 8, stepSize: 1, gamma: 0.5 }), [0, 1, 3]), [8, 4, 1], EXACT)
    expectNumbers(take(schedule.exponential({ lr: 2, gamma: 0.9 }), [0, 1, 3]), [2, 1.8, 1.458], EXACT)
  })

  it('oneCycle: PyTorch’s phases', () => {
    // Rises over steps 0 … 2 (0.3 · 10 − 1), falls over 2 … 9.
    const lr = schedule.oneCycle({ maxLr: 1, totalSteps: 10, divFactor: 10, finalDivFactor: 100 })
    const down = (ratio: number): number => 0.001 + (0.999 / 2) * (1 + Math.cos(Math.PI * ratio))
    expectNumbers(take(lr, [0, 1, 2, 4, 9, 20]), [0.1, 0.55, 1, down(2 / 7), 0.001, 0.001], EXACT)
    // Without a rise, and with nothing else.
    expect(schedule.oneCycle({ maxLr: 1, totalSteps: 3, pctStart: 1 })(2)).toBe(1)
    expectNumbers(
      take(schedule.oneCycle({ maxLr: 1, totalSteps: 3, pctStart: 0 }), [2]),
      [1 / 25 / 1e4],
      EXACT,
    )
  })

  it('drives an optimiser', () => {
    const optimizer = new SGD([parameter(ones([1]))])
    const lr = schedule.linear({ from: 1, to: 0, steps: 2 })
    const seen = [0, 1, 2].map((step) => {
      optimizer.lr = lr(step)
      return optimizer.paramGroups[0].lr
    })
    expect(seen).toEqual([1, 0.5, 0])
  })

  it('refuses what makes no sense', () => {
    expect(() => schedule.constant(-1)).toThrow(/schedule.constant: lr must be ≥ 0, got -1/)
    expect(() => schedule.warmupCosine({ lr: 1, warmupSteps: 9, decaySteps: 3 })).toThrow(
      /9 warmupSteps exceed 3/,
    )
    expect(() => schedule.linear({ from: 1, to: 0, steps: 0 })).toThrow(/steps must be > 0, got 0/)
    expect(() => schedule.oneCycle({ maxLr: 1, totalSteps: 3, pctStart: 2 })).toThrow(
      /pctStart must lie within 0 … 1/,
    )
  })
})
