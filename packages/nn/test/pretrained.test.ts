import {
  manualSeed,
  noGrad,
  randint,
  ShapeError,
  type Tensor,
  TilegradError,
  tensor,
  UnsupportedOpError,
  ValueError,
  zeros,
} from '@tilegrad/core'
import {
  AdamW,
  GatedMLP,
  GPT,
  type GPTConfig,
  Llama,
  type LlamaConfig,
  loadPretrained,
  quantize,
  readSafetensors,
  type StoredTensor,
  savePretrained,
  saveSafetensors,
  writeSafetensors,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, gradcheckModule, values } from './helpers.ts'

const sizes = { vocabSize: 7, blockSize: 9, numLayers: 2, numHeads: 2, embedDim: 8 }
const gpt: GPTConfig = sizes
const llama: LlamaConfig = { ...sizes, numKvHeads: 1 }
const int = { dtype: 'int32' } as const
/** float32, two blocks deep, sums of at most 32 products. */
const CLOSE = { atol: 1e-6, rtol: 1e-5 }

beforeEach(() => manualSeed(5))

const logits = (model: GPT | Llama, idx: Tensor): Tensor => noGrad(() => model.eval().forward(idx).logits)
type Files = Map<string, StoredTensor>
const change = (weights: Uint8Array, edit: (files: Files) => void): Uint8Array => {
  const files = new Map(readSafetensors(weights).tensors)
  edit(files)
  return writeSafetensors(files)
}

describe('a saved model comes back', () => {
  it.each<[string, () => GPT | Llama]>([
    ['GPT', () => new GPT(gpt)],
    [
      'GPT with all there is',
      () =>
        new GPT({
          ...gpt,
          hiddenDim: 12,
          dropout: { attention: 0.1, residual: 0.2, embedding: 0.3 },
          activation: 'relu',
          normEps: 1e-3,
          scaleAttention: false,
          scaleByLayer: true,
          tieWeights: false,
          initStd: 0.1,
        }),
    ],
    ['Llama', () => new Llama(llama)],
    [
      'Llama with all there is',
      () =>
        new Llama({
          ...llama,
          headDim: 6,
          hiddenDim: 10,
          activation: 'gelu_tanh',
          normEps: 1e-3,
          attentionBias: true,
          mlpBias: true,
          dropout: 0.1,
          tieWeights: true,
          initStd: 0.1,
          rope: {
            base: 100,
            scaling: {
              type: 'llama3',
              factor: 4,
              lowFreqFactor: 1,
              highFreqFactor: 3,
              originalMaxPositions: 5,
            },
          },
        }),
    ],
    [
      'Llama with linear scaling',
      () => new Llama({ ...llama, rope: { scaling: { type: 'linear', factor: 2 } } }),
    ],
  ])('%s', async (_, make) => {
    const model = make()
    const { config, weights } = await savePretrained(model)
    // As it is after a file.
    const back = loadPretrained(JSON.parse(JSON.stringify(config)), weights)
    expect(back.constructor).toBe(model.constructor)
    const idx = randint(0, 7, [2, 6])
    expect(values(logits(back, idx))).toEqual(values(logits(model, idx)))
    expect(await savePretrained(back)).toEqual({ config, weights })
  })

  it('stores GPT-2 as Hugging Face does: (in, out), one name for a tied head', async () => {
    const { weights } = await savePretrained(new GPT(gpt))
    const { tensors, metadata } = readSafetensors(weights)
    expect(tensors.get('transformer.h.0.attn.c_attn.weight')?.shape).toEqual([8, 24])
    expect(tensors.has('lm_head.weight')).toBe(false)
    expect(metadata.get('format')).toBe('pt')
  })

  it('may come in parts', async () => {
    const model = new Llama(llama)
    const { config, weights } = await savePretrained(model)
    const names = [...readSafetensors(weights).tensors.keys()]
    const parts = [0, 1].map((part) =>
      change(weights, (files) => {
        for (const [i, name] of names.entries()) if (i % 2 !== part) files.delete(name)
      }),
    )
    const idx = randint(0, 7, [1, 4])
    expect(values(logits(loadPretrained(config, parts), idx))).toEqual(values(logits(model, idx)))
    expect(() => loadPretrained(config, parts.slice(1))).toThrow(/missing: /)
    expect(() => loadPretrained(config, [weights, weights])).toThrow(/is stored twice/)
  })
})

