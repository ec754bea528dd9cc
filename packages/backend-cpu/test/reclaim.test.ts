/** When memory runs short, garbage is collected first; what a kernel works on is none. */
import { memory, OutOfMemoryError, ones, scope, type Tensor, zeros } from '@tilegrad/core'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type CpuBackend, createCpuBackend } from '../src/index.ts'

const MiB = 2 ** 20
let device: CpuBackend
beforeEach(() => {
  device = createCpuBackend({ threads: 1, maxBytes: 64 * MiB })
})
afterEach(() => device.close())

test('a loop without a scope stays within the limit, and well below it', () => {
  const x = ones([MiB], { device })
  for (let i = 0; i < 60; i++) x.add(1)
  expect(device.stats().peakBytes).toBeLessThan(32 * MiB)
  expect(device.limitBytes).toBe(64 * MiB)
})

test('what a scope holds leaves the rest to garbage', () => {
  const x = ones([MiB / 4], { device })
  zeros([3 * MiB], { device })
  scope(() => {
    const held = Array.from({ length: 58 }, (_, i) => x.add(i))
    expect(held.map((t) => t.dataSync()[MiB / 8])).toEqual(held.map((_, i) => i + 1))
  })
})

test('memory that is really in use is an OutOfMemoryError still, and all is well afterwards', () => {
  const x = ones([MiB], { device })
  const held: Tensor[] = []
  expect(() => {
    for (;;) held.push(x.add(held.length))
  }).toThrow(OutOfMemoryError)
  expect(held.length).toBe(14)
  expect(held.map((t) => t.dataSync()[5])).toEqual(held.map((_, i) => i + 1))
  held.length = 0
  const { liveBytes } = device.stats()
  expect(x.add(1).sum().itemSync()).toBe(2 * MiB)
  expect(device.stats().liveBytes).toBeLessThan(liveBytes)
})

test('kernels that ask for memory of their own keep their operands', () => {
  // Rows of 3 MiB: sums along dim 0 in pieces take as much again while the operands are named by nobody else.
  const results: number[] = []
  for (let i = 0; i < 30; i++)
    results.push(
      ones([3, MiB / 4], { device })
        .add(i)
        .sort(1)[0]
        .cumsum(0)
        .sum(0)
        .narrow(0, 0, 8)
        .sum()
        .itemSync(),
    )
  expect(results).toEqual(results.map((_, i) => 8 * 6 * (i + 1)))
  expect(memory().bytes).toBeGreaterThan(0)
})
