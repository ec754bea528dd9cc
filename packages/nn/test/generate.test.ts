import {
  getRngState,
  manualSeed,
  memory,
  rand,
  scope,
  type Tensor,
  tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import { type GenerateOptions, GPT, type GPTConfig, generate, type LanguageModel } from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { values } from './helpers.ts'

const tiny: GPTConfig = { vocabSize: 7, blockSize: 6, numLayers: 2, numHeads: 2, embedDim: 8 }
const int = { dtype: 'int32' } as const
const start = tensor(
  [
    [1, 2],
    [3, 4],
  ],
  int,
)

beforeEach(() => manualSeed(17))

/** Initial weights are small; larger ones make choices clear. */
function sharp(config: Partial<GPTConfig> = {}, factor = 20): GPT {
  const model = new GPT({ ...tiny, ...config })
  for (const p of model.parameters()) p.detach().mul_(factor)
  return model
}

const all = async (model: LanguageModel, options: GenerateOptions, idx = start): Promise<number[]> =>
  values(await generate(model, idx, options).tensor())

/** A model whose next token always has the same logits. */
const constant = (logits: readonly number[]): LanguageModel => ({
  maxLength: Infinity,
  modules: () => [],
  newCache: () => null,
  nextLogits: (idx) => tensor([...logits]).expand([idx.shape[0], logits.length]),
})

describe('token by token, recorded and replayed', () => {
  it.each([
    {},
    { rope: true, numKvHeads: 1, qkNorm: true },
    { attention: 'linear' },
    { attention: 'gatedDelta' },
    { attention: 'window', window: 9 },
  ] as Partial<GPTConfig>[])('%j, over three sizes of the rows in sight', async (config) => {
    const model = sharp({ blockSize: 150, numLayers: 1, ...config }, 8)
    const options = { maxNewTokens: 145, temperature: 0.7, topK: 5, seed: 3, stop: [6] }
    expect(await all(model, options)).toEqual(await all(model, { ...options, useCache: false }))
  })
})

describe('greedily', () => {
  /** The likeliest token of the last blockSize tokens, over and over. */
  const plain = (model: GPT, count: number): number[] => {
    let expected = [
      [1, 2],
      [3, 4],
    ]
    for (let n = 0; n < count; n++) {
      const seen = expected.map((row) => row.slice(-model.maxLength))
      const last = model.forward(tensor(seen, int)).logits.select(1, seen[0].length - 1)
      const next = values(last.argmax(1))
      expected = expected.map((row, b) => [...row, next[b]])
    }
    return expected.flat()
  }

  it.each([
    ['learned positions, beyond their end', {}],
    ['linear attention, beyond the end', { attention: 'linear' }],
    ['rope', { rope: true }],
    ['ALiBi, a window', { alibi: true, window: 3 }],
  ] as const)('takes the likeliest token, with and without a cache: %s', async (_, config) => {
    const model = sharp(config)
    const expected = plain(model, 12)
    const options = { maxNewTokens: 12, temperature: 0 }
    expect(await all(model, options)).toEqual(expected)
    expect(await all(model, { ...options, useCache: false })).toEqual(expected)
    // The likeliest token is all that topK 1, a tiny topP or minP 1 leave.
    for (const only of [{ topK: 1 }, { topP: 1e-6 }, { minP: 1 }])
      expect(await all(model, { maxNewTokens: 12, ...only })).toEqual(expected)
    expect(new Set(expected).size).toBeGreaterThan(2)
  })

  it('takes a prompt that is longer than its positions', async () => {
    const model = sharp()
    const prompt = tensor([[1, 2, 3, 4, 5, 6, 0, 2]], int)
    const out = await all(model, { maxNewTokens: 3, temperature: 0 }, prompt)
    const cropped = await all(model, { maxNewTokens: 3, temperature: 0 }, prompt.narrow(1, 2, 6))
    expect(out).toEqual([1, 2, ...cropped])
  })
})

describe('sampling', () => {
  const logits = [2, 1.5, 1, 0, -1, -3]
  const weights = (temperature: number): number[] => {
    const w = logits.map((l) => Math.exp(l / temperature))
    const total = w.reduce((a, b) => a + b)
    return w.map((v) => v / total)
  }

  // Probabilities at temperature 1: 0.451, 0.274, 0.166, 0.061, 0.022, 0.003, cut by hand.
  it.each<[Partial<GenerateOptions>, number]>([
    [{}, 6],
    [{ temperature: 0.5 }, 6],
    [{ temperature: 2, topK: 3 }, 3],
    [{ topK: 100 }, 6],
    [{ topP: 0.3 }, 1],
    [{ topP: 0.5 }, 2],
    [{ topP: 0.8 }, 3],
    [{ topP: 0.95 }, 4],
    // Of the two likeliest, 0.622 and 0.378.
    [{ topK: 2, topP: 0.6 }, 1],
    [{ topK: 2, topP: 0.7 }, 2],
    // At least 0.2, and 0.1, times 0.451.
    [{ minP: 0.2 }, 3],
    [{ minP: 0.1 }, 4],
    [{ temperature: 4, minP: 0.5 }, 4],
    [{ topK: 5, topP: 0.99, minP: 0.2 }, 3],
  ])('%o draws from the softmax of the %d likeliest tokens', async (options, kept) => {
    const count = 6000
    const prompt = zeros([count, 1], int)
    const out = await generate(constant(logits), prompt, { maxNewTokens: 1, ...options }).tensor()
    const drawn = values(out.select(1, 1))
    const p = weights(options.temperature ?? 1).map((w, i) => (i < kept ? w : 0))
    const total = p.reduce((a, b) => a + b)
    p.forEach((w, token) => {
      const expected = w / total
      const share = drawn.filter((t) => t === token).length / count
      // A proportion of 6000 has a deviation of √(p(1−p)/6000); four of them, and none where p is 0 or 1.
      expect(Math.abs(share - expected)).toBeLessThanOrEqual(
        4 * Math.sqrt((expected * (1 - expected)) / count),
      )
    })
  })

  it('follows the global seed, or its own without touching that', async () => {
    const model = sharp({}, 6)
    const draw = (options: Partial<GenerateOptions> = {}): Promise<number[]> =>
      all(model, { maxNewTokens: 9, ...options })
    const seeded = async (seed: number): Promise<number[]> => {
      manualSeed(seed)
      return draw()
    }
    expect(await seeded(1)).toEqual(await seeded(1))
    expect(await seeded(1)).not.toEqual(await seeded(2))
    const before = getRngState()
    const own = await draw({ seed: 5 })
    expect(getRngState()).toEqual(before)
    manualSeed(99)
    rand([3])
    expect(await draw({ seed: 5 })).toEqual(own)
    expect(await draw({ seed: 6 })).not.toEqual(own)
    // Interleaved with other draws, token by token.
    const streamed: number[][] = []
    for await (const column of generate(model, start, { maxNewTokens: 9, seed: 5 })) {
      rand([1])
      streamed.push([...column])
    }
    expect([0, 1].flatMap((b) => [...values(start.select(0, b)), ...streamed.map((c) => c[b])])).toEqual(own)
  })
})

describe('stop tokens', () => {
  /** Sequence b counts on from its last token, so that stops come at known places. */
  const counting: LanguageModel = {
    maxLength: Infinity,
    modules: () => [],
    newCache: () => null,
    nextLogits: (idx) =>
      scope(() => {
        const last = values(idx.select(1, -1))
        return tensor(last.map((token) => Array.from({ length: 12 }, (_, i) => (i === token + 1 ? 9 : 0))))
      }),
  }
  const from = tensor([[3], [0], [5]], int)

  it('end a sequence, which repeats its own until the others end', async () => {
    const options = { maxNewTokens: 8, temperature: 0, stop: [5, 7] }
    const out = await generate(counting, from, options).tensor()
    expect(await out.toArray()).toEqual([
      [3, 4, 5, 5, 5, 5],
      [0, 1, 2, 3, 4, 5],
      // The 5 of the prompt ends nothing.
      [5, 6, 7, 7, 7, 7],
    ])
    const columns: number[][] = []
    for await (const column of generate(counting, from, options)) columns.push([...column])
    expect(columns).toEqual([
      [4, 1, 6],
      [5, 2, 7],
      [5, 3, 7],
      [5, 4, 7],
      [5, 5, 7],
    ])
  })

  it('need not come', async () => {
    const out = await generate(counting, from, { maxNewTokens: 2, temperature: 0, stop: [11] }).tensor()
    expect(await out.toArray()).toEqual([
      [3, 4, 5],
      [0, 1, 2],
      [5, 6, 7],
    ])
  })
})

describe('streaming', () => {
  it('yields each token once it is known, and can be left', async () => {
    const model = sharp()
    const whole = await generate(model, start, { maxNewTokens: 5, temperature: 0 }).tensor()
    await collected()
    const before = memory()
    const generation = model.generate(start, { maxNewTokens: 5, temperature: 0 })
    let n = 0
    for await (const column of generation) {
      expect(column).toBeInstanceOf(Int32Array)
      expect([...column]).toEqual(values(whole.select(1, 2 + n)))
      if (++n === 3) break
    }
    expect(n).toBe(3)
    // Caches are freed by leaving, too; and the same may be asked again.
    expect(memory().bytes).toBe(before.bytes)
    expect(values(await generation.tensor())).toEqual(values(whole))
  })

  it('runs on for ever with a window, in flat memory', async () => {
    const model = sharp({ rope: true, window: 4 }, 6)
    await collected()
    let [n, bytes, tensors] = [0, 0, 0]
    for await (const column of model.generate(start, { maxNewTokens: Infinity, seed: 3, topP: 0.9 })) {
      expect(column.length).toBe(2)
      if (++n === 20) ({ bytes, tensors } = memory())
      if (n > 20 && n % 50 === 0) expect([memory().bytes, memory().tensors]).toEqual([bytes, tensors])
      if (n === 320) break
    }
    await expect(model.generate(start, { maxNewTokens: Infinity }).tensor()).rejects.toThrow(/needs an end/)
    const grows = sharp({ rope: true }).generate(start, { maxNewTokens: Infinity })
    await expect(grows[Symbol.asyncIterator]().next()).rejects.toThrow(/maxLength must be finite/)
  })

  it('runs on with learned positions, computing their last blockSize tokens, in flat memory', async () => {
    const model = sharp({}, 6)
    await collected()
    let [n, bytes, tensors] = [0, 0, 0]
    for await (const _ of model.generate(start, { maxNewTokens: 60 })) {
      if (++n === 10) ({ bytes, tensors } = memory())
      if (n > 10) expect([memory().bytes, memory().tensors]).toEqual([bytes, tensors])
    }
    expect(n).toBe(60)
  })
})

it('runs without dropout, restores each module’s mode, records nothing and leaves no temporaries', async () => {
  const model = new GPT({ ...tiny, dropout: 0.5 })
  model.h[0].eval()
  await collected()
  const before = memory().tensors
  const draw = (): Promise<Tensor> => model.generate(start, { maxNewTokens: 7, temperature: 0 }).tensor()
  const [a, b] = [await draw(), await draw()]
  expect(memory().tensors - before).toBe(2)
  expect(values(a)).toEqual(values(b))
  expect(a.requiresGrad).toBe(false)
  const modes = (): boolean[] => [model, model.drop, model.h[0], model.h[1]].map(({ training }) => training)
  expect(modes()).toEqual([true, true, false, true])
  for await (const _ of model.generate(start, { maxNewTokens: 3 }))
    expect(modes()).toEqual([true, true, false, true])
  expect(start.disposed).toBe(false)
})

it('may be asked for nothing, and says what does not fit', async () => {
  const model = new GPT(tiny)
  const same = await model.generate(start, { maxNewTokens: 0 }).tensor()
  expect(same).not.toBe(start)
  expect(values(same)).toEqual(values(start))
  const bad: [Partial<GenerateOptions>, RegExp][] = [
    [{ maxNewTokens: -1 }, /maxNewTokens must be a whole number or Infinity, got -1/],
    [{ temperature: -1 }, /temperature must be ≥ 0 and finite, got -1/],
    [{ temperature: Infinity }, /temperature must be ≥ 0 and finite, got Infinity/],
    [{ temperature: Number.NaN }, /temperature must be ≥ 0 and finite, got NaN/],
    [{ topK: 0 }, /topK must be a positive integer, got 0/],
    [{ topP: 0 }, /topP must lie within \(0, 1\], got 0/],
    [{ minP: 2 }, /minP must lie within \[0, 1\], got 2/],
    [{ stop: [0.5] }, /stop must list tokens, got 0.5/],
  ]
  for (const [options, message] of bad)
    expect(() => model.generate(start, { maxNewTokens: 1, ...options })).toThrow(message)
  expect(() => model.generate(zeros([1, 0], int), { maxNewTokens: 1 })).toThrow(
    /at least one token, got \[1, 0\]/,
  )
})

describe('logits at the limits', () => {
  it.each([1e-30, 1e-38, 1e-40, 1e-45, Number.MIN_VALUE])(
    'a temperature of %d is as good as 0',
    async (temperature) => {
      const model = sharp()
      const greedy = await all(model, { maxNewTokens: 4, temperature: 0 })
      for (const more of [{}, { topK: 3 }, { topP: 0.9 }, { minP: 0.1 }])
        expect(await all(model, { maxNewTokens: 4, temperature, seed: 3, ...more })).toEqual(greedy)
      // Huge logits of either sign leave the range of float32 as well when they are divided.
      for (const sign of [1, -1])
        expect(await all(constant([sign * 3e38, sign * 2e38]), { maxNewTokens: 1, temperature })).toEqual(
          sign > 0 ? [1, 2, 0, 3, 4, 0] : [1, 2, 1, 3, 4, 1],
        )
    },
  )

  it.each([
    ['NaN', [1, Number.NaN, 2]],
    ['∞', [1, 2, Infinity]],
    ['nothing but −∞', [-Infinity, -Infinity, -Infinity]],
  ])('%s is an error, whatever the options', async (_, logits) => {
    const model = constant(logits)
    const kinds = [{ temperature: 0 }, {}, { temperature: 1e-40 }, { topK: 2 }, { topP: 0.5 }, { minP: 0.1 }]
    for (const options of kinds) {
      await expect(all(model, { maxNewTokens: 2, ...options })).rejects.toThrow(
        'generate: the logits are NaN or infinite',
      )
      const tokens = generate(model, start, { maxNewTokens: 2, ...options })[Symbol.asyncIterator]()
      await expect(tokens.next()).rejects.toThrow(ValueError)
    }
    // −∞ excludes a token as long as there is another one.
    expect(await all(constant([-Infinity, 0, -Infinity]), { maxNewTokens: 1, seed: 1 })).toEqual([
      1, 2, 1, 3, 4, 1,
    ])
  })
})
