/**
 * Products of up to 16 rows with a large matrix whose columns are contiguous: bound by reading the matrix.
 *
 * k is cut in two halves, whatever the number of threads: a task reads all columns of its half (or a run of
 * columns, where there are many threads) from start to end, a few rows of b at a time, which the prefetcher follows.
 * Nothing is packed: b is read where it is, and sums meet in a buffer per half that stays in the caches, in the
 * order in which they are used: a strip of columns, all its rows, the next strip. A second, small kernel adds the
 * halves, in order, into the output.
 *
 * `buildRows` takes a strip of columns and adds 2, 4 or 8 rows of b to its sums. What the processor computes
 * meanwhile is too short a time for memory to answer, so that up to 4 rows each step also touches, line by line and
 * in order, the rows that come next. `buildPanels`, for more rows of sums than the registers of an older V8 take,
 * keeps tiles of sums in registers for 64 rows of b.
 *
 * LADDER.md beside this file has all measurements, and what was tried in vain. Today, m×512 · 512×512 on 2 threads of a
 * Zen 4, Node 24, with the matrix in the caches: 8.1 µs for 1 row, 49.3 for 16; in memory 36 and 77.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import type { Features } from '../../machine/features.ts'
import { f32, type I32, i32, type ModuleBuilder, type V128, v128 } from '../../wasm/index.ts'
import { add, madd, type Number32, type Tile } from './micro.ts'
import { freeStripsFunc, least } from './panels.ts'
import { reader } from './tiles.ts'

export const rowsMost = 16
/** Parts of k: always as many, so that results do not depend on the number of threads. */
export const rowsParts = 2
/** Bytes between the sums of the parts: beyond what prefetching for one takes from the cache of the other's thread. */
const gap = 4096
/** Bytes per thread for elements of a: the most rows of sums times the most rows of b. */
const elements = 4 * rowsMost * 8

/** How a product of few rows is computed. */
export interface RowsPlan {
  /** Rows of b that are added to the sums at a time. */
  readonly depth: number
  /** Vectors of a strip; b must have a multiple of its columns. */
  readonly vectors: number
  /** Whether elements of a stay in registers, rather than in the first cache. */
  readonly hoisted?: boolean
  /** Whether the next rows of b are touched, where they are contiguous. */
  readonly ahead?: boolean
  /** The tile of `buildPanels`; without one `buildRows` computes the product. */
  readonly tile?: Tile
}

/** The plan that is best for m rows. */
export function rowsPlan({ revectorized }: Features, m: number): RowsPlan {
  if (revectorized)
    return m <= 4 ? { depth: 4, vectors: 4, hoisted: m <= 2, ahead: true } : { depth: 8, vectors: 4 }
  // V8 11 loads everything before it computes, and has 15 registers.
  if (m <= 4) return { depth: m <= 2 ? 4 : 2, vectors: 1, hoisted: true, ahead: true }
  return { depth: 64, vectors: 4, tile: { rows: 2, vectors: 4, unroll: 1 } }
}

/** Bytes per thread. */
export const rowsScratch = (m: number, n: number, threads: number): number =>
  Math.ceil((rowsParts * (4 * m * n + gap)) / threads) + elements

/** Bytes from the sums of one part to those of the next. */
const partBytes = (word: ReturnType<typeof reader>): I32 => word('m').mul(word('n')).shl(2).add(gap)

/** The beginning of a task: a run of columns of one part, which has up to `kStep` steps of k. */
interface Task {
  readonly columns: I32
  readonly steps: I32
  readonly a: I32
  readonly b: I32
  readonly sums: I32
}

function eachTask(
  m: ModuleBuilder,
  emit: (
    f: Parameters<Parameters<ModuleBuilder['kernel']>[1]>[0],
    params: I32,
    thread: I32,
  ) => (task: Task) => void,
): void {
  m.kernel('main', (f, start, end, params, thread) => {
    const word = reader(params)
    const body = emit(f, params, thread)
    f.for(start, end, 1, (task) => {
      const across = f.let(word('columnTasks'))
      const part = f.let(task.divU(across))
      const n0 = f.let(task.remU(across).mul(word('taskColumns')))
      const k0 = f.let(part.mul(word('kStep')))
      body({
        columns: f.let(least(word('n').sub(n0), word('taskColumns'))),
        steps: f.let(least(word('k').sub(k0), word('kStep'))),
        a: word('a').add(k0.shl(2)),
        b: word('b')
          .add(k0.mul(word('bK')))
          .add(n0.shl(2)),
        sums: f.let(
          word('scratch')
            .add(part.mul(partBytes(word)))
            .add(n0.mul(word('m')).shl(2)),
        ),
      })
    })
  })
}

