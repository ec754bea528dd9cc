/**
 * Copies a matrix whose elements lie where two tables say: `to[r][c] = from[rows[r] + columns[c]]`, offsets in bytes. So windows
 * that slide over an input are the columns of a matrix (im2col) that is never stored as a whole: its rows are the elements of
 * windows, its columns the windows.
 *
 * Four columns at a time, down all rows: those that lie side by side move as vectors, others element by element.
 */

import { type Func, i32, type ModuleBuilder, v128 } from '../../wasm/index.ts'
import type { Packing } from './pack.ts'

const words = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
/** to, bytes between its rows, from, the tables of rows and of columns, numbers of both. */
type PackWindowsFunc = Func<typeof words, null>

/** Packs an operand that is made of windows: the addresses of its tables stand for its steps. */
export function windowsPacking(m: ModuleBuilder): Packing {
  const pack = windowsPacker(m)
  return (f, to, toRow, from, rowTable, columnTable, row, column, rows, columns) =>
    f.call(pack, to, toRow, from, rowTable.add(row.shl(2)), columnTable.add(column.shl(2)), rows, columns)
}

/** Adds the function to a module. */
function windowsPacker(m: ModuleBuilder): PackWindowsFunc {
  return m.func(words, (f, to, toRow, from, rowTable, columnTable, rows, columns) => {
    const end = f.let(rowTable.add(rows.shl(2)))
    f.for(0, columns, 4, (c) => {
      const table = f.let(columnTable.add(c.shl(2)))
      const first = f.let(i32.load(table))
      const p = f.let(to.add(c.shl(2)))
      const row = f.let(rowTable)
      const left = f.let(columns.sub(c))
      const inLine = left.geS(4).and(i32.load(table, 12).sub(first).eq(12))
      f.if(
        inLine,
        () => {
          const source = f.let(from.add(first))
          f.while(row.ne(end), () => {
            f.store(p, v128.load(source.add(i32.load(row))))
            p.set(p.add(toRow))
            row.set(row.add(4))
          })
        },
        () => {
          f.if(
            left.geS(4),
            () => {
              const sources = [0, 1, 2, 3].map((i) => f.let(from.add(i32.load(table, 4 * i))))
              f.while(row.ne(end), () => {
                const at = f.let(i32.load(row))
                const values = sources.map((source) => f.let(i32.load(source.add(at))))
                values.forEach((value, i) => f.store(p, value, 4 * i))
                p.set(p.add(toRow))
                row.set(row.add(4))
              })
            },
            () => {
              f.for(0, left, 1, (i) => {
                const source = f.let(from.add(i32.load(table.add(i.shl(2)))))
                const q = f.let(p.add(i.shl(2)))
                row.set(rowTable)
                f.while(row.ne(end), () => {
                  f.store(q, i32.load(source.add(i32.load(row))))
                  q.set(q.add(toRow))
                  row.set(row.add(4))
                })
              })
            },
          )
        },
      )
    })
  })
}
