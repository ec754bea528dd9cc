/**
 * Reductions whose kept elements are dense: see reduce.ts.
 *
 * Reference: `reduce` in core's reference/kernels.ts. Test: reduce.test.ts.
 */

import { layout, type Reduction } from '@tilegrad/core'
import { collapse, type Nest } from '@tilegrad/core/kernel'
import { block, word } from '../../block.ts'
import type { Engine } from '../../engine.ts'
import { f32x4, f64, f64x2, type I32, i32, i32x4, type ModuleBuilder, type V128 } from '../../wasm/index.ts'
import { eachVector, type Fold, floatFolds, grainOf, intFolds, Words, walk, writeNest } from '../rows.ts'
import { isInt, type Plan, pieceElements, scaleOf, scaleParams } from './plan.ts'

/** Columns per strip: 8 rows and the accumulators stay in the L1 cache. */
const strip = 1024
/** Columns per strip where pieces are combined. */
const combineStrip = 64

/** Rows per piece: 128, or up to 512 of narrow ones. */
const pieceRows = (columns: number): number =>
  Math.min(512, Math.max(128, Math.ceil(pieceElements / columns / 8) * 8))

export function runColumns(engine: Engine, p: Plan): void {
  const depth = p.kept.sizes.length - 1
  const outer = { sizes: p.kept.sizes.slice(0, depth), strides: p.kept.strides.map((s) => s.slice(0, depth)) }
  const columns = p.kept.sizes[depth]
  const rows = layout.numel(p.reduced.sizes)
  const size = pieceRows(columns)
  const pieces = Math.ceil(rows / size)
  const units = layout.numel(outer.sizes)
  const direct = pieces === 1 && p.kept.strides[1][depth] === 1 && p.factor === 1
  const partial = direct ? p.out : engine.memory.alloc(units * pieces * columns * 4)
  try {
    const nest = direct
      ? outer
      : collapse(outer.sizes, [
          outer.strides[0],
          layout.contiguousStrides(outer.sizes).map((s) => s * pieces * columns),
        ])
    const rank = [nest.sizes.length, p.reduced.sizes.length] as const
    const fold = (isInt(p.dtype) ? intFolds : floatFolds)[p.kind]
    const strips = Math.ceil(columns / strip)
    const kernel = engine.kernel(`reduce.columns ${p.kind} ${p.dtype} ${rank}`, (m) =>
      buildColumns(m, fold, rank),
    )
    columnsParams.write(engine, { x: p.x, out: partial, columns, rows, size, pieces, strips })
    writeNest(engine, columnsParams, nest, [4, 4], p.reduced, [4])
    const grain = grainOf(Math.min(rows, size) * Math.min(columns, strip))
    engine.launch(kernel, units * strips * pieces, grain)
    if (direct) return
    const to = collapse(outer.sizes, [outer.strides[1]])
    combine(engine, p, { partial, to, units, columns, pieces, step: p.kept.strides[1][depth] })
  } finally {
    if (!direct) engine.memory.free(partial)
  }
}

/** Pieces are of `size` rows, strips of columns. */
const columnsParams = block({
  ...{ x: word, out: word, columns: word, rows: word },
  ...{ size: word, pieces: word, strips: word },
})
/** `step`: bytes from one column to the next in the result. */
const combineParams = block({
  ...{ partial: word, out: word, columns: word, pieces: word, strips: word, step: word },
  ...scaleParams,
})

interface Partial {
  readonly partial: number
  readonly to: Nest
  readonly units: number
  readonly columns: number
  readonly pieces: number
  /** Elements from one column to the next in the result. */
  readonly step: number
}

function combine(
  engine: Engine,
  p: Pick<Plan, 'kind' | 'dtype' | 'factor' | 'out'>,
  { partial, to, units, columns, pieces, step }: Partial,
): void {
  const strips = Math.ceil(columns / combineStrip)
  const rank = to.sizes.length
  const kernel = engine.kernel(`reduce.combine ${p.kind} ${p.dtype} ${rank}`, (m) =>
    buildCombine(m, p.kind, isInt(p.dtype), rank),
  )
  const { whole, factor } = scaleOf(p)
  combineParams.write(engine, {
    partial,
    out: p.out,
    columns,
    pieces,
    strips,
    step: 4 * step,
    whole,
    factor,
  })
  writeNest(engine, combineParams, to, [4])
  engine.launch(kernel, units * strips, grainOf(pieces * Math.min(columns, combineStrip)))
}

/** out [columns] = the sum of partial [pieces, columns], float32, in order: for sums that other kernels have begun. */
export function sumPieces(
  engine: Engine,
  partial: number,
  out: number,
  pieces: number,
  columns: number,
): void {
  const to = { sizes: [], strides: [[]] }
  const sums = { kind: 'sum', dtype: 'float32', factor: 1, out } as const
  combine(engine, sums, { partial, to, units: 1, columns, pieces, step: 1 })
}

