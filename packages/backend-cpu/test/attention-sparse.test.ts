/**
 * Sparse attention and the other options of the fused kernels: windows with global tokens, masks of blocks, blocks
 * chosen from the input, ALiBi, dropout. Kernels and composition against the definition written out in float64, bit by
 * bit the same on any number of threads.
 */

import {
  type AttentionOptions,
  type Backend,
  backward,
  createBlockMask,
  dropout,
  manualSeed,
  memory,
  ones,
  profile,
  reference,
  scaledDotProductAttention,
  type Tensor,
  type TypedArray,
  tensor,
  topkBlocks,
} from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { mismatch } from '../../../test/kernels/operand.ts'
import { random } from '../../../test/kernels/random.ts'
import { collected } from '../../core/test/support/collected.ts'
import { type Rules, type Sizes, written } from './attention-oracle.ts'
import { backends } from './support/engine.ts'

interface Case {
  readonly sizes: Sizes
  readonly data: readonly [Float32Array, Float32Array, Float32Array, Float32Array]
  readonly rules: Rules
  /** Run anew on each device: a seed given here makes every device drop the same weights. */
  options(device: Backend): AttentionOptions
}

const make = (sizes: Partial<Sizes> & { T: number }, seed: number): Pick<Case, 'sizes' | 'data'> => {
  const { T, B = 1, H = 2, Hk = H, S = T, D = 16, Dv = D } = sizes
  const rnd = random(seed)
  const floats = (n: number) => Float32Array.from({ length: n }, () => 2 * rnd() - 1)
  return {
    sizes: { B, H, Hk, T, S, D, Dv },
    data: [floats(B * H * T * D), floats(B * Hk * S * D), floats(B * Hk * S * Dv), floats(B * H * T * Dv)],
  }
}

/** out, dq, dk, dv on a device, and what ran fused. */
function evaluate(device: Backend, { sizes, data, options }: Omit<Case, 'rules'>) {
  const { B, H, Hk, T, S, D, Dv } = sizes
  const load = (x: Float32Array, shape: number[]): Tensor =>
    tensor(device === reference ? Float64Array.from(x) : x, shape, { device })
  const [q, k, v] = [load(data[0], [B, H, T, D]), load(data[1], [B, Hk, S, D]), load(data[2], [B, Hk, S, Dv])]
  for (const x of [q, k, v]) x.requiresGrad = true
  const { result, rows } = profile(() => {
    const y = scaledDotProductAttention(q, k, v, options(device))
    backward(y, { gradient: load(data[3], [B, H, T, Dv]) })
    return [y, q.grad, k.grad, v.grad].map((x) => (x as Tensor).contiguous().dataSync())
  })
  return { results: result, fused: rows.filter((r) => r.path === 'fused').map((r) => r.op) }
}

const names = ['out', 'dq', 'dk', 'dv']

/**
 * Scores are sums of D ≤ 128 products below 1: their errors, some 10⁻⁷ to 10⁻⁶, become relative errors of the weights,
 * so outputs, means of values below 1 (and dropout's factor), get 4·10⁻⁶, and gradients, sums of such terms of either
 * sign, 4·10⁻⁶ of the largest gradient of their tensor. The composition in float64 agrees to 10⁻¹².
 */
function check(c: Case, composed = false): void {
  const want = written(c.sizes, c.data, c.rules)
  const compare = (name: string, results: readonly TypedArray[], exact: boolean): void => {
    results.forEach((got, i) => {
      const largest = (want[i] as Float64Array).reduce((x, y) => Math.max(x, Math.abs(y)), 0)
      const atol = exact ? 1e-12 * (1 + largest) : i === 0 ? 4e-6 : 1e-6 + 4e-6 * largest
      const context = `${name}: ${names[i]} of ${JSON.stringify(c.sizes)}`
      expect(mismatch(got, want[i] as Float64Array, atol, exact ? 0 : 1e-5), context).toBeNull()
    })
  }
  if (composed) compare('composition', evaluate(reference, c).results, true)
  const first = new Map<string, readonly TypedArray[]>()
  for (const { name, backend } of backends) {
    const { results, fused } = evaluate(backend, c)
    expect(fused.filter((op) => op.startsWith('scaled')).sort(), name).toEqual([
      'scaled_dot_product_attention',
      'scaled_dot_product_attentionBackward',
    ])
    compare(name, results, false)
    const known = first.get(backend.level) ?? results
    results.forEach((got, i) => {
      expect(mismatch(got, known[i] as TypedArray, 0, 0), `${name}: ${names[i]}, bits`).toBeNull()
    })
    first.set(backend.level, known)
  }
}

