/**
 * Elementary functions in WGSL against float64, over floats of every size.
 *
 * Tolerances are in units of the last place of a float32, a little above the largest error found on SwiftShader, which
 * does not fuse multiplications and additions. Results below 2⁻¹²⁶ may be flushed to 0.
 */

import { type Expr, expr as e, layout, program, specialize, type TypedArray } from '@tilegrad/core'
import { describe, expect, it } from 'vitest'
import {
  awkward,
  erf,
  exponentsFor,
  nearQuarters,
  power,
  samples,
  sigmoid,
  specialPowers,
  worst,
} from '../../../test/kernels/math.ts'
import { output } from '../../../test/kernels/operand.ts'
import { runKernel } from '../../../test/kernels/primitive.ts'
import type { WebGpuBackend } from '../src/index.ts'
import { gpus } from './support/gpus.ts'

async function evaluate(
  gpu: WebGpuBackend,
  name: string,
  build: (args: readonly Expr[]) => Expr,
  ...args: readonly Float32Array[]
): Promise<TypedArray> {
  const dtypes = args.map(() => 'float32' as const)
  const kernel = specialize(program(name, args.length, build), dtypes, [])
  const inputs = args.map((data) => ({
    layout: layout.contiguous([data.length]),
    dtype: 'float32' as const,
    data,
  }))
  return (await runKernel(gpu, 'elementwise', [output([args[0]!.length], 'float32')], inputs, { kernel }))[0]!
}

// Without subnormals: a driver may flush them.
const xs = samples(200_000, { subnormals: false })

const functions: Record<string, { exact: (x: number) => number; ulp: number; bounded?: true }> = {
  exp: { exact: Math.exp, ulp: 1.2 },
  expm1: { exact: Math.expm1, ulp: 1.6 },
  log: { exact: Math.log, ulp: 0.9 },
  log1p: { exact: Math.log1p, ulp: 0.9 },
  tanh: { exact: Math.tanh, ulp: 6, bounded: true },
  sigmoid: {
    exact: sigmoid,
    ulp: 2.3,
    bounded: true,
  },
  erf: { exact: erf, ulp: 7.5, bounded: true },
  sin: { exact: Math.sin, ulp: 3, bounded: true },
  cos: { exact: Math.cos, ulp: 3, bounded: true },
}

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
        { flush: true },
      )
      expect(error).toBeLessThanOrEqual(ulp)
      // An error of less than half a unit would mean that nothing was compared.
      expect(error).toBeGreaterThan(0.4)
      if (bounded) expect(got.every((y) => !(Math.abs(y) > 1))).toBe(true)
    },
  )

  const powers = ([x, y]: readonly Expr[]): Expr => e.pow(x!, y!)

  const powerError = async (bases: Float32Array, exponents: Float32Array): Promise<number> =>
    worst(
      await evaluate(gpu, 'pow', powers, bases, exponents),
      (i) => power(bases[i]!, exponents[i]!),
      (i) => `pow(${bases[i]}, ${exponents[i]})`,
      { flush: true },
    )

  it('pow is within its bound for bases and exponents of every size', async () => {
    const exponents = exponentsFor(xs, { subnormals: false })
    const error = await powerError(xs, exponents)
    expect(error).toBeLessThanOrEqual(3)
    expect(error).toBeGreaterThan(0.4)
  })

  it("pow has C's special cases", async () => {
    expect(await powerError(...specialPowers(awkward))).toBeLessThanOrEqual(3)
  })

  it('sin and cos reduce arguments next to multiples of π/2', async () => {
    for (const name of ['sin', 'cos'] as const) {
      const got = await evaluate(gpu, name, ([x]) => e[name](x!), nearQuarters)
      const error = worst(
        got,
        (i) => Math[name](nearQuarters[i]!),
        (i) => `${name}(${nearQuarters[i]})`,
        { flush: true },
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
