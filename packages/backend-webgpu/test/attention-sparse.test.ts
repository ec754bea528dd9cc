/**
 * The options of fused attention on the GPU against core's composition in float64: windows with global tokens, masks of
 * blocks, ALiBi, dropout, and what a GPU with few bindings declines.
 */

import {
  type AttentionOptions,
  type Backend,
  createBlockMask,
  grad,
  manualSeed,
  profile,
  reference,
  scaledDotProductAttention,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import { compute, dense, make, place, type Sizes } from '../../../test/kernels/attention.ts'
import { random } from '../../../test/kernels/random.ts'
import { check, closeGpus, gpus } from './support/attention.ts'

afterAll(closeGpus)

const corners = ['none', 'top-left', 'bottom-right'] as const

describe('a window with global tokens', () => {
  test.each<Sizes>([
    { T: 150, D: 8 },
    { T: 70, S: 187, H: 4, Hk: 2, D: 9, Dv: 5 },
    // Some queries are far beyond the keys.
    { T: 190, S: 30, D: 8, H: 1 },
    { T: 1, S: 40, D: 8 },
  ])('%o', async (sizes) => {
    for (const isCausal of corners)
      for (const [window, globalTokens] of [
        [16, 3],
        [50, 70],
        [1, 16],
      ] as const)
        await check(make(sizes, { isCausal, window, globalTokens }))
  })

  test('more global tokens than keys: all is seen', async () => {
    const c = make({ T: 60, D: 8 }, { window: 5, globalTokens: 500 })
    await check(c)
    await check({ ...c, options: { window: 5, globalTokens: 60, isCausal: true } })
  })

  test('with a mask of pairs', async () => {
    const c = make({ T: 70, D: 8, H: 1 }, { isCausal: true, window: 9, globalTokens: 20 })
    const data = Uint8Array.from(dense(70, 70).data, (x) => Number(x < 0.5))
    await check({ ...c, mask: { data, shape: [70, 70] } })
  })

  test('between the global tokens and the window NaN reaches nobody', async () => {
    const c = make({ T: 256, H: 1, D: 16 }, { isCausal: true, window: 16, globalTokens: 3 })
    // Only queries 64 … 94 see any of the keys 64 … 79; others in their tiles do not.
    for (const x of [c.k, c.v]) x.data.fill(NaN, 64 * 16, 80 * 16)
    for (const [limits, gpu] of gpus) {
      const [out, dq] = await compute(gpu, c, [true, false, false])
      for (const x of [out, dq])
        expect([x?.findIndex(Number.isNaN), x?.findLastIndex(Number.isNaN)], limits).toEqual([
          64 * 16,
          95 * 16 - 1,
        ])
    }
  })
})

/** Blocks of about a third of a mask are visible, but for one row and one column of blocks, whatever the head. */
function someBlocks({ B = 1, H = 2, T, S = T }: Sizes, blockSize: number, perHead: boolean) {
  const rnd = random(T + S + blockSize)
  const [nq, nk] = [Math.ceil(T / blockSize), Math.ceil(S / blockSize)]
  const lead = perHead ? [B, H] : []
  const flags = Uint8Array.from({ length: (perHead ? B * H : 1) * nq * nk }, (_, n) => {
    const [i, j] = [Math.floor(n / nk) % nq, n % nk]
    return Number((nq < 3 || (i !== 1 && j !== 2)) && rnd() < 0.35)
  })
  return (device: Backend) =>
    createBlockMask(tensor(flags, [...lead, nq, nk], { device, dtype: 'bool' }), { blockSize })
}

describe('masks of blocks', () => {
  const masks = [
    [16, false, 'none'],
    [48, true, 'bottom-right'],
    [64, true, 'top-left'],
    [128, false, 'none'],
  ] as const
  test.each<Sizes>([
    { T: 150, D: 8, B: 2 },
    { T: 70, S: 187, H: 4, Hk: 2, D: 9, Dv: 5 },
    { T: 201, S: 67, D: 24, Dv: 16, H: 1 },
    { T: 1, S: 40, D: 8 },
  ])('%o', async (sizes) => {
    for (const [blockSize, perHead, isCausal] of masks) {
      const blocks = someBlocks(sizes, blockSize, perHead)
      const options = (device: Backend) => ({ isCausal, blockMask: blocks(device) })
      await check({ ...make(sizes), options, about: `blocks of ${blockSize}, ${isCausal}` })
    }
  })

  test('with a window and global tokens', async () => {
    const sizes = { T: 150, S: 170, D: 8 }
    const blocks = someBlocks(sizes, 32, true)
    for (const isCausal of corners)
      await check({
        ...make(sizes),
        options: (device) => ({ isCausal, window: 40, globalTokens: 20, blockMask: blocks(device) }),
        about: isCausal,
      })
  })

  test('all hidden: zeros, and no gradients; all visible', async () => {
    for (const all of [false, true])
      await check({
        ...make({ T: 70, D: 8 }),
        options: (device) => ({
          blockMask: createBlockMask(() => all, { blockSize: 32, qLen: 70, kvLen: 70, device }),
        }),
        about: all ? 'all' : 'none',
      })
  })

  test('what is hidden is not even read: NaN in it reaches nothing', async () => {
    const c = make({ T: 256, H: 1, D: 16 })
    // Keys 64 … 127 are seen by nobody.
    for (const x of [c.k, c.v]) x.data.fill(NaN, 64 * 16, 128 * 16)
    const options = (device: Backend) => ({
      blockMask: createBlockMask((_, j) => j !== 1, { qLen: 256, kvLen: 256, device }),
    })
    for (const [, gpu] of gpus)
      for (const x of await compute(gpu, { ...c, options })) expect(x.every(Number.isFinite)).toBe(true)
  })
})

/** Slopes that are no powers of two, as every other element of their memory. */
const slopes = (heads: number, device: Backend) =>
  tensor(
    Float32Array.from({ length: 2 * heads }, (_, i) => (i % 2 ? NaN : 0.7 / (i + 1))),
    { device },
  )
    .reshape([heads, 2])
    .select(1, 0)

describe('ALiBi', () => {
  test.each<Sizes>([
    { T: 70, D: 8, B: 2 },
    { T: 33, S: 87, H: 4, Hk: 2, D: 16, Dv: 8 },
    { T: 87, S: 33, H: 1, D: 8 },
  ])('%o', async (sizes) => {
    for (const isCausal of corners)
      await check({
        ...make(sizes),
        options: (device) => ({ isCausal, alibi: slopes(sizes.H ?? 2, device) }),
        about: isCausal,
      })
  })

  test('with a window, and with a mask to add', async () => {
    const c = make({ T: 70, D: 8 })
    const options = (device: Backend) => ({ isCausal: true, window: 20, alibi: slopes(2, device) })
    await check({ ...c, options })
    await check({ ...c, options, mask: dense(2, 70, 70) })
  })
})

describe('dropout', () => {
  const dropping =
    (options: AttentionOptions): ((device: Backend) => AttentionOptions) =>
    () => {
      manualSeed(8)
      return options
    }
  test.each<Sizes>([
    { T: 70, D: 8, B: 2 },
    { T: 33, S: 87, H: 4, Hk: 2, D: 16, Dv: 8 },
  ])('%o: the same weights as the composition drops', async (sizes) => {
    for (const isCausal of corners)
      await check({ ...make(sizes), options: dropping({ isCausal, dropoutP: 0.3 }), about: isCausal })
  })

  test.each([0.5, 1])('p = %f', async (dropoutP) => {
    await check({ ...make({ T: 40, D: 8 }), options: dropping({ dropoutP }) })
  })

  test('only some gradients', async () => {
    const c = { ...make({ T: 40, D: 8 }), options: dropping({ dropoutP: 0.3 }) }
    await check(c, [false, true, false])
    await check(c, [false, false, true])
  })

  test('its share of weights', async () => {
    const [T, S] = [64, 200]
    const zeros = { data: new Float32Array(T * 8), shape: [1, 1, T, 8] }
    const ones = { data: new Float32Array(S * 8).fill(1), shape: [1, 1, S, 8] }
    const c = { q: zeros, k: ones, v: ones, dout: zeros, options: dropping({ dropoutP: 0.3 }) }
    for (const [, gpu] of gpus) {
      const [out] = await compute(gpu, c, [false, false, false])
      // Each output is the share of 200 weights that are kept, by 0.7; of 12,800 the deviation is 0.4 %.
      const mean = Array.from(out as Float32Array).reduce((a, b) => a + b, 0) / (T * 8)
      expect(Math.abs(mean - 1)).toBeLessThan(0.03)
    }
  })
})

test('scores far below 0: what lies beyond the last query adds nothing', async () => {
  const c = make({ T: 5, D: 8 })
  c.q.data.fill(60)
  c.k.data.fill(-60)
  for (const options of [
    {},
    { isCausal: true },
    (device: Backend) => ({ alibi: slopes(2, device) }),
    () => ({ dropoutP: 0.3 }),
    () => ({ window: 3, globalTokens: 1 }),
    (device: Backend) => ({ blockMask: createBlockMask([[true]], { device }) }),
  ])
    for (const [, gpu] of gpus)
      for (const x of await compute(gpu, { ...c, options })) expect(x.every(Number.isFinite)).toBe(true)
})

describe('everything at once', () => {
  const sizes = { T: 100, S: 130, H: 4, Hk: 2, D: 8 }
  const blocks = someBlocks(sizes, 48, true)
  const c = make(sizes)
  const mask = {
    data: Uint8Array.from({ length: 100 * 130 }, (_, n) => Number(n % 7 !== 3)),
    shape: [100, 130],
  }
  const options = (device: Backend): AttentionOptions => {
    manualSeed(8)
    return {
      isCausal: 'bottom-right',
      window: 60,
      globalTokens: 10,
      blockMask: blocks(device),
      alibi: slopes(4, device),
      dropoutP: 0.3,
    }
  }

  test('fused, where there are enough bindings', async () => {
    await check({ ...c, mask, options }, [true, true, true], ['default limits'])
  })

  test('composed at default limits, as far as bindings are missing', async () => {
    const [, gpu] = gpus.find(([limits]) => limits === 'default limits') as (typeof gpus)[number]
    const run = (device: Backend, more: (device: Backend) => AttentionOptions) => {
      const inputs = [c.q, c.k, c.v].map((x) => place(device as typeof gpu, x).detach()) as Tensor[]
      for (const x of inputs) x.requiresGrad = true
      const [q, k, v] = inputs as [Tensor, Tensor, Tensor]
      const { result, rows } = profile(() => {
        const out = scaledDotProductAttention(q, k, v, more(device))
        return [out, ...grad([out], inputs, { gradOutputs: [place(device as typeof gpu, c.dout)] })]
      })
      const fused = rows.filter((r) => r.op.startsWith('scaled') && r.path === 'fused').map((r) => r.op)
      return { result, fused }
    }
    for (const [more, paths] of [
      [(device: Backend) => ({ ...options(device), attnMask: place(device as typeof gpu, mask) }), []],
      [options, ['scaled_dot_product_attention']],
    ] as const) {
      const [got, want] = [run(gpu, more), run(reference, more)]
      expect(got.fused).toEqual(paths)
      for (let n = 0; n < 4; n++) {
        const [x, y] = [await got.result[n]!.data(), await want.result[n]!.data()]
        const largest = Array.from(y).reduce((m, e) => Math.max(m, Math.abs(e)), 0)
        // As in `check`.
        x.forEach((e, i) => {
          expect(Math.abs(e - (y[i] as number))).toBeLessThan(1e-6 + 6e-6 * largest)
        })
      }
    }
  })
})