const lengths: readonly (Partial<Sizes> & { T: number })[] = [
  { T: 1, D: 64 },
  { T: 63, D: 60, Hk: 1 },
  { T: 127, D: 128, B: 2 },
  { T: 500, D: 16, H: 4, Hk: 2 },
  { T: 1000, D: 64, H: 1 },
  { T: 100, S: 300, D: 20, Dv: 33 },
  { T: 300, S: 100, D: 8 },
]
/** The composition holds T×S numbers in plain arrays: it is for the shorter ones. */
const short = ({ T, D = 16 }: { T: number; D?: number }): boolean => T * D <= 8000 && T < 500

type Corner = 'none' | 'top-left' | 'bottom-right'
const corners = ['none', 'top-left', 'bottom-right'] as const
const causal = (corner: Corner, { T, S }: Sizes) => {
  const offset = corner === 'bottom-right' ? S - T : 0
  return { offset, sees: (i: number, j: number) => corner === 'none' || j <= i + offset }
}

describe('a window with global tokens', () => {
  const rules = (sizes: Sizes, corner: Corner, window: number, globals: number): Rules => {
    const { offset, sees } = causal(corner, sizes)
    return {
      seen: (_b, _h, i, j) => sees(i, j) && (j > i + offset - window || j < globals || i + offset < globals),
    }
  }
  test.each(lengths)('%o', (size) => {
    for (const corner of size.T < 500 ? corners : (['top-left'] as const)) {
      for (const [window, globalTokens] of [
        [16, 3],
        [100, 100],
        [37, 70],
      ] as const) {
        const c = make(size, size.T + window)
        check(
          {
            ...c,
            options: () => ({ isCausal: corner, window, globalTokens }),
            rules: rules(c.sizes, corner, window, globalTokens),
          },
          short(size) && window < 50,
        )
      }
    }
  })

  test('more global tokens than keys: all is seen', () => {
    const c = make({ T: 150 }, 1)
    check({ ...c, options: () => ({ window: 5, globalTokens: 500 }), rules: { seen: () => true } })
  })
})

/** Blocks of about a third of a mask are visible, but for one row and one column of blocks, whatever the head. */
function someBlocks({ B, H, T, S }: Sizes, blockSize: number, perHead: boolean) {
  const rnd = random(T + S + blockSize)
  const [nq, nk] = [Math.ceil(T / blockSize), Math.ceil(S / blockSize)]
  const lead = perHead ? [B, H] : []
  const flags = Array.from({ length: (perHead ? B * H : 1) * nq * nk }, (_, n) => {
    const [i, j] = [Math.floor(n / nk) % nq, n % nk]
    return (nq < 4 || (i !== 1 && j !== 2)) && rnd() < 0.35 ? 1 : 0
  })
  return {
    mask: Uint8Array.from(flags),
    shape: [...lead, nq, nk],
    sees: (b: number, h: number, i: number, j: number): boolean => {
      const [x, y] = [Math.floor(i / blockSize), Math.floor(j / blockSize)]
      return flags[((perHead ? b * H + h : 0) * nq + x) * nk + y] === 1
    },
  }
}

