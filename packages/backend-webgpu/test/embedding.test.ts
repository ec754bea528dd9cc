/** Embedding and its gradient against the composition on the reference backend: exact but for float32 sums. */

import { embedding } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { testEmbedding } from '../../../test/kernels/embedding.cases.ts'
import { evaluate } from '../../../test/kernels/fused.ts'
import { dense } from '../../../test/kernels/operand.ts'
import { engine } from './support/engine.ts'

testEmbedding(engine, { adds: true })

test('an index out of range reads as 0 and has no gradient', async () => {
  const index = [2, -1, 3, 0x7fffffff, -(2 ** 31), 0]
  // Many are sorted.
  for (const n of [6, 2049])
    for (const { backend } of engine.backends) {
      const { results } = await evaluate(backend, {
        inputs: [dense([3, 2], (i) => i + 1), dense([n], (i) => index[i] ?? -7, 'int32')],
        needs: [true, false],
        dout: dense([n, 2], (i) => i + 1),
        call: ([w, i]) => embedding(i, w),
      })
      expect([...results[0].slice(0, 12)]).toEqual([5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2])
      expect(results[0].slice(12).every((y) => y === 0)).toBe(true)
      expect([...results[1]]).toEqual([11, 12, 0, 0, 1, 2])
    }
})
