/**
 * Elementary functions in WGSL against float64, over floats of every size.
 *
 * Tolerances are in units of the last place of a float32, a little above the largest error found on SwiftShader, which
 * does not fuse multiplications and additions. Results below 2⁻¹²⁶ may be flushed to 0.
 */

import { type Expr, expr as e, program, specialize, type TypedArray, type View } from '@tilegrad/core'
import { describe, expect, it } from 'vitest'
import type { WebGpuBackend } from '../src/index.ts'
import { gpus } from './support/gpus.ts'
import { random } from './support/random.ts'

async function evaluate(
  gpu: WebGpuBackend,
  name: string,
  build: (args: readonly Expr[]) => Expr,
  ...args: readonly Float32Array[]
): Promise<TypedArray> {
  const n = args[0]!.length
  const kernel = specialize(
    program(name, args.length, build),
    args.map(() => 'float32' as const),
    [],
  )
  const view = (): View => ({
    buffer: gpu.alloc(4 * n, 'float32'),
    dtype: 'float32',
    shape: [n],
    strides: [1],
    offset: 0,
  })
  const inputs = args.map((data) => {
    const v = view()
    gpu.write(v, data)
    return v
  })
  const out = view()
  gpu.kernels.elementwise.run([out], inputs, { kernel }, [])
  const result = await gpu.read(out)
  for (const { buffer } of [out, ...inputs]) gpu.free(buffer)
  return result
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
  12800,
  12801,
]

/** Floats of every size and sign but subnormals, and more of those that matter. */
function samples(): Float32Array {
  const rnd = random(11)
  const words = new Int32Array(200_000)
  const out = new Float32Array(words.buffer)
  for (let i = 0; i < 140_000; i++) {
    words[i] = i * 30678 + Math.floor(rnd() * 30678)
    if (out[i] !== 0 && Math.abs(out[i]!) < 2 ** -126) out[i] = 0
  }
  for (let i = 140_000; i < out.length; i++) out[i] = (rnd() - 0.5) * (i % 2 === 0 ? 8 : 200)
  out.set(awkward, 140_000)
  return out
}
const xs = samples()

const bits = new Float32Array(1)
const words = new Int32Array(bits.buffer)
/** The distance of two neighbours among the float32 at x. */
function spacing(x: number): number {
  bits[0] = Math.abs(x)
  return 2 ** (Math.max((words[0]! >>> 23) - 127, -126) - 23)
}

/** The largest error in ulp; an error at once for anything that is not finite or has the wrong sign. */
function worst(got: TypedArray, want: (i: number) => number, name: (i: number) => string): number {
  let most = 0
  for (let i = 0; i < got.length; i++) {
    const [y, exact] = [got[i]!, want(i)]
    const rounded = Math.fround(exact)
    if (Object.is(y, rounded) || (y === 0 && Math.abs(exact) < 2 ** -126)) continue
    // The driver may flush what is subnormal, or round twice where it does not.
    const unit = Math.max(spacing(exact), 2 ** -149)
    const error = Number.isFinite(rounded) && rounded !== 0 ? Math.abs(y - exact) / unit : Infinity
    if (!(error <= 100)) throw new Error(`${name(i)} is ${y}; expected ${rounded}`)
    if (error > most) most = error
  }
  return most
}

/** erf in float64, by its series and the continued fraction of erfc. */
function erf(x: number): number {
  const a = Math.abs(x)
  if (Number.isNaN(x)) return x
  if (a > 6) return Math.sign(x)
  if (a < 3) {
    let term = x
    let sum = x
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1)
      sum += term
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum
  }
  let f = a
  for (let k = 60; k >= 1; k--) f = a + k / 2 / f
  return Math.sign(x) * (1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * f))
}

const functions: Record<string, { exact: (x: number) => number; ulp: number; bounded?: true }> = {
  exp: { exact: Math.exp, ulp: 1.2 },
  expm1: { exact: Math.expm1, ulp: 1.6 },
  log: { exact: Math.log, ulp: 0.9 },
  log1p: { exact: Math.log1p, ulp: 0.9 },
  tanh: { exact: Math.tanh, ulp: 6, bounded: true },
  sigmoid: {
    exact: (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x))),
    ulp: 2.3,
    bounded: true,
  },
  erf: { exact: erf, ulp: 7.5, bounded: true },
  sin: { exact: Math.sin, ulp: 3, bounded: true },
  cos: { exact: Math.cos, ulp: 3, bounded: true },
}

