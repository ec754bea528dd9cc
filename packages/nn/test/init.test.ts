import { manualSeed, matmul, memory, randn, tensor, transpose, zeros } from '@tilegrad/core'
import { Conv2d, Embedding, init, Linear, parameter } from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { expectNumbers, values } from './helpers.ts'

const mean = (xs: readonly number[]): number => xs.reduce((s, x) => s + x, 0) / xs.length
const deviation = (xs: readonly number[]): number => {
  const m = mean(xs)
  return Math.sqrt(mean(xs.map((x) => (x - m) ** 2)))
}

/** Φ, by the power series of erf: exact to rounding for |x| ≤ 5. */
function normalCdf(x: number): number {
  const z = x / Math.SQRT2
  let [term, sum] = [z, z]
  for (let n = 1; n < 200; n++) {
    term *= (-z * z) / n
    sum += term / (2 * n + 1)
  }
  return 0.5 + sum / Math.sqrt(Math.PI)
}

// 20,000 draws: a mean is good to 1/√20000 = 0.7 % of the deviation, a deviation to 0.5 %; limits are 4 to 5 times that.
const N = 20_000
const make = () => parameter(zeros([100, 200]))

describe('initialisers', () => {
  beforeEach(() => manualSeed(7))

  it('write in place, untaped, keep the parameter and leave no temporaries', async () => {
    const p = make()
    await collected()
    const before = memory().tensors
    expect(init.normal_(p)).toBe(p)
    init.truncNormal_(p)
    init.uniform_(p)
    init.orthogonal_(p)
    init.constant_(p, 2)
    expect(memory().tensors).toBe(before)
    expect([p.requiresGrad, p.isLeaf]).toEqual([true, true])
    expect(values(p).every((v) => v === 2)).toBe(true)
    expect(values(init.zeros_(p)).every((v) => v === 0)).toBe(true)
    expect(values(init.ones_(p)).every((v) => v === 1)).toBe(true)
  })

  it('uniform: within the bounds, spread evenly', () => {
    const xs = values(init.uniform_(make(), -3, 5))
    expect(xs.length).toBe(N)
    expect(Math.min(...xs)).toBeGreaterThanOrEqual(-3)
    expect(Math.max(...xs)).toBeLessThan(5)
    expectNumbers([mean(xs), deviation(xs)], [1, 8 / Math.sqrt(12)], { atol: 0.08, rtol: 0 })
  })

  it('normal: mean and deviation', () => {
    const xs = values(init.normal_(make(), 2, 0.5))
    expectNumbers([mean(xs), deviation(xs)], [2, 0.5], { atol: 0.016, rtol: 0 })
  })

  it.each([
    [0, 1, -2, 2],
    [1, 0.5, 0.2, 1.1],
    [0, 1, 1, 3],
    [0, 0.02, -10, 10],
  ])('truncNormal mean %d, std %d within %d … %d: the distribution function fits', (m, s, a, b) => {
    const xs = values(init.truncNormal_(make(), m, s, a, b)).sort((x, y) => x - y)
    expect(xs[0]).toBeGreaterThanOrEqual(Math.fround(a))
    expect(xs[N - 1]).toBeLessThanOrEqual(Math.fround(b))
    const z = (x: number): number => Math.max(-5, Math.min(5, (x - m) / s))
    const [lo, hi] = [normalCdf(z(a)), normalCdf(z(b))]
    const cdf = (x: number): number => (normalCdf(z(x)) - lo) / (hi - lo)
    const worst = Math.max(...xs.map((x, i) => Math.abs(cdf(x) - (i + 0.5) / N)))
    // Kolmogorov-Smirnov: a true sample exceeds 1.95 / √N once in a thousand seeds.
    expect(worst).toBeLessThan(1.95 / Math.sqrt(N))
  })

  it('xavier and kaiming: bounds and deviations by fan-in and fan-out', () => {
    const bound = (t: number[]): number => Math.max(...t.map(Math.abs))
    // (out 100, in 200): the largest of 20,000 uniform draws lies within 0.1 % of the bound.
    const close = { atol: 0, rtol: 1e-3 }
    expectNumbers([bound(values(init.xavierUniform_(make())))], [Math.sqrt(6 / 300)], close)
    expectNumbers([bound(values(init.kaimingUniform_(make())))], [Math.sqrt(2) * Math.sqrt(3 / 200)], close)
    expectNumbers(
      [bound(values(init.kaimingUniform_(make(), { mode: 'fanOut', nonlinearity: 'tanh' })))],
      [(5 / 3) * Math.sqrt(3 / 100)],
      close,
    )
    // Linear's default in PyTorch: a = √5 gives 1/√fan-in.
    expectNumbers(
      [bound(values(init.kaimingUniform_(make(), { a: Math.sqrt(5) })))],
      [1 / Math.sqrt(200)],
      close,
    )
    const loose = { atol: 0, rtol: 0.025 }
    expectNumbers([deviation(values(init.xavierNormal_(make(), 2)))], [2 * Math.sqrt(2 / 300)], loose)
    expectNumbers(
      [deviation(values(init.kaimingNormal_(make(), { nonlinearity: 'relu' })))],
      [Math.sqrt(2 / 200)],
      loose,
    )
    // A receptive field multiplies both fans.
    expectNumbers([deviation(values(init.kaimingNormal_(zeros([100, 20, 10]))))], [Math.sqrt(2 / 200)], loose)
  })

  it.each([
    [4, 6],
    [6, 4],
    [5, 5],
  ])('orthogonal %d × %d: the shorter side is orthogonal', (rows, columns) => {
    const w = init.orthogonal_(zeros([rows, columns]), 2)
    const gram = rows <= columns ? matmul(w, transpose(w, 0, 1)) : matmul(transpose(w, 0, 1), w)
    const n = Math.min(rows, columns)
    const expected = Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 4 : 0))
    // float32 storage of float64 results: sums of at most six products of size ≤ 4.
    expectNumbers(values(gram), expected, { atol: 1e-5, rtol: 0 })
  })

  it('eye and dirac: ones where the input is handed on', () => {
    expect(values(init.eye_(zeros([3, 2])))).toEqual([1, 0, 0, 1, 0, 0])
    expect(values(init.eye_(zeros([2, 3])))).toEqual([1, 0, 0, 0, 1, 0])
    const layer = new Conv2d(2, 4, 3, { padding: 1, groups: 2, bias: false })
    init.dirac_(layer.weight, 2)
    const x = randn([1, 2, 4, 5])
    const channels = layer.forward(x)
    expect(channels.shape).toEqual([1, 4, 4, 5])
    // One input channel to each group of two: the first output of a group is it, the second nothing. No tolerance: times 1.
    expect(values(channels.select(1, 0))).toEqual(values(x.select(1, 0)))
    expect(values(channels.select(1, 2))).toEqual(values(x.select(1, 1)))
    expect(values(channels.select(1, 1)).every((v) => v === 0)).toBe(true)
    expect(values(init.dirac_(zeros([1, 1, 4])))).toEqual([0, 0, 1, 0])
    expect(() => init.dirac_(zeros([2, 2]))).toThrow('dirac_: needs three to five dims, got [2, 2]')
    expect(() => init.dirac_(zeros([3, 2, 1]), 2)).toThrow('dirac_: groups must divide the 3 outputs, got 2')
    expect(() => init.eye_(zeros([3]))).toThrow('eye_: needs two dims, got [3]')
    expect(init.calculateGain('selu')).toBe(0.75)
  })

  it('say what is wrong', () => {
    expect(() => init.xavierUniform_(zeros([3]))).toThrow(/at least two dims, got \[3\]/)
    expect(() => init.truncNormal_(zeros([3]), 0, 1, 2, 1)).toThrow(/a < b, got 2 and 1/)
  })

  it('defaults: Linear uniform within 1/√in for weight and bias, Embedding normal with a zero padding row', () => {
    const layer = new Linear(200, 100)
    const limit = 1 / Math.sqrt(200)
    for (const t of [layer.weight, layer.bias]) {
      const largest = Math.max(...values(t).map(Math.abs))
      expect(largest).toBeLessThanOrEqual(limit)
      expect(largest).toBeGreaterThan(0.9 * limit)
    }
    const table = new Embedding(100, 200, { paddingIdx: -1 })
    const rows = values(table.weight)
    expect(rows.slice(-200)).toEqual(Array(200).fill(0))
    expectNumbers([deviation(rows.slice(0, -200))], [1], { atol: 0.025, rtol: 0 })
  })

  it('follow the seed', () => {
    manualSeed(3)
    const a = values(new Linear(3, 3).weight)
    manualSeed(3)
    expect(values(new Linear(3, 3).weight)).toEqual(a)
    expect(values(new Linear(3, 3).weight)).not.toEqual(a)
    manualSeed(3)
    const b = values(init.orthogonal_(zeros([3, 3])))
    manualSeed(3)
    expect(
      values(
        init.orthogonal_(
          tensor([
            [0, 0, 0],
            [0, 0, 0],
            [0, 0, 0],
          ]),
        ),
      ),
    ).toEqual(b)
  })
})
