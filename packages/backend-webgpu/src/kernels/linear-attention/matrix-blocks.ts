/**
 * What the kernels of linear attention on subgroup matrices have in common: blocks of operands of float16 on their way to
 * workgroup memory. float16 ends at 65,504 and sums do not: what is not exact in it (features, what is divided by n, scores,
 * states) is multiplied by a power of two first, chosen from the largest finite number of its row or block, so that this lies in
 * [2¹⁴, 2¹⁵). The float32 results are multiplied by the inverse. What is infinite or NaN stays so, and scales nothing else.
 */

import type { FeatureMap } from '@tilegrad/core'
import { each } from '../attention/blocks.ts'
import { features, type Kind, productOf, type Reach, type Result } from './blocks.ts'

/** Rows of a block of x, and of k and v: what a workgroup has at a time. A multiple of 32 that divides every chunk. */
export const matrixRows = 64

/** All that the code of a kernel on matrices depends on. */
export interface MatrixForm {
  readonly kind: Kind
  readonly result: Result
  readonly feature: FeatureMap
  readonly reach: Reach
  readonly local: boolean
  readonly blockI: 32 | 64
  readonly blockO: 32 | 64
  /** All columns of x and k, a power of two. */
  readonly inner: 32 | 64 | 128
}

export const matrixFormName = (form: MatrixForm): string => Object.values(form).join(':')

export const matrixAliases = `alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;`

export const matrixFunctions = `fn front(w: vec4u) -> vec4f { return vec4f(unpack2x16float(w.x), unpack2x16float(w.y)); }
fn back(w: vec4u) -> vec4f { return vec4f(unpack2x16float(w.z), unpack2x16float(w.w)); }
fn two(x: vec2f) -> u32 {
return bitcast<u32>(vec2<f16>(x));
}
fn eight(a: vec4f, b: vec4f) -> vec4u { return vec4u(two(a.xy), two(a.zw), two(b.xy), two(b.zw)); }
fn top(a: vec4f, b: vec4f) -> u32 {
let x = bitcast<vec4u>(a) & vec4u(0x7fffffffu); let y = bitcast<vec4u>(b) & vec4u(0x7fffffffu);
let m = max(select(vec4u(), x, x < vec4u(0x7f800000u)), select(vec4u(), y, y < vec4u(0x7f800000u)));
return max(max(m.x, m.y), max(m.z, m.w));
}
fn up(m: u32) -> f32 { return bitcast<f32>((268u - clamp(m >> 23u, 15u, 254u)) << 23u); }
fn down(m: u32) -> f32 { return bitcast<f32>((clamp(m >> 23u, 15u, 254u) - 14u) << 23u); }
fn rest(x: vec4f, h: vec4f) -> vec4f {
return select(vec4f(), x - h, (bitcast<vec4u>(h) & vec4u(0x7fffffffu)) < vec4u(0x7f800000u));
}`

/** Vectors of eight from one row of operands to the next, and vectors of four of sums: one more than there are. */
export const halfRow = (width: number): number => width / 8 + 1
export const sumRow = (width: number): number => width / 4 + 1

const steps = (lanes: number): number[] => [1, 2, 4, 8, 16].filter((step) => step < lanes)
/** Makes a maximum, or a sum, of so many neighbouring threads' numbers. */
export const largestOf = (name: string, lanes: number): string =>
  steps(lanes)
    .map((step) => `${name} = max(${name}, subgroupShuffleXor(${name}, ${step}u));`)
    .join('\n')
export const sumOf = (name: string, lanes: number): string =>
  steps(lanes)
    .map((step) => `${name} += bitcast<f32>(subgroupShuffleXor(bitcast<u32>(${name}), ${step}u));`)
    .join('\n')

/** Turns each thread's `m` into the workgroup's maximum, with a barrier. */
export const largestOfAll = (threads: number): string => `${largestOf('m', 32)}
if (li % 32u == 0u) { tops[li / 32u] = m; }
workgroupBarrier();
${each(threads / 32, (i) => `m = max(m, tops[${i}]);`)}`

/** A block of an operand, eight numbers at a time, which are words until they are values. */
export interface Operand {
  readonly passes: number
  /** Vectors of a row. */
  readonly across: number
  readonly declare: string
  readonly read: (first: string) => string
  readonly row: (i: number) => string
  readonly inside: (i: number, first: string) => string
  /** Declares `{name}a{i}` and `{name}b{i}`, the values of pass i; zeros outside. */
  readonly values: (i: number, first: string, times?: string) => string
  /** The words of pass i as they are; zeros outside. For what is exact. */
  readonly words: (i: number, first: string) => string
}

/** What is taken of an operand is a number of float16. */
export const isExact = (form: MatrixForm, name: 'x' | 'k' | 'v'): boolean =>
  productOf(form)[name] !== 'phi' || form.feature === 'relu' || form.feature === 'identity'

export function operandOf(
  form: MatrixForm,
  name: 'x' | 'k' | 'v',
  width: number,
  threads: number,
  column: string,
): Operand {
  const across = width / 8
  const apart = threads / across
  const passes = matrixRows / apart
  const [limit, columns] = [name === 'x' ? 'p.rows' : 'p.keys', name === 'v' ? 'p.outer' : 'p.inner']
  const phi = productOf(form)[name] === 'phi' ? features[form.feature][0] : 'x'
  const row = (i: number): string => `(${name}r + ${i * apart})`
  const inside = (i: number, first: string): string =>
    `(${first} + ${row(i)} < ${limit} && 8 * ${name}c < ${columns})`
  const taken = (part: string, of: string): string => `${name}phi(${part}(${of}))`
  return {
    passes,
    across,
    declare: `let ${name}c = ${column} + i32(li % ${across}u); let ${name}l = i32(li % ${across}u); let ${name}r = i32(li / ${across}u);
${each(passes, (i) => `var ${name}w${i}: vec4u;`)}`,
    read: (first) =>
      each(
        passes,
        (i) =>
          `${name}w${i} = ${name}[u32(${name}Base + min(${first} + ${row(i)}, ${limit} - 1) * p.${name}Row + min(${name}c, ${columns} / 8 - 1))];`,
      ),
    row,
    inside,
    values: (i, first, times = '') =>
      `let ${name}a${i} = select(vec4f(), ${taken('front', `${name}w${i}`)}${times}, ${inside(i, first)});
let ${name}b${i} = select(vec4f(), ${taken('back', `${name}w${i}`)}${times}, ${inside(i, first)});`,
    words: (i, first) =>
      `select(vec4u(), ${phi === 'x' ? `${name}w${i}` : `eight(${taken('front', `${name}w${i}`)}, ${taken('back', `${name}w${i}`)})`}, ${inside(i, first)})`,
  }
}

/** `fn {name}phi`: what is taken of four numbers of an operand. */
export const takeFunction = (form: MatrixForm, name: 'x' | 'k' | 'v'): string =>
  `fn ${name}phi(x: vec4f) -> vec4f { return ${productOf(form)[name] === 'phi' ? features[form.feature][0] : 'x'}; }`

/** c{n} += left · what lies in `s`. */
export const multiplyInto = (acc: string, left: string, right: string): string =>
  `${acc} = subgroupMatrixMultiplyAccumulate(${left}, ${right}, ${acc});`
export const rightRows = (at: string, row: number): string =>
  `subgroupMatrixLoad<Right, row_major>(&s, ${at}, ${row})`
export const storeSums = (acc: string, count: number, row: number): string =>
  each(count, (n) => `subgroupMatrixStore<row_major>(&s, sub * ${16 * row} + ${4 * n}, ${acc}${n}, ${row});`)
