/** Parameters of kernels: written by name, read by name. */

import { describe, expect, test } from 'vitest'
import { address, block, double, float, optional, tensor, word } from '../src/block.ts'
import { CpuBuffer, createEngine } from '../src/engine.ts'
import { detectFeatures } from '../src/machine/features.ts'
import { Heap } from '../src/machine/heap.ts'
import { Pool } from '../src/machine/pool.ts'
import { f64 } from '../src/wasm/index.ts'

const features = detectFeatures({ threads: 1 })
const heap = new Heap({ shared: features.shared })
const engine = createEngine(features, heap, new Pool(heap, features))

const view = (ptr: number, strides: readonly number[]) => ({
  buffer: new CpuBuffer(ptr, 4096),
  dtype: 'float32' as const,
  shape: strides.map(() => 2),
  strides,
  offset: 3,
})
const words = (count: number): number[] => {
  const first = engine.params >>> 2
  return [...heap.i32.subarray(first, first + count)]
}

describe('a block', () => {
  const params = block({ n: word, eps: float, x: tensor, last: word })

  test('has a place for every word, in the order of the declaration', () => {
    expect([...params.offsets]).toEqual([
      ...[
        ['n', 0],
        ['eps', 4],
        ['xPtr', 8],
        ['xBatch', 12],
        ['xHead', 16],
        ['xRow', 20],
      ],
      ...[
        ['xStep', 24],
        ['last', 28],
      ],
    ])
  })

  test('is written by name, in whatever order values come', () => {
    const x = view(1024, [100, 10, -5, 1])
    const want = [7, 0x3f000000, 1036, 400, 40, -20, 4, 9]
    params.write(engine, { n: 7, eps: 0.5, x, last: 9 })
    expect(words(8)).toEqual(want)
    heap.i32.fill(0, engine.params >>> 2, (engine.params >>> 2) + 8)
    params.write(engine, { last: 9, x, n: 7, eps: 0.5 })
    expect(words(8)).toEqual(want)
  })

  test('leaves what is not set, and clears strides that a tensor does not have', () => {
    params.write(engine, { n: 1, eps: 0, x: view(64, [8, 8, 8, 8]), last: 2 })
    params.set(engine, { x: view(64, [6, 2]) })
    expect(words(8)).toEqual([1, 0, 76, 24, 8, 0, 0, 2])
    params.set(engine, { last: -1 })
    expect(words(8)).toEqual([1, 0, 76, 24, 8, 0, 0, -1])
  })

  test('is read by a kernel under the same names', () => {
    const kernel = engine.kernel('block test', (m) =>
      m.kernel('main', (f, _start, _end, at) => {
        const read = params.reader(at)
        f.store(read('xPtr'), read('n').mul(100).add(read('last')))
      }),
    )
    const to = heap.alloc(64)
    params.write(engine, { n: 5, eps: 0, x: { ...view(to, [1]), offset: 0 }, last: 4 })
    engine.launch(kernel, 1, 1)
    expect(heap.i32[to >>> 2]).toBe(504)
  })

  test('names that are missing, misspelt or too many, and values of another kind, do not compile', () => {
    type Values = Parameters<typeof params.write>[1]
    const take = (_: Values): void => {}
    const rest = { eps: 0, x: view(0, []), last: 0 }
    take({ n: 1, ...rest })
    // @ts-expect-error n is missing.
    take(rest)
    // @ts-expect-error n is misspelt.
    take({ N: 1, ...rest })
    // @ts-expect-error there is no m.
    take({ n: 1, m: 1, ...rest })
    // @ts-expect-error a tensor is no number.
    take({ n: 1, eps: 0, x: 5, last: 0 })
    const read = (_: Parameters<typeof params.offset>[0]): void => {}
    read('xStep')
    // @ts-expect-error a tensor has several words.
    read('x')
    // @ts-expect-error y is not declared.
    read('yStep')
  })
})

test('a block behind another one is written by itself, and its readers know both', () => {
  const common = block({ a: word, b: word })
  const own = block({ c: word }, common)
  common.write(engine, { a: 1, b: 2 })
  own.write(engine, { c: 3 })
  expect(words(3)).toEqual([1, 2, 3])
  expect([own.offset('b'), own.offset('c')]).toEqual([4, 8])
})

test('single words are loaded under their names, and a float64 takes two words', () => {
  const params = block({ to: word, x: address, half: double, n: word })
  const kernel = engine.kernel('block test of single words', (m) =>
    m.kernel('main', (f, _start, _end, at) => {
      const { to, x, n } = params.load(f, at)
      f.store(to, x.sub(n))
      f.store(to, f64.load(at, params.offset('halfLow')).mul(3), 8)
    }),
  )
  const to = heap.alloc(64)
  params.write(engine, { to, x: view(100, [1]), half: 0.5, n: 2 })
  engine.launch(kernel, 1, 1)
  expect([heap.i32[to >>> 2], heap.f64[(to + 8) >>> 3]]).toEqual([110, 1.5])
  const load = (_: keyof ReturnType<typeof params.load>): void => {}
  // @ts-expect-error it has two words.
  load('half')
})

test('a part that a call does not have stays as it was', () => {
  const params = block({ n: word, mask: optional(tensor) })
  params.write(engine, { n: 1, mask: view(64, [1, 1, 1, 1]) })
  for (const mask of [null, undefined]) {
    params.write(engine, { n: 2, mask })
    expect(words(6)).toEqual([2, 76, 4, 4, 4, 4])
  }
})
