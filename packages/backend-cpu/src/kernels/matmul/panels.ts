/**
 * A block of rows times one panel: the part of a matrix product between the packing and the micro-kernel.
 *
 * Columns of a panel that do not fill a vector, and outputs whose columns are not contiguous, go through a
 * tile in scratch memory; so `store` is the only place where sums become results.
 */

import {
  type Func,
  type FunctionBuilder,
  type I32,
  i32,
  type ModuleBuilder,
  type Var,
  v128,
} from '../../wasm/index.ts'
import { add, multiply, type Number32, narrow, type Operands, type Tile } from './micro.ts'
import type { PackFunc } from './pack.ts'

/** The smaller of two counts. */
export const least = (a: I32, b: I32 | number): I32 => i32.select(a.ltS(b), a, b)
/** The larger of two counts. */
export const most = (a: I32, b: I32 | number): I32 => i32.select(a.gtS(b), a, b)

const stripsParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
type StripsFunc = Func<typeof stripsParams, null>

/**
 * Adds a function: rows of a times one panel of b, as wide as the tile. Parameters: k; a, bytes between its
 * rows, their number; the panel, whose rows are `panelStep` bytes apart; out, bytes between its rows; 1 to
 * add to what is there, 0 to overwrite it.
 */
export function stripsFunc(m: ModuleBuilder, tile: Tile, panelStep: number, type: Number32): StripsFunc {
  return m.func(stripsParams, (f, k, a, aRow, rows, b, out, outRow, accumulate) => {
    strips(f, { tile, type, k, a, aRow, b, bStep: panelStep }, rows, out, outRow, accumulate)
  })
}

const freeParams = [...stripsParams, 'i32'] as const
export type FreeStripsFunc = Func<typeof freeParams, null>

/** Adds the function of `stripsFunc` with one more parameter, the distance between the panel's rows. */
export function freeStripsFunc(m: ModuleBuilder, tile: Tile, type: Number32): FreeStripsFunc {
  return m.func(freeParams, (f, k, a, aRow, rows, b, out, outRow, accumulate, bStep) => {
    strips(f, { tile, type, k, a, aRow, b, bStep }, rows, out, outRow, accumulate)
  })
}

interface Product extends Operands {
  readonly type: Number32
  readonly a: Var<'i32'>
  readonly aRow: I32
}

function strips(
  f: FunctionBuilder,
  p: Product,
  rows: Var<'i32'>,
  out: Var<'i32'>,
  outRow: I32,
  accumulate: I32,
): void {
  const { tile, type, a, aRow } = p
  const stripStep = f.let(aRow.mul(tile.rows))
  f.while(rows.gtS(0), () => {
    const sums = multiply(f, { ...p, aRows: rows })
    sums.forEach((row, i) => {
      const write = (): void => {
        store(f, row, type, out, accumulate)
        out.set(out.add(outRow))
      }
      if (i === 0) write()
      else f.if(rows.gtS(i), write)
    })
    rows.set(rows.sub(tile.rows))
    a.set(a.add(stripStep))
  })
}

/** Ends a row of a tile: here, and nowhere else, sums become results. */
function store(f: FunctionBuilder, row: Var<'v128'>[], type: Number32, out: I32, accumulate: I32): void {
  f.if(
    accumulate,
    () => {
      // All loads first: the revectoriser pairs adjacent stores only with nothing in between.
      const sums = row.map((x, j) => f.let(add[type](v128.load(out, 16 * j), x)))
      sums.forEach((x, j) => f.store(out, x, 16 * j))
    },
    () => row.forEach((x, j) => f.store(out, x, 16 * j)),
  )
}

const panelParams = [...stripsParams, 'i32', 'i32', 'i32'] as const
export type PanelFunc = Func<typeof panelParams, null>

/**
 * Adds a function: rows of a times one panel of b, with up to 4 · `tile.vectors` columns, into an output with
 * any strides. Parameters: k; a, bytes between its rows, their number; the panel; out, bytes between its
 * rows; 1 to add to what is there, 0 to overwrite it; bytes between columns of out, their number; scratch
 * memory for one tile per row, which is used where a vector does not fit the output.
 */
export function panelFunc(m: ModuleBuilder, pack: PackFunc, tile: Tile, type: Number32): PanelFunc {
  const width = 4 * tile.vectors
  const byVectors = Array.from({ length: tile.vectors }, (_, v) =>
    stripsFunc(m, narrow(tile, v + 1), 4 * width, type),
  )
  return m.func(
    panelParams,
    (f, k, a, aRow, rows, b, out, outRow, accumulate, outColumn, columns, scratch) => {
      const whole = f.let(columns.and(3).or(outColumn.ne(4)).eqz())
      const to = f.let(i32.select(whole, out, scratch))
      const toRow = f.let(i32.select(whole, outRow, 4 * width))
      f.if(accumulate.ne(0).and(whole.eqz()), () => {
        f.call(pack, scratch, 4 * width, out, outRow, outColumn, rows, columns)
      })
      f.block((done) => {
        byVectors.forEach((strip, v) => {
          f.if(columns.leS(4 * v + 4), () => {
            f.call(strip, k, a, aRow, rows, b, to, toRow, accumulate)
            done.br()
          })
        })
      })
      f.if(whole.eqz(), () => {
        f.if(
          outColumn.eq(4),
          () => f.call(pack, out, outRow, scratch, 4 * width, 4, rows, columns),
          () =>
            f.if(
              outRow.eq(4),
              () => f.call(pack, out, outColumn, scratch, 4, 4 * width, columns, rows),
              () => {
                f.for(0, columns, 1, (j) => {
                  f.call(
                    pack,
                    out.add(j.mul(outColumn)),
                    outRow,
                    scratch.add(j.shl(2)),
                    4 * width,
                    4,
                    rows,
                    1,
                  )
                })
              },
            ),
        )
      })
    },
  )
}
