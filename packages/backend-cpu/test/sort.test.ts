/** Sorting against the reference backend: exact, ties and NaN included. */

import { test } from 'vitest'
import { checkSort, testSort } from '../../../test/kernels/indexing.cases.ts'
import { dense, type Operand } from '../../../test/kernels/operand.ts'
import { integer, random } from '../../../test/kernels/random.ts'
import { engine as all } from './support/engine.ts'

const engine = { ...all, backends: all.backends.filter(({ name }) => name === 'simd, 3 threads') }

testSort(engine, { random: 400 })

const check = async (x: Operand, dim: number): Promise<void> => {
  for (const descending of [false, true]) await checkSort(engine, x, dim, descending)
}

test('long rows', async () => {
  const rnd = random(12)
  for (const dtype of ['float32', 'int32', 'float64'] as const)
    for (const n of [255, 4095, 4096, 30_000]) {
      await check(
        dense([2, n], () => (rnd() - 0.5) * 2e9, dtype),
        1,
      )
      await check(
        dense([n], () => integer(rnd, -3, 3), dtype),
        0,
      )
    }
})

test('float64 that differ only in the lower word', async () => {
  const ulp = 2 ** -52
  const rnd = random(13)
  await check(
    dense([300], () => (rnd() < 0.5 ? -1 : 1) * (1 + integer(rnd, 0, 99) * ulp), 'float64'),
    0,
  )
})
