import { manualSeed, noGrad, randint, randn, type Tensor, tensor } from '@tilegrad/core'
import {
  type AttentionBlocks,
  attentionKinds,
  fixedBlocks,
  GPT,
  LinearAttention,
  MultiHeadAttention,
  type MultiHeadAttentionOptions,
  TransformerBlock,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, gradcheckModule, values } from './helpers.ts'

beforeEach(() => manualSeed(41))

// float64, the same sums over keys in another order.
const CLOSE = { atol: 1e-12, rtol: 1e-10 }
const size = 16

const layerOf = (options: MultiHeadAttentionOptions): MultiHeadAttention =>
  new MultiHeadAttention(16, 4, { isCausal: true, ...options }).to('float64')

/** bool (T, T): what a rule lets each query see. */
const dense = (t: number, sees: (query: number, key: number) => boolean): Tensor => {
  const flags = Array.from({ length: t * t }, (_, i) => Number(sees(Math.floor(i / t), i % t)))
  return tensor(Uint8Array.from(flags), [t, t], { dtype: 'bool' })
}
const byBlocks = (t: number, visible: (q: number, k: number) => boolean): Tensor =>
  dense(t, (i, j) => visible(Math.floor(i / size), Math.floor(j / size)))

describe('attention by blocks', () => {
  const sparse = (q: number, k: number): boolean => k === q || k === 0 || (q * 3 + k) % 4 === 1

  it.each([
    [1, true],
    [63, true],
    [127, true],
    [127, false],
  ])('is attention under the mask of all their elements: T = %d, causal %s', (t, isCausal) => {
    const layer = layerOf({ isCausal, blocks: { blockSize: size, visible: sparse } })
    const plain = layerOf({ isCausal })
    plain.loadStateDict(layer.stateDict())
    const x = randn([2, t, 16], { dtype: 'float64' })
    // The second call takes the mask that the first one made.
    for (const input of [x, x.mul(0.5)])
      expectClose(layer.forward(input), plain.forward(input, { attnMask: byBlocks(t, sparse) }), CLOSE)
  })

  it('has gradients that agree with finite differences', () => {
    const blocks = { blockSize: size, visible: sparse }
    const layer = new MultiHeadAttention(8, 2, { isCausal: true, blocks }).to('float64')
    gradcheckModule(layer, [randn([1, 36, 8])], (m, x) => m.forward(x))
  })

  it('chosen from the input: all of them are softmax attention, one is its own block', () => {
    const x = randn([2, 70, 16], { dtype: 'float64' })
    for (const [keep, attnMask] of [
      [5, null],
      [1, byBlocks(70, (q, k) => q === k)],
    ] as const) {
      const layer = layerOf({ blocks: { blockSize: size, keep } })
      const plain = layerOf({})
      plain.loadStateDict(layer.stateDict())
      expectClose(layer.forward(x), plain.forward(x, { attnMask }), CLOSE)
      expect(layer.newCache(2, 70)).toBeNull()
    }
  })

  it('says what cannot be', () => {
    const make = (blocks: AttentionBlocks) => () => new MultiHeadAttention(16, 4, { blocks })
    expect(make({ blockSize: 24, keep: 2 })).toThrow(/blockSize must be a multiple of 16, got 24/)
    expect(make({ keep: 0 })).toThrow(/keep must be a positive integer, got 0/)
    expect(() => fixedBlocks(0)).toThrow(/stride must be a positive integer, got 0/)
  })
})

it('sees global tokens past a window', () => {
  const t = 30
  const layer = layerOf({ window: 4, globalTokens: 3 })
  const plain = layerOf({})
  plain.loadStateDict(layer.stateDict())
  const x = randn([2, t, 16], { dtype: 'float64' })
  const attnMask = dense(t, (i, j) => j > i - 4 || j < 3 || i < 3)
  expectClose(layer.forward(x), plain.forward(x, { attnMask }), CLOSE)
  expect(() => layerOf({ globalTokens: 3 })).toThrow(/globalTokens are exceptions from a window; give one/)
})

