/** Loops without any scope run in bounded memory, also those that never let the event loop turn. */
import { beforeEach, expect, test } from 'vitest'
import { memory, noGrad, ones, type Tensor } from '../src/index.ts'
import { reclaim } from '../src/tensor/safety-net.ts'
import { bareBackend, bytesOn } from './bare-backend.ts'
import { collected } from './support/collected.ts'

const MiB = 2 ** 20

// Whatever earlier tests have left is gone, and patience starts anew.
beforeEach(() => {
  reclaim()
  bytesOn(bareBackend(), 1)
  reclaim()
})

test('temporaries, in a synchronous loop', () => {
  const device = bareBackend()
  for (let i = 0; i < 3000; i++) bytesOn(device, MiB)
  expect(device.peak).toBeLessThanOrEqual(258 * MiB)
})

test('a limit: a quarter of it', () => {
  const device = bareBackend(40 * MiB)
  for (let i = 0; i < 60; i++) bytesOn(device, MiB)
  expect(device.peak).toBeLessThanOrEqual(12 * MiB)
})

test('within one task of a promise', async () => {
  const device = bareBackend()
  await null
  for (let i = 0; i < 2000; i++) {
    bytesOn(device, MiB)
    await null
  }
  expect(device.peak).toBeLessThanOrEqual(258 * MiB)
})

test('after the runtime has collected most of it by itself', async () => {
  const device = bareBackend()
  for (let i = 0; i < 200; i++) bytesOn(device, MiB)
  await collected()
  expect(device.live).toBe(0)
  for (let i = 0; i < 2000; i++) bytesOn(device, MiB)
  expect(device.peak).toBeLessThanOrEqual(258 * MiB)
})

test('beside what is still named', () => {
  const device = bareBackend()
  const held: Tensor[] = []
  for (let i = 0; i < 3000; i++) {
    bytesOn(device, MiB)
    if (i % 30 === 0) held.push(bytesOn(device, MiB))
  }
  expect(device.peak).toBeLessThanOrEqual(358 * MiB)
  expect(held.filter((t) => t.disposed || t.storage.buffer === null)).toEqual([])
  reclaim()
  expect(device.live).toBeGreaterThanOrEqual(100 * MiB)
  expect(device.live).toBeLessThanOrEqual(102 * MiB)
  for (const t of held) t.dispose()
  expect(device.live).toBeLessThanOrEqual(2 * MiB)
})

test('where most is in use, looking is rarer, up to a gigabyte', () => {
  const device = bareBackend()
  const held: Tensor[] = []
  for (let i = 0; i < 1200; i++) held.push(bytesOn(device, MiB))
  for (let i = 0; i < 3000; i++) bytesOn(device, MiB)
  expect(device.peak).toBeLessThanOrEqual((1200 + 1026) * MiB)
  expect(held.filter((t) => t.storage.buffer === null)).toEqual([])
})

test('graphs that no backward pass has gone through, and temporaries under noGrad', () => {
  const before = memory()
  const w = ones([MiB / 64], { requiresGrad: true })
  for (let i = 0; i < 90; i++) {
    w.neg().exp()
    if (i % 2 === 0) noGrad(() => w.neg())
    if (i % 30 === 0) reclaim()
  }
  reclaim()
  expect(memory().tensors - before.tensors).toBeLessThan(10)
})

test('very many small tensors', () => {
  const { tensors } = memory()
  const device = bareBackend()
  for (let i = 0; i < 300_000; i++) bytesOn(device, 4)
  // They count with what their objects take: 2 KiB each.
  expect(memory().tensors - tensors).toBeLessThan(140_000)
})

test('each storage is freed once', () => {
  const device = bareBackend()
  const held: Tensor[] = []
  for (let i = 0; i < 500; i++) {
    held.push(bytesOn(device, 10))
    const other = bytesOn(device, 10)
    const view = other.detach()
    if (i % 50 === 0) reclaim()
    other.dispose()
    if (i % 2 === 0) view.dispose()
    if (i % 3 === 0) held.splice(i % held.length, 1)[0].dispose()
  }
  reclaim()
  expect(device.live).toBeLessThanOrEqual(10 * held.length + 20)
  expect(device.live).toBeGreaterThanOrEqual(10 * held.length)
  for (const t of held) t.dispose()
  reclaim()
  expect(device.live).toBeLessThanOrEqual(20)
})

test('between tasks nothing has to be asked for', async () => {
  const device = bareBackend()
  for (let i = 0; i < 100; i++) bytesOn(device, 100)
  for (let i = 0; i < 5000 && device.live > 100; i++) {
    // So that V8 collects garbage by itself, when it finds the time.
    Reflect.set(globalThis, 'garbage', new ArrayBuffer(2 ** 28))
    Reflect.deleteProperty(globalThis, 'garbage')
    await new Promise((done) => setTimeout(done, 1))
  }
  expect(device.live).toBeLessThanOrEqual(100)
})
