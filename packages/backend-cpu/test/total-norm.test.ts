import { profile, type Tensor, tensor, totalNorm } from '@tilegrad/core'
import { beforeAll, expect, test } from 'vitest'
import type { CpuBackend } from '../src/backend.ts'
import { makeBackends } from './fused-rig.ts'
import { random } from './row-rig.ts'

let backends: { name: string; backend: CpuBackend }[]
beforeAll(async () => {
  backends = await makeBackends()
})

const SIZES = [
  [1],
  [0, 1, 0, 0, 5],
  [4096, 4097, 1, 8191],
  [300_007, 3, 0],
  Array.from({ length: 400 }, (_, i) => i % 9),
]
const make = (device: CpuBackend, seed: number, sizes: readonly number[]): Tensor[] => {
  const rnd = random(seed)
  return sizes.map((n) =>
    tensor(
      Float32Array.from({ length: n }, () => 4 * rnd() - 1),
      { device },
    ),
  )
}
const norm = (xs: readonly Tensor[]): number => {
  const { result, rows } = profile(() => totalNorm(xs))
  expect(rows.map((r) => [r.op, r.path, r.calls])).toEqual([['total_norm', 'fused', 1]])
  expect(result.shape).toEqual([])
  return result.itemSync() as number
}

test('agrees with float64, and does not depend on threads', () => {
  SIZES.forEach((sizes, seed) => {
    const bits = new Map<string, number>()
    for (const { backend } of backends) {
      const xs = make(backend, seed, sizes)
      let want = 0
      for (const x of xs) for (const v of x.dataSync() as Float32Array) want += v * v
      const got = norm(xs)
      // Sums of 64 squares or fewer per lane and block in float32, the rest in float64.
      expect(Math.abs(got - Math.sqrt(want))).toBeLessThanOrEqual(2e-6 * Math.sqrt(want))
      const known = bits.get(backend.level) ?? got
      expect(got).toBe(known)
      bits.set(backend.level, known)
    }
  })
})

test('NaN and infinity show; empty tensors count for nothing', () => {
  for (const { backend: device } of backends) {
    const xs = (v: number): Tensor[] => [
      tensor(new Float32Array(5000), { device }),
      tensor([1, v], { device }),
    ]
    expect(norm(xs(Number.NaN))).toBeNaN()
    expect(norm(xs(-Infinity))).toBe(Infinity)
    expect(norm([tensor(new Float32Array(0), { device })])).toBe(0)
  }
})

test('views with gaps are composed', () => {
  const device = backends[0].backend
  const x = tensor([3, 9, 4, 9], { device }).slice(0, 0, 4, 2)
  const { result, rows } = profile(() => totalNorm([x]))
  expect(rows.find((r) => r.op === 'total_norm')?.path).toBe('composed')
  expect(result.itemSync()).toBe(5)
  expect(() => totalNorm([])).toThrow('got no tensors')
  expect(() => totalNorm([tensor([1], { device, dtype: 'int32' })])).toThrow(
    /takes floating tensors, not int32/,
  )
})
