/** The norm of many tensors against a sum in float64. */

import { profile, type Tensor, tensor, totalNorm } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { backends } from './support/fused.ts'
import { integer, pick, random } from './support/random.ts'

const paths = (fn: () => Tensor): { result: Tensor; path: string | undefined } => {
  const { result, rows } = profile(fn)
  return { result, path: rows.find((r) => r.op === 'total_norm')?.path }
}

test('any number of tensors of any size, at any offset', async () => {
  const rnd = random(1)
  for (const { backend: device } of backends)
    for (const count of [1, 2, 7, 8, 16, 33]) {
      let sum = 0
      const ts = Array.from({ length: count }, (_, k) => {
        const n = k === 1 ? 50_001 : pick(rnd, [0, 1, 3, 4, 5, 100, 1027])
        const skip = pick(rnd, [0, 0, 1, 2, 4])
        const data = Float32Array.from({ length: n + skip + 2 }, () => 4 * rnd() - 2)
        for (const x of data.subarray(skip, skip + n)) sum += x * x
        return tensor(data, { device }).narrow(0, skip, n)
      })
      const { result, path } = paths(() => totalNorm(ts))
      expect(path).toBe('fused')
      const norm = await result.item()
      // A tree of sums: a few roundings, each of 6e-8.
      expect(Math.abs(norm - Math.sqrt(sum))).toBeLessThanOrEqual(1e-6 * Math.sqrt(sum))
      expect(await totalNorm(ts).item()).toBe(norm)
    }
})

test('NaN and infinity are seen, but not beyond the end', async () => {
  const rnd = random(2)
  for (const { backend: device } of backends)
    for (const bad of [NaN, Infinity]) {
      const data = new Float32Array(70).fill(1)
      data[integer(rnd, 4, 66)] = bad
      expect(await totalNorm([tensor(data, { device })]).item()).toBe(bad)
      const beside = Float32Array.of(bad, 3, 4, bad)
      expect(await totalNorm([tensor(beside, { device }).narrow(0, 1, 2)]).item()).toBe(5)
    }
})

test('no elements, and tensors with gaps', async () => {
  const { backend: device } = backends[0]
  const none = paths(() => totalNorm([tensor(new Float32Array(0), { device })]))
  expect([none.path, await none.result.item()]).toEqual(['fused', 0])
  const gaps = tensor([3, 9, 4, 9], { device }).slice(0, 0, 4, 2)
  const composed = paths(() => totalNorm([gaps]))
  expect([composed.path, await composed.result.item()]).toEqual(['composed', 5])
})
