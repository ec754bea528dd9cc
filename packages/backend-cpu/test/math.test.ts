/**
 * Elementary functions on four lanes against float64, over floats of every size.
 *
 * Tolerances are in units of the last place of a float32: the largest error found over 4 million floats (see math.ts),
 * rounded up, as the fewer floats here are others. JavaScript's own functions are right to about 10⁻⁹ of that unit.
 * Where results below 2⁻¹²⁶ may be flushed, 0 counts as right for them.
 */

import { gelu, grad, tensor, withBackend } from '@tilegrad/core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  awkward,
  erf,
  erfc,
  exponentsFor,
  nearQuarters,
  power,
  samples,
  sigmoid,
  specialPowers,
  worst,
} from '../../../test/kernels/math.ts'
import { type CpuBackend, createCpuBackend } from '../src/index.ts'
import { gaussian } from '../src/lowering/gaussian.ts'
import { type Constants, hoistConstants, type MathName, mathF32x4, pow } from '../src/lowering/math.ts'
import { type FunctionBuilder, i32, type V128, v128 } from '../src/wasm/index.ts'

const levels = ['simd', 'relaxed', 'revectorized'] as const
type Level = (typeof levels)[number]
const backends = {} as Record<Level, CpuBackend>
beforeAll(() => {
  for (const level of levels) backends[level] = createCpuBackend({ level, threads: 1, maxBytes: 2 ** 28 })
})
afterAll(() => Promise.all(Object.values(backends).map((b) => b.close())))

/** Runs code for two arguments on arrays of equal length, a multiple of 4. */
function evaluate(
  level: Level,
  key: string,
  prepare: (f: FunctionBuilder) => (x: V128, y: V128) => V128,
  xs: Float32Array,
  ys: Float32Array,
): Float32Array {
  const { engine } = backends[level]
  const kernel = engine.kernel(key, (m) => {
    m.kernel('main', (f, start, end, params) => {
      const code = prepare(f)
      const [x, y, out] = [0, 4, 8].map((at) => f.let(i32.load(params, at)))
      f.for(start, end, 4, (i) => {
        const at = f.let(i.shl(2))
        f.store(f.let(out!.add(at)), code(v128.load(x!.add(at)), v128.load(y!.add(at))))
      })
    })
  })
  const ptrs = [xs, ys, xs].map((data) => engine.memory.alloc(data.byteLength))
  const view = (n: number): Float32Array => engine.memory.view(ptrs[n]!, Float32Array, xs.length)
  view(0).set(xs)
  view(1).set(ys)
  engine.run(kernel, xs.length, xs.length, ptrs)
  const out = view(2).slice()
  for (const ptr of ptrs) engine.memory.free(ptr)
  return out
}

const xs = samples(400_000, { subnormals: true })

const functions: Record<
  MathName,
  {
    exact: (x: number) => number
    ulp: { relaxed: number; simd: number }
    flush?: true
    bounded?: true
  }
> = {
  exp: { exact: Math.exp, ulp: { relaxed: 0.9, simd: 1.2 }, flush: true },
  expNonPositive: { exact: Math.exp, ulp: { relaxed: 0.9, simd: 1.2 }, flush: true },
  expm1: { exact: Math.expm1, ulp: { relaxed: 1.5, simd: 1.6 } },
  log: { exact: Math.log, ulp: { relaxed: 0.9, simd: 0.9 } },
  log1p: { exact: Math.log1p, ulp: { relaxed: 0.9, simd: 0.9 } },
  tanh: { exact: Math.tanh, ulp: { relaxed: 5.5, simd: 6 }, bounded: true },
  sigmoid: {
    exact: sigmoid,
    ulp: { relaxed: 2.2, simd: 2.2 },
    flush: true,
    bounded: true,
  },
  erf: { exact: erf, ulp: { relaxed: 5.3, simd: 7.5 }, bounded: true },
  sin: { exact: Math.sin, ulp: { relaxed: 1.6, simd: 1.6 }, bounded: true },
  cos: { exact: Math.cos, ulp: { relaxed: 1.6, simd: 1.6 }, bounded: true },
}

