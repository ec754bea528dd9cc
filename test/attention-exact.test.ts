/**
 * What attention and cross-entropy must give where arithmetic would betray them: scores so large that ln Σ vanishes beside
 * them, hidden keys that are not finite, masks of the wrong dtype, and nothing to attend with or to. On the reference
 * and on the CPU engine with one thread and two; tolerances are absolute and relative.
 */

import {
  type AttentionOptions,
  type Backend,
  createBlockMask,
  createCpuBackend,
  crossEntropy,
  DTypeError,
  full,
  linearCrossEntropy,
  logSoftmax,
  logsumexp,
  manualSeed,
  ones,
  reference,
  ringAttention,
  ringShard,
  ringUnshard,
  runRanks,
  scaledDotProductAttention,
  softmax,
  type Tensor,
  tensor,
  where,
  withBackend,
  zeros,
} from 'tilegrad'
import { afterAll, describe, expect, test } from 'vitest'
import { random } from './kernels/random.ts'

const [one, two] = [createCpuBackend({ threads: 1 }), createCpuBackend({ threads: 2 })]
afterAll(async () => {
  await one.close()
  await two.close()
})
const engines: [string, Backend][] = [
  ['reference', reference],
  ['cpu, 1 thread', one],
  ['cpu, 2 threads', two],
]
const largest = -3.4028234663852886e38

type Numbers = ArrayLike<number>
/** Says where two lists differ by more than `tolerance · (1 + |want|)`; NaN equals NaN. */
function expectClose(got: Numbers, want: Numbers, tolerance: number, context: string): void {
  expect(got.length, context).toBe(want.length)
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i] as number, want[i] as number]
    const same = Object.is(a, b) || Math.abs(a - b) <= tolerance * (1 + Math.abs(b))
    if (!same) expect(a, `${context}, element ${i}`).toBe(b)
  }
}
const numbers = (t: Tensor): Numbers => Array.from(t.dataSync() as Numbers)
const leaf = (data: Numbers, shape: readonly number[]): Tensor =>
  tensor(Float32Array.from(data), shape, { requiresGrad: true })

