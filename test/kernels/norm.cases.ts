/** Layer norm, RMS norm and their gradients. */

import { layerNorm, layout, rmsNorm, type Tensor } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { type Case, check, type Engine, evaluate, rounds, type Tolerances } from './fused.ts'
import { dense, rows } from './operand.ts'
import { integer, pick, random } from './random.ts'

const operators = {
  layer_norm: (normalized: number[]) => (t: readonly Tensor[]) => layerNorm(t[0], normalized, t[1], t[2]),
  rms_norm: (normalized: number[]) => (t: readonly Tensor[]) =>
    rmsNorm(t[0], normalized, t[1], { eps: 1e-5 }),
}

// Standard deviation can be near 0 (a row of 1 element has none): then rstd is 1/√eps ≈ 316 and multiplies the rounding of
// dy and of x − mean. Sums over ≤ 81 rows add a few units in the last place.
const any = [
  [3e-5, 1e-5],
  [2e-4, 1e-5],
  [2e-4, 1e-5],
  [1e-5, 1e-5],
] as const

interface Sizes {
  /** Rows, and their size, such that an engine goes about it in all its ways: where the gradient is added to another one. */
  readonly added: readonly (readonly [rows: number, size: number])[]
  /** The same for the gradients of the parameters, which are sums over all rows. */
  readonly many: readonly (readonly [lead: readonly number[], size: number])[]
}

/** `far`: for rows of 8200 numbers near 10⁴, whose deviation is 0.3. */
export function testNorm(engine: Engine, sizes: Sizes, tolerances: Record<'many' | 'far', Tolerances>): void {
  describe.each(['layer_norm', 'rms_norm'] as const)('%s', (name) => {
    const both = [name, `${name}Backward`]
    const maximum = name === 'layer_norm' ? 2 : 1
    const all = [true, true, true].slice(0, maximum + 1)
    const none = all.map(() => false)
    const [{ backend }] = engine.backends
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
        rows(rnd, lead, normalized, value),
        ...Array.from({ length: parameters }, () => rows(rnd, [], normalized, () => rnd() + 0.5)),
      ],
      needs,
      dout: rows(rnd, lead, normalized, () => rnd() - 0.5),
      call: operators[name](normalized),
    })
    const given = (shape: [number, number], value: (i: number) => number): Case => ({
      inputs: [dense(shape, value)],
      needs: [false],
      dout: null,
      call: operators[name]([shape[1]]),
    })

    test('any rows, any parameters, any of the gradients', async () => {
      const rnd = random(name.length)
      for (let i = 0; i < rounds(engine, 40); i++) {
        const lead = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 3, 9]))
        const normalized = Array.from({ length: integer(rnd, 1, 2) }, () => pick(rnd, [1, 3, 8, 17, 33, 36]))
        const parameters = integer(rnd, 0, maximum)
        const needs = [true, true, true].slice(0, parameters + 1).map(() => rnd() < 0.7)
        if (!needs.some(Boolean)) needs[0] = true
        await check(engine, make(rnd, lead, normalized, parameters, needs), both, any)
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
      for (let i = 0; i < rounds(engine, 20); i++) {
        const lead = Array.from({ length: integer(rnd, 1, 3) }, () => pick(rnd, [1, 2, 3, 9]))
        const parameters = integer(rnd, 0, maximum)
        const normalized = [pick(rnd, [1, 3, 8, 17, 33, 36])]
        const c = make(rnd, lead, normalized, parameters, all.slice(0, parameters + 1))
        await check(engine, past(c), both, any)
      }
      for (const [n, size] of sizes.added) {
        // All, and dx alone.
        for (const needs of n === 40 ? [all, all.map((_, i) => i === 0)] : [all]) {
          const c = past({
            ...make(rnd, [n], [size], maximum, needs),
            dout: dense([n, size], () => rnd() - 0.5),
          })
          await check(engine, c, both, tolerances.many)
          expect((await evaluate(backend, c)).calls.add).toBe(1)
        }
      }
    })

    test('rows of every tiling, in registers and in loops', async () => {
      const rnd = random(9)
      for (const n of [384, 513, 1024, 1027, 1280, 4096, 4100, 8200])
        await check(engine, make(rnd, [pick(rnd, [2, 5])], [n], maximum, all), both, [
          [2e-6, 4e-6],
          [5e-6, 5e-6],
        ])
      // Only parameters' gradients of long rows: no kernel for dx.
      await check(engine, make(rnd, [3], [8200], maximum, all.with(0, false)), both, [[5e-6, 5e-6]])
    })

    test('many rows: several rows per block, many blocks', async () => {
      const rnd = random(8)
      for (const [lead, size] of sizes.many)
        await check(engine, make(rnd, [...lead], [size], maximum, all), both, tolerances.many)
    })

    test('a mean far from 0 does not swallow the variance', async () => {
      const rnd = random(5)
      for (const n of [64, 8200]) {
        const c = make(rnd, [3], [n], 0, [false], () => 1e4 + Math.round(16 * rnd()) / 16)
        await check(engine, c, [name], n === 64 ? [[3e-6, 1e-5]] : tolerances.far)
      }
      // The mean is off by an ulp of 1000, 6e-5; 1/deviation is 3.5, the weight up to 1.5.
      await check(
        engine,
        make(rnd, [7], [300], maximum, none, () => 1000 + rnd()),
        [name],
        [[6e-4, 1e-5]],
      )
    })

    test('rows of one value', async () => {
      for (const [value, n] of [
        [5, 20],
        [100.1, 1000],
        [12345.678, 768],
        [100000.3, 8200],
        [-1.7e10, 36],
        [3.3e30, 513],
      ] as const) {
        if (name === 'rms_norm' && Math.abs(value) > 1e18) continue
        const c = { ...given([2, n], () => Math.fround(value)), needs: [true], dout: dense([2, n], () => 1) }
        const { results, fused } = await evaluate(backend, c)
        expect(fused).toEqual(both)
        // 0 exactly, or ±1 in every place; no gradient either way, but what rounding leaves of 1 − n · (1 / n), times 316.
        const want = name === 'layer_norm' ? 0 : Math.sign(value)
        const [y, dx] = results
        for (const v of y) expect(Math.abs(v - want)).toBeLessThanOrEqual(want === 0 ? 0 : 1e-6)
        for (const v of dx) expect(Math.abs(v)).toBeLessThan(1e-4)
      }
    })

    test('NaN and infinity spoil their rows only', async () => {
      for (const bad of [NaN, Infinity, -Infinity])
        for (const n of [8, 20]) {
          const c = given([3, n], (i) => (i === n + 5 ? bad : Math.sin(i)))
          await check(engine, c, [name], [[1e-6, 1e-5]])
          const { results } = await evaluate(backend, c)
          expect(results[0].slice(2 * n).every(Number.isFinite)).toBe(true)
        }
    })

    test('strided trailing dims are left to the composition', () => {
      const asked = (shape: readonly number[], strides: readonly number[]) =>
        backend.kernels[name]?.supports?.([{ buffer: {}, dtype: 'float32', shape, strides, offset: 0 }], {
          size: 6,
          eps: 1e-5,
          affine: 'none',
        })
      expect(asked([4, 6], layout.contiguousStrides([4, 6]))).toBe(true)
      expect(asked([4, 2, 3], [6, 3, 1])).toBe(true)
      expect(asked([4, 6], [1, 4])).toBe(false)
    })
  })
}
