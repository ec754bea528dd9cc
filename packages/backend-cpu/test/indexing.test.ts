/** Gather and scatterAdd against the reference backend: exact. */

import { type DType, ValueError } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { checkGather, checkScatter, testIndexing } from '../../../test/kernels/indexing.cases.ts'
import { dense, operand, output } from '../../../test/kernels/operand.ts'
import { runKernel } from '../../../test/kernels/primitive.ts'
import { integer, random } from '../../../test/kernels/random.ts'
import { backends, engineBy } from './support/engine.ts'

const engine = engineBy(() => 'any')

testIndexing(engine, { random: 250 })

/** Values are small integers, so that sums are exact in float32 and any wrong order or lost term shows. */
const small = (rnd: () => number) => () => integer(rnd, -9, 9)
const both = async (
  rnd: () => number,
  [shape, dim]: readonly [shape: readonly number[], dim: number],
  index: Parameters<typeof checkGather>[2],
  dtype: DType = 'float32',
): Promise<void> => {
  const x = dense(shape, small(rnd), dtype)
  await checkGather(engine, x, index, dim)
  await checkScatter(engine, [x, index, dense(index.layout.shape, small(rnd), dtype)], dim)
}

test.each([
  [65, 384, 700],
  [50, 13, 9000],
  [3, 2, 40_000],
  [1, 70, 5000],
  [2000, 129, 300],
])('of [%i, %i] %i rows', async (v, d, n) => {
  const rnd = random(6)
  for (const dtype of ['float32', 'int32', 'float64'] as const) {
    const rows = { shape: [n, d], strides: [1, 0], offset: 0 }
    await both(
      rnd,
      [[v, d], 0],
      operand(rows, 'int32', () => integer(rnd, 0, v - 1)),
      dtype,
    )
  }
})

test('one dim, many elements; along the last dim; blocks of a long expanded row', async () => {
  const rnd = random(6)
  await both(
    rnd,
    [[1000], 0],
    dense([50_000], () => integer(rnd, 0, 999), 'int32'),
  )
  for (const k of [1, 65])
    await both(
      rnd,
      [[600, 65], 1],
      dense([600, k], () => integer(rnd, 0, 64), 'int32'),
    )
  const expanded = operand({ shape: [2, 20_000], strides: [1, 0], offset: 0 }, 'int32', (i) => 2 - i)
  await checkGather(
    engine,
    dense([3, 20_000], (i) => i),
    expanded,
    0,
  )
})

test('the first index out of range is named, and the next call works', async () => {
  const { backend } = backends[1]
  const x = dense([10, 4], (i) => i)
  const source = dense([300, 4], () => 1)
  const index = (bad: number) =>
    operand({ shape: [300, 4], strides: [1, 0], offset: 0 }, 'int32', (i) =>
      i === 100 ? bad : i === 200 ? 99 : 1,
    )
  const out = output([300, 4], 'float32')
  const gather = (x: typeof source, bad: number) =>
    runKernel(backend, 'gather', [out], [x, index(bad)], { dim: 0 })
  for (const bad of [12, 10, -1, 0x7fffffff, -0x80000000]) {
    const message = (op: string) => new ValueError(`${op}: index ${bad} is out of range for dim 0 of size 10`)
    await expect(gather(x, bad)).rejects.toThrow(message('gather'))
    const scatter = runKernel(backend, 'scatterAdd', [output([10, 4], 'float32')], [x, index(bad), source], {
      dim: 0,
    })
    await expect(scatter).rejects.toThrow(message('scatter_add'))
    await checkGather(
      engine,
      x,
      dense([300, 4], () => 9, 'int32'),
      0,
    )
  }
  const none = dense([0, 4], () => 0)
  await expect(gather(none, 1)).rejects.toThrow('gather: index 1 is out of range for dim 0 of size 0')
})
