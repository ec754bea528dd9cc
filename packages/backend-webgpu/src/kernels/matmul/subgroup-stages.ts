/**
 * How a product of float16 is cut for subgroup matrices, and how steps of k get into workgroup memory: 16 bytes, eight
 * neighbours, at a time, through registers. A stage keeps the order that an operand has in memory: rows of k, or rows of the
 * other dim; matrices are read from either. Rows are padded by 8 elements, so that neither stores nor reads of
 * matrices meet in one bank.
 */

import { aligned, type Matrix, type Problem } from './problem.ts'

/** How a product is cut. All sizes are multiples of 16. */
export interface MatrixTile {
  /** Rows and columns of the output per workgroup, and steps of k staged at a time. */
  readonly bm: number
  readonly bn: number
  readonly bk: number
  /** Rows and columns per subgroup. */
  readonly sm: number
  readonly sn: number
  /**
   * Whether a stage's matrices are read from workgroup memory while those of the one before are multiplied: see `loopAhead`.
   * Takes two stages of workgroup memory, and registers for twice as many matrices.
   */
  readonly ahead?: boolean
}

/**
 * The way a or b is read: along k or along the other dim ('o'), in vectors of eight that begin at multiples of eight
 * (capitals), in vectors that are cut from two of those; or one by one ('e' along k, 'f'), for any strides.
 */
export type MatrixAccess = 'K' | 'O' | 'k' | 'o' | 'e' | 'f'

export const matrixAccessA = ({ a }: Problem): MatrixAccess => access(a, a.row, a.column)
export const matrixAccessB = ({ b }: Problem): MatrixAccess => access(b, b.column, b.row)

function access(x: Matrix, other: number, k: number): MatrixAccess {
  if (k === 1) return aligned(x, other, 8) ? 'K' : 'k'
  if (other === 1) return aligned(x, k, 8) ? 'O' : 'o'
  return Math.abs(k) <= Math.abs(other) ? 'e' : 'f'
}

/** Whether an operand is read in vectors of 16 bytes, and not one by one. */
export const isVectors = (access: MatrixAccess): boolean => 'KOko'.includes(access)
const isShifted = (access: MatrixAccess): boolean => access === 'k' || access === 'o'
export const isAlong = (access: MatrixAccess): boolean => 'Kke'.includes(access)

/** Eight elements from the `s`-th on of sixteen. */
export const shift = `fn shifted(a: vec4<u32>, b: vec4<u32>, s: i32) -> vec4<u32> {
let four = (s & 4) != 0; let two = (s & 2) != 0;
let x = select(a, vec4<u32>(a.zw, b.xy), four); let y = select(b.xy, b.zw, four);
let z = select(x, vec4<u32>(x.yzw, y.x), two); let w = select(y.x, y.y, two);
return select(z, (z >> vec4<u32>(16)) | (vec4<u32>(z.yzw, w) << vec4<u32>(16)), (s & 1) != 0);
}`

/**
 * What the last stage looks like: whole; filled up with zeros by vectors (all ends of k are multiples of eight); or by
 * single elements.
 */
export type MatrixTail = 'none' | 'vectors' | 'elements'

export const subgroupsOf = (t: MatrixTile): number => (t.bm / t.sm) * (t.bn / t.sn)

/** Vectors of 16 bytes: a row with its padding, and a stage of one operand. */
const rowOf = (length: number): number => (length + 8) / 8
const sizeOf = (wide: number, bk: number, access: MatrixAccess): number =>
  isAlong(access) ? wide * rowOf(bk) : bk * rowOf(wide)

/** Vectors in a row of a subgroup's elements on their way out: float32, with padding against bank conflicts. */
export const outRowOf = ({ sn }: MatrixTile): number => (sn + 8) / 4

/** Vectors of 16 bytes of workgroup memory. */
export function vectorsOf(t: MatrixTile, a: MatrixAccess, b: MatrixAccess): number {
  const stage = sizeOf(t.bm, t.bk, a) + sizeOf(t.bn, t.bk, b)
  return Math.max(stage * (t.ahead ? 2 : 1), subgroupsOf(t) * 16 * outRowOf(t))
}

