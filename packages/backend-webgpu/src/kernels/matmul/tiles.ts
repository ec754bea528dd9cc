/**
 * Products by tiles: a workgroup computes bm × bn elements of the output, a thread tm × tn of them in registers. Stages
 * of bk steps of a and b lie in workgroup memory, both with the output's dim innermost, so that every read is a vector
 * of four; the next stage is loaded into registers meanwhile (matmul/stages.ts). Rows and columns past the edge repeat
 * the last one and are not stored; steps past the end of k are zeros. Elements may leave by way of workgroup memory
 * (matmul/ends.ts).
 *
 * LADDER.md beside this file has the steps on the way here, their reasons, and what was tried in vain. Today on one H100,
 * float32, of 59 TFLOP/s that a chain of multiply-adds gives: 47.3 at 4096³ and 45.3 at 2048³ (16 × 8 elements per
 * thread), 43.5 for 16,384 × 1,536 → 384 (8 × 8).
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import { block, i32, type ValuesOf, when } from '../../wgsl/block.ts'
import type { Binding, Shader } from '../../wgsl/shader.ts'
import { end, endBeyond, endOnce } from './ends.ts'
import { bindings, declarations, places, starts } from './epilogue.ts'
import { bytesOf, elementAt, rowOf, stages, type Tile, type TileSpec, threadsOf, type Way } from './stages.ts'

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

/** Rows and columns of a thread's elements in the order in which it multiplies. */
function elementsOf({ tm, tn, order }: Tile): [i: number, j: number][] {
  const [rows, columns, inBlocks, ofBlocks] = order ?? [tm, tn, 'across', 'across']
  const blocks = turning(tm / rows, tn / columns, ofBlocks)
  return blocks.flatMap(([i, j]) =>
    turning(rows, columns, inBlocks).map(([di, dj]): [number, number] => [i * rows + di, j * columns + dj]),
  )
}

/** All pairs below m and n, line by line; every second line backwards. */
function turning(m: number, n: number, way: Way): [number, number][] {
  if (way === 'down') return turning(n, m, 'across').map(([j, i]) => [i, j])
  return range(m).flatMap((i) => range(n).map((j): [number, number] => [i, i % 2 === 1 ? n - 1 - j : j]))
}

/** The last step of k, straight from memory, while the first stage is under way. */
function lastStep({ bm, bn, tm, tn }: Tile, { a, b }: TileSpec): string[] {
  const row = (i: number): string => `min(m0 + ${(i >> 2) * 4 * (bm / tm) + (i & 3)} + ty * 4, p.m - 1)`
  const column = (j: number): string => `min(n0 + ${(j >> 2) * 4 * (bn / tn) + (j & 3)} + tx * 4, p.n - 1)`
  return [
    ...range(tm).map((i) => `let y${i} = ${elementAt(0, a, `q0 + ${row(i)} * p.r0 + kEnd * p.c0`)};`),
    ...range(tn).flatMap((j) => [
      `let z${j} = ${elementAt(1, b, `q1 + kEnd * p.r1 + ${column(j)} * p.c1`)};`,
      ...range(tm).map((i) => `c${i}_${j >> 2}.${'xyzw'[j & 3]} = y${i} * z${j};`),
    ]),
  ]
}

const params = (matrices: number, dims: number, band: boolean) =>
  block({
    ...{ total: i32, tilesN: i32, tilesM: i32, splits: i32, kStep: i32, m: i32, n: i32, k: i32 },
    ...places(matrices, dims),
    band: when(band, i32),
  })
type Params = ValuesOf<typeof params>

