/**
 * What the kernels of linear attention have in common: operands, and products of blocks in registers.
 *
 * A workgroup is 8 × 8 threads. A thread keeps tm rows × tn columns of a block (multiples of 4): groups of four rows
 * 32 apart, groups of four columns 32 apart. Operands of a product come through workgroup memory in stages of 16
 * steps of its inner dim, with the dim of the result innermost, so that every read is a vector of four: what lies the
 * other way is transposed in registers, 4 × 4 elements at a time. Rows written that way are one vector longer, so
 * that the writes of neighbouring threads fall into different banks.
 *
 * Loops have their bounds from parameters: with constants a driver unrolls them whole, and compiles for minutes.
 */

import type { FeatureMap } from '@tilegrad/core'
import type { Binding } from '../../wgsl/shader.ts'
import { each } from '../attention/blocks.ts'

/** φ and φ′ of a vector x. NaN stays NaN. */
export const features = {
  elu: ['select(exp(x), x + 1.0, x > vec4f())', 'select(exp(x), vec4f(1.0), x > vec4f())'],
  relu: ['select(x, vec4f(), x <= vec4f())', 'select(vec4f(1.0), vec4f(), x <= vec4f())'],
  exp: ['exp(x)', 'exp(x)'],
  identity: ['x', 'vec4f(1.0)'],
} satisfies Record<FeatureMap, readonly [phi: string, slope: string]>

/** What is computed: the output, or the gradient of q, k or v. */
export type Result = 'out' | 'q' | 'k' | 'v'
/** Which rows j of k and v a row i of x sees: j ≤ i, j ≥ i, or all. */
export type Reach = 'past' | 'future' | 'all'
/** The kind of sums: divided by a normaliser; without one; or without one, and fading by a decay per row. */
export type Kind = 'mean' | 'plain' | 'faded'
/** The way an operand's numbers are taken: φ or φ′ of them, times 1 / n of their row, faded, or as they are. */
type Take = 'phi' | 'slope' | 'scaled' | 'faded' | 'plain'

interface Product {
  readonly x: Take
  readonly k: Take
  readonly v: Take
  /** A column of ones in v, whose sum divides the others; a further column in x and k (x's, or k's, is −δ / n); none. */
  readonly extra: 'norm' | 'x' | 'k' | 'none'
}

const means: Readonly<Record<Result, Product>> = {
  out: { x: 'phi', k: 'phi', v: 'plain', extra: 'norm' },
  q: { x: 'scaled', k: 'plain', v: 'phi', extra: 'x' },
  k: { x: 'plain', k: 'scaled', v: 'phi', extra: 'k' },
  v: { x: 'phi', k: 'phi', v: 'scaled', extra: 'none' },
}
const plain: Product = { x: 'plain', k: 'plain', v: 'plain', extra: 'none' }
export const productOf = ({ kind, result }: Pick<Form, 'kind' | 'result'>): Product =>
  kind === 'mean' ? means[result] : plain

/** All that the code of a kernel depends on. */
export interface Form {
  readonly kind: Kind
  readonly result: Result
  readonly feature: FeatureMap
  readonly reach: Reach
  /** Whether there are states of chunks, besides those of segments. */
  readonly local: boolean
  /** All operands can be read as vectors of four. */
  readonly vectors: boolean
  /** Rows and columns of a block of a state. */
  readonly blockI: 32 | 64
  readonly blockO: 32 | 64
  readonly tile: Tile
}

/** Rows of x per thread, and columns of its scores per thread; no more of these. */
export interface Tile {
  readonly tm: 4 | 8
  readonly tc: 4 | 8
  /** Steps of a product that are written out. */
  readonly unroll: 1 | 4
}

export const formName = ({
  kind,
  result,
  feature,
  reach,
  local,
  vectors,
  blockI,
  blockO,
  tile,
}: Form): string =>
  `${kind}:${result}:${feature}:${reach}:${local}:${vectors}:${blockI}:${blockO}:${tile.tm}x${tile.tc}:${tile.unroll}`

export const side = 8
export const threads = side * side
/** Steps of the inner dim per stage. */
export const depth = 16

export const place = `let tx = li % ${side}u; let ty = li / ${side}u;`
/** Row i of a thread in its block; `h`-th vector of its columns in a row. */
export const rowOf = (i: number): string => `${(i >> 2) * 4 * side + (i & 3)}u + ty * 4u`
export const vectorOf = (h: number): string => `${h * side}u + tx`

/** δ and 1 / n are needed. */
export const needsStat = ({ kind, result }: Pick<Form, 'kind' | 'result'>): boolean =>
  kind === 'mean' && result !== 'out'

