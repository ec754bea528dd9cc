/** Softmax, log-softmax and their gradients against the composition on the reference backend, in float64. */

import { layout, logSoftmax, softmax } from '@tilegrad/core'
import { beforeAll, describe, expect, test } from 'vitest'
import type { CpuBackend } from '../src/backend.ts'
import { expBelow } from '../src/kernels/softmax.ts'
import { f32x4, i32, v128 } from '../src/wasm/index.ts'
import { check, evaluate, makeBackends } from './fused-rig.ts'
import { get, integer, output, pick, put, random, randomLayout, release, twin } from './row-rig.ts'

let backends: { name: string; backend: CpuBackend }[]
beforeAll(async () => {
  backends = await makeBackends()
})

const operators = [
  // x − m, of size up to 60, is rounded by 2e-6, which exp makes a relative error; exp adds as much as 4e-6 (see
  // expBelow), the sum little. The gradient subtracts terms of size up to |y dy|.
  {
    name: 'softmax',
    op: softmax,
    tolerances: [
      [1e-37, 8e-6],
      [1e-6, 1e-5],
    ],
  },
  // The output is a difference of numbers of size |x| ≤ 30.
  {
    name: 'log_softmax',
    op: logSoftmax,
    tolerances: [
      [4e-6, 1e-6],
      [5e-6, 1e-5],
    ],
  },
] as const

for (const { name, op, tolerances } of operators) {
  describe(name, () => {
    const one = (shape: number[], rnd: () => number, scale = 10, value?: (i: number) => number) => {
      const x = twin(
        randomLayout(rnd, shape, { lastDense: true }),
        'float32',
        value ?? (() => (rnd() - 0.5) * scale),
      )
      const dout = twin(randomLayout(rnd, shape, { lastDense: true }), 'float32', () => rnd() - 0.5)
      const c = { inputs: [x], needs: [true], dout, call: ([t]: readonly never[]) => op(t as never, -1) }
      check(backends, c as never, [name, `${name}Backward`], tolerances)
    }

    test('any rows', () => {
      const rnd = random(name.length)
      for (let i = 0; i < 60; i++) {
        const rank = integer(rnd, 1, 4)
        const shape = Array.from({ length: rank }, (_, d) =>
          d === rank - 1 ? pick(rnd, [1, 2, 5, 16, 31, 67, 200]) : pick(rnd, [1, 2, 3, 9]),
        )
        one(shape, rnd, pick(rnd, [1, 10, 60]))
      }
    })

    test('long rows and many rows', () => {
      const rnd = random(3)
      one([3, 10_000], rnd)
      one([700, 65], rnd)
    })

    test('extreme values', () => {
      const rnd = random(4)
      const special = (i: number) => [0, -Infinity, 80, -80, 88.9, -120][i % 6] as number
      const c = (value: (i: number) => number, shape = [4, 30]) => ({
        inputs: [twin(layout.contiguous(shape), 'float32', value)],
        needs: [false],
        dout: null,
        call: (([t]: readonly never[]) => op(t as never, -1)) as never,
      })
      check(backends, c(special), [name], tolerances)
      check(
        backends,
        c(() => 1e30 * (rnd() - 0.5)),
        [name],
        [[0, 1e-6]],
      )
      // NaN anywhere, +∞, and rows of nothing but −∞ are NaN throughout, other rows not.
      check(
        backends,
        c((i) => (i === 35 ? Number.NaN : 1)),
        [name],
        tolerances,
      )
      check(
        backends,
        c((i) => (i === 35 ? Infinity : 1)),
        [name],
        tolerances,
      )
      check(
        backends,
        c((i) => (i >= 30 && i < 60 ? -Infinity : 1)),
        [name],
        tolerances,
      )
      const rows = evaluate(
        backends[0]?.backend as CpuBackend,
        c((i) => (i >= 30 && i < 60 ? -Infinity : 1)),
      )
      expect(rows.results[0]?.slice(30, 60).every(Number.isNaN)).toBe(true)
      expect(rows.results[0]?.slice(0, 30).every(Number.isFinite)).toBe(true)
    })

    test('other dims and strided last dims are composed', () => {
      const { backend } = backends[0] as { backend: CpuBackend }
      const strided = twin({ shape: [4, 6], strides: [1, 4], offset: 0 }, 'float32', (i) => i)
      const plain = twin(layout.contiguous([4, 6]), 'float32', (i) => i)
      const fused = (input: typeof plain, dim: number) =>
        evaluate(backend, { inputs: [input], needs: [false], dout: null, call: ([t]) => op(t as never, dim) })
          .fused
      expect(fused(strided, 1)).toEqual([])
      expect(fused(plain, 0)).toEqual([])
      expect(fused(plain, 1)).toEqual([name])
    })
  })
}

test('expBelow is as exact as it says, down to where it gives 0', () => {
  const n = 100_000
  const rnd = random(41)
  const x = twin(layout.contiguous([n]), 'float32', (i) =>
    i < 4 ? ([0, -Infinity, Number.NaN, -1e30][i] as number) : -90 * rnd() ** 2,
  )
  for (const { name, backend } of backends) {
    const { engine } = backend
    const kernel = engine.kernel('test expBelow', (m) => {
      m.kernel('main', (f, start, end, params) => {
        const [from, to] = [f.let(i32.load(params)), f.let(i32.load(params, 4))]
        const exp = expBelow(f)
        const zero = f.let(f32x4.const(0))
        f.for(start, end, 1, (i) => {
          const byte = f.let(i.shl(4))
          f.store(to.add(byte), exp(v128.load(from.add(byte)), zero))
        })
      })
    })
    const [input, out] = [put(engine, x), output(engine, [n], 'float32')]
    engine.run(kernel, n / 4, n, [engine.address(input), engine.address(out)])
    const got = get(engine, out)
    release(engine, [input, out])
    expect(Array.from(got.subarray(0, 4))).toEqual([1, 0, Number.NaN, 0])
    const slope = engine.features.relaxed ? 1.4e-8 : 7.5e-8
    for (let i = 4; i < n; i++) {
      const d = x.data[i] as number
      const want = Math.exp(d)
      // Below 2⁻¹²⁶ results lose bits, and below 2⁻¹²⁶·⁵ they are 0.
      const allowed = d < -87.3 ? 2 ** -126 : want * (1.6e-7 - slope * d)
      if (!(Math.abs((got[i] as number) - want) <= allowed))
        expect.fail(`${name}: exp(${d}) is ${want}, got ${got[i]}`)
    }
  }
})
