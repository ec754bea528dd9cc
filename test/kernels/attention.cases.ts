/** Softmax attention: shapes, strides, masks, gradients. */

import { type Backend, grad, ones, scaledDotProductAttention, type Tensor } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { type Case, compute, type Data, dense, make, numbers, ofProjection, type Sizes } from './attention.ts'

/** `check`: compares what an engine computes, with the gradients that are needed, by default all. */
export function testAttention(
  devices: readonly Backend[],
  check: (c: Case, needs?: readonly boolean[]) => Promise<void>,
): void {
  describe('shapes', () => {
    // Heads up to 32: SwiftShader takes minutes to compile the kernels of wider ones.
    test.each<Sizes>([
      { T: 1 },
      { T: 1, S: 130, D: 32 },
      { T: 5, S: 3, D: 1, Dv: 1 },
      { T: 63, D: 28 },
      { T: 65, S: 129, D: 17, Dv: 31 },
      { T: 127, D: 32 },
      { T: 130, S: 70, D: 20, Dv: 24 },
      { T: 40, D: 8, H: 6, Hk: 2, B: 2 },
      { T: 33, D: 5, H: 4, Hk: 1, B: 3 },
    ])('%o, all alignments', async (sizes) => {
      for (const isCausal of [false, 'top-left', 'bottom-right'] as const)
        await check(make(sizes, { isCausal }))
    })

    test('500 queries', async () => {
      await check(make({ T: 500, D: 32, H: 1 }, { isCausal: true }))
    })

    test('no queries; no keys: zeros', async () => {
      await check(make({ T: 0, S: 5 }))
      await check(make({ T: 5, S: 0 }))
    })

    test('no query heads: nothing comes out, and keys and values have zeros for gradients', async () => {
      for (const device of devices) {
        const [q, k, v] = [
          [1, 0, 40, 16],
          [1, 2, 40, 16],
          [1, 2, 40, 16],
        ].map((shape) => ones(shape, { device, requiresGrad: true })) as [Tensor, Tensor, Tensor]
        const out = scaledDotProductAttention(q, k, v, { enableGqa: true })
        expect(out.shape).toEqual([1, 0, 40, 16])
        const grads = grad([out.sum()], [q, k, v])
        expect(await Promise.all(grads.map((g) => g.data()))).toEqual([
          new Float32Array(0),
          new Float32Array(1280),
          new Float32Array(1280),
        ])
      }
    })
  })

  test.each([1, 16, 50, 128])('a window of %i', async (window) => {
    await check(make({ T: 150, H: 1, D: 8 }, { isCausal: true, window }))
    await check(make({ T: 30, S: 190, H: 1, D: 8 }, { isCausal: 'bottom-right', window }))
    // Without causality only the past is cut off; queries far beyond the keys see nothing.
    await check(make({ T: 190, S: 30, H: 1, D: 8 }, { window }))
  })

  describe('masks', () => {
    const [B, H, T, S] = [2, 2, 41, 100]
    const shapes = [[B, H, T, S], [T, S], [B, 1, 1, S], [1]]
    test.each(shapes.map((shape) => [shape]))('%o', async (shape) => {
      for (const isCausal of [false, 'bottom-right'] as const) {
        const c = make({ B, H, T, S, D: 8 }, { isCausal })
        const mask = dense(...shape)
        await check({ ...c, mask: { ...mask, data: (mask.data as Float32Array).map((x) => 3 * x) } })
        const keep = Uint8Array.from(mask.data, (x) => Number(x < 0.4))
        await check({ ...c, mask: { data: keep, shape } })
      }
    })

    test('transposed', async () => {
      const mask = { ...dense(B, H, S, T), view: (t: Tensor) => t.transpose(2, 3) }
      await check({ ...make({ B, H, T, S, D: 8 }), mask })
    })

    test('rows that are masked whole give zeros, and get no gradient', async () => {
      const data = Uint8Array.from({ length: T * S }, (_, i) => Number(i >= 20 * S || i < S))
      const c = make({ H: 1, T, S, D: 8 })
      await check({ ...c, mask: { data, shape: [T, S] } })
      await check({
        ...c,
        mask: { data: Float32Array.from(data, (x) => (x ? 0 : -Infinity)), shape: [T, S] },
      })
      const [out, dq] = (await compute(devices[0], { ...c, mask: { data, shape: [T, S] } }, [
        true,
        false,
        false,
      ])) as [Float32Array, Float32Array]
      expect(out.slice(8, 20 * 8)).toEqual(new Float32Array(19 * 8))
      expect(dq.slice(8, 20 * 8)).toEqual(new Float32Array(19 * 8))
    })

    test('the lowest finite number added to a whole row leaves its weights alone', async () => {
      const data = Float32Array.from({ length: T * S }, (_, i) => (i < 3 * S ? -3.4028234663852886e38 : 0))
      await check({ ...make({ H: 1, T, S, D: 8 }), mask: { data, shape: [T, S] } }, [])
    })
  })

  test('views: a packed projection, backwards, rows that are not contiguous, shared heads', async () => {
    const [B, T, H, D] = [2, 70, 3, 12]
    const c = make({ B, H, T, D }, { isCausal: true })
    const packed = numbers(B, T, 3, H, D)
    const part = (i: number): Data => ({
      data: packed,
      shape: [B, T, 3, H, D],
      view: (t) => t.select(2, i).permute([0, 2, 1, 3]),
    })
    await check({ ...c, q: part(0), k: part(1), v: part(2), packed: true })
    const turned: Data = { ...dense(D, T, H, B), view: (t) => t.permute([3, 2, 1, 0]) }
    await check({ ...c, q: turned, k: turned, v: turned, dout: turned })
    const flipped: Data = { ...dense(B, H, T, D), view: (t) => t.flip([1, 2, 3]) }
    await check({ ...c, q: flipped, k: flipped, v: flipped, dout: flipped })
    const shared: Data = { ...dense(1, 1, 1, D), view: (t) => t.expand([B, H, T, D]) }
    await check({ ...c, q: shared, k: shared, v: shared, dout: { ...shared, data: numbers(D) } })
    const offset: Data = { ...dense(B, H, T + 1, D), view: (t) => t.narrow(2, 1, T) }
    await check({ ...c, q: offset, k: offset, v: offset })
  })

  test.each<Sizes>([
    { T: 50, H: 4, Hk: 2, D: 24, B: 2 },
    { T: 33, H: 3, D: 5, B: 2 },
    { T: 70, H: 1, D: 8 },
    { T: 1, H: 2, D: 16, B: 3 },
  ])('heads of one projection, %o: their gradients are parts of one tensor', async (sizes) => {
    for (const isCausal of [false, true]) {
      const c = ofProjection(sizes, { isCausal })
      await check(c)
      await check(c, [false, true, true])
      await check(c, [true, true, false])
    }
  })

  test.each([0, 1, 2, 3, 4, 5, 6].map((bits) => [[4, 2, 1].map((b) => (bits & b) > 0)]))(
    'only some gradients: %o',
    async (needs) => {
      await check(make({ T: 50, S: 70, H: 4, Hk: 2, D: 24, Dv: 32 }), needs)
    },
  )

  test('large scores do not overflow', async () => {
    const c = make({ T: 40, D: 8 }, { scale: 300 })
    for (const device of devices)
      for (const x of await compute(device, c, [true, true, true]))
        expect(x.every(Number.isFinite)).toBe(true)
  })

  test('a negative scale, and none', async () => {
    await check(make({ T: 40, D: 8 }, { scale: -0.5 }))
    await check(make({ T: 40, D: 8 }, { scale: 0 }))
  })
}
