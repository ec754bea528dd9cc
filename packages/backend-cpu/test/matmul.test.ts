/**
 * Matrix products against sums in float64, for all shapes of work: tiles, few rows, few columns, batches; any
 * strides, any number of threads, either instruction set.
 */

import { type Layout, layout, type View } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { extent, operand as filled, mismatch, type Operand } from '../../../test/kernels/operand.ts'
import { integer, pick, random, randomLayout } from '../../../test/kernels/random.ts'
import type { Engine } from '../src/engine.ts'
import { matmul, matmulBy } from '../src/kernels/matmul/matmul.ts'
import type { Tile } from '../src/kernels/matmul/micro.ts'
import { engines, makeBackend } from './support/engine.ts'
import { get, output, put, release } from './support/memory.ts'

const operand = (rnd: () => number, l: Layout, dtype: 'float32' | 'int32' = 'float32'): Operand =>
  filled(l, dtype, dtype === 'float32' ? () => 2 * rnd() - 1 : () => integer(rnd, -(2 ** 31), 2 ** 31 - 1))

const dense = (...shape: number[]): Layout => ({ shape, strides: layout.contiguousStrides(shape), offset: 0 })
/** A matrix (or batch) stored the other way round. */
const turned = (...shape: number[]): Layout =>
  layout.permuteLayout(dense(...shape.slice(0, -2), shape.at(-1) as number, shape.at(-2) as number), [
    ...shape.slice(0, -2).keys(),
    shape.length - 1,
    shape.length - 2,
  ])

/** Sums of products in float64 (exact for int32, which then wraps), and sums of their magnitudes. */
function plain(a: Operand, b: Operand): { sums: Float64Array; sizes: Float64Array } {
  const d = a.layout.shape.length - 2
  const [m, k] = a.layout.shape.slice(d) as [number, number]
  const n = b.layout.shape[d + 1] as number
  const items = layout.numel(a.layout.shape.slice(0, d))
  const starts = ({ shape, strides, offset }: Layout): number[] => {
    const all: number[] = []
    layout.forEachOffset({ shape: shape.slice(0, d), strides: strides.slice(0, d), offset }, (o) =>
      all.push(o),
    )
    return all
  }
  const [fromA, fromB] = [starts(a.layout), starts(b.layout)]
  const [am, ak] = a.layout.strides.slice(d) as [number, number]
  const [bk, bn] = b.layout.strides.slice(d) as [number, number]
  const sums = new Float64Array(items * m * n)
  const sizes = new Float64Array(items * m * n)
  for (let i = 0, o = 0; i < items; i++) {
    for (let r = 0; r < m; r++) {
      for (let c = 0; c < n; c++, o++) {
        let [sum, size] = [0, 0]
        for (let j = 0; j < k; j++) {
          const x = a.data[(fromA[i] as number) + r * am + j * ak] as number
          const y = b.data[(fromB[i] as number) + j * bk + c * bn] as number
          if (a.dtype === 'int32') sum = (sum + Math.imul(x, y)) | 0
          else {
            sum += x * y
            size += Math.abs(x * y)
          }
        }
        sums[o] = sum
        sizes[o] = size
      }
    }
  }
  return { sums, sizes }
}

function run(engine: Engine, a: Operand, b: Operand, kernel = matmul(engine)): Float32Array | Int32Array {
  const shape = [...a.layout.shape.slice(0, -1), b.layout.shape.at(-1) as number]
  const views = [put(engine, a), put(engine, b)]
  const out = output(engine, shape, a.dtype)
  try {
    kernel.run([out], views, {}, [])
    return get(engine, out) as Float32Array | Int32Array
  } finally {
    release(engine, [...views, out])
  }
}

/**
 * Every product and sum is rounded to 2⁻²⁴ of what has been summed so far; over k terms these errors, of
 * either sign, grow like √k. 8 covers the few terms of short sums and the tails.
 */
