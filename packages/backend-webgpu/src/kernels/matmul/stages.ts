/**
 * How a product is cut into tiles, and how steps of k get into workgroup memory: through registers, where the next stage
 * waits while this one is used. Vectors are read in blocks of 4 × 4 elements, so that what lies along k can be transposed
 * in registers. Single elements are read by neighbours side by side, 16 each. A thread has a block of a, or one of b, or
 * several.
 */

import type { Epilogue } from './epilogue.ts'
import type { Access } from './problem.ts'

/** How a product is cut. All but `plus` are powers of two. */
export interface Tile {
  /** Rows and columns of the output per workgroup, and steps of k staged at a time. */
  readonly bm: number
  readonly bn: number
  readonly bk: number
  /** Rows and columns per thread: multiples of 4. */
  readonly tm: number
  readonly tn: number
  /** Groups of threads that share the steps of k among them. */
  readonly slices: number
  /** The last tile of a row also computes the one column that follows it; a is read in vectors and stages are full. */
  readonly plus?: boolean
  /** The order of a thread's elements. Default: row by row. */
  readonly order?: Order
  /**
   * Whether every piece of code is there once, in loops, and stages are not read ahead: for software adapters, which
   * compile for long. Such a tile has neither slices nor a column beyond.
   */
  readonly compact?: boolean
}

/** How a thread goes through its elements at each step of k: by blocks of `rows` × `columns`, always to a neighbour. */
export type Order = readonly [rows: number, columns: number, inBlocks: Way, ofBlocks: Way]
export type Way = 'down' | 'across'

/** All that the code of a product depends on besides its tile. */
export interface TileSpec {
  readonly a: Access
  readonly b: Access
  /** Dims of the batch. */
  readonly dims: number
  /** The steps of k do not fill the last stage; 'one': there is one more than whole stages have, and it goes first. */
  readonly tail: boolean | 'one'
  /** Steps of k end where all rows of a tile have only zeros; see `Problem`. */
  readonly band: boolean
  readonly epilogue: Epilogue
}

export const threadsOf = (t: Tile): number => (t.bm / t.tm) * (t.bn / t.tn) * t.slices

/** Bytes of workgroup memory. */
export function bytesOf(t: Tile, a: Access, b: Access): number {
  const stage = t.bk * (rowOf(t.bm, a) + rowOf(t.bn, b))
  const sums = t.compact ? (t.bm * t.bn) / 4 : t.slices > 1 ? endOf(t) : 0
  return 16 * Math.max(stage, sums, t.plus ? (t.bk * t.bm) / 16 : 0)
}

/** Vectors that go through workgroup memory in the end at a time: four rows of each thread. */
export const endOf = (t: Tile): number => (t.slices * t.bm * t.bn) / t.tm

/** Vectors in a staged row. One more where columns are written: else those of a quarter warp meet in one bank. */
export const rowOf = (size: number, access: Access): number =>
  size / 4 + (access === 'K' || access === 'k' ? 1 : 0)

const four = [0, 1, 2, 3] as const
const sixteen = Array.from({ length: 16 }, (_, j) => j)
const isVectors = (access: Access): boolean => access === 'K' || access === 'O'

/** What the code for one operand depends on. */
interface Operand {
  readonly x: 0 | 1
  readonly access: Access
  readonly size: 'm' | 'n'
  /** Elements of the tile along that dim, and vectors of a staged row. */
  readonly wide: number
  readonly row: number
  /** The place at which the operand's part of workgroup memory starts. */
  readonly start: number
  /** Names of the strides along `size` and k. */
  readonly other: string
  readonly along: string
}

/** Code that loads a stage into registers and moves on, and code that stores it. */
export interface Stages {
  readonly load: string
  readonly store: string
  /** Stores what was summed for the column beyond, for all groups of four steps apart. */
  readonly beyond: string
}

