/**
 * Matrix product, out[…, M, N] = Σₖ a[…, M, k] · b[…, k, N], of float32 or int32 (which wraps), with any
 * strides.
 *
 * This file decides; the kernels compute. Few rows, or few columns (then the transposed product is computed), go
 * to `matmul/rows.ts` where the matrix is large, else to `matmul/skinny.ts`, everything else to `matmul/tiles.ts`,
 * whose inner loop is `matmul/micro.ts`. All of them add in an order that depends on sizes and strides only: results are the same
 * bits on any number of threads. NaN and infinities spread as in plain sums: padding is only ever added along
 * M and N.
 *
 * Tasks own rectangles of the output and pack their own columns of b. Packing b once for all threads would
 * save the 0.3 ms per million elements that every further cut between rows costs (1024³: 1 % per cut), but
 * takes a second launch and memory as large as b.
 *
 * LADDER.md beside this file has the steps on the way here. Today, 1024³ on one core of a Zen 4: 107 GFLOP/s on Node 24
 * with tiles of 6×16 in pairs of vectors (the chain of multiply-adds alone: 118), 50 on Node 20 (59).
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import { type KernelOf, layout, type View } from '@tilegrad/core'
import { align64, type Engine, type KernelFactory } from '../../engine.ts'
import type { Kernel } from '../../machine/pool.ts'
import { sumPieces } from '../reduce/columns.ts'
import { type Number32, type Tile, tileFor } from './micro.ts'
import { buildPanels, buildRows, buildRowsSum, rowsMost, rowsParts, rowsPlan, rowsScratch } from './rows.ts'
import {
  buildDots,
  buildSweep,
  dotsColumns,
  dotsRows,
  dotsScratch,
  sweepColumns,
  sweepRows,
  sweepScratch,
} from './skinny.ts'
import { buildTiles, type Form, kBlock, moreParams, tileScratch } from './tiles.ts'
import { tunedTile } from './tuning.ts'

/** The multiply-adds below which a task is not worth handing to another thread (about 2 µs). */
const taskWork = 1 << 16
/** Multiply-adds from which on a product is worth finding the best tile for. */
const tuningWork = 1 << 22
/** Fewest elements of b, and columns per task, for `buildRows`. */
const rowsWork = 1 << 16
const rowsColumns = 128
/** Columns of b that one task packs: with 1024 steps of k 1 MB. */
const maxColumns = 256
/**
 * Rows of a for `buildDots` are copied to scratch memory where they are not contiguous: up to so many bytes.
 */
const maxDotsScratch = 1 << 20

/**
 * The two operands and the output as matrices; strides in bytes. Swapped in place for the transposed product.
 */
export interface Problem {
  m: number
  n: number
  k: number
  aRow: number
  aK: number
  bK: number
  bColumn: number
  outRow: number
  outColumn: number
  a: View
  b: View
  /** Items of the batch, after rows of a were merged into m. */
  items: number
  /** How many leading dims are left as batch dims. */
  batchDims: number
}

export const matmul: KernelFactory<Record<never, never>> = (engine) => matmulBy(null)(engine)

/** Makes the kernel of matrix products with a tile of the caller's choice, unless null. */
export const matmulBy =
  (tile: Tile | null): KernelFactory<Record<never, never>> =>
  (engine) => ({
    dtypes: [['float32', 'int32']],
    run([out], [a, b]) {
      const p = problem(out, a, b)
      if (p.items * p.m * p.n === 0) return
      const type = a.dtype as Number32
      const tiled = Math.min(p.m, p.n) > dotsRows(engine.features)
      if (p.k >= (tiled ? 2 ** 18 : 8192) && type === 'float32' && layout.isContiguous(out)) {
        pieces(engine, this, tiled ? 65536 : 256, out, a, b)
        return
      }
      // Few columns: few rows of the transposed product. Few rows, in whole vectors, with a matrix whose columns are contiguous:
      // that product reads these where they are, and packs the rows instead.
      if (
        p.n < p.m
          ? fewColumns(p) || (p.outColumn !== 4 && p.outRow === 4)
          : tiled && p.bK === 4 && p.m <= 64 && p.m % 4 === 0 && p.n >= 4 * p.m
      )
        transposed(p)
      if (takesDots(engine, p)) dots(engine, p, out, type)
      else if (takesRows(engine, p)) fewRows(engine, p, out, type)
      else if (takesSweep(p)) sweep(engine, p, out, type)
      else tiles(engine, tile ?? tileOf(engine, p), p, out, type)
    },
  })

