/** Cross-entropy and its gradient against the composition on the reference backend, in float64. */

import { expect, test } from 'vitest'
import { given, testCrossEntropy } from '../../../test/kernels/cross-entropy.cases.ts'
import { evaluate } from '../../../test/kernels/fused.ts'
import { engine } from './support/engine.ts'

// A loss of size up to 60 plus ln C; the 3 + 2 |x − m| ulp of WGSL's exp are relative errors of the gradient.
testCrossEntropy(engine, [
  [6e-6, 1e-6],
  [1e-6, 2e-5],
])

test('a class out of range has neither loss nor gradient, and counts', async () => {
  const zeros = new Float32Array(3)
  for (const { backend } of engine.backends)
    for (const bad of [3, -1, 0x7fffffff]) {
      const c = given(
        [2, 3],
        (i) => i,
        (i) => [2, bad][i],
      )
      const { results } = await evaluate(backend, c)
      expect(results[0][0]).toBeCloseTo(0.5 * Math.log(1 + Math.exp(-1) + Math.exp(-2)), 6)
      expect(results[1].slice(3)).toEqual(zeros)
      expect(results[1].slice(0, 3)).not.toEqual(zeros)
    }
})