/** Builds a kernel whose unit is (outer index, strip of columns, piece of rows), rows walked with `reducedRank` dims. */
function buildColumns(
  m: ModuleBuilder,
  fold: Fold,
  [outerRank, reducedRank]: readonly [number, number],
): void {
  m.kernel('main', (f, start, end, params) => {
    const { x, out, columns, rows, size, pieces, strips } = columnsParams.load(f, params)
    f.for(start, end, 1, (unit) => {
      const words = new Words(f, params, columnsParams)
      const piece = f.let(unit.remU(pieces))
      const group = f.let(unit.divU(pieces))
      const column = f.let(group.remU(strips).mul(strip))
      const outer = walk(f, words, outerRank, [x, out], f.let(group.divU(strips)))
      const width = f.let(min(columns.sub(column), strip))
      const from = f.let(outer.at[0].add(column.shl(2)))
      const to = f.let(outer.at[1].add(piece.mul(columns).add(column).shl(2)))
      const row = f.let(piece.mul(size))
      const count = f.let(min(rows.sub(row), size))
      const reduced = walk(f, words, reducedRank, [from], row)
      eachVector(f, 0, width, 4, (v) => v.store(to, fold.lanes()))
      const add = (pointers: readonly I32[]): void => {
        eachVector(f, 0, width, 1, (v) => {
          let values: V128[] = pointers.map((p) => v.load(p))
          while (values.length > 1) {
            values = Array.from({ length: values.length / 2 }, (_, i) =>
              fold.vector(values[2 * i], values[2 * i + 1]),
            )
          }
          v.store(to, fold.vector(v.load(to), values[0]))
        })
      }
      const take = (): I32 => {
        const p = f.let(reduced.at[0])
        reduced.next()
        return p
      }
      const left = f.let(count.and(7))
      f.for(0, count.sub(7), 8, () => add(Array.from({ length: 8 }, take)))
      f.for(0, left, 1, () => add([take()]))
    })
  })
}

const min = (a: I32, b: number | I32): I32 => i32.select(a.ltS(b), a, b)

/** Pieces in order, sums and products of floats in float64; one unit is (outer index, strip of columns). */
function buildCombine(m: ModuleBuilder, kind: Reduction, int: boolean, outerRank: number): void {
  const fold = (int ? intFolds : floatFolds)[kind]
  const wide = kind === 'sum' ? f64x2.add : kind === 'prod' ? f64x2.mul : undefined
  m.kernel('main', (f, start, end, params) => {
    const { partial, out, columns, pieces, strips, step, whole } = combineParams.load(f, params)
    const double = f64.load(params, combineParams.offset('factorLow'))
    const scale = f.let(int ? i32x4.splat(whole) : f64x2.splat(double))
    f.for(start, end, 1, (unit) => {
      const words = new Words(f, params, combineParams)
      const group = f.let(unit.divU(strips))
      const column = f.let(unit.remU(strips).mul(combineStrip))
      const outer = walk(f, words, outerRank, [out], group)
      const from = f.let(partial.add(group.mul(pieces).mul(columns).add(column).shl(2)))
      const to = f.let(outer.at[0].add(column.mul(step)))
      eachVector(f, 0, min(columns.sub(column), combineStrip), 1, ({ byte, lanes, load }) => {
        const at = f.let(from)
        const target = f.let(to.add(byte.shrU(2).mul(step)))
        const put = (value: V128): void => {
          const v = f.let(value)
          for (let lane = 0; lane < lanes; lane++) {
            f.storeLane(32, target, v, lane)
            if (lane + 1 < lanes) target.set(target.add(step))
          }
        }
        if (int || !wide) {
          const acc = f.local.v128(fold.lanes())
          f.for(0, pieces, 1, () => {
            acc.set(fold.vector(acc, load(at)))
            at.set(at.add(columns.shl(2)))
          })
          put(int ? i32x4.mul(acc, scale) : acc)
        } else {
          const low = f.local.v128(f64x2.const(fold.neutral))
          const high = f.local.v128(f64x2.const(fold.neutral))
          f.for(0, pieces, 1, () => {
            const v = f.let(load(at))
            low.set(wide(low, f64x2.promoteLowF32x4(v)))
            high.set(wide(high, f64x2.promoteLowF32x4(f32x4.shuffle(v, v, [2, 3, 2, 3]))))
            at.set(at.add(columns.shl(2)))
          })
          const narrow = (v: V128): V128 => f32x4.demoteF64x2Zero(f64x2.mul(v, scale))
          put(f32x4.shuffle(narrow(low), narrow(high), [0, 1, 4, 5]))
        }
      })
    })
  })
}
