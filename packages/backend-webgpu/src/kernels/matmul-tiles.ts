/**
 * Products by tiles: a workgroup computes bm × bn elements of the output, a thread tm × tn of them in registers. Stages
 * of bk steps of a and b lie in workgroup memory, both with the output's dim innermost, so that every read is a vector
 * of four; the next stage is loaded into registers meanwhile. Operands that lie along k are transposed in registers on
 * their way. Rows and columns past the edge repeat the last one and are not stored; steps past the end of k are zeros.
 *
 * Where a program follows, elements go back through workgroup memory, to be stored in whole rows: see `passesOn`.
 *
 * The ladder on one H100, float32, TFLOP/s (chain of multiply-adds: 59), tile and elements per thread:
 *
 * | | a·b 4096³ | a·b 2048³ | x·wᵀ, 16,384 × 1,536 → 384 | x·w |
 * |---|---|---|---|---|
 * | 128×128×16, 8×16 | 43.0 | 41.2 | 32.2 | 31.7 |
 * | 128×128×16, 16×8 | 44.3 | 42.6 | 32.2 | 31.9 |
 * | 64×64×16, 8×8 | 40.5 | 33.1 | 33.1 | 39.2 |
 * | 64×64×8, 16×8: one warp | 40.3 | 39.0 | 38.2 | 39.1 |
 * | 128×128×8, 16×8, two buffers | 34.9 | 35.0 | | |
 *
 * In vain: rows of a that stay along k in workgroup memory (10 % slower), lanes that store without bank conflicts,
 * panels of tiles for the cache, workgroup memory that is not cleared, 96 or 192 rows or columns, 12×12 and 16×12
 * elements per thread. With Dawn's bounds checks products are up to 15 % slower.
 */

import type { Binding, Shader } from '../shader.ts'
import {
  bindings,
  declarations,
  type Epilogue,
  fields,
  loadExtras,
  places,
  store,
} from './matmul-epilogue.ts'
import type { Access } from './matmul-problem.ts'

/** How a product is cut. All are powers of two. */
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
  /** Two buffers of workgroup memory in turn: one barrier per step instead of two. */
  readonly double: boolean
}

/** All else that the code depends on. */
export interface TileSpec {
  readonly a: Access
  readonly b: Access
  /** Dims of the batch. */
  readonly dims: number
  /** The steps of k do not fill the last stage. */
  readonly tail: boolean
  /** Steps of k end where all rows of a tile have only zeros; see `Problem`. */
  readonly band: boolean
  readonly epilogue: Epilogue
}

export const threadsOf = (t: Tile): number => (t.bm / t.tm) * (t.bn / t.tn) * t.slices

/** Bytes of workgroup memory. */
export function bytesOf(t: Tile, a: Access, b: Access): number {
  const stage = t.bk * (rowOf(t.bm, a) + rowOf(t.bn, b)) * (t.double ? 2 : 1)
  return 16 * Math.max(stage, t.slices > 1 ? (t.slices * t.bm * t.bn) / 4 : 0)
}

/** Vectors in a staged row. One more where columns are written: else those of a quarter warp meet in one bank. */
const rowOf = (size: number, access: Access): number => size / 4 + (access === 'K' || access === 'k' ? 1 : 0)

const four = [0, 1, 2, 3] as const
const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

