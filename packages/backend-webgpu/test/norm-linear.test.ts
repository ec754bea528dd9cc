/** Norms that became part of the products that read them, in compiled functions, against the same functions uncompiled. */

import {
  compile,
  layerNorm,
  linear,
  matmul,
  noGrad,
  quantizedLinear,
  rmsNorm,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { random } from '../../../test/kernels/random.ts'
import { gpus } from './support/gpus.ts'

type Float = 'float32' | 'float16' | 'bfloat16'

/** Steps of each dtype near 1, times what a few of them come to; sums of up to 4096 terms in float32 differ by their order. */
const tolerance: Readonly<Record<Float, number>> = { float32: 2e-5, float16: 2 ** -9, bfloat16: 2 ** -6 }

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.to('float32').data())]

describe.each(gpus)('with $name', ({ gpu }) => {
  const draw = (rnd: () => number, shape: readonly number[], dtype: Float, by = 1): Tensor =>
    tensor(
      Float32Array.from({ length: shape.reduce((p, n) => p * n, 1) }, () => by * (2 * rnd() - 1)),
      shape,
    ).to(dtype)

  /** Runs a function as it is and compiled, and compares: results near 1 in size. */
  async function same(fn: () => Tensor, dtype: Float, fused: boolean): Promise<void> {
    const [plain, compiled, plan] = withBackend(gpu, () => {
      const run = compile(() => noGrad(fn))
      run().dispose()
      const made = run()
      const text = String(run)
      return [noGrad(() => scope(fn)), made, text] as const
    })
    if (fused) expect(plan).toMatch(/(layer|rms)_norm\+/)
    else expect(plan).not.toMatch(/(layer|rms)_norm\+/)
    const [want, got] = [await numbers(plain), await numbers(compiled)]
    expect(got.length).toBe(want.length)
    got.forEach((value, i) => {
      const most = tolerance[dtype] * (1 + Math.abs(want[i] as number))
      if (!(Math.abs(value - (want[i] as number)) <= most))
        throw new Error(`element ${i}: got ${value}, expected ${want[i]} within ${most}`)
    })
  }

  test.each<[number[], number, Float]>([
    [[1, 768], 50, 'float32'],
    [[1, 1, 64], 7, 'float32'],
    [[3, 132], 9, 'float32'],
    [[1, 4096], 6, 'float32'],
    [[2, 2, 100], 33, 'float32'],
    [[1, 768], 50, 'float16'],
    [[3, 132], 9, 'float16'],
    [[1, 260], 21, 'bfloat16'],
    [[2, 128], 10, 'bfloat16'],
  ])('layer norm and RMS norm of %j, product with %i columns in %s', async (shape, n, dtype) => {
    const rnd = random(n)
    const k = shape.at(-1) as number
    const [x, g, h, w, bias, residual] = withBackend(gpu, () => [
      // Far from 0, where a careless variance cancels.
      draw(rnd, shape, dtype).add(dtype === 'float32' ? 30 : 2),
      draw(rnd, [k], dtype).add(1),
      draw(rnd, [k], dtype),
      draw(rnd, [n, k], dtype, 1 / Math.sqrt(k)),
      draw(rnd, [n], dtype),
      draw(rnd, [...shape.slice(0, -1), n], dtype),
    ])
    await same(() => linear(layerNorm(x, k, g, h), w, bias, { activation: 'gelu', residual }), dtype, true)
    await same(() => linear(layerNorm(x, k), w, bias), dtype, true)
    await same(() => linear(rmsNorm(x, k, g), w, null, { activation: 'relu' }), dtype, true)
    // A plain product, as the head of a model has it, and two readers of one norm.
    await same(
      () => (dtype === 'float32' ? matmul(layerNorm(x, k, g, h), w.T) : linear(layerNorm(x, k, g, h), w)),
      dtype,
      true,
    )
    await same(
      () => {
        const y = rmsNorm(x, k, g)
        return linear(y, w, bias, { activation: 'silu' }).mul(linear(y, w, bias))
      },
      dtype,
      true,
    )
  })

  test.each<[number[], number, number, Float]>([
    [[1, 768], 50, 64, 'float32'],
    [[2, 96], 9, 32, 'float32'],
    [[1, 1040], 12, 16, 'float16'],
    [[1, 128], 7, 64, 'bfloat16'],
  ])('weights of 8 bits, %j by %i rows in blocks of %i, %s', async (shape, n, size, dtype) => {
    const rnd = random(n + size)
    const k = shape.at(-1) as number
    const bytes = Int8Array.from({ length: n * k }, () => Math.floor(rnd() * 255) - 127)
    const [x, g, h, w, s, bias] = withBackend(gpu, () => [
      draw(rnd, shape, dtype).add(1),
      draw(rnd, [k], dtype).add(1),
      draw(rnd, [k], dtype),
      tensor(new Int32Array(bytes.buffer), [n, k / 4]),
      draw(rnd, [n, k / size], 'float32', 0.01 / Math.sqrt(k)),
      draw(rnd, [n], dtype),
    ])
    await same(() => quantizedLinear(layerNorm(x, k, g, h), w, s, bias), dtype, true)
    await same(() => quantizedLinear(rmsNorm(x, k), w, s, null, { activation: 'gelu' }), dtype, true)
  })

  test('norms stay where they are needed otherwise, or rows are many', async () => {
    const rnd = random(1)
    const [x, many, g, w] = withBackend(gpu, () => [
      draw(rnd, [1, 64], 'float32'),
      draw(rnd, [40, 64], 'float32'),
      draw(rnd, [64], 'float32'),
      draw(rnd, [12, 64], 'float32'),
    ])
    await same(() => linear(layerNorm(many, 64, g), w), 'float32', false)
    await same(
      () => {
        const y = layerNorm(x, 64, g)
        return linear(y, w).sum().add(y.sum())
      },
      'float32',
      false,
    )
    // What the norm reads changes before the product.
    await same(
      () => {
        const own = x.clone()
        const y = layerNorm(own, 64, g)
        own.fill_(3)
        return linear(y, w).add(own.sum())
      },
      'float32',
      false,
    )
    // Infinite and NaN rows stay in their row.
    const odd = withBackend(gpu, () =>
      tensor(
        [
          [1, Number.NaN, 2, 3],
          [1, 2, 3, Infinity],
          [1, 2, 3, 4],
        ].map((r) => [...r, ...Array(60).fill(0)]),
      ),
    )
    const got = withBackend(gpu, () => {
      const run = compile(() => noGrad(() => linear(layerNorm(odd, 64, g), w)))
      run().dispose()
      return run()
    })
    const rows = (await got.toArray()) as number[][]
    expect(rows.map((row) => row.every(Number.isFinite))).toEqual([false, false, true])
  })
})