describe('decoding token by token gives the logits of the whole sequence', () => {
  it.each([
    ['blocks', { blocks: { blockSize: size, visible: (q: number, k: number) => (q + k) % 2 === 0 } }],
    ['fixed blocks and a window', { window: 20, blocks: { blockSize: size, visible: fixedBlocks(2) } }],
    ['a window with global tokens', { window: 5, globalTokens: 2 }],
    ['alibi', { attention: 'alibi' as const }],
    ['alibi and a window', { attention: 'alibi' as const, window: 7 }],
  ])('%s', (_, options) => {
    const model = new GPT({
      vocabSize: 11,
      blockSize: 60,
      numLayers: 2,
      numHeads: 2,
      embedDim: 16,
      ...options,
    }).to('float64')
    const tokens = randint(0, 11, [2, 60])
    noGrad(() => {
      const caches = model.newCache(2)
      const whole = model.forward(tokens).logits
      // A prompt at once, then one by one.
      expectClose(model.nextLogits(tokens.narrow(1, 0, 21), caches), whole.select(1, 20), CLOSE)
      for (let t = 21; t < 60; t++)
        expectClose(model.nextLogits(tokens.narrow(1, t, 1), caches), whole.select(1, t), CLOSE)
    })
  })
})

describe.each(attentionKinds)('%s', (attention) => {
  it('trains and generates in a GPT, and sees nothing of what comes', async () => {
    const blocks =
      attention === 'blocks'
        ? { blocks: { blockSize: size, visible: fixedBlocks(2) } }
        : attention === 'dynamic'
          ? { blocks: { blockSize: size, keep: 2 } }
          : {}
    const model = new GPT({
      vocabSize: 11,
      blockSize: 48,
      numLayers: 1,
      numHeads: 2,
      embedDim: 16,
      attention,
      ...blocks,
    })
    const tokens = randint(0, 11, [2, 48])
    model.forward(tokens, tokens).loss.backward()
    for (const p of model.parameters()) expect(values(p.grad).every(Number.isFinite)).toBe(true)
    const start = tokens.narrow(1, 0, 40)
    const options = { maxNewTokens: 6, temperature: 0 }
    const cached = values(await model.generate(start, options).tensor())
    expect(cached).toEqual(values(await model.generate(start, { ...options, useCache: false }).tensor()))
    // Blocks chosen from the input depend on all queries of a block, which end with the sequence.
    const seen = attention === 'dynamic' ? 32 : 40
    const [whole, part] = [model.forward(tokens), model.forward(tokens.narrow(1, 0, seen))]
    // float32: shorter sequences are summed in other chunks.
    expectClose(whole.logits.narrow(1, 0, seen), part.logits, { atol: 1e-5, rtol: 1e-5 })
  })
})

it('names have defaults, which options change', () => {
  const attn = (attention: (typeof attentionKinds)[number], options = {}): string =>
    new TransformerBlock(16, 4, { attention, isCausal: true, ...options }).attn.extraRepr()
  expect(attn('window')).toBe('embedDim=16, numHeads=4, isCausal=true, window=256')
  expect(attn('window', { window: 8, globalTokens: 1 })).toBe(
    'embedDim=16, numHeads=4, isCausal=true, window=8, globalTokens=1',
  )
  expect(attn('alibi')).toBe('embedDim=16, numHeads=4, isCausal=true, alibi=true')
  expect(attn('blocks')).toBe('embedDim=16, numHeads=4, isCausal=true, blocks=true')
  expect(attn('dynamic')).toBe('embedDim=16, numHeads=4, isCausal=true, blocks=chosen')
  const config = { vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 }
  expect(new GPT({ ...config, attention: 'alibi' }).wpe).toBeNull()
})

it('says which names there are, and what they do not take', () => {
  expect(() => new TransformerBlock(8, 2, { attention: 'fast' as 'gla' })).toThrow(
    /attention 'fast' is not one of softmax, window, alibi, blocks, dynamic, linear, retention, gla, gatedDelta/,
  )
  expect(() => new TransformerBlock(8, 2, { attention: 'linear', blocks: { keep: 2 } })).toThrow(
    /linear attention takes no window, globalTokens, blocks, alibi or scale/,
  )
  const attention = (dim: number, heads: number) => new LinearAttention(dim, heads)
  expect(new TransformerBlock(8, 2, { attention }).attn).toBeInstanceOf(LinearAttention)
})