/** Code that brings stages to workgroup memory, and matrices from there. */
export interface MatrixStages {
  /** Declares registers and where a thread's vectors lie. */
  readonly begin: string
  /** Loads the stage of k from `kl` on into a set of registers, and moves on; after the end it does neither. */
  load(set: number): string
  /** Stores it to one of the buffers. */
  store(buffer: number, set: number): string
  /** Reads matrices of step `kk` of a buffer. */
  left(buffer: number, kk: number, i: number): string
  right(buffer: number, kk: number, j: number): string
}

interface Operand {
  readonly x: 0 | 1
  readonly access: MatrixAccess
  readonly size: 'm' | 'n'
  readonly wide: number
  /** The first vector of its stage. */
  readonly start: number
  /** Names of the strides along `size` and k. */
  readonly other: string
  readonly along: string
}

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

export function matrixStages(
  t: MatrixTile,
  threads: number,
  a: MatrixAccess,
  b: MatrixAccess,
  tail: MatrixTail,
): MatrixStages {
  const sizeA = sizeOf(t.bm, t.bk, a)
  const stage = sizeA + sizeOf(t.bn, t.bk, b)
  const operands: readonly Operand[] = [
    { x: 0, access: a, size: 'm', wide: t.bm, start: 0, other: 'p.r0', along: 'p.c0' },
    { x: 1, access: b, size: 'n', wide: t.bn, start: sizeA, other: 'p.c1', along: 'p.r1' },
  ]
  const parts = operands.map((of) => part(t, threads, of, tail))
  const all = (code: (p: Part) => string): string => parts.map(code).join('\n')
  const matrix = (of: Operand, type: string, buffer: number, kk: number, at: string, i: number): string => {
    const row = rowOf(isAlong(of.access) ? t.bk : of.wide)
    const base = buffer * stage + of.start
    const [order, offset] = isAlong(of.access)
      ? [of.x === 0 ? 'row_major' : 'col_major', `${base + i * 16 * row + 2 * kk} + ${at} * ${row}`]
      : [of.x === 0 ? 'col_major' : 'row_major', `${base + kk * 16 * row + 2 * i} + (${at} >> 3u)`]
    return `subgroupMatrixLoad<${type}, ${order}>(&s, ${offset}, ${row})`
  }
  return {
    begin: all((p) => p.begin),
    load(set) {
      const whole = all((p) => p.fetch(set, false))
      const code =
        tail === 'none'
          ? whole
          : `if (kl + ${t.bk} <= kEnd) {\n${whole}\n} else {\n${all((p) => p.fetch(set, true))}\n}`
      // In a branch, or the driver would put off loads until they are stored.
      return `if (kl < kEnd) {\n${code}\nkl += ${t.bk};\n}`
    },
    store: (buffer, set) => all((p) => p.put(buffer * stage, set)),
    left: (buffer, kk, i) => matrix(operands[0], 'Left', buffer, kk, 'sr', i),
    right: (buffer, kk, j) => matrix(operands[1], 'Right', buffer, kk, 'sc', j),
  }
}

interface Part {
  readonly begin: string
  fetch(set: number, checked: boolean): string
  put(base: number, set: number): string
}

