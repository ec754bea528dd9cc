/** Sorting against the reference backend: exact, ties and NaN included. */

import { type DType, layout, reference, type TypedArray } from '@tilegrad/core'
import { beforeAll, expect, test } from 'vitest'
import type { Engine } from '../src/engine.ts'
import { sort } from '../src/kernels/sort.ts'
import {
  expected,
  integer,
  makeEngine,
  mismatch,
  pick,
  random,
  randomLayout,
  run,
  type Twin,
  twin,
} from './row-rig.ts'

let engine: Engine
beforeAll(async () => {
  engine = await makeEngine({ threads: 3 })
})

function check(x: Twin, dim: number): void {
  for (const descending of [false, true]) {
    const specs = [x.dtype, 'int32' as const].map((dtype) => ({ shape: x.layout.shape, dtype }))
    const want = expected(reference.kernels.sort, specs, [x], { dim, descending })
    const got = run(engine, sort, specs, [x], { dim, descending })
    const context = `${x.dtype} ${JSON.stringify(x.layout)} over ${dim}, descending: ${descending}`
    expect(mismatch(got[0] as TypedArray, want[0] as TypedArray, 0, 0), `values: ${context}`).toBeNull()
    expect(mismatch(got[1] as TypedArray, want[1] as TypedArray, 0, 0), `indices: ${context}`).toBeNull()
  }
}

const special = [Number.NaN, Infinity, -Infinity, 0, -0, 1e-40, -1e-40, 3.4e38, -3.4e38]

test('any layout, with ties, NaN, infinities, both zeros', () => {
  const rnd = random(11)
  for (let i = 0; i < 200; i++) {
    const dtype = pick<DType>(rnd, ['float32', 'int32', 'float64'])
    const shape = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 5, 39, 41, 60]))
    const few = pick(rnd, [1, 20, 1e9])
    const odd = dtype === 'int32' ? 0 : pick(rnd, [0, 0.3])
    const value = () =>
      rnd() < odd ? pick(rnd, special) : dtype === 'int32' ? integer(rnd, -few, few) : (rnd() - 0.5) * few
    check(twin(randomLayout(rnd, shape), dtype, value), Math.max(0, integer(rnd, 0, shape.length - 1)))
  }
})

test('long rows', () => {
  const rnd = random(12)
  for (const dtype of ['float32', 'int32', 'float64'] as const) {
    for (const n of [255, 4095, 4096, 30_000]) {
      check(
        twin(layout.contiguous([2, n]), dtype, () => (rnd() - 0.5) * 2e9),
        1,
      )
      check(
        twin(layout.contiguous([n]), dtype, () => integer(rnd, -3, 3)),
        0,
      )
    }
  }
})

test('float64 that differ only in the lower word', () => {
  const ulp = 2 ** -52
  const rnd = random(13)
  check(
    twin(layout.contiguous([300]), 'float64', () => (rnd() < 0.5 ? -1 : 1) * (1 + integer(rnd, 0, 99) * ulp)),
    0,
  )
})

test('no elements', () => {
  check(
    twin(layout.contiguous([3, 0]), 'float32', () => 0),
    1,
  )
  check(
    twin(layout.contiguous([0, 3]), 'float32', () => 0),
    1,
  )
})