function agree(
  got: ArrayLike<number>,
  { sums, sizes }: ReturnType<typeof plain>,
  k: number,
  context: string,
): void {
  expect(got.length, context).toBe(sums.length)
  const unit = (8 + Math.sqrt(k)) * 2 ** -24
  for (let i = 0; i < sums.length; i++) {
    const error = Math.abs((got[i] as number) - (sums[i] as number))
    if (!(error <= unit * (sizes[i] as number))) {
      expect.fail(
        `${context}: element ${i} is ${got[i]}, expected ${sums[i]} ± ${unit * (sizes[i] as number)}`,
      )
    }
  }
}

/** On all engines: right, and the same bits on all that have the same instructions. */
function check(a: Operand, b: Operand): void {
  const want = plain(a, b)
  // Bits are the same on any number of threads; another instruction set has other tiles, and so another order of sums.
  const first = new Map<string, Float32Array | Int32Array>()
  for (const { name, engine } of engines) {
    const context = `${name}: ${JSON.stringify(a.layout)} × ${JSON.stringify(b.layout)}`
    const got = run(engine, a, b)
    agree(got, want, a.layout.shape.at(-1) as number, context)
    const { level } = engine.features
    expect(mismatch(got, first.get(level) ?? got, 0, 0), `${context}, bits`).toBeNull()
    first.set(level, got)
  }
}

describe('shapes', () => {
  const sizes: readonly (readonly [m: number, k: number, n: number])[] = [
    [1, 1, 1],
    [16, 16, 16],
    [33, 65, 17],
    [64, 64, 64],
    [65, 64, 66],
    [100, 300, 63],
    [130, 257, 259],
    [260, 40, 300],
    [1, 300, 200],
    [3, 70, 601],
    [4, 513, 130],
    [7, 129, 67],
    [13, 100, 90],
    [30, 90, 100],
    [601, 70, 3],
    [200, 300, 1],
    [150, 60, 14],
    [5, 1200, 9],
    [40, 1, 50],
    [20, 300, 81],
    [32, 1030, 131],
    [64, 70, 260],
  ]
  test.each(sizes)('%i × %i × %i, all orders of storage', (m, k, n) => {
    const rnd = random(m * 7919 + k * 31 + n)
    for (const a of [dense(m, k), turned(m, k)]) {
      for (const b of [dense(k, n), turned(k, n)]) check(operand(rnd, a), operand(rnd, b))
    }
  })
})

test.each(Array.from({ length: 40 }, (_, i) => i))('random batches and strides, seed %i', (seed) => {
  const rnd = random(seed + 1000)
  const batch = Array.from({ length: integer(rnd, 0, 3) }, () => integer(rnd, 1, 4))
  const size = (): number => (rnd() < 0.2 ? integer(rnd, 1, 4) : integer(rnd, 1, 50))
  const [m, k, n] = [size(), size(), size()]
  const dtype = pick(rnd, ['float32', 'float32', 'int32'] as const)
  const a = operand(rnd, randomLayout(rnd, [...batch, m, k]), dtype)
  check(a, operand(rnd, randomLayout(rnd, [...batch, k, n]), dtype))
})

test('a batch against one matrix, merged and not', () => {
  const rnd = random(3)
  const b = operand(rnd, { ...dense(5, 30, 40), strides: [0, 40, 1] })
  check(operand(rnd, dense(5, 20, 30)), b)
  check(operand(rnd, layout.permuteLayout(dense(20, 5, 30), [1, 0, 2])), b)
  check(operand(rnd, turned(5, 20, 30)), b)
})

test('the heads of a packed projection, without copies of the operands', () => {
  // q and k are [B, H, T, D] views of [B, T, 3, H, D].
  const rnd = random(4)
  const [batch, t, heads, d] = [2, 33, 3, 20]
  const whole = operand(rnd, dense(batch, t, 3, heads, d))
  const part = (index: number): Layout => {
    const l = layout.selectLayout('test', whole.layout, 2, index)
    return layout.permuteLayout(l, [0, 2, 1, 3])
  }
  const q = { ...whole, layout: part(0) }
  const k = { ...whole, layout: layout.permuteLayout(part(1), [0, 1, 3, 2]) }
  check(q, k)
})

