/** Reductions against the reference backend in float64, for any layout, dtype, thread count and instruction set. */

import { type DType, layout, type Reduction, reference, type TypedArray } from '@tilegrad/core'
import { beforeAll, describe, expect, test } from 'vitest'
import type { Engine } from '../src/engine.ts'
import { reduce } from '../src/kernels/reduce/reduce.ts'
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

const keep = (shape: readonly number[], dims: readonly number[]): number[] =>
  shape.map((n, d) => (dims.includes(d) ? 1 : n))
const dense = (shape: readonly number[]) => layout.contiguous(shape)

/** Values that make the exact answer easy to reach: products stay near 1, integers small. */
const values: Record<Reduction, (rnd: () => number, dtype: DType) => () => number> = {
  sum: (rnd, dtype) => () => (dtype === 'int32' ? integer(rnd, -2e9, 2e9) : rnd() * 2 - 1),
  prod: (rnd, dtype) => () => (dtype === 'int32' ? integer(rnd, -5, 5) : 1 + (rnd() - 0.5) * 0.01),
  max: (rnd, dtype) => () => (dtype === 'bool' ? integer(rnd, 0, 1) : integer(rnd, -1e6, 1e6)),
  min: (rnd, dtype) => () => (dtype === 'bool' ? integer(rnd, 0, 1) : integer(rnd, -1e6, 1e6)),
}

/** All engines must agree bit by bit; the first one with the reference. */
function check(x: Twin, kind: Reduction, dims: readonly number[], atol: number, rtol: number): void {
  const shape = keep(x.layout.shape, dims)
  const attrs = { kind, dims }
  const want = expected(reference.kernels.reduce, [{ shape, dtype: x.dtype }], [x], attrs)[0] as TypedArray
  let first: TypedArray | undefined
  for (const { name, engine } of engines) {
    const [got] = run(engine, reduce, [{ shape, dtype: x.dtype }], [x], attrs) as [TypedArray]
    const context = () => `${name}: ${kind} over ${dims} of ${JSON.stringify(x.layout)} ${x.dtype}`
    if (first === undefined) expect(mismatch(got, want, atol, rtol), context()).toBeNull()
    else expect(mismatch(got, first, 0, 0), `${context()} against ${engines[0]?.name}`).toBeNull()
    first ??= got
  }
}

describe('any layout', () => {
  const dtypes: DType[] = ['float32', 'int32', 'float64', 'bool']
  for (const kind of ['sum', 'prod', 'max', 'min'] as const) {
    test(kind, () => {
      const rnd = random(kind.length * 1000 + kind.charCodeAt(0))
      for (let i = 0; i < 120; i++) {
        const dtype = pick(rnd, dtypes.slice(0, kind === 'max' || kind === 'min' ? 4 : 3))
        const rank = integer(rnd, 0, 5)
        const shape = Array.from({ length: rank }, () => pick(rnd, [1, 2, 3, 5, 8, 17]))
        const dims = shape.map((_, d) => d).filter(() => rnd() < 0.5)
        const x = twin(randomLayout(rnd, shape), dtype, values[kind](rnd, dtype))
        // Sums of up to 2·10⁴ terms of size 1 in lanes of float32: errors well below 1e-6 per term of the root.
        check(
          x,
          kind,
          dims,
          kind === 'sum' && dtype === 'float32' ? 2e-5 : 0,
          dtype === 'float32' ? 3e-6 : 1e-12,
        )
      }
    })
  }
})

describe('large', () => {
  const cases: [shape: number[], dims: number[]][] = [
    [[100_003], [0]],
    [[3, 70_001], [1]],
    [
      [3, 70_001],
      [0, 1],
    ],
    [[257, 1031], [1]],
    [[1025, 515], [0]],
    [[40_000, 3], [0]],
    [[3, 1000, 70], [1]],
    [
      [70, 9, 130],
      [0, 2],
    ],
    [
      [66, 65, 64],
      [0, 1],
    ],
  ]
  for (const [shape, dims] of cases) {
    test(`[${shape}] over ${dims}`, () => {
      const rnd = random(shape.length + dims.length)
      for (const kind of ['sum', 'max'] as const) {
        for (const dtype of ['float32', 'int32'] as const) {
          for (const l of [dense(shape), randomLayout(rnd, shape, { plain: 0, expand: 0.1 })]) {
            // Positive terms, so that the sum's relative error is that of the method: up to 64 float32 additions in a row.
            const value = dtype === 'int32' ? values[kind](rnd, dtype) : () => rnd() + 0.5
            check(twin(l, dtype, value), kind, dims, 0, 1e-6)
          }
        }
      }
    })
  }
})

