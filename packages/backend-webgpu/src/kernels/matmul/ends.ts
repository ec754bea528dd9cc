/**
 * How the elements of a tile leave it: from registers, or through workgroup memory, four rows of each thread at a time,
 * to be stored in whole rows.
 */

import { type Epilogue, loadExtras, store } from './epilogue.ts'
import { bytesOf, endOf, type Tile, type TileSpec, threadsOf } from './stages.ts'

const four = [0, 1, 2, 3] as const
const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

/** Threads that store a row. */
const wideOf = ({ bn }: Tile, e: Epilogue): number => (e.vectors ? bn / 4 : bn)

/**
 * Whether elements go through workgroup memory. Straight from registers, whose numbers must be constants, a program's
 * code would be there once per element, and what it reads would be waited for as often; single elements would be stored
 * four apart; and slices have only a share of each sum.
 */
function passesOn(t: Tile, { a, b, epilogue: e }: TileSpec): boolean {
  if (t.slices > 1) return true
  const fits = 16 * endOf(t) <= bytesOf(t, a, b)
  return (e.program !== undefined || !e.vectors) && fits && threadsOf(t) % wideOf(t, e) === 0
}

/** Stores the tile that is in `c{row}_{columns}`. */
export function end(t: Tile, spec: TileSpec): string[] {
  return passesOn(t, spec) ? staged(t, spec.epilogue) : direct(t, spec.epilogue)
}

function direct({ bm, bn, tm, tn }: Tile, e: Epilogue): string[] {
  const [tx, ty] = [bn / tn, bm / tm]
  const lines = range(tn / 4).flatMap((h) => [
    `let n_${h} = n0 + ${h * 4 * tx} + tx * 4;`,
    loadExtras(e, 2, '', `n_${h}`, `_${h}`, true),
  ])
  for (let i = 0; i < tm; i++) {
    lines.push('{', `let m = m0 + ${(i >> 2) * 4 * ty + (i & 3)} + ty * 4;`, 'if (m < p.m) {')
    for (let h = 0; h < tn / 4; h++)
      lines.push(
        `if (n_${h} < p.n) {`,
        loadExtras(e, 2, 'm', `n_${h}`, 'r', false),
        store(e, 2, 'm', `n_${h}`, `c${i}_${h}`, ['r', `_${h}`]),
        '}',
      )
    lines.push('}', '}')
  }
  return lines
}

/** Rows that a thread is asked for at a time. */
const atOnce = 4

function staged(t: Tile, e: Epilogue): string[] {
  const { bm, bn, tm, tn, slices } = t
  const [tx, ty] = [bn / tn, bm / tm]
  const vectors = bn / 4
  const wide = wideOf(t, e)
  const width = e.vectors ? 4 : 1
  const rows = threadsOf(t) / wide
  const times = (4 * ty) / rows
  const together = Math.min(atOnce, times)
  const write = range(tm / 4).map((part) => {
    const values = four.flatMap((i) =>
      range(tn / 4).map(
        (h) =>
          `s[slice * ${ty * bn} + (ty * 4 + ${i}) * ${vectors} + ${h * tx} + tx] = c${part * 4 + i}_${h};`,
      ),
    )
    return `case ${part}: {\n${values.join('\n')}\n}`
  })
  const value = (row: string): string =>
    range(slices)
      .map((slice) => {
        const at = `${slice * ty * bn} + ${row} * ${vectors} + `
        return e.vectors ? `s[${at}column]` : `s[${at}(column >> 2u)][column & 3]`
      })
      .join(' + ')
  return [
    `let column = t % ${wide}; let n = n0 + column${e.vectors ? ' * 4' : ''};`,
    `let row = t / ${wide};`,
    loadExtras(e, 2, '', 'n', 'a', true, width),
    `for (var part = 0; part < ${tm / 4}; part++) {`,
    `switch part {\n${write.join('\n')}\ndefault: {}\n}`,
    'workgroupBarrier();',
    `for (var i = 0; i < ${times}; i += ${together}) {`,
    ...range(together).flatMap((i) => [
      `let row${i} = (i + ${i}) * ${rows} + row; let m_${i} = m0 + part * ${4 * ty} + row${i};`,
      `let last${i} = min(m_${i}, p.m - 1); let value${i} = ${value(`row${i}`)};`,
      loadExtras(e, 2, `last${i}`, 'n', `r${i}`, false, width),
    ]),
    ...range(together).map(
      (i) =>
        `if (m_${i} < p.m && n < p.n) {\n${store(e, 2, `m_${i}`, 'n', `value${i}`, [`r${i}`, 'a'], width)}\n}`,
    ),
    '}',
    'workgroupBarrier();',
    '}',
  ]
}

/** Stores a tile that fits workgroup memory as a whole, one vector or element after another. */
export function endOnce(t: Tile, e: Epilogue): string[] {
  const { bm, bn, tm, tn } = t
  const [tx, ty] = [bn / tn, bm / tm]
  const wide = wideOf(t, e)
  const width = e.vectors ? 4 : 1
  const values = range(tm).flatMap((i) =>
    range(tn / 4).map(
      (h) => `s[(ty * 4 + ${(i >> 2) * 4 * ty + (i & 3)}) * ${bn / 4} + ${h * tx} + tx] = c${i}_${h};`,
    ),
  )
  const at = `s[row * ${bn / 4} + ${e.vectors ? 'column]' : '(column >> 2u)][column & 3]'}`
  return [
    ...values,
    'workgroupBarrier();',
    `for (var at = t; at < ${bm * wide}; at += ${threadsOf(t)}) {`,
    `let row = at / ${wide}; let column = at % ${wide};`,
    `let m = m0 + row; let n = n0 + column * ${width};`,
    'if (m < p.m && n < p.n) {',
    `let value = ${at};`,
    loadExtras(e, 2, '', 'n', 'a', true, width),
    loadExtras(e, 2, 'm', 'n', 'r', false, width),
    store(e, 2, 'm', 'n', 'value', ['r', 'a'], width),
    '}',
    '}',
  ]
}

/** Stores the column beyond the tile; `beyond` brings its sums, over every fourth step of k, to workgroup memory. */
export function endBeyond(t: Tile, e: Epilogue, beyond: string): string[] {
  const sum = range(t.bk / 4).map((k) => `s[${(k * t.bm) / 4} + (row >> 2u)][row & 3]`)
  return [
    `if (n0 + ${t.bn + 1} == p.n) {`,
    'workgroupBarrier();',
    beyond,
    'workgroupBarrier();',
    `for (var row = t; row < ${t.bm}; row += ${threadsOf(t)}) {`,
    'let m = m0 + row; let n = p.n - 1;',
    'if (m < p.m) {',
    `let value = ${sum.join(' + ')};`,
    loadExtras(e, 2, 'm', 'n', 'a', true, 1),
    loadExtras(e, 2, 'm', 'n', 'r', false, 1),
    store(e, 2, 'm', 'n', 'value', ['r', 'a'], 1),
    '}',
    '}',
    '}',
  ]
}