export function stages(t: Tile, spec: TileSpec, lines: string[]): Stages {
  const v = `vec4<${spec.epilogue.type}>`
  const threads = threadsOf(t)
  const rowA = rowOf(t.bm, spec.a)
  const operands: readonly Operand[] = [
    { x: 0, access: spec.a, size: 'm', wide: t.bm, row: rowA, start: 0, other: 'p.r0', along: 'p.c0' },
    {
      x: 1,
      access: spec.b,
      size: 'n',
      wide: t.bn,
      row: rowOf(t.bn, spec.b),
      start: t.bk * rowA,
      other: 'p.c1',
      along: 'p.r1',
    },
  ]
  const blocksA = (t.bm * t.bk) / 16
  const blocks = blocksA + (t.bn * t.bk) / 16
  const loads: string[] = []
  const stores: string[] = []
  const beyond: string[] = []
  for (let i = 0; i * threads < blocks; i++) {
    const from = i * threads
    const to = Math.min(from + threads, blocks)
    // This round's threads up to `cut` have blocks of a, the others of b.
    const cut = Math.max(0, Math.min(blocksA - from, threads))
    const parts = [
      { of: operands[0], condition: `t < ${cut}`, some: cut > 0, base: from },
      {
        of: operands[1],
        condition: cut > 0 ? `t >= ${cut}` : 'true',
        some: to > from + cut,
        base: from - blocksA,
      },
    ].filter((part) => part.some)
    const idle = to < from + threads
    const each = (code: (of: Operand, base: number) => string): string => {
      const branches = parts.map(({ of, base, condition }, j) => {
        const test = parts.length === 1 ? '' : j === 0 ? `if (${condition})` : 'else'
        return `${test} {\n${code(of, base)}\n}`
      })
      return idle ? `if (t < ${to - from}) {\n${branches.join('\n')}\n}` : branches.join('\n')
    }
    lines.push(
      `var kk${i} = 0; var sp${i} = 0;`,
      ...four.map((j) => `var u${i}_${j} = 0; var g${i}_${j} = ${v}();`),
      ...(t.plus ? [`var h${i} = ${v}(); var e${i} = ${v}();`] : []),
      each((of, base) => begin(t, of, i, `(t + ${base})`)),
    )
    if (t.compact) {
      stores.push(
        each((of) =>
          isVectors(of.access)
            ? `${fetchVectors(t, of, i, v, true)}\n${put(t, of, i, v)}`
            : moveElements(t, of, i, spec.epilogue.type),
        ),
      )
      continue
    }
    const fetch = (checked: boolean): string =>
      each((of) => {
        const code = isVectors(of.access)
          ? fetchVectors(t, of, i, v, checked)
          : fetchElements(t, of, i, v, checked)
        return t.plus && of.x === 0 ? `${code}\n${fetchBeyond(spec.b, i, v)}` : code
      })
    loads.push(
      spec.tail === true
        ? `if (k0 + ${t.bk} <= kEnd) {\n${fetch(false)}\n} else {\n${fetch(true)}\n}`
        : fetch(false),
    )
    stores.push(
      each((of) => {
        const code = put(t, of, i, v)
        return t.plus && of.x === 0 ? `${code}\n${addBeyond(of.access, i, v)}` : code
      }),
    )
    if (cut > 0)
      beyond.push(`if (t < ${cut}) { s[(kk${i} >> 2u) * ${t.bm / 4} + sp${i} - kk${i} * ${rowA}] = e${i}; }`)
  }
  return { load: loads.join('\n'), store: stores.join('\n'), beyond: beyond.join('\n') }
}

/** The places of a thread's sixteen single elements, from its first one on, along the other dim and k. */
function elementsOf({ bk }: Tile, { access, wide }: Operand): { o: number; k: number }[] {
  const units = (wide * bk) / 16
  if (access === 'k') return sixteen.map((j) => ({ o: (j * wide) / 16, k: 0 }))
  const around = Math.max(1, wide / units)
  const down = Math.max(1, units / wide)
  return sixteen.map((j) => ({ o: (j % around) * units, k: Math.floor(j / around) * down }))
}

/** The code that loads a stage straight to workgroup memory, one part after another. */
function moveElements(t: Tile, of: Operand, i: number, type: string): string {
  const { x, access, size, wide, row, other, along } = of
  const units = (wide * t.bk) / 16
  const around = access === 'k' ? 16 : Math.max(1, wide / units)
  const [o, k] = [access === 'k' ? wide / 16 : units, Math.max(1, units / wide)]
  return [
    'for (var j = 0; j < 16; j++) {',
    `let o = (j % ${around}) * ${o}; let k = (j / ${around}) * ${k};`,
    `var g = ${type}();`,
    `if (k0 + kk${i} + k < kEnd) { g = x${x}[u${i}_0 + k * ${along} + min(u${i}_1 + o, p.${size} - 1) * ${other}]; }`,
    `let to = sp${i} + k * ${row * 4} + o; s[to >> 2u][to & 3] = g;`,
    '}',
    `u${i}_0 += ${t.bk} * ${along};`,
  ].join('\n')
}

