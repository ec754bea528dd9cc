/**
 * Matrix product by tiles: out[m][n] = Σₖ a[m][k] · b[k][n] for a batch of matrices with any strides.
 *
 * A task is a rectangle of one output, with all of k. For each block of k (at most 256) it packs its columns
 * of b into panels as wide as a tile, zeros at the right, so that a panel (16 KB) stays in the first-level
 * cache; then, for each block of rows (at most 96, in the second-level cache), every panel meets every strip
 * of rows. Rows of a that are contiguous along k are read where they are, others are transposed into scratch
 * memory first. Sums over different blocks of k meet in the output, in order, so that results do not depend
 * on how the tasks were cut.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import { block, word } from '../../block.ts'
import type { Heap } from '../../machine/heap.ts'
import { type FunctionBuilder, type I32, i32, type ModuleBuilder, type Var } from '../../wasm/index.ts'
import type { EpilogueFunc } from './epilogue.ts'
import type { Number32, Tile } from './micro.ts'
import { type Packing, packer, packing } from './pack.ts'
import { least, panelFunc } from './panels.ts'

/** Steps of k that are packed at a time; 256 rows of a panel of 16 columns are 16 KB. */
export const kBlock = 256
/** Blocks of k for which b is packed at a time. */
export const kChunk = 4
/** Rows per block: 96 × 256 numbers are 96 KB; a multiple of the rows of every tile. */
export const rowBlock = 96

/** The parameters of products. Sizes and positions count elements, strides bytes. */
export const matmulParams = block({
  ...{ m: word, n: word, k: word },
  ...{ aRow: word, aK: word, bK: word, bColumn: word, outRow: word, outColumn: word },
  ...{ a: word, b: word, out: word },
  /** Size of a task, and how many there are along m and n. */
  ...{ taskRows: word, taskColumns: word, rowTasks: word, columnTasks: word },
  /** Scratch memory of thread 0 and its distance to that of the next. */
  ...{ scratch: word, scratchStep: word },
  /** Steps of k per block. */
  kStep: word,
  batchDims: word,
})
export const { reader } = matmulParams
/** The first word behind them: the batch's dims, each its size, then the strides of a, b and out; or an epilogue's own. */
export const moreParams = matmulParams.offsets.size

/** Bytes of scratch memory per thread for tasks of so many columns. */
export const tileScratch = (tile: Tile, taskColumns: number, kStep: number): number =>
  4 * (rowBlock * packedRow + rowBlock * 4 * tile.vectors + kChunk * kStep * taskColumns)
/** Floats between the rows of a packed block of a: not a power of two, for the sake of the caches' sets. */
const packedRow = kBlock + 16

/** Emits addresses of item `index` of the batch, from the addresses of the first. */
export function batchItem(
  f: FunctionBuilder,
  params: I32,
  index: I32,
  pointers: readonly Var<'i32'>[],
): void {
  const left = f.let(index)
  const first = f.let(params.add(4 * moreParams))
  const entry = f.let(first.add(reader(params)('batchDims').mul(16)))
  f.while(entry.ne(first), () => {
    entry.set(entry.sub(16))
    const size = f.let(i32.load(entry))
    const rest = f.let(left.divU(size))
    const position = f.let(left.sub(rest.mul(size)))
    pointers.forEach((p, i) => p.set(p.add(position.mul(i32.load(entry, 4 + 4 * i)))))
    left.set(rest)
  })
}

/** What a product has that others have not. */
export interface Form {
  /** Tells apart what `build` makes. */
  readonly key: string
  /** Adds functions to a module: what ends each block of rows of a panel, and how operands are packed that have no strides. */
  readonly build: (m: ModuleBuilder) => {
    readonly epilogue?: EpilogueFunc
    readonly packA?: Packing
    readonly packB?: Packing
  }
  /** Writes parameters from a word of the memory on. */
  readonly write: (memory: Heap, word: number) => void
}

