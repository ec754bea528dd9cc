/**
 * Sum, product, largest and smallest over any dims of a tensor of any strides.
 *
 * Dims are sorted by stride and merged; expanded (stride 0) dims become a factor. Then, by what lies innermost:
 *
 * - *rows*: reduced elements are dense. One output at a time, 8 accumulators of 4 lanes; outputs in parallel. A large
 *   reduction to few outputs is cut into pieces of about 16 K elements, combined in order.
 * - *columns*: kept elements are dense. Strips of 1024 columns, 8 rows at a time into a strip of accumulators in the
 *   L1 cache, pieces of 128 … 512 rows in parallel, combined in order.
 * - anything else, and float64 and bool: element by element.
 *
 * Sums of float32 collect at most 1024 elements in 32 float32 lanes (or a few hundred rows per column) before they go
 * on in float64. How the work is cut depends on the shape alone, so that results have the same bits on any number of
 * threads.
 *
 * Measured, Node 20, one thread, ns per element in the cache: sum of rows 0.07, of columns 0.08, max 0.10 (0.20 with
 * f32x4.max, whose care for NaN costs 7 instructions). 4 M elements: 0.30 ms, reading them 0.24 ms. [4, 8]: 0.7 µs.
 *
 * Reference: `reduce` in core's reference/kernels.ts. Test: reduce.test.ts.
 */

import { layout, type Reduction, type View } from '@tilegrad/core'
import { collapse } from '@tilegrad/core/kernel'
import { block, word } from '../../block.ts'
import { viewOf } from '../../element.ts'
import type { Engine, KernelFactory } from '../../engine.ts'
import { type Exprs, f64, type I32, i32, type ModuleBuilder } from '../../wasm/index.ts'
import { foldRow, grainOf, streamGrain, total, Words, walk, writeNest } from '../rows.ts'
import { runColumns } from './columns.ts'
import {
  type Element,
  elements,
  isInt,
  type Plan,
  pieceElements,
  plan,
  scaleOf,
  scaleParams,
} from './plan.ts'

const last = (list: readonly number[]): number | undefined => list[list.length - 1]

export const reduce: KernelFactory<{ kind: Reduction; dims: readonly number[] }> = (engine) => ({
  dtypes: [Object.keys(elements) as (keyof typeof elements)[]],
  run([out], [x], { kind, dims }) {
    if (layout.numel(out.shape) === 0) return
    if (layout.numel(x.shape) === 0) {
      fill(engine, out, { sum: 0, prod: 1, max: -Infinity, min: Infinity }[kind])
      return
    }
    const p = plan(engine, out, x, kind, dims)
    const words = p.dtype === 'float32' || p.dtype === 'int32'
    if (words && last(p.reduced.strides[0]) !== 1 && last(p.kept.strides[0]) === 1) runColumns(engine, p)
    else runRows(engine, p)
  },
})

function fill(engine: Engine, out: View, value: number): void {
  viewOf(engine.memory.memory.buffer, out.dtype, engine.address(out), layout.numel(out.shape)).fill(value)
}

// --- rows

/** A reduction of at least this many elements to few outputs is cut into pieces. */
const splitFrom = 65536
const splitOutputs = 64

/** Pieces are `count` of `size`. */
const rowsParams = block({ x: word, out: word, size: word, count: word, ...scaleParams })

function runRows(engine: Engine, p: Plan): void {
  const { bytes } = elements[p.dtype]
  const outputs = layout.numel(p.kept.sizes)
  const perOutput = layout.numel(p.reduced.sizes)
  const dense = (p.dtype === 'float32' || p.dtype === 'int32') && last(p.reduced.strides[0]) === 1
  const short = dense && (last(p.reduced.sizes) as number) < 32
  const run = dense ? (short ? 'short' : 'dense') : 'strided'
  if (outputs <= splitOutputs && perOutput >= splitFrom) {
    runPieces(engine, p, run)
    return
  }
  const scaled = p.factor !== 1
  const [outer, inner] = [p.kept.sizes.length, p.reduced.sizes.length]
  const key = `reduce.rows ${p.kind} ${p.dtype} ${run} ${outer} ${inner} ${scaled}`
  const kernel = engine.kernel(key, (m) => {
    const element = elements[p.dtype] as Element<'f64' | 'i32'>
    buildRows(m, p.kind, element, run, [outer, inner], { scaled, pieces: false })
  })
  const { whole, factor } = scaleOf(p)
  rowsParams.write(engine, { x: p.x, out: p.out, size: 0, count: 0, whole, factor })
  writeNest(engine, rowsParams, p.kept, [bytes, bytes], p.reduced, [bytes])
  engine.launch(kernel, outputs, grainOf(perOutput, streamGrain))
}