describe('what does not fit is named', () => {
  it('tensors', async () => {
    const { config, weights } = await savePretrained(new GPT({ ...gpt, tieWeights: false }))
    const name = 'transformer.h.1.mlp.c_fc.weight'
    const load = (edit: (files: Files) => void) => () => loadPretrained(config, change(weights, edit))
    const some: StoredTensor = { dtype: 'F32', shape: [1], bytes: new Uint8Array(4) }
    expect(load((files) => files.delete(name))).toThrow(/missing: h\.1\.mlp\.c_fc\.weight/)
    expect(load((files) => files.delete('lm_head.weight'))).toThrow(/missing: lm_head\.weight/)
    expect(load((files) => files.set('score.weight', some))).toThrow(/unexpected: score\.weight/)
    expect(load((files) => files.set(name, some))).toThrow(ShapeError)
    expect(load((files) => files.set(name, some))).toThrow(
      /h\.1\.mlp\.c_fc\.weight is \[1\], expected \[8, 32\]/,
    )
    const whole = { dtype: 'I32', shape: [8, 32], bytes: new Uint8Array(1024) } as const
    expect(load((files) => files.set(name, whole))).toThrow(/is I32, no floating dtype/)
  })

  it('a tied head that differs from the embedding', async () => {
    const { config, weights } = await savePretrained(new GPT({ ...gpt, tieWeights: false }))
    const tied = { ...config, tie_word_embeddings: true }
    expect(() => loadPretrained(tied, weights)).toThrow(/lm_head\.weight differs from wte\.weight/)
    const same = change(weights, (files) =>
      files.set('lm_head.weight', files.get('transformer.wte.weight') as StoredTensor),
    )
    expect(loadPretrained(tied, same).lm_head.weight.shape).toEqual([7, 8])
  })

  it.each<[object, RegExp]>([
    [{ model_type: 'bert' }, /model_type is "bert"; expected 'gpt2' or 'llama'/],
    [{ model_type: 'constructor' }, /model_type is "constructor"/],
    [{}, /model_type is undefined/],
    [{ model_type: 'gpt2', n_embd: '48' }, /n_embd is "48"; expected a number/],
    [{ model_type: 'gpt2', n_layer: 0 }, /n_layer is 0; expected a positive whole number/],
    [{ model_type: 'gpt2', n_layer: 1.5 }, /n_layer is 1\.5/],
    [
      { model_type: 'gpt2', activation_function: 'mish' },
      /activation_function is "mish"; expected one of gelu, /,
    ],
    [{ model_type: 'gpt2', activation_function: 'toString' }, /activation_function is "toString"/],
    [
      { model_type: 'gpt2', tie_word_embeddings: 'yes' },
      /tie_word_embeddings is "yes"; expected true or false/,
    ],
    [{ model_type: 'gpt2', add_cross_attention: true }, /add_cross_attention: true, which is not supported/],
    [{ model_type: 'llama', quantization_config: { bits: 4 } }, /quantization_config: \{"bits":4\}/],
    [{ model_type: 'llama', rope_scaling: 2 }, /rope_scaling is 2; expected an object/],
    [
      { model_type: 'llama', rope_scaling: { type: 'dynamic', factor: 2 } },
      /rope_type "dynamic" is not supported/,
    ],
    [{ model_type: 'llama', rope_parameters: { rope_type: 'linear' } }, /'linear' needs factor/],
    [{ model_type: 'llama', rope_parameters: { partial_rotary_factor: 0.5 } }, /partial_rotary_factor: 0\.5/],
  ])('%j', (config, message) => {
    expect(() => loadPretrained(config as Record<string, unknown>, new Uint8Array(0))).toThrow(message)
  })

  it('a config of more than the weights could hold, before a model is made of it', async () => {
    const weights = await saveSafetensors({ x: zeros([2]) })
    const small = { n_layer: 1, n_embd: 4, n_head: 1, vocab_size: 2, n_positions: 2 }
    for (const [name, value] of [
      ['n_layer', 1e8],
      ['n_embd', 1e6],
      ['vocab_size', 2 ** 50],
      ['n_inner', 2 ** 40],
    ] as const)
      expect(() => loadPretrained({ model_type: 'gpt2', ...small, [name]: value }, weights)).toThrow(
        /describes a model of at least \d[\d.e+]* numbers, but the weights hold 2;/,
      )
    expect(() => loadPretrained({ model_type: 'llama', num_hidden_layers: 1e9 }, weights)).toThrow(ValueError)
  })

  it('a config that is none, and one with too much in it, in few words', () => {
    const none = new Uint8Array(0)
    for (const config of [null, 'gpt2', [], 3])
      expect(() => loadPretrained(config as never, none)).toThrow(
        'the config must be the object in config.json',
      )
    const deep = JSON.parse(`${'['.repeat(1e5)}${']'.repeat(1e5)}`) as unknown
    for (const config of [
      { model_type: deep },
      { model_type: 'gpt2', n_layer: deep },
      { model_type: 'x'.repeat(1e6) },
      { model_type: 'llama', rope_scaling: { rope_type: deep } },
      { model_type: 'llama', rope_scaling: { rope_type: deep } },
      { model_type: 'gpt2', activation_function: '__proto__' },
    ]) {
      let error: unknown
      try {
        loadPretrained(config, none)
      } catch (caught) {
        error = caught
      }
      expect(error).toBeInstanceOf(TilegradError)
      expect((error as Error).message.length).toBeLessThan(300)
    }
  })

  it('a GPT that GPT-2 cannot express', async () => {
    for (const extra of [
      { bias: false },
      { numKvHeads: 1 },
      { attention: 'linear' },
      { rope: true },
      { window: 3 },
    ] as const) {
      await expect(savePretrained(new GPT({ ...gpt, ...extra }))).rejects.toThrow(UnsupportedOpError)
    }
    const odd = new Llama({ ...llama, rope: { interleaved: true } })
    await expect(savePretrained(odd)).rejects.toThrow(/turns halves of whole heads/)
  })

  it('a quantized model, whose weights would be missing', async () => {
    const wide = { ...sizes, embedDim: 32 }
    for (const model of [new GPT(wide), new Llama(wide)])
      await expect(savePretrained(quantize(model))).rejects.toThrow(
        /^savePretrained: .*weight is int32 and no parameter.*quantize what loadPretrained gives/,
      )
  })
})

