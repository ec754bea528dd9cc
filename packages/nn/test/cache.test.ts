import { manualSeed, memory, noGrad, ones, randint, randn, scope, type Tensor, tensor } from '@tilegrad/core'
import {
  type AttentionCache,
  GPT,
  type GPTConfig,
  KVCache,
  LinearAttention,
  MultiHeadAttention,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { expectClose, values } from './helpers.ts'

beforeEach(() => manualSeed(37))

// float64, the same sums over keys in another order.
const CLOSE = { atol: 1e-12, rtol: 1e-10 }

const rows = (n: number, from = 0): Tensor =>
  tensor(Float32Array.from({ length: 2 * 2 * n * 2 }, (_, i) => from + (Math.floor(i / 2) % n))).reshape([
    2,
    2,
    n,
    2,
  ])

/** Which tokens a piece of the cache holds: `rows` numbers them. */
const numbers = (t: Tensor): number[] => {
  const [b, h, n, d] = t.shape
  const all = values(t)
  const first = Array.from({ length: n }, (_, i) => all[i * d])
  // All sequences, heads and elements hold the same.
  expect(all).toEqual(Array.from({ length: b * h }, () => first.flatMap((v) => [v, v])).flat())
  return first
}

const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i)

describe('KVCache', () => {
  const options = { batch: 2, numKvHeads: 2, headDim: 2 }

  it('writes in place what it is given and shows all of it', () => {
    const cache = new KVCache({ ...options, maxLength: 6 })
    const { storage } = cache.keys
    let length = 0
    for (const t of [3, 1, 2]) {
      const { keys, values: vals } = cache.append(rows(t, length), rows(t, length + 100))
      length += t
      expect([cache.length, keys.storage === storage, vals.storage === cache.values.storage]).toEqual([
        length,
        true,
        true,
      ])
      expect(numbers(keys)).toEqual(range(0, length))
      expect(numbers(vals)).toEqual(range(100, 100 + length))
    }
    expect(() => cache.append(rows(1), rows(1))).toThrow(/1 more tokens after 6 exceed maxLength 6/)
    cache.reset()
    expect(numbers(cache.append(rows(2, 50), rows(2)).keys)).toEqual([50, 51])
  })

  it.each([1, 2, 3, 7])(
    'with a window of %d holds at most twice as much, and shows what is seen, in order',
    (window) => {
      const cache = new KVCache({ ...options, maxLength: Infinity, window })
      expect(cache.keys.shape).toEqual([2, 2, 2 * window, 2])
      let length = 0
      // One by one past several moves, then pieces of every size from one to more than it holds.
      const pieces = [
        ...Array.from({ length: 5 * window }, () => 1),
        ...range(1, 2 * window + 4),
        1,
        1,
        window,
        1,
      ]
      for (const t of pieces) {
        const { keys, values: vals } = cache.append(rows(t, length), rows(t, length + 1000))
        length += t
        const first = Math.max(0, length - t - window + 1)
        expect(numbers(keys)).toEqual(range(first, length))
        expect(numbers(vals)).toEqual(range(first + 1000, length + 1000))
      }
      expect(cache.length).toBe(length)
    },
  )

  it('does not grow, and is freed by dispose or with its scope', async () => {
    await collected()
    const before = memory()
    const cache = new KVCache({ ...options, maxLength: Infinity, window: 4 })
    const full = memory()
    expect(full.bytes - before.bytes).toBe(2 * 4 * (2 * 2 * 8 * 2))
    for (let i = 0; i < 50; i++) scope(() => void cache.append(rows(1, i), rows(1, i)))
    scope(() => void cache.append(rows(20), rows(20)))
    expect([memory().tensors, memory().bytes]).toEqual([full.tensors, full.bytes])
    cache.dispose()
    expect(memory().bytes).toBe(before.bytes)
    scope(() => void new KVCache({ ...options, maxLength: 9 }))
    expect(memory().bytes).toBe(before.bytes)
    // What a scope returns lives on.
    const kept = scope(() => new KVCache({ ...options, maxLength: 9 }))
    expect(kept.keys.disposed).toBe(false)
    kept.dispose()
    expect(memory().bytes).toBe(before.bytes)
  })

  it('says what does not fit', () => {
    const cache = new KVCache({ ...options, maxLength: 6 })
    expect(() => cache.append(ones([2, 1, 3, 2]), ones([2, 1, 3, 2]))).toThrow(
      /got keys \[2, 1, 3, 2\] and values \[2, 1, 3, 2\]; expected \[2, 2, T, 2\] both/,
    )
    const k = rows(1)
    k.requiresGrad = true
    expect(() => cache.append(k, rows(1))).toThrow(/decode inside noGrad/)
    expect(cache.length).toBe(0)
    expect(noGrad(() => cache.append(k, rows(1))).keys.shape).toEqual([2, 2, 1, 2])
    expect(() => new KVCache({ ...options, maxLength: Infinity })).toThrow(
      /without a window maxLength must be finite/,
    )
    expect(() => new KVCache({ ...options, maxLength: 0 })).toThrow(
      /maxLength must be a positive integer, got 0/,
    )
    expect(() => new MultiHeadAttention(8, 2).newCache(1, 4)).toThrow(/a cache needs isCausal: true/)
    expect(new LinearAttention(8, 2).newCache(1, 4)).toBeNull()
    const layer = new MultiHeadAttention(4, 2, { isCausal: true })
    const call = { cache: layer.newCache(1, 4), context: randn([1, 2, 4]) }
    expect(() => layer.forward(randn([1, 1, 4]), call)).toThrow(/with a context leave it out/)
  })
})

