/** Models in 16 bits: what `Module.to` makes of them, and that they compute and generate what they do in float32, rounded. */
import { manualSeed, noGrad, randint, randn, scope, type Tensor, tensor, zeros } from '@tilegrad/core'
import {
  AdamW,
  attentionKinds,
  buffer,
  GPT,
  generate,
  type LanguageModel,
  Linear,
  Llama,
  loadSafetensors,
  Module,
  SGD,
  StateCache,
  saveSafetensors,
} from '@tilegrad/nn'
import { describe, expect, test } from 'vitest'
import { values } from './helpers.ts'

const sizes = { vocabSize: 31, blockSize: 16, embedDim: 32, numLayers: 2, numHeads: 2 }
const models: Record<string, () => GPT | Llama> = {
  ...Object.fromEntries(
    attentionKinds.map((attention) => [attention, () => new GPT({ ...sizes, attention })]),
  ),
  Llama: () => new Llama(sizes),
}

describe.each(['bfloat16', 'float16'] as const)('in %s', (dtype) => {
  const made = (make: () => GPT | Llama): GPT | Llama => {
    manualSeed(2)
    return make().eval()
  }

  test.each(Object.entries(models))('%s computes and generates', async (_, make) => {
    const [exact, half] = [made(make), made(make).to(dtype)]
    const idx = tensor(
      [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
      ],
      { dtype: 'int32' },
    )
    const [want, got] = noGrad(() => [exact.forward(idx).logits, half.forward(idx).logits])
    expect(got.dtype).toBe(dtype)
    // Logits of 0.3 at most, after some ten roundings of 2⁻⁹ or 2⁻¹².
    const off = got.to('float32').sub(want).abs().amax().itemSync()
    expect(off).toBeLessThan(dtype === 'bfloat16' ? 0.01 : 0.001)
    const run = async (useCache: boolean): Promise<number[]> =>
      values(await generate(half, idx, { maxNewTokens: 6, temperature: 0, useCache }).tensor())
    expect(await run(true)).toEqual(await run(false))
    const drawn = await generate(half, idx, {
      maxNewTokens: 6,
      temperature: 0.9,
      topP: 0.9,
      seed: 3,
    }).tensor()
    expect(drawn.shape).toEqual([2, 10])
  })

  test('parameters, gradients and buffers are converted, integers stay', () => {
    class Net extends Module {
      layer = new Linear(2, 3)
      table = buffer(randn([2]))
      counts = buffer(zeros([2], { dtype: 'int32' }))
      forward(x: Tensor): Tensor {
        return this.layer.forward(x)
      }
    }
    const net = new Net()
    net
      .forward(randn([4, 2]))
      .sum()
      .backward()
    net.to(dtype)
    expect(net.parameters().map((p) => [p.dtype, p.grad?.dtype, p.requiresGrad])).toEqual([
      [dtype, dtype, true],
      [dtype, dtype, true],
    ])
    expect([net.table.dtype, net.counts.dtype]).toEqual([dtype, 'int32'])
    expect(net.shown()).toContain(`with 9 parameters of ${dtype}`)
    expect(JSON.stringify(net)).toContain(dtype)
    expect(net.to('float32').shown()).toContain('with 9 parameters')
    expect(net.shown()).not.toContain('float32')
    net.layer.to(dtype)
    net.layer.bias = null
    expect(net.shown()).toContain(`with 6 parameters of ${dtype}`)
  })

  test('files keep it, and loading converts to what the model is of', async () => {
    const [wide, half] = [new Linear(5, 3), new Linear(5, 3).to(dtype)]
    half.loadStateDict(wide.stateDict())
    expect([half.weight.dtype, values(half.weight)]).toEqual([dtype, values(wide.weight.to(dtype))])
    const bytes = await saveSafetensors(half.stateDict())
    const stored = loadSafetensors(bytes, { widen: false })
    expect(stored.weight.dtype).toBe(dtype)
    const [again, widened] = [new Linear(5, 3).to(dtype), new Linear(5, 3)]
    again.loadStateDict(loadSafetensors(bytes))
    widened.loadStateDict(stored)
    expect(values(again.weight)).toEqual(values(half.weight))
    expect([widened.weight.dtype, values(widened.weight)]).toEqual(['float32', values(half.weight)])
  })

  test('moments of optimisers are of float32, and go on from saved ones', () => {
    const make = (): { p: Linear; o: AdamW } => {
      manualSeed(3)
      const p = new Linear(4, 4).to(dtype)
      return { p, o: new AdamW(p.parameters(), { lr: 0.1 }) }
    }
    const [a, b] = [make(), make()]
    const step = ({ p, o }: ReturnType<typeof make>, x: Tensor): void =>
      scope(() => {
        p.forward(x).square().mean().backward()
        o.step()
        o.zeroGrad()
      })
    const x = randn([3, 4]).to(dtype)
    step(a, x)
    const { tensors } = a.o.stateDict().state[0] as { tensors: Record<string, Tensor> }
    expect(Object.values(tensors).map((t) => t.dtype)).toEqual(['float32', 'float32'])
    b.p.loadStateDict(a.p.stateDict())
    b.o.loadStateDict(a.o.stateDict())
    step(a, x)
    step(b, x)
    expect(b.p.parameters().map(values)).toEqual(a.p.parameters().map(values))
    const momentum = new SGD(a.p.parameters(), { lr: 0.1, momentum: 0.9 })
    step({ p: a.p, o: momentum as unknown as AdamW }, x)
    expect(momentum.stateDict().state[0]?.tensors.momentum?.dtype).toBe('float32')
  })

  test('tokens are drawn as likely as they are', async () => {
    // One token has e⁻¹⁶ · 499 = 5·10⁻⁵ of not being drawn. Noise of 8 bits would be infinite for one in 500.
    const model: LanguageModel = {
      maxLength: 1000,
      modules: () => [],
      newCache: () => null,
      nextLogits: (idx) => {
        const logits = zeros([idx.shape[0] as number, 500])
        logits.narrow(1, 7, 1).fill_(16)
        return logits.to(dtype)
      },
    }
    const tokens = await generate(model, randint(0, 9, [8, 1]), { maxNewTokens: 12, seed: 1 }).tensor()
    expect(new Set(values(tokens.narrow(1, 1, 12)))).toEqual(new Set([7]))
  })
})

test('what holds no weights is refused, and nothing is changed', () => {
  const layer = new Linear(2, 3)
  for (const target of ['int32', 'bool', { dtype: 'int32' as const }])
    expect(() => layer.to(target)).toThrow('Linear.to: parameters are floating')
  expect(() => layer.to('half')).toThrow("did you mean 'float16'")
  expect(layer.parameters().map((p) => [p.dtype, p.disposed])).toEqual([
    ['float32', false],
    ['float32', false],
  ])
})

test('states of linear attention are of float32 in a model of 16 bits', () => {
  const model = new GPT({ ...sizes, attention: 'linear' }).to('bfloat16')
  const caches = model.newCache(1, 8) ?? []
  expect(caches.every((cache) => cache instanceof StateCache)).toBe(true)
  const idx = tensor([[1, 2, 3]], { dtype: 'int32' })
  noGrad(() => model.nextLogits(idx, caches, null))
  expect(caches.length).toBe(2)
  for (const cache of caches) expect((cache as StateCache).state.dtype).toBe('float32')
})