export function tileShader(t: Tile, spec: TileSpec): Shader {
  const { epilogue: e, dims } = spec
  const { type } = e
  const { bm, bn, bk, tm, tn, slices } = t
  const [tx, ty] = [bn / tn, bm / tm]
  const threads = threadsOf(t)
  const v = `vec4<${type}>`
  const [rowA, rowB] = [rowOf(bm, spec.a), rowOf(bn, spec.b)]
  const stage = bk * (rowA + rowB)
  const matrices = 2 + e.outs + e.extras.length
  const inputs: Binding[] = [spec.a, spec.b].map((access, i) => ({
    name: `x${i}`,
    item: access === 'K' || access === 'O' ? (`vec4<${type}>` as Binding['item']) : type,
  }))

  const lines: string[] = [
    'let id = i32(wg.x + wg.y * groups.x);',
    'if (id >= p.total) { return; }',
    `let n0 = (id % p.tilesN) * ${bn};`,
    'var item = id / p.tilesN;',
    ...(spec.band
      ? [
          // The last rows take longest: those of all items go first.
          'let perRow = p.total / (p.tilesN * p.tilesM);',
          `let m0 = (p.tilesM - 1 - item / perRow) * ${bm}; item %= perRow;`,
        ]
      : [`let m0 = (item % p.tilesM) * ${bm}; item /= p.tilesM;`]),
    'let split = item % p.splits; item /= p.splits;',
    places(matrices, dims),
    // Partial products lie one after another.
    'q2 += split * (p.total / (p.tilesN * p.tilesM * p.splits)) * p.m * p.n;',
    'var kEnd = min(p.k, (split + 1) * p.kStep);',
    ...(spec.band ? [`kEnd = min(kEnd, max(0, m0 + p.band + ${bm + bk - 1}) / ${bk} * ${bk});`] : []),
    'var k0 = split * p.kStep;',
    'let t = i32(li);',
  ]
  // Without a split the place of the first output must stay as it is: split is 0 then.

  const loaders = stagers(t, spec, rowA, rowB, threads, lines)

  // Lanes of a warp form 4 × 8 where they can: their reads of a and b then are as few as possible.
  lines.push(`let lane = t % ${tx * ty};`)
  lines.push(`let slice = t / ${tx * ty};`)
  if (tx > 8 && ty % 4 === 0)
    lines.push(
      `let tx = ((lane / 32) % ${tx / 8}) * 8 + lane % 8;`,
      `let ty = (lane / ${32 * (tx / 8)}) * 4 + (lane % 32) / 8;`,
    )
  else lines.push(`let tx = lane % ${tx};`, `let ty = lane / ${tx};`)

  const each = bk / slices
  lines.push(
    `var ra = slice * ${each * rowA} + ty;`,
    `var rb = ${bk * rowA} + slice * ${each * rowB} + tx;`,
    ...range(tm).flatMap((i) => range(tn / 4).map((h) => `var c${i}_${h} = ${v}();`)),
  )
  const compute = range(each).map((k) => {
    const reads = [
      ...range(tm / 4).map((g) => `let a${g} = s[ra + ${k * rowA + g * ty}];`),
      ...range(tn / 4).map((h) => `let b${h} = s[rb + ${k * rowB + h * tx}];`),
    ]
    const steps = range(tm).flatMap((i) =>
      range(tn / 4).map((h) => {
        const [c, a, b] = [`c${i}_${h}`, `a${i >> 2}.${'xyzw'[i & 3]}`, `b${h}`]
        return type === 'f32' ? `${c} = fma(${v}(${a}), ${b}, ${c});` : `${c} += ${a} * ${b};`
      }),
    )
    return `{\n${[...reads, ...steps].join('\n')}\n}`
  })
  const load = (at: string): string => `if (${at} < kEnd) {\n${loaders.load}\n}`
  if (t.double)
    lines.push(
      load('k0'),
      loaders.store,
      `var flip = ${stage};`,
      'workgroupBarrier();',
      'loop {',
      'if (k0 >= kEnd) { break; }',
      `k0 += ${bk};`,
      load('k0'),
      ...compute,
      'if (k0 < kEnd) {',
      loaders.advance('flip'),
      loaders.store,
      '}',
      'ra += flip; rb += flip; flip = -flip;',
      'workgroupBarrier();',
      '}',
    )
  else
    lines.push(
      load('k0'),
      'loop {',
      'if (k0 >= kEnd) { break; }',
      loaders.store,
      'workgroupBarrier();',
      `k0 += ${bk};`,
      load('k0'),
      ...compute,
      'workgroupBarrier();',
      '}',
    )

  const [m, n] = ['m', 'n']
  if (passesOn(t, spec)) lines.push(...staged(t, e))
  else if (slices === 1) {
    for (let h = 0; h < tn / 4; h++)
      lines.push(`let n_${h} = n0 + ${h * 4 * tx} + tx * 4;`, loadExtras(e, 2, '', `n_${h}`, `_${h}`, true))
    for (let i = 0; i < tm; i++) {
      lines.push('{', `let m = m0 + ${(i >> 2) * 4 * ty + (i & 3)} + ty * 4;`, 'if (m < p.m) {')
      for (let h = 0; h < tn / 4; h++)
        lines.push(
          `if (n_${h} < p.n) {`,
          loadExtras(e, 2, m, `n_${h}`, 'r', false),
          store(e, 2, m, `n_${h}`, `c${i}_${h}`, ['r', `_${h}`]),
          '}',
        )
      lines.push('}', '}')
    }
  } else {
    // Each slice has a share of k for the whole tile: all write theirs, then each adds up a part of the tile.
    const own = (tm * tn) / 4
    range(tm).forEach((i) => {
      range(tn / 4).forEach((h) => {
        const at = (i * (tn / 4) + h) * tx * ty
        lines.push(`s[slice * ${own * tx * ty} + ${at} + lane] = c${i}_${h};`)
      })
    })
    lines.push(
      'workgroupBarrier();',
      `for (var part = slice; part < ${own}; part += ${slices}) {`,
      `let i = part / ${tn / 4}; let h = part % ${tn / 4};`,
      `let m = m0 + (i / 4) * ${4 * ty} + i % 4 + ty * 4;`,
      `let n = n0 + h * ${4 * tx} + tx * 4;`,
      'if (m < p.m && n < p.n) {',
      `let at = part * ${tx * ty} + lane;`,
      `let sum = ${range(slices)
        .map((i) => `s[at + ${i * own * tx * ty}]`)
        .join(' + ')};`,
      loadExtras(e, 2, m, n, 'a', true),
      loadExtras(e, 2, m, n, 'r', false),
      store(e, 2, m, n, 'sum', ['r', 'a']),
      '}',
      '}',
    )
  }
  return {
    params: [...fields(matrices, dims), ...(spec.band ? ['band: i32'] : [])],
    bindings: [...inputs, ...bindings(e, 2)],
    workgroup: [threads],
    declarations: `${declarations(e)}\nvar<workgroup> s: array<${v}, ${bytesOf(t, spec.a, spec.b) / 16}>;`,
    body: lines.join('\n'),
  }
}

