/** What a device refuses, runs out of or loses, and that training leaves its memory as it was. */
import {
  DeviceError,
  memory,
  OutOfMemoryError,
  ones,
  randn,
  scope,
  tensor,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { afterEach, describe, expect, test } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { createWebGpuBackend, type WebGpuBackend, type WebGpuOptions } from '../src/index.ts'
import { block } from '../src/wgsl/block.ts'
import type { Shader } from '../src/wgsl/shader.ts'

const opened: WebGpuBackend[] = []
const errors: string[] = []
async function open(options: WebGpuOptions = {}): Promise<WebGpuBackend> {
  const backend = await createWebGpuBackend({ onError: (message) => errors.push(message), ...options })
  opened.push(backend)
  return backend
}
afterEach(() => {
  for (const backend of opened.splice(0)) backend.close()
  // Nothing was left to the console.
  expect(errors.splice(0)).toEqual([])
})

const shader = (body: string): Shader<object> => ({
  params: block({}),
  bindings: [{ name: 'y', item: 'f32', write: true }],
  workgroup: [1],
  body,
})

describe('what is invalid is told with the name of the operator', () => {
  const buffer = (backend: WebGpuBackend) => backend.engine.pool.alloc(4, 'float32')

  test('a kernel that does not compile', async () => {
    const backend = await open()
    const { engine } = backend
    engine.run(
      engine.kernel('bad', 'wobble', () => shader('y[0] = 1u;')),
      [buffer(backend)],
      {},
      [1],
    )
    await expect(engine.read(buffer(backend), 0, 16)).rejects.toThrow(/^wobble: its kernel is invalid on .*/s)
    // Told once; what is valid goes on.
    expect([...(await ones([2], { device: backend }).add(1).data())]).toEqual([2, 2])
  })

  test('commands that the encoder refuses', async () => {
    const backend = await open()
    const { engine } = backend
    const kernel = engine.kernel('good', 'wobble', () => shader('y[0] = 1;'))
    const gone = buffer(backend)
    gone.gpu.destroy()
    engine.run(kernel, [gone], {}, [1])
    await expect(engine.read(buffer(backend), 0, 16)).rejects.toThrow(/^wobble: invalid on .*destroyed/s)
  })

  test('more workgroups than there may be', async () => {
    const backend = await open()
    const { engine } = backend
    const kernel = engine.kernel('good', 'wobble', () => shader('y[0] = 1;'))
    const most = backend.gpu.limits.maxComputeWorkgroupsPerDimension
    expect(() => engine.run(kernel, [buffer(backend)], {}, [1, most + 1])).toThrow(
      `wobble: needs 1 × ${most + 1} × 1 workgroups`,
    )
  })
})

test('what is too large for the device throws before anything is allocated', async () => {
  const backend = await open({ limits: 'default', features: 'default' })
  const most = backend.gpu.limits.maxStorageBufferBindingSize
  const side = Math.ceil(Math.sqrt(most / 4)) + 1
  const [column, row] = [zeros([side, 1], { device: backend }), zeros([1, side], { device: backend })]
  await collected()
  const before = [backend.stats(), memory()]
  for (const call of [
    () => zeros([side, side], { device: backend }),
    () => column.add(row),
    () => column.matmul(row),
    () => column.expand([side, side]).contiguous(),
  ]) {
    expect(() => scope(call)).toThrow(OutOfMemoryError)
    expect(() => scope(call)).toThrow(
      `takes ${4 * side * side} bytes; ${backend.gpu.adapterName} allows ${most} per buffer`,
    )
  }
  for (const shape of [
    [2 ** 42 + 8192],
    [2 ** 21, 2 ** 21],
    [2 ** 22, 2 ** 20 + 1],
    [2 ** 43 + 65536],
    [2 ** 32],
    [2 ** 30 + 1],
  ]) {
    const count = shape.reduce((n, s) => n * s, 1)
    for (const call of [() => zeros(shape, { device: backend }), () => randn(shape, { device: backend })]) {
      expect(() => scope(call), `${shape}`).toThrow(OutOfMemoryError)
      expect(() => scope(call), `${shape}`).toThrow(`of ${count} elements takes ${4 * count} bytes`)
    }
    // Kernels count in 32 bits: a dim of more is said first.
    const one = () => column.narrow(0, 0, 1).reshape(shape.map(() => 1))
    const counted = shape.every((n) => n < 2 ** 31)
    const expected = counted ? `of ${count} elements takes ${4 * count} bytes` : 'more than kernels count'
    expect(() => scope(() => one().expand(shape).add(1)), `${shape}`).toThrow(expected)
  }
  expect([backend.stats(), memory()]).toEqual(before)
  expect(await column.add(1).sum().item()).toBe(side)
})

test('out of memory: whoever comes next is told, with the largest holders, and work can go on', async () => {
  // This one computes nothing, and has 512 MiB.
  const backend = await open({ backend: 'null' })
  const held = scope(() => Array.from({ length: 9 }, () => randn([16, 1024, 1024], { device: backend })))
  const error = await backend.finished().catch((error: unknown) => error)
  expect(error).toBeInstanceOf(OutOfMemoryError)
  expect((error as Error).message).toMatch(
    /^memory: 64.0 MiB asked for, but the device has no more, and 4\d\d.0 MiB are in use; free tensors/,
  )
  expect((error as Error).message).toMatch(
    /Of what running scopes and their graphs held, largest: \d × float32 \[16, 1024, 1024\] of 64.0 MiB/,
  )
  for (const t of held) t.dispose()
  backend.engine.pool.trim()
  const again = scope(() => Array.from({ length: 3 }, () => randn([16, 1024, 1024], { device: backend })))
  await backend.finished()
  expect(again).toHaveLength(3)
})

test('a lost device fails the reads under way and all that follows; another one works', async () => {
  const backend = await open()
  const x = ones([64], { device: backend })
  const pending = [x.add(1).data(), x.sum().item(), backend.finished()]
  expect(backend.closed).toBe(false)
  backend.gpu.device.destroy()
  for (const read of pending) await expect(read).rejects.toThrow(/the GPU was closed; its tensors are gone/)
  expect(backend.closed).toBe(true)
  expect(() => x.add(1)).toThrow(DeviceError)
  expect(() => zeros([1], { device: backend })).toThrow('alloc: the GPU was closed')
  x.dispose()
  const next = await open()
  expect(await ones([64], { device: next }).sum().item()).toBe(64)
})

test('the pool keeps no more than it may', async () => {
  const backend = await open({ maxPooledBytes: 10_000 })
  const free = (count: number) => {
    for (const t of Array.from({ length: count }, () => ones([1000], { device: backend }))) t.dispose()
  }
  free(10)
  const { pooledBytes, pooledBuffers, usedBytes, created } = backend.stats()
  expect([pooledBuffers, usedBytes, created]).toEqual([2, 0, 10])
  expect(pooledBytes).toBeLessThanOrEqual(10_000)
  free(2)
  expect(backend.stats().created).toBe(10)
  await backend.finished()
})

test('uploads keep their place among operators that are not submitted yet', async () => {
  const backend = await open()
  const results = withBackend(backend, () =>
    Array.from({ length: 40 }, (_, i) =>
      // The buffer of one is the next one's, which the same batch still reads.
      scope(() => tensor([i, i + 1, i + 2]).mul(2)),
    ),
  )
  for (const [i, t] of results.entries()) expect([...(await t.data())]).toEqual([2 * i, 2 * i + 2, 2 * i + 4])
})