test('outputs with other strides', () => {
  const rnd = random(5)
  for (const [m, k, n] of [
    [20, 30, 40],
    [2, 30, 41],
    [90, 270, 33],
    [43, 9, 2],
    [24, 270, 101],
  ] as const) {
    const [a, b] = [operand(rnd, dense(m, k)), operand(rnd, (m === 24 ? turned : dense)(k, n))]
    const want = plain(a, b)
    for (const { name, engine } of engines) {
      const places: readonly [number, number][] = [
        [1, m],
        [n + 3, 1],
        [2 * n + 1, 2],
        [3, 3 * m + 1],
      ]
      for (const strides of places) {
        const views = [put(engine, a), put(engine, b)]
        const l = { shape: [m, n], strides, offset: 5 }
        const space: View = put(engine, {
          layout: l,
          dtype: 'float32',
          data: new Float32Array(extent(l) + 9).fill(-7),
        })
        matmul(engine).run([space], views, {}, [])
        const all = get(engine, { ...space, ...dense(extent(l) + 9) })
        const got: number[] = []
        layout.forEachOffset(l, (o) => {
          got.push(all[o] as number)
          all[o] = -7
        })
        agree(got, want, k, `${name}, strides ${strides}`)
        // Nothing beside the elements was written.
        expect(all.every((x) => x === -7)).toBe(true)
        release(engine, [...views, space])
      }
    }
  }
})

describe('up to 16 rows with a large matrix', () => {
  const sizes: readonly (readonly [m: number, k: number, n: number])[] = [
    [1, 512, 128],
    [2, 333, 224],
    [3, 300, 544],
    [4, 129, 512],
    [1, 131, 516],
    [4, 131, 516],
    [5, 515, 144],
    [7, 260, 272],
    [8, 512, 512],
    // Leaves sums behind that the next one, whose k has no second half, must not see.
    [11, 2, 65536],
    [11, 1, 65536],
    [16, 450, 160],
    [16, 450, 170],
    [17, 450, 160],
  ]
  test.each(sizes)('%i × %i × %i, either type, rows apart', (m, k, n) => {
    const rnd = random(m * 7919 + k * 31 + n)
    for (const dtype of ['float32', 'int32'] as const) {
      const wide = (rows: number, columns: number): Layout => ({
        shape: [rows, columns],
        strides: [columns + 7, 1],
        offset: 3,
      })
      check(operand(rnd, dense(m, k), dtype), operand(rnd, dense(k, n), dtype))
      check(operand(rnd, wide(m, k), dtype), operand(rnd, wide(k, n), dtype))
    }
  })

  test('writes nothing beside an output whose rows lie apart', () => {
    const rnd = random(9)
    const [m, k, n] = [6, 300, 224]
    const [a, b] = [operand(rnd, dense(m, k)), operand(rnd, dense(k, n))]
    const want = plain(a, b)
    for (const { name, engine } of engines) {
      const l = { shape: [m, n], strides: [n + 5, 1], offset: 4 }
      const size = extent(l) + 9
      const space = put(engine, { layout: l, dtype: 'float32', data: new Float32Array(size).fill(-7) })
      const views = [put(engine, a), put(engine, b)]
      matmul(engine).run([space], views, {}, [])
      const all = get(engine, { ...space, ...dense(size) })
      const got: number[] = []
      layout.forEachOffset(l, (o) => {
        got.push(all[o] as number)
        all[o] = -7
      })
      agree(got, want, k, name)
      expect(all.every((x) => x === -7)).toBe(true)
      release(engine, [...views, space])
    }
  })

  test('NaN and infinities spread along their row and column, from either half of k', () => {
    const [m, k, n] = [4, 512, 256]
    for (const { engine } of engines) {
      const a = { layout: dense(m, k), dtype: 'float32', data: new Float32Array(m * k).fill(1) } as const
      const b = { layout: dense(k, n), dtype: 'float32', data: new Float32Array(k * n).fill(2) } as const
      a.data[k + 500] = 0
      b.data[500 * n + 1] = Infinity
      b.data[0] = NaN
      const got = run(engine, a, b)
      for (let r = 0; r < m; r++) {
        for (let c = 0; c < n; c++) {
          const want = c === 0 ? NaN : c === 1 ? (r === 1 ? NaN : Infinity) : 2 * (k - Number(r === 1))
          expect(got[r * n + c], `${r}, ${c}`).toBe(want)
        }
      }
    }
  })
})

