/** Sort, gather and scatterAdd: exact. */

import { layout } from '@tilegrad/core'
import { test } from 'vitest'
import type { Engine } from './fused.ts'
import { dense, type Operand, operand, output } from './operand.ts'
import { agree } from './primitive.ts'
import { integer, pick, random, randomLayout } from './random.ts'

export const checkSort = (engine: Engine, x: Operand, dim: number, descending: boolean): Promise<void> =>
  agree(engine, 'sort', [output(x.layout.shape, x.dtype), output(x.layout.shape, 'int32')], [x], {
    dim,
    descending,
  })
export const checkGather = (engine: Engine, x: Operand, index: Operand, dim: number): Promise<void> =>
  agree(engine, 'gather', [output(index.layout.shape, x.dtype)], [x, index], { dim })
export const checkScatter = (
  engine: Engine,
  [x, index, source]: readonly [Operand, Operand, Operand],
  dim: number,
  within = {},
): Promise<void> =>
  agree(engine, 'scatterAdd', [output(x.layout.shape, x.dtype)], [x, index, source], { dim }, within)

export const special = [0, -0, Infinity, -Infinity, NaN, 1, 1, 2, 1e-40, -1e-40, 3.4e38, -3.4e38]

/** `random`: how many random cases. */
export function testSort(engine: Engine, options: { random: number }): void {
  test('sort: any layout, ties, NaN, infinities, both zeros', async () => {
    const rnd = random(1)
    for (let i = 0; i < options.random; i++) {
      const dtype = pick(rnd, engine.dtypes)
      const shape = Array.from({ length: integer(rnd, 0, 4) }, () =>
        pick(rnd, [1, 2, 3, 5, 17, 39, 41, 60, 130, 1000, 1025]),
      )
      if (layout.numel(shape) > 8000) continue
      const dim = integer(rnd, 0, Math.max(0, shape.length - 1))
      const draw =
        dtype === 'int32'
          ? pick(rnd, [() => integer(rnd, -3, 3), () => integer(rnd, -(2 ** 31), 2 ** 31 - 1)])
          : pick(rnd, [() => pick(rnd, special), () => rnd() * 4 - 2])
      await checkSort(engine, operand(randomLayout(rnd, shape), dtype, draw), dim, rnd() < 0.5)
    }
  })

  test('sort: no elements', async () => {
    for (const shape of [
      [3, 0],
      [0, 3],
    ])
      await checkSort(
        engine,
        dense(shape, () => 0),
        1,
        false,
      )
  })
}

/** `random`: how many random cases. Values are small integers, whose sums are exact in any order. */
export function testIndexing(engine: Engine, options: { random: number }): void {
  test('gather and scatterAdd: any layout', async () => {
    const rnd = random(3)
    for (let i = 0; i < options.random; i++) {
      const dtype = pick(rnd, [...engine.dtypes, 'bool' as const])
      const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 6, 33]))
      const dim = integer(rnd, 0, shape.length - 1)
      const indexShape = shape.map((n, d) =>
        d === dim ? pick(rnd, [0, 1, 5, 20]) : rnd() < 0.7 ? n : integer(rnd, 0, n),
      )
      const sourceShape = indexShape.map((n) => n + pick(rnd, [0, 0, 2]))
      const small = () => (dtype === 'bool' ? Number(rnd() < 0.5) : integer(rnd, -9, 9))
      const x = operand(randomLayout(rnd, shape), dtype, small)
      const how = pick(rnd, [{}, { expand: 0.4, plain: 0.2 }])
      const index = operand(randomLayout(rnd, indexShape, how), 'int32', () =>
        integer(rnd, 0, shape[dim] - 1),
      )
      await checkGather(engine, x, index, dim)
      if (dtype === 'bool') continue
      await checkScatter(engine, [x, index, operand(randomLayout(rnd, sourceShape), dtype, small)], dim)
    }
  })

  test('scatterAdd: as large as embeddings, in the order of the index', async () => {
    const rnd = random(5)
    // Of such different sizes that any other order of float32 additions would give other bits.
    const uneven = () => 2 ** integer(rnd, -20, 20) * (rnd() - 0.5)
    for (const [rows, columns, count] of [
      [700, 33, 3000],
      [4, 3, 20_000],
    ]) {
      const expanded = { shape: [count, columns], strides: [1, 0], offset: 0 }
      for (const l of [expanded, layout.contiguous([count, columns])]) {
        const index = operand(l, 'int32', () => (rnd() < 0.2 ? rows - 1 : integer(rnd, 0, rows - 1)))
        const given = [dense([rows, columns], rnd), index, dense([count, columns], uneven)] as const
        await checkScatter(engine, given, 0, { wide: false })
      }
    }
    // The sorted way along the last dim.
    const index = dense([20, 2000], () => integer(rnd, 0, 1099), 'int32')
    await checkScatter(engine, [dense([30, 1100], rnd), index, dense([20, 2000], rnd)], 1, { wide: false })
  })
}
