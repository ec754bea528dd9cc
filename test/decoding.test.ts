import {
  type Backend,
  cat,
  createCpuBackend,
  dequantize,
  GPT,
  type GPTConfig,
  type KVCache,
  Linear,
  manualSeed,
  memory,
  noGrad,
  profile,
  QuantizedLinear,
  quantize,
  reference,
  scope,
  tensor,
  withBackend,
} from 'tilegrad'
import { afterAll, describe, expect, it } from 'vitest'
import { gpus } from '../packages/backend-webgpu/test/support/gpus.ts'
import { collected } from '../packages/core/test/support/collected.ts'

const backends: [string, Backend][] = [
  ['cpu', createCpuBackend({ threads: 2 })],
  ...gpus.slice(0, 1).map(({ name, gpu }): [string, Backend] => [`webgpu with ${name}`, gpu]),
]
afterAll(async () => {
  for (const [, backend] of backends) await (backend as Partial<{ close(): Promise<void> }>).close?.()
})

const configs: [string, Partial<GPTConfig>][] = [
  ['learned positions', {}],
  ['grouped heads, rope, a window', { numKvHeads: 2, rope: true, window: 9, qkNorm: true }],
  ['ALiBi', { alibi: true }],
]

/** Layers that remember a state of constant size. */
const states: [string, Partial<GPTConfig>][] = [
  ['linear attention', { attention: 'linear' }],
  ['retention', { attention: 'retention', rope: true }],
  ['gated linear attention', { attention: 'gla' }],
]

/** Weights drawn on the reference, larger than initial ones so that choices are clear. */
function make(config: Partial<GPTConfig>): GPT {
  return withBackend(reference, () => {
    manualSeed(41)
    const model = new GPT({
      vocabSize: 31,
      blockSize: 48,
      numLayers: 2,
      numHeads: 4,
      embedDim: 32,
      ...config,
    })
    for (const p of model.parameters()) p.detach().mul_(8)
    return model
  })
}

const prompt = new Int32Array([1, 2, 3, 4, 5, 30, 29, 28, 27, 26])

describe.each(backends)('on %s', (_, backend) => {
  it.each([...configs, ...states])('decoding with %s writes what the reference writes', async (_, config) => {
    const options = { maxNewTokens: 16, temperature: 0 }
    const model = make(config)
    const expected = await model.generate(tensor(prompt, [2, 5], { device: reference }), options).tensor()
    const moved = model.to(backend)
    const start = tensor(prompt, [2, 5], { device: backend })
    const tokens = await moved.generate(start, options).tensor()
    expect(await tokens.toArray()).toEqual(await expected.toArray())
    const anew = await moved.generate(start, { ...options, useCache: false }).tensor()
    expect(await anew.toArray()).toEqual(await expected.toArray())
    for (const t of [expected, start, tokens, anew, moved]) t.dispose()
  })

  it.each(configs)('8 bits with %s write what their numbers write in 32', async (_, config) => {
    const options = { maxNewTokens: 16, temperature: 0 }
    const wide = make(config)
    const model = quantize(make(config))
    const layers = new Map(model.namedModules())
    noGrad(() => {
      for (const [name, layer] of wide.namedModules()) {
        const other = layers.get(name)
        if (layer instanceof Linear && other instanceof QuantizedLinear)
          layer.weight.copy_(dequantize(other.weight, other.scales, other.inFeatures))
      }
    })
    const expected = await wide.generate(tensor(prompt, [2, 5], { device: reference }), options).tensor()
    const moved = model.to(backend)
    const start = tensor(prompt, [2, 5], { device: backend })
    const tokens = await moved.generate(start, options).tensor()
    expect(await tokens.toArray()).toEqual(await expected.toArray())
    const { rows } = profile(() => noGrad(() => scope(() => moved.nextLogits(start.narrow(1, 0, 1)))))
    const paths = rows.filter((row) => row.op === 'quantized_linear').map((row) => row.path)
    expect(new Set(paths)).toEqual(new Set(['fused']))
    for (const t of [expected, start, tokens, wide, moved]) t.dispose()
  })

  it.each(['float16', 'bfloat16'] as const)('a model of %s widens no weight for a token', async (dtype) => {
    const model = make({ embedDim: 64 }).to(backend).to(dtype)
    const start = tensor(prompt, [2, 5], { device: backend })
    const tokens = await model.generate(start, { maxNewTokens: 16, temperature: 0 }).tensor()
    expect(tokens.shape).toEqual([2, 21])
    const { rows } = profile(() => noGrad(() => scope(() => model.nextLogits(start.narrow(1, 0, 1)))))
    const calls = (op: string): string[] => rows.filter((row) => row.op === op).map((row) => row.path)
    const caches = (model.newCache(2, 10) ?? []) as KVCache[]
    const logits = noGrad(() => model.nextLogits(start, caches))
    const last = noGrad(() => model.nextLogits(start.narrow(1, 0, 1), caches))
    const all = cat([start, start.narrow(1, 0, 1)], 1)
    const anew = noGrad(() => model.nextLogits(all))
    const [got, want] = await Promise.all([last, anew].map((t) => t.to('float32').data()))
    const largest = Math.max(...want.map(Math.abs))
    got.forEach((v, i) => {
      expect(Math.abs(v - (want[i] as number))).toBeLessThan(0.1 * largest)
    })
    // The CPU has no attention that reads 16 bits.
    const held = backend.name === 'webgpu' ? dtype : 'float32'
    expect(new Set(caches.map((cache) => cache.keys.dtype))).toEqual(new Set([held]))
    for (const t of [...caches, logits, last, all, anew]) t.dispose()
    for (const op of ['linear', 'embedding']) expect([op, ...new Set(calls(op))]).toEqual([op, 'fused'])
    for (const t of [start, tokens, model]) t.dispose()
  })

  it.each(configs)(
    'a step with %s runs fused kernels and allocates nothing that stays',
    async (_, config) => {
      const model = make(config).to(backend)
      const cache = model.newCache(1, 40) ?? []
      const step = (...ids: number[]): void =>
        noGrad(() =>
          scope(() => {
            model.nextLogits(tensor(Int32Array.from(ids), [1, ids.length], { device: backend }), cache)
          }),
        )
      step(1, 2, 3)
      // Tables of rotary angles are remembered, the last few of them.
      for (let i = 0; i < 6; i++) step(4)
      await collected()
      const before = memory()
      for (let i = 0; i < 20; i++) step(i)
      expect([memory().tensors, memory().bytes]).toEqual([before.tensors, before.bytes])
      const { rows } = profile(() => step(5))
      const paths = rows.filter((row) => row.op === 'scaled_dot_product_attention').map((row) => row.path)
      expect(paths).toEqual(['fused'])

      for (const t of [...cache, model]) t.dispose()
    },
  )
})
