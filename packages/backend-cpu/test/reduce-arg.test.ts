/** Positions of largest and smallest elements against the reference backend: exact. */

import { type DType, layout, reference, type TypedArray } from '@tilegrad/core'
import { beforeAll, expect, test } from 'vitest'
import type { Engine } from '../src/engine.ts'
import { argReduce } from '../src/kernels/reduce/arg-reduce.ts'
import {
  expected,
  integer,
  makeEngines,
  mismatch,
  pick,
  random,
  randomLayout,
  run,
  type Twin,
  twin,
} from './row-rig.ts'

let engines: { name: string; engine: Engine }[]
beforeAll(async () => {
  engines = await makeEngines()
})

function check(x: Twin, dim: number): void {
  for (const kind of ['max', 'min'] as const) {
    const spec = { shape: x.layout.shape.with(dim, 1), dtype: 'int32' as const }
    const want = expected(reference.kernels.argReduce, [spec], [x], { kind, dim })[0] as TypedArray
    for (const { name, engine } of engines) {
      const [got] = run(engine, argReduce, [spec], [x], { kind, dim }) as [TypedArray]
      const context = () => `${name}: arg${kind} over ${dim} of ${JSON.stringify(x.layout)} ${x.dtype}`
      expect(mismatch(got, want, 0, 0), context()).toBeNull()
    }
  }
}

test('any layout, with ties and NaN', () => {
  const rnd = random(1)
  for (let i = 0; i < 200; i++) {
    const dtype = pick<DType>(rnd, ['float32', 'float32', 'int32', 'float64', 'bool'])
    const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 7, 18, 40]))
    const nans = rnd() < 0.3 && dtype.startsWith('float') ? 0.1 : 0
    const few = dtype === 'bool' ? 1 : pick(rnd, [2, 10, 1e6])
    const value = () => (rnd() < nans ? Number.NaN : integer(rnd, dtype === 'bool' ? 0 : -few, few))
    check(twin(randomLayout(rnd, shape), dtype, value), integer(rnd, 0, shape.length - 1))
  }
})

test('long rows; zeros of both signs are equal; infinities', () => {
  const rnd = random(2)
  for (const n of [4095, 4097, 9000]) {
    for (const at of [0, 5, 4096, n - 1]) {
      const dense = layout.contiguous([3, n])
      check(
        twin(dense, 'float32', (i) => (i % n === at ? 9 : rnd())),
        1,
      )
      check(
        twin(dense, 'float32', (i) => (i % n === at ? Number.NaN : i === 7 ? Infinity : rnd())),
        1,
      )
      check(
        twin(dense, 'int32', (i) => (i % n === at ? -0x80000000 : 0x7fffffff)),
        1,
      )
    }
  }
  check(
    twin(layout.contiguous([2, 9]), 'float32', (i) => (i % 2 ? 0 : -0)),
    1,
  )
  check(
    twin(layout.contiguous([2, 40]), 'float32', () => -Infinity),
    1,
  )
  check(
    twin(layout.contiguous([2, 40]), 'float32', () => Infinity),
    1,
  )
})
