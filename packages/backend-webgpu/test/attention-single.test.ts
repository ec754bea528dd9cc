/**
 * Attention of up to four queries: the kernel that shares out keys, alone and in parts, against core's composition in
 * float64; and that it is the one that runs.
 */
import { type Backend, noGrad, scaledDotProductAttention, type Tensor, tensor } from '@tilegrad/core'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import {
  type Case,
  compute,
  type Data,
  dense,
  make,
  numbers,
  place,
  type Sizes,
} from '../../../test/kernels/attention.ts'
import type { WebGpuBackend } from '../src/index.ts'
import { attention } from '../src/kernels/attention/attention.ts'
import { check, closeGpus, shared } from './support/attention.ts'

/** Up to 64 keys in one workgroup, more in parts of at least 16. */
const few = { queries: 4, alone: 64, part: 16, enough: 64 }
const gpu = shared.plain()
Object.assign(gpu.kernels, {
  scaled_dot_product_attention: attention(gpu.engine, undefined, few),
})
const on: [string, WebGpuBackend][] = [['few', gpu]]
const keys: string[] = []
const kernel = gpu.engine.kernel.bind(gpu.engine)
gpu.engine.kernel = (key, ...rest) => {
  keys.push(key)
  return kernel(key, ...rest)
}
beforeEach(() => {
  keys.length = 0
})
afterAll(() => {
  gpu.close()
  closeGpus()
})

const forward = [false, false, false] as const
/** The kernels of forward attention that have run. */
const ran = (): string[] =>
  keys.map((key) => key.split(':')[0] as string).filter((name) => /^attention(Single|Merge|)$/.test(name))
const ranAs = (parts: boolean): void =>
  expect(ran()).toEqual(parts ? ['attentionSingle', 'attentionMerge'] : ['attentionSingle'])
async function checkFew(c: Case, needs: readonly boolean[] = forward): Promise<void> {
  keys.length = 0
  await check(c, needs, [], on)
  ranAs((c.k.shape[2] as number) > few.alone)
}

/** The first `rows` of a longer cache, (B, Hk, 600, D). */
const cached = ({ B = 1, H = 2, Hk = H, S = 1, D = 16 }: Sizes): Data => ({
  ...dense(B, Hk, 600, D),
  view: (t) => t.narrow(2, 7, S),
})
const corners = [false, 'top-left', 'bottom-right'] as const

describe('sizes', () => {
  test.each<Sizes>([
    { T: 1, S: 1, D: 64 },
    { T: 1, S: 64, D: 64, H: 3 },
    { T: 1, S: 65, D: 64 },
    { T: 4, S: 513, D: 64, H: 4, Hk: 2, B: 2 },
    { T: 2, S: 33, D: 17, Dv: 31, H: 3, Hk: 1 },
    { T: 3, S: 70, D: 17, Dv: 31 },
    { T: 1, S: 40, D: 128 },
  ])('%o', async (sizes) => {
    for (const isCausal of sizes.T === 1 ? [false] : corners) await checkFew(make(sizes, { isCausal }))
  })

  test('rows of a cache that is longer', async () => {
    const sizes = { T: 1, S: 129, H: 4, Hk: 2, D: 64, B: 2 }
    const c = { ...make(sizes), k: cached(sizes), v: cached(sizes) }
    const seen = (x: Data): Case => ({ ...c, k: { ...c.k, ...x } })
    const got = await compute(gpu, c, forward)
    ranAs(true)
    const dense129 = (x: Data): Data => ({
      data: Float32Array.from({ length: 2 * 2 * 129 * 64 }, (_, i) => {
        const [head, rest] = [Math.floor(i / (129 * 64)), i % (129 * 64)]
        return x.data[head * 600 * 64 + 7 * 64 + rest] as number
      }),
      shape: [2, 2, 129, 64],
    })
    expect(await compute(gpu, { ...seen(c.k), k: dense129(c.k), v: dense129(c.v) }, forward)).toEqual(got)
  })

  test('five queries are for the kernel of blocks', async () => {
    await compute(gpu, make({ T: 5, S: 9 }), forward)
    expect(ran()).toEqual(['attention'])
  })
})

/** Masks of 2 heads, T queries and S keys: all, none and some are visible. */
const kept = (t: number, s: number, which: (query: number, key: number) => boolean): Data => ({
  data: Uint8Array.from({ length: 2 * t * s }, (_, i) => Number(which(Math.floor(i / s) % t, i % s))),
  shape: [2, t, s],
})
const added = ({ data, shape }: Data): Data => ({
  data: Float32Array.from(data, (x, n) => (x ? Math.sin(n) : -Infinity)),
  shape,
})