/**
 * Whether elements go through workgroup memory before the program has them. From registers, whose numbers must be
 * constants, the program's code would be there once per element, and what it reads would be waited for as often.
 */
function passesOn(t: Tile, { a, b, epilogue }: TileSpec): boolean {
  const [tx, ty] = [t.bn / t.tn, t.bm / t.tm]
  const fits = 16 * ty * t.bn <= bytesOf(t, a, b)
  return epilogue.program !== undefined && t.slices === 1 && fits && (tx * ty) % (t.bn / 4) === 0
}

/** Rows that a thread is asked for at a time. */
const atOnce = 4

/** The tile in parts of four rows per thread: from registers to workgroup memory, and from there in whole rows. */
function staged({ bm, bn, tm, tn }: Tile, e: Epilogue): string[] {
  const [tx, ty] = [bn / tn, bm / tm]
  const wide = bn / 4
  const rows = (tx * ty) / wide
  const write = range(tm / 4).map((part) => {
    const values = four.flatMap((i) =>
      range(tn / 4).map((h) => `s[(ty * 4 + ${i}) * ${wide} + ${h * tx} + tx] = c${part * 4 + i}_${h};`),
    )
    return `case ${part}: {\n${values.join('\n')}\n}`
  })
  return [
    `let n = n0 + lane % ${wide} * 4;`,
    `let row = lane / ${wide};`,
    loadExtras(e, 2, '', 'n', 'a', true),
    `for (var part = 0; part < ${tm / 4}; part++) {`,
    `switch part {\n${write.join('\n')}\ndefault: {}\n}`,
    'workgroupBarrier();',
    `for (var i = 0; i < ${tn}; i += ${atOnce}) {`,
    ...range(atOnce).flatMap((i) => [
      `let row${i} = (i + ${i}) * ${rows} + row; let m_${i} = m0 + part * ${4 * ty} + row${i};`,
      `let last${i} = min(m_${i}, p.m - 1); let value${i} = s[row${i} * ${wide} + lane % ${wide}];`,
      loadExtras(e, 2, `last${i}`, 'n', `r${i}`, false),
    ]),
    ...range(atOnce).map(
      (i) => `if (m_${i} < p.m && n < p.n) {\n${store(e, 2, `m_${i}`, 'n', `value${i}`, [`r${i}`, 'a'])}\n}`,
    ),
    '}',
    'workgroupBarrier();',
    '}',
  ]
}

/**
 * Loading a stage into registers and storing it to workgroup memory. It is done in blocks of 4 × 4 elements, so that
 * what lies along k can be transposed in registers; a thread has a block of a, or one of b, or several.
 */