describe('masks of blocks', () => {
  test.each(lengths)('%o', (size) => {
    for (const [blockSize, perHead, corner] of [
      [16, false, 'none'],
      [64, true, 'bottom-right'],
      [128, true, 'top-left'],
      [96, false, 'none'],
    ] as const) {
      const c = make(size, size.T + blockSize)
      const blocks = someBlocks(c.sizes, blockSize, perHead)
      const { sees } = causal(corner, c.sizes)
      check(
        {
          ...c,
          options: (device) => ({
            isCausal: corner,
            blockMask: createBlockMask(tensor(blocks.mask, blocks.shape, { device, dtype: 'bool' }), {
              blockSize,
            }),
          }),
          rules: { seen: (b, h, i, j) => sees(i, j) && blocks.sees(b, h, i, j) },
        },
        short(size),
      )
    }
  })

  test('with a window, global tokens, a mask of pairs, ALiBi and dropout at once', () => {
    const c = make({ T: 200, S: 230, H: 4, Hk: 2, D: 24 }, 5)
    const { B, H, T, S } = c.sizes
    const blocks = someBlocks(c.sizes, 48, true)
    const keep = Uint8Array.from({ length: T * S }, (_, n) => Number(n % 7 !== 3))
    const slopes = Float32Array.of(0.5, 0.25, 0.125, 0.0625)
    const factors = dropped([B, H, T, S], 0.3, 8)
    const offset = S - T
    check(
      {
        ...c,
        options: (device) => {
          manualSeed(8)
          return {
            isCausal: 'bottom-right',
            window: 90,
            globalTokens: 10,
            blockMask: createBlockMask(tensor(blocks.mask, blocks.shape, { device, dtype: 'bool' }), {
              blockSize: 48,
            }),
            attnMask: tensor(keep, [T, S], { device, dtype: 'bool' }),
            alibi: tensor(slopes, { device }),
            dropoutP: 0.3,
          }
        },
        rules: {
          seen: (b, h, i, j) =>
            j <= i + offset &&
            (j > i + offset - 90 || j < 10 || i + offset < 10) &&
            keep[i * S + j] === 1 &&
            blocks.sees(b, h, i, j),
          bias: (_b, h, i, j) => -(slopes[h] as number) * Math.abs(i + offset - j),
          keep: (b, h, i, j) => factors[((b * H + h) * T + i) * S + j] as number,
        },
      },
      true,
    )
  })

  test('all hidden: zeros; all visible: as without', () => {
    const c = make({ T: 130, D: 8 }, 9)
    for (const all of [false, true]) {
      const options = (device: Backend) => ({
        blockMask: createBlockMask(() => all, { blockSize: 32, qLen: 130, kvLen: 130, device }),
      })
      check({ ...c, options, rules: { seen: () => all } }, true)
    }
  })

  test('what is hidden is not even read: NaN in it reaches nothing', () => {
    const { sizes, data } = make({ T: 256, H: 1, D: 16 }, 10)
    const [, k, v] = data
    // Keys 64 … 127 are seen by nobody.
    for (const x of [k, v]) x.fill(NaN, 64 * 16, 128 * 16)
    const options = (device: Backend) => ({
      blockMask: createBlockMask((_, j) => j !== 1, { qLen: 256, kvLen: 256, device }),
    })
    for (const { backend } of backends) {
      for (const x of evaluate(backend, { sizes, data, options }).results)
        expect(x.every(Number.isFinite)).toBe(true)
    }
  })
})

test('a mask from arrays, from a predicate and from a tensor is the same; the host counts', async () => {
  const flags = [
    [true, false, true],
    [false, false, false],
  ]
  const masks = [
    createBlockMask(flags, { blockSize: 16, device: reference }),
    createBlockMask((i, j) => i === 0 && j !== 1, { blockSize: 16, qLen: 20, kvLen: 48, device: reference }),
    createBlockMask(tensor(flags, { device: reference }), { blockSize: 16 }),
  ]
  expect(masks.map((m) => m.density)).toEqual([1 / 3, 1 / 3, null])
  for (const mask of masks) {
    expect([mask.queryBlocks, mask.keyBlocks]).toEqual([2, 3])
    expect(Array.from(mask.kvNumBlocks.dataSync())).toEqual([2, 0])
    expect(Array.from(mask.kvIndices.narrow(-1, 0, 2).contiguous().dataSync())).toEqual([0, 2, 2, 2])
    expect(Array.from(mask.qNumBlocks.dataSync())).toEqual([1, 0, 1])
    expect(mask.qIndices.shape).toEqual([3, 2])
  }
  await collected()
  const before = memory().tensors
  using mask = createBlockMask(flags, { blockSize: 16, device: reference })
  expect(memory().tensors - before).toBe(5)
  mask.dispose()
  expect(memory().tensors).toBe(before)
})