/** The binding that `fadesShader` fills, for kernels that read it. */
export const fadeBindings = ({ kind }: Form): Binding[] =>
  kind === 'faded' ? [{ name: 'fade', item: 'vec4<f32>' }] : []

export const basis = (name: string): string => `p.${name}At + b * p.${name}Batch + h * p.${name}Head`

/**
 * `fn get_name(base, row, column) -> vec4f`: four numbers of an operand, zeros beyond its last row and column.
 * `lines`: how many rows come before this head's in `stat`.
 */
export function getter(
  name: string,
  take: Take,
  { feature, vectors, reach }: Form,
  rows: string,
  width: string,
): string {
  const row = `min(row, ${rows} - 1)`
  const part = (e: number): string => `${name}[u32(at + min(column + ${e}, ${width} - 1) * p.${name}Step)]`
  const value = vectors
    ? `${name}[u32(at + min(column, ${width} - 4) / 4)]`
    : `vec4f(${[0, 1, 2, 3].map(part).join(', ')})`
  const inside = vectors
    ? `row < ${rows} && column < ${width}`
    : `vec4<bool>(row < ${rows}) & (vec4i(column) + vec4i(0, 1, 2, 3) < vec4i(${width}))`
  const taken = {
    plain: 'x',
    scaled: `x * stat[u32(lines + ${row}) * 2u]`,
    faded: `x * fade[u32(lines + ${row})].${reach === 'past' ? 'y' : 'x'}`,
    phi: features[feature][0],
    slope: features[feature][1],
  }[take]
  return `fn get_${name}(lines: i32, base: i32, row: i32, column: i32) -> vec4f {
let at = base + ${row} * p.${name}Row;
let x = ${value};
return select(vec4f(), ${taken}, ${inside});
}`
}

/**
 * Fills `depth` rows of `width4` vectors each in workgroup memory from `to` on; `value` is the vector of row `r` and
 * place `c` in it (both u32).
 */
export function stageRows(to: string, width4: number, value: string): string {
  const passes = (depth * width4) / threads
  return `{\n${each(
    passes,
    (i) => `let x${i} = li + ${i * threads}u;
let v${i} = ${value.replaceAll('$r', `(x${i} / ${width4}u)`).replaceAll('$c', `(x${i} % ${width4}u)`)};`,
  )}
${each(passes, (i) => `s[${to} + x${i}] = v${i};`)}\n}`
}

/** Fills `depth` rows of `rows` numbers (and a vector to spare) with columns from `column` on of as many of its rows. */
export function stageColumns(
  to: string,
  rows: number,
  name: string,
  first: string,
  column: string,
  lines: string,
): string {
  const row4 = rows / 4 + 1
  const parts = (c: number): string => [0, 1, 2, 3].map((j) => `g${j}[${c}]`).join(', ')
  const code = `let o = (li % 4u + 4u * (li / ${depth}u)) * 4u; let kk = ((li / 4u) % 4u) * 4u;
${each(4, (j) => `let g${j} = get_${name}(${lines}, ${name}Base, ${first} + i32(o) + ${j}, ${column} + i32(kk));`)}
let at = ${to} + kk * ${row4}u + o / 4u;
${each(4, (c) => `s[at + ${c * row4}u] = vec4f(${parts(c)});`)}`
  return (rows / 4) * (depth / 4) < threads ? `if (li < ${rows}u) {\n${code}\n}` : `{\n${code}\n}`
}

export const zero = (name: string, tm: number, tn: number): string =>
  each(tm, (i) => each(tn / 4, (h) => `var ${name}${i}_${h} = vec4f();`))

/** name[i][h] += a[k][rows] · b[k][columns] over one stage; a's and b's rows have `rowA` and `rowB` vectors. */
export function multiply(
  name: string,
  tm: number,
  tn: number,
  [a, rowA]: readonly [string, number],
  [b, rowB]: readonly [string, number],
  unroll: number,
): string {
  const step = (k: number): string => `{
${each(tm / 4, (g) => `let a${g} = s[a + ${k * rowA + g * side}u];`)}
${each(tn / 4, (h) => `let b${h} = s[b + ${k * rowB + h * side}u];`)}
${each(tm, (i) => each(tn / 4, (h) => `${name}${i}_${h} = fma(vec4f(a${i >> 2}.${'xyzw'[i & 3]}), b${h}, ${name}${i}_${h});`))}
}`
  return `{
var a = ${a} + ty; var b = ${b} + tx;
for (var k = 0u; k < p.depth; k += ${unroll}u) {
${each(unroll, step)}
a += ${unroll * rowA}u; b += ${unroll * rowB}u;
}
}`
}
