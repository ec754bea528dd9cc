/** Sort, gather and scatterAdd against the reference: exact. */

import { describe, expect, test } from 'vitest'
import type { Engine } from '../../../test/kernels/fused.ts'
import { checkSort, special, testIndexing, testSort } from '../../../test/kernels/indexing.cases.ts'
import { dense, operand, output } from '../../../test/kernels/operand.ts'
import { runKernel } from '../../../test/kernels/primitive.ts'
import { integer, pick, random } from '../../../test/kernels/random.ts'
import { engine as all } from './support/engine.ts'
import { gpus } from './support/gpus.ts'

testSort(all, { random: 120 })
testIndexing(all, { random: 150 })

describe.each(gpus)('$name', ({ gpu }) => {
  test('sort: long rows, by ranks in two dispatches, or where there is much by the whole network', async () => {
    const rnd = random(2)
    const engine: Engine = { ...all, backends: all.backends.filter(({ backend }) => backend === gpu) }
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
        const x = dense(shape, () => (rnd() < 0.1 ? pick(rnd, special) : integer(rnd, -999, 999)))
        await checkSort(engine, x, dim, descending)
        expect(gpu.engine.counts.dispatches - before).toBe(dispatches)
      }
  })

  test('an index out of range reads 0 and writes nothing', async () => {
    const x = dense([4], (i) => i + 1)
    const index = dense([5], (i) => [-1, 0, 3, 4, 2 ** 31 - 1][i], 'int32')
    const [read] = await runKernel(gpu, 'gather', [output([5], 'float32')], [x, index], { dim: 0 })
    expect([...read]).toEqual([0, 1, 4, 0, 0])
    const ones = dense([5], () => 10)
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
