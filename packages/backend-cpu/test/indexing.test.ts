/** Gather and scatterAdd against the reference backend: exact, but for the order of float32 rounding. */

import { type DType, layout, reference, type TypedArray, ValueError } from '@tilegrad/core'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'
import type { Engine } from '../src/engine.ts'
import { gather, scatterAdd } from '../src/kernels/indexing/indexing.ts'
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
let engine: Engine
beforeAll(async () => {
  engines = await makeEngines()
  engine = (engines[1] as { engine: Engine }).engine
})

function checkGather(x: Twin, index: Twin, dim: number): void {
  const spec = { shape: index.layout.shape, dtype: x.dtype }
  const want = expected(reference.kernels.gather, [spec], [x, index], { dim })[0] as TypedArray
  for (const { name, engine } of engines) {
    const [got] = run(engine, gather, [spec], [x, index], { dim }) as [TypedArray]
    expect(mismatch(got, want, 0, 0), `${name}: ${JSON.stringify([x.layout, index.layout, dim])}`).toBeNull()
  }
}

/** Values are small integers, so that sums are exact in float32 and any wrong order or lost term shows. */
function checkScatter(x: Twin, index: Twin, source: Twin, dim: number): void {
  const spec = { shape: x.layout.shape, dtype: x.dtype }
  const want = expected(reference.kernels.scatterAdd, [spec], [x, index, source], { dim })[0] as TypedArray
  for (const { name, engine } of engines) {
    const [got] = run(engine, scatterAdd, [spec], [x, index, source], { dim }) as [TypedArray]
    const context = () => `${name}: ${JSON.stringify([x.layout, index.layout, source.layout, dim])}`
    expect(mismatch(got, want, 0, 0), context()).toBeNull()
  }
}

const small = (rnd: () => number, dtype: DType) => () => (dtype === 'bool' ? 1 : integer(rnd, -9, 9))

test('any layout', () => {
  const rnd = random(5)
  for (let i = 0; i < 250; i++) {
    const dtype = pick<DType>(rnd, ['float32', 'float32', 'int32', 'float64', 'bool'])
    const rank = integer(rnd, 1, 4)
    const dim = integer(rnd, 0, rank - 1)
    const shape = Array.from({ length: rank }, () => pick(rnd, [1, 2, 3, 6, 33]))
    const indexShape = shape.map((n, d) =>
      d === dim ? pick(rnd, [0, 1, 5, 20]) : rnd() < 0.7 ? n : integer(rnd, 0, n),
    )
    const sourceShape = indexShape.map((n) => n + pick(rnd, [0, 0, 2]))
    const size = shape[dim] as number
    const x = twin(randomLayout(rnd, shape), dtype, small(rnd, dtype))
    const index = twin(randomLayout(rnd, indexShape, { expand: 0.4, plain: 0.2 }), 'int32', () =>
      integer(rnd, 0, size - 1),
    )
    checkGather(x, index, dim)
    if (dtype !== 'bool') {
      checkScatter(x, index, twin(randomLayout(rnd, sourceShape), dtype, small(rnd, dtype)), dim)
    }
  }
})

