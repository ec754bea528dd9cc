/** Reductions and the positions of extremes. */

import { type DType, layout, type Reduction } from '@tilegrad/core'
import { describe, test } from 'vitest'
import type { Engine } from './fused.ts'
import { dense, type Operand, operand, output } from './operand.ts'
import { agree } from './primitive.ts'
import { integer, pick, random, randomLayout } from './random.ts'

const kinds = ['sum', 'prod', 'max', 'min'] as const
const special = [0, -0, Infinity, -Infinity, NaN, 3]

/** Values of a dtype, a part of floats out of the ordinary. */
export const value = (rnd: () => number, dtype: DType, odd = 0): (() => number) =>
  dtype === 'bool'
    ? () => Number(rnd() < 0.5)
    : dtype === 'int32'
      ? () => (rnd() < 0.5 ? integer(rnd, -9, 9) : integer(rnd, -(2 ** 31), 2 ** 31 - 1))
      : () => (rnd() < odd ? pick(rnd, special) : Math.fround(rnd() * 4 - 2))
/** Factors near 1 and −1: products of thousands of them stay in range. */
const near = (rnd: () => number) => () => (rnd() < 0.2 ? -1 : 1) * (0.99 + 0.02 * rnd())

export const keep = (shape: readonly number[], dims: readonly number[]): number[] =>
  shape.map((n, d) => (dims.includes(d) ? 1 : n))

type Large = readonly (readonly [shape: readonly number[], dims: readonly number[]])[]

/** `random`: how many random cases; `prod`: how exact float32 products are; `large`: what an engine goes about in all its ways. */
export function testReduce(
  engine: Engine,
  options: { random: number; prod: { rtol: number; atol: number }; large: Large },
): void {
  const check = (x: Operand, kind: Reduction, dims: readonly number[], within = {}): Promise<void> =>
    agree(engine, 'reduce', [output(keep(x.layout.shape, dims), x.dtype)], [x], { kind, dims }, within)
  const views = engine.share === 1

  test('reduce: any layout and dims', async () => {
    const rnd = random(3)
    for (let i = 0; i < options.random; i++) {
      const kind = pick<Reduction>(rnd, kinds)
      const bools = views && (kind === 'max' || kind === 'min')
      const dtype = pick<DType>(rnd, bools ? [...engine.dtypes, 'bool'] : engine.dtypes)
      const shape = Array.from({ length: integer(rnd, 0, 5) }, () => pick(rnd, [1, 2, 3, 5, 8, 17, 40]))
      if (layout.numel(shape) > 20000) continue
      const dims = shape.map((_, d) => d).filter(() => rnd() < 0.5)
      const sums = kind === 'sum' || kind === 'prod'
      const draw = kind === 'prod' && dtype !== 'int32' ? near(rnd) : value(rnd, dtype, sums ? 0 : 0.002)
      const within =
        dtype === 'float64'
          ? { rtol: 1e-12 }
          : kind === 'prod'
            ? options.prod
            : // A sum of n numbers below 2 in a tree: a few roundings of its largest partial sum.
              kind === 'sum' && dtype === 'float32'
              ? { atol: 2e-5, rtol: 2e-6 }
              : {}
      await check(operand(randomLayout(rnd, shape), dtype, draw), kind, dims, within)
    }
  })

  test('reduce: empty rows, no rows, bools', async () => {
    const rnd = random(4)
    for (const kind of ['sum', 'prod'] as const)
      await check(
        dense([3, 0], () => 1),
        kind,
        [1],
      )
    for (const kind of ['max', 'min'] as const)
      for (const shape of [
        [5, 3],
        [300, 2],
      ])
        await check(
          dense(shape, () => Number(rnd() < (kind === 'max' ? 0.01 : 0.99)), 'bool'),
          kind,
          [0],
        )
  })

  test.each(options.large)('reduce: %j over %j', async (shape, dims) => {
    const rnd = random(5)
    for (const kind of ['sum', 'max'] as const) {
      if (!views)
        await check(dense(shape, value(rnd, 'float32')), kind, dims, kind === 'sum' ? { atol: 2e-4 } : {})
      // Positive terms, so that the sum's relative error is that of the method.
      const draw = () => rnd() + 0.5
      await check(dense(shape, draw), kind, dims, { rtol: 1e-6 })
      if (!views) continue
      const view = (): ReturnType<typeof randomLayout> => randomLayout(rnd, shape, { plain: 0, expand: 0.1 })
      await check(operand(view(), 'float32', draw), kind, dims, { rtol: 1e-6 })
      for (const l of [layout.contiguous(shape), view()])
        await check(operand(l, 'int32', value(rnd, 'int32')), kind, dims)
    }
  })

  describe('reduce: special values', () => {
    const shapes: Large = [
      [[5], [0]],
      [[3, 40], [1]],
      [[40, 3], [0]],
      [[2, 70_000], [1]],
      [[300, 20], [0]],
    ]
    test('NaN wins in max and min, wherever it is', async () => {
      for (const [shape, dims] of shapes) {
        const n = layout.numel(shape)
        for (const at of [0, 1, n >> 1, n - 1])
          for (const kind of ['max', 'min'] as const)
            await check(
              dense(shape, (i) => (i === at ? NaN : i % 7)),
              kind,
              dims,
            )
      }
    })
    test('infinities', async () => {
      for (const [shape, dims] of shapes)
        for (const kind of kinds) {
          await check(
            dense(shape, (i) => (i === 1 ? Infinity : 1)),
            kind,
            dims,
            { rtol: 1e-6 },
          )
          await check(
            dense(shape, (i) => (i % 2 ? Infinity : -Infinity)),
            kind,
            dims,
          )
        }
    })
    test('sums and products of int32 wrap', async () => {
      for (const [shape, dims] of shapes) {
        await check(
          dense(shape, () => 0x7fffffff, 'int32'),
          'sum',
          dims,
        )
        await check(
          dense(shape, () => 3, 'int32'),
          'prod',
          dims,
        )
      }
    })
  })
}

