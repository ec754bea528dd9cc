import { describe, expect, test } from 'vitest'
import { amax, applyProgram, argmax, dataSync, expr as e, program, sort, tensor } from '../src/index.ts'
import { convert, erf } from '../src/reference/scalar.ts'

describe('erf', () => {
  // Abramowitz & Stegun, table 7.1, to ten decimals, and further digits of the same constants.
  test.each([
    [0, 0],
    [0.1, 0.1124629160182849],
    [0.5, 0.5204998778130465],
    [1, 0.8427007929497149],
    [2, 0.9953222650189527],
    [2.9, 0.9999589021219005],
    [3, 0.9999779095030014],
    [4, 0.9999999845827421],
    [Infinity, 1],
  ])('%d', (x, y) => {
    // A few units in the last place of float64.
    expect(Math.abs(erf(x) - y)).toBeLessThanOrEqual(5e-16)
    expect(erf(-x)).toBe(-erf(x))
  })

  test('small arguments keep their relative accuracy', () => {
    expect(erf(1e-20) / 1e-20).toBeCloseTo(2 / Math.sqrt(Math.PI), 14)
    expect(erf(Number.NaN)).toBeNaN()
  })
})

describe('scalar functions', () => {
  const run = (f: (x: e.Expr) => e.Expr, xs: readonly number[]): number[] => [
    ...dataSync(
      applyProgram(
        program('f', 1, ([x]) => f(x)),
        [tensor(new Float64Array(xs))],
      ),
    ),
  ]

  test('round goes to even', () => {
    expect(run(e.round, [0.5, 1.5, 2.5, -0.5, -1.5, 2.4999, 1e300])).toEqual([0, 2, 2, -0, -2, 2, 1e300])
  })

  test('sign of NaN is 0, as in PyTorch', () => {
    expect(run(e.sign, [-3, 0, 2, Number.NaN])).toEqual([-1, 0, 1, 0])
  })

  test('sigmoid neither overflows nor loses its small end', () => {
    expect(run(e.sigmoid, [1000, 0, -700])).toEqual([1, 0.5, Math.exp(-700)])
    expect(run(e.sigmoid, [-Infinity, Infinity])).toEqual([0, 1])
  })

  test('max and min pass NaN on', () => {
    expect(run((x) => e.max(x, 1), [Number.NaN, 0, 2])).toEqual([Number.NaN, 1, 2])
    expect(run((x) => e.min(x, 1), [Number.NaN, 0, 2])).toEqual([Number.NaN, 0, 1])
  })

  test('pow follows C where JavaScript does not', () => {
    expect(run((x) => e.pow(1, x), [Number.NaN, Infinity])).toEqual([1, 1])
    expect(run((x) => e.pow(-1, x), [Infinity, -Infinity])).toEqual([1, 1])
    expect(run((x) => e.pow(x, 0), [Number.NaN, Infinity])).toEqual([1, 1])
  })

  test('conversions', () => {
    expect(convert(2.9, 'float32', 'int32')).toBe(2)
    expect(convert(3e9, 'float64', 'int32')).toBe(2147483647)
    expect(convert(Number.NaN, 'float32', 'int32')).toBe(0)
    expect(convert(Number.NaN, 'float32', 'bool')).toBe(1)
    expect(convert(0.1, 'float64', 'float32')).toBe(Math.fround(0.1))
  })
})

describe('NaN in reductions', () => {
  const x = tensor([
    [1, Number.NaN, 3],
    [4, 5, 4],
  ])

  test('amax and argmax find it', () => {
    expect([...dataSync(amax(x, 1))]).toEqual([Number.NaN, 5])
    expect([...dataSync(argmax(x, 1))]).toEqual([1, 1])
  })

  test('sort puts it last, or first if descending, and is stable', () => {
    const [up, order] = sort(tensor([2, Number.NaN, 1, 2, Number.NaN]))
    expect([...dataSync(up)]).toEqual([1, 2, 2, Number.NaN, Number.NaN])
    expect([...dataSync(order)]).toEqual([2, 0, 3, 1, 4])
    const [down, back] = sort(tensor([2, Number.NaN, 1, 2]), 0, { descending: true })
    expect([...dataSync(down)]).toEqual([Number.NaN, 2, 2, 1])
    expect([...dataSync(back)]).toEqual([1, 0, 3, 2])
  })
})