describe.each(engines)('large scores: %s', (_, engine) => {
  /** Weights of a row of float32 scores, in float64. */
  const weightsOf = (row: Numbers): number[] => {
    const top = Math.max(...Array.from(row))
    const e = Array.from(row, (s) => Math.exp(s - top))
    const sum = e.reduce((a, b) => a + b)
    return e.map((x) => x / sum)
  }
  const offsets = [0, 1e4, 1e5, 1e6, 1e8, -1e9, 1e30, largest]

  test.each(offsets)('cross-entropy and its relatives with logits near %d', (offset) =>
    withBackend(engine, () => {
      const [n, c] = [5, 7]
      // Steps that the format can tell apart beside the offset.
      const step = Math.max(1, 2 ** (Math.floor(Math.log2(Math.abs(offset) || 1)) - 23))
      const logits = Float32Array.from({ length: n * c }, (_, i) => offset + step * ((i * 5) % 3))
      const labels = [0, 6, 2, 3, 1]
      const p = Array.from({ length: n }, (_, i) => weightsOf(logits.subarray(i * c, (i + 1) * c)))
      const want = p.flatMap((row, i) => row.map((x, j) => (x - Number(labels[i] === j)) / n))
      const target = tensor(Int32Array.from(labels), [n])
      for (const [name, loss] of [
        ['crossEntropy', (x: Tensor) => crossEntropy(x, target)],
        ['label smoothing', (x: Tensor) => crossEntropy(x, target, { labelSmoothing: 1e-9 })],
        ['logSoftmax', (x: Tensor) => logSoftmax(x, 1).mul(oneHot(labels, c)).sum().div(-n)],
        [
          'logsumexp',
          (x: Tensor) =>
            logsumexp(x, 1)
              .sum()
              .sub(x.mul(oneHot(labels, c)).sum())
              .div(n),
        ],
      ] as const) {
        const x = leaf(logits, [n, c])
        loss(x).backward()
        expectClose(numbers(x.grad as Tensor), want, 1e-6, name)
      }
      expectClose(numbers(softmax(leaf(logits, [n, c]), 1)), p.flat(), 1e-6, 'softmax')
    }),
  )

  test('the logits of linearCrossEntropy, in one piece and in chunks', () =>
    withBackend(engine, () => {
      for (const chunkSize of [2, 100]) {
        const x = leaf([1e6, 1e6, 1e6], [3, 1])
        linearCrossEntropy(x, ones([4, 1]), tensor(Int32Array.from([0, 1, 2]), [3]), { chunkSize }).backward()
        const weight = leaf(new Float32Array(4).fill(1), [4, 1])
        const t = tensor(Int32Array.from([0, 1, 2]), [3])
        linearCrossEntropy(ones([3, 1]).mul(1e6), weight, t, { chunkSize, reduction: 'sum' }).backward()
        // Σ over rows of 10⁶ (1/4 − [c = target]).
        expectClose(numbers(weight.grad as Tensor), [-25e4, -25e4, -25e4, 75e4], 1e-6, `${chunkSize}`)
        expectClose(numbers(x.grad as Tensor), [0, 0, 0], 1e-6, `${chunkSize}`)
      }
    }))

  test.each(offsets)('attention with a mask of %d to add', (offset) =>
    withBackend(engine, () => {
      const [t, s] = [9, 131]
      const next = random(3)
      const step = Math.max(1, 2 ** (Math.floor(Math.log2(Math.abs(offset) || 1)) - 23))
      // Small whole numbers: their products, scaled by `step`, are exact, and so are sums with the offset.
      const whole = (n: number): Float32Array =>
        Float32Array.from({ length: n }, () => Math.floor(3 * next()))
      const finest = offset === largest ? 0 : step
      const [q, k, v, dout] = [whole(t), whole(s), whole(2 * s), whole(2 * t)] as const
      const scores = Array.from({ length: t }, (_, i) =>
        Float32Array.from(k, (x) => Math.fround(Math.fround(x * (q[i] as number) * finest) + offset)),
      )
      const p = scores.map(weightsOf)
      const out = p.flatMap((row) =>
        [0, 1].map((d) => row.reduce((a, w, j) => a + w * (v[2 * j + d] as number), 0)),
      )
      const dv = new Float64Array(2 * s)
      const [dq, dk] = [new Float64Array(t), new Float64Array(s)]
      p.forEach((row, i) => {
        const dp = row.map((_, j) =>
          [0, 1].reduce((a, d) => a + (dout[2 * i + d] as number) * (v[2 * j + d] as number), 0),
        )
        const delta = row.reduce((a, w, j) => a + w * (dp[j] as number), 0)
        row.forEach((w, j) => {
          const ds = finest * w * ((dp[j] as number) - delta)
          dq[i]! += ds * (k[j] as number)
          dk[j]! += ds * (q[i] as number)
          for (const d of [0, 1]) dv[2 * j + d]! += w * (dout[2 * i + d] as number)
        })
      })
      const leaves = [leaf(q, [1, 1, t, 1]), leaf(k, [1, 1, s, 1]), leaf(v, [1, 1, s, 2])] as const
      const got = scaledDotProductAttention(...leaves, { attnMask: full([t, s], offset), scale: finest })
      expectClose(numbers(got), out, 1e-5, 'out')
      got
        .mul(tensor(dout, [1, 1, t, 2]))
        .sum()
        .backward()
      // Sums of weights over 9 queries; those of dQ and dK are of terms of either sign, as large as `step`.
      const grads = leaves.map((x) => numbers(x.grad as Tensor))
      expectClose(grads[2] as Numbers, dv, 1e-5, 'dv')
      if (finest === 0) return
      const down = (x: Numbers): number[] => Array.from(x, (y) => y / finest)
      expectClose(down(grads[0] as Numbers), down(dq), 2e-5, 'dq')
      expectClose(down(grads[1] as Numbers), down(dk), 2e-5, 'dk')
    }),
  )

  test.each([1e5, 1e8, 1e30])('ring attention with scores of %d: the mean of all values', async (score) => {
    const [t, ranks] = [11, 3]
    const parts = await runRanks(ranks, async (link) => {
      const data = [
        full([1, 1, t, 1], score),
        ones([1, 1, t, 1]),
        tensor(
          Float32Array.from({ length: t }, (_, i) => i),
          [1, 1, t, 1],
        ),
      ]
      const [q, k, v] = data.map((x) => ringShard(x.to(engine), 2, link, 'contiguous')) as [
        Tensor,
        Tensor,
        Tensor,
      ]
      const { out, backward } = await ringAttention(link, q, k, v)
      const { dv } = await backward(ones(out.shape, { device: engine }))
      return { out, dv }
    })
    expectClose(
      numbers(
        ringUnshard(
          parts.map((x) => x.out),
          2,
          'contiguous',
        ),
      ),
      new Array(t).fill(5),
      1e-5,
      'out',
    )
    expectClose(
      numbers(
        ringUnshard(
          parts.map((x) => x.dv),
          2,
          'contiguous',
        ),
      ),
      new Array(t).fill(1),
      1e-5,
      'dv',
    )
  })
})

