/** Softmax, log-softmax and their gradients against the composition on the reference backend, in float64. */

import { logSoftmax, softmax, type Tensor, tensor } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { backends, check, operand, plain } from './support/fused.ts'
import { integer, pick, random } from './support/random.ts'

const operators = [
  // x − m, of size up to 60, is rounded by 2e-6, which exp makes a relative error; WGSL's exp may add 3 + 2 |x − m| ulp.
  // The gradient subtracts terms of size up to |y dy|.
  {
    name: 'softmax',
    op: softmax,
    tolerances: [
      [1e-37, 2e-5],
      [1e-6, 2e-5],
    ],
  },
  // The output is a difference of numbers of size |x| ≤ 30.
  {
    name: 'log_softmax',
    op: logSoftmax,
    tolerances: [
      [5e-6, 1e-6],
      [6e-6, 2e-5],
    ],
  },
] as const

for (const { name, op, tolerances } of operators) {
  describe(name, () => {
    const one = (shape: number[], rnd: () => number, scale = 10) => {
      const [lead, last] = [shape.slice(0, -1), shape.slice(-1)]
      return check(
        backends,
        {
          inputs: [operand(rnd, lead, last, () => (rnd() - 0.5) * scale)],
          needs: [true],
          dout: operand(rnd, lead, last, () => rnd() - 0.5),
          call: ([t]) => op(t, -1),
        },
        [name, `${name}Backward`],
        tolerances,
      )
    }

    test('any rows', async () => {
      const rnd = random(name.length)
      for (let i = 0; i < 40; i++) {
        const rank = integer(rnd, 1, 4)
        const shape = Array.from({ length: rank }, (_, d) =>
          pick(rnd, d === rank - 1 ? [1, 2, 4, 5, 16, 31, 65, 200, 384] : [1, 2, 3, 9]),
        )
        await one(shape, rnd, pick(rnd, [1, 10, 60]))
      }
    })

    test('rows of every tiling: in registers, in loops, of vectors and not', async () => {
      const rnd = random(3)
      for (const n of [8, 9, 513, 1024, 1200, 2048, 2053, 4100, 8192, 8200, 9001, 40_000])
        await one([pick(rnd, [1, 2]), n], rnd)
      await one([700, 65], rnd)
    })

    test('extreme values', async () => {
      const rnd = random(4)
      const given = (n: number, value: (i: number) => number) =>
        check(
          backends,
          { inputs: [plain([4, n], value)], needs: [false], dout: null, call: ([t]) => op(t, -1) },
          [name],
          tolerances,
        )
      for (const n of [30, 32, 2057, 8204]) {
        await given(n, (i) => [0, -Infinity, 80, -80, 88.9, -120][i % 6])
        await given(n, () => 1e30 * (rnd() - 0.5))
        // NaN anywhere, +∞, and rows of nothing but −∞ are NaN throughout, other rows not.
        await given(n, (i) => (i === n + 5 ? NaN : 1))
        await given(n, (i) => (i === n + 5 ? Infinity : 1))
        await given(n, (i) => (i >= n && i < 2 * n ? -Infinity : 1))
      }
    })

    test('other dims and strided last dims are left to the composition', async () => {
      const { backend } = backends[0]
      const kernel = backend.kernels[name]
      const x = tensor(new Float32Array(24), { device: backend }).reshape([4, 6])
      const asked = (t: Tensor, dim: number) => kernel?.supports?.([t], { dim } as never)
      expect([asked(x, 1), asked(x, 0), asked(x.transpose(0, 1), 1)]).toEqual([true, false, false])
    })
  })
}
