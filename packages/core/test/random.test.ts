import { describe, expect, test } from 'vitest'
import * as e from '../src/expr/expr.ts'
import {
  applyProgram,
  bernoulli,
  dataSync,
  dropout,
  generateProgram,
  getRngState,
  grad,
  hostRandint,
  hostRandom,
  manualSeed,
  multinomial,
  ones,
  program,
  rand,
  randint,
  randn,
  randperm,
  reference,
  setRngState,
  type Tensor,
  tensor,
} from '../src/index.ts'
import { threefry } from '../src/random.ts'

const values = (t: Tensor): number[] => [...dataSync(t)]
const mean = (x: readonly number[]): number => x.reduce((s, v) => s + v, 0) / x.length

describe('Threefry-2x32', () => {
  // Known answers of the authors' Random123 for 20 rounds: counter, key, result.
  test.each([
    [0, 0, 0, 0, 0x6b200159, 0x99ba4efe],
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x1cb996fc, 0xbb002be7],
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xc4923a9c, 0x483df7a0],
  ])('counter %i %i, key %i %i', (c0, c1, k0, k1, x, y) => {
    const run = (word: 0 | 1): number => {
      const p = program('kat', 4, ([a, b, c, d]) => threefry(a, b, c, d, 20)[word])
      const out = applyProgram(
        p,
        [c0, c1, k0, k1].map((v) => tensor(new Int32Array([v | 0]))),
      )
      return dataSync(out)[0] >>> 0
    }
    expect([run(0), run(1)]).toEqual([x, y])
  })

  test('flipping one bit of the counter flips half of the output', () => {
    const word = (bit: number): number => {
      const p = program(
        'avalanche',
        0,
        (_, [c]) => threefry(c, e.constant(5), e.constant(7), e.constant(9))[0],
        1,
      )
      return dataSync(generateProgram(p, reference, [1], 'int32', [bit]))[0]
    }
    const ones32 = (v: number): number => (v >>> 0).toString(2).replaceAll('0', '').length
    const flips = Array.from({ length: 31 }, (_, i) => ones32(word(1 << i) ^ word(0)))
    // 31 draws of 32 fair bits have mean 16 ± 0.5: four deviations each way.
    expect(Math.abs(mean(flips) - 16)).toBeLessThan(2)
  })
})