test('ten million ones plus noise', () => {
  const n = 1e7
  const rnd = random(3)
  const data = Float32Array.from({ length: n }, () => 1 + 1e-3 * rnd())
  let exact = 0
  for (let i = 0; i < n; i++) exact += data[i] as number
  for (const shape of [[n], [10, n / 10], [n / 10, 10]]) {
    const x = { layout: dense(shape), dtype: 'float32' as const, data }
    const dims = shape.map((_, d) => d)
    const [got] = run(engine, reduce, [{ shape: keep(shape, dims), dtype: 'float32' }], [x], {
      kind: 'sum',
      dims,
    })
    // At most 128 float32 additions per lane, then float64: the lanes' errors average out far below 1e-6.
    expect(Math.abs((got?.[0] as number) / exact - 1)).toBeLessThan(2e-7)
  }
  // Columns collect up to 64 groups of 8 rows before float64.
  const x = { layout: dense([n / 10, 10]), dtype: 'float32' as const, data }
  const [columns] = run(engine, reduce, [{ shape: [1, 10], dtype: 'float32' }], [x], {
    kind: 'sum',
    dims: [0],
  })
  for (const c of columns as TypedArray) expect(Math.abs(c / (exact / 10) - 1)).toBeLessThan(1e-5)
})

describe('special values', () => {
  const shapes: [number[], number[]][] = [
    [[5], [0]],
    [[3, 40], [1]],
    [[40, 3], [0]],
    [[2, 70_000], [1]],
    [[300, 20], [0]],
  ]
  test('NaN wins in max and min, wherever it is', () => {
    for (const [shape, dims] of shapes) {
      const n = layout.numel(shape)
      for (const at of [0, 1, n >> 1, n - 1]) {
        for (const kind of ['max', 'min'] as const) {
          const x = twin(dense(shape), 'float32', (i) => (i === at ? Number.NaN : i % 7))
          check(x, kind, dims, 0, 0)
        }
      }
    }
  })
  test('infinities', () => {
    for (const [shape, dims] of shapes) {
      for (const kind of ['sum', 'prod', 'max', 'min'] as const) {
        check(
          twin(dense(shape), 'float32', (i) => (i === 1 ? Infinity : 1)),
          kind,
          dims,
          0,
          1e-6,
        )
        check(
          twin(dense(shape), 'float32', (i) => (i % 2 ? Infinity : -Infinity)),
          kind,
          dims,
          0,
          0,
        )
      }
    }
  })
  test('sums of int32 wrap', () => {
    for (const [shape, dims] of shapes) {
      check(
        twin(dense(shape), 'int32', () => 0x7fffffff),
        'sum',
        dims,
        0,
        0,
      )
      check(
        twin(dense(shape), 'int32', () => 3),
        'prod',
        dims,
        0,
        0,
      )
    }
  })
  test('no elements give the neutral element, no outputs nothing', () => {
    for (const kind of ['sum', 'prod', 'max', 'min'] as const) {
      check(
        twin(dense([3, 0]), 'float32', () => 0),
        kind,
        [1],
        0,
        0,
      )
      check(
        twin(dense([0]), 'float64', () => 0),
        kind,
        [0],
        0,
        0,
      )
      check(
        twin(dense([3, 0]), 'float32', () => 0),
        kind,
        [0],
        0,
        0,
      )
    }
    check(
      twin(dense([3, 0]), 'int32', () => 0),
      'prod',
      [1],
      0,
      0,
    )
  })
  test('expanded dims count as often as they repeat', () => {
    const l = { shape: [1000, 1000, 1000, 3], strides: [0, 0, 0, 1], offset: 0 }
    const x = { layout: l, dtype: 'float32' as const, data: Float32Array.of(1.5, -2, 3) }
    const [got] = run(engine, reduce, [{ shape: [1, 1, 1, 3], dtype: 'float32' }], [x], {
      kind: 'sum',
      dims: [0, 1, 2],
    })
    expect(Array.from(got as TypedArray)).toEqual([1.5e9, -2e9, 3e9])
    const ints = { layout: l, dtype: 'int32' as const, data: Int32Array.of(1, 2, 5) }
    const [wrapped] = run(engine, reduce, [{ shape: [1, 1, 1, 1], dtype: 'int32' }], [ints], {
      kind: 'sum',
      dims: [0, 1, 2, 3],
    })
    expect(Array.from(wrapped as TypedArray)).toEqual([Number(BigInt.asIntN(32, 8_000_000_000n))])
  })
})

test('frees its temporaries', () => {
  const x = twin(dense([1000, 200]), 'float32', (i) => i)
  const once = (dims: number[]) =>
    run(engine, reduce, [{ shape: keep([1000, 200], dims), dtype: 'float32' }], [x], { kind: 'sum', dims })
  for (const dims of [[0], [1], [0, 1]]) {
    once(dims)
    const before = engine.memory.stats().liveBlocks
    once(dims)
    expect(engine.memory.stats().liveBlocks).toBe(before)
  }
})