/**
 * A product whose inner dim is cut into pieces, as a batch; their sum in float64. So many terms added in float32, one
 * after the other, would be far from the sum; tiles add up blocks first, and can have more.
 */
function pieces(engine: Engine, kernel: KernelOf<object>, size: number, out: View, a: View, b: View): void {
  const d = out.shape.length - 2
  const [k, each] = [a.shape[d + 1], layout.numel(out.shape)]
  const whole = Math.floor(k / size)
  const count = Math.ceil(k / size)
  const ptr = engine.memory.alloc(4 * count * each)
  /** Pieces from `first` on, each of `length` terms, as a batch of `n`. */
  const part = (v: View, kDim: number, first: number, n: number, length: number): View => ({
    buffer: v.buffer,
    dtype: v.dtype,
    shape: [n, ...v.shape.with(kDim, length)],
    strides: [size * v.strides[kDim], ...v.strides],
    offset: v.offset + first * size * v.strides[kDim],
  })
  const run = (first: number, n: number, length: number): void => {
    const shape = [n, ...out.shape]
    const sums = { ...layout.contiguous(shape, first * each), buffer: { ptr }, dtype: out.dtype }
    kernel.run([sums], [part(a, d + 1, first, n, length), part(b, d, first, n, length)], {}, [])
  }
  try {
    run(0, whole, size)
    if (count > whole) run(whole, 1, k - whole * size)
    sumPieces(engine, ptr, engine.address(out), count, each)
  } finally {
    engine.memory.free(ptr)
  }
}

/** The tile of a product. Small ones are done before tuning would be. */
export const tileOf = (engine: Engine, p: Problem): Tile =>
  p.items * p.m * p.n * p.k < tuningWork ? tileFor(engine.features) : tunedTile(engine)

const fewColumns = (p: Problem): boolean =>
  (p.aK === 4 && p.n <= dotsColumns) || (p.aRow === 4 && p.n <= sweepRows)

const takesDots = (engine: Engine, p: Problem): boolean =>
  p.m <= dotsRows(engine.features) && p.bK === 4 && (p.aK === 4 || dotsScratch(p.m, p.k) <= maxDotsScratch)

/** Whether `buildRows` takes a product: nothing is left over at the edges, and two halves of k are worth two tasks. */
const takesRows = (engine: Engine, p: Problem): boolean =>
  p.m <= rowsMost &&
  p.items === 1 &&
  p.aK === 4 &&
  p.bColumn === 4 &&
  p.outColumn === 4 &&
  p.n % (4 * rowsPlan(engine.features, p.m).vectors) === 0 &&
  p.n >= rowsColumns &&
  p.k >= rowsParts &&
  p.n * p.k >= rowsWork

const takesSweep = (p: Problem): boolean => p.m <= sweepRows && p.bColumn === 4

/**
 * A product into a contiguous output of a form, if tiles compute it and it is one matrix; else nothing,
 * and false.
 */
export function matmulInto(engine: Engine, out: View, a: View, b: View, form: Form): boolean {
  const p = problem(out, a, b)
  const narrowed = p.n < p.m && fewColumns(p)
  if (p.items !== 1 || p.m * p.n === 0 || narrowed) return false
  if (takesDots(engine, p) || takesRows(engine, p) || takesSweep(p)) return false
  tiles(engine, tileOf(engine, p), p, out, 'float32', form)
  return true
}

