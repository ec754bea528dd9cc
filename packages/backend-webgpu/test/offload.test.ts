/** Inputs of checkpoints wait for the backward pass in the host's memory: they leave once they have been read. */
import { tmpdir } from 'node:os'
import {
  checkpoint,
  compile,
  DeviceError,
  manualSeed,
  offload,
  offloaded,
  randn,
  type Tensor,
  withBackend,
} from '@tilegrad/core'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { sharedGpu } from './support/shared-gpu.ts'

const gpu = (await sharedGpu()).full()
const on = <T>(fn: () => T): T => withBackend(gpu, fn)
beforeEach(collected)
afterEach(() => gpu.finished())

const MiB = 2 ** 20
const block = (w: Tensor) => (y: Tensor) => y.matmul(w).tanh().add(y)

describe('offload on a GPU', () => {
  test('the inputs of checkpoints leave, come back, and give the same bits', async () => {
    const build = async (moved: boolean): Promise<{ grads: Float32Array[]; gone: number }> => {
      const weights = on(() => {
        manualSeed(2)
        return Array.from({ length: 4 }, () => randn([64, 64], { requiresGrad: true }))
      })
      let y = on(() => randn([4096, 64]))
      for (const w of weights)
        y = on(() => (moved ? checkpoint(block(w), y, { offload: 'host' }) : checkpoint(block(w), y)))
      const before = gpu.stats().usedBytes
      await offloaded()
      const gone = before - gpu.stats().usedBytes
      on(() => y.square().mean().backward())
      const grads = await Promise.all(weights.map((w) => (w.grad as Tensor).data() as Promise<Float32Array>))
      for (const t of [...weights, y]) t.dispose()
      await collected()
      return { grads, gone }
    }
    const [kept, moved] = [await build(false), await build(true)]
    // What garbage collection gives back meanwhile is small.
    expect(kept.gone).toBeLessThan(MiB)
    expect(moved.gone).toBeGreaterThanOrEqual(4 * MiB)
    expect(moved.grads).toEqual(kept.grads)
  })

  test('what is written or freed meanwhile is not mistaken for what was read', async () => {
    const [w, x, z] = on(() => [randn([16, 64], { requiresGrad: true }), randn([64, 64]), randn([64, 64])])
    const y = on(() => checkpoint((x: Tensor) => w.matmul(x), x, { offload: 'host' }))
    on(() => void checkpoint((z: Tensor) => w.matmul(z), z, { offload: 'host' }).dispose())
    on(() => x.add_(1))
    z.dispose()
    const before = gpu.stats().usedBytes
    await offloaded()
    expect(gpu.stats().usedBytes).toBe(before)
    expect(() => on(() => y.sum().backward())).toThrow(/modified in place/)
  })

  test('a compiled step finds its parameters wherever they were moved before', async () => {
    const [w, x] = on(() => [randn([64, 64]), randn([64, 64])])
    const step = compile((x: Tensor) => x.matmul(w).relu().sum())
    const run = async (): Promise<number> => (await on(() => step(x)).data())[0] as number
    const first = await run()
    for (let i = 0; i < 4; i++) {
      // It takes w along as an input, and moves it out.
      const [v] = on(() => [randn([64, 64], { requiresGrad: true })])
      on(() => void checkpoint((w: Tensor) => w.matmul(v as Tensor), w as Tensor, { offload: 'host' }))
      await offloaded()
      expect(await run()).toBe(first)
    }
  })

  test('what cannot be written stays, and who waits is told', async () => {
    const fs = process.getBuiltinModule('node:fs')
    const [w, x] = on(() => [randn([64, 64], { requiresGrad: true }), randn([64, 64])])
    const full = vi.spyOn(fs, 'writeSync').mockImplementation(() => {
      throw new Error('ENOSPC: no space left on device, write')
    })
    try {
      const y = on(() => checkpoint((x: Tensor) => w.matmul(x), x, { offload: tmpdir() }))
      // Nobody waits at first: that ends no process.
      await x.data()
      await new Promise((resolve) => setTimeout(resolve, 20))
      await expect(offloaded()).rejects.toThrow(/no space left/)
      await offloaded()
      on(() => y.sum().backward())
      expect(await (w.grad as Tensor).data()).toHaveLength(64 * 64)
    } finally {
      full.mockRestore()
    }
  })

  test('what cannot be done at once is refused, with what can', () => {
    expect(() => on(() => offload(() => 1, { to: 'host' }))).toThrow(DeviceError)
    expect(() => on(() => offload(() => 1, { to: 'host' }))).toThrow(/checkpoint\(fn, x, \{ offload \}\)/)
    expect(() => on(() => compile((x: Tensor) => x.exp(), { offload: 'host' })(randn([2])))).toThrow(
      DeviceError,
    )
  })
})
