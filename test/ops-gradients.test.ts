import {
  add,
  dataSync,
  grad,
  gradcheck,
  isFloat,
  mul,
  reference,
  sum,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { difference, type Tolerance } from './conformance/compare.ts'
import { type Row, table } from './op-table.ts'
import { type Arg, make, replaced, tensorsIn } from './samples.ts'

/**
 * Gradients against central differences in float64, at eps 1e-6. Their error is about eps² · f‴ + 1e-16 · f / eps: some
 * 1e-9 of values of order 1, so that 1e-5 + 1e-4 · |g| leaves room for steep places and still catches any wrong factor.
 */
const how = { backend: reference, float: 'float64', layout: 'dense', seed: 1 } as const

/** Samples that stay small: differences cost two calls per element. */
const small = (row: Row): (readonly Arg[])[] =>
  row.samples.filter((s) => {
    const inputs = tensorsIn(make(s, how))
    return inputs.some((t) => isFloat(t.dtype)) && inputs.reduce((n, t) => n + t.numel, 0) <= 200
  })

const call = (row: Row, args: readonly unknown[]): readonly Tensor[] => {
  const out = (row.run as (...a: unknown[]) => Tensor | readonly Tensor[])(...args)
  return Array.isArray(out) ? out : [out as Tensor]
}

/** Σ weights · outputs, with weights that differ for every element. */
function weighted(outputs: readonly Tensor[]): Tensor {
  return outputs
    .filter((y) => isFloat(y.dtype))
    .map((y, k) => {
      const w = Float64Array.from({ length: y.numel }, (_, i) => Math.cos(2 * i + k) + 1.3)
      return sum(mul(y, tensor(w, y.shape, { device: reference })))
    })
    .reduce((a, b) => add(a, b))
}

describe('first derivatives', () => {
  for (const row of table.filter((r) => r.order >= 1)) {
    test(row.name, () => {
      const samples = small(row)
      expect(samples.length).toBeGreaterThan(0)
      for (const s of samples) {
        const args = make(s, how)
        const check = (): true => gradcheck((...xs) => call(row, replaced(args, xs)), tensorsIn(args))
        expect(check, JSON.stringify(s)).not.toThrow()
      }
    })
  }
})

describe('second derivatives', () => {
  for (const row of table.filter((r) => r.order === 2)) {
    test(row.name, () => {
      for (const s of small(row)) {
        const args = make(s, how)
        const first = (...xs: Tensor[]): Tensor[] => {
          const inputs = xs.filter((x) => isFloat(x.dtype))
          const total = weighted(call(row, replaced(args, xs)))
          const gs = grad(total, inputs, { createGraph: true, allowUnused: true })
          // A gradient that does not depend on the inputs has no graph; 0 · x gives it one, with derivative 0.
          return gs.map((g, i) => (g ? add(g, mul(inputs[i], 0)) : mul(inputs[i], 0)))
        }
        expect(() => gradcheck(first, tensorsIn(args)), JSON.stringify(s)).not.toThrow()
      }
    })
  }
})

/**
 * What a gradient of 16 bits may differ by from that of the same program in float64 at the same inputs: each operator of a
 * composition, and of its backward pass, rounds what it stores to 2⁻¹¹ or 2⁻⁸ of it, also what is added up afterwards.
 */
const HALVES: Readonly<Record<'float16' | 'bfloat16', Tolerance>> = {
  float16: { rtol: 2 ** -8, atol: 2 ** -8, cancels: true },
  bfloat16: { rtol: 2 ** -5, atol: 2 ** -5, cancels: true },
}

// The engines' gradients of 16 bits are compared with the reference's where engines are compared.
describe.each(['float16', 'bfloat16'] as const)('first derivatives in %s', (float) => {
  for (const row of table.filter((r) => r.order >= 1)) {
    test(row.name, () => {
      for (const s of small(row)) {
        const args = make(s, { ...how, float })
        const halves = tensorsIn(args)
        // What differences say of the program at these numbers, which 16 bits hold exactly.
        expect(
          () => gradcheck((...xs) => call(row, replaced(args, xs)), halves),
          JSON.stringify(s),
        ).not.toThrow()
        const gradients = (inputs: readonly Tensor[]): (Tensor | null)[] => {
          const xs = inputs.filter((x) => isFloat(x.dtype))
          for (const x of xs) x.requiresGrad = true
          return grad(weighted(call(row, replaced(args, inputs))), xs, { allowUnused: true })
        }
        const wide = halves.map((t) =>
          isFloat(t.dtype) ? tensor(dataSync(t), t.shape, { dtype: 'float64', device: reference }) : t,
        )
        const want = gradients(wide)
        for (const [i, g] of gradients(halves).entries()) {
          const expected = want[i]
          expect(g === null, JSON.stringify(s)).toBe(expected === null)
          if (g === null || expected === null) continue
          expect(g.dtype).toBe(float)
          expect(
            difference(dataSync(g), dataSync(expected), g.shape, HALVES[float]),
            JSON.stringify(s),
          ).toBeNull()
        }
      }
    })
  }
})
