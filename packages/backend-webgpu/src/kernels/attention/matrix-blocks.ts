/**
 * What the kernels of attention in float16 have in common: products on subgroup matrices, of which one subgroup computes
 * 16 rows. A matrix has no elements that code could reach: scores go through workgroup memory to the threads that hide,
 * draw and take powers, with the same tiles and the same code as in float32 (`attention/scores.ts`), and weights come back
 * the same way, as float16. The rows of a subgroup are its own: no other one reads or writes them.
 *
 * Workgroup memory is `tb`, blocks of operands in vectors of eight float16, and `ts`, rows of scores as float32 or weights as
 * float16. Rows are longer by a vector, so that neighbours lie in different banks. All of it is `vec4u`: matrices of float16
 * that are loaded from smaller vectors come out wrong on NVIDIA (Dawn 0.6.2). Sums are set to zero in words, `= Sum()`: Dawn does
 * that only once for a variable that is declared in a loop.
 */

import type { View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import type { Matrices } from '../../device/matrices.ts'
import { colsOf, each, type Form, type Tile } from './blocks.ts'

/** Threads of a row times rows of a thread are 16 rows to a subgroup of 32: tx and rm cannot be others. */
export const matrixTile: Tile = { ty: 16, rm: 4, tx: 8, kn: 4 }

/** Sizes of heads go up to whole matrices. */
export const matrixPadded = (width: number): number => Math.ceil(width / 16) * 16

/** Whether rows of a view are vectors of eight. */
export const isEights = ({ shape, strides, offset }: View): boolean =>
  strides[3] === 1 &&
  shape[3] % 8 === 0 &&
  [offset, ...strides.slice(0, 3)].every((n, i) => n % 8 === 0 || (i > 0 && shape[i - 1] === 1))

/** What multiplies matrices, where subgroups are as large as tiles want them. */
export function matricesFor({ gpu }: Engine): Matrices | null {
  return gpu.matrices?.subgroup === 32 ? gpu.matrices : null
}

/** Vectors of eight from one row of a block of operands to the next. */
export const rowOf = (width: number): number => width / 8 + 1
/** Vectors of four from one row of scores to the next. */
export const scoreRow = (tile: Tile): number => colsOf(tile) / 4 + 1
export const matrixAliases = `alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;`

/** Four float32 as float16 in a pair of words, and back. */
export const packed = (x: string): string => `bitcast<vec2u>(vec4<f16>(${x}))`
export const unpacked = (x: string): string => `vec4f(bitcast<vec4<f16>>(${x}))`

export interface Rows {
  /** Where the block begins in `tb`, in vectors of eight. */
  readonly at: number
  /** Rows of the block and the padded size of heads. */
  readonly rows: number
  readonly width: number
  readonly threads: number
  /** Binding and name in the parameters; expressions: where row 0 begins, first row, number of rows, columns. */
  readonly from: string
  readonly base: string
  readonly first: string
  readonly limit: string
  readonly columns: string
}

/** The parts of copying a block: into registers, which `declare` declares, and from there to `tb`. */
export interface Stage {
  readonly declare: string
  /** Reads the block whose first row is this one. At least one row must exist. */
  readonly read: (first: string) => string
  /** Stores it; zeros beyond the last row and column. */
  readonly write: string
}

export function stage({ at, rows, width, threads, from, base, first, limit, columns }: Rows): Stage {
  const vectors = width / 8
  const count = rows * vectors
  const passes = Math.ceil(count / threads)
  const x = (i: number): string => `(li + ${i * threads}u)`
  const [row, column] = [
    (i: number): string => `(${x(i)} / ${vectors}u)`,
    (i: number): string => `(${x(i)} % ${vectors}u)`,
  ]
  return {
    declare: each(passes, (i) => `var ${from}v${i}: vec4u;`),
    read: (first) =>
      each(
        passes,
        (i) =>
          `${from}v${i} = ${from}[u32(${base} + min(${first} + i32(${row(i)}), ${limit} - 1) * p.${from}Row + min(i32(${column(i)}), ${columns} / 8 - 1))];`,
      ),
    write: each(passes, (i) => {
      const inside = `${first} + i32(${row(i)}) < ${limit} && i32(${column(i)} * 8u) < ${columns}`
      const store = `tb[${row(i)} * ${rowOf(width)}u + ${column(i)} + ${at}u] = select(vec4u(), ${from}v${i}, ${inside});`
      return (i + 1) * threads > count ? `if (${x(i)} < ${count}u) { ${store} }` : store
    }),
  }
}

/** Copies a block at once. */
export const copied = (stage: Stage, first: string): string =>
  `{\n${stage.declare}\n${stage.read(first)}\n${stage.write}\n}`

/**
 * Blocks that stream by: `before` the loop, at the start of its `body`, and `next` after the barrier that follows. Where one
 * block comes after the other, the next one is on its way while this one is computed with.
 */
export function streamed(
  form: Form,
  blocks: readonly Stage[],
  at: 'k0' | 'q0',
): { before: string; body: string; next: string } {
  if (form.globals || form.blocks)
    return { before: '', body: blocks.map((block) => copied(block, at)).join('\n'), next: '' }
  const read = (first: string): string => blocks.map((block) => block.read(first)).join('\n')
  return {
    before: `${blocks.map(({ declare }) => declare).join('\n')}\nif (begin < end) {\n${read('begin')}\n}`,
    body: blocks.map(({ write }) => write).join('\n'),
    next: read(`${at} + ${colsOf(form.tile)}`),
  }
}

/** Declares `name0` …: the subgroup's rows of a block in `tb` as matrices, 16 columns each. */
export const lefts = (name: string, at: number, width: number): string =>
  each(
    width / 16,
    (k) =>
      `let ${name}${k} = subgroupMatrixLoad<Left, row_major>(&tb, sr * ${rowOf(width)}u + ${at + 2 * k}u, ${rowOf(width)}u);`,
  )

/** Stores the products of the subgroup's rows `left` with the rows of a block of `tb` to `to`. */
export function scoreProducts(tile: Tile, left: string, at: number, width: number, to: string): string {
  const across = colsOf(tile) / 16
  const [row, out] = [rowOf(width), scoreRow(tile)]
  return `{
${each(across, (n) => `var a${n} = Sum();`)}
${each(width / 16, (k) =>
  each(
    across,
    (n) =>
      `a${n} = subgroupMatrixMultiplyAccumulate(${left}${k}, subgroupMatrixLoad<Right, col_major>(&tb, ${at + 16 * n * row + 2 * k}u, ${row}u), a${n});`,
  ),
)}
${each(across, (n) => `subgroupMatrixStore<row_major>(&${to}, sr * ${out}u + ${4 * n}u, a${n}, ${out}u);`)}
}`
}

/** Reads a thread's part of rows of float32: `name{i}_{j}`, which must be declared. */
export function takeScores(tile: Tile, name: string, from: string): string {
  const { rm, kn, tx } = tile
  return each(rm, (i) =>
    each(kn / 4, (v) => {
      const at = `(ty * ${rm}u + ${i}u) * ${scoreRow(tile)}u + tx + ${tx * v}u`
      const four = ['x', 'y', 'z', 'w'].map((e, j) => `${name}${i}_${4 * v + j} = x.${e};`).join(' ')
      return `{ let x = bitcast<vec4f>(${from}[${at}]); ${four} }`
    }),
  )
}

/**
 * Writes a thread's weights as float16, in rows of `row` vectors of eight, from the `behind`-th on. A thread has four neighbours of eight, so that it
 * trades with the next thread: of two fours that both have, each stores one eight.
 */
export function putHalves(tile: Tile, name: string, to: string, row: number, behind = 0): string {
  const { rm, kn, tx } = tile
  const four = (i: number, v: number): string =>
    packed(`vec4f(${[0, 1, 2, 3].map((j) => `${name}${i}_${4 * v + j}`).join(', ')})`)
  const pairs =
    kn === 8
      ? Array.from(
          { length: rm },
          (_, i) =>
            [
              { i, v: 0 },
              { i, v: 1 },
            ] as const,
        )
      : Array.from(
          { length: rm / 2 },
          (_, n) =>
            [
              { i: 2 * n, v: 0 },
              { i: 2 * n + 1, v: 0 },
            ] as const,
        )
  const place = ({ i, v }: { i: number; v: number }): string =>
    `(ty * ${rm}u + ${i}u) * ${row}u + tx / 2u + ${(tx / 2) * v + behind}u`
  return `{ let odd = (tx & 1u) == 1u;
${pairs
  .map(
    ([a, b]) => `{ let a = ${four(a.i, a.v)}; let b = ${four(b.i, b.v)};
let other = subgroupShuffleXor(select(b, a, odd), 1u);
${to}[select(${place(a)}, ${place(b)}, odd)] = select(vec4u(a, other), vec4u(other, b), odd); }`,
  )
  .join('\n')}
}`
}

export const zeroMatrices = (name: string, width: number): string =>
  each(width / 16, (n) => `var ${name}${n} = Sum();`)

/** Adds the products of weights in rows of `from`, from the `behind`-th vector on, with a block of `tb` to `name0` …. */
export function addProducts(
  tile: Tile,
  name: string,
  from: string,
  behind: number,
  at: number,
  width: number,
): string {
  const row = rowOf(width)
  const fromRow = scoreRow(tile)
  return each(
    colsOf(tile) / 16,
    (
      k,
    ) => `{ let w = subgroupMatrixLoad<Left, row_major>(&${from}, sr * ${fromRow}u + ${2 * k + behind}u, ${fromRow}u);
${each(
  width / 16,
  (n) =>
    `${name}${n} = subgroupMatrixMultiplyAccumulate(w, subgroupMatrixLoad<Right, row_major>(&tb, ${at + 16 * k * row + 2 * n}u, ${row}u), ${name}${n});`,
)} }`,
  )
}

/** Vectors of four of a thread's part of a row of `width` columns. */
export const vectorsOfRow = ({ tx }: Tile, width: number): number => Math.ceil(width / (4 * tx))

/** Declares a thread's part of a result: `name{i}_{c}`, vectors of four, c-th of its row. */
export const zeroVectors = (tile: Tile, name: string, width: number): string =>
  each(tile.rm, (i) => each(vectorsOfRow(tile, width), (c) => `var ${name}${i}_${c} = vec4f();`))

/**
 * Moves matrices through `ts`, as many columns at a time as a block of scores has: `each(part)` is what threads do with
 * the vectors from the `part`-th on. All threads have to be there, and nobody still uses `ts`.
 */
function throughMemory(
  tile: Tile,
  name: string,
  width: number,
  visit: (vector: number, at: (i: number) => string) => string,
  back: boolean,
): string {
  const cols = colsOf(tile)
  const row = scoreRow(tile)
  const own = tile.kn / 4
  const parts = Math.ceil(width / cols)
  return each(parts, (part) => {
    const count = Math.min(cols, width - part * cols) / 16
    const matrix = (n: number): string => `${name}${(part * cols) / 16 + n}`
    return `${each(count, (n) => `subgroupMatrixStore<row_major>(&ts, sr * ${row}u + ${4 * n}u, ${matrix(n)}, ${row}u);`)}
workgroupBarrier();
${each(own, (v) =>
  part * own + v < vectorsOfRow(tile, width)
    ? visit(part * own + v, (i) => `(ty * ${tile.rm}u + ${i}u) * ${row}u + tx + ${tile.tx * v}u`)
    : '',
)}
workgroupBarrier();
${back ? `${each(count, (n) => `${matrix(n)} = subgroupMatrixLoad<Sum, row_major>(&ts, sr * ${row}u + ${4 * n}u, ${row}u);`)}\nworkgroupBarrier();` : ''}`
  })
}

/** Multiplies each row of the matrices `name0` … by the row's `factor`. */
export const scaleRows = (tile: Tile, name: string, width: number, factor: (i: number) => string): string =>
  throughMemory(
    tile,
    name,
    width,
    (_, at) =>
      each(
        tile.rm,
        (i) => `{ let at = ${at(i)};
ts[at] = bitcast<vec4u>(bitcast<vec4f>(ts[at]) * ${factor(i)}); }`,
      ),
    true,
  )

/** Hands the matrices `name0` … to the vectors `to{i}_{c}`. */
export const takeMatrices = (tile: Tile, name: string, width: number, to: string): string =>
  throughMemory(
    tile,
    name,
    width,
    (c, at) => each(tile.rm, (i) => `${to}${i}_${c} = bitcast<vec4f>(ts[${at(i)}]);`),
    false,
  )

/**
 * Adds what weights of float16 in `ts` make of a block of `tb` to a thread's vectors, one column after another, leaving out
 * what has weight 0: what is hidden may be NaN or infinite. See `attention/careful.ts`.
 */
export function carefulProducts(
  tile: Tile,
  name: string,
  from: string,
  fromRow: number,
  at: number,
  width: number,
  count: string,
): string {
  const { rm, tx } = tile
  const own = vectorsOfRow(tile, width)
  const vector = (c: number): string => {
    const place = `tb[k * ${rowOf(width)}u + min(tx / 2u + ${(tx / 2) * c}u, ${width / 8 - 1}u) + ${at}u]`
    return `let y${c} = ${place}; let b${c} = ${unpacked(`select(y${c}.xy, y${c}.zw, (tx & 1u) == 1u)`)};`
  }
  return `{ let last = u32(min(${colsOf(tile)}, ${count}));
for (var k = 0u; k < last; k++) {
${each(own, vector)}
${each(
  rm,
  (
    i,
  ) => `{ let e = ${from}[(ty * ${rm}u + ${i}u) * ${fromRow}u + k / 8u]; let w = ${unpacked('select(e.xy, e.zw, (k & 4u) != 0u)')}[k & 3u];
if (!(w == 0.0)) { ${each(own, (c) => `${name}${i}_${c} = fma(vec4f(w), b${c}, ${name}${i}_${c});`)} } }`,
)}
}
}`
}

/** Writes a thread's rows of a result, four float16 at a time. */
export function storeHalves(
  tile: Tile,
  {
    to,
    name = to,
    width,
    columns,
    head,
    first,
    limit,
    value,
  }: {
    readonly to: string
    readonly name?: string
    readonly width: number
    readonly columns: string
    readonly head: string
    readonly first: string
    readonly limit: string
    readonly value: (i: number, c: number) => string
  },
): string {
  const { rm, tx } = tile
  return each(
    rm,
    (i) => `{ let row = ${first} + i32(ty) * ${rm} + ${i};
if (row < ${limit}) { let at = p.${name}At + b * p.${name}Batch + ${head} * p.${name}Head + row * p.${name}Row + i32(tx);
${each(vectorsOfRow(tile, width), (c) => `if (i32(tx * 4u) + ${4 * tx * c} < ${columns}) { ${to}[u32(at + ${tx * c})] = ${packed(value(i, c))}; }`)}
} }`,
  )
}

/** The code that gives a thread its place among the subgroup's rows. */
export const strip = 'let sr = li / 32u * 16u;'
