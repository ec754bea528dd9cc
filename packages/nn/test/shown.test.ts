import assert from 'node:assert'
import { inspect } from 'node:util'
import { manualSeed, ones, randn, TilegradError, tensor, zeros } from '@tilegrad/core'
import { afterEach, describe, expect, test, vi } from 'vitest'
import * as typed from '../src/index.ts'
import {
  AdamW,
  decayGroups,
  GPT,
  KVCache,
  Linear,
  Module,
  parameter,
  Sequential,
  SGD,
  schedule,
} from '../src/index.ts'

// biome-ignore lint/suspicious/noExplicitAny: the library as plain JavaScript sees it
type Untyped = any
const nn: Record<string, Untyped> = typed

const sizes = { vocabSize: 11, blockSize: 8, numLayers: 3, numHeads: 2, embedDim: 16 }

afterEach(() => {
  vi.restoreAllMocks()
})

describe('what things are, as text', () => {
  test('a layer, with its sizes by name', () => {
    expect(String(new Linear(2, 16))).toBe('Linear(inFeatures=2, outFeatures=16, bias=true)')
    expect(String(new typed.Embedding(3, 4, { paddingIdx: 0 }))).toBe(
      'Embedding(numEmbeddings=3, embeddingDim=4, paddingIdx=0)',
    )
    expect(String(new typed.LayerNorm(4, { bias: false }))).toBe('LayerNorm([4], eps=0.00001, bias=false)')
    expect(String(new typed.Dropout(0.5))).toBe('Dropout(p=0.5)')
    expect(String(new typed.MultiHeadAttention(8, 2, { isCausal: true, window: 4 }))).toContain(
      'MultiHeadAttention(embedDim=8, numHeads=2, isCausal=true, window=4\n',
    )
  })

  test('a model, equal blocks once, and its parameters in console.log', () => {
    const model = new GPT(sizes)
    const text = inspect(model)
    expect(text).toContain('  (h.0-2): 3 × TransformerBlock(\n    (ln_1): LayerNorm([16], eps=0.00001)\n')
    expect(text.endsWith(`) with ${model.numParameters().toLocaleString('en')} parameters`)).toBe(true)
    model.wte.requiresGrad_(false)
    expect(inspect(model)).toContain(', 176 of them frozen')
    expect(inspect({ a: { b: { c: model } } })).toContain('[GPT]')
    expect(String(new Sequential(new Linear(1, 1), new Linear(1, 1)))).toBe(
      'Sequential(\n  (0-1): 2 × Linear(inFeatures=1, outFeatures=1, bias=true)\n)',
    )
  })

  test('an optimiser, with options and parameters', () => {
    const model = new Linear(2, 3)
    expect(inspect(new SGD(model.parameters(), { lr: 0.1 }))).toBe(
      'SGD (lr: 0.1, momentum: 0, dampening: 0, weightDecay: 0, nesterov: false, params: 2 tensors of 9 elements)',
    )
    expect(inspect(new AdamW(decayGroups(model, 0.1)))).toBe(
      'AdamW (\n' +
        '  group 0: lr: 0.001, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.1, amsgrad: false, maximize: false, cautious: false, params: 1 tensor of 6 elements\n' +
        '  group 1: lr: 0.001, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0, amsgrad: false, maximize: false, cautious: false, params: 1 tensor of 3 elements\n' +
        ')',
    )
  })

  test('schedules, caches and generations', () => {
    expect(inspect(schedule.warmupCosine({ lr: 1e-3, decaySteps: 10 }))).toBe(
      'schedule.warmupCosine({ lr: 0.001, decaySteps: 10 })',
    )
    expect(String(schedule.constant(1))).toBe('schedule.constant({ lr: 1 })')
    const cache = new KVCache({ batch: 1, numKvHeads: 2, headDim: 4, maxLength: 8 })
    cache.append(randn([1, 2, 5, 4]), randn([1, 2, 5, 4]))
    expect(inspect(cache)).toBe('KVCache(batch=1, length=5, maxLength=8)')
    expect(inspect(new GPT(sizes).generate(zeros([1, 2], { dtype: 'int32' }), { maxNewTokens: 3 }))).toBe(
      'Generation(3 tokens after [1, 2]: for await, or await tensor())',
    )
  })
})

