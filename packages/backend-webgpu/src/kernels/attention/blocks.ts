/**
 * What the kernels of fused attention have in common: tiles in workgroup memory, the two kinds of product, masks.
 *
 * A workgroup of ty × tx threads holds a block of ty·rm rows (queries, or keys for dK and dV) against blocks of
 * tx·kn columns that stream by. Each thread keeps an rm × kn tile of scores and rm rows × a tx-th of the output in
 * registers. Both products take four steps of their inner dim at once, so that all of workgroup memory is vectors of
 * four:
 *
 * - scores: S[row][col] += A[row][4c …] · B[col][4c …], operands row-major as they come,
 * - sums: O[row][…] += W[row][4k …] · B[4k …][…], with W the weights that threads exchange.
 *
 * A vector's place in its row is XORed with the row's thread, so that the eight threads that read eight rows at once
 * hit eight different banks.
 */

import type { AttentionAttrs, TypedProgram, View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { f32, group, i32, several, u32 } from '../../wgsl/block.ts'

/**
 * How a workgroup shares a block of scores: ty × tx threads with rm rows and kn columns each, 4 or, where tx is a multiple of
 * 8, a multiple of 4.
 */
export interface Tile {
  readonly ty: number
  readonly rm: number
  readonly tx: number
  readonly kn: number
  /** The operands that are read where they lie, if in vectors of four, through the cache instead of workgroup memory. */
  readonly inPlace?: 'rows' | 'rows and values'
  /**
   * Whether, in the kernel of dK and dV, queries and then dO take the same place in workgroup memory, weights are
   * exchanged in halves, and queries are read once more where they lie. It is for heads up to 64 wide, whose sums leave
   * registers for it.
   */
  readonly inTurn?: boolean
}

export const rowsOf = ({ ty, rm }: Tile): number => ty * rm
export const colsOf = ({ tx, kn }: Tile): number => tx * kn
export const threadsOf = ({ ty, tx }: Tile): number => ty * tx
export const tileName = ({ ty, rm, tx, kn, inTurn }: Tile): string =>
  `${ty}x${rm},${tx}x${kn}${inTurn ? 't' : ''}`

export type MaskKind = 'none' | 'bool' | 'float32'

/** All that the code of a kernel depends on. */
export interface Form {
  readonly tile: Tile
  /** Head sizes of q and k, and of v, padded to a multiple of 32. */
  readonly dq: number
  readonly dv: number
  /** All operands and results consist of rows of vectors of four. */
  readonly vectors: boolean
  readonly mask: MaskKind
  /** Blocks of rows are read in place. */
  readonly rowsInPlace: boolean
  /** Blocks of values are read in place in the forward pass. */
  readonly valuesInPlace: boolean
  /** Loops over values end where values do, so that their places need no check. */
  readonly exact: boolean
  /** Threads of a row exchange numbers by shuffles instead of workgroup memory. */
  readonly shuffle: boolean
  /** A window with exceptions. */
  readonly globals: boolean
  /** Lists of blocks; rows and columns of tiles divide them. */
  readonly blocks: boolean
  readonly alibi: boolean
  /** The kernel of dK and dV stores dS: see attention/stored.ts. */
  readonly stored: boolean
  /** The result by whose binding each result is written: a buffer in which several lie can be bound only once. */
  readonly sharing: readonly number[]
  /** The expression of dropout's factors. */
  readonly dropout: TypedProgram | null
}

/** Forms of the same name have the same code. */
export const formName = ({ tile, dropout, ...rest }: Form): string =>
  `${tileName(tile)}:${Object.values(rest).join()}:${dropout?.id}`

export const padded = (width: number): number => Math.ceil(width / 32) * 32

/** Lines for 0 … n − 1. */
export const each = (n: number, line: (i: number) => string): string =>
  Array.from({ length: n }, (_, i) => line(i)).join('\n')

/** Column j of a thread, less tx · 4: four neighbours, then four beyond those of all other threads. */
export const column = ({ tx }: Tile, j: number): number => (j >> 2) * 4 * tx + (j & 3)

/** Parameters of an operand: where it begins, then its strides; in vectors of four if `vectors`. */
export const operand = (vectors: boolean) => operandIn(vectors ? 4 : 1)

/** Parameters of an operand in vectors of so many elements. */
export const operandIn = (unit: 1 | 4 | 8) =>
  several(
    (name) => ['At', 'Batch', 'Head', 'Row', 'Step'].map((part) => `${name}${part}: i32`),
    ({ offset, strides }: View) => {
      const [b, h, row, step = 0] = strides
      return [offset / unit, b / unit, h / unit, row / unit, step]
    },
  )

/** A view whose rows can be read and written as vectors of four. */
export const isVectors = ({ shape, strides, offset }: View): boolean =>
  strides[3] === 1 &&
  shape[3] % 4 === 0 &&
  [offset, ...strides.slice(0, 3)].every((n, i) => n % 4 === 0 || (i > 0 && shape[i - 1] === 1))

export const far = 2 ** 30

/** Parameters that all kernels have. Key j is visible to query i where low < j − i ≤ high. */
export const commonParams = group({
  ...{ count: u32, blocks: u32, together: u32, heads: u32, group: u32 },
  ...{ queries: i32, keys: i32, width: i32, valueWidth: i32, high: i32, low: i32 },
  ...{ ninf: f32, scale: f32, zero: f32 },
})

/** The key that query 0 is level with. */
export const offsetOf = (q: View, k: View, { causal }: Pick<AttentionAttrs, 'causal'>): number =>
  causal === 'bottom-right' ? k.shape[2] - q.shape[2] : 0

/**
 * Declares `head`, one of `count / blocks`, and `turn`, a workgroup's place among its blocks. So many heads go together, the
 * first block of each, then the second …: where the first take longest, the last to finish are short ones.
 */
export const turns = `let perGroup = p.together * p.blocks;
let firstTogether = index / perGroup * p.together;
let others = min(p.together, p.count / p.blocks - firstTogether);
let turn = index % perGroup / others;
var head = firstTogether + index % perGroup % others;`

/** Bytes of operands that mostly stay in a large GPU's cache. */
const cached = 2 ** 26

/** The number of heads that go together where causality makes blocks unequal: their operands should stay in the cache. */
function together([q, k, v]: readonly View[], { causal, window }: AttentionAttrs): number {
  if (causal === 'none' || window > 0) return 1
  const [t, d] = q.shape.slice(2)
  const [s, dv] = [k.shape[2], v.shape[3]]
  return Math.max(1, Math.floor(cached / (4 * Math.max(s, t) * (d + dv))))
}

/** Values of `commonParams` for `items` heads of `blocks` blocks. */
export function commonOf(operands: readonly View[], attrs: AttentionAttrs, items: number, blocks: number) {
  const { causal, window, scale } = attrs
  const [q, k, v] = operands
  const [, h, t, d] = q.shape
  const [, hk, s] = k.shape
  const offset = offsetOf(q, k, attrs)
  return {
    ...{ count: items * blocks, blocks, together: together(operands, attrs), heads: h, group: h / hk },
    ...{ queries: t, keys: s, width: d, valueWidth: v.shape[3] },
    high: causal === 'none' ? far : offset,
    low: window > 0 ? offset - Math.min(window, far) : -far,
    ...{ ninf: -Infinity, scale, zero: 0 },
  }
}

/** e^x of what is left of a score when its row's maximum is taken off. */
export const power = (x: string): string => `exp2((${x}) * 1.4426950408889634)`

interface Load {
  /** The tile, and how many of its vectors a row has. */
  readonly to: string
  readonly width4: number
  readonly rows: number
  readonly threads: number
  /** Binding and name in the parameters. */
  readonly from: string
  /** Expressions: element where row 0 begins, first row, number of rows there are, columns there are. */
  readonly base: string
  readonly first: string
  readonly limit: string
  readonly width: string
  readonly vectors: boolean
  /** The code of the number that a vector's place is XORed with. */
  readonly swizzle?: (row: string) => string
}

/** Copies rows to a tile; zeros beyond the last row and column. At least one row must exist. */
export function load(l: Load): string {
  const { to, width4, rows, threads, from, base, first, limit, width, vectors, swizzle } = l
  const count = rows * width4
  const passes = Math.ceil(count / threads)
  const value = (i: number): string => {
    const at = `${base} + min(${first} + i32(r${i}), ${limit} - 1) * p.${from}Row`
    if (vectors) return `${from}[u32(${at} + min(i32(c${i}), ${width} / 4 - 1))]`
    const part = (j: number): string =>
      `${from}[u32(${at} + min(i32(c${i} * 4u) + ${j}, ${width} - 1) * p.${from}Step)]`
    return `vec4f(${[0, 1, 2, 3].map(part).join(', ')})`
  }
  const keep = (i: number): string => {
    const row = `${first} + i32(r${i}) < ${limit}`
    if (vectors) return `select(vec4f(), v${i}, ${row} && i32(c${i} * 4u) < ${width})`
    return `select(vec4f(), v${i}, vec4<bool>(${row}) & (vec4i(i32(c${i} * 4u)) + vec4i(0, 1, 2, 3) < vec4i(${width})))`
  }
  // All reads first, so that they are under way together.
  const reads = each(
    passes,
    (i) => `let x${i} = li + ${i * threads}u; let r${i} = x${i} / ${width4}u; let c${i} = x${i} % ${width4}u;
let v${i} = ${value(i)};`,
  )
  const writes = each(passes, (i) => {
    const c = swizzle ? `(c${i} ^ ${swizzle(`r${i}`)})` : `c${i}`
    const store = `${to}[r${i} * ${width4}u + ${c}] = ${keep(i)};`
    return (i + 1) * threads > count ? `if (x${i} < ${count}u) { ${store} }` : store
  })
  return `{\n${reads}\n${writes}\n}`
}

/** The swizzle of tiles of rows; threads find their own rows with `sa`. */
export const rowSwizzle =
  ({ rm }: Tile) =>
  (row: string): string =>
    `((${row} / ${rm}u) & 7u)`
/** The swizzle of tiles of columns; threads find their own columns with `sb`. */
export const columnSwizzle = (row: string): string => `((${row} >> 2u) & 7u)`

/** The code that gives a thread its place, in a `main` with `li`. */
export const place = ({ tx }: Tile): string => `let tx = li % ${tx}u; let ty = li / ${tx}u;
let sa = ty & 7u; let sb = tx & 7u;`

export const zeroScores = ({ rm, kn }: Tile, name: string): string =>
  each(rm, (i) => each(kn, (j) => `var ${name}${i}_${j} = 0.0;`))

/** `{name}Row{i}`: where a thread's rows begin in memory, in vectors of four; for `inPlace`. */
export const rowsInMemory = (
  { rm }: Tile,
  name: string,
  base: string,
  first: string,
  limit: string,
): string =>
  each(
    rm,
    (i) =>
      `let ${name}Row${i} = u32(${base} + min(${first} + i32(ty) * ${rm} + ${i}, ${limit} - 1) * p.${name}Row);`,
  )

/**
 * name[i][j] += A[row i] · B[column j]. The loop's end is a number that the compiler does not know, so that it does not
 * unroll further. `inPlace`: A is what `rowsInMemory` prepared.
 */
export function scores(
  tile: Tile,
  name: string,
  a: string,
  b: string,
  width4: number,
  width: string,
  inPlace = false,
): string {
  const { rm, kn } = tile
  // Into registers of one set, of which each is loaded while the other is multiplied.
  const load = (set: string, c: string): string => `{
let ia = ${inPlace ? c : `ty * ${rm * width4}u + (${c} ^ sa)`}; let ib = tx * ${4 * width4}u + (${c} ^ sb);
${each(rm, (i) => `a${set}${i} = ${a}[${inPlace ? `${a}Row${i} + ia` : `ia + ${i * width4}u`}];`)}
${each(kn, (j) => `b${set}${j} = ${b}[ib + ${column(tile, j) * width4}u];`)}
}`
  const declare = (set: string): string =>
    `${each(rm, (i) => `var a${set}${i}: vec4f;`)}\n${each(kn, (j) => `var b${set}${j}: vec4f;`)}`
  const multiply = (set: string): string =>
    each(kn, (j) =>
      ['x', 'y', 'z', 'w']
        .map((e) =>
          each(rm, (i) => `${name}${i}_${j} = fma(a${set}${i}.${e}, b${set}${j}.${e}, ${name}${i}_${j});`),
        )
        .join('\n'),
    )
  return `{ let end = u32(${width} + 7) / 8u * 2u;
${declare('p')}
${declare('q')}
${load('p', '0u')}
for (var c = 0u; c < end; c += 2u) {
${load('q', '(c + 1u)')}
${multiply('p')}
${load('p', 'min(c + 2u, end - 1u)')}
${multiply('q')}
}
}`
}

/** Place in a tile of weights of vector `v` of row `ty · rm`, whose rows have `cols` numbers. */
export const weightAt = ({ rm }: Tile, cols: number, v: string): string =>
  `ty * ${(rm * cols) / 4}u + (${v} ^ (sa & ${Math.min(8, cols / 4) - 1}u))`

/** One of `of` equal parts of a block's columns. */
export interface Part {
  readonly index: number
  readonly of: number
}
const whole: Part = { index: 0, of: 1 }

/** Writes a thread's weights, or a part of them, where others find them. */
export function putWeights(tile: Tile, name: string, to: string, { index, of } = whole): string {
  const { rm, kn, tx } = tile
  const cols = colsOf(tile) / of
  const own = kn / of
  return each(own / 4, (v) => {
    const parts = (i: number): string =>
      [0, 1, 2, 3].map((e) => `${name}${i}_${index * own + 4 * v + e}`).join(', ')
    return `{ let at = ${weightAt(tile, cols, `(tx + ${v * tx}u)`)};
${each(rm, (i) => `${to}[at + ${(i * cols) / 4}u] = vec4f(${parts(i)});`)} }`
  })
}

export const zeroSums = ({ rm, tx }: Tile, name: string, width4: number): string =>
  each(rm, (i) => each(width4 / tx, (c) => `var ${name}${i}_${c} = vec4f();`))

/**
 * name[i][…] += W[row i] · B[…]; `swizzled`: B is a tile of columns that is. `count`: columns from here on that count.
 * `row`: B lies in memory, and this is where a vector of a column of the block is. `part`: weights are of these columns.
 */
export function sums(
  tile: Tile,
  name: string,
  w: string,
  b: string,
  width4: number,
  swizzled: boolean,
  count: string,
  row?: (column: string, vector: string) => string,
  { index, of } = whole,
): string {
  const { rm, tx } = tile
  const cols = colsOf(tile) / of
  const first = (index * cols) / 4
  const own = width4 / tx
  const at = (c: number): string => {
    if (!swizzled) return `tx + ${tx * c}u`
    return tx >= 8 ? `(tx ^ ks) + ${tx * c}u` : `((tx + ${tx * c}u) ^ ks)`
  }
  const load = (set: string, k: string): string => `{
let iw = ${weightAt(tile, cols, `(${k})`)}; let at = ${k}${first > 0 ? ` + ${first}u` : ''};
${swizzled ? 'let ks = at & 7u;' : ''}
${each(rm, (i) => `w${set}${i} = ${w}[iw + ${(i * cols) / 4}u];`)}
${each(4, (e) =>
  each(own, (c) => {
    const place = row
      ? row(`at * 4u + ${e}u`, `tx + ${tx * c}u`)
      : `(at * 4u + ${e}u) * ${width4}u + ${at(c)}`
    return `b${set}${e}_${c} = ${b}[${place}];`
  }),
)}
}`
  const declare = (set: string): string =>
    `${each(rm, (i) => `var w${set}${i}: vec4f;`)}\n${each(4, (e) => each(own, (c) => `var b${set}${e}_${c}: vec4f;`))}`
  const multiply = (set: string): string =>
    each(4, (e) =>
      each(own, (c) =>
        each(
          rm,
          (i) => `${name}${i}_${c} = fma(vec4f(w${set}${i}[${e}]), b${set}${e}_${c}, ${name}${i}_${c});`,
        ),
      ),
    )
  return `{ let end = u32(min(${cols}, ${count}) + 7) / 8u * 2u;
${declare('p')}
${declare('q')}
${load('p', '0u')}
for (var k = 0u; k < end; k += 2u) {
${load('q', 'k + 1u')}
${multiply('p')}
${load('p', 'min(k + 2u, end - 1u)')}
${multiply('q')}
}
}`
}

interface Store {
  /** Binding, and name in the parameters. */
  readonly to: string
  readonly name?: string
  /** Vectors of a row of the tile. */
  readonly width4: number
  /** Expressions: columns there are, head of the result, first row, number of rows there are. */
  readonly width: string
  readonly head: string
  readonly first: string
  readonly limit: string
  readonly value: (i: number, c: number) => string
}

/** Writes a thread's rows of a result; in vectors if all rows of it are. */
export function store(
  { tile: { rm, tx }, vectors }: Form,
  { to, name = to, width4, width, head, first, limit, value }: Store,
): string {
  return each(
    rm,
    (i) => `{ let row = ${first} + i32(ty) * ${rm} + ${i};
if (row < ${limit}) { let at = p.${name}At + b * p.${name}Batch + ${head} * p.${name}Head + row * p.${name}Row;
${each(width4 / tx, (c) => {
  const col = `i32(tx * 4u) + ${4 * tx * c}`
  if (vectors) return `if (${col} < ${width}) { ${to}[u32(at + i32(tx) + ${tx * c})] = ${value(i, c)}; }`
  return `{ let x = ${value(i, c)}; for (var e = 0; e < 4; e++) { if (${col} + e < ${width}) { ${to}[u32(at + ${col} + e)] = x[e]; } } }`
})}
} }`,
  )
}

/** Whether groups of `tx` neighbouring threads lie in one subgroup. */
export function canShuffle(engine: Engine, tx: number): boolean {
  const { features, info } = engine.gpu
  return features.has('subgroups') && (info.subgroupMinSize ?? 0) >= tx
}