describe.each([33, 130])('masks of %i keys', (S) => {
  const sizes = { T: 3, S, D: 16 }
  // Query 0 sees all, query 1 nothing, query 2 some; a whole part is hidden.
  const mask = kept(3, S, (query, key) => query === 0 || (query === 2 && key > 20 && key % 3 > 0))

  test('to keep by, and to add', async () => {
    for (const m of [mask, added(mask)]) await checkFew({ ...make(sizes), mask: m })
    const row: Data = { data: Uint8Array.from({ length: S }, (_, j) => Number(j < 9)), shape: [1, S] }
    await checkFew({ ...make({ ...sizes, T: 1, B: 2 }), mask: row })
  })

  test('a query that sees nothing gets zeros', async () => {
    const [out] = (await compute(gpu, { ...make(sizes), mask }, forward)) as [Float32Array]
    for (const head of [0, 1]) {
      const rows = [0, 1, 2].map((i) => out.slice((head * 3 + i) * 16, (head * 3 + i + 1) * 16))
      expect(rows.map((row) => row.some((x) => x !== 0))).toEqual([true, false, true])
    }
  })

  test('what is hidden may be NaN or infinite, what is visible shows', async () => {
    const hidden = (key: number): boolean => key < 16 || key % 7 === 3
    const spoilt = (x: Data): Data => ({
      ...x,
      data: (x.data as Float32Array).map((y, n) =>
        hidden(Math.floor(n / 16) % S) ? ([NaN, Infinity, -Infinity][n % 3] as number) : y,
      ),
    })
    const keep = kept(3, S, (_, key) => !hidden(key))
    for (const m of [keep, added(keep)]) {
      const c = { ...make(sizes), mask: m }
      const worse = { ...c, k: spoilt(c.k), v: spoilt(c.v) }
      expect(await compute(gpu, worse, forward)).toEqual(await compute(gpu, c, forward))
      // A weight of e⁻³⁰⁰ is 0, and 0 · NaN still NaN.
      const far = { ...c, mask: added(keep) }
      far.mask.data[29] = far.mask.data[3 * S + 29] = -300
      far.v.data[29 * 16 + 5] = NaN
      const [out] = (await compute(gpu, far, forward)) as [Float32Array]
      expect([...out.keys()].filter((i) => Number.isNaN(out[i]))).toEqual([5, 21, 37])
      far.v.data[29 * 16 + 5] = 0
      far.k.data[29 * 16 + 1] = NaN
      const [all] = (await compute(gpu, far, forward)) as [Float32Array]
      expect([...all.keys()].filter((i) => Number.isNaN(all[i]))).toEqual([...Array(48).keys()])
    }
  })
})

describe('options', () => {
  test.each([40, 150])('windows, ALiBi and scales over %i keys', async (S) => {
    const alibi = (device: Backend): Tensor => tensor([0.7, 0.3], { device })
    for (const isCausal of corners) {
      await checkFew(make({ T: 4, S }, { isCausal, window: 19 }))
      await checkFew(make({ T: 4, S }, (device) => ({ isCausal, alibi: alibi(device) })))
    }
    await checkFew(make({ T: 2, S }, { scale: -0.7 }))
  })

  test('what else there is goes the way of blocks', async () => {
    for (const options of [{ dropoutP: 0.5 }, { window: 3, globalTokens: 1 }]) {
      keys.length = 0
      await compute(gpu, make({ T: 1, S: 9 }, options), forward)
      expect(ran()).toEqual(['attention'])
    }
  })
})

describe('gradients go by its statistics', () => {
  test.each<Sizes>([
    { T: 1, S: 1 },
    { T: 4, S: 90, H: 4, Hk: 2 },
  ])('%o', async (sizes) => {
    await checkFew(make(sizes, { isCausal: 'bottom-right' }), [true, true, true])
  })

  test.each([20, 90])('scores of 10⁸ over %i keys: every bit is that of the other kernels', async (S) => {
    const c = make({ T: 3, S, D: 16, H: 1 }, { scale: 0.3 })
    // Scores differ by rounding only if their products are not added up in the same order.
    const q = numbers(16).map((x) => 3e4 * x)
    const k = numbers(16).map((x) => 3e4 * x)
    c.q.data.forEach((_, i) => {
      c.q.data[i] = q[i % 16] as number
    })
    c.k.data.forEach((_, i) => {
      c.k.data[i] = k[i % 16] as number
    })
    const [, , , dv] = (await compute(gpu, c)) as Float32Array[]
    const sums = new Float64Array(16)
    c.dout.data.forEach((x, i) => {
      sums[i % 16]! += x / S
    })
    dv!.forEach((x, i) => expect(x).toBeCloseTo(sums[i % 16] as number, 5))
  })
})

test('the same bits every time', async () => {
  const c = make({ T: 1, S: 200, H: 3 })
  const [q, k, v] = [c.q, c.k, c.v].map((x) => place(gpu, x)) as [Tensor, Tensor, Tensor]
  const run = (): Tensor => noGrad(() => scaledDotProductAttention(q, k, v))
  const first = await run().data()
  for (let i = 0; i < 3; i++) expect(await run().data()).toEqual(first)
})
