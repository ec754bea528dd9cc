/** Layer norm, RMS norm and their gradients against the composition on the reference backend, in float64. */

import { layerNorm, layout, rmsNorm, type Tensor } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { backends, type Case, check, evaluate, operand, plain } from './support/fused.ts'
import { integer, pick, random } from './support/random.ts'

const operators = {
  layer_norm: (normalized: number[]) => (t: readonly Tensor[]) => layerNorm(t[0], normalized, t[1], t[2]),
  rms_norm: (normalized: number[]) => (t: readonly Tensor[]) =>
    rmsNorm(t[0], normalized, t[1], { eps: 1e-5 }),
}

for (const name of ['layer_norm', 'rms_norm'] as const) {
  describe(name, () => {
    const both = [name, `${name}Backward`]
    const maximum = name === 'layer_norm' ? 2 : 1
    /** `parameters`: how many of weight and bias there are. */
    const make = (
      rnd: () => number,
      lead: number[],
      normalized: number[],
      parameters: number,
      needs: readonly boolean[],
      value = () => 3 * rnd() - 1,
    ): Case => ({
      inputs: [
        operand(rnd, lead, normalized, value),
        ...Array.from({ length: parameters }, () => operand(rnd, [], normalized, () => rnd() + 0.5)),
      ],
      needs,
      dout: operand(rnd, lead, normalized, () => rnd() - 0.5),
      call: operators[name](normalized),
    })

    test('any rows, any parameters, any of the gradients', async () => {
      const rnd = random(name.length)
      for (let i = 0; i < 24; i++) {
        const lead = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 3, 9]))
        const normalized = Array.from({ length: integer(rnd, 1, 2) }, () => pick(rnd, [1, 3, 8, 17, 36]))
        const parameters = integer(rnd, 0, maximum)
        const needs = [true, true, true].slice(0, parameters + 1).map(() => rnd() < 0.7)
        if (!needs.some(Boolean)) needs[0] = true
        // Standard deviation can be near 0 (a row of 1 element has none): then rstd is 1/√eps ≈ 316 and multiplies
        // the rounding of dy and of x − mean. Sums over ≤ 81 rows add a few units in the last place.
        await check(backends, make(rnd, lead, normalized, parameters, needs), both, [
          [3e-5, 1e-5],
          [2e-4, 1e-5],
          [2e-4, 1e-5],
          [1e-5, 1e-5],
        ])
      }
    })

    test('what else the input has received is added to its gradient', async () => {
      const rnd = random(7)
      const past = (c: Case): Case => ({
        ...c,
        call: ([x, ...rest]) => {
          // A view, as a leaf's gradients are not the engine's to hand on.
          const y = x.unsqueeze(0).squeeze(0)
          return y.add(c.call([y, ...rest]))
        },
      })
      const all = [true, true, true].slice(0, maximum + 1)
      for (let i = 0; i < 3; i++) {
        const lead = Array.from({ length: integer(rnd, 1, 3) }, () => pick(rnd, [1, 2, 3, 9]))
        const parameters = integer(rnd, 0, maximum)
        const needs = all.slice(0, parameters + 1)
        await check(
          backends,
          past(make(rnd, lead, [pick(rnd, [1, 3, 8, 17, 36])], parameters, needs)),
          both,
          [
            [3e-5, 1e-5],
            [2e-4, 1e-5],
            [2e-4, 1e-5],
            [1e-5, 1e-5],
          ],
        )
      }
      // Little, with one kernel; rows in registers, and in loops; dx alone.
      for (const [rows, size] of [
        [40, 384],
        [2100, 36],
        [257, 4100],
      ] as const) {
        for (const needs of rows === 40 ? [all, all.map((_, i) => i === 0)] : [all]) {
          const c = {
            ...make(rnd, [rows], [size], maximum, needs),
            dout: plain([rows, size], () => rnd() - 0.5),
          }
          await check(backends, past(c), both, [
            [5e-6, 5e-6],
            [5e-6, 5e-6],
            [1e-4, 1e-5],
          ])
          expect((await evaluate(backends[0].backend, past(c))).calls.add).toBe(1)
        }
      }
    })

    test('rows of every tiling, in registers and in loops', async () => {
      const rnd = random(9)
      const all = [true, true, true].slice(0, maximum + 1)
      for (const n of [384, 513, 1024, 1027, 1280, 4096, 4100, 8200]) {
        const c = make(rnd, [pick(rnd, [2, 5])], [n], maximum, all)
        await check(backends, c, both, [
          [2e-6, 4e-6],
          [5e-6, 5e-6],
        ])
      }
      // Only parameters' gradients of long rows: no kernel for dx.
      await check(backends, make(rnd, [3], [8200], maximum, all.with(0, false)), both, [[5e-6, 5e-6]])
    })

    test('many rows: several rows per block, many blocks', async () => {
      const rnd = random(8)
      const all = [true, true, true].slice(0, maximum + 1)
      const tolerances = [
        [5e-6, 5e-6],
        [5e-6, 5e-6],
        // Sums of thousands of terms of size up to 1.
        [1e-4, 1e-5],
      ] as const
      await check(backends, make(rnd, [70, 70], [20], maximum, all), both, tolerances)
      await check(backends, make(rnd, [1100], [260], maximum, all), both, tolerances)
      await check(backends, make(rnd, [2100], [132], maximum, all), both, tolerances)
      await check(backends, make(rnd, [300], [4100], maximum, all), both, tolerances)
    })

    test('a mean far from 0 does not swallow the variance', async () => {
      const rnd = random(5)
      for (const n of [64, 8200]) {
        const c = make(rnd, [3], [n], 0, [false], () => 1e4 + Math.round(16 * rnd()) / 16)
        await check(backends, c, [name], [[3e-6, 1e-5]])
      }
    })

    test('rows of one value', async () => {
      for (const [value, n] of [
        [100.1, 1000],
        [12345.678, 768],
        [100000.3, 8200],
        [-1.7e10, 36],
        [3.3e30, 513],
      ] as const) {
        if (name === 'rms_norm' && Math.abs(value) > 1e18) continue
        const { backend } = backends[0]
        const c = {
          inputs: [plain([2, n], () => Math.fround(value))],
          needs: [true],
          dout: plain([2, n], () => 1),
          call: operators[name]([n]),
        }
        const { results, fused } = await evaluate(backend, c)
        expect(fused).toEqual(both)
        // 0 exactly, or ±1 in every place; no gradient either way, but what rounding leaves of 1 − n · (1 / n), times 316.
        const want = name === 'layer_norm' ? 0 : Math.sign(value)
        const [y, dx] = results as [Float32Array, Float32Array]
        for (const v of y) expect(Math.abs(v - want)).toBeLessThanOrEqual(want === 0 ? 0 : 1e-6)
        for (const v of dx) expect(Math.abs(v)).toBeLessThan(1e-4)
      }
    })

    test('NaN and infinity spoil their rows only', async () => {
      for (const bad of [NaN, Infinity]) {
        const c = {
          inputs: [plain([3, 8], (i) => (i === 9 ? bad : i % 5))],
          needs: [false],
          dout: null,
          call: operators[name]([8]),
        }
        await check(backends, c, [name], [[1e-6, 1e-5]])
        const { results } = await evaluate(backends[0].backend, c)
        expect(results[0].slice(16).every(Number.isFinite)).toBe(true)
      }
    })

    test('strided trailing dims and empty tensors are left to the composition', () => {
      const device = backends[0].backend
      const view = (shape: number[], strides: number[]) => ({
        buffer: {},
        dtype: 'float32' as const,
        shape,
        strides,
        offset: 0,
      })
      const asked = (shape: number[], strides: readonly number[]) =>
        device.kernels[name]?.supports?.([view(shape, [...strides])], { size: 6, affine: 'none' } as never)
      expect(asked([4, 6], layout.contiguousStrides([4, 6]))).toBe(true)
      expect(asked([4, 2, 3], [6, 3, 1])).toBe(true)
      expect(asked([4, 6], [1, 4])).toBe(false)
      expect(asked([0, 6], [6, 1])).toBe(false)
    })
  })
}
