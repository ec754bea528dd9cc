/**
 * Attention whose keys fit one block has all gradients from one kernel: against core's composition in float64, with every
 * option, in the tiles of large GPUs; and what still takes three kernels, with one row per thread, since SwiftShader is
 * slow to compile more.
 */
import {
  type AttentionOptions,
  type Backend,
  createBlockMask,
  grad,
  manualSeed,
  reference,
  ringAttention,
  ringShard,
  ringUnshard,
  runRanks,
  scaledDotProductAttention,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import {
  type Case,
  compute,
  type Data,
  dense,
  make,
  ofProjection,
  place,
  type Sizes,
} from '../../../test/kernels/attention.ts'
import type { WebGpuBackend } from '../src/index.ts'
import { attentionBackward, backwardTiles } from '../src/kernels/attention/attention.ts'
import type { Tile } from '../src/kernels/attention/blocks.ts'
import { allowance } from '../src/kernels/attention/stored.ts'
import { check, closeGpus, shared } from './support/attention.ts'

function withTile(tile: Tile, allowed = allowance, gpu = shared.full()): WebGpuBackend {
  Object.assign(gpu.kernels, {
    scaled_dot_product_attentionBackward: attentionBackward(gpu.engine, [tile], allowed),
  })
  return gpu
}
const always = { bytes: 0, leastGroups: 1 }
/** 64 keys against 64 queries, which take turns with dO, and against 32. */
const [inTurn, both] = backwardTiles as readonly [Tile, Tile]
const whole = withTile(both, always)
const turns = withTile(inTurn, always)
/** 64 keys against 16 queries. */
const tile = { ty: 64, rm: 1, tx: 4, kn: 4, inPlace: 'rows' } as const
const few = withTile(tile)
const many = withTile(tile, always)
const small = withTile(both, always, shared.plain())
const keys: string[] = []
const kernel = whole.engine.kernel.bind(whole.engine)
whole.engine.kernel = (key, ...rest) => {
  keys.push(key)
  return kernel(key, ...rest)
}
afterAll(() => {
  for (const gpu of [whole, turns, few, many, small]) gpu.close()
  closeGpus()
})

/** How many dispatches the gradients of a case take. */
function dispatches(gpu: WebGpuBackend, c: Case, needs: readonly boolean[] = [true, true, true]): number {
  const placed = new Map<unknown, Tensor>()
  const inputs = [c.q, c.k, c.v].map((x) => place(gpu, x, placed).detach()) as [Tensor, Tensor, Tensor]
  inputs.forEach((t, i) => {
    t.requiresGrad = needs[i] as boolean
  })
  const attnMask = c.mask ? place(gpu, c.mask) : null
  const options = typeof c.options === 'function' ? c.options(gpu) : c.options
  const out = scaledDotProductAttention(...inputs, { ...options, attnMask })
  const dout = place(gpu, c.dout)
  const before = gpu.engine.counts.dispatches
  grad(
    [out],
    inputs.filter((t) => t.requiresGrad),
    { gradOutputs: [dout] },
  )
  return gpu.engine.counts.dispatches - before
}

async function checkShort(c: Case, on: [string, WebGpuBackend][] = [['whole', whole]]): Promise<void> {
  for (const [, gpu] of on) expect(dispatches(gpu, c)).toBe(1)
  await check(c, [true, true, true], [], on)
}

const corners = [false, 'top-left', 'bottom-right'] as const

describe('sizes', () => {
  test.each<Sizes>([
    { T: 1, D: 8 },
    { T: 5, D: 16, B: 2 },
    { T: 33, D: 32 },
    { T: 64, D: 32, H: 4, Hk: 2, B: 2 },
    { T: 150, S: 64, D: 16 },
    { T: 40, S: 61, D: 64, Dv: 16 },
    { T: 61, S: 7, D: 8, H: 3, Hk: 1 },
    { T: 64, D: 64, H: 4, Hk: 2 },
  ])('%o', async (sizes) => {
    for (const isCausal of corners) await checkShort(make(sizes, { isCausal }))
  })

  test.each<Sizes>([
    { T: 1, D: 8 },
    { T: 64, D: 32, H: 4, Hk: 2, B: 2 },
    { T: 130, S: 61, D: 16, Dv: 64 },
  ])('in turns, %o', async (sizes) => {
    for (const isCausal of corners) await checkShort(make(sizes, { isCausal }), [['turns', turns]])
  })
})

describe('options', () => {
  const sizes = { T: 37, S: 50, H: 4, Hk: 2, D: 16 }
  const c = make(sizes)
  /** The same options on every device, and the same weights dropped. */
  const seeded =
    (more: (device: Backend) => AttentionOptions) =>
    (device: Backend): AttentionOptions => {
      manualSeed(8)
      return more(device)
    }
  const alibi = (device: Backend): Tensor => tensor([0.7, 0.3, 0.2, 0.1], { device })

  test.each<[string, (device: Backend) => AttentionOptions]>([
    ['a window', () => ({ isCausal: true, window: 9 })],
    ['a window that leaves some queries without keys', () => ({ isCausal: 'bottom-right', window: 3 })],
    ['a window with global tokens', () => ({ isCausal: true, window: 5, globalTokens: 7 })],
    ['ALiBi', (device) => ({ isCausal: 'bottom-right', alibi: alibi(device) })],
    ['dropout', () => ({ isCausal: true, dropoutP: 0.3 })],
    ['everything', (device) => ({ window: 20, globalTokens: 4, alibi: alibi(device), dropoutP: 0.3 })],
    ['a negative scale', () => ({ scale: -0.5 })],
  ])('%s', async (about, more) => {
    await checkShort({ ...c, options: seeded(more), about })
  })

  test('queries far beyond the window and before the first key get zeros', async () => {
    await checkShort(make({ T: 90, S: 20, D: 8 }, { window: 5 }))
    await checkShort(make({ T: 90, S: 20, D: 8 }, { isCausal: 'bottom-right' }))
  })

  test('masks, also of whole rows', async () => {
    const shape = [4, 37, 50]
    const keep = Uint8Array.from(dense(...shape).data, (x, n) =>
      Number(x < 0.4 && Math.floor(n / 50) % 9 > 1),
    )
    await checkShort({ ...c, mask: { data: keep, shape } })
    const add = Float32Array.from(keep, (x, n) => (x ? Math.sin(n) : -Infinity))
    await checkShort({ ...c, mask: { data: add, shape }, options: { isCausal: true } })
  })

  test('masked keys that are not finite reach nothing', async () => {
    const shape = [37, 50]
    const seen = (key: number): number => Number(key % 6 !== 2 && key < 45)
    const keep = Uint8Array.from({ length: 37 * 50 }, (_, n) => seen(n % 50))
    const spoilt = ({ data, ...rest }: Data): Data => ({
      ...rest,
      data: (data as Float32Array).map((x, n) => {
        const bad = [NaN, Infinity, -Infinity][n % 3] as number
        return seen(Math.floor(n / 16) % 50) ? x : bad
      }),
    })
    for (const data of [keep, Float32Array.from(keep, (x) => (x ? 0.5 : -Infinity))]) {
      const masked = { ...c, mask: { data, shape } }
      const worse = { ...masked, k: spoilt(c.k), v: spoilt(c.v) }
      expect(await compute(whole, worse)).toEqual(await compute(whole, masked))
    }
  })

  test('scores far below 0: what lies beyond the last query and key adds nothing', async () => {
    const far = make({ T: 5, D: 8 })
    far.q.data.fill(60)
    far.k.data.fill(-60)
    for (const gpu of [whole, turns])
      for (const x of await compute(gpu, far)) expect(x.every(Number.isFinite)).toBe(true)
  })
})

test.each<Sizes>([
  { T: 50, H: 4, Hk: 2, D: 24, B: 2 },
  { T: 1, H: 2, D: 16, B: 3 },
])('heads of one projection, %o: their gradients are parts of one tensor', async (sizes) => {
  const c = ofProjection(sizes, { isCausal: true })
  await checkShort(c, [['whole', whole]])
  // Three results in one buffer: few bindings are enough.
  await checkShort({ ...c, mask: dense(sizes.T, sizes.T) }, [['default limits', small]])
})

test('keys that are a part of all: δ is that of the whole output', async () => {
  const c = make({ T: 40, D: 16 }, { isCausal: true })
  keys.length = 0
  const parts = await runRanks(2, async (link) => {
    const [q, k, v, dout] = [c.q, c.k, c.v, c.dout].map((x) =>
      ringShard(place(whole, x), 2, link, 'zigzag'),
    ) as [Tensor, Tensor, Tensor, Tensor]
    const { backward } = await ringAttention(link, q, k, v, { isCausal: true })
    const { dq, dk, dv } = await backward(dout)
    return Promise.all([dq, dk, dv].map(async (t) => tensor(await t.data(), t.shape)))
  })
  const kernels = keys.filter((key) => key.startsWith('attentionBackward'))
  expect(kernels.length).toBeGreaterThan(2)
  expect(kernels.every((key) => key.startsWith('attentionBackward:qkv'))).toBe(true)
  const want = await compute(reference, c)
  for (const i of [0, 1, 2]) {
    const got = await ringUnshard(
      parts.map((part) => part[i] as Tensor),
      2,
      'zigzag',
    ).data()
    const exact = want[i + 1] as Float64Array
    const largest = exact.reduce((m, y) => Math.max(m, Math.abs(y)), 0)
    // As in `check`.
    const worst = exact.reduce((m, y, n) => Math.max(m, Math.abs(y - (got[n] as number))), 0)
    expect(worst).toBeLessThan(1e-6 + 6e-6 * largest)
  }
})

test('the same bits every time', async () => {
  const c = make({ T: 64, D: 32, H: 4, Hk: 2, B: 2 }, { isCausal: true })
  expect(await compute(whole, c)).toEqual(await compute(whole, c))
})

describe('three kernels', () => {
  const d = { D: 16, H: 1 }
  const turned: Data = { ...dense(16, 20, 1, 1), view: (t) => t.permute([3, 2, 1, 0]) }
  const blocks = (device: Backend) => ({
    blockMask: createBlockMask([[true]], { blockSize: 64, device }),
  })
  test.each<[string, WebGpuBackend, Case, Case]>([
    ['more keys than fit a block', many, make({ ...d, T: 20, S: 65 }), make({ ...d, T: 20, S: 64 })],
    ['blocks that are skipped', many, make({ ...d, T: 20 }, blocks), make({ ...d, T: 20 })],
    ['heads that are not read in place', many, make({ ...d, T: 20, D: 12 }), make({ ...d, T: 20 })],
    ['no rows of vectors', many, { ...make({ ...d, T: 20 }), q: turned }, make({ ...d, T: 20 })],
    ['four blocks of queries and few heads', few, make({ ...d, T: 49 }), make({ ...d, T: 48 })],
    ['four query heads per key head', few, make({ ...d, T: 9, H: 4, Hk: 1 }), make({ ...d, T: 9, H: 4 })],
  ])('%s', async (_, gpu, c, short) => {
    expect(dispatches(gpu, c)).toBe(3)
    expect(dispatches(gpu, short)).toBe(1)
    await check(c, [true, true, true], [], [['three', gpu]])
  })

  test('results in more buffers than default limits allow', async () => {
    const c = make({ ...d, T: 20 })
    expect(dispatches(small, c)).toBe(3)
    await check(c, [true, true, true], [], [['default limits', small]])
  })

  test('two where dQ is not wanted', async () => {
    const c = make({ ...d, T: 20 })
    expect(dispatches(many, c, [false, true, true])).toBe(2)
    await check(c, [false, true, true], [], [['two', many]])
  })

  test('no queries; no keys: zeros', async () => {
    for (const sizes of [
      { T: 0, S: 5 },
      { T: 5, S: 0 },
    ])
      await check(make({ ...d, ...sizes }), [true, true, true], [], [['empty', many]])
  })
})
