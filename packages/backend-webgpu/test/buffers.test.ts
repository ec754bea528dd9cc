import { describe, expect, test } from 'vitest'
import { BufferPool, type GpuBuffer } from '../src/device/buffers.ts'
import type { Gpu } from '../src/device/gpu.ts'

/** A pool on a device that only counts. */
function make(maxPooledBytes?: number) {
  const retired: number[] = []
  const gpu = {
    adapterName: 'none',
    limits: { maxBufferSize: 2 ** 31, maxStorageBufferBindingSize: 2 ** 31 },
    device: {
      createBuffer: ({ size }: { size: number }) => ({ size }),
      pushErrorScope() {},
      popErrorScope: async () => null,
    },
  } as unknown as Gpu
  const pool = new BufferPool(gpu, maxPooledBytes, {
    retire: (buffer) => retired.push(buffer.bytes),
    exhausted: (error) => {
      throw error
    },
    holders: () => '',
  })
  return { pool, retired, floats: (count: number): GpuBuffer => pool.alloc(count, 'float32') }
}
const MiB = 2 ** 20

describe('the pool of buffers', () => {
  test('gives up sizes of the past, not those in use', () => {
    const { pool, retired, floats } = make(100 * MiB)
    for (const size of [16, 24, 28]) pool.free(floats((size * MiB) / 4))
    // 68 MiB are pooled; this size needs room and then stays.
    for (let i = 0; i < 10; i++) pool.free(floats(16 * MiB))
    expect(retired).toEqual([16 * MiB, 24 * MiB])
    expect(pool.stats()).toMatchObject({ created: 4, pooledBytes: 92 * MiB, pooledBuffers: 2, usedBytes: 0 })
  })

  test('keeps, without a bound given, a quarter more than was ever in use', () => {
    const { pool, retired, floats } = make()
    const step = (size: number): void => {
      const buffers = Array.from({ length: 8 }, () => floats((size * MiB) / 4))
      for (const buffer of buffers) pool.free(buffer)
    }
    step(64)
    step(64)
    expect(pool.stats()).toMatchObject({ created: 8, pooledBytes: 512 * MiB })
    step(56)
    expect(retired.length).toBeGreaterThan(0)
    expect(pool.stats().pooledBytes).toBeLessThanOrEqual(640 * MiB)
    const { created } = pool.stats()
    step(56)
    expect(pool.stats().created).toBe(created)
    pool.trim()
    expect(pool.stats()).toMatchObject({ pooledBytes: 0, pooledBuffers: 0 })
  })
})
