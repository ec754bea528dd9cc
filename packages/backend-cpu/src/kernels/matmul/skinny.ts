/**
 * Products of a few rows with a matrix: bound by reading the matrix, so nothing is packed. A task is a run of
 * columns of one output; rows come in groups of 4.
 *
 * `buildDots`, where b is contiguous along k (x · Wᵀ): inner products of a few columns with a group of rows
 * at a time, four partial sums each, added in a fixed order.
 *
 * `buildSweep`, where b is contiguous along n: rows of b are streamed, 2 or 4 at a time, each added to all
 * sums of the task, which stay in the first-level cache.
 *
 * Either way a result depends on its row and column only, not on how tasks were cut.
 *
 * LADDER.md beside this file compares them with packed tiles. Today, m×1024 · 1024×1024 on one core of a Zen 4, Node 20:
 * dots 27.6 GFLOP/s (55 GB/s) for 1 row and 49.3 for 12, sweep 22 and 43.8; tiles 4.1 and 34.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import type { Features } from '../../machine/features.ts'
import {
  type FunctionBuilder,
  f32x4,
  type I32,
  type I32In,
  i32x4,
  type ModuleBuilder,
  type V128,
  type Var,
  v128,
} from '../../wasm/index.ts'
import { add, madd, type Number32 } from './micro.ts'
import { packer } from './pack.ts'
import { least } from './panels.ts'
import { batchItem, reader } from './tiles.ts'

/** The most rows for which these kernels win; tiles of pairs of vectors win earlier. */
export const dotsRows = (features: Features): number => (features.revectorized ? 12 : 32)
export const sweepRows = 12
/**
 * The most columns for which the transposed product by these kernels wins: there tiles need not pack the
 * larger operand.
 */
export const dotsColumns = 5
/** Columns per task of the sweep: their sums take at most 16 KB. */
export const sweepColumns = (rows: number): number => (rows > 8 ? 256 : 512)

/** Goes through the tasks of either kernel, with the addresses and the number of columns of each. */
function forTasks(
  f: FunctionBuilder,
  start: I32,
  end: I32,
  params: I32,
  body: (a: Var<'i32'>, b: Var<'i32'>, out: Var<'i32'>, columns: I32) => void,
): void {
  const word = reader(params)
  f.for(start, end, 1, (task) => {
    const across = f.let(word('columnTasks'))
    const n0 = f.let(task.remU(across).mul(word('taskColumns')))
    const [a, b, out] = [f.let(word('a')), f.let(word('b')), f.let(word('out'))]
    batchItem(f, params, task.divU(across), [a, b, out])
    b.set(b.add(n0.mul(word('bColumn'))))
    out.set(out.add(n0.mul(word('outColumn'))))
    body(a, b, out, f.let(least(word('n').sub(n0), word('taskColumns'))))
  })
}

/** Scratch memory: the rows of a, where they are not contiguous. */
export const dotsScratch = (rows: number, k: number): number => 4 * rows * k