/** Dropout's factors as core's `dropout` draws them after `manualSeed(seed)`. */
function dropped(shape: readonly number[], p: number, seed: number): TypedArray {
  manualSeed(seed)
  return dropout(ones(shape, { device: reference, dtype: 'float64' }), p).dataSync()
}

describe('blocks chosen from the input', () => {
  const { backend } = backends[1] as (typeof backends)[number]
  const mean = (x: Float32Array, row: number, rows: number, d: number): Float64Array => {
    const sum = new Float64Array(d)
    for (let i = row * d; i < (row + rows) * d; i++)
      sum[i % d] = (sum[i % d] as number) + (x[i] as number) / rows
    return sum
  }

  test.each([
    { T: 300, S: 300, corner: 'none', keep: 3, H: 2, Hk: 2 },
    { T: 300, S: 300, corner: 'top-left', keep: 3, H: 4, Hk: 2 },
    { T: 70, S: 330, corner: 'bottom-right', keep: 4, H: 2, Hk: 1 },
    { T: 40, S: 40, corner: 'top-left', keep: 50, H: 1, Hk: 1 },
  ] as const)('%o', ({ corner, keep, ...size }) => {
    const c = make({ ...size, D: 12, B: 2 }, size.T)
    const { B, H, Hk, T, S, D } = c.sizes
    const [size0, offset] = [32, corner === 'bottom-right' ? S - T : 0]
    const [nq, nk] = [Math.ceil(T / size0), Math.ceil(S / size0)]
    const q = tensor(c.data[0], [B, H, T, D], { device: backend })
    const k = tensor(c.data[1], [B, Hk, S, D], { device: backend })
    const mask = topkBlocks(q, k, { blockSize: size0, keep, isCausal: corner })
    const visible = mask.visible.dataSync()
    const [counts, indices] = [mask.kvNumBlocks.dataSync(), mask.kvIndices.dataSync()]
    const [queryCounts, queries] = [mask.qNumBlocks.dataSync(), mask.qIndices.contiguous().dataSync()]
    const most = mask.kvIndices.shape[3] as number
    expect(most).toBe(Math.min(keep, nk))
    for (let head = 0; head < B * H; head++) {
      const kv = Math.floor(head / H) * Hk + Math.floor(((head % H) * Hk) / H)
      for (let i = 0; i < nq; i++) {
        const rows = Math.min(size0, T - i * size0)
        const query = mean(c.data[0], head * T + i * size0, rows, D)
        const scored = Array.from({ length: nk }, (_, j) => {
          const key = mean(c.data[1], kv * S + j * size0, Math.min(size0, S - j * size0), D)
          const score = query.reduce((sum, x, d) => sum + x * (key[d] as number), 0)
          const [from, to] = [i * size0 + offset, i * size0 + offset + size0 - 1]
          const own = corner !== 'none' && j * size0 + size0 - 1 >= from
          return { j, score: own ? Infinity : score, seen: corner === 'none' || j * size0 <= to }
        }).filter((x) => x.seen)
        const best = scored
          .sort((x, y) => y.score - x.score || x.j - y.j)
          .slice(0, keep)
          .map((x) => x.j)
          .sort((x, y) => x - y)
        const row = head * nq + i
        expect(Array.from(visible.slice(row * nk, (row + 1) * nk)).flatMap((x, j) => (x ? [j] : []))).toEqual(
          best,
        )
        expect(Array.from(indices.slice(row * most, row * most + (counts[row] as number)))).toEqual(best)
      }
      for (let j = 0; j < nk; j++) {
        const row = head * nk + j
        const want = Array.from({ length: nq }, (_, i) => i).filter((i) => visible[(head * nq + i) * nk + j])
        expect(Array.from(queries.slice(row * nq, row * nq + (queryCounts[row] as number)))).toEqual(want)
      }
    }
    const { sees } = causal(corner, c.sizes)
    check({
      ...c,
      options: (device) => ({
        isCausal: corner,
        blockMask: topkBlocks(
          tensor(c.data[0], [B, H, T, D], { device }),
          tensor(c.data[1], [B, Hk, S, D], { device }),
          { blockSize: size0, keep, isCausal: corner },
        ),
      }),
      rules: {
        seen: (b, h, i, j) =>
          sees(i, j) &&
          visible[((b * H + h) * nq + Math.floor(i / size0)) * nk + Math.floor(j / size0)] === 1,
      },
    })
  })

  test('reads nothing back', () => {
    const blind: Backend = {
      ...reference,
      read: () => Promise.reject(new Error('read')),
      readSync: () => {
        throw new Error('readSync')
      },
    }
    const x = ones([1, 2, 200, 8], { device: blind })
    const blockMask = topkBlocks(x, x, { keep: 2, isCausal: true })
    expect(scaledDotProductAttention(x, x, x, { blockMask, isCausal: true }).shape).toEqual([1, 2, 200, 8])
  })
})