/** Sums of the parts for exactly `rows` rows. `ahead` only for rows of b that lie one after another. */
export function buildRows(m: ModuleBuilder, rows: number, plan: RowsPlan, type: Number32): void {
  const { vectors, hoisted = false, ahead = false } = plan
  /** Rows of sums that are in registers at the same time, with a row of b. */
  const group = 4
  const strip = 16 * vectors
  eachTask(m, (f, params, thread) => {
    const word = reader(params)
    const [aRow, bK] = [f.let(word('aRow')), f.let(word('bK'))]
    const kept = f.let(word('scratch').add(partBytes(word).mul(rowsParts)).add(thread.mul(elements)))
    return ({ columns, steps, a: firstA, b: firstB, sums }) => {
      const [a, b] = [f.let(firstA), f.let(firstB)]
      const rowBytes = f.let(columns.shl(2))
      f.fill(sums, 0, rowBytes.mul(rows))
      const seen = f.local.v128()
      f.strips(0, steps, [plan.depth, 1], (k, depth) => {
        const from = [f.let(b)]
        for (let t = 1; t < depth; t++) from.push(f.let(from[t - 1].add(bK)))
        const row = f.let(a)
        const splats = Array.from({ length: rows }, (_, i): V128[] => {
          if (i > 0) row.set(row.add(aRow))
          return Array.from({ length: depth }, (_, t) => {
            if (hoisted) return f.let(v128.load32Splat(row, 4 * t))
            f.store(kept, f32.load(row, 4 * t), 4 * (t * rows + i))
            return v128.load32Splat(kept, 4 * (t * rows + i))
          })
        })
        // What follows the last rows is not looked at.
        const more = steps.sub(k).geS(2 * depth)
        const next = f.let(i32.select(more, b.add(bK.mul(depth)), b))
        const to = f.let(sums)
        const end = f.let(b.add(rowBytes))
        f.while(from[0].ne(end), () => {
          for (let first = 0; first < rows; first += group) {
            const place = (i: number, j: number): number => strip * (first + i) + 16 * j
            const acc = Array.from({ length: Math.min(group, rows - first) }, (_, i) =>
              Array.from({ length: vectors }, (_, j) => f.let(v128.load(to, place(i, j)))),
            )
            for (let t = 0; t < depth; t++) {
              const ys = Array.from({ length: vectors }, (_, j) => f.let(v128.load(from[t], 16 * j)))
              acc.forEach((sums, i) => {
                const x = f.let(splats[first + i][t])
                sums.forEach((sum, j) => {
                  sum.set(madd[type](x, ys[j], sum))
                })
              })
            }
            acc.forEach((sums, i) => {
              sums.forEach((sum, j) => {
                f.store(to, sum, place(i, j))
              })
            })
          }
          if (ahead) {
            for (let line = 0; line < depth * strip; line += 64)
              seen.set(v128.or(seen, v128.load(next, line)))
            next.set(next.add(depth * strip))
          }
          for (const p of from) p.set(p.add(strip))
          to.set(to.add(strip * rows))
        })
        a.set(a.add(4 * depth))
        b.set(b.add(bK.mul(depth)))
      })
      // Without a use there would be no loads.
      if (ahead) f.store(kept, seen)
    }
  })
}

/** Builds the kernel of products of any number of rows that keeps tiles of sums in registers. */
export function buildPanels(m: ModuleBuilder, tile: Tile, depth: number, type: Number32): void {
  const width = 4 * tile.vectors
  const strip = freeStripsFunc(m, tile, type)
  eachTask(m, (f, params) => {
    const word = reader(params)
    const [rows, bK, aRow] = [f.let(word('m')), f.let(word('bK')), f.let(word('aRow'))]
    return ({ columns, steps, a: firstA, b: firstB, sums }) => {
      const [a, b] = [f.let(firstA), f.let(firstB)]
      f.for(0, steps, depth, (k) => {
        const [from, to] = [f.let(b), f.let(sums)]
        const count = f.let(least(steps.sub(k), depth))
        f.for(0, columns, width, () => {
          f.call(strip, count, a, aRow, rows, from, to, 4 * width, k, bK)
          from.set(from.add(4 * width))
          to.set(to.add(rows.mul(4 * width)))
        })
        a.set(a.add(4 * depth))
        b.set(b.add(bK.mul(depth)))
      })
    }
  })
}

/** Adds the parts into rows [start, end) of the output. */
export function buildRowsSum(m: ModuleBuilder, vectors: number, type: Number32): void {
  m.kernel('main', (f, start, end, params) => {
    const word = reader(params)
    const rowBytes = f.let(word('n').shl(2))
    const step = f.let(word('m').mul(16 * vectors))
    f.for(start, end, 1, (row) => {
      const to = f.let(word('out').add(row.mul(word('outRow'))))
      const first = f.let(word('scratch').add(row.mul(16 * vectors)))
      const second = f.let(first.add(partBytes(word)))
      const stop = f.let(to.add(rowBytes))
      f.while(to.ne(stop), () => {
        const sums = Array.from({ length: vectors }, (_, j) =>
          f.let(add[type](v128.load(first, 16 * j), v128.load(second, 16 * j))),
        )
        sums.forEach((x, j) => f.store(to, x, 16 * j))
        for (const p of [first, second]) p.set(p.add(step))
        to.set(to.add(16 * vectors))
      })
    })
  })
}
