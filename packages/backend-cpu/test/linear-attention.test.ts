/**
 * Fused linear attention, forward and backward, against the quadratic form in float64, for all kinds of
 * shapes and strides; bit by bit the same on any number of threads; in memory linear in T.
 */

import {
  backward,
  deltaRule,
  gatedLinearAttention,
  linearAttention,
  profile,
  retention,
  scope,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { takes } from '@tilegrad/core/kernel'
import { afterAll, describe, expect, test } from 'vitest'
import {
  checkLinear,
  make,
  type Sizes,
  testLinearAttention,
} from '../../../test/kernels/linear-attention.cases.ts'
import { integer, pick, random } from '../../../test/kernels/random.ts'
import { collected } from '../../core/test/support/collected.ts'
import { createCpuBackend } from '../src/backend.ts'
import { linearAttention as kernelOf } from '../src/kernels/linear-attention/linear-attention.ts'
import { engineBy, engines } from './support/engine.ts'
import { put, release } from './support/memory.ts'

const engine = engineBy((backend) => `relaxed: ${backend.engine.features.relaxed}`)

testLinearAttention(engine)

test.each<[Sizes, boolean]>([
  [{ T: 150, D: 64, H: 2 }, true],
  [{ T: 400, D: 9, Dv: 17 }, true],
  [{ T: 40, D: 256, Dv: 256 }, true],
  [{ T: 10, S: 500, D: 17, Dv: 33 }, false],
  [{ T: 350, S: 350, D: 16, B: 2 }, false],
])('%o, causal: %s', (sizes, causal) => checkLinear(engine, make(random(sizes.T), sizes), causal))

describe('other feature maps', () => {
  for (const featureMap of ['relu', 'exp', 'identity'] as const) {
    test.each<[Sizes, boolean]>([
      [{ T: 150, D: 16, H: 2 }, true],
      [{ T: 65, D: 33, Dv: 15 }, true],
      [{ T: 400, D: 9, Dv: 17 }, true],
      [{ T: 70, S: 130, D: 20, Dv: 6 }, false],
    ])(`${featureMap}, %o, causal: %s`, (sizes, causal) => {
      const inputs = make(random(sizes.T + 2), sizes)
      // The identity's weights have either sign; positive operands keep the normaliser away from zero.
      if (featureMap === 'identity')
        for (const { data } of [inputs.q, inputs.k]) data.forEach((x, i) => (data[i] = Math.abs(x) + 0.1))
      return checkLinear(engine, inputs, causal, { featureMap })
    })
  }
})

test.each(Array.from({ length: 10 }, (_, i) => i))('random, seed %i', (seed) => {
  const rnd = random(700 + seed)
  const causal = rnd() < 0.6
  const T = integer(rnd, 1, 200)
  const sizes = {
    B: integer(rnd, 1, 2),
    H: integer(rnd, 1, 3),
    T,
    S: causal ? T : integer(rnd, 1, 300),
    D: integer(rnd, 1, 40),
    Dv: integer(rnd, 1, 40),
  }
  const needs = pick(rnd, [
    [true, true, true],
    [true, false, false],
    [false, true, false],
    [false, false, true],
  ])
  return checkLinear(engine, make(rnd, sizes), causal, { needs })
})

test('declines float64 and heads that are too wide', () => {
  const { engine } = engines[0]
  const { q, k, v } = make(random(41), { T: 4, D: 8 })
  const attrs = { causal: true, eps: 1e-6, featureMap: 'elu' } as const
  const inputs = [q, k, v].map((x) => put(engine, x))
  const kernel = kernelOf(engine)
  expect(takes(kernel, inputs, attrs)).toBe(true)
  expect(takes(kernel, [{ ...inputs[0], dtype: 'float64' }, inputs[1], inputs[2]], attrs)).toBe(false)
  const wide = put(engine, make(random(42), { T: 2, D: 257 }).q)
  expect(takes(kernel, [wide, wide, wide], attrs)).toBe(false)
  release(engine, [...inputs, wide])
})

describe('through the operator', () => {
  const backend = createCpuBackend({ threads: 2 })
  afterAll(() => backend.close())

  test('memory grows with T, not with T²', async () => {
    await collected()
    const rnd = random(51)
    const [H, T, D] = [2, 4096, 16]
    const some = () =>
      tensor(
        Float32Array.from({ length: H * T * D }, () => rnd() - 0.5),
        { device: backend },
      ).reshape([1, H, T, D])
    const [q, k, v, dout] = [some(), some(), some(), some()] as const
    for (const x of [q, k, v]) x.requiresGrad = true
    const bytes = 4 * H * T * D
    const before = backend.stats().liveBytes
    backend.engine.memory.resetPeak()
    const { rows } = profile(() => backward(linearAttention(q, k, v, { isCausal: true }), { gradient: dout }))
    const fused = rows.filter((r) => r.path === 'fused').map((r) => r.op)
    expect(fused.sort()).toEqual(['linear_attention', 'linear_attentionBackward'])
    // The output, three gradients, the sums; then the scratch memory of two threads, and code.
    const taken = backend.stats().peakBytes - before
    expect(taken).toBeGreaterThan(4 * bytes)
    expect(taken).toBeLessThan(6 * bytes + 2 ** 20)
  })

  /** Bytes taken at the peak by a forward and a backward pass over T steps. */
  const peak = (T: number, run: (q: Tensor, k: Tensor, v: Tensor, gates: Tensor) => Tensor): number => {
    const rnd = random(T)
    const some = (low: number): Tensor => {
      const x = tensor(
        Float32Array.from({ length: 16 * T }, () => rnd() + low),
        { device: backend },
      ).reshape([1, 1, T, 16])
      x.requiresGrad = true
      return x
    }
    const [q, k, v, gates] = [some(-0.5), some(-0.5), some(-0.5), some(-1)] as const
    const before = backend.stats().liveBytes
    backend.engine.memory.resetPeak()
    scope(() => backward(run(q, k, v, gates).sum()))
    const taken = backend.stats().peakBytes - before
    for (const x of [q, k, v, gates]) x.dispose()
    return taken
  }

  test.each<[string, (q: Tensor, k: Tensor, v: Tensor, gates: Tensor) => Tensor]>([
    ['chunks', (q, k, v) => linearAttention(q, k, v, { isCausal: true, form: 'chunked' })],
    ['retention', (q, k, v) => retention(q, k, v)],
    ['gates', (q, k, v, gates) => gatedLinearAttention(q, k, v, gates)],
    ['the delta rule', (q, k, v, gates) => deltaRule(q, k, v, gates.select(3, 0).neg())],
  ])('so does that of %s', async (_, run) => {
    await collected()
    peak(2048, run)
    const [short, long] = [peak(2048, run), peak(8192, run)]
    // Four times the steps: 4 where linear, 16 where quadratic. 1 MiB: pages of scratch memory.
    expect(long).toBeGreaterThan(3 * short)
    expect(long).toBeLessThan(4.5 * short + 2 ** 20)
  })
})