const variants: [string, Partial<GPTConfig>][] = [
  ['learned positions', {}],
  ['grouped heads', { numKvHeads: 2 }],
  ['one key-value head, no biases', { numKvHeads: 1, bias: false }],
  ['rope', { rope: true }],
  ['rope of neighbours, grouped heads', { rope: { interleaved: true, base: 100 }, numKvHeads: 2 }],
  ['ALiBi', { alibi: true }],
  ['a window', { window: 5 }],
  ['a window of 1', { window: 1 }],
  ['rope, a window', { rope: true, window: 7 }],
  ['ALiBi, a window, grouped heads', { alibi: true, window: 6, numKvHeads: 2 }],
  ['norms of queries and keys', { qkNorm: true }],
  ['everything', { rope: true, alibi: true, window: 9, qkNorm: true, numKvHeads: 2 }],
]

describe.each(variants)('decoding with %s', (_, config) => {
  const length = 31
  const make = (): GPT => {
    const model = new GPT({
      vocabSize: 13,
      blockSize: length,
      numLayers: 2,
      numHeads: 4,
      embedDim: 16,
      ...config,
    })
    // Initial weights are small, so that all tokens look alike.
    for (const p of model.parameters()) p.detach().mul_(8)
    return model.to('float64')
  }

  it.each([
    ['one token at a time', Array.from({ length }, () => 1)],
    ['a prompt, then one at a time', [17, ...Array.from({ length: length - 17 }, () => 1)]],
    ['in uneven pieces', [3, 1, 8, 2, 1, 11, 5]],
  ])('%s gives the logits of the whole sequence', (_, pieces) => {
    const model = make()
    const idx = randint(0, 13, [2, length])
    const { logits } = noGrad(() => model.forward(idx))
    const cache = model.newCache(2, length)
    let at = 0
    for (const n of pieces) {
      const next = noGrad(() => model.nextLogits(idx.narrow(1, at, n), cache))
      at += n
      expectClose(next, logits.select(1, at - 1), CLOSE)
    }
    expect(cache?.map((c) => c.length)).toEqual([length, length])
  })
})

it('key masks and masks of pairs count the cached keys', () => {
  const layer = new MultiHeadAttention(8, 2, { isCausal: true, window: 6, alibi: true }).to('float64')
  const x = randn([2, 12, 8], { dtype: 'float64' })
  const real = tensor([...'110000100000', ...'100000000010'].map((c) => c === '0'))
    .reshape([2, 12])
    .to('bool')
  const mask = randn([12, 12], { dtype: 'float64' })
  const whole = noGrad(() => layer.forward(x, { keyMask: real, attnMask: mask }))
  const cache = layer.newCache(2, 12) as AttentionCache
  for (let t = 0; t < 12; t++) {
    const options = {
      cache: cache as KVCache,
      keyMask: real.narrow(1, 0, t + 1),
      attnMask: mask.narrow(0, t, 1).narrow(1, 0, t + 1),
    }
    const step = noGrad(() => layer.forward(x.narrow(1, t, 1), options))
    expectClose(step, whole.narrow(1, t, 1), CLOSE)
  }
})

it('a model beyond its positions says how many the cache holds', () => {
  const model = new GPT({ vocabSize: 5, blockSize: 4, numLayers: 1, numHeads: 1, embedDim: 4 })
  const cache = model.newCache(1)
  noGrad(() => model.nextLogits(randint(0, 5, [1, 3]), cache))
  expect(() => noGrad(() => model.nextLogits(randint(0, 5, [1, 2]), cache))).toThrow(
    /T ≤ blockSize = 4, got \[1, 2\] after 3 tokens/,
  )
})
