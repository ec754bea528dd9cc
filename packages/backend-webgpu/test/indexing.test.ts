/** Sort, gather and scatterAdd against the reference: exact. */

import { type DType, layout } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { agreeKernel, operand, output, runKernel } from './support/agree.ts'
import { gpus } from './support/gpus.ts'
import { integer, pick, random, randomLayout } from './support/random.ts'

const special = [0, -0, Infinity, -Infinity, NaN, 1, 1, 2]

describe.each(gpus)('$name', ({ gpu }) => {
  test('sort: any layout, ties, NaN', async () => {
    const rnd = random(1)
    for (let i = 0; i < 120; i++) {
      const dtype = pick<DType>(rnd, ['float32', 'float32', 'int32'])
      const shape = Array.from({ length: integer(rnd, 0, 4) }, () =>
        pick(rnd, [1, 2, 3, 5, 17, 130, 1000, 1025]),
      )
      if (layout.numel(shape) > 8000) continue
      const dim = integer(rnd, 0, Math.max(0, shape.length - 1))
      const few = rnd() < 0.5
      const draw = (): number =>
        dtype === 'int32'
          ? few
            ? integer(rnd, -3, 3)
            : integer(rnd, -(2 ** 31), 2 ** 31 - 1)
          : few
            ? pick(rnd, special)
            : rnd() * 4 - 2
      await agreeKernel(
        gpu,
        'sort',
        [output(shape, dtype), output(shape, 'int32')],
        [operand(randomLayout(rnd, shape), dtype, draw)],
        { dim, descending: rnd() < 0.5 },
      )
    }
  })

  test('sort: long rows, by ranks in two dispatches, or where there is much by the whole network', async () => {
    const rnd = random(2)
    for (const [shape, dim, dispatches] of [
      [[10_000], 0, 2],
      [[3, 2049], 1, 2],
      [[5000, 2], 0, 2],
      [[1, 50_257], 1, 2],
      // A row is 2¹⁸ pairs, 2⁸ blocks: 36 steps that reach beyond a block, 8 merges, the blocks before and writing after.
      [[190_000], 0, 46],
    ] as const)
      for (const descending of dispatches === 46 ? [true] : [false, true]) {
        const before = gpu.engine.counts.dispatches
        await agreeKernel(
          gpu,
          'sort',
          [output(shape, 'float32'), output(shape, 'int32')],
          [
            operand(layout.contiguous(shape), 'float32', () =>
              rnd() < 0.1 ? pick(rnd, special) : integer(rnd, -999, 999),
            ),
          ],
          { dim, descending },
        )
        expect(gpu.engine.counts.dispatches - before).toBe(dispatches)
      }
  })

  test('gather: any layout', async () => {
    const rnd = random(3)
    for (let i = 0; i < 150; i++) {
      const dtype = pick<DType>(rnd, ['float32', 'int32', 'bool'])
      const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 6, 33]))
      const dim = integer(rnd, 0, shape.length - 1)
      const indexShape = shape.map((n, d) =>
        d === dim ? pick(rnd, [1, 5, 20]) : rnd() < 0.7 ? n : integer(rnd, 1, n),
      )
      const x = operand(randomLayout(rnd, shape), dtype, () =>
        dtype === 'bool' ? Number(rnd() < 0.5) : integer(rnd, -9, 9),
      )
      const index = operand(randomLayout(rnd, indexShape), 'int32', () => integer(rnd, 0, shape[dim] - 1))
      await agreeKernel(gpu, 'gather', [output(indexShape, dtype)], [x, index], { dim })
    }
  })

  test('scatterAdd: any layout', async () => {
    const rnd = random(4)
    for (let i = 0; i < 150; i++) {
      const dtype = pick<DType>(rnd, ['float32', 'int32'])
      const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 6, 33]))
      const dim = integer(rnd, 0, shape.length - 1)
      const indexShape = shape.map((n, d) =>
        d === dim ? pick(rnd, [0, 1, 5, 20]) : rnd() < 0.7 ? n : integer(rnd, 0, n),
      )
      const sourceShape = indexShape.map((n) => n + pick(rnd, [0, 0, 2]))
      const small = () => integer(rnd, -9, 9)
      await agreeKernel(
        gpu,
        'scatterAdd',
        [output(shape, dtype)],
        [
          operand(randomLayout(rnd, shape), dtype, small),
          operand(randomLayout(rnd, indexShape), 'int32', () => integer(rnd, 0, shape[dim] - 1)),
          operand(randomLayout(rnd, sourceShape), dtype, small),
        ],
        { dim },
      )
    }
  })

  test('scatterAdd: as large as embeddings, in the order of the index', async () => {
    const rnd = random(5)
    const [rows, columns, count] = [700, 33, 3000]
    const expanded = { shape: [count, columns], strides: [1, 0], offset: 0 }
    const own = layout.contiguous([count, columns])
    for (const l of [expanded, own]) {
      // Of such different sizes that any other order would give other bits.
      const source = operand(own, 'float32', () => 2 ** integer(rnd, -20, 20) * (rnd() - 0.5))
      await agreeKernel(
        gpu,
        'scatterAdd',
        [output([rows, columns], 'float32')],
        [
          operand(layout.contiguous([rows, columns]), 'float32', () => rnd()),
          operand(l, 'int32', () => (rnd() < 0.2 ? 7 : integer(rnd, 0, rows - 1))),
          source,
        ],
        { dim: 0 },
      )
    }
    // The sorted way along the last dim.
    await agreeKernel(
      gpu,
      'scatterAdd',
      [output([30, 1100], 'float32')],
      [
        operand(layout.contiguous([30, 1100]), 'float32', () => rnd()),
        operand({ shape: [20, 2000], strides: [2000, 1], offset: 0 }, 'int32', () => integer(rnd, 0, 1099)),
        operand(layout.contiguous([20, 2000]), 'float32', () => rnd()),
      ],
      { dim: 1 },
    )
  })

  test('an index out of range reads 0 and writes nothing', async () => {
    const x = operand(layout.contiguous([4]), 'float32', (i) => i + 1)
    const index = operand(layout.contiguous([5]), 'int32', (i) => [-1, 0, 3, 4, 2 ** 31 - 1][i])
    const [read] = await runKernel(gpu, 'gather', [output([5], 'float32')], [x, index], { dim: 0 })
    expect([...read]).toEqual([0, 1, 4, 0, 0])
    const ones = operand(layout.contiguous([5]), 'float32', () => 10)
    const [sum] = await runKernel(gpu, 'scatterAdd', [output([4], 'float32')], [x, index, ones], { dim: 0 })
    expect([...sum]).toEqual([11, 2, 3, 14])
    const many = operand({ shape: [1500, 1000], strides: [1, 0], offset: 0 }, 'int32', (i) => (i % 5) - 1)
    const source = operand({ shape: [1500, 1000], strides: [0, 0], offset: 0 }, 'float32', () => 1)
    const base = operand({ shape: [3, 1000], strides: [0, 0], offset: 0 }, 'float32', () => 0)
    const [total] = await runKernel(gpu, 'scatterAdd', [output([3, 1000], 'float32')], [base, many, source], {
      dim: 0,
    })
    expect(total.every((v) => v === 300)).toBe(true)
  })
})
