/**
 * Products of up to 16 rows with a large matrix whose columns are contiguous: bound by reading the matrix.
 *
 * k is cut in two halves, whatever the number of threads: a task reads all columns of its half (or a run of
 * columns, where there are many threads), 32 or 64 rows at a time, from start to end, which the prefetcher follows.
 * Nothing is packed: tiles of sums in registers read b where it is, and meet in a buffer per half that stays in
 * the caches; its rows lie 64 bytes further apart than they are long, so that they do not fall on the same lines
 * of the cache. A second, small kernel adds the halves, in order, into the output.
 *
 * Measured against the sweep and the tiles of `matmul-skinny.ts` and `matmul-tiles.ts`, m×512 · 512×512, 2
 * threads of a Zen 4, µs with the matrix in caches and (128 in turn) in memory:
 *
 * | rows | Node 24, before | this | Node 20, before | this |
 * |---|---|---|---|---|
 * | 1 | 14.5, 101 | 13.9, 46 | 13.5, 76 | 16.8, 68 (not used) |
 * | 2 | 19.3, 100 | 14.3, 49 | 20.7, 83 | 17.7, 78 |
 * | 4 | 33.6, 121 | 16.7, 53 | 35.0, 107 | 24.6, 48 |
 * | 8 | 56.5, 175 | 29.3, 64 | 55.6, 129 | 49.6, 58 |
 * | 12 | 78.3, 197 | 36.8, 76 | 78.1, 150 | 71.9, 79 |
 * | 16 | 64.0, 145 | 55.6, 88 | 112, 203 | 104, 109 |
 *
 * In vain, tried without the gaps between rows of sums: touching the lines of the next rows ahead (cached 2 to 4 µs
 * more, from memory slower from 4 rows on); halves of the columns instead of halves of k (4 rows, 8 of b at a time,
 * from memory: 115 instead of 59).
 */

import type { Features } from '../features.ts'
import { type I32, i32, type ModuleBuilder, v128 } from '../wasm/index.ts'
import { add, type Number32, type Tile } from './matmul-micro.ts'
import { freeStripsFunc, least } from './matmul-panels.ts'
import { at } from './matmul-tiles.ts'

/** The fewest and the most rows for which this wins: one row has too few sums for vectors of 128 bits. */
export const rowsLeast = (features: Features): number => (features.revectorized ? 1 : 2)
export const rowsMost = 16
/** Parts of k: always as many, so that results do not depend on the number of threads. */
export const rowsParts = 2
/** Bytes between the ends of the rows of sums. */
const gap = 64

/** Rows of b per pass over the sums: fewer are better for the prefetcher, more for the arithmetic. */
export const rowsDepth = (features: Features, m: number): number => (features.revectorized || m < 3 ? 32 : 64)

/** The tile of sums; columns of b have to be a multiple of its width. */
export function rowsTile(features: Features, m: number): Tile {
  if (!features.revectorized) return { rows: 2, vectors: 4, unroll: 1 }
  if (m <= 4) return { rows: Math.min(m, 2), vectors: 8, unroll: 1 }
  return m <= 8 ? { rows: 4, vectors: 4, unroll: 2 } : { rows: 6, vectors: 4, unroll: 2 }
}

/** Bytes of the sums of all parts, for all threads together. */
export const rowsScratch = (m: number, n: number): number => rowsParts * m * (4 * n + gap)

const reader =
  (params: I32) =>
  (name: Exclude<keyof typeof at, 'batch'>): I32 =>
    i32.load(params, 4 * at[name])

/** Sums of the parts; a task is a run of columns of one part, which has `kStep` steps of k. */
export function buildRows(m: ModuleBuilder, tile: Tile, depth: number, type: Number32): void {
  const width = 4 * tile.vectors
  const strip = freeStripsFunc(m, tile, type)
  m.kernel('main', (f, start, end, params) => {
    const word = reader(params)
    const [rows, bK, aRow] = [f.let(word('m')), f.let(word('bK')), f.let(word('aRow'))]
    const outRow = f.let(word('n').shl(2).add(gap))
    f.for(start, end, 1, (task) => {
      const across = f.let(word('columnTasks'))
      const part = f.let(task.divU(across))
      const n0 = f.let(task.remU(across).mul(word('taskColumns')))
      const columns = f.let(least(word('n').sub(n0), word('taskColumns')))
      const k0 = f.let(part.mul(word('kStep')))
      const steps = f.let(least(word('k').sub(k0), word('kStep')))
      const a = f.let(word('a').add(k0.shl(2)))
      const b = f.let(word('b').add(k0.mul(bK)).add(n0.shl(2)))
      const sums = f.let(
        word('scratch')
          .add(part.mul(rows.mul(outRow)))
          .add(n0.shl(2)),
      )
      f.for(0, steps, depth, (k) => {
        const [from, to] = [f.let(b), f.let(sums)]
        const count = f.let(least(steps.sub(k), depth))
        f.for(0, columns, width, () => {
          f.call(strip, count, a, aRow, rows, from, to, outRow, k, bK)
          from.set(from.add(4 * width))
          to.set(to.add(4 * width))
        })
        a.set(a.add(4 * depth))
        b.set(b.add(bK.mul(depth)))
      })
    })
  })
}

/** Adds the parts into rows [start, end) of the output. */
export function buildRowsSum(m: ModuleBuilder, type: Number32): void {
  m.kernel('main', (f, start, end, params) => {
    const word = reader(params)
    const rowBytes = f.let(word('n').shl(2))
    const step = f.let(rowBytes.add(gap))
    f.for(start, end, 1, (row) => {
      const to = f.let(word('out').add(row.mul(word('outRow'))))
      const first = f.let(word('scratch').add(row.mul(step)))
      const second = f.let(first.add(word('m').mul(step)))
      const stop = f.let(to.add(rowBytes))
      f.while(to.ne(stop), () => {
        const sums = [0, 16, 32, 48].map((o) => f.let(add[type](v128.load(first, o), v128.load(second, o))))
        sums.forEach((x, j) => f.store(to, x, 16 * j))
        for (const p of [first, second, to]) p.set(p.add(64))
      })
    })
  })
}
