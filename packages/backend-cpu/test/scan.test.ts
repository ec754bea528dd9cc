/** Scans against the reference backend in float64. */

import { test } from 'vitest'
import { dense, output } from '../../../test/kernels/operand.ts'
import { agree } from '../../../test/kernels/primitive.ts'
import { random } from '../../../test/kernels/random.ts'
import { testScan } from '../../../test/kernels/scan.cases.ts'
import { engineBy } from './support/engine.ts'

// Fused multiply-add rounds differently: only engines of one kind agree bit by bit.
const engine = engineBy((backend) => `relaxed: ${backend.engine.features.relaxed}`)

// At most 35 terms near 1: a few units in the last place for sums in float64, more for float32 affine lanes.
testScan(engine, {
  random: 300,
  affine: engine.dtypes,
  sizes: [1, 2, 3, 9, 35],
  within: { atol: 1e-6, rtol: 1e-6 },
})

test('long ones, along rows and along columns', async () => {
  const rnd = random(10)
  for (const [shape, dim] of [
    [[5, 20_000], 1],
    [[5000, 70], 0],
  ] as const) {
    const [x, decay] = [dense(shape, rnd), dense(shape, () => 0.9 + 0.1 * rnd())]
    const out = [output(shape, 'float32')]
    for (const reverse of [false, true]) {
      // Carried in float64: only the final rounding is left.
      await agree(engine, 'scan', out, [x], { kind: 'sum', dim, reverse }, { rtol: 1e-7 })
      // Float32 lanes forget their errors at the rate of the decay: about 20 steps' worth remain.
      await agree(engine, 'scan', out, [decay, x], { kind: 'affine', dim, reverse }, { rtol: 2e-6 })
    }
  }
})
