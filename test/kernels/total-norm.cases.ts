/** The norm of many tensors against a sum in float64. */

import { profile, type Tensor, tensor, totalNorm } from '@tilegrad/core'
import { expect, test } from 'vitest'
import type { Engine } from './fused.ts'
import { integer, pick, random } from './random.ts'

const paths = (fn: () => Tensor): { result: Tensor; calls: unknown[][] } => {
  const { result, rows } = profile(fn)
  return { result, calls: rows.map((r) => [r.op, r.path, r.calls]) }
}
const fused = [['total_norm', 'fused', 1]]

/** `rtol`: by how much a norm may differ, relatively. */
export function testTotalNorm(engine: Engine, rtol: number): void {
  test('any number of tensors of any size, at any offset', async () => {
    const rnd = random(1)
    const sizes = [1, 2, 7, 8, 16, 33].map((count) =>
      Array.from({ length: count }, (_, k) => (k === 1 ? 50_001 : pick(rnd, [0, 1, 3, 4, 5, 100, 1027]))),
    )
    for (const list of [
      ...sizes,
      [1],
      [0, 1, 0, 0, 5],
      [4096, 4097, 1, 8191],
      [300_007, 3, 0],
      Array.from({ length: 400 }, (_, i) => i % 9),
    ]) {
      let sum = 0
      const parts = list.map((n) => {
        const skip = pick(rnd, [0, 0, 1, 2, 4])
        const data = Float32Array.from({ length: n + skip + 2 }, () => 4 * rnd() - 1)
        for (const x of data.subarray(skip, skip + n)) sum += x * x
        return { data, skip, n }
      })
      const bits = new Map<string, number>()
      for (const { backend: device, kind } of engine.backends) {
        const ts = parts.map(({ data, skip, n }) => tensor(data, { device }).narrow(0, skip, n))
        const { result, calls } = paths(() => totalNorm(ts))
        expect(calls).toEqual(fused)
        expect(result.shape).toEqual([])
        const norm = Number(await result.item())
        expect(Math.abs(norm - Math.sqrt(sum))).toBeLessThanOrEqual(rtol * Math.sqrt(sum))
        expect(norm).toBe(bits.get(kind) ?? (await totalNorm(ts).item()))
        bits.set(kind, norm)
      }
    }
  })

  test('NaN and infinity are seen, but not beyond the end', async () => {
    const rnd = random(2)
    for (const { backend: device } of engine.backends)
      for (const bad of [NaN, Infinity, -Infinity]) {
        const data = new Float32Array(5070).fill(1)
        data[integer(rnd, 5004, 5066)] = bad
        expect(await totalNorm([tensor(data, { device })]).item()).toBe(Math.abs(bad))
        const zeros = tensor(new Float32Array(5000), { device })
        expect(await totalNorm([zeros, tensor([1, bad], { device })]).item()).toBe(Math.abs(bad))
        const beside = Float32Array.of(bad, 3, 4, bad)
        expect(await totalNorm([tensor(beside, { device }).narrow(0, 1, 2)]).item()).toBe(5)
      }
  })

  test('no elements, and tensors with gaps', async () => {
    for (const { backend: device } of engine.backends) {
      const none = paths(() => totalNorm([tensor(new Float32Array(0), { device })]))
      expect([none.calls, await none.result.item()]).toEqual([fused, 0])
    }
    const { backend: device } = engine.backends[0]
    const gaps = paths(() => totalNorm([tensor([3, 9, 4, 9], { device }).slice(0, 4, { step: 2 })]))
    expect(gaps.calls.find(([op]) => op === 'total_norm')).toContain('composed')
    expect(await gaps.result.item()).toBe(5)
  })
}