/** What one operand takes: a thread has every `threads`-th vector of a stage. */
function part(t: MatrixTile, threads: number, of: Operand, tail: MatrixTail): Part {
  const { x, access, size, wide, start, other, along } = of
  const byK = isAlong(access)
  const [rows, length] = byK ? [wide, t.bk] : [t.bk, wide]
  const each = length / 8
  const units = rows * each
  const rounds = range(Math.ceil(units / threads))
  const vectors = isVectors(access)
  const shifted = isShifted(access)
  const inside = (i: number, code: string): string =>
    (i + 1) * threads <= units ? code : `if (t < ${units - i * threads}) {\n${code}\n}`

  const begin = rounds.flatMap((i) => {
    const e = i === 0 ? 't' : `(t + ${i * threads})`
    // Eight lanes load segments of rows, and store them to rows that do not meet in one bank.
    const segment = each % 8 === 0 ? 8 : each % 4 === 0 ? 4 : 2
    const [row, q] =
      segment === 8
        ? [`${e} / ${each}`, `${e} % ${each}`]
        : [
            `${e} / ${8 * each} * 8 + ${e} / ${segment} % ${8 / segment} * ${segment} + ${e} / 8 % ${segment}`,
            `${e} % ${8 * each} / ${8 * segment} * ${segment} + ${e} % ${segment}`,
          ]
    const [o, k] = byK ? [`row${x}_${i}`, `q${x}_${i} * 8`] : [`q${x}_${i} * 8`, `row${x}_${i}`]
    const last = byK || !vectors || shifted ? `p.${size} - 1` : `(p.${size} - 1) & -8`
    const unit = shifted ? '' : ' >> 3u'
    const at = `q${x} + (kl + ${k}) * ${along}`
    return [
      `let row${x}_${i} = ${row}; let q${x}_${i} = ${q};`,
      `let to${x}_${i} = ${start} + row${x}_${i} * ${rowOf(length)} + q${x}_${i};`,
      ...(vectors
        ? [
            byK
              ? `var u${x}_${i} = (q${x} + kl + ${k} + min(${size}0 + ${o}, ${last}) * ${other})${unit};`
              : `var u${x}_${i} = (${at} + min(${size}0 + ${o}, ${last}))${unit};`,
          ]
        : [
            `let o${x}_${i} = ${size}0 + ${o};`,
            `var u${x}_${i} = ${at}${byK ? ` + min(o${x}_${i}, ${last}) * ${other}` : ''};`,
          ]),
      ...range(t.ahead ? 2 : 1).map((set) => `var g${x}_${i}_${set} = vec4<u32>();`),
    ]
  })

  const steps = vectors && !shifted ? t.bk / 8 : t.bk
  const step = vectors && byK ? `${steps}` : `${steps} * ${along}`
  const one = (i: number, j: number, checked: boolean): string => {
    const value = byK
      ? `x${x}[u${x}_${i} + ${j} * ${along}]`
      : `x${x}[u${x}_${i} + min(o${x}_${i} + ${j}, p.${size} - 1) * ${other}]`
    return checked && byK
      ? `e${j} = f16(); if (kl + q${x}_${i} * 8 + ${j} < kEnd) { e${j} = ${value}; }`
      : `e${j} = ${value};`
  }
  const fetch = (i: number, set: number, checked: boolean): string => {
    const g = `g${x}_${i}_${set}`
    const k = byK ? `kl + q${x}_${i} * 8` : `kl + row${x}_${i}`
    if (!vectors) {
      const words = range(4).map((w) => `bitcast<u32>(vec2<f16>(e${2 * w}, e${2 * w + 1}))`)
      const code = `${range(8)
        .map((j) => one(i, j, checked))
        .join('\n')}\n${g} = vec4<u32>(${words.join(', ')});`
      const body = checked && !byK ? `${g} = vec4<u32>();\nif (${k} < kEnd) {\n${code}\n}` : code
      return `{\nvar ${range(8)
        .map((j) => `e${j}: f16`)
        .join('; var ')};\n${body}\n}`
    }
    const u = `u${x}_${i}`
    const load = shifted
      ? `${g} = shifted(x${x}[${u} >> 3u], x${x}[min((${u} >> 3u) + 1, end${x})], ${u} & 7);`
      : `${g} = x${x}[${u}];`
    if (!checked) return load
    const mask =
      byK && tail === 'elements'
        ? `let left = vec4<i32>(kEnd - (${k})) - vec4<i32>(0, 2, 4, 6);
${g} &= select(select(vec4<u32>(), vec4<u32>(0xffff), left == vec4<i32>(1)), vec4<u32>(0xffffffff), left > vec4<i32>(1));`
        : ''
    return `if (${k} < kEnd) { ${load} } else { ${g} = vec4<u32>(); }${mask && `\n{\n${mask}\n}`}`
  }
  // What a vector at the end is cut from may end before it.
  if (shifted) begin.unshift(`let end${x} = i32(arrayLength(&x${x})) - 1;`)
  return {
    begin: begin.join('\n'),
    fetch: (set, checked) =>
      rounds.map((i) => inside(i, `${fetch(i, set, checked)}\nu${x}_${i} += ${step};`)).join('\n'),
    put: (base, set) =>
      rounds
        .map((i) => inside(i, `s[to${x}_${i}${base ? ` + ${base}` : ''}] = g${x}_${i}_${set};`))
        .join('\n'),
  }
}
