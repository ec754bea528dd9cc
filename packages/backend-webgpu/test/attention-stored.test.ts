/** Which heads have their dS stored at a time, and that dQ is a product then. Gradients are compared in attention.test.ts. */
import { grad, rand, scaledDotProductAttention, type View } from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import type { Engine } from '../src/commands/queue.ts'
import { createWebGpuBackend } from '../src/index.ts'
import { attentionBackward, backwardTiles } from '../src/kernels/attention/attention.ts'
import type { Tile } from '../src/kernels/attention/blocks.ts'
import { allowance, chunksOf } from '../src/kernels/attention/stored.ts'

const gpu = await createWebGpuBackend()
afterAll(() => gpu.close())

const limits = { maxBufferSize: 2 ** 31, maxStorageBufferBindingSize: 2 ** 31 }
const engine = (more = {}) => ({ gpu: { limits: { ...limits, ...more } } }) as unknown as Engine
const none = { hasMask: false, hasAlibi: false, window: 0, globalTokens: 0, blockSize: 0 } as never
const shapes = (b: number, h: number, hk: number, t: number, s: number, d: number): View[] =>
  [
    [b, h, t, d],
    [b, hk, s, d],
    [b, hk, s, d],
  ].map((shape) => ({ shape, dtype: 'float32' }) as unknown as View)

describe('chunks of heads', () => {
  const tile = backwardTiles[0] as Tile

  test.each([
    [4, 12, 12, 2048, 2048, 64],
    [64, 6, 6, 256, 256, 64],
    [1, 48, 48, 4096, 4096, 64],
    [16, 32, 8, 512, 1000, 128],
    [1, 70, 70, 1500, 1500, 64],
  ])('B%i H%i Hk%i T%i S%i D%i: every head once, within what is allowed', (b, h, hk, t, s, d) => {
    const chunks = chunksOf(engine(), allowance, tile, shapes(b, h, hk, t, s, d), none)
    const heads = chunks.flatMap((c) => Array.from({ length: c.items * c.heads }, (_, i) => c.first + i))
    expect(heads).toEqual(Array.from({ length: b * hk }, (_, i) => i))
    for (const c of chunks) {
      expect(c.items === 1 || c.heads === hk).toBe(true)
      const bytes = (4 * c.items * c.heads * h * t * s) / hk
      expect(bytes).toBeLessThanOrEqual(allowance.bytes)
      expect(bytes).toBeLessThanOrEqual(16 * 4 * b * d * (h * t + hk * s))
    }
  })

  test('none where too few workgroups would run, where blocks are skipped, and on a small device', () => {
    const chunks = (x: View[], attrs: object = none, on = engine()) =>
      chunksOf(on, allowance, tile, x, attrs as never).length
    expect(chunks(shapes(12, 4, 4, 64, 64, 32))).toBe(0)
    expect(chunks(shapes(1, 4, 4, 16384, 16384, 64))).toBe(0)
    expect(chunks(shapes(0, 4, 4, 64, 64, 32))).toBe(0)
    const some = shapes(64, 6, 6, 256, 256, 64)
    expect(chunks(some)).toBe(1)
    expect(chunks(some, none, engine({ maxStorageBufferBindingSize: 2 ** 26 }))).toBe(2)
    expect(chunks(some, none, engine({ maxStorageBufferBindingSize: 2 ** 23 }))).toBe(0)
    expect(chunks(some, { ...(none as object), window: 64 })).toBe(0)
    expect(chunks(some, { ...(none as object), blockSize: 64 })).toBe(0)
  })
})

test('no kernel of dQ runs', () => {
  const keys: string[] = []
  const kernel = gpu.engine.kernel.bind(gpu.engine)
  gpu.engine.kernel = (key, ...rest) => {
    keys.push(key)
    return kernel(key, ...rest)
  }
  const allowed = { bytes: 2 ** 20, leastGroups: 1 }
  Object.assign(gpu.kernels, {
    scaled_dot_product_attentionBackward: attentionBackward(gpu.engine, undefined, allowed),
  })
  const x = rand([1, 2, 40, 8], { device: gpu, requiresGrad: true })
  const y = scaledDotProductAttention(x, x, x, { isCausal: true })
  grad([y.sum()], [x])
  expect(keys.some((key) => key.startsWith('attentionBackward:kv'))).toBe(true)
  expect(keys.some((key) => key.startsWith('attentionBackward:q'))).toBe(false)
})