function problem(out: View, a: View, b: View): Problem {
  const d = out.shape.length - 2
  const p: Problem = {
    m: out.shape[d],
    n: out.shape[d + 1],
    k: a.shape[d + 1],
    aRow: 4 * a.strides[d],
    aK: 4 * a.strides[d + 1],
    bK: 4 * b.strides[d],
    bColumn: 4 * b.strides[d + 1],
    outRow: 4 * out.strides[d],
    outColumn: 4 * out.strides[d + 1],
    a,
    b,
    items: 1,
    batchDims: d,
  }
  // Strides of dims of size 1 say nothing; those of contiguous ones open the fast paths.
  if (p.m === 1) p.aRow = p.outRow = 4 * p.k
  if (p.n === 1) p.bColumn = p.outColumn = 4
  if (p.k === 1) {
    p.aK = 4
    if (p.bColumn !== 4) p.bK = 4
  }
  // One matrix b for many matrices a whose rows lie one after another: one tall product. No `collapse`: dims go into m.
  while (p.batchDims > 0) {
    const last = p.batchDims - 1
    const size = out.shape[last]
    const merges =
      size === 1 ||
      (b.strides[last] === 0 &&
        4 * a.strides[last] === p.m * p.aRow &&
        4 * out.strides[last] === p.m * p.outRow)
    if (!merges) break
    p.m *= size
    p.batchDims = last
  }
  for (let i = 0; i < p.batchDims; i++) p.items *= out.shape[i]
  return p
}

/** Turns a product into the transposed one, outᵀ = bᵀ · aᵀ, in place. */
function transposed(p: Problem): void {
  ;[p.m, p.n] = [p.n, p.m]
  ;[p.a, p.b] = [p.b, p.a]
  ;[p.aRow, p.aK, p.bK, p.bColumn] = [p.bColumn, p.bK, p.aK, p.aRow]
  ;[p.outRow, p.outColumn] = [p.outColumn, p.outRow]
}

/** A product by tiles. */
export function tiles(engine: Engine, tile: Tile, p: Problem, out: View, type: Number32, form?: Form): void {
  const width = 4 * tile.vectors
  const wanted = wantedTasks(engine, p)
  let rows = p.m
  let columns = Math.min(maxColumns, roundUp(p.n, width))
  // A cut between columns packs rows of a again, if they are packed; one between rows packs columns of b
  // again.
  const least = (p.aK === 4 ? 4 : 8) * width
  while (p.items * Math.ceil(p.m / rows) * Math.ceil(p.n / columns) < wanted) {
    if (columns > least && (columns >= rows || rows <= 64)) columns = roundUp(columns / 2, width)
    else if (rows > 64) rows = roundUp(rows / 2, tile.rows)
    else if (columns > width) columns = roundUp(columns / 2, width)
    else break
  }
  // Equal widths, rather than a narrow last one.
  columns = roundUp(p.n / Math.ceil(p.n / columns), width)
  const key = `matmul:${tile.rows}x${width}:${tile.unroll}:${type}${form?.key ?? ''}`
  const kernel = engine.kernel(key, (m) => buildTiles(m, tile, type, form?.build))
  const blocks = Math.max(1, Math.ceil(p.k / kBlock))
  const step = Math.ceil(p.k / blocks)
  const cut = { rows, columns, step, scratch: tileScratch(tile, columns, step) }
  launch(engine, kernel, p, out, cut, form)
}

function dots(engine: Engine, p: Problem, out: View, type: Number32): void {
  const kernel = engine.kernel(`matmul:dots:${p.m}:${type}`, (m) => buildDots(m, p.m, type))
  const wanted = wantedTasks(engine, p)
  const columns = Math.max(8, roundUp((p.n * p.items) / wanted, 4))
  const scratch = p.aK === 4 ? 0 : dotsScratch(p.m, p.k)
  launch(engine, kernel, p, out, { rows: p.m, columns: Math.min(columns, p.n), step: 0, scratch })
}