describe('Llama', () => {
  it('gradients agree with finite differences', () => {
    const model = new Llama({
      vocabSize: 4,
      blockSize: 3,
      numLayers: 1,
      numHeads: 2,
      numKvHeads: 1,
      embedDim: 4,
      hiddenDim: 3,
    })
    const idx = tensor([[0, 2, 3]], int)
    const targets = tensor([[2, 3, 1]], int)
    gradcheckModule(model, [], (m) => m.forward(idx, targets).loss)
  })

  it('learns a batch by heart, with and without storing what is inside blocks', () => {
    const run = (gradientCheckpointing: boolean): number[] => {
      manualSeed(3)
      const model = new Llama({ ...llama, gradientCheckpointing })
      const optimizer = new AdamW(model.parameters(), { lr: 1e-2 })
      const tokens = randint(0, 7, [3, 9])
      return Array.from({ length: 60 }, () => {
        const { loss } = model.forward(tokens.narrow(1, 0, 8), tokens.narrow(1, 1, 8))
        loss.backward()
        optimizer.step()
        optimizer.zeroGrad()
        return loss.itemSync()
      })
    }
    const losses = run(false)
    // ln 7 = 1.95 at first.
    expect(losses[0]).toBeGreaterThan(1.5)
    expect(losses[59]).toBeLessThan(0.5)
    expect(run(true)).toEqual(losses)
  })

  it('refuses sizes that do not fit', () => {
    expect(() => new Llama({ ...llama, numKvHeads: 3 })).toThrow(ValueError)
    expect(() => new Llama({ ...llama, headDim: 3 })).toThrow(/even/)
    expect(() => new Llama({ ...llama, vocabSize: 0 })).toThrow(/vocabSize must be a positive integer, got 0/)
  })
})

it('GatedMLP is down(silu(gate(x)) · up(x)), plus a residual', () => {
  const mlp = new GatedMLP(6)
  const x = tensor([[1, -2, 3, 0.5, -0.25, 2]])
  const gate = mlp.gate_proj.forward(x)
  const y = mlp.down_proj.forward(gate.mul(gate.sigmoid()).mul(mlp.up_proj.forward(x)))
  expectClose(mlp.forward(x), y, CLOSE)
  expectClose(mlp.forward(x, { residual: x }), y.add(x), CLOSE)
  expect(mlp.gate_proj.outFeatures).toBe(16)
})

describe('padding on the left changes nothing', () => {
  const make = [
    ['GPT', () => new GPT(gpt)],
    ['GPT with rope', () => new GPT({ ...gpt, rope: true })],
    ['Llama', () => new Llama(llama)],
  ] as const
  it.each(make)('%s', async (_, build) => {
    const model = build()
    for (const p of model.parameters()) p.detach().mul_(10)
    const [short, long] = [
      [1, 2],
      [3, 4, 5, 6],
    ]
    const alone = async (prompt: number[], useCache: boolean): Promise<number[]> =>
      values(
        await model.generate(tensor([prompt], int), { maxNewTokens: 4, temperature: 0, useCache }).tensor(),
      )
    const both = tensor([[0, 0, ...short], long], int)
    const keyMask = both.ne(0)
    for (const useCache of [true, false]) {
      const options = { maxNewTokens: 4, temperature: 0, useCache, keyMask }
      const rows = values(await model.generate(both, options).tensor())
      expect(rows.slice(2, 8)).toEqual(await alone(short, useCache))
      expect(rows.slice(8)).toEqual(await alone(long, useCache))
    }
    expect(() => model.generate(both, { maxNewTokens: 1, keyMask: tensor([true]) })).toThrow(
      /generate: keyMask must be \(B, S\) = \[2, 4\], got \[1\]/,
    )
    expect(() => model.nextLogits(both, null, tensor([true]))).toThrow(
      /must be \(B, S\) = \[2, 4\], got \[1\]/,
    )
  })
})
