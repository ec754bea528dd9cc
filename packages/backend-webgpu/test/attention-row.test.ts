/** A token that comes into caches as attention to them is computed, in compiled functions, and few queries in 16 bits. */

import {
  applyProgramInto,
  compile,
  noGrad,
  profile,
  scaledDotProductAttention,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { cacheRow } from '@tilegrad/core/kernel'
import { describe, expect, test } from 'vitest'
import { random } from '../../../test/kernels/random.ts'
import { gpus } from './support/gpus.ts'

type Float = 'float32' | 'float16' | 'bfloat16'

/** Results are averages of numbers up to 1; with 16 bits they are rounded once. */
const tolerance: Readonly<Record<Float, number>> = { float32: 2e-6, float16: 2 ** -11, bfloat16: 2 ** -8 }

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.to('float32').data())]

async function expectClose(got: Tensor, want: Tensor, most: number): Promise<void> {
  const [a, b] = [await numbers(got), await numbers(want)]
  expect(a.length).toBe(b.length)
  a.forEach((value, i) => {
    if (!(Math.abs(value - (b[i] as number)) <= most))
      throw new Error(`element ${i}: got ${value}, expected ${b[i]} within ${most}`)
  })
}

describe.each(gpus)('with $name', ({ gpu }) => {
  const draw = (rnd: () => number, shape: readonly number[], dtype: Float): Tensor =>
    tensor(
      Float32Array.from({ length: shape.reduce((p, n) => p * n, 1) }, () => 2 * rnd() - 1),
      shape,
    ).to(dtype)

  // Heads, key heads, rows, head size, dtypes of what is new and of the caches.
  test.each<[number, number, number, number, number, Float, Float]>([
    [1, 4, 4, 64, 64, 'float32', 'float32'],
    [2, 6, 2, 70, 32, 'float32', 'float32'],
    [1, 2, 1, 700, 16, 'float32', 'float32'],
    [1, 4, 4, 64, 64, 'float16', 'float16'],
    [2, 4, 2, 65, 8, 'bfloat16', 'bfloat16'],
    [1, 2, 2, 1100, 64, 'float16', 'float16'],
    [1, 4, 2, 33, 128, 'float16', 'float32'],
    [1, 3, 3, 20, 12, 'float32', 'bfloat16'],
  ])('%i × %i heads, %i of keys, %i rows of %i, %s to caches of %s', async (b, h, hk, s, d, own, cached) => {
    const rnd = random(s)
    const places = [0, 1, Math.floor(s / 2), s - 1]
    // As `SelfAttention` has them: all of one tensor, and one after another apart.
    for (const packed of [true, false]) {
      const [qkv, keys, values, place, slots] = withBackend(gpu, () => [
        draw(rnd, [b, 1, (h + 2 * hk) * d], own),
        draw(rnd, [b, hk, s, d], cached),
        draw(rnd, [b, hk, s, d], cached),
        tensor([0], { dtype: 'int32' }),
        tensor(Int32Array.from({ length: s }, (_, i) => i)),
      ])
      const heads = (from: number, count: number): Tensor =>
        qkv
          .narrow(2, from * d, count * d)
          .reshape([b, 1, count, d])
          .transpose(1, 2)
      const step = (): Tensor => {
        const part = (from: number, count: number): Tensor =>
          packed ? heads(from, count) : heads(from, count).clone()
        const [q, k, v] = [part(0, h), part(h, hk), part(h + hk, hk)]
        applyProgramInto([keys, values], cacheRow, [keys, k, values, v, place])
        const attnMask = slots.le(place).reshape([1, 1, 1, s])
        return scaledDotProductAttention(q, keys, values, { attnMask })
      }
      const compiled = withBackend(gpu, () => compile(() => noGrad(step)))
      for (const [n, at] of places.entries()) {
        const [before, fresh] = withBackend(gpu, () =>
          noGrad(() => {
            place.fill_(at)
            qkv.copy_(draw(rnd, qkv.shape, own))
            return [
              [keys, values].map((t) => t.clone()),
              [heads(h, hk), heads(h + hk, hk)].map((t) => t.to(cached)),
            ] as const
          }),
        )
        const got = withBackend(gpu, () => compiled())
        // Twice as it is, then replayed.
        if (n >= 2) {
          const fits = packed || gpu.gpu.limits.maxStorageBuffersPerShaderStage > 8
          if (fits) expect(String(compiled)).toContain('cache_row+scaled_dot_product_attention')
          else expect(String(compiled)).toContain('cache_row(')
        }
        for (const [i, cache] of [keys, values].entries()) {
          const old = before[i] as Tensor
          const want = withBackend(gpu, () =>
            noGrad(() => {
              old.narrow(2, at, 1).copy_(fresh[i] as Tensor)
              return old
            }),
          )
          await expectClose(cache, want, 0)
        }
        const seen = at + 1
        const want = withBackend(gpu, () =>
          noGrad(() =>
            scope(() => {
              const [k, v] = [keys, values].map((t) => t.narrow(2, 0, seen).to('float32'))
              return scaledDotProductAttention(heads(0, h).to('float32'), k as Tensor, v as Tensor)
            }),
          ),
        )
        await expectClose(got, want, tolerance[got.dtype as Float])
        got.dispose()
      }
    }
  })

  test.each<[number, number, number, number, Float, Float]>([
    [1, 3, 70, 64, 'float16', 'float16'],
    [4, 4, 33, 32, 'bfloat16', 'bfloat16'],
    [2, 2, 900, 8, 'float16', 'float16'],
    [1, 2, 40, 16, 'float32', 'bfloat16'],
  ])('%i queries of %i heads, %i keys of %i: %s, keys and values of %s', async (t, h, s, d, own, other) => {
    const rnd = random(s + t)
    const [q, k, v] = withBackend(gpu, () => [
      draw(rnd, [1, h, t, d], own),
      draw(rnd, [1, h, s, d], other),
      draw(rnd, [1, h, s, d], other),
    ])
    let got: Tensor | undefined
    const { rows } = withBackend(gpu, () =>
      profile(() => {
        got = noGrad(() => scaledDotProductAttention(q, k, v, { isCausal: 'bottom-right' }))
      }),
    )
    // Nothing is widened for it.
    expect(rows.map(({ op, path }) => `${op} ${path}`)).toEqual(['scaled_dot_product_attention fused'])
    const want = withBackend(gpu, () =>
      scaledDotProductAttention(q.to('float32'), k.to('float32'), v.to('float32'), {
        isCausal: 'bottom-right',
      }),
    )
    expect(got?.dtype).toBe(own === other ? own : 'float32')
    await expectClose(got as Tensor, want, tolerance[own === other ? own : 'float32'])
  })
})