describe('distributions', () => {
  const N = 20_000
  manualSeed(123)
  const uniform = values(rand([N]))
  const normal = values(randn([N]))

  // Limits are five standard errors: a right generator fails once in a million seeds, and the seed is fixed.
  test('rand is uniform in [0, 1)', () => {
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(0)
    expect(Math.max(...uniform)).toBeLessThan(1)
    expect(Math.abs(mean(uniform) - 0.5)).toBeLessThan((5 * Math.sqrt(1 / 12)) / Math.sqrt(N))
    const bins = new Array<number>(20).fill(0)
    for (const v of uniform) bins[Math.floor(v * 20)]++
    const chi2 = bins.reduce((s, n) => s + (n - N / 20) ** 2 / (N / 20), 0)
    // 19 degrees of freedom: mean 19, deviation 6.2.
    expect(chi2).toBeLessThan(19 + 5 * 6.2)
  })

  test.each(['bfloat16', 'float16'] as const)('rand in %s stays below its end', (dtype) => {
    // One number in 512, or 4096, is nearer to 1 than to the number before it.
    const x = values(rand([N], { dtype }))
    expect(Math.max(...x)).toBe(dtype === 'bfloat16' ? 1 - 2 ** -8 : 1 - 2 ** -11)
    expect(x.reduce((a, b) => a + b) / N).toBeCloseTo(0.5, 2)
    for (const [low, high] of [
      [-1, 0],
      [-3, -1],
      [0.5, 1],
      [3, 3.1],
    ] as const) {
      const y = values(rand([N], { low, high, dtype }))
      expect(Math.max(...y)).toBeLessThan(high)
      expect(Math.min(...y)).toBeGreaterThanOrEqual(low)
    }
  })

  test('rand stretches to [low, high)', () => {
    const x = values(rand([1000], { low: -3, high: -1 }))
    expect(Math.min(...x)).toBeGreaterThanOrEqual(-3)
    expect(Math.max(...x)).toBeLessThan(-1)
  })

  test('neighbours and successive draws are not correlated', () => {
    const centred = uniform.map((v) => v - 0.5)
    const again = values(rand([N])).map((v) => v - 0.5)
    const limit = 5 / 12 / Math.sqrt(N)
    expect(Math.abs(mean(centred.slice(1).map((v, i) => v * centred[i])))).toBeLessThan(limit)
    expect(Math.abs(mean(centred.map((v, i) => v * again[i])))).toBeLessThan(limit)
  })

  test('randn has the moments of the normal distribution', () => {
    const moment = (k: number): number => mean(normal.map((v) => v ** k))
    const error = 5 / Math.sqrt(N)
    expect(Math.abs(moment(1))).toBeLessThan(error)
    expect(Math.abs(moment(2) - 1)).toBeLessThan(error * Math.sqrt(2))
    expect(Math.abs(moment(3))).toBeLessThan(error * Math.sqrt(15))
    expect(Math.abs(moment(4) - 3)).toBeLessThan(error * Math.sqrt(96))
    // Φ(1.96) = 0.975
    expect(Math.abs(mean(normal.map((v) => Number(Math.abs(v) > 1.96))) - 0.05)).toBeLessThan(error * 0.22)
    expect(normal.every(Number.isFinite)).toBe(true)
  })

  test('randn scales and shifts', () => {
    const x = values(randn([N], { mean: 10, std: 0.5 }))
    expect(Math.abs(mean(x) - 10)).toBeLessThan((5 * 0.5) / Math.sqrt(N))
    expect(Math.abs(mean(x.map((v) => (v - 10) ** 2)) - 0.25)).toBeLessThan(
      (5 * 0.25 * Math.SQRT2) / Math.sqrt(N),
    )
  })

  test('bernoulli has its rate', () => {
    const x = values(bernoulli([N], 0.3))
    expect(new Set(x)).toEqual(new Set([0, 1]))
    expect(Math.abs(mean(x) - 0.3)).toBeLessThan((5 * Math.sqrt(0.21)) / Math.sqrt(N))
    expect(new Set(values(bernoulli([100], 0)))).toEqual(new Set([0]))
    expect(new Set(values(bernoulli([100], 1)))).toEqual(new Set([1]))
  })

  test('randint has every value about equally often', () => {
    const x = randint(-2, 3, [N])
    expect(x.dtype).toBe('int32')
    for (const v of [-2, -1, 0, 1, 2]) {
      const share = mean(values(x).map((w) => Number(w === v)))
      expect(Math.abs(share - 0.2)).toBeLessThan((5 * Math.sqrt(0.16)) / Math.sqrt(N))
    }
  })

  test('randperm is a permutation', () => {
    const p = values(randperm(1000))
    expect(p).not.toEqual([...p].sort((a, b) => a - b))
    expect([...p].sort((a, b) => a - b)).toEqual(Array.from({ length: 1000 }, (_, i) => i))
  })

  test('multinomial follows its weights and never takes weight 0', () => {
    const x = values(multinomial([1, 0, 3], N))
    expect(x.includes(1)).toBe(false)
    expect(Math.abs(mean(x.map((v) => Number(v === 2))) - 0.75)).toBeLessThan(
      (5 * Math.sqrt(3 / 16)) / Math.sqrt(N),
    )
  })
})