describe('ALiBi', () => {
  test.each(lengths)('%o', (size) => {
    for (const corner of size.T < 500 ? corners : (['top-left'] as const)) {
      const c = make(size, size.T + 7)
      const slopes = Float32Array.from({ length: c.sizes.H }, (_, h) => 2 ** -(h + 1))
      const { offset, sees } = causal(corner, c.sizes)
      check(
        {
          ...c,
          options: (device) => ({ isCausal: corner, alibi: tensor(slopes, { device }) }),
          rules: {
            seen: (_b, _h, i, j) => sees(i, j),
            bias: (_b, h, i, j) => -(slopes[h] as number) * Math.abs(i + offset - j),
          },
        },
        short(size),
      )
    }
  })
})

describe('dropout', () => {
  test.each(lengths)('%o', (size) => {
    const c = make(size, size.T + 9)
    const { B, H, T, S } = c.sizes
    const cases = [
      [0.5, 'top-left'],
      [0.1, 'none'],
      [1, 'none'],
    ] as const
    for (const [p, corner] of size.T < 500 ? cases : cases.slice(0, 1)) {
      const factors = dropped([B, H, T, S], p, 40)
      const { sees } = causal(corner, c.sizes)
      check(
        {
          ...c,
          options: () => {
            manualSeed(40)
            return { isCausal: corner, dropoutP: p }
          },
          rules: {
            seen: (_b, _h, i, j) => sees(i, j),
            keep: (b, h, i, j) => factors[((b * H + h) * T + i) * S + j] as number,
          },
        },
        short(size),
      )
    }
  })

  test('each call drops others; the gradient of v alone knows it, too', () => {
    const { backend } = backends[1] as (typeof backends)[number]
    const [T, D] = [50, 8]
    const q = ones([1, 1, T, D], { device: backend })
    const v = ones([1, 1, T, D], { device: backend, requiresGrad: true })
    manualSeed(3)
    const [a, b] = [0, 1].map(() => scaledDotProductAttention(q, q, v, { dropoutP: 0.5 })) as [Tensor, Tensor]
    const values = a.dataSync()
    expect(values).not.toEqual(b.dataSync())
    // All weights are 1 / T: the sums over outputs and over gradients are the same sum of factors, some 400.
    a.sum().backward()
    const sum = (x: TypedArray): number => Array.from(x).reduce((total, y) => total + y, 0)
    expect(sum(v.grad?.dataSync() as TypedArray)).toBeCloseTo(sum(values), 3)
  })
})