describe('large', () => {
  let rnd = random(6)
  // A test's numbers are the same whichever ran before it.
  beforeEach(() => {
    rnd = random(6)
  })
  const rows = (v: number, d: number, n: number, dtype: DType = 'float32') => ({
    x: twin(layout.contiguous([v, d]), dtype, small(rnd, dtype)),
    index: twin({ shape: [n, d], strides: [1, 0], offset: 0 }, 'int32', () => integer(rnd, 0, v - 1)),
    source: twin(layout.contiguous([n, d]), dtype, small(rnd, dtype)),
  })
  for (const [v, d, n] of [
    [65, 384, 700],
    [50, 13, 9000],
    [3, 2, 40_000],
    [1, 70, 5000],
    [2000, 129, 300],
  ] as const) {
    test(`rows: ${n} of [${v}, ${d}]`, () => {
      for (const dtype of ['float32', 'int32', 'float64'] as const) {
        const { x, index, source } = rows(v, d, n, dtype)
        checkGather(x, index, 0)
        checkScatter(x, index, source, 0)
      }
    })
  }
  test('one dim, many elements', () => {
    const x = twin(layout.contiguous([1000]), 'float32', small(rnd, 'float32'))
    const index = twin(layout.contiguous([50_000]), 'int32', () => integer(rnd, 0, 999))
    checkGather(x, index, 0)
    checkScatter(x, index, twin(layout.contiguous([50_000]), 'float32', small(rnd, 'float32')), 0)
  })
  test('along the last dim', () => {
    const x = twin(layout.contiguous([600, 65]), 'float32', small(rnd, 'float32'))
    for (const k of [1, 65]) {
      const index = twin(layout.contiguous([600, k]), 'int32', () => integer(rnd, 0, 64))
      checkGather(x, index, 1)
      checkScatter(x, index, twin(layout.contiguous([600, k]), 'float32', small(rnd, 'float32')), 1)
    }
  })
  test('blocks of a long expanded row', () => {
    const x = twin(layout.contiguous([3, 20_000]), 'float32', (i) => i)
    checkGather(
      x,
      twin({ shape: [2, 20_000], strides: [1, 0], offset: 0 }, 'int32', (i) => 2 - i),
      0,
    )
  })
})

test('float32 additions to one place happen in the order of the index', () => {
  const rnd = random(7)
  const n = 20_000
  const x = twin(layout.contiguous([4, 3]), 'float32', () => 0.1)
  const index = twin({ shape: [n, 3], strides: [1, 0], offset: 0 }, 'int32', () => integer(rnd, 0, 3))
  const source = twin(layout.contiguous([n, 3]), 'float32', () => rnd() - 0.5)
  const want = Float32Array.from(x.data)
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) {
      const at = (index.data[i] as number) * 3 + c
      want[at] = Math.fround((want[at] as number) + (source.data[3 * i + c] as number))
    }
  }
  for (const { name, engine } of engines) {
    const [got] = run(engine, scatterAdd, [{ shape: [4, 3], dtype: 'float32' }], [x, index, source], {
      dim: 0,
    })
    expect(mismatch(got as TypedArray, want, 0, 0), name).toBeNull()
  }
})

test('the first index out of range is named, and the next call works', () => {
  const x = twin(layout.contiguous([10, 4]), 'float32', (i) => i)
  const source = twin(layout.contiguous([300, 4]), 'float32', () => 1)
  const index = (bad: number) =>
    twin({ shape: [300, 4], strides: [1, 0], offset: 0 }, 'int32', (i) =>
      i === 100 ? bad : i === 200 ? 99 : 1,
    )
  const spec = { shape: [300, 4], dtype: 'float32' as const }
  for (const bad of [12, 10, -1, 0x7fffffff, -0x80000000]) {
    const message = (op: string) => new ValueError(`${op}: index ${bad} is out of range for dim 0 of size 10`)
    expect(() => run(engine, gather, [spec], [x, index(bad)], { dim: 0 })).toThrow(message('gather'))
    const out = [{ shape: [10, 4], dtype: 'float32' as const }]
    expect(() => run(engine, scatterAdd, out, [x, index(bad), source], { dim: 0 })).toThrow(
      message('scatter_add'),
    )
    checkGather(
      x,
      twin({ shape: [300, 4], strides: [1, 0], offset: 0 }, 'int32', () => 9),
      0,
    )
  }
  const none = twin(layout.contiguous([0, 4]), 'float32', () => 0)
  expect(() => run(engine, gather, [spec], [none, index(1)], { dim: 0 })).toThrow(
    'gather: index 1 is out of range for dim 0 of size 0',
  )
})