/** The code that finds a thread's block, where it is read and where it is stored. */
function begin(t: Tile, of: Operand, i: number, unit: string): string {
  const { x, access, size, wide, row, start, other, along } = of
  if (!isVectors(access)) {
    const inner = access === 'k' ? t.bk : Math.min(wide, (wide * t.bk) / 16)
    const [k, o] = access === 'k' ? ['%', '/'] : ['/', '%']
    return [
      `kk${i} = ${unit} ${k} ${inner}; u${i}_1 = ${unit} ${o} ${inner};`,
      // In elements, others in vectors.
      `sp${i} = (kk${i} * ${row} + ${start}) * 4 + u${i}_1;`,
      `u${i}_0 = q${x} + (k0 + kk${i}) * ${along}; u${i}_1 += ${size}0;`,
    ].join('\n')
  }
  const deep = t.bk / 4
  return [
    // Along k: four blocks of the other dim, then those of k. Else all of the other dim first.
    access === 'K'
      ? `let o = (${unit} % 4 + 4 * (${unit} / ${4 * deep})) * 4; kk${i} = ((${unit} / 4) % ${deep}) * 4;`
      : `let o = (${unit} % ${wide / 4}) * 4; kk${i} = (${unit} / ${wide / 4}) * 4;`,
    `sp${i} = kk${i} * ${row} + o / 4 + ${start};`,
    `let k = k0 + kk${i};`,
    ...four.map((j) =>
      access === 'O'
        ? `u${i}_${j} = (q${x} + (k + ${j}) * ${along} + min(${size}0 + o, (p.${size} - 1) & -4)) >> 2u;`
        : `u${i}_${j} = (q${x} + min(${size}0 + o + ${j}, p.${size} - 1) * ${other} + k) >> 2u;`,
    ),
  ].join('\n')
}

function fetchVectors(
  t: Tile,
  { x, access, along }: Operand,
  i: number,
  v: string,
  checked: boolean,
): string {
  const step = access === 'K' ? `${t.bk / 4}` : `${t.bk / 4} * ${along}`
  return four
    .map((j) => {
      const [g, u] = [`g${i}_${j}`, `u${i}_${j}`]
      const on = `${u} += ${step};`
      if (!checked) return `${g} = x${x}[${u}]; ${on}`
      if (access === 'O')
        return `if (k0 + kk${i} + ${j} < kEnd) { ${g} = x${x}[${u}]; } else { ${g} = ${v}(); } ${on}`
      const inside = `vec4(k0 + kk${i}) + vec4(0, 1, 2, 3) < vec4(kEnd)`
      return `if (k0 + kk${i} < kEnd) { ${g} = select(${v}(), x${x}[${u}], ${inside}); } else { ${g} = ${v}(); } ${on}`
    })
    .join('\n')
}

function fetchElements(t: Tile, of: Operand, i: number, v: string, checked: boolean): string {
  const { x, size, other, along } = of
  const code = elementsOf(t, of).map(({ o, k }, j) => {
    const g = `g${i}_${j >> 2}[${j & 3}]`
    const at = `u${i}_0 + ${k} * ${along} + min(u${i}_1 + ${o}, p.${size} - 1) * ${other}`
    const value = `${g} = x${x}[${at}];`
    return checked ? `if (k0 + kk${i} + ${k} < kEnd) { ${value} }` : value
  })
  if (checked) code.unshift(...four.map((j) => `g${i}_${j} = ${v}();`))
  return `${code.join('\n')}\nu${i}_0 += ${t.bk} * ${along};`
}

/** The code that moves a block from registers to workgroup memory. */
function put(t: Tile, of: Operand, i: number, v: string): string {
  const { access, row } = of
  if (access === 'O') return four.map((c) => `s[sp${i} + ${c * row}] = g${i}_${c};`).join('\n')
  if (access === 'K')
    return four
      .map((c) => `s[sp${i} + ${c * row}] = ${v}(${four.map((j) => `g${i}_${j}[${c}]`).join(', ')});`)
      .join('\n')
  return elementsOf(t, of)
    .map(({ o, k }, j) => {
      const [more, g] = [k * row * 4 + o, `g${i}_${j >> 2}[${j & 3}]`]
      return more % 4 === 0
        ? `s[(sp${i} >> 2u) + ${more / 4}][sp${i} & 3] = ${g};`
        : `s[(sp${i} + ${more}) >> 2u][(sp${i} + ${more}) & 3] = ${g};`
    })
    .join('\n')
}

/** An element of a (x 0) or b (x 1), whatever it is read as. */
export const elementAt = (x: 0 | 1, access: Access, at: string): string =>
  isVectors(access) ? `x${x}[(${at}) >> 2u][(${at}) & 3]` : `x${x}[${at}]`

/** Four steps of the column beyond, for a block of a. */
function fetchBeyond(access: Access, i: number, v: string): string {
  const at = (j: number): string => `q1 + (k0 + kk${i} + ${j}) * p.r1 + (p.n - 1) * p.c1`
  if (access === 'K') return `h${i} = x1[(${at(0)}) >> 2u];`
  return `h${i} = ${v}(${four.map((j) => elementAt(1, access, at(j))).join(', ')});`
}

function addBeyond(access: Access, i: number, v: string): string {
  if (access === 'K') return `e${i} += ${v}(${four.map((j) => `dot(g${i}_${j}, h${i})`).join(', ')});`
  return `e${i} += ${four.map((j) => `g${i}_${j} * h${i}[${j}]`).join(' + ')};`
}