describe.each(levels)('%s', (level) => {
  it.each(Object.entries(functions))(
    '%s is within its bound everywhere',
    (name, { exact, ulp, flush, bounded }) => {
      const got = evaluate(level, name, (f) => mathF32x4(f, [name as MathName])[name as MathName], xs, xs)
      const used = name === 'expNonPositive' ? (i: number): boolean => !(xs[i]! > 0) : undefined
      const error = worst(
        got,
        (i) => exact(xs[i]!),
        (i) => `${name}(${xs[i]})`,
        { ...(flush && { flush }), ...(used && { used }) },
      )
      expect(error).toBeLessThanOrEqual(ulp[backends[level].level === 'simd' ? 'simd' : 'relaxed'])
      // An error of less than half a unit would mean that nothing was compared.
      expect(error).toBeGreaterThan(0.4)
      if (bounded) expect(got.every((y) => !(Math.abs(y) > 1))).toBe(true)
    },
  )

  it('the Gaussian and 1 + erf are within their bounds everywhere', () => {
    const relative = (got: number, exact: number): number =>
      exact === 0 ? Math.abs(got) : Math.abs(got / exact - 1)
    const exponent = backends[level].level === 'simd' ? 1.35e-7 : 7.4e-8
    const [density, cumulative] = [false, true].map((both) =>
      evaluate(
        level,
        `gaussian ${both}`,
        (f) => {
          const code = (f: FunctionBuilder, k: Constants, x: V128): V128 => {
            const { density, cumulative } = gaussian(f, k, x)
            return both ? cumulative() : density
          }
          const k = hoistConstants(f, code)
          return (x) => code(f, k, x)
        },
        xs,
        xs,
      ),
    ) as [Float32Array, Float32Array]
    let [most, mostBoth] = [0, 0]
    xs.forEach((u, i) => {
      const [e, both] = [density[i]!, cumulative[i]!]
      if (Number.isNaN(u)) {
        expect([e, both]).toEqual([Number.NaN, Number.NaN])
      } else if (Math.abs(u) > 9.3) {
        // What is left of them there is below 10⁻³⁷.
        const left = Math.max(e, Math.abs(both - (u > 0 ? 2 : 0)))
        if (!(left < 1e-37)) throw new Error(`of ${u}, ${e} and ${both} are left`)
      } else {
        const grown = exponent * u * u
        const off = relative(e, Math.exp(-u * u)) - grown
        const exact = u > -1 ? 1 + erf(u) : erfc(-u)
        const offBoth = relative(both, exact) - (u < 0 ? grown : 0)
        most = Math.max(most, off)
        mostBoth = Math.max(mostBoth, offBoth - (u < -4.6 ? 3e-5 : 0))
      }
    })
    expect(most).toBeLessThan(1.6e-7)
    expect(mostBoth).toBeLessThan(4e-7)
    expect(mostBoth).toBeGreaterThan(3e-8)
  })

  it("GELU's gradient is right where 1 plus a rounded erf would keep nothing", () => {
    const inputs = Float32Array.from({ length: 64 }, (_, i) => -3 - i / 16)
    const got = withBackend(backends[level], () => {
      const x = tensor(inputs, [64], { requiresGrad: true })
      return grad(gelu(x).sum(), [x])[0]!.dataSync()
    })
    inputs.forEach((x, i) => {
      const density = Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)
      const exact = erfc(-x / Math.SQRT2) / 2 + x * density
      expect(Math.abs(got[i]! / exact - 1)).toBeLessThan(5e-5)
    })
  })

  const powers = (f: FunctionBuilder): ((x: V128, y: V128) => V128) => {
    const k = hoistConstants(f, (trial, constants, x, y) => {
      pow(trial, constants, x, y)
    })
    return (x, y) => pow(f, k, x, y)
  }
  const powerError = (bases: Float32Array, exponents: Float32Array): number =>
    worst(
      evaluate(level, 'pow', powers, bases, exponents),
      (i) => power(bases[i]!, exponents[i]!),
      (i) => `pow(${bases[i]}, ${exponents[i]})`,
    )

  it('pow is within its bound for bases and exponents of every size', () => {
    const exponents = exponentsFor(xs, { subnormals: true })
    const error = powerError(xs, exponents)
    expect(error).toBeLessThanOrEqual(0.51)
    expect(error).toBeGreaterThan(0.4)
  })

  it("pow has C's special cases", () => {
    expect(powerError(...specialPowers([...awkward, 1.4e-45, -1.4e-45]))).toBeLessThanOrEqual(0.51)
  })

  it('sin and cos reduce arguments next to multiples of π/2', () => {
    for (const name of ['sin', 'cos'] as const) {
      const got = evaluate(level, name, (f) => mathF32x4(f, [name])[name], nearQuarters, nearQuarters)
      const error = worst(
        got,
        (i) => Math[name](nearQuarters[i]!),
        (i) => `${name}(${nearQuarters[i]})`,
      )
      expect(error).toBeLessThanOrEqual(1.6)
    }
  })
})