/**
 * Builds the kernel; its rows are tasks. An epilogue is called for every block of rows of a panel once its sums are complete,
 * while they are in the first-level cache; for one matrix, not for batches.
 */
export function buildTiles(m: ModuleBuilder, tile: Tile, type: Number32, build?: Form['build']): void {
  const width = 4 * tile.vectors
  const pack = packer(m)
  const strided = packing(pack)
  const { epilogue, packA = strided, packB = strided } = build?.(m) ?? {}
  const panelProduct = panelFunc(m, pack, tile, type)
  m.kernel('main', (f, start, end, params, thread) => {
    const p = matmulParams.load(f, params)
    const { m: rows, n: columns, k: depth, aRow, aK, bK, bColumn, outRow, outColumn, kStep } = p
    const packedA = f.let(p.scratch.add(thread.mul(p.scratchStep)))
    const edgeTile = f.let(packedA.add(4 * rowBlock * packedRow))
    const panels = f.let(edgeTile.add(4 * rowBlock * width))
    f.for(start, end, 1, (task) => {
      const row = f.let(task.divU(p.columnTasks))
      const n0 = f.let(task.remU(p.columnTasks).mul(p.taskColumns))
      const m0 = f.let(row.remU(p.rowTasks).mul(p.taskRows))
      const [a, b, out] = [f.let(p.a), f.let(p.b), f.let(p.out)]
      batchItem(f, params, row.divU(p.rowTasks), [a, b, out])
      out.set(out.add(m0.mul(outRow)).add(n0.mul(outColumn)))
      const height = f.let(least(rows.sub(m0), p.taskRows))
      const breadth = f.let(least(columns.sub(n0), p.taskColumns))
      const k0 = f.local.i32(0)
      // At least once: without any k the output is zeros.
      f.loop((again) => {
        const chunk = f.let(least(depth.sub(k0), kStep.mul(kChunk)))
        const panelBytes = f.let(chunk.mul(4 * width))
        const panel = f.let(panels)
        f.for(0, breadth, width, (j) => {
          const have = f.let(least(breadth.sub(j), width))
          f.if(have.and(3), () => f.fill(panel, 0, panelBytes))
          packB(f, panel, 4 * width, b, bK, bColumn, k0, n0.add(j), chunk, have)
          panel.set(panel.add(panelBytes))
        })
        f.for(0, height, rowBlock, (i) => {
          const block = f.let(least(height.sub(i), rowBlock))
          const k1 = f.local.i32(0)
          f.loop((more) => {
            const k = f.let(least(chunk.sub(k1), kStep))
            const [first, done] = [f.let(m0.add(i)), f.let(k0.add(k1))]
            const left = f.let(a.add(first.mul(aRow)).add(done.mul(aK)))
            const leftRow = f.let(aRow)
            f.if(aK.ne(4), () => {
              packA(f, packedA, 4 * packedRow, a, aRow, aK, first, done, block, k)
              left.set(packedA)
              leftRow.set(4 * packedRow)
            })
            panel.set(panels.add(k1.mul(4 * width)))
            f.for(0, breadth, width, (j) => {
              const have = f.let(least(breadth.sub(j), width))
              const to = f.let(out.add(i.mul(outRow)).add(j.mul(outColumn)))
              const sums = [
                k,
                left,
                leftRow,
                block,
                panel,
                to,
                outRow,
                done,
                outColumn,
                have,
                edgeTile,
              ] as const
              f.call(panelProduct, ...sums)
              if (epilogue)
                f.if(done.add(k).eq(depth), () => f.call(epilogue, params, first, n0.add(j), block, have))
              panel.set(panel.add(panelBytes))
            })
            k1.set(k1.add(k))
            more.brIf(k1.ltS(chunk))
          })
        })
        k0.set(k0.add(chunk))
        again.brIf(k0.ltS(depth))
      })
    })
  })
}