export function buildDots(m: ModuleBuilder, rows: number, type: Number32): void {
  const columnsAtOnce = [4, 4, 3, 2][Math.min(rows, 4) - 1]
  const pack = packer(m)
  m.kernel('main', (f, start, end, params, thread) => {
    const word = reader(params)
    const k = f.let(word('k'))
    const [bColumn, outRow, outColumn] = [
      f.let(word('bColumn')),
      f.let(word('outRow')),
      f.let(word('outColumn')),
    ]
    const scratch = f.let(word('scratch').add(thread.mul(word('scratchStep'))))
    forTasks(f, start, end, params, (a, b, out, columns) => {
      const aRow = f.let(word('aRow'))
      f.if(word('aK').ne(4), () => {
        f.call(pack, scratch, k.shl(2), a, aRow, word('aK'), rows, k)
        a.set(scratch)
        aRow.set(k.shl(2))
      })
      f.strips(0, columns, [columnsAtOnce, 1], (_, width) => {
        for (const { first, count } of groups(rows)) {
          const left = pointers(f, a.add(aRow.mul(first)), aRow, count)
          const right = pointers(f, b, bColumn, width)
          const sums = left.map(() => right.map(() => f.let(f32x4.const(0))))
          const step = (load: (p: I32) => V128, bytes: number): void => {
            const xs = left.map((p) => f.let(load(p)))
            const ys = right.map((p) => f.let(load(p)))
            sums.forEach((row, i) => row.forEach((sum, j) => sum.set(madd[type](xs[i], ys[j], sum))))
            for (const p of [...left, ...right]) p.set(p.add(bytes))
          }
          const stop = f.let(left[0].add(k.and(-4).shl(2)))
          f.while(left[0].ne(stop), () => step((p) => v128.load(p), 16))
          // Single lanes; the others add 0 · 0.
          stop.set(stop.add(k.and(3).shl(2)))
          f.while(left[0].ne(stop), () => step((p) => v128.load32Zero(p), 4))
          sums.forEach((row, i) => {
            const to = f.let(out.add(outRow.mul(first + i)))
            row.forEach((sum, j) => {
              if (j > 0) to.set(to.add(outColumn))
              const pairs = f.let(add[type](sum, i32x4.shuffle(sum, sum, [2, 3, 0, 1])))
              f.storeLane(32, to, add[type](pairs, i32x4.shuffle(pairs, pairs, [1, 0, 3, 2])), 0)
            })
          })
        }
        b.set(b.add(bColumn.mul(width)))
        out.set(out.add(outColumn.mul(width)))
      })
    })
  })
}

/** Rows in groups of as many as registers allow. */
export function groups(rows: number): { first: number; count: number }[] {
  const all = []
  for (let first = 0; first < rows; first += 4) all.push({ first, count: Math.min(4, rows - first) })
  return all
}

export function pointers(f: FunctionBuilder, first: I32, step: I32In, count: number): Var<'i32'>[] {
  const all = [f.let(first)]
  for (let i = 1; i < count; i++) all.push(f.let(all[i - 1].add(step)))
  return all
}

/** Scratch memory: the sums of a task. */
export const sweepScratch = (rows: number): number => 4 * rows * sweepColumns(rows)

export function buildSweep(m: ModuleBuilder, rows: number, type: Number32): void {
  const pack = packer(m)
  m.kernel('main', (f, start, end, params, thread) => {
    const word = reader(params)
    const [bK, aRow, aK] = [f.let(word('bK')), f.let(word('aRow')), f.let(word('aK'))]
    const scratch = f.let(word('scratch').add(thread.mul(word('scratchStep'))))
    forTasks(f, start, end, params, (a, b, out, columns) => {
      const rowBytes = f.let(columns.shl(2))
      f.fill(scratch, 0, rowBytes.mul(rows))
      f.strips(0, word('k'), [rows < 3 ? 4 : 2, 1], (_, depth) => {
        for (const { first, count } of groups(rows)) {
          const splats = pointers(f, a.add(aRow.mul(first)), aRow, count).map((p) =>
            pointers(f, p, aK, depth).map((q) => f.let(v128.load32Splat(q))),
          )
          const from = pointers(f, b, bK, depth)
          const to = f.let(scratch.add(rowBytes.mul(first)))
          f.strips(0, columns, [4, 1], (_, width) => {
            const load = width === 4 ? (p: I32) => v128.load(p) : (p: I32) => v128.load32Zero(p)
            const ys = from.map((p) => f.let(load(p)))
            const p = f.let(to)
            splats.forEach((row, i) => {
              let sum = f.let(load(p))
              row.forEach((x, t) => {
                sum = f.let(madd[type](x, ys[t], sum))
              })
              if (width === 4) f.store(p, sum)
              else f.storeLane(32, p, sum, 0)
              if (i < count - 1) p.set(p.add(rowBytes))
            })
            for (const q of [...from, to]) q.set(q.add(4 * width))
          })
        }
        a.set(a.add(aK.mul(depth)))
        b.set(b.add(bK.mul(depth)))
      })
      f.if(
        word('outColumn').eq(4),
        () => f.call(pack, out, word('outRow'), scratch, rowBytes, 4, rows, columns),
        () => {
          const from = f.let(scratch)
          const to = f.let(out)
          f.for(0, columns, 1, () => {
            f.call(pack, to, word('outRow'), from, rowBytes, 4, rows, 1)
            from.set(from.add(4))
            to.set(to.add(word('outColumn')))
          })
        },
      )
    })
  })
}