function stagers(t: Tile, spec: TileSpec, rowA: number, rowB: number, threads: number, lines: string[]) {
  const v = `vec4<${spec.epilogue.type}>`
  const blocksA = (t.bm * t.bk) / 16
  const blocks = blocksA + (t.bn * t.bk) / 16
  const loads: string[] = []
  const stores: string[] = []
  const advances: string[] = []
  for (let i = 0; i * threads < blocks; i++) {
    const from = i * threads
    const to = Math.min(from + threads, blocks)
    // This round's threads up to `cut` have blocks of a, the others of b.
    const cut = Math.max(0, Math.min(blocksA - from, threads))
    const parts = [
      { x: 0, condition: `t < ${cut}`, some: cut > 0, base: from },
      { x: 1, condition: cut > 0 ? `t >= ${cut}` : 'true', some: to > from + cut, base: from - blocksA },
    ].filter((part) => part.some)
    const idle = to < from + threads
    lines.push(
      `var kk${i} = 0; var sp${i} = 0;`,
      ...four.map((j) => `var u${i}_${j} = 0; var g${i}_${j} = ${v}();`),
    )
    lines.push(`var du${i} = 0; var dc${i} = 0;`)
    const branch = (code: (x: number, base: number) => string): string =>
      parts
        .map(({ x, base, condition }, j) => {
          const test = parts.length === 1 ? '' : j === 0 ? `if (${condition})` : 'else'
          return `${test} {\n${code(x, base)}\n}`
        })
        .join('\n')
    const wrap = (code: string): string => (idle ? `if (t < ${to - from}) {\n${code}\n}` : code)
    lines.push(
      wrap(
        branch((x, base) => {
          const access = x === 0 ? spec.a : spec.b
          const row = x === 0 ? rowA : rowB
          const size = x === 0 ? 'm' : 'n'
          const [so, sk] = x === 0 ? ['p.r0', 'p.c0'] : ['p.c1', 'p.r1']
          const wide = (x === 0 ? t.bm : t.bn) / 4
          const deep = t.bk / 4
          const down = access === 'K' || access === 'k'
          const unit = `(t + ${base})`
          return [
            // Along k: four blocks of the other dim, then those of k. Else all of the other dim first.
            down
              ? `let o = (${unit} % 4 + 4 * (${unit} / ${4 * deep})) * 4; kk${i} = ((${unit} / 4) % ${deep}) * 4;`
              : `let o = (${unit} % ${wide}) * 4; kk${i} = (${unit} / ${wide}) * 4;`,
            `sp${i} = kk${i} * ${row} + o / 4 + ${x === 0 ? 0 : t.bk * rowA};`,
            `let k = k0 + kk${i};`,
            ...four.map((j) => {
              if (access === 'O')
                return `u${i}_${j} = (q${x} + (k + ${j}) * ${sk} + min(${size}0 + o, (p.${size} - 1) & -4)) >> 2u;`
              const place = `q${x} + min(${size}0 + o + ${j}, p.${size} - 1) * ${so} + k * ${sk}`
              return `u${i}_${j} = ${access === 'K' ? `(${place}) >> 2u` : place};`
            }),
            access === 'K'
              ? `du${i} = ${t.bk / 4};`
              : access === 'O'
                ? `du${i} = ${t.bk / 4} * ${sk};`
                : `du${i} = ${t.bk} * ${sk}; dc${i} = ${sk};`,
          ].join('\n')
        }),
      ),
    )
    const fetch = (checked: boolean): string =>
      branch((x) => {
        const access = x === 0 ? spec.a : spec.b
        return four
          .map((j) => {
            const [g, u] = [`g${i}_${j}`, `u${i}_${j}`]
            if (access === 'K' || access === 'O') {
              if (!checked) return `${g} = x${x}[${u}];`
              if (access === 'O')
                return `if (k0 + kk${i} + ${j} < kEnd) { ${g} = x${x}[${u}]; } else { ${g} = ${v}(); }`
              const inside = `vec4(k0 + kk${i}) + vec4(0, 1, 2, 3) < vec4(kEnd)`
              return `if (k0 + kk${i} < kEnd) { ${g} = select(${v}(), x${x}[${u}], ${inside}); } else { ${g} = ${v}(); }`
            }
            const part = (c: number): string => `x${x}[${u} + ${c} * dc${i}]`
            if (!checked) return `${g} = ${v}(${four.map(part).join(', ')});`
            return [
              `${g} = ${v}();`,
              ...four.map((c) => `if (k0 + kk${i} + ${c} < kEnd) { ${g}[${c}] = ${part(c)}; }`),
            ].join('\n')
          })
          .join('\n')
      })
    const code = spec.tail
      ? `if (k0 + ${t.bk} <= kEnd) {\n${fetch(false)}\n} else {\n${fetch(true)}\n}`
      : fetch(false)
    loads.push(wrap(`${code}\n${four.map((j) => `u${i}_${j} += du${i};`).join(' ')}`))
    stores.push(
      wrap(
        branch((x) => {
          const access = x === 0 ? spec.a : spec.b
          const row = x === 0 ? rowA : rowB
          return four
            .map((c) => {
              const value =
                access === 'O' ? `g${i}_${c}` : `${v}(${four.map((j) => `g${i}_${j}[${c}]`).join(', ')})`
              return `s[sp${i} + ${c * row}] = ${value};`
            })
            .join('\n')
        }),
      ),
    )
    advances.push(`sp${i} += FLIP;`)
  }
  return {
    load: loads.join('\n'),
    store: stores.join('\n'),
    advance: (by: string) => advances.join('\n').replaceAll('FLIP', by),
  }
}
