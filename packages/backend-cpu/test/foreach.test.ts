/** Many calls at once against one each: the same bits. */

import { applyProgramIntoEach, expr as e, profile, program, tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { compare, testForeach } from '../../../test/kernels/foreach.cases.ts'
import { backends, engine } from './support/engine.ts'

testForeach(engine)

test('a chunk that ends within a tensor, and many tensors in a chunk', async () => {
  const many = Array.from({ length: 1500 }, (_, i) => i % 7)
  for (const { backend } of backends)
    for (const [seed, sizes] of [[300_001, 3, 70_000, 1, 1], many, [1, 1, 1], [0, 0]].entries())
      await compare(backend, 7 + seed, sizes)
})

test('powers, whose code depends on params, run one by one', async () => {
  const POWER = program('power', 1, ([x], [y]) => e.pow(x, y), 1)
  const device = backends[0].backend
  const ts = [2, 3].map((x) => tensor([x], { device }))
  const { rows } = profile(() =>
    applyProgramIntoEach(
      POWER,
      ts.map((t, i) => ({ outputs: [t], inputs: [t], params: [i + 2] })),
    ),
  )
  expect(rows.map((r) => [r.path, r.calls])).toEqual([['primitive', 2]])
  expect(ts.map((t) => t.itemSync())).toEqual([4, 27])
})