describe('what walks objects', () => {
  test('JSON has names and shapes, not the weights', () => {
    const model = new GPT(sizes)
    const json = JSON.parse(JSON.stringify({ model, optimizer: new AdamW(model.parameters()) }))
    expect(json.model.module).toBe('GPT')
    expect(json.model.tensors['h.0.attn.c_attn.weight']).toEqual({ dtype: 'float32', shape: [48, 16] })
    expect(json.optimizer.paramGroups[0].lr).toBe(1e-3)
    expect(json.optimizer.paramGroups[0].params[0]).toEqual({ dtype: 'float32', shape: [11, 16] })
  })

  test('never takes two models or optimisers for one', () => {
    const [a, b] = [new Linear(2, 3), new Linear(2, 3)]
    expect(a).toEqual(a)
    expect(() => expect(a).toEqual(b)).toThrow()
    expect(() => assert.deepStrictEqual(a, b)).toThrow()
    expect(() => expect(new SGD(a.parameters())).toEqual(new SGD(b.parameters()))).toThrow()
  })
})

describe('parameters that would be lost', () => {
  test('in a Set, or in a Map under what is no text, are an error', () => {
    class Net extends Module {
      layers = new Map([[0, new Linear(2, 2)]])
      forward(): void {}
    }
    expect(() => new Net().parameters()).toThrow(
      /Net: layers is a Map with keys that are no texts, .* use an array, a plain object or a Map of texts/,
    )
    class Bag extends Module {
      held = { deep: new Set([parameter(zeros([1]))]) }
      names = new Map([[1, 'a']])
      forward(): void {}
    }
    expect(() => new Bag().stateDict()).toThrow(/Bag: held\.deep is a Set/)
    class Deep extends Module {
      blocks = new Map([['a', new Map([[{}, [{ layer: new Linear(2, 2) }]]])]])
      forward(): void {}
    }
    expect(() => new Deep().parameters()).toThrow(/Deep: blocks\.a is a Map with keys/)
  })

  test('that are plain tensors are told of once', () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
    class Net extends Module {
      weights = [ones([2], { requiresGrad: true })]
      frozen = ones([2])
      forward(): void {}
    }
    const net = new Net()
    expect(net.parameters()).toEqual([])
    net.stateDict()
    expect(warn.mock.calls).toEqual([
      [expect.stringMatching(/Net: weights\.0 requires a gradient but is no parameter/)],
    ])
  })

  test('in #private fields are told of at the first step', () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
    class Net extends Module {
      readonly #hidden = new Linear(2, 1, { bias: false })
      scale = parameter(ones([1]))
      forward(x: typed.StateDict[string]): typed.StateDict[string] {
        return this.#hidden.forward(x).mul(this.scale).sum()
      }
    }
    const net = new Net()
    const optimizer = new SGD(net.parameters())
    for (let step = 0; step < 3; step++) {
      net.forward(randn([3, 2])).backward()
      optimizer.step()
    }
    expect(warn.mock.calls).toEqual([
      [expect.stringMatching(/SGD: a parameter \[1, 2\].*#private fields are not found/)],
    ])
    class Empty extends Module {
      readonly #only = new Linear(2, 1)
      forward(): unknown {
        return this.#only
      }
    }
    expect(() => new SGD(new Empty().parameters())).toThrow(/got no parameters\..*not in private #fields/)
  })

  test('nothing is told of a model that is whole', () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
    manualSeed(1)
    const model = new GPT(sizes)
    const optimizer = new AdamW(decayGroups(model, 0.1))
    const { loss } = model.forward([[1, 2]], [[2, 3]])
    ;(loss as Untyped).backward()
    optimizer.step()
    expect(warn).not.toHaveBeenCalled()
  })
})

