import { cat, manualSeed, noGrad, randint, randn, stack, type Tensor } from '@tilegrad/core'
import {
  GatedDeltaNet,
  GatedLinearAttention,
  GPT,
  LinearAttention,
  Retention,
  type StateAttention,
  type StateCache,
  TransformerBlock,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, gradcheckModule, values } from './helpers.ts'

/** float32, with sums of some 70 terms in another order. */
const CLOSE = { atol: 1e-5, rtol: 1e-4 }

beforeEach(() => manualSeed(17))

const layers: [string, () => StateAttention][] = [
  ['LinearAttention', () => new LinearAttention(8, 2, { isCausal: true })],
  [
    'LinearAttention, relu, grouped',
    () => new LinearAttention(8, 4, { isCausal: true, featureMap: 'relu', numKvHeads: 2, eps: 1e-3 }),
  ],
  ['Retention', () => new Retention(8, 2, { rope: true })],
  [
    'Retention, grouped',
    () => new Retention(8, 4, { numKvHeads: 2, bias: false, decays: [0.5, 0.6, 0.9, 1] }),
  ],
  ['GatedLinearAttention', () => new GatedLinearAttention(8, 2, { gateRank: 3 })],
  ['GatedDeltaNet', () => new GatedDeltaNet(8, 2)],
]

/** The parts of x along the tokens that sizes say. */
const parts = (x: Tensor, sizes: readonly number[]): Tensor[] => {
  let at = 0
  return sizes.map((n) => {
    at += n
    return x.narrow(1, at - n, n)
  })
}

describe.each(layers)('%s', (_, make) => {
  it.each([
    ['token by token', Array.from({ length: 70 }, () => 1)],
    ['a prompt, then tokens', [66, 1, 1, 2]],
  ])('decodes with a state: %s', (_, sizes) => {
    const layer = make()
    const x = randn([2, 70, 8])
    noGrad(() => {
      const cache = layer.newCache(2) as StateCache
      const bytes = cache.state.numel
      const got = cat(
        parts(x, sizes).map((part) => layer.forward(part, { cache })),
        1,
      )
      expectClose(got, layer.forward(x), CLOSE)
      expect([cache.length, cache.maxLength, cache.state.numel]).toEqual([70, Infinity, bytes])
      cache.reset()
      const again = layer.forward(x.narrow(1, 0, 3), { cache })
      expectClose(again, layer.forward(x.narrow(1, 0, 3)), CLOSE)
    })
  })

  it('gradients of input and parameters agree with finite differences', () => {
    gradcheckModule(make(), [randn([1, 3, 8])], (layer, x) => layer.forward(x))
  })

  it('a later token changes no earlier output', () => {
    const layer = make()
    const x = randn([1, 6, 8])
    const changed = x.clone()
    changed.narrow(1, 4, 1).fill_(9)
    const [a, b] = [layer.forward(x), layer.forward(changed)] as const
    expectClose(a.narrow(1, 0, 4), b.narrow(1, 0, 4), { atol: 0, rtol: 0 })
    expect(values(a.narrow(1, 4, 1))).not.toEqual(values(b.narrow(1, 4, 1)))
  })

  it('takes no masks, and remembers no gradients', () => {
    const layer = make()
    const x = randn([1, 3, 8])
    expect(() => layer.forward(x, { attnMask: randn([3, 3]) })).toThrow(/takes no masks/)
    expect(() => layer.forward(x, { cache: layer.newCache(1) as StateCache })).toThrow(/decode inside noGrad/)
  })
})

/** (B, T, H·n) → (B, H, T, n). */
const heads = (x: Tensor, h: number): Tensor => x.unflatten(-1, [h, -1]).transpose(1, 2)
const project = (layer: StateAttention, x: Tensor): Tensor[] => {
  const all = layer.c_attn?.forward(x) as Tensor
  return [0, 1, 2].map((i) => heads(all.narrow(2, 8 * i, 8), 2))
}
/** S ← α S + kᵀ (v − correction), o = q S, a step at a time. */
function steps(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor | null): Tensor {
  let state = k
    .narrow(2, 0, 1)
    .transpose(2, 3)
    .mul(0)
    .matmul(v.narrow(2, 0, 1))
  const out: Tensor[] = []
  for (let t = 0; t < (q.shape[2] as number); t++) {
    const at = (x: Tensor): Tensor => x.narrow(2, t, 1)
    state = state.mul(at(alpha).transpose(2, 3))
    const value = beta ? at(v).sub(at(k).matmul(state)).mul(at(beta)) : at(v)
    state = state.add(at(k).transpose(2, 3).matmul(value))
    out.push(at(q).matmul(state).squeeze(2))
  }
  return stack(out, 2)
}
const mixed = (layer: StateAttention, y: Tensor): Tensor =>
  layer.outProj.forward(y.transpose(1, 2).flatten(-2))

