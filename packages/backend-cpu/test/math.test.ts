/**
 * Elementary functions on four lanes against float64, over floats of every size.
 *
 * Tolerances are in units of the last place of a float32: the largest error found over 4 million floats (see math.ts),
 * rounded up, as the fewer floats here are others. JavaScript's own functions are right to about 10⁻⁹ of that unit.
 * Where results below 2⁻¹²⁶ may be flushed, 0 counts as right for them.
 */

import { expr as e, gelu, grad, program, reference, specialize, tensor, withBackend } from '@tilegrad/core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type CpuBackend, createCpuBackend } from '../src/index.ts'
import { gaussian } from '../src/lowering/gaussian.ts'
import { type Constants, hoistConstants, type MathName, mathF32x4, pow } from '../src/lowering/math.ts'
import { type FunctionBuilder, i32, type V128, v128 } from '../src/wasm/index.ts'
import { spacing } from './elementwise-rig.ts'
import { random } from './row-rig.ts'

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

const awkward = [
  0,
  -0,
  1,
  -1,
  Infinity,
  -Infinity,
  NaN,
  88.72283,
  88.72284,
  -87.33654,
  -87.33655,
  -103.97,
  1.4e-45,
  -1.4e-45,
  1.1754944e-38,
  -1.1754944e-38,
  3.4028235e38,
  -3.4028235e38,
  9.02,
  -9.02,
  3.93,
  -3.93,
  1e6,
  -1e6,
  1000001,
  16777216,
  0.99999994,
  1.0000001,
  0.5,
  -0.5,
  Math.PI / 2,
  Math.PI,
  2 * Math.PI,
  710,
  -710,
  20,
  -20,
]

/** Floats of every size and sign, and more of those that matter. */
function samples(): Float32Array {
  const rnd = random(11)
  const words = new Int32Array(400_000)
  const out = new Float32Array(words.buffer)
  for (let i = 0; i < 280_000; i++) words[i] = i * 15339 + Math.floor(rnd() * 15339)
  for (let i = 280_000; i < out.length; i++) out[i] = (rnd() - 0.5) * (i % 2 === 0 ? 8 : 200)
  out.set(awkward, 280_000)
  return out
}
const xs = samples()

/** erf of the samples in float64, by core's series and continued fraction. */
function erfOfSamples(): Float64Array {
  const kernel = specialize(
    program('erf', 1, ([x]) => e.erf(x as e.Expr)),
    ['float64'],
    [],
  )
  const [input, output] = [Float64Array.from(xs), new Float64Array(xs.length)].map((data) => {
    const buffer = reference.alloc(data.byteLength, 'float64')
    const view = { buffer, dtype: 'float64' as const, shape: [xs.length], strides: [1], offset: 0 }
    reference.write(view, data)
    return view
  })
  reference.kernels.elementwise.run([output!], [input!], { kernel }, [])
  return reference.readSync!(output!) as Float64Array
}
const erfs = erfOfSamples()
/** 1 − erf(x) for x ≥ 1, by its continued fraction. */
function erfcOf(x: number): number {
  let fraction = x
  for (let n = 60; n > 0; n--) fraction = x + n / 2 / fraction
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction
}

/** The largest error in ulp; an error at once for anything that is not finite or has the wrong sign. */
function worst(
  got: Float32Array,
  want: (i: number) => number,
  name: (i: number) => string,
  flush: boolean,
  used: (i: number) => boolean = () => true,
): number {
  let most = 0
  for (let i = 0; i < got.length; i++) {
    if (!used(i)) continue
    const [y, exact] = [got[i]!, want(i)]
    const rounded = Math.fround(exact)
    if (Object.is(y, rounded) || (flush && y === 0 && Math.abs(exact) < 2 ** -126)) continue
    const error = Number.isFinite(rounded) && rounded !== 0 ? Math.abs(y - exact) / spacing(exact) : Infinity
    if (!(error <= 100)) throw new Error(`${name(i)} is ${y}; expected ${rounded}`)
    if (error > most) most = error
  }
  return most
}

const functions: Record<
  MathName,
  {
    exact: (x: number, sample: number) => number
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
    exact: (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x))),
    ulp: { relaxed: 2.2, simd: 2.2 },
    flush: true,
    bounded: true,
  },
  erf: { exact: (_, i) => erfs[i]!, ulp: { relaxed: 5.3, simd: 7.5 }, bounded: true },
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
        (i) => exact(xs[i]!, i),
        (i) => `${name}(${xs[i]})`,
        flush ?? false,
        used,
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
        const exact = u > -1 ? 1 + erfs[i]! : erfcOf(-u)
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
      const exact = erfcOf(-x / Math.SQRT2) / 2 + x * density
      expect(Math.abs(got[i]! / exact - 1)).toBeLessThan(5e-5)
    })
  })

  const power = (f: FunctionBuilder): ((x: V128, y: V128) => V128) => {
    const k = hoistConstants(f, (trial, constants, x, y) => {
      pow(trial, constants, x, y)
    })
    return (x, y) => pow(f, k, x, y)
  }
  const exactPower = (x: number, y: number): number =>
    x === 1 || (x === -1 && Math.abs(y) === Infinity) ? 1 : x ** y

  it('pow is within its bound for bases and exponents of every size', () => {
    const rnd = random(12)
    const bases = xs.slice()
    const exponents = xs.map((_, i) => {
      const kind = i % 3
      if (kind === 0) return xs[Math.floor(rnd() * xs.length)]!
      // So that the result is finite, mostly.
      if (kind === 1) return ((rnd() - 0.5) * 240) / Math.log2(Math.abs(bases[i]!))
      return Math.round((rnd() - 0.5) * 40) / (rnd() < 0.3 ? 2 : 1)
    })
    const got = evaluate(level, 'pow', power, bases, exponents)
    const error = worst(
      got,
      (i) => exactPower(bases[i]!, exponents[i]!),
      (i) => `pow(${bases[i]}, ${exponents[i]})`,
      false,
    )
    expect(error).toBeLessThanOrEqual(0.51)
    expect(error).toBeGreaterThan(0.4)
  })

  it("pow has C's special cases", () => {
    const list = [...awkward, 2, -2, 3, -3, 2.5, -2.5, 16777215, -16777217, 1e10, -1e10]
    const pairs = list.flatMap((x) => list.map((y) => [x, y] as const))
    while (pairs.length % 4 !== 0) pairs.push([1, 1])
    const [bases, exponents] = [0, 1].map((n) => Float32Array.from(pairs, (p) => p[n]!)) as [
      Float32Array,
      Float32Array,
    ]
    const got = evaluate(level, 'pow', power, bases, exponents)
    const error = worst(
      got,
      (i) => exactPower(bases[i]!, exponents[i]!),
      (i) => `pow(${bases[i]}, ${exponents[i]})`,
      false,
    )
    expect(error).toBeLessThanOrEqual(0.51)
  })

  it('sin and cos reduce arguments next to multiples of π/2', () => {
    // The floats nearest to k · π/2, for k of every size: what is left of them is tiny.
    const near = Float32Array.from(
      { length: 4096 },
      (_, i) => (i < 2048 ? i : Math.round(2 ** (i / 34))) * (Math.PI / 2),
    )
    for (const name of ['sin', 'cos'] as const) {
      const got = evaluate(level, name, (f) => mathF32x4(f, [name])[name], near, near)
      const error = worst(
        got,
        (i) => Math[name](near[i]!),
        (i) => `${name}(${near[i]})`,
        false,
      )
      expect(error).toBeLessThanOrEqual(1.6)
    }
  })
})
