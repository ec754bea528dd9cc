/** Embedding and its gradient against the composition on the reference backend: exact but for float32 sums. */

import { embedding, ValueError } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { testEmbedding } from '../../../test/kernels/embedding.cases.ts'
import { type Case, check, evaluate } from '../../../test/kernels/fused.ts'
import { dense, operand } from '../../../test/kernels/operand.ts'
import { integer, pick, random, randomLayout } from '../../../test/kernels/random.ts'
import { backends, engine } from './support/engine.ts'

testEmbedding(engine, { adds: false })

test('rows that are not one run', async () => {
  const rnd = random(31)
  for (let i = 0; i < 40; i++) {
    const [v, d] = [pick(rnd, [1, 3, 10, 65]), pick(rnd, [1, 3, 16, 37, 130])]
    const shape = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 7]))
    const paddingIdx = pick(rnd, [null, 0, v - 1])
    const c: Case = {
      inputs: [
        operand(randomLayout(rnd, [v, d]), 'float32', () => rnd() - 0.5),
        operand(randomLayout(rnd, shape), 'int32', () => integer(rnd, 0, v - 1)),
      ],
      needs: [true, false],
      dout: operand(randomLayout(rnd, [...shape, d]), 'float32', () => integer(rnd, -9, 9)),
      call: ([w, i]) => embedding(i, w, { paddingIdx }),
    }
    await check(engine, c, ['embedding', 'embeddingBackward'], [[0, 0]])
  }
})

test('an index out of range is named, in both directions', async () => {
  const bad: Case = {
    inputs: [dense([10, 4], (i) => i), dense([2, 150], (i) => (i === 200 ? 12 : i % 10), 'int32')],
    needs: [false, false],
    dout: null,
    call: ([w, i]) => embedding(i, w),
  }
  const message = 'embedding: index 12 is out of range for dim 0 of size 10'
  for (const { backend } of backends)
    await expect(evaluate(backend, bad)).rejects.toThrow(new ValueError(message))
})