export function tileShader(t: Tile, spec: TileSpec): Shader<Params> {
  const { epilogue: e, dims } = spec
  const { type } = e
  const { bm, bn, bk, tm, tn, slices } = t
  const [tx, ty] = [bn / tn, bm / tm]
  const threads = threadsOf(t)
  const v = `vec4<${type}>` as const
  const [rowA, rowB] = [rowOf(bm, spec.a), rowOf(bn, spec.b)]
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
    starts(matrices, dims),
    // Partial products lie one after another.
    'q2 += split * (p.total / (p.tilesN * p.tilesM * p.splits)) * p.m * p.n;',
    `var kEnd = min(p.k${spec.tail === 'one' ? ' - 1' : ''}, (split + 1) * p.kStep);`,
    ...(spec.band ? [`kEnd = min(kEnd, max(0, m0 + p.band + ${bm + bk - 1}) / ${bk} * ${bk});`] : []),
    'var k0 = split * p.kStep;',
    'let t = i32(li);',
  ]
  // Without a split the place of the first output must stay as it is: split is 0 then.

  const { load, store, beyond } = stages(t, spec, lines)
  const made = (): Shader<Params> => ({
    params: params(matrices, dims, spec.band),
    bindings: [...inputs, ...bindings(e, 2)],
    workgroup: [threads],
    declarations: declarations(e),
    shared: { name: 's', item: v, count: bytesOf(t, spec.a, spec.b) / 16 },
    joins: 'total',
    body: lines.join('\n'),
  })

  lines.push(`let lane = t % ${tx * ty};`, `let slice = t / ${tx * ty};`)
  // Of the lanes of a warp, which form 4 × 8, each shares its rows with the next but one and its columns with the next.
  if (tx % 8 === 0 && ty % 4 === 0)
    lines.push(
      `let tx = ((lane / 32) % ${tx / 8}) * 8 + ((lane >> 1u) & 7);`,
      `let ty = (lane / ${4 * tx}) * 4 + (((lane >> 3u) & 2) | (lane & 1));`,
    )
  else lines.push(`let tx = lane % ${tx};`, `let ty = lane / ${tx};`)

  const each = bk / slices
  lines.push(
    `var ra = slice * ${each * rowA} + ty;`,
    `var rb = ${bk * rowA} + slice * ${each * rowB} + tx;`,
    ...range(tm).flatMap((i) => range(tn / 4).map((h) => `var c${i}_${h} = ${v}();`)),
  )
  const multiply = elementsOf(t).map(([i, j]) => {
    const c = `c${i}_${j >> 2}.${'xyzw'[j & 3]}`
    const [a, b] = [`a${i >> 2}.${'xyzw'[i & 3]}`, `b${j >> 2}.${'xyzw'[j & 3]}`]
    return type === 'f32' ? `${c} = fma(${a}, ${b}, ${c});` : `${c} += ${a} * ${b};`
  })
  const step = (k: string): string => {
    const reads = [
      ...range(tm / 4).map((g) => `let a${g} = s[ra + ${k} * ${rowA} + ${g * ty}];`),
      ...range(tn / 4).map((h) => `let b${h} = s[rb + ${k} * ${rowB} + ${h * tx}];`),
    ]
    return `{\n${[...reads, ...multiply].join('\n')}\n}`
  }
  if (t.compact) {
    lines.push(
      'loop {',
      'if (k0 >= kEnd) { break; }',
      store,
      'workgroupBarrier();',
      `k0 += ${bk};`,
      `for (var k = 0; k < ${bk}; k++) ${step('k')}`,
      'workgroupBarrier();',
      '}',
      ...endOnce(t, spec.epilogue),
    )
    return made()
  }
  const all = range(each).map((k) => step(`${k}`))
  const loadNext = `if (k0 < kEnd) {\n${load}\n}`
  lines.push(
    loadNext,
    ...(spec.tail === 'one' ? lastStep(t, spec) : []),
    'loop {',
    'if (k0 >= kEnd) { break; }',
    store,
    'workgroupBarrier();',
    `k0 += ${bk};`,
    loadNext,
    // What the last stage has after the end of k need not be multiplied.
    ...(spec.tail === true && slices === 1
      ? [
          `if (k0 <= kEnd) {`,
          ...all,
          `} else {`,
          `for (var k = 0; k < kEnd + ${bk} - k0; k++) ${step('k')}`,
          '}',
        ]
      : all),
    'workgroupBarrier();',
    '}',
    ...end(t, spec),
    ...(t.plus ? endBeyond(t, e, beyond) : []),
  )
  return made()
}
