/** Embedding and its gradient against the composition on the reference backend: exact but for float32 sums. */

import { embedding, layout, type Tensor, ValueError } from '@tilegrad/core'
import { beforeAll, expect, test } from 'vitest'
import type { CpuBackend } from '../src/backend.ts'
import { type Case, check, evaluate, makeBackends } from './fused-rig.ts'
import { integer, pick, random, randomLayout, twin } from './row-rig.ts'

let backends: { name: string; backend: CpuBackend }[]
beforeAll(async () => {
  backends = await makeBackends()
})

const both = ['embedding', 'embeddingBackward']
const exact = [[0, 0]] as const

/** Gradients are small integers, so that their sums are exact in any order and precision. */
function make(rnd: () => number, v: number, d: number, shape: number[], paddingIdx: number | null): Case {
  return {
    inputs: [
      twin(randomLayout(rnd, [v, d]), 'float32', () => rnd() - 0.5),
      twin(randomLayout(rnd, shape), 'int32', () => integer(rnd, 0, v - 1)),
    ],
    needs: [true, false],
    dout: twin(randomLayout(rnd, [...shape, d]), 'float32', () => integer(rnd, -9, 9)),
    call: ([w, i]) => embedding(i as Tensor, w as Tensor, { paddingIdx }),
  }
}

test('any layout, with and without padding', () => {
  const rnd = random(31)
  for (let i = 0; i < 80; i++) {
    const v = pick(rnd, [1, 3, 10, 65])
    const shape = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 7]))
    check(
      backends,
      make(rnd, v, pick(rnd, [1, 3, 16, 37, 130]), shape, pick(rnd, [null, 0, v - 1])),
      both,
      exact,
    )
  }
})

test('many rows', () => {
  const rnd = random(32)
  check(backends, make(rnd, 65, 384, [12, 64], null), both, exact)
  check(backends, make(rnd, 65, 4, [40, 300], 3), both, exact)
})

test('an index out of range is named, in both directions', () => {
  const bad: Case = {
    inputs: [
      twin(layout.contiguous([10, 4]), 'float32', (i) => i),
      twin(layout.contiguous([2, 150]), 'int32', (i) => (i === 200 ? 12 : i % 10)),
    ],
    needs: [false, false],
    dout: null,
    call: ([w, i]) => embedding(i as Tensor, w as Tensor),
  }
  for (const { backend } of backends) {
    expect(() => evaluate(backend, bad)).toThrow(
      new ValueError('embedding: index 12 is out of range for dim 0 of size 10'),
    )
  }
})