describe('numbers', () => {
  test('k = 0 gives zeros, empty outputs nothing', () => {
    for (const { engine } of engines) {
      for (const [m, n] of [
        [2, 3],
        [40, 50],
        [30, 2],
      ] as const) {
        const empty = { dtype: 'float32', data: new Float32Array(1) } as const
        const got = run(engine, { ...empty, layout: dense(m, 0) }, { ...empty, layout: dense(0, n) })
        expect(got).toEqual(new Float32Array(m * n))
      }
      const rnd = random(6)
      expect(run(engine, operand(rnd, dense(0, 5, 6)), operand(rnd, dense(0, 6, 7)))).toHaveLength(0)
      expect(run(engine, operand(rnd, dense(0, 6)), operand(rnd, dense(6, 7)))).toHaveLength(0)
    }
  })

  test('0 · ∞ is NaN, and spreads no further than its row and column', () => {
    for (const { engine } of engines) {
      for (const [m, k, n] of [
        [18, 21, 19],
        [2, 21, 19],
        [18, 21, 2],
      ] as const) {
        for (const [la, lb] of [
          [dense(m, k), dense(k, n)],
          [turned(m, k), turned(k, n)],
        ] as const) {
          const a = { layout: la, dtype: 'float32', data: new Float32Array(m * k).fill(1) } as const
          const b = { layout: lb, dtype: 'float32', data: new Float32Array(k * n).fill(2) } as const
          const at = (l: Layout, r: number, c: number): number =>
            r * (l.strides[0] as number) + c * (l.strides[1] as number)
          a.data[at(la, 1, 20)] = 0
          b.data[at(lb, 20, 1)] = Infinity
          b.data[at(lb, 0, 0)] = NaN
          const got = run(engine, a, b)
          for (let r = 0; r < m; r++) {
            for (let c = 0; c < n; c++) {
              const want = c === 0 ? NaN : c === 1 ? (r === 1 ? NaN : Infinity) : 2 * (k - Number(r === 1))
              expect(got[r * n + c], `${r}, ${c} of ${m}×${n}`).toBe(want)
            }
          }
        }
      }
    }
  })
})

test.each<Tile>([
  { rows: 4, vectors: 2, unroll: 1 },
  { rows: 2, vectors: 4, unroll: 1 },
  { rows: 3, vectors: 3, unroll: 2 },
  { rows: 6, vectors: 2, unroll: 2 },
  { rows: 6, vectors: 4, unroll: 4 },
])('tile %o gives the same bits as any other', async (tile) => {
  const { engine } = await makeBackend({ threads: 2 })
  const rnd = random(7)
  for (const [m, k, n] of [
    [61, 70, 53],
    [40, 259, 130],
    [129, 5, 20],
  ] as const) {
    const [a, b] = [operand(rnd, dense(m, k)), operand(rnd, dense(k, n))]
    expect(mismatch(run(engine, a, b, matmulBy(tile)(engine)), run(engine, a, b), 0, 0)).toBeNull()
  }
})

test('a repeated call takes no new memory', () => {
  const { engine } = engines[0] as { engine: Engine }
  const rnd = random(8)
  const [a, b] = [operand(rnd, dense(100, 200)), operand(rnd, dense(200, 300))]
  const views = [put(engine, a), put(engine, b)]
  const out = output(engine, [100, 300], 'float32')
  const kernel = matmul(engine)
  kernel.run([out], views, {}, [])
  const before = engine.memory.stats()
  engine.memory.resetPeak()
  for (let i = 0; i < 10; i++) kernel.run([out], views, {}, [])
  expect(engine.memory.stats().peakBytes).toBe(before.liveBytes)
  release(engine, [...views, out])
})
