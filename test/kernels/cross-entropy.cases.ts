/** Cross-entropy and its gradient. */

import { crossEntropy, type Tensor, tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { type Case, check, type Engine, evaluate, rounds, type Tolerances } from './fused.ts'
import { dense, rows } from './operand.ts'
import { integer, pick, random } from './random.ts'

type Reduction = 'mean' | 'sum' | 'none'
interface Options {
  ignored?: number
  reduction?: Reduction
  scale?: number
}

export const both = ['cross_entropy', 'cross_entropyBackward']

export function make(
  rnd: () => number,
  n: number,
  c: number,
  { ignored = 0, reduction = 'mean', scale = 10 }: Options = {},
): Case {
  const ignoreIndex = pick(rnd, [-100, 0])
  const label = () => (rnd() < ignored ? ignoreIndex : integer(rnd, 0, c - 1))
  return {
    inputs: [rows(rnd, [n], [c], () => (rnd() - 0.5) * scale), rows(rnd, [n], [], label, 'int32')],
    needs: [true, false],
    dout: rows(rnd, reduction === 'none' ? [n] : [], [], () => rnd() - 0.5),
    call: ([x, t]) => crossEntropy(x, t, { ignoreIndex, reduction }),
  }
}

/** Logits and classes, by position. */
export const given = (
  [n, c]: readonly [number, number],
  logit: (i: number) => number,
  label: (i: number) => number,
  reduction: Reduction = 'mean',
): Case => ({
  inputs: [dense([n, c], logit), dense([n], label, 'int32')],
  needs: [true, false],
  dout: null,
  call: ([x, t]) => crossEntropy(x, t, { reduction }),
})

export function testCrossEntropy(engine: Engine, tolerances: Tolerances): void {
  const [{ backend }] = engine.backends

  test('any rows, targets, reductions', async () => {
    const rnd = random(21)
    for (let i = 0; i < rounds(engine, 60); i++) {
      const options = {
        reduction: pick<Reduction>(rnd, ['mean', 'sum', 'none']),
        scale: pick(rnd, [1, 10, 60]),
        // At least one target of the mean counts with ignored ≤ 0.3 and this seed; none is tested below.
        ignored: pick(rnd, [0, 0.3]),
      }
      const c = make(rnd, pick(rnd, [1, 5, 64]), pick(rnd, [1, 2, 5, 65, 130, 384]), options)
      await check(engine, c, both, tolerances)
    }
  })

  test('many classes, many rows', async () => {
    const rnd = random(22)
    for (const [n, classes, options] of [
      [5, 9001, { reduction: 'none' }],
      [2, 50_257, {}],
      [3, 8448, { reduction: 'sum' }],
      [3000, 65, { ignored: 0.1 }],
    ] as const)
      await check(engine, make(rnd, n, classes, options), both, tolerances)
  })

  test('nothing counted: NaN for the mean, 0 for the sum, zero gradients', async () => {
    const zeros = new Float32Array(20)
    for (const { backend } of engine.backends)
      for (const [reduction, loss] of [
        ['mean', NaN],
        ['sum', 0],
      ] as const) {
        const c = given(
          [4, 5],
          (i) => i,
          () => -100,
          reduction,
        )
        expect((await evaluate(backend, c)).results).toEqual([Float32Array.of(loss), zeros])
      }
  })

  test('extreme logits', async () => {
    for (const n of [6, 8]) {
      const extreme = (logit: (i: number) => number, within = tolerances) => {
        const c = { ...given([4, n], logit, (i) => i, 'none'), needs: [false, false] }
        return check(engine, c, ['cross_entropy'], within)
      }
      await extreme((i) => (i === n + 1 ? -Infinity : 1))
      await extreme((i) => (i >= n && i < 2 * n ? -Infinity : i))
      await extreme((i) => (i === n + 2 ? NaN : i))
      await extreme((i) => (i === n + 2 ? Infinity : i))
      await extreme((i) => (i % 2 ? 1e30 : -1e30), [[0, 1e-6]])
    }
  })

  test('logits far from 0 have the gradients of their differences', async () => {
    for (const { backend } of engine.backends)
      for (const [offset, n] of [
        [1e4, 3],
        [1e8, 4],
        [-1e9, 3],
        [-3.4028234663852886e38, 4],
      ] as const) {
        const c = given(
          [2, n],
          () => offset,
          (i) => 2 * i,
        )
        const { results, fused } = await evaluate(backend, c)
        expect(fused).toEqual(both)
        expect(results[0][0]).toBeCloseTo(Math.log(n), 6)
        results[1].forEach((g, i) =>
          expect(g, `${offset}`).toBeCloseTo((1 / n - Number(i === 0 || i === n + 2)) / 2, 6),
        )
      }
  })

  test('weights and label smoothing are left to the composition', () => {
    const device = backend
    const x = tensor([[0, 1]], { device })
    const t = tensor([0], { device, dtype: 'int32' })
    const w = tensor([1, 2], { device })
    const attrs = { ignoreIndex: -100, reduction: 'mean', labelSmoothing: 0 } as const
    const asked = (inputs: Tensor[], more = {}) =>
      device.kernels.cross_entropy?.supports?.(inputs, { ...attrs, ...more })
    expect(asked([x, t])).toBe(true)
    expect(asked([x, t, w])).toBe(false)
    expect(asked([x, t], { labelSmoothing: 0.1 })).toBe(false)
  })
}