const exactPower = (x: number, y: number): number =>
  x === 1 || (x === -1 && Math.abs(y) === Infinity) ? 1 : x ** y

describe.each(gpus)('$name', ({ gpu }) => {
  it.each(Object.entries(functions))(
    '%s is within its bound everywhere',
    async (name, { exact, ulp, bounded }) => {
      const got = await evaluate(
        gpu,
        name,
        ([x]) => (e as never as Record<string, (x: Expr) => Expr>)[name]!(x!),
        xs,
      )
      const error = worst(
        got,
        (i) => exact(xs[i]!),
        (i) => `${name}(${xs[i]})`,
      )
      expect(error).toBeLessThanOrEqual(ulp)
      // An error of less than half a unit would mean that nothing was compared.
      expect(error).toBeGreaterThan(0.4)
      if (bounded) expect(got.every((y) => !(Math.abs(y) > 1))).toBe(true)
    },
  )

  const power = ([x, y]: readonly Expr[]): Expr => e.pow(x!, y!)

  it('pow is within its bound for bases and exponents of every size', async () => {
    const rnd = random(12)
    const bases = xs.slice()
    const exponents = xs.map((_, i) => {
      const kind = i % 3
      if (kind === 0) return xs[Math.floor(rnd() * xs.length)]!
      // So that the result is finite, mostly.
      if (kind === 1) {
        const y = ((rnd() - 0.5) * 240) / Math.log2(Math.abs(bases[i]!))
        return Math.abs(y) < 2 ** -126 ? 0 : y
      }
      return Math.round((rnd() - 0.5) * 40) / (rnd() < 0.3 ? 2 : 1)
    })
    const got = await evaluate(gpu, 'pow', power, bases, exponents)
    const error = worst(
      got,
      (i) => exactPower(bases[i]!, exponents[i]!),
      (i) => `pow(${bases[i]}, ${exponents[i]})`,
    )
    expect(error).toBeLessThanOrEqual(3)
    expect(error).toBeGreaterThan(0.4)
  })

  it("pow has C's special cases", async () => {
    const list = [...awkward, 2, -2, 3, -3, 2.5, -2.5, 16777215, -16777217, 1e10, -1e10]
    const pairs = list.flatMap((x) => list.map((y) => [x, y] as const))
    const [bases, exponents] = [0, 1].map((n) => Float32Array.from(pairs, (p) => p[n]!)) as [
      Float32Array,
      Float32Array,
    ]
    const got = await evaluate(gpu, 'pow', power, bases, exponents)
    const error = worst(
      got,
      (i) => exactPower(bases[i]!, exponents[i]!),
      (i) => `pow(${bases[i]}, ${exponents[i]})`,
    )
    expect(error).toBeLessThanOrEqual(3)
  })

  it('sin and cos reduce arguments next to multiples of π/2', async () => {
    // The floats nearest to k · π/2, for k of every size: what is left of them is tiny.
    const near = Float32Array.from(
      { length: 4096 },
      (_, i) => (i < 2048 ? i : Math.round(2 ** (i / 34))) * (Math.PI / 2),
    )
    for (const name of ['sin', 'cos'] as const) {
      const got = await evaluate(gpu, name, ([x]) => e[name](x!), near)
      const error = worst(
        got,
        (i) => Math[name](near[i]!),
        (i) => `${name}(${near[i]})`,
      )
      expect(error).toBeLessThanOrEqual(3)
    }
  })

  it('log of subnormals is finite', async () => {
    const tiny = Float32Array.of(1.4e-45, 1e-40, 1.1e-38)
    const got = await evaluate(gpu, 'log', ([x]) => e.log(x!), tiny)
    tiny.forEach((x, i) => {
      // Copied as integers where nothing computes with them, so no driver can have flushed them on the way.
      expect(got[i]).toBeCloseTo(Math.log(x), 4)
    })
  })
})