function sweep(engine: Engine, p: Problem, out: View, type: Number32): void {
  const kernel = engine.kernel(`matmul:sweep:${p.m}:${type}`, (m) => buildSweep(m, p.m, type))
  const wanted = wantedTasks(engine, p)
  const columns = Math.min(sweepColumns(p.m), Math.max(64, roundUp((p.n * p.items) / wanted, 16)))
  launch(engine, kernel, p, out, {
    rows: p.m,
    columns: Math.min(columns, p.n),
    step: 0,
    scratch: sweepScratch(p.m),
  })
}

function fewRows(engine: Engine, p: Problem, out: View, type: Number32): void {
  const plan = rowsPlan(engine.features, p.m)
  const { tile, depth, vectors } = plan
  const { threads } = engine.pool
  // As wide as can be: every run of columns is a jump for the prefetcher.
  const width = roundUp(Math.max(rowsColumns, p.n / Math.ceil(threads / rowsParts)), 4 * vectors)
  const columns = Math.min(width, p.n)
  const ahead = plan.ahead === true && columns === p.n && p.bK === 4 * p.n
  const key = `matmul:rows:${tile ? '' : p.m}:${ahead}:${type}`
  const product = engine.kernel(key, (m) =>
    tile ? buildPanels(m, tile, depth, type) : buildRows(m, p.m, { ...plan, ahead }, type),
  )
  const sum = engine.kernel(`matmul:rows-sum:${vectors}:${type}`, (m) => buildRowsSum(m, vectors, type))
  launch(engine, product, p, out, {
    rows: p.m,
    columns,
    step: Math.ceil(p.k / rowsParts),
    scratch: rowsScratch(p.m, p.n, threads),
    parts: rowsParts,
  })
  engine.launch(sum, p.m, Math.ceil(taskWork / p.n))
}

/**
 * How many tasks keep all threads busy to the end, unless there is too little to do. Every cut packs again: 4 per
 * thread cost weight gradients (a by columns) 4 to 9 % of the peak.
 */
function wantedTasks(engine: Engine, p: Problem): number {
  return Math.max(
    1,
    Math.min(2 * engine.features.threads, Math.floor((p.items * p.m * p.n * p.k) / taskWork)),
  )
}

const roundUp = (x: number, step: number): number => Math.ceil(x / step) * step

interface Cut {
  readonly rows: number
  readonly columns: number
  readonly step: number
  /** Bytes per thread. */
  readonly scratch: number
  /** Tasks along k, of `step`, in place of those along m. */
  readonly parts?: number
}

function launch(engine: Engine, kernel: Kernel, p: Problem, out: View, cut: Cut, form?: Form): void {
  // May renew the views of memory: before they are used.
  const scratch = engine.scratch(cut.scratch)
  const rowTasks = cut.parts ?? Math.ceil(p.m / cut.rows)
  const columnTasks = Math.ceil(p.n / cut.columns)
  const w = engine.memory.i32
  const base = engine.params >>> 2
  // In the order of `matmulParams`.
  const words = [
    p.m,
    p.n,
    p.k,
    p.aRow,
    p.aK,
    p.bK,
    p.bColumn,
    p.outRow,
    p.outColumn,
    engine.address(p.a),
    engine.address(p.b),
    engine.address(out),
    cut.rows,
    cut.columns,
    rowTasks,
    columnTasks,
    scratch,
    align64(cut.scratch),
    cut.step,
    p.batchDims,
  ]
  for (let i = 0; i < words.length; i++) w[base + i] = words[i]
  const more = base + moreParams
  for (let d = 0; d < p.batchDims; d++) {
    const entry = more + 4 * d
    w[entry] = out.shape[d]
    w[entry + 1] = 4 * p.a.strides[d]
    w[entry + 2] = 4 * p.b.strides[d]
    w[entry + 3] = 4 * out.strides[d]
  }
  form?.write(engine.memory, more)
  const work = Math.min(cut.rows, p.m) * Math.min(cut.columns, p.n) * Math.max(1, p.k)
  engine.launch(kernel, p.items * rowTasks * columnTasks, Math.max(1, Math.ceil(taskWork / work)))
}
