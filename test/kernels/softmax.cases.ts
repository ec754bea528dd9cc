/** Softmax, log-softmax and their gradients. */

import { logSoftmax, softmax, type Tensor, tensor } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { check, type Engine, evaluate, rounds, type Tolerances } from './fused.ts'
import { dense, rows } from './operand.ts'
import { integer, pick, random } from './random.ts'

const operators: Readonly<Record<'softmax' | 'log_softmax', (x: Tensor, dim: number) => Tensor>> = {
  softmax,
  log_softmax: logSoftmax,
}

export function testSoftmax(engine: Engine, tolerances: Record<'softmax' | 'log_softmax', Tolerances>): void {
  describe.each(['softmax', 'log_softmax'] as const)('%s', (name) => {
    const op = operators[name]
    const along = ([t]: readonly Tensor[]): Tensor => op(t, -1)
    const one = (rnd: () => number, shape: readonly number[], scale = 10) => {
      const [lead, last] = [shape.slice(0, -1), shape.slice(-1)]
      const inputs = [rows(rnd, lead, last, () => (rnd() - 0.5) * scale)]
      const dout = rows(rnd, lead, last, () => rnd() - 0.5)
      const c = { inputs, needs: [true], dout, call: along }
      return check(engine, c, [name, `${name}Backward`], tolerances[name])
    }

    test('any rows', async () => {
      const rnd = random(name.length)
      for (let i = 0; i < rounds(engine, 60); i++) {
        const rank = integer(rnd, 1, 4)
        const shape = Array.from({ length: rank }, (_, d) =>
          pick(rnd, d === rank - 1 ? [1, 2, 4, 5, 16, 31, 65, 67, 200, 384] : [1, 2, 3, 9]),
        )
        await one(rnd, shape, pick(rnd, [1, 10, 60]))
      }
    })

    test('rows of every tiling: in registers, in loops, of vectors and not; many rows', async () => {
      const rnd = random(3)
      for (const n of [8, 9, 513, 1024, 1200, 2048, 2053, 4100, 8192, 8200, 9001, 40_000])
        await one(rnd, [pick(rnd, [1, 2, 3]), n])
      await one(rnd, [700, 65])
    })

    test('extreme values', async () => {
      const rnd = random(4)
      const given = (n: number, value: (i: number) => number) => ({
        inputs: [dense([4, n], value)],
        needs: [false],
        dout: null,
        call: along,
      })
      const extreme = (n: number, value: (i: number) => number, within = tolerances[name]) =>
        check(engine, given(n, value), [name], within)
      for (const n of [30, 32, 2057, 8204]) {
        await extreme(n, (i) => [0, -Infinity, 80, -80, 88.9, -120][i % 6])
        await extreme(n, () => 1e30 * (rnd() - 0.5), [[0, 1e-6]])
        // NaN anywhere, +∞, and rows of nothing but −∞ are NaN throughout, other rows not.
        await extreme(n, (i) => (i === n + 5 ? NaN : 1))
        await extreme(n, (i) => (i === n + 5 ? Infinity : 1))
        const none = (i: number) => (i >= n && i < 2 * n ? -Infinity : 1)
        await extreme(n, none)
        const [y] = (await evaluate(engine.backends[0].backend, given(n, none))).results
        expect(y.slice(n, 2 * n).every(Number.isNaN)).toBe(true)
        expect(y.slice(0, n).every(Number.isFinite)).toBe(true)
      }
    })

    test('other dims and strided last dims are left to the composition', () => {
      const { backend } = engine.backends[0]
      const x = tensor(new Float32Array(24), { device: backend }).reshape([4, 6])
      const asked = (t: Tensor, dim: number) => backend.kernels[name]?.supports?.([t], { dim })
      expect([asked(x, 1), asked(x, 0), asked(x.transpose(0, 1), 1)]).toEqual([true, false, false])
    })
  })
}