/** `random`: how many random cases. */
export function testArgReduce(engine: Engine, options: { random: number }): void {
  const check = (x: Operand, kind: 'max' | 'min', dim: number): Promise<void> =>
    agree(engine, 'argReduce', [output(x.layout.shape.with(dim, 1), 'int32')], [x], { kind, dim })
  const both = async (x: Operand, dim = 1): Promise<void> => {
    for (const kind of ['max', 'min'] as const) await check(x, kind, dim)
  }

  test('argReduce: any layout, ties, NaN', async () => {
    const rnd = random(6)
    for (let i = 0; i < options.random; i++) {
      const dtype = pick<DType>(rnd, engine.share === 1 ? [...engine.dtypes, 'bool'] : engine.dtypes)
      const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 5, 7, 17, 40, 600]))
      if (layout.numel(shape) > 20000) continue
      const draw = pick(
        rnd,
        dtype === 'bool'
          ? [value(rnd, dtype)]
          : [() => integer(rnd, -2, 2), value(rnd, dtype, 0.01), value(rnd, dtype, 0.1)],
      )
      await check(
        operand(randomLayout(rnd, shape), dtype, draw),
        pick(rnd, ['max', 'min'] as const),
        integer(rnd, 0, shape.length - 1),
      )
    }
  })

  test('argReduce: rows in parts, also columns and views', async () => {
    const rnd = random(12)
    for (const [shape, dim] of [
      [[3, 9001], 1],
      [[9000, 9], 0],
      [[2, 8192, 2], 1],
    ] as const)
      for (const dtype of ['float32', 'int32'] as const)
        for (const draw of [() => integer(rnd, -2, 2), value(rnd, dtype, 0.0002)])
          await check(operand(randomLayout(rnd, shape), dtype, draw), 'max', dim)
  })

  test('argReduce: long rows; zeros of both signs are equal; infinities', async () => {
    const rnd = random(2)
    for (const n of [4095, 4097, 9000])
      for (const at of [0, 5, 4096, n - 1]) {
        await both(dense([3, n], (i) => (i % n === at ? 9 : rnd())))
        await both(dense([3, n], (i) => (i % n === at ? NaN : i === 7 ? Infinity : rnd())))
        await both(dense([3, n], (i) => (i % n === at ? -0x80000000 : 0x7fffffff), 'int32'))
      }
    await both(dense([2, 9], (i) => (i % 2 ? 0 : -0)))
    await both(dense([2, 40], () => -Infinity))
    await both(dense([2, 40], () => Infinity))
  })
}
