import { createCpuBackend } from '@tilegrad/backend-cpu'
import * as tg from '@tilegrad/core'
import {
  applyProgramInto,
  applyProgramIntoEach,
  DTypeError,
  expr as e,
  full,
  noGrad,
  program,
  reference,
  ShapeError,
  type Tensor,
  tensor,
  ValueError,
  withBackend,
} from '@tilegrad/core'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

/** Corners in which frameworks have been caught with a wrong number, on every engine that computes at once. */
const cpus = [1, 2].map((threads) => createCpuBackend({ threads }))
const engines = [
  ['reference', reference],
  ['cpu, 1 thread', cpus[0]],
  ['cpu, 2 threads', cpus[1]],
] as const
beforeAll(async () => {
  for (const cpu of cpus) await cpu.ready()
})
afterAll(async () => {
  for (const cpu of cpus) await cpu.close()
})

const ints = (data: readonly number[]): Tensor => tensor(Int32Array.from(data))
const leaf = (data: tg.Nested): Tensor => tensor(data, { requiresGrad: true })
const values = (x: Tensor | null): number[] => [...(x as Tensor).dataSync()]

describe.each(engines)('%s', (_, engine) => {
  const on = (name: string, run: () => void): void => test(name, () => withBackend(engine, run))

  describe('in place on overlapping memory: as if the inputs had been read first', () => {
    on('transposed, flipped, shifted, broadcast', () => {
      const s = tensor([
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
      ])
      expect(values(s.add_(s.T))).toEqual([2, 6, 10, 6, 10, 14, 10, 14, 18])
      const x = tensor([1, 2, 3, 4])
      expect(values(x.mul_(x.flip([0])))).toEqual([4, 6, 6, 4])
      x.narrow(0, 1, 3).copy_(x.narrow(0, 0, 3))
      expect(values(x)).toEqual([4, 4, 6, 6])
      x.narrow(0, 0, 3).copy_(x.narrow(0, 1, 3))
      expect(values(x)).toEqual([4, 6, 6, 6])
      expect(values(x.div_(x.narrow(0, 1, 1)))).toEqual([Math.fround(2 / 3), 1, 1, 1])
      expect(values(x.sub_(x.select(0, 1)))).toEqual([Math.fround(Math.fround(2 / 3) - 1), 0, 0, 0])
      const m = tensor([
        [1, 2],
        [3, 4],
      ])
      // The very same view needs no copy, and columns of one matrix are not in each other's way.
      expect(values(m.add_(m))).toEqual([2, 4, 6, 8])
      m.select(1, 0).add_(m.select(1, 1))
      expect(values(m)).toEqual([6, 4, 14, 8])
      expect(() => tensor([1]).expand([3]).add_(1)).toThrow(ShapeError)
    })

    on('large, where threads would race', () => {
      const n = engine === reference ? 1003 : 300_003
      const x = tg.arange(n).to('float32')
      x.narrow(0, 0, n - 1).copy_(x.narrow(0, 1, n - 1))
      expect(values(x).findIndex((v, i) => v !== Math.min(i + 1, n - 1))).toBe(-1)
      const size = engine === reference ? 30 : 300
      const m = tg
        .arange(size * size)
        .to('float32')
        .reshape([size, size])
      const want = values(m.add(m.T))
      expect(values(m.add_(m.T))).toEqual(want)
    })

    on('programs of several outputs, and many calls as one', () => {
      const swap = program('swap', 2, ([a, b]) => [e.mul(b as tg.Expr, 2), e.mul(a as tg.Expr, 3)])
      const x = tensor([1, 2, 3, 4])
      const [a, b] = [x.narrow(0, 0, 2), x.narrow(0, 2, 2)]
      applyProgramInto([a, b], swap, [a, b])
      expect(values(x)).toEqual([6, 8, 3, 6])
      // Outputs that overlap are stored in their order.
      applyProgramInto([x.narrow(0, 0, 3), x.narrow(0, 1, 3)], swap, [x.narrow(0, 1, 3), x.narrow(0, 0, 3)])
      expect(values(x)).toEqual([12, 24, 9, 18])
      const less = program('less', 2, ([p, q]) => e.sub(p as tg.Expr, q as tg.Expr))
      const y = tensor([1, 2, 4, 8])
      const calls = [
        { outputs: [y], inputs: [y, y.flip([0])] },
        { outputs: [y], inputs: [y, y.narrow(0, 0, 1)] },
      ]
      applyProgramIntoEach(less, calls)
      expect(values(y)).toEqual([0, 5, 9, 14])
    })
  })

  describe('what a dtype cannot hold', () => {
    on('in place', () => {
      const x = ints([1, 2, 3])
      expect(() => x.div_(2)).toThrow(/^div_: result type float32 cannot be stored in int32/)
      expect(() => x.add_(0.5)).toThrow(DTypeError)
      expect(() => x.mul_(tensor([0.5, 0.5, 0.5]))).toThrow(DTypeError)
      expect(() => x.add_(3e9)).toThrow(/^add_: 3000000000 cannot be stored in int32/)
      expect(() => x.fill_(-Infinity)).toThrow(/^fill_: -Infinity cannot be stored in int32/)
      expect(() => tensor([true, false]).add_(1)).toThrow(/^add_: result type int32 cannot be stored in bool/)
      const half = program('half', 1, ([a]) => e.mul(a as tg.Expr, 0.5))
      expect(() => applyProgramIntoEach(half, [{ outputs: [x], inputs: [x] }])).toThrow(DTypeError)
      expect(values(x)).toEqual([1, 2, 3])
      expect(values(x.add_(2).mul_(ints([1, 2, 3])))).toEqual([3, 8, 15])
      // Copying and filling convert, as in PyTorch.
      expect(values(x.copy_(tensor([1.7, -1.7, 0])))).toEqual([1, -1, 0])
      expect(values(x.fill_(2.5))).toEqual([2, 2, 2])
      expect(values(tensor([1, 2]).add_(ints([1, 1])))).toEqual([2, 3])
    })

    on('creation and numbers as operands', () => {
      const int = { dtype: 'int32' } as const
      for (const bad of [3e9, -3e9, Number.NaN, Infinity]) {
        expect(() => tensor([bad], int)).toThrow(DTypeError)
        expect(() => tensor(Float64Array.of(bad), int)).toThrow(DTypeError)
        expect(() => full([2], bad, int)).toThrow(DTypeError)
        expect(() => ints([1]).pad([1, 0], { value: bad })).toThrow(DTypeError)
        expect(() => ints([1, 2]).maskedFill(tensor([true, false]), bad)).toThrow(DTypeError)
      }
      expect(() => ints([1]).maskedFill(tensor([true]), tensor(0.5))).toThrow(DTypeError)
      expect(() => ints([0, 1]).mul(-1e10)).toThrow(/^mul: -10000000000 cannot be stored in int32/)
      expect(() => ints([0, 1]).lt(2 ** 31)).toThrow(DTypeError)
      expect(() => tg.arange(0, 3e9, 1e9)).not.toThrow()
      expect(() => tg.arange(0, 4e9, 1e9)).toThrow(DTypeError)
      expect(() => tg.linspace(0, 3e9, 3, int)).toThrow(DTypeError)
      expect(() => tg.randint(2 ** 31 - 2, 2 ** 31 + 2, [3])).toThrow(DTypeError)
      expect(() => tg.dropout(ints([1]), 0.5)).toThrow(DTypeError)
      expect(values(tensor([2 ** 31 - 1, -(2 ** 31), 1.9], int))).toEqual([2 ** 31 - 1, -(2 ** 31), 1])
      // Infinity is a fraction: the comparison and the product are those of floats.
      expect(values(ints([1, -1]).lt(Infinity))).toEqual([1, 1])
      expect(values(tensor([1e10, -1e10, Number.NaN, -1.9]).to('int32'))).toEqual([
        2 ** 31 - 1,
        -(2 ** 31),
        0,
        -1,
      ])
    })
  })

  describe('subgradients at zero', () => {
    on('of std, and of a norm', () => {
      for (const f of [
        (x: Tensor) => x.std(),
        (x: Tensor) => x.reshape([1, 3]).std(1).sum(),
        (x: Tensor) => x.std(null, { correction: 0 }),
        (x: Tensor) => x.var(),
        (x: Tensor) => tg.totalNorm([x.sub(2)]),
      ]) {
        const x = leaf([2, 2, 2])
        const y = f(x)
        y.backward()
        expect([y.itemSync(), ...values(x.grad)]).toEqual([0, 0, 0, 0])
      }
      const one = leaf([5])
      one.std(null, { correction: 0 }).backward()
      expect(values(one.grad)).toEqual([0])
      // What PyTorch answers with NaN stays NaN: one element has no sample variance.
      expect(leaf([5]).std().itemSync()).toBeNaN()
      const x = leaf([3, 4])
      tg.totalNorm([x]).backward()
      expect(values(x.grad)).toEqual([0.6, 0.8].map(Math.fround))
      const [a, b] = [leaf([0, 1]), leaf([0, 0])]
      tg.totalNorm([a, b]).backward()
      expect([...values(a.grad), ...values(b.grad)]).toEqual([0, 1, 0, 0])
    })
  })

  describe('rows of one value', () => {
    const constants = [100.1, 12345.678, 100000.3, 1e30, -7.7]
    on('normalise to 0, with a gradient that has no part of them', () => {
      for (const n of [2, 7, 768, 5000]) {
        for (const c of constants) {
          const x = full([3, n], c, { requiresGrad: true })
          const y = tg.layerNorm(x, [n])
          expect(y.abs().amax().itemSync(), `${n} times ${c}`).toBe(0)
          y.sum().backward()
          expect((x.grad as Tensor).abs().amax().itemSync(), `gradient of ${n} times ${c}`).toBeLessThan(2e-5)
          const groups = full([2, 6, n], c)
          expect(tg.groupNorm(groups, 2).abs().amax().itemSync(), `groups of ${n} times ${c}`).toBe(0)
          const v = full([2, n], c, { requiresGrad: true })
          const variance = v.var(1)
          expect(values(variance), `variance of ${n} times ${c}`).toEqual([0, 0])
          variance.sum().add(v.std(0).sum()).backward()
          expect((v.grad as Tensor).abs().amax().itemSync()).toBe(0)
        }
      }
    })

    on('beside others, and large offsets', () => {
      // Spread 1 about a mean of 10⁶, where float32 steps by 1/16: exact multiples of it, so that float64 can judge.
      const n = 1024
      const offsets = Array.from({ length: n }, (_, i) => Math.round(16 * Math.sin(i)) / 16)
      const m = offsets.reduce((s, v) => s + v) / n
      const variance = offsets.reduce((s, v) => s + (v - m) ** 2, 0) / n
      const x = tensor([offsets.map((v) => v + 1e6), offsets.map(() => 1e6 + 0.0625)])
      expect(values(x.var(1, { correction: 0 }))[0]).toBeCloseTo(variance, 6)
      const y = values(tg.layerNorm(x, [n], null, null, { eps: 0.01 }))
      // The mean that is kept for the gradient is a float32: it misses by at most half a step, as PyTorch's.
      const worst = offsets.reduce(
        (w, v, i) => Math.max(w, Math.abs(y[i] - (v - m) / Math.sqrt(variance + 0.01))),
        0,
      )
      expect(worst).toBeLessThan((0.5 / 16) * (1 / Math.sqrt(variance)) * 1.01)
      expect(y.slice(n).every((v) => v === 0)).toBe(true)
    })
  })

  describe('division', () => {
    const floor = (a: number[], b: number[], dtype: tg.DType = 'float32'): number[] =>
      values(tensor(a, { dtype }).div(tensor(b, { dtype }), { roundingMode: 'floor' }))
    on('rounds down the exact quotient, as Python', () => {
      expect(floor([1, 6, 10, 8], [0.1, 0.1, 0.1, 0.2])).toEqual([9, 59, 99, 39])
      expect(floor([1, 6, 10, 0.3], [0.1, 0.1, 0.1, 0.1], 'float64')).toEqual([9, 59, 99, 2])
      expect(floor([7, -7, 7, -7], [2, 2, -2, -2])).toEqual([3, -4, -4, 3])
      expect(floor([6, -6, 6, -6], [2, 2, -2, -2])).toEqual([3, -3, -3, 3])
      expect(floor([-1, 1, 5, -5], [Infinity, -Infinity, Infinity, -Infinity])).toEqual([-1, -1, 0, 0])
      expect(floor([1, -1, Infinity, -Infinity], [0, 0, 0, 0])).toEqual([
        Infinity,
        -Infinity,
        Infinity,
        -Infinity,
      ])
      const nan = [Number.NaN, Number.NaN, Number.NaN, Number.NaN, Number.NaN]
      expect(floor([0, Number.NaN, 1, Infinity, Infinity], [0, 1, Number.NaN, 2, Infinity])).toEqual(nan)
      expect(floor([0, -0, 0, -0, 1, -1], [5, 5, -5, -5, 5, 5])).toEqual([0, -0, -0, 0, 0, -1])
      expect(floor([1e30, -1e30, 3e38], [1, 7, 1e-10])).toEqual(
        [1e30, -Math.fround(1e30) / 7, Infinity].map(Math.fround),
      )
      expect(floor([16777215, 16777216, -16777215], [1, 1, 2])).toEqual([16777215, 16777216, -8388608])
      expect(values(tensor([1, 2.5]).div(0.1, { roundingMode: 'floor' }))).toEqual([9, 24])
      expect(values(ints([1, 6]).div(0.1, { roundingMode: 'floor' }))).toEqual([9, 59])
      const x = leaf([1, 2])
      x.div(0.3, { roundingMode: 'floor' }).sum().backward()
      expect(values(x.grad)).toEqual([0, 0])
    })
    on('towards 0 cuts the quotient as the dtype rounds it', () => {
      const trunc = (dtype: tg.DType): number[] =>
        values(
          tensor([1, -1, 2.5, 7], { dtype }).div(tensor([0.1, 0.1, 0.1, -2], { dtype }), {
            roundingMode: 'trunc',
          }),
        )
      expect(trunc('float32')).toEqual([10, -10, 25, -3])
      expect(trunc('float64')).toEqual([10, -10, 25, -3])
    })
    on('by random numbers, as the remainder in float64 says', () => {
      const [a, b] = [tg.randn([2000], { std: 100 }), tg.randn([2000])]
      const [x, y] = [values(a), values(b)]
      const want = x.map((v, i) => {
        const d = y[i]
        const left = v % d
        const q = Math.round((v - left) / d)
        // Beyond 2²⁴ not every whole number is a float32.
        return Math.fround(left !== 0 && left < 0 !== d < 0 ? q - 1 : q + 0)
      })
      expect(values(a.div(b, { roundingMode: 'floor' }))).toEqual(want)
    })
    on('of integers: no negative powers', () => {
      expect(() => ints([2, 3]).pow(-1)).toThrow(/^pow: integers to the power -1 are no integers/)
      expect(values(ints([2, 1, -1]).pow(ints([-1, -3, -3])))).toEqual([0, 1, -1])
      expect(values(tensor([2, 4]).pow(-1))).toEqual([0.5, 0.25])
    })
    on('of integers by zero is refused, and by −1 wraps', () => {
      for (const roundingMode of ['floor', 'trunc'] as const) {
        expect(() => ints([1, -1]).div(0, { roundingMode })).toThrow(ValueError)
        expect(() => ints([1, -1]).div(ints([1, 0]), { roundingMode })).toThrow(
          /^div: integer division by zero/,
        )
        expect(() => tg.div(3, ints([0]), { roundingMode })).toThrow(ValueError)
        expect(values(ints([-(2 ** 31), 7]).div(-1, { roundingMode }))).toEqual([-(2 ** 31), -7])
      }
      expect(values(ints([1, -1, 0]).div(0))).toEqual([Infinity, -Infinity, Number.NaN])
    })
  })

  describe('sequences', () => {
    on('linspace begins and ends where it is told to', () => {
      for (const [a, b, n] of [
        [0.21436651, 0.96568555, 6],
        [-0.031608279794, 0.031531572342, 257],
        [0, 3.3, 12],
        [1, -5, 7],
        [2, 2, 3],
      ] as const) {
        const x = values(tg.linspace(a, b, n))
        expect([x[0], x[n - 1], x.length]).toEqual([Math.fround(a), Math.fround(b), n])
        x.forEach((v, i) => {
          expect(v).toBeCloseTo(a + ((b - a) * i) / (n - 1), 6)
        })
      }
      expect(values(tg.linspace(3, 9, 1))).toEqual([3])
      expect(values(tg.linspace(3, 9, 0))).toEqual([])
      expect(values(tg.linspace(0, 1, 11, { dtype: 'float64' }))[3]).toBeCloseTo(0.3, 15)
      expect(values(tg.linspace(0, 10, 4, { dtype: 'int32' }))).toEqual([0, 3, 6, 10])
      const [first, middle, last] = values(tg.linspace(-1, 1, 3))
      expect([first, middle, last]).toEqual([-1, 0, 1])
    })
    on('arange counts as PyTorch does, and rounds once', () => {
      expect(tg.arange(0, 1, 0.1).numel).toBe(10)
      expect(tg.arange(1, 1.3, 0.1).numel).toBe(4)
      expect(tg.arange(5, 0, -2).numel).toBe(3)
      expect(values(tg.arange(5, 0, -2))).toEqual([5, 3, 1])
      const x = values(tg.arange(0, 1000, 0.1))
      expect(x.findIndex((v, i) => v !== Math.fround(i * 0.1))).toBe(-1)
      expect(values(tg.arange(0, 0.5, 0.1, { dtype: 'float64' }))).toEqual([0, 0.1, 0.2, 3 * 0.1, 0.4])
      expect(() => tg.arange(0, Number.NaN)).toThrow(ShapeError)
      expect(() => tg.arange(0, 5, 0)).toThrow(ShapeError)
    })
  })

  describe('NaN', () => {
    on('as a bound of clamp gives NaN', () => {
      const nan = Number.NaN
      for (const f of [
        (x: Tensor) => x.clamp(nan, 3),
        (x: Tensor) => x.clamp(0, nan),
        (x: Tensor) => x.clamp(nan),
        (x: Tensor) => x.clamp(undefined, nan),
        (x: Tensor) => x.clamp(tensor([nan, nan]), tensor([3, 3])),
        (x: Tensor) => x.clamp(tensor([0, 0]), tensor([nan, nan])),
        (x: Tensor) => x.clamp(tensor([nan, nan])),
        (x: Tensor) => x.clamp(null, tensor(nan)),
      ]) {
        const x = leaf([1, 2])
        const y = f(x)
        expect(values(y)).toEqual([nan, nan])
        y.sum().backward()
        expect(values(x.grad)).toEqual([0, 0])
      }
      expect(values(tensor([nan, 5, -5]).clamp(-1, 1))).toEqual([nan, 1, -1])
      expect(values(tensor([1, 1]).clamp(tensor([2, nan]), tensor([3, 3])))).toEqual([2, nan])
    })
  })

  describe('infinity', () => {
    on('in a loss that grows linearly has a gradient of ±1', () => {
      for (const loss of [tg.smoothL1Loss, tg.huberLoss, tg.l1Loss]) {
        const x = leaf([Infinity, -Infinity, 0])
        loss(x, tg.zeros([3]), { reduction: 'sum' }).backward()
        expect(values(x.grad), loss.name).toEqual([1, -1, 0])
      }
    })
  })

  describe('classes', () => {
    on('out of range are refused', () => {
      for (const bad of [3, -1, 2 ** 31 - 1, -(2 ** 31)]) {
        expect(() => tg.oneHot(ints([0, bad]), 3), `oneHot ${bad}`).toThrow(ValueError)
        const logits = leaf([
          [0, 1, 2],
          [2, 1, 0],
        ])
        const t = ints([0, bad])
        expect(() => tg.crossEntropy(logits, t), `crossEntropy ${bad}`).toThrow(ValueError)
        expect(() => tg.crossEntropy(logits, t, { labelSmoothing: 0.1 })).toThrow(ValueError)
        expect(() => tg.crossEntropy(logits, t, { weight: tensor([1, 2, 3]) })).toThrow(ValueError)
        expect(() => tg.nllLoss(logits, t), `nllLoss ${bad}`).toThrow(ValueError)
        expect(() => tg.linearCrossEntropy(tg.ones([2, 4]), tg.ones([3, 4]), t)).toThrow(ValueError)
        expect(() => tg.linearCrossEntropy(tg.ones([2, 4]), tg.ones([3, 4]), t, { chunkSize: 1 })).toThrow(
          ValueError,
        )
        expect(() => tg.embedding(t, tg.ones([3, 2]))).toThrow(ValueError)
        expect(() => tg.indexSelect(tg.ones([3, 2]), 0, t)).toThrow(ValueError)
        expect(() => tg.gather(tg.ones([3]), 0, t)).toThrow(ValueError)
        expect(() => tg.scatterAdd(tg.ones([3]), 0, t, tg.ones([2]))).toThrow(ValueError)
        // As the index to be ignored it is none.
        expect(tg.crossEntropy(logits, t, { ignoreIndex: bad }).itemSync()).toBeCloseTo(2.4076059, 5)
        expect(
          tg.crossEntropy(logits, t, { ignoreIndex: bad, weight: tensor([2, 1, 1]) }).itemSync(),
        ).toBeCloseTo(2.4076059, 5)
      }
      expect(values(tg.oneHot(ints([2, 0]), 3))).toEqual([0, 0, 1, 1, 0, 0])
      expect(tg.oneHot(tg.zeros([2, 0], { dtype: 'int32' }), 3).shape).toEqual([2, 0, 3])
      expect(() => tg.oneHot(ints([0]), 0)).toThrow(ValueError)
      expect(() => tg.oneHot(ints([0]), 1.5)).toThrow(ValueError)
    })
    on('that do not count pass nothing on, not even NaN', () => {
      const row = (...other: number[]): number[] => [-other[0], other[0], 0, 0, other[1], -other[1]]
      for (const dtype of ['float32', 'float64'] as const) {
        const weight = tensor([1, 2], { dtype })
        const t = ints([0, -100, 1])
        for (const [loss, want] of [
          [(x: Tensor) => tg.crossEntropy(x, t), row(0.25, 0.25)],
          [(x: Tensor) => tg.crossEntropy(x, t, { reduction: 'none' }).sum(), row(0.5, 0.5)],
          [(x: Tensor) => tg.crossEntropy(x, t, { weight, reduction: 'sum' }), row(0.5, 1)],
          [(x: Tensor) => tg.crossEntropy(x, t, { labelSmoothing: 0.2 }), row(0.2, 0.2)],
          [
            (x: Tensor) => tg.linearCrossEntropy(x, tg.eye(2, 2, { dtype }), t, { chunkSize: 2 }),
            row(0.25, 0.25),
          ],
        ] as const) {
          const x = tensor([0, 0, Number.NaN, Infinity, 0, 0], { dtype }).reshape([3, 2]).detach()
          x.requiresGrad = true
          loss(x).backward()
          const got = values(x.grad)
          for (let i = 0; i < 6; i++) expect(got[i], `${loss} ${dtype}: ${got}`).toBeCloseTo(want[i], 6)
        }
      }
    })
    on('weights must fit them', () => {
      const [x, t] = [tg.zeros([2, 3]), ints([0, 1])]
      for (const loss of [tg.crossEntropy, tg.nllLoss]) {
        for (const n of [2, 5]) expect(() => loss(x, t, { weight: tg.ones([n]) })).toThrow(ShapeError)
        expect(() => loss(x, t, { weight: tg.ones([3, 1]) })).toThrow(ShapeError)
        expect(() => loss(x, t, { weight: ints([1, 1, 1]) })).toThrow(DTypeError)
        expect(() => loss(x, t, { weight: tg.ones([3], { dtype: 'float64' }) })).toThrow(DTypeError)
      }
      expect(() => tg.crossEntropy(x, x, { weight: tg.ones([2]) })).toThrow(ShapeError)
      expect(() => tg.crossEntropy(x, x, { ignoreIndex: 1 })).toThrow(ValueError)
      expect(() => tg.nllLoss(tg.zeros([2, 3], { dtype: 'int32' }), t)).toThrow(DTypeError)
    })
    on('are drawn from what can be drawn from', () => {
      for (const bad of [[Number.NaN, 1], [-1, 2], [Infinity, 1], [0, 0], []])
        expect(() => tg.multinomial(bad)).toThrow(tg.TilegradError)
      for (const n of [-1, 2 ** 31, 2 ** 53]) expect(() => tg.multinomial([1], n)).toThrow(ValueError)
      for (const p of [-0.1, 1.1, Number.NaN]) {
        expect(() => tg.bernoulli([2], p)).toThrow(ValueError)
        expect(() => tg.dropout(tg.ones([2]), p)).toThrow(ValueError)
      }
      expect(() => tg.rand([2], { low: 1, high: 0 })).toThrow(ValueError)
      expect(() => tg.rand([2], { high: Number.NaN })).toThrow(ValueError)
      for (const dtype of ['int32', 'bool'] as const) {
        expect(() => tg.rand([2], { dtype })).toThrow(/^rand: draws fractions, which /)
        expect(() => tg.randn([2], { dtype })).toThrow(DTypeError)
      }
      expect(() => tg.randn([2], { std: -1 })).toThrow(ValueError)
      expect(() => tg.randn([2], { mean: Infinity })).toThrow(ValueError)
    })
  })

  describe('sizes of 2³² and more, of views that repeat elements', () => {
    on('give the right number or say so', () => {
      const n = 2 ** 32 + 8
      const row = leaf([[1.5]])
      const long = row.expand([1, n])
      expect(long.matmul(tensor([[2]]).expand([n, 1])).itemSync()).toBe(Math.fround(3 * n))
      expect(long.sum().itemSync()).toBe(Math.fround(1.5 * n))
      expect([long.amax(), long.amin(), long.mean()].map((t) => t.itemSync())).toEqual([1.5, 1.5, 1.5])
      expect(tensor([1]).expand([n]).prod().itemSync()).toBe(1)
      expect(ints([3]).expand([n]).sum().itemSync()).toBe(24)
      expect(ints([3]).expand([n]).prod().itemSync()).toBe(6561)
      expect(values(ints([5, 2]).reshape([2, 1]).expand([2, n]).sum(1))).toEqual([40, 16])
      long.sum().backward()
      expect(values(row.grad)).toEqual([Math.fround(n)])
      for (const f of [
        () => long.argmax(1),
        () => long.exp(),
        () => long.cumsum(1),
        () => long.sort(1),
        () => long.softmax(1),
        () => tg.linear(long, tensor([[1]]).expand([1, n])),
        () => tg.gather(long, 1, ints([0]).reshape([1, 1])),
        () => tg.embedding(ints([0]), tensor([[1, 2]]).expand([n, 2])),
        () => tg.crossEntropy(long.detach(), ints([0])),
        () => long.contiguous(),
        () => tg.layerNorm(long, [n]),
        () => tg.where(long.gt(0), long, 0),
        () => tg.linspace(0, 1, n),
        () => tg.arange(0, n, 0.5),
        () => tg.arange(0, 1, 1e-20),
      ])
        expect(f, String(f)).toThrow(tg.TilegradError)
    })
  })

  // The reference adds up in float64, one after the other, and takes minutes.
  if (engine !== reference)
    test('10⁷ numbers add up to within a float32 rounding or few', () => {
      withBackend(engine, () => {
        const n = 10_000_000
        noGrad(() =>
          tg.scope(() => {
            for (const c of [0.1, 0.7].map(Math.fround)) {
              const x = full([n], c)
              const as = (...shape: number[]): Tensor => x.reshape(shape)
              const near = (got: number, want: number, tolerance = 1e-6): void =>
                expect(Math.abs(got - want) / want, `${got}, expected ${want}`).toBeLessThan(tolerance)
              near(x.sum().itemSync(), n * c)
              near(x.mean().itemSync(), c)
              near(values(as(n / 4, 4).sum(0))[1], (n / 4) * c)
              near(values(as(10, n / 100, 10).sum([0, 1]))[1], (n / 10) * c)
              near(values(as(n / 4, 4).T.sum(1))[1], (n / 4) * c)
              // 256 equal terms, which all round the same way, before they go over to float64; of tiles also a thousand
              // such blocks.
              for (const m of [1, 4, 40])
                near(
                  values(as(m, n / m).matmul(tg.ones([n / m, m])))[m - 1],
                  (n / m) * c,
                  m < 40 ? 4e-6 : 1.5e-5,
                )
              near(tg.totalNorm([x]).itemSync(), Math.sqrt(n) * c)
              near(x.cumsum(0).dataSync()[n - 1], n * c)
              near(tg.mseLoss(x, tg.zerosLike(x)).itemSync(), c * c)
              expect([x.var().itemSync(), x.std().itemSync()]).toEqual([0, 0])
            }
          }),
        )
      })
    })
})
