/** Cross-entropy and its gradient against the composition on the reference backend, in float64. */

import { ValueError } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { both, given, make, testCrossEntropy } from '../../../test/kernels/cross-entropy.cases.ts'
import { check, evaluate } from '../../../test/kernels/fused.ts'
import { random } from '../../../test/kernels/random.ts'
import { backends, engine } from './support/engine.ts'

// A loss of size up to 60 plus ln C, and rounding of x − lse, which exp makes a relative error of the gradient.
const tolerances = [
  [5e-6, 1e-6],
  [1e-6, 6e-6],
] as const

testCrossEntropy(engine, tolerances)

test('a sum over many rows', async () => {
  await check(engine, make(random(22), 3000, 65, { reduction: 'sum' }), both, [
    [0, 1e-6],
    [1e-6, 6e-6],
  ])
})

test('a class out of range is named, and the next call works', async () => {
  for (const { backend } of backends) {
    for (const bad of [5, -1, 0x7fffffff]) {
      const label = (i: number) => (i === 3 ? -100 : i === 200 ? bad : i % 5)
      const c = { ...given([300, 5], (i) => i % 7, label), needs: [false, false] }
      const message = `cross_entropy: index ${bad} is out of range for dim 1 of size 5`
      await expect(evaluate(backend, c)).rejects.toThrow(new ValueError(message))
    }
  }
  await check(engine, make(random(1), 64, 5), both, tolerances)
})