describe('wrong guesses get words', () => {
  const model = new GPT(sizes)
  const params = model.parameters()
  const idx = tensor([[1, 2]], { dtype: 'int32' })
  const x = randn([1, 2, 16])
  const stepped = (): Untyped => {
    const p = parameter(ones([2]))
    const optimizer = new SGD([p], { momentum: 0.9 })
    p.sum().backward()
    optimizer.step()
    return optimizer
  }
  const rate = (lr: Untyped): void => {
    const optimizer = stepped()
    optimizer.lr = lr
    optimizer.step()
  }
  test.each<[string, () => unknown, string | RegExp]>([
    [
      'learningRate',
      () => new nn.AdamW(params, { learningRate: 1 }),
      "AdamW: there is no option 'learningRate'; did you mean 'lr'?",
    ],
    [
      'weight_decay of a group',
      () => new nn.Adam([{ params, weight_decay: 0 }]),
      "did you mean 'weightDecay'?",
    ],
    ['momentums', () => new nn.SGD(params, { momentums: 1 }), "did you mean 'momentum'?"],
    ['a model for parameters', () => new nn.AdamW(model), 'pass model.parameters()'],
    [
      'names with parameters',
      () => new nn.SGD(model.namedParameters()),
      'pass model.parameters(), not namedParameters()',
    ],
    [
      'nothing to optimise',
      () => new nn.SGD(undefined),
      'takes an array of parameters, or of groups of them, got undefined',
    ],
    [
      'one beta',
      () => new nn.AdamW(params, { betas: 0.9 }),
      'AdamW: betas must lie within 0 ≤ β < 1, got 0.9; expected two',
    ],
    ['a list of one beta', () => new nn.Adam(params, { betas: [0.9] }), 'got [0.9]; expected two'],
    ['a rate as a text', () => new nn.AdamW(params, { lr: '0.1' }), "AdamW: lr must be ≥ 0, got '0.1'"],
    ['an array of layers', () => new nn.Sequential([model]), 'spread the array: new Sequential(...layers)'],
    [
      'a class for a layer',
      () => new nn.Sequential(nn.GELU),
      'layer 0 must be a module, got the function GELU; did you forget new GELU(…)?',
    ],
    [
      'a function for a layer',
      () => new nn.Sequential(new nn.GELU(), (y: Untyped) => y),
      'Sequential: layer 1 must be a module',
    ],
    ['a name for a layer', () => new nn.Sequential('gelu'), "got 'gelu'"],
    [
      'no size of a norm',
      () => new nn.LayerNorm(),
      'LayerNorm: normalizedShape is a size or an array of sizes, got undefined',
    ],
    [
      'an activation of an MLP',
      () => new nn.MLP(4, { activation: 'swish' }),
      "MLP: there is no activation 'swish'; did you mean 'silu'?",
    ],
    [
      'an activation of a GPT',
      () => new nn.GPT({ ...sizes, activation: 'gelu_new' }),
      "there is no activation 'gelu_new'",
    ],
    [
      'an optimiser to a schedule',
      () => nn.schedule.warmupCosine(new nn.AdamW(params)),
      'options are an object such as { lr: … }, got an object of class AdamW',
    ],
    [
      'eosTokenId',
      () => model.generate(idx, { maxNewTokens: 1, eosTokenId: 1 } as Untyped),
      "did you mean 'stop'?",
    ],
    [
      'numbers for a state dict',
      () => new nn.Linear(2, 1).loadStateDict({ weight: [[1, 2]], bias: [0] }),
      'loadStateDict: weight must be a tensor, got an array',
    ],
    [
      'a state dict through JSON',
      () => model.loadStateDict(JSON.parse(JSON.stringify(model.stateDict()))),
      'wte.weight must be a tensor, got a plain copy of a tensor [11, 16]; tensor(data, shape, { dtype }) makes it one again',
    ],
    [
      'no state of an optimiser',
      () => new nn.SGD(params).loadStateDict(),
      'SGD.loadStateDict: takes what stateDict() gave, got undefined',
    ],
    [
      'a state of an optimiser through JSON',
      () => stepped().loadStateDict(JSON.parse(JSON.stringify(stepped().stateDict()))),
      'SGD.loadStateDict: momentum of parameter 0 must be a tensor, got a plain copy of a tensor [2]',
    ],
    [
      'the mean by its name',
      () => nn.init.normal_(zeros([2, 2]), { mean: 0 }),
      'normal_: mean must be a number, got an object with mean',
    ],
    [
      'a bound by its name',
      () => nn.init.uniform_(zeros([2, 2]), { low: 0 }),
      'uniform_: low must be a number',
    ],
    [
      'a gain by its name',
      () => nn.init.orthogonal_(zeros([2, 2]), { gain: 2 }),
      'orthogonal_: factor must be a number',
    ],
    [
      'std by its name',
      () => nn.init.truncNormal_(zeros([2, 2]), 0, { std: 1 }),
      'truncNormal_: std must be a number',
    ],
    [
      'gain of Xavier',
      () => nn.init.xavierNormal_(zeros([2, 2]), { gain: 2 }),
      'xavierNormal_: factor must be a number',
    ],
    [
      'leaky_relu',
      () => nn.init.calculateGain('leaky_relu'),
      "calculateGain: nonlinearity must be 'linear' or 'sigmoid' or 'tanh' or 'relu' or 'leakyRelu' or 'selu', got",
    ],
    [
      'leaky_relu of Kaiming',
      () => nn.init.kaimingUniform_(zeros([2, 2]), { nonlinearity: 'leaky_relu' }),
      "got 'leaky_relu'",
    ],
    [
      'fan_in',
      () => nn.init.kaimingNormal_(zeros([2, 2]), { mode: 'fan_in' }),
      "kaimingNormal_: mode must be 'fanIn' or 'fanOut', got 'fan_in'",
    ],
    [
      'residuals of an MLP',
      () => new nn.MLP(4).forward(x, { residuals: x }),
      "MLP: there is no option 'residuals'; did you mean 'residual'?",
    ],
    ['no batch of a cache', () => new nn.StateCache({}), 'StateCache: batch must be a positive integer'],
    ['a schedule for a rate', () => rate(nn.schedule.constant(1)), 'SGD: lr must be ≥ 0, got '],
    ['a rate of no number', () => rate(Number.NaN), 'SGD: lr must be ≥ 0, got NaN'],
    ['no rate', () => rate(undefined), 'SGD: lr must be ≥ 0, got undefined'],
    [
      'dampening as a text',
      () => new nn.SGD(params, { dampening: '1' }),
      "SGD: dampening must be a number, got '1'",
    ],
    [
      'one token to stop at',
      () => model.generate(idx, { maxNewTokens: 1, stop: 3 } as Untyped),
      'generate: stop must list tokens, got 3',
    ],
    ['numbers to optimise', () => new nn.SGD([1]), 'got 1'],
    ['a model to clip', () => nn.clipGradNorm(model, 1), 'clipGradNorm: takes an array of parameters'],
    ['a number to decay', () => nn.decayGroups(3, 0), 'decayGroups: takes a module, got 3'],
    [
      'repetitionPenalty',
      () => model.generate(idx, { maxNewTokens: 1, repetitionPenalty: 1 } as Untyped),
      "generate: there is no option 'repetitionPenalty'; known: maxNewTokens",
    ],
    [
      'max_new_tokens',
      () => model.generate(idx, { max_new_tokens: 1 } as Untyped),
      "did you mean 'maxNewTokens'?",
    ],
    [
      'no model to generate',
      () => nn.generate(3, idx, { maxNewTokens: 1 }),
      'generate: takes a language model first, got 3',
    ],
    [
      'bias by place',
      () => new nn.Linear(2, 3, false),
      'Linear: options are an object such as { bias: … }, got false',
    ],
    ['a size as a text', () => new nn.Linear('2', 3), "inFeatures must be a positive integer, got '2'"],
    ['nLayer', () => new nn.GPT({ ...sizes, nLayer: 3 }), "did you mean 'numLayers'?"],
    ['no configuration', () => new nn.GPT(), 'got undefined'],
    [
      'epsilon',
      () => new nn.LayerNorm(3, { epsilon: 1 }),
      "LayerNorm: there is no option 'epsilon'; did you mean 'eps'?",
    ],
    ['epsilon of RMSNorm', () => new nn.RMSNorm(3, { epsilon: 1 }), "did you mean 'eps'?"],
    ['elementwise_affine', () => new nn.GroupNorm(1, 3, { afine: true }), "did you mean 'affine'?"],
    ['padding_idx', () => new nn.Embedding(3, 3, { padding_idx: 1 }), "did you mean 'paddingIdx'?"],
    ['dropout by name', () => new nn.Dropout({ p: 0.5 }), 'got an object with p'],
    ['causal', () => new nn.MultiHeadAttention(16, 4, { causal: true }), "did you mean 'isCausal'?"],
    [
      'mask of attention',
      () => new nn.MultiHeadAttention(16, 4).forward(x, { mask: 1 }),
      "did you mean 'attnMask'?",
    ],
    ['decay of retention', () => new nn.Retention(16, 4, { decay: [1] }), "did you mean 'decays'?"],
    [
      'base of linear attention',
      () => new nn.LinearAttention(16, 4, { feature_map: 'elu' }),
      "did you mean 'featureMap'?",
    ],
    [
      'theta of rope',
      () => new nn.MultiHeadAttention(16, 4, { rope: { thetas: 1 } }),
      "there is no option 'thetas'",
    ],
    ['drop of a block', () => new nn.TransformerBlock(16, 4, { drop: 1 }), "did you mean 'dropout'?"],
    ['hidden of an MLP', () => new nn.MLP(4, { hidden: 3 }), "did you mean 'hiddenDim'?"],
    [
      'rates of a dropout',
      () => new nn.GPT({ ...sizes, dropout: { attn: 0.1 } }),
      "dropout: there is no option 'attn'; did you mean 'attention'?",
    ],
    ['vocab of Llama', () => new nn.Llama({ ...sizes, vocab: 3 }), "did you mean 'vocabSize'?"],
    ['heads of a cache', () => new nn.KVCache({ batch: 1, heads: 2 }), "did you mean 'numKvHeads'?"],
    [
      'steps of a schedule',
      () => nn.schedule.warmupCosine({ lr: 1, decay_steps: 3 }),
      "did you mean 'decaySteps'?",
    ],
    ['no options of a schedule', () => nn.schedule.linear(), 'schedule.linear: options are an object'],
    [
      'the name of a file',
      () => nn.loadSafetensors('x.safetensors'),
      'read the file first, as await readFile(path)',
    ],
    [
      'nothing to load',
      () => nn.loadSafetensors(undefined),
      'safetensors: takes the bytes of a file, got undefined',
    ],
    [
      'a device of a file',
      () => nn.loadSafetensors(new Uint8Array(8), { devices: 1 }),
      "did you mean 'device'?",
    ],
    [
      'a module for its state',
      () => model.loadStateDict(model as Untyped),
      'loadStateDict: takes tensors by name',
    ],
    [
      'requires_grad of a parameter',
      () => nn.parameter(zeros([1]), { requires_grad: false }),
      "did you mean 'requiresGrad'?",
    ],
    [
      'an array as parameter',
      () => nn.parameter([1]),
      'parameter: takes a tensor, got an array [1]; make it one with tensor(…)',
    ],
    ['a number to a layer', () => new nn.Linear(2, 3).forward(5), 'linear: takes a tensor, got 5'],
    ['a promise to a layer', () => new nn.Linear(2, 3).forward(Promise.resolve()), 'did you forget await?'],
    ['a text for tokens', () => model.forward('text' as Untyped), "GPT: takes a tensor, got 'text'"],
  ])('%s', (_, f, message) => {
    expect(f).toThrow(message)
    expect(f).toThrow(TilegradError)
  })

  test('arrays and buffers are taken where they are plain', async () => {
    expect(new nn.Linear(2, 3).forward([[1, 2]]).shape).toEqual([1, 3])
    expect(new nn.Embedding(5, 2).forward([[1, 2]]).shape).toEqual([1, 2, 2])
    expect((await model.generate([[1, 2]] as Untyped, { maxNewTokens: 2 }).tensor()).shape).toEqual([1, 4])
    const bytes = await typed.saveSafetensors({ a: tensor([1.5]) })
    const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
    for (const file of [buffer, new DataView(buffer as ArrayBuffer), Buffer.from(bytes)])
      expect(Array.from((typed.loadSafetensors(file as Untyped).a as Untyped).dataSync())).toEqual([1.5])
    expect(`${typed.loadSafetensors(bytes)}`).toBe('StateDict(1 tensors: a)')
    expect('toString' in typed.loadSafetensors(bytes)).toBe(false)
    await expect(typed.saveSafetensors(model as Untyped)).rejects.toThrow(/takes tensors by name/)
    await expect(typed.saveSafetensors({ a: [1] as Untyped })).rejects.toThrow(
      /'a': takes a tensor, got an array/,
    )
  })
})