const oneHot = (labels: readonly number[], c: number): Tensor =>
  tensor(labels.map((label) => Array.from({ length: c }, (_, j) => Number(j === label))))

interface Sizes {
  H: number
  Hk: number
  T: number
  S: number
  D: number
}

describe.each(engines)('hidden keys: %s', (_, engine) => {
  /** Output and gradients of attention with `bad` in the rows of k and v that `spoilt` picks. */
  function evaluate(
    { H, Hk, T, S, D }: Sizes,
    options: () => AttentionOptions,
    bad: number,
    spoilt: (key: number) => boolean,
    what: 'k' | 'v' | 'both',
  ): Numbers[] {
    const next = random(T + S)
    const data = (n: number): Float32Array => Float32Array.from({ length: n }, () => 2 * next() - 1)
    const [q, k, v, dout] = [H * T * D, Hk * S * D, Hk * S * D, H * T * D].map(data) as Float32Array[]
    const spoil = (x: Float32Array, odd: number): Float32Array =>
      x.map((y, i) => (spoilt(Math.floor(i / D) % S) && (i % D) % 2 === odd ? bad : y))
    const leaves = [
      leaf(q as Float32Array, [1, H, T, D]),
      leaf(what === 'v' ? (k as Float32Array) : spoil(k as Float32Array, 0), [1, Hk, S, D]),
      leaf(what === 'k' ? (v as Float32Array) : spoil(v as Float32Array, 1), [1, Hk, S, D]),
    ] as const
    manualSeed(5)
    const out = scaledDotProductAttention(...leaves, options()).keep()
    out
      .mul(tensor(dout as Float32Array, [1, H, T, D]))
      .sum()
      .backward()
    return [out, ...leaves.map((x) => x.grad as Tensor)].map(numbers)
  }

  const sizes: Sizes[] = [
    { H: 2, Hk: 1, T: 3, S: 5, D: 4 },
    { H: 2, Hk: 2, T: 70, S: 130, D: 20 },
    { H: 4, Hk: 2, T: 100, S: 100, D: 16 },
  ]
  const masks: [string, (sizes: Sizes) => () => AttentionOptions][] = [
    [
      'bool',
      ({ T, S }) =>
        () => ({ attnMask: tensor(flags(T, S)) }),
    ],
    [
      'float',
      ({ T, S }) =>
        () => ({ attnMask: where(tensor(flags(T, S)), tensor(0.5), -Infinity) }),
    ],
    [
      'bool, causal',
      ({ T, S }) =>
        () => ({ attnMask: tensor(flags(T, S)), isCausal: 'bottom-right' }),
    ],
    [
      'with dropout',
      ({ T, S }) =>
        () => ({ attnMask: tensor(flags(T, S)), dropoutP: 0.3 }),
    ],
    [
      'with ALiBi',
      ({ T, S, H }) =>
        () => ({ attnMask: tensor(flags(T, S)), alibi: ones([H]).mul(0.1) }),
    ],
    [
      'one that gets a gradient',
      ({ T, S }) =>
        () => ({
          attnMask: leaf(
            flags(T, S)
              .flat()
              .map((x) => (x ? 0.5 : -Infinity)),
            [T, S],
          ),
        }),
    ],
  ]
  /** Keys 1 and 3, and the last one, are hidden from all queries; others from some. */
  const never = (S: number) => (j: number) => j === 1 || j === 3 || j === S - 1
  const flags = (T: number, S: number): boolean[][] =>
    Array.from({ length: T }, (_, i) =>
      Array.from({ length: S }, (_, j) => !never(S)(j) && (i * 7 + j * 3) % 5 !== 0),
    )

  describe.each(masks)('%s', (_, options) => {
    // The reference does not know blocks.
    test.each(engine === reference ? sizes.slice(0, 1) : sizes)('%o', (size) =>
      withBackend(engine, () => {
        const run = (bad: number, what: 'k' | 'v' | 'both') =>
          evaluate(size, options(size), bad, never(size.S), what)
        for (const [what, bad] of [
          ['k', Number.NaN],
          ['v', Number.NaN],
          ['both', Infinity],
          ['both', -Infinity],
        ] as const) {
          const clean = run(0.25, what)
          run(bad, what).forEach((x, i) => {
            expectClose(x, clean[i] as Numbers, 1e-6, `${what} ${bad}: ${['out', 'dq', 'dk', 'dv'][i]}`)
          })
        }
      }),
    )
  })

  test.each([
    ['causal', () => ({ isCausal: true }), (i: number, j: number) => j <= i],
    ['a window', () => ({ isCausal: true, window: 9 }), (i: number, j: number) => j <= i && j > i - 9],
    [
      'a block mask',
      () => ({ blockMask: createBlockMask((q, k) => k === q, { blockSize: 16, qLen: 110, kvLen: 110 }) }),
      (i: number, j: number) => Math.floor(i / 16) === Math.floor(j / 16),
    ],
  ] as const)('%s: only queries that see the key learn of it', (_, options, sees) =>
    withBackend(engine, () => {
      const size = { H: 2, Hk: 1, T: 110, S: 110, D: 8 }
      const key = 37
      const run = (bad: number) => evaluate(size, options, bad, (j) => j === key, 'both')
      const clean = run(0)
      for (const bad of [Number.NaN, Infinity]) {
        const got = run(bad)
        for (let row = 0; row < 2 * 110; row++) {
          const [out, dq] = [0, 1].map((i) =>
            Array.from(got[i] as Numbers).slice(8 * row, 8 * row + 8),
          ) as number[][]
          const i = row % 110
          // An infinite key may well have a score of −∞, and then no weight.
          if (sees(i, key) && Number.isNaN(bad)) expect(out?.some(Number.isNaN), `row ${row}`).toBe(true)
          if (!sees(i, key))
            [out, dq].forEach((x, which) => {
              const want = Array.from(clean[which] as Numbers).slice(8 * row, 8 * row + 8)
              expectClose(x as number[], want, 1e-6, `${bad}, ${which ? 'dq' : 'out'} of row ${row}`)
            })
        }
      }
    }),
  )

  test('a visible NaN is seen, in its column only where it is a value', () =>
    withBackend(engine, () => {
      const v = tensor([1, 2, 3, Number.NaN, 5, Infinity], [1, 1, 3, 2])
      const mask = tensor([
        [true, true, false],
        [true, false, true],
        [true, false, false],
      ])
      const out = scaledDotProductAttention(zeros([1, 1, 3, 1]), zeros([1, 1, 3, 1]), v, { attnMask: mask })
      expect(numbers(out)).toEqual([2, Number.NaN, 3, Infinity, 1, 2])
    }))
})