describe('are their papers’ formulas, step by step', () => {
  const x = randn([2, 5, 8])

  it('Retention', () => {
    const layer = new Retention(8, 2)
    const [q, k, v] = project(layer, x) as [Tensor, Tensor, Tensor]
    const alpha = stack(
      [
        q
          .narrow(1, 0, 1)
          .mul(0)
          .add(31 / 32),
        q
          .narrow(1, 1, 1)
          .mul(0)
          .add(63 / 64),
      ],
      1,
    ).squeeze(2)
    const y = steps(q.div(2), k, v, alpha, null)
    const mean = y.mean(-1, { keepdim: true })
    const normed = y.sub(mean).div(y.sub(mean).square().mean(-1, { keepdim: true }).add(1e-5).sqrt())
    const z = layer.g_proj.forward(x)
    expectClose(layer.forward(x), mixed(layer, normed.mul(heads(z.mul(z.sigmoid()), 2))), CLOSE)
  })

  it('GatedLinearAttention', () => {
    const layer = new GatedLinearAttention(8, 2, { gateRank: 3, gateTemperature: 4 })
    const [q, k, v] = project(layer, x) as [Tensor, Tensor, Tensor]
    const alpha = heads(
      layer.gk_up
        .forward(layer.gk_down.forward(x))
        .sigmoid()
        .pow(1 / 4),
      2,
    )
    const y = layer.g_norm.forward(steps(q.div(2), k, v, alpha, null))
    const z = layer.g_proj.forward(x)
    expectClose(layer.forward(x), mixed(layer, y.mul(heads(z.mul(z.sigmoid()), 2))), CLOSE)
  })

  it('GatedDeltaNet', () => {
    const layer = new GatedDeltaNet(8, 2)
    const unit = (y: Tensor): Tensor => y.div(y.square().sum(-1, { keepdim: true }).add(1e-6).sqrt())
    const [q, k, v] = project(layer, x) as [Tensor, Tensor, Tensor]
    const dt = layer.a_proj.forward(x).add(layer.dt_bias).exp().add(1).log()
    const alpha = heads(dt.mul(layer.A_log.exp()).neg().exp(), 2)
    const beta = heads(layer.b_proj.forward(x).sigmoid(), 2)
    const silu = (y: Tensor): Tensor => y.mul(y.sigmoid())
    const y = layer.g_norm.forward(steps(unit(silu(q)).div(2), unit(silu(k)), v, alpha, beta))
    const z = layer.g_proj.forward(x)
    expectClose(layer.forward(x), mixed(layer, y.mul(heads(silu(z), 2))), CLOSE)
  })
})

describe('in models', () => {
  const kinds = [
    ['linear', LinearAttention],
    ['retention', Retention],
    ['gla', GatedLinearAttention],
    ['gatedDelta', GatedDeltaNet],
  ] as const

  it.each(kinds)('a block takes %s by name, and a factory', (attention, type) => {
    const options = { isCausal: true, numKvHeads: 1, rope: true, hiddenDim: 12 } as const
    const block = new TransformerBlock(8, 2, { ...options, attention })
    expect(block.attn).toBeInstanceOf(type)
    expect([block.attn.numKvHeads, block.attn.isCausal]).toEqual([1, true])
    const made = new TransformerBlock(8, 2, { ...options, attention: (e, h, o) => new type(e, h, o) })
    expect(made.attn).toBeInstanceOf(type)
    expect(() => new TransformerBlock(8, 2, { attention, isCausal: true, window: 3 })).toThrow(
      `TransformerBlock: ${attention} attention takes no window, globalTokens, blocks, alibi or scale`,
    )
  })

  it.each(kinds)('a GPT with %s generates with a state what it generates without', async (attention) => {
    const model = new GPT({
      vocabSize: 11,
      blockSize: 90,
      numLayers: 2,
      numHeads: 2,
      embedDim: 16,
      attention,
    })
    const start = randint(0, 11, [2, 70])
    const options = { maxNewTokens: 8, temperature: 0 }
    const tokens = async (useCache: boolean): Promise<number[]> =>
      values(await model.generate(start, { ...options, useCache }).tensor())
    expect(await tokens(true)).toEqual(await tokens(false))
    const caches = model.newCache(2) ?? []
    expect(caches.map((c) => c.maxLength)).toEqual([Infinity, Infinity])
    noGrad(() => {
      const whole = model.forward(start).logits
      for (let t = 0; t < 70; t++)
        expectClose(model.nextLogits(start.narrow(1, t, 1), caches), whole.select(1, t), CLOSE)
    })
  })
})

it('says what cannot be', () => {
  expect(() => new Retention(8, 2, { isCausal: false })).toThrow(/Retention: is causal by nature/)
  expect(() => new Retention(8, 2, { decays: [2, 1] })).toThrow(
    /decays must be 2 numbers in \(0, 1\], got 2, 1/,
  )
  expect(() => new GatedLinearAttention(8, 2, { gateTemperature: 0 })).toThrow(/gateTemperature must be > 0/)
  expect(new LinearAttention(8, 2).newCache(1)).toBeNull()
})
