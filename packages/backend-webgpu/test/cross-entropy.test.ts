/** Cross-entropy and its gradient against the composition on the reference backend, in float64. */

import { crossEntropy, type Tensor, tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { backends, type Case, check, evaluate, operand, plain } from './support/fused.ts'
import { integer, pick, random } from './support/random.ts'

type Reduction = 'mean' | 'sum' | 'none'
interface Options {
  ignored?: number
  reduction?: Reduction
  scale?: number
}

function make(
  rnd: () => number,
  n: number,
  c: number,
  { ignored = 0, reduction = 'mean', scale = 10 }: Options = {},
): Case {
  const ignoreIndex = pick(rnd, [-100, 0])
  const label = () => (rnd() < ignored ? ignoreIndex : integer(rnd, 0, c - 1))
  return {
    inputs: [operand(rnd, [n], [c], () => (rnd() - 0.5) * scale), operand(rnd, [n], [], label, 'int32')],
    needs: [true, false],
    dout: operand(rnd, reduction === 'none' ? [n] : [], [], () => rnd() - 0.5),
    call: ([x, t]) => crossEntropy(x, t, { ignoreIndex, reduction }),
  }
}
const both = ['cross_entropy', 'cross_entropyBackward']
// A loss of size up to 60 plus ln C; the 3 + 2 |x − m| ulp of WGSL's exp are relative errors of the gradient.
const tolerances = [
  [6e-6, 1e-6],
  [1e-6, 2e-5],
] as const

test('any rows, targets, reductions', async () => {
  const rnd = random(21)
  for (let i = 0; i < 40; i++) {
    const options = {
      reduction: pick<Reduction>(rnd, ['mean', 'sum', 'none']),
      scale: pick(rnd, [1, 10, 60]),
      // At least one target of the mean counts with ignored ≤ 0.3 and this seed; none is tested below.
      ignored: pick(rnd, [0, 0.3]),
    }
    const c = make(rnd, pick(rnd, [1, 5, 64]), pick(rnd, [1, 2, 5, 65, 130, 384]), options)
    await check(backends, c, both, tolerances)
  }
})

test('many classes, many rows', async () => {
  const rnd = random(22)
  await check(backends, make(rnd, 3, 9001, { reduction: 'none' }), both, tolerances)
  await check(backends, make(rnd, 2, 50_257), both, tolerances)
  await check(backends, make(rnd, 3, 8448, { reduction: 'sum' }), both, tolerances)
  await check(backends, make(rnd, 3000, 65, { ignored: 0.1 }), both, tolerances)
})

test('nothing counted: NaN for the mean, 0 for the sum, zero gradients', async () => {
  const c = (reduction: Reduction): Case => ({
    inputs: [plain([4, 5], (i) => i), plain([4], () => -100, 'int32')],
    needs: [true, false],
    dout: null,
    call: ([x, t]) => crossEntropy(x as Tensor, t as Tensor, { reduction }),
  })
  const zeros = new Float32Array(20)
  for (const { backend } of backends) {
    expect((await evaluate(backend, c('mean'))).results[0]).toEqual(Float32Array.of(NaN))
    expect((await evaluate(backend, c('sum'))).results).toEqual([Float32Array.of(0), zeros])
  }
})

test('extreme logits', async () => {
  for (const n of [6, 8]) {
    const given = (value: (i: number) => number, rtol = 1e-6) =>
      check(
        backends,
        {
          inputs: [plain([4, n], value), plain([4], (i) => i, 'int32')],
          needs: [false, false],
          dout: null,
          call: ([x, t]) => crossEntropy(x, t, { reduction: 'none' }),
        },
        ['cross_entropy'],
        [[6e-6, rtol]],
      )
    await given((i) => (i === n + 1 ? -Infinity : 1))
    await given((i) => (i >= n && i < 2 * n ? -Infinity : i))
    await given((i) => (i === n + 2 ? NaN : i))
    await given((i) => (i === n + 2 ? Infinity : i))
    await given((i) => (i % 2 ? 1e30 : -1e30))
  }
})

test('logits far from 0 have the gradients of their differences', async () => {
  for (const { backend } of backends)
    for (const [offset, n] of [
      [1e4, 3],
      [1e8, 4],
      [-1e9, 3],
      [-3.4028234663852886e38, 4],
    ] as const) {
      const { results, fused } = await evaluate(backend, {
        inputs: [plain([2, n], () => offset), plain([2], (i) => 2 * i, 'int32')],
        needs: [true, false],
        dout: null,
        call: ([x, t]) => crossEntropy(x, t),
      })
      expect(fused).toEqual(both)
      expect(results[0][0]).toBeCloseTo(Math.log(n), 6)
      results[1].forEach((g, i) =>
        expect(g, `${offset}`).toBeCloseTo((1 / n - Number(i === 0 || i === n + 2)) / 2, 6),
      )
    }
})

test('a class out of range has neither loss nor gradient, and counts', async () => {
  const [x, zeros] = [[0, 1, 2, 3, 4, 5], new Float32Array(3)]
  for (const { backend } of backends)
    for (const bad of [3, -1, 0x7fffffff]) {
      const { results } = await evaluate(backend, {
        inputs: [plain([2, 3], (i) => x[i]), plain([2], (i) => [2, bad][i], 'int32')],
        needs: [true, false],
        dout: null,
        call: ([x, t]) => crossEntropy(x, t),
      })
      expect(results[0][0]).toBeCloseTo(0.5 * Math.log(1 + Math.exp(-1) + Math.exp(-2)), 6)
      expect(results[1].slice(3)).toEqual(zeros)
      expect(results[1].slice(0, 3)).not.toEqual(zeros)
    }
})

test('weights and label smoothing are left to the composition', () => {
  const device = backends[0].backend
  const kernel = device.kernels.cross_entropy
  const [x, t, w] = [
    tensor([[0, 1]], { device }),
    tensor([0], { device, dtype: 'int32' }),
    tensor([1, 2], { device }),
  ]
  const attrs = { ignoreIndex: -100, reduction: 'mean', labelSmoothing: 0 }
  const asked = (inputs: Tensor[], more = {}) => kernel?.supports?.(inputs, { ...attrs, ...more } as never)
  expect([asked([x, t]), asked([x, t, w]), asked([x, t], { labelSmoothing: 0.1 })]).toEqual([
    true,
    false,
    false,
  ])
})