describe.each(engines)('masks and sizes: %s', (_, engine) => {
  test('a mask is bool or floating', () =>
    withBackend(engine, () => {
      const x = ones([1, 1, 2, 1])
      const int = tensor(Int32Array.from([1, 0, 1, 1]), [2, 2])
      const v = tensor([1, 2], [1, 1, 2, 1])
      expect(() => scaledDotProductAttention(x, x, v, { attnMask: int })).toThrow(DTypeError)
      expect(() => scaledDotProductAttention(x, x, v, { attnMask: int })).toThrow(
        /attnMask must be bool.*\.to\('bool'\)/,
      )
      expect(numbers(scaledDotProductAttention(x, x, v, { attnMask: int.to('bool') }))).toEqual([1, 1.5])
      const guess: object = {
        attnMask: [
          [1, 0],
          [1, 1],
        ],
      }
      expect(() => scaledDotProductAttention(x, x, v, guess)).toThrow(DTypeError)
      for (const call of [() => int.maskedFill(int, 7), () => where(int, 1, 2), () => where(ones([2]), 1, 2)])
        expect(call).toThrow(/must be bool, not .*\.to\('bool'\)/)
    }))

  const base = { b: 1, h: 2, hk: 2, t: 5, s: 6, d: 4, dv: 3 }
  test.each([
    { h: 0 },
    { b: 0 },
    { t: 0 },
    { s: 0 },
    { t: 0, s: 0 },
    { d: 0 },
    { dv: 0 },
    { d: 0, dv: 0 },
    { h: 0, t: 0, s: 0 },
  ])('nothing of %o: right shapes, zeros, gradients', (less) =>
    withBackend(engine, () => {
      const { b, h, hk, t, s, d, dv } = { ...base, ...less }
      for (const options of [
        {},
        { isCausal: true },
        { attnMask: ones([t, s]).eq(1) },
        { dropoutP: 0.5 },
        { window: 2 },
      ]) {
        const make = (shape: number[]): Tensor => ones(shape, { requiresGrad: true })
        const [q, k, v] = [make([b, h, t, d]), make([b, hk, s, d]), make([b, hk, s, dv])] as const
        const out = scaledDotProductAttention(q, k, v, options).keep()
        expect(out.shape).toEqual([b, h, t, dv])
        out.sum().backward()
        for (const x of [q, k, v]) expect(x.grad?.shape).toEqual(x.shape)
        for (const x of [q, k]) expect(numbers(x.grad as Tensor).length).toBe(x.numel)
        const all = [out, q.grad, k.grad, v.grad].flatMap((x) => Array.from(numbers(x as Tensor)))
        expect(all.every(Number.isFinite)).toBe(true)
        // Without queries or heads nothing flows back; without keys nothing comes out.
        if (h * t === 0)
          expect(
            numbers(v.grad as Tensor).length === 0 ||
              Math.max(...Array.from(numbers(v.grad as Tensor))) === 0,
          ).toBe(true)
        if (s === 0) expect(Array.from(numbers(out)).every((x) => x === 0)).toBe(true)
      }
    }),
  )

  test('heads of size 0 weigh all keys alike', () =>
    withBackend(engine, () => {
      const v = tensor([1, 2, 6], [1, 1, 3, 1])
      expect(numbers(scaledDotProductAttention(zeros([1, 1, 2, 0]), zeros([1, 1, 3, 0]), v))).toEqual([3, 3])
    }))
})