/** Pieces of the outermost reduced dim, each to a partial result in float64 or int32; those in order, here. */
function runPieces(engine: Engine, p: Plan, run: 'dense' | 'short' | 'strided'): void {
  const { bytes } = elements[p.dtype]
  const outputs = layout.numel(p.kept.sizes)
  const [n] = p.reduced.sizes
  const size = Math.max(1, Math.floor((pieceElements * n) / layout.numel(p.reduced.sizes)))
  const pieces = Math.ceil(n / size)
  const partialBytes = isInt(p.dtype) ? 4 : 8
  const nest = collapse(
    [...p.kept.sizes, pieces],
    [
      [...p.kept.strides[0], size * p.reduced.strides[0][0]],
      [...layout.contiguousStrides(p.kept.sizes).map((s) => s * pieces), 1],
    ],
  )
  const rank = [nest.sizes.length, p.reduced.sizes.length] as const
  const kernel = engine.kernel(`reduce.pieces ${p.kind} ${p.dtype} ${run} ${rank}`, (m) =>
    buildRows(m, p.kind, elements[p.dtype] as Element<'f64' | 'i32'>, run, rank, {
      scaled: false,
      pieces: true,
    }),
  )
  const partial = engine.memory.alloc(outputs * pieces * partialBytes)
  try {
    rowsParams.write(engine, { x: p.x, out: partial, size, count: pieces, whole: 1, factor: 1 })
    writeNest(engine, rowsParams, nest, [bytes, partialBytes], p.reduced, [bytes])
    engine.launch(kernel, outputs * pieces, 2)
    const { memory } = engine
    const parts = isInt(p.dtype) ? memory.i32 : memory.f64
    const result = { float32: memory.f32, float64: memory.f64, int32: memory.i32, bool: memory.u8 }[p.dtype]
    const combine = combineHere[isInt(p.dtype) ? 'int' : 'float'][p.kind]
    const at = { shape: p.kept.sizes, strides: p.kept.strides[1], offset: p.out / bytes }
    layout.forEachOffset(at, (to, o) => {
      const first = partial / partialBytes + o * pieces
      let acc = parts[first]
      for (let i = 1; i < pieces; i++) acc = combine(acc, parts[first + i])
      result[to] = isInt(p.dtype) ? Math.imul(acc, p.factor % 2 ** 32) : acc * p.factor
    })
  } finally {
    engine.memory.free(partial)
  }
}

const combineHere = {
  float: {
    sum: (a: number, b: number) => a + b,
    prod: (a: number, b: number) => a * b,
    max: Math.max,
    min: Math.min,
  },
  int: { sum: (a: number, b: number) => (a + b) | 0, prod: Math.imul, max: Math.max, min: Math.min },
} as const

function buildRows<T extends 'f64' | 'i32'>(
  m: ModuleBuilder,
  kind: Reduction,
  element: Element<T>,
  run: 'dense' | 'short' | 'strided',
  [keptRank, reducedRank]: readonly [number, number],
  { scaled, pieces }: { scaled: boolean; pieces: boolean },
): void {
  const fold = element.folds[kind]
  m.kernel('main', (f, start, end, params) => {
    const { x, out, size, count, whole } = rowsParams.load(f, params)
    const double = f64.load(params, rowsParams.offset('factorLow'))
    const factor = scaled ? ((fold.type === 'f64' ? f.let(double) : whole) as unknown as Exprs[T]) : undefined
    const words = new Words(f, params, rowsParams)
    const rows = walk(f, words, keptRank, [x, out], start)
    const sizes = Array.from({ length: reducedRank }, () => words.i32())
    const strides = Array.from({ length: reducedRank }, () => words.i32())
    f.for(start, end, 1, (row) => {
      const acc = total(f, fold)
      const value = acc as Exprs[T]
      let first = sizes[0]
      if (pieces) {
        const left = f.let(sizes[0].sub(row.remU(count).mul(size)))
        first = f.let(i32.select(left.ltS(size), left, size))
      }
      const nested = (d: number, from: I32): void => {
        const n = d === 0 ? first : sizes[d]
        const at = f.let(from)
        if (d < reducedRank - 1 || run === 'strided') {
          f.for(0, n, 1, () => {
            if (d < reducedRank - 1) nested(d + 1, at)
            else acc.set(fold.scalar(value, element.load(at)) as never)
            at.set(at.add(strides[d]))
          })
        } else {
          foldRow(f, n, run === 'short' ? 1 : 8, fold, [acc], (v) => [v.load(at)])
        }
      }
      nested(0, rows.at[0])
      const to = rows.at[1]
      if (pieces) f.store(to, acc)
      else if (factor) element.store(f, to, element.folds.prod.scalar(value, factor))
      else element.store(f, to, value)
      rows.next()
    })
  })
}
