/** Layer norm, RMS norm and their gradients against the composition on the reference backend, in float64. */

import { layerNorm, layout, rmsNorm, type Tensor } from '@tilegrad/core'
import { beforeAll, describe, expect, test } from 'vitest'
import type { CpuBackend } from '../src/backend.ts'
import { type Case, check, evaluate, makeBackends } from './fused-rig.ts'
import { integer, pick, random, randomLayout, type Twin, twin } from './row-rig.ts'

let backends: { name: string; backend: CpuBackend }[]
beforeAll(async () => {
  backends = await makeBackends()
})

const operators = {
  layer_norm: (normalized: number[]) => (t: readonly Tensor[]) =>
    layerNorm(t[0] as Tensor, normalized, t[1], t[2]),
  rms_norm: (normalized: number[]) => (t: readonly Tensor[]) =>
    rmsNorm(t[0] as Tensor, normalized, t[1], { eps: 1e-5 }),
}

const dense = (shape: number[], value: (i: number) => number): Twin =>
  twin(layout.contiguous(shape), 'float32', value)

for (const name of ['layer_norm', 'rms_norm'] as const) {
  describe(name, () => {
    /** `parameters`: how many of weight and bias there are. */
    const make = (
      rnd: () => number,
      lead: number[],
      normalized: number[],
      parameters: number,
      needs: readonly boolean[],
      value = () => 3 * rnd() - 1,
    ): Case => {
      const shape = [...lead, ...normalized]
      // Trailing dims dense, leading ones any: a random layout of the leading dims, in units of a row.
      const size = layout.numel(normalized)
      const rows = (l = randomLayout(rnd, lead)) => ({
        shape,
        strides: [...l.strides.map((s) => s * size), ...layout.contiguousStrides(normalized)],
        offset: l.offset * size,
      })
      return {
        inputs: [
          twin(rows(), 'float32', value),
          ...Array.from({ length: parameters }, () => dense(normalized, () => rnd() + 0.5)),
        ],
        needs,
        dout: twin(rows(), 'float32', () => rnd() - 0.5),
        call: operators[name](normalized),
      }
    }
    const maximum = name === 'layer_norm' ? 2 : 1

    test('any rows, any parameters, any of the gradients', () => {
      const rnd = random(name.length)
      for (let i = 0; i < 40; i++) {
        const lead = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 3, 9]))
        const normalized = Array.from({ length: integer(rnd, 1, 2) }, () => pick(rnd, [1, 3, 8, 17, 33]))
        const parameters = integer(rnd, 0, maximum)
        const needs = [true, true, true].slice(0, parameters + 1).map(() => rnd() < 0.7)
        if (!needs.some(Boolean)) needs[0] = true
        // Standard deviation can be near 0 (a row of 1 element has none): then rstd is 1/√eps ≈ 316 and multiplies
        // the rounding of dy and of x − mean. Sums over ≤ 81 rows add a few units in the last place.
        check(
          backends,
          make(rnd, lead, normalized, parameters, needs),
          [name, `${name}Backward`],
          [
            [3e-5, 1e-5],
            [2e-4, 1e-5],
            [2e-4, 1e-5],
            [1e-5, 1e-5],
          ],
        )
      }
    })

    test('what else the input has received is added to its gradient', () => {
      const rnd = random(7)
      const past = (c: Case): Case => ({
        ...c,
        call: ([x, ...rest]) => {
          // A view, as a leaf's gradients are not the engine's to hand on.
          const y = (x as Tensor).unsqueeze(0).squeeze(0)
          return y.add(c.call([y, ...rest]))
        },
      })
      const all = [true, true, true].slice(0, maximum + 1)
      const tolerances = [
        [3e-5, 1e-5],
        [2e-4, 1e-5],
        [2e-4, 1e-5],
        [1e-5, 1e-5],
      ] as const
      for (let i = 0; i < 20; i++) {
        const lead = Array.from({ length: integer(rnd, 1, 3) }, () => pick(rnd, [1, 2, 3, 9]))
        const normalized = [pick(rnd, [1, 3, 8, 17, 33])]
        const parameters = integer(rnd, 0, maximum)
        const c = make(rnd, lead, normalized, parameters, all.slice(0, parameters + 1))
        check(backends, past(c), [name, `${name}Backward`], tolerances)
      }
      const { backend } = backends[0] as { backend: CpuBackend }
      const c = { ...make(rnd, [40], [65], maximum, all), dout: dense([40, 65], () => rnd()) }
      check(backends, past(c), [name, `${name}Backward`], tolerances)
      expect(evaluate(backend, past(c)).calls.add).toBe(1)
    })

    test('many rows: several blocks of the parameters’ gradients', () => {
      const rnd = random(8)
      for (const [rows, size] of [
        [2500, 65],
        [70, 5000],
      ] as const) {
        const c = make(rnd, [rows], [size], maximum, [true, true, true].slice(0, maximum + 1))
        // Terms of size 1: 40 rows per float32 sum, blocks in float64; relative to sums of size √rows ≈ 50.
        check(
          backends,
          c,
          [name, `${name}Backward`],
          [
            [1e-5, 1e-5],
            [1e-5, 1e-5],
            [5e-5, 1e-5],
            [2e-5, 1e-5],
          ],
        )
      }
    })

    test('a large mean does not swamp the variance; NaN and infinities stay in their rows', () => {
      const rnd = random(9)
      const shifted = make(
        rnd,
        [7],
        [300],
        maximum,
        [false, false, false].slice(0, maximum + 1),
        () => 1000 + rnd(),
      )
      // The mean is off by an ulp of 1000, 6e-5; 1/deviation is 3.5, the weight up to 1.5.
      check(backends, shifted, [name], [[6e-4, 1e-5]])
      const odd = (value: number): Case => ({
        inputs: [dense([3, 20], (i) => (i === 25 ? value : Math.sin(i)))],
        needs: [false],
        dout: null,
        call: operators[name]([20]),
      })
      for (const value of [Number.NaN, Infinity, -Infinity])
        check(backends, odd(value), [name], [[1e-5, 1e-5]])
      // A constant row has variance 0.
      const flat = { ...odd(0), inputs: [dense([3, 20], () => 5)] }
      check(backends, flat, [name], [[1e-5, 1e-5]])
    })

    test('what is not dense is composed', () => {
      const { backend } = backends[0] as { backend: CpuBackend }
      const strided = twin({ shape: [4, 6], strides: [1, 4], offset: 0 }, 'float32', (i) => i)
      const c = (x: Twin): Case => ({ inputs: [x], needs: [false], dout: null, call: operators[name]([6]) })
      expect(evaluate(backend, c(strided)).fused).toEqual([])
      expect(evaluate(backend, c(dense([4, 6], (i) => i))).fused).toEqual([name])
    })
  })
}