describe('dropout', () => {
  test('drops its share, scales the rest, and keeps the expectation', () => {
    manualSeed(5)
    const N = 20_000
    const x = values(dropout(ones([N]), 0.3))
    expect(new Set(x)).toEqual(new Set([0, Math.fround(1 / 0.7)]))
    // The deviation of one element is √(p / (1 − p)) = 0.65; five standard errors.
    expect(Math.abs(mean(x) - 1)).toBeLessThan((5 * 0.65) / Math.sqrt(N))
  })

  test('its gradient has the mask of its output', () => {
    const x = ones([50], { requiresGrad: true })
    const y = dropout(x, 0.5)
    const seen = dataSync(y)
    expect(dataSync(grad(y.sum(), [x])[0])).toEqual(seen)
  })

  test('each call draws anew, on views by position', () => {
    manualSeed(5)
    const x = ones([40])
    const [a, b] = [dropout(x), dropout(x)]
    expect(dataSync(a)).not.toEqual(dataSync(b))
    manualSeed(5)
    expect(dataSync(dropout(ones([1]).expand([40])))).toEqual(dataSync(a))
  })

  test('with p = 0, or when not training, it is x itself; with p = 1 all zeros', () => {
    const x = ones([4])
    expect(dropout(x, 0)).toBe(x)
    expect(dropout(x, 0.5, false)).toBe(x)
    expect(values(dropout(x, 1))).toEqual([0, 0, 0, 0])
  })
})

describe('seeds', () => {
  test('the same seed gives the same numbers, on the host as well', () => {
    const draw = (): unknown[] => [values(randn([5])), values(rand([3])), hostRandom(), hostRandint(100)]
    manualSeed('a seed')
    const first = draw()
    expect(draw()).not.toEqual(first)
    manualSeed('a seed')
    expect(draw()).toEqual(first)
    manualSeed('another')
    expect(draw()).not.toEqual(first)
  })

  test('a longer draw begins as a shorter one', () => {
    manualSeed(1)
    const short = values(rand([10]))
    manualSeed(1)
    expect(values(rand([5, 4])).slice(0, 10)).toEqual(short)
  })

  test('the state goes through JSON', () => {
    manualSeed(9)
    rand([3])
    hostRandom()
    const state = JSON.parse(JSON.stringify(getRngState())) as ReturnType<typeof getRngState>
    const next = [values(rand([4])), hostRandom()]
    manualSeed(1000)
    setRngState(state)
    expect([values(rand([4])), hostRandom()]).toEqual(next)
  })

  test('a state that is none is refused, and changes nothing', () => {
    manualSeed(9)
    const state = getRngState()
    const { key, draw, host } = state as typeof state & { host: { i: number; j: number; S: number[] } }
    const wrong: unknown[] = [
      null,
      undefined,
      7,
      {},
      { ...state, key: [1] },
      { ...state, key: [1, Number.NaN] },
      { ...state, key: [1, 2 ** 40] },
      // No operator makes a number of it.
      { ...state, key: [{ toString: 1 }, 2] },
      { ...state, draw: 0.5 },
      { ...state, draw: '1' },
      { key, draw },
      { key, draw, host: {} },
      { key, draw, host: { ...host, i: 256 } },
      { key, draw, host: { ...host, S: host.S.slice(1) } },
      { key, draw, host: { ...host, S: host.S.map(() => 0) } },
      JSON.parse('{"__proto__": {"key": [1, 2], "draw": 0}}'),
    ]
    for (const saved of wrong)
      expect(() => setRngState(saved as never)).toThrow('setRngState: takes what getRngState')
    expect(getRngState()).toEqual(state)
  })

  test('a state is copied', () => {
    const state = getRngState()
    const before = JSON.stringify(state)
    setRngState(state)
    rand([3])
    hostRandom()
    expect(JSON.stringify(state)).toBe(before)
  })

  test('wrong arguments are refused', () => {
    expect(() => bernoulli([2], 1.5)).toThrow('bernoulli: p must lie within 0 … 1, got 1.5')
    expect(() => dropout(ones([2]), -1)).toThrow('dropout: p must lie within 0 … 1, got -1')
    expect(() => randint(3, 3, [2])).toThrow('randint: needs whole low < high')
    expect(() => multinomial([0, 0])).toThrow('must have a positive, finite sum')
    expect(() => multinomial([1, -1])).toThrow('weight 1 is -1')
  })
})
