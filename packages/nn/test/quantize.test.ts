import {
  dequantize,
  GradError,
  manualSeed,
  memory,
  noGrad,
  randn,
  reference,
  ShapeError,
  scope,
  type Tensor,
  tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import {
  Embedding,
  GELU,
  GPT,
  Linear,
  Llama,
  loadSafetensors,
  type Module,
  MultiHeadAttention,
  QuantizedEmbedding,
  QuantizedLinear,
  quantize,
  Sequential,
  saveSafetensors,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, values } from './helpers.ts'

beforeEach(() => manualSeed(5))

const sizes = { vocabSize: 19, blockSize: 24, numLayers: 2, numHeads: 2, embedDim: 64 }
const int = { dtype: 'int32' } as const
const prompt = tensor([[3, 1, 4, 1, 5, 9]], int)

/** A GPT whose choices are clear. */
function sharp(more = {}): GPT {
  const model = new GPT({ ...sizes, ...more })
  for (const p of model.parameters()) p.detach().mul_(8)
  return model.eval()
}

/** The numbers of a layer of 8 bits. */
const numbersOf = ({ weight, scales, inFeatures }: QuantizedLinear): Tensor =>
  dequantize(weight, scales, inFeatures)

const only = (model: Sequential): QuantizedLinear => model.children()[0] as Module as QuantizedLinear

describe('the numbers', () => {
  it.each([
    [64, 64],
    [64, 16],
    [100, 32],
    [7, 64],
    [96, 64],
  ])('%i columns in blocks of %i are off by half a step at most', (columns, blockSize) => {
    const model = new Sequential(new Linear(columns, 11))
    const { weight } = model.children()[0] as Linear
    const before = values(weight)
    quantize(model, { blockSize })
    const layer = only(model)
    const size = (4 * layer.weight.shape[1]) / layer.scales.shape[1]
    expect(size).toBe(columns === 96 ? 32 : blockSize)
    const [after, scales] = [values(numbersOf(layer)), values(layer.scales)]
    for (let block = 0; block < scales.length; block++) {
      const row = Math.floor(block / layer.scales.shape[1])
      const from = (block % layer.scales.shape[1]) * size
      const at = Array.from({ length: Math.min(size, columns - from) }, (_, i) => row * columns + from + i)
      // The largest is 127 steps.
      expect(scales[block]).toBeCloseTo(Math.max(...at.map((i) => Math.abs(before[i]))) / 127, 9)
      for (const i of at)
        expect(Math.abs(after[i] - before[i])).toBeLessThanOrEqual(scales[block] * (0.5 + 1e-4))
    }
  })

  it('zeros stay zeros, and a block of them has no scale to divide by', () => {
    const model = new Sequential(new Linear(32, 2, { bias: false }))
    noGrad(() => (model.children()[0] as Linear).weight.copy_(zeros([2, 32])))
    quantize(model, { blockSize: 16 })
    expect(values(numbersOf(only(model)))).toEqual(Array(64).fill(0))
    expect(values(model.forward(randn([1, 32])) as Tensor)).toEqual([0, 0])
  })

  it('keeps 16 bits in scales, and gives the dtype of its input', () => {
    const model = new Sequential(new Linear(32, 3)).to('bfloat16')
    const want = values((model.children()[0] as Linear).weight.to('float32'))
    quantize(model)
    expect([only(model).scales.dtype, only(model).dtype]).toEqual(['bfloat16', 'bfloat16'])
    const got = values(numbersOf(only(model)).to('float32'))
    got.forEach((v, i) => {
      expect(Math.abs(v - want[i])).toBeLessThan(0.004)
    })
    expect((model.forward(randn([2, 32]).to('bfloat16')) as Tensor).dtype).toBe('bfloat16')
    expect((model.forward(randn([2, 32])) as Tensor).dtype).toBe('float32')
  })
})

describe('a model', () => {
  it('has other layers in the places of its Linear layers, and frees their weights', () => {
    const model = new Sequential(new Linear(64, 64), new GELU(), new Linear(64, 3))
    const weight = (model.children()[0] as Linear).weight
    const before = memory().bytes
    expect(quantize(model)).toBe(model)
    expect(weight.disposed).toBe(true)
    // 67 · 64 numbers of 4 bytes; of 1, and 67 scales.
    expect(before - memory().bytes).toBe(67 * (4 * 64 - 64 - 4))
    expect(String(model)).toContain(
      'QuantizedLinear(inFeatures=64, outFeatures=64, bias=true, bits=8, blockSize=64)',
    )
    expect(Object.keys(model.stateDict())).toEqual([
      ...['0.weight', '0.scales', '0.bias'],
      ...['2.weight', '2.scales', '2.bias'],
    ])
    model.dispose()
    expect(only(model).weight.disposed).toBe(true)
  })

  it('shares the table with a tied head, and leaves other embeddings', () => {
    const model = new GPT(sizes).eval()
    const want = values(noGrad(() => model.forward(prompt).logits))
    quantize(model)
    const { wte, wpe, lm_head } = model
    expect(wte).toBeInstanceOf(QuantizedEmbedding)
    expect(lm_head).toBeInstanceOf(QuantizedLinear)
    expect(wte.weight).toBe(lm_head.weight)
    expect(wpe).toBeInstanceOf(Embedding)
    const got = values(model.forward(prompt).logits)
    const scale = Math.max(...want.map(Math.abs))
    got.forEach((v, i) => {
      expect(Math.abs(v - want[i])).toBeLessThan(0.05 * scale)
    })
    expect(values(wte.forward([[2, 2]]).sub(wte.forward([2]))).every((v) => v === 0)).toBe(true)
    expectClose(
      wte.forward([4]),
      dequantize(wte.weight, (lm_head as QuantizedLinear).scales).narrow(0, 4, 1),
      {
        atol: 0,
        rtol: 0,
      },
    )
  })

  it.each([
    ['a GPT', () => sharp()],
    ['one with rope and grouped heads', () => sharp({ rope: true, numKvHeads: 1 })],
    [
      'a Llama',
      () => {
        const model = new Llama({ ...sizes, numKvHeads: 1 })
        for (const p of model.parameters()) p.detach().mul_(8)
        return model.eval()
      },
    ],
  ])('%s writes what it writes with the same numbers in 32 bits', async (_, make) => {
    manualSeed(9)
    const wide = make()
    manualSeed(9)
    const model = quantize(make())
    noGrad(() => {
      const layers = new Map(model.namedModules())
      for (const [name, layer] of wide.namedModules()) {
        const other = layers.get(name)
        if (layer instanceof Linear && other instanceof QuantizedLinear) layer.weight.copy_(numbersOf(other))
      }
    })
    const options = { maxNewTokens: 12, temperature: 0 }
    const [a, b] = [wide.generate(prompt, options), model.generate(prompt, options)]
    expect(values(await b.tensor())).toEqual(values(await a.tensor()))
    expect(new Set(values(await b.tensor())).size).toBeGreaterThan(6)
  })

  it('attends to a context with one projection for all', () => {
    const model = new Sequential(new MultiHeadAttention(32, 2))
    const layer = model.children()[0] as MultiHeadAttention
    const [x, context] = [randn([1, 3, 32]), randn([1, 5, 32])]
    const want = values(noGrad(() => layer.forward(x, { context })))
    quantize(model)
    const got = values(layer.forward(x, { context }))
    got.forEach((v, i) => {
      expect(Math.abs(v - want[i])).toBeLessThan(0.02)
    })
  })

  it('is saved as it is, and fits what was quantized alike', async () => {
    const model = quantize(sharp())
    const file = await saveSafetensors(model.stateDict())
    manualSeed(77)
    const other = quantize(sharp())
    expect(other.loadStateDict(loadSafetensors(file))).toEqual({ missing: [], unexpected: [] })
    expect(values(other.forward(prompt).logits)).toEqual(values(model.forward(prompt).logits))
    expect(() => sharp().loadStateDict(loadSafetensors(file))).toThrow(ShapeError)
  })

  it('moves to other devices and dtypes, tied as it was', () => {
    const model = quantize(sharp())
    const want = values(model.forward(prompt).logits)
    model.to(reference).to('float64')
    const head = model.lm_head as QuantizedLinear
    expect([head.weight.dtype, head.scales.dtype]).toEqual(['int32', 'float64'])
    expect(head.weight).toBe(model.wte.weight)
    const got = values(model.forward(prompt).logits)
    got.forEach((v, i) => {
      expect(Math.abs(v - want[i])).toBeLessThan(1e-3)
    })
  })

  it('leaves out what a filter leaves out', () => {
    const model = quantize(sharp(), { filter: (name) => name !== 'lm_head' })
    expect([model.lm_head.constructor, model.wte.constructor]).toEqual([Linear, Embedding])
    expect(model.h[0].mlp.c_fc).toBeInstanceOf(QuantizedLinear)
  })

  it('leaves a class of its own alone, and what shares its weight', () => {
    class Scaled extends Linear {
      override forward(x: Tensor): Tensor {
        return super.forward(x).mul(2)
      }
    }
    const scaled = new Scaled(16, 16, { bias: false })
    const model = new Sequential(new Linear(16, 16), scaled)
    ;(model.children()[0] as Linear).weight.dispose()
    ;(model.children()[0] as Linear).weight = scaled.weight
    quantize(model)
    expect(only(model)).toBeInstanceOf(QuantizedLinear)
    expect(model.children()[1]).toBe(scaled)
    expect(scaled.weight.disposed).toBe(false)
  })
})

describe('is refused', () => {
  it('a gradient', () => {
    const model = quantize(new Sequential(new Linear(16, 3)))
    expect(model.parameters().every((p) => !p.requiresGrad)).toBe(true)
    const x = randn([2, 16], { requiresGrad: true })
    expect(() => model.forward(x)).toThrow(GradError)
    expect(() => model.forward(x)).toThrow(/quantized_linear: .*noGrad\(\)/)
    expect((noGrad(() => model.forward(x)) as Tensor).shape).toEqual([2, 3])
    expect(() => only(model).resetParameters()).toThrow(ValueError)
  })

  it('what is no model, has nothing to quantize, or options out of range', () => {
    const model = new Sequential(new Linear(16, 3))
    expect(() => quantize(new Linear(16, 3))).toThrow(/is a layer/)
    expect(() => quantize(new Sequential(new GELU()))).toThrow(/no Linear layer/)
    expect(() => quantize(quantize(model))).toThrow(/no Linear layer/)
    const other = new Sequential(new Linear(16, 3))
    expect(() => quantize(other, { blockSize: 24 })).toThrow(ValueError)
    expect(() => quantize(other, { bits: 4 as 8 })).toThrow(/bits must be 8/)
    expect(() => quantize('model' as unknown as Module)).toThrow(ValueError)
    expect(other.children()[0]).toBeInstanceOf(Linear)
  })
})

it('leaves nothing behind but what it stores', () => {
  const model = sharp()
  const { tensors } = memory()
  const parameters = model.parameters().length
  quantize(model)
  const stored = new Set(Object.values(model.stateDict())).size
  expect(memory().tensors - tensors).toBe(stored - parameters)
  scope(() => {
    model.forward(prompt)
  })
  expect(memory().tensors - tensors).toBe(stored - parameters)
})
