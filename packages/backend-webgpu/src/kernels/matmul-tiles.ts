/**
 * Products by tiles: a workgroup computes bm × bn elements of the output, a thread tm × tn of them in registers. Stages
 * of bk steps of a and b lie in workgroup memory, both with the output's dim innermost, so that every read is a vector
 * of four; the next stage is loaded into registers meanwhile (matmul-stages.ts). Rows and columns past the edge repeat
 * the last one and are not stored; steps past the end of k are zeros. Elements may leave by way of workgroup memory
 * (matmul-ends.ts).
 *
 * The ladder on one H100, float32, TFLOP/s (chain of multiply-adds: 59), tile and elements per thread:
 *
 * | | a·b 4096³ | a·b 2048³ | x·wᵀ, 16,384 × 1,536 → 384 | x·w |
 * |---|---|---|---|---|
 * | 128×128×16, 8×16 | 43.0 | 41.2 | 32.2 | 31.7 |
 * | 128×128×16, 16×8 | 44.3 | 42.6 | 32.2 | 31.9 |
 * | 128×128×16, 8×8 | 42.2 | 40.4 | 30.3 | 40.5 |
 * | 64×64×16, 8×8 | 40.5 | 33.1 | 33.1 | 39.2 |
 * | 64×64×8, 16×8: one warp | 40.3 | 39.0 | 38.2 | 39.1 |
 *
 * In vain: rows of a that stay along k in workgroup memory (10 % slower), two buffers of workgroup memory in turn (35 at
 * 4096³), lanes that store without bank conflicts, panels of tiles for the cache, workgroup memory that is not cleared,
 * 96 or 192 rows or columns, 12×12 and 16×12 elements per thread. With Dawn's bounds checks products are up to 15 %
 * slower.
 */

import type { Binding, Shader } from '../shader.ts'
import { end, endBeyond } from './matmul-ends.ts'
import { bindings, declarations, fields, places } from './matmul-epilogue.ts'
import { bytesOf, rowOf, stages, type Tile, type TileSpec, threadsOf } from './matmul-stages.ts'

const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

export function tileShader(t: Tile, spec: TileSpec): Shader {
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
    places(matrices, dims),
    // Partial products lie one after another.
    'q2 += split * (p.total / (p.tilesN * p.tilesM * p.splits)) * p.m * p.n;',
    'var kEnd = min(p.k, (split + 1) * p.kStep);',
    ...(spec.band ? [`kEnd = min(kEnd, max(0, m0 + p.band + ${bm + bk - 1}) / ${bk} * ${bk});`] : []),
    'var k0 = split * p.kStep;',
    'let t = i32(li);',
  ]
  // Without a split the place of the first output must stay as it is: split is 0 then.

  const { load, store, beyond } = stages(t, spec, lines)

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
  const step = (k: string): string => {
    const reads = [
      ...range(tm / 4).map((g) => `let a${g} = s[ra + ${k} * ${rowA} + ${g * ty}];`),
      ...range(tn / 4).map((h) => `let b${h} = s[rb + ${k} * ${rowB} + ${h * tx}];`),
    ]
    const steps = range(tm).flatMap((i) =>
      range(tn / 4).map((h) => {
        const [c, a, b] = [`c${i}_${h}`, `a${i >> 2}.${'xyzw'[i & 3]}`, `b${h}`]
        return type === 'f32' ? `${c} = fma(${v}(${a}), ${b}, ${c});` : `${c} += ${a} * ${b};`
      }),
    )
    return `{\n${[...reads, ...steps].join('\n')}\n}`
  }
  const all = range(each).map((k) => step(`${k}`))
  const loadNext = `if (k0 < kEnd) {\n${load}\n}`
  lines.push(
    loadNext,
    'loop {',
    'if (k0 >= kEnd) { break; }',
    store,
    'workgroupBarrier();',
    `k0 += ${bk};`,
    loadNext,
    // What the last stage has after the end of k need not be multiplied.
    ...(spec.tail && slices === 1
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
  return {
    params: [...fields(matrices, dims), ...(spec.band ? ['band: i32'] : [])],
    bindings: [...inputs, ...bindings(e, 2)],
    workgroup: [threads],
    declarations: declarations(e),
    shared: { name: 's', item: v, count: bytesOf(t, spec.a, spec.b) / 16 },
    joins: 'total',
    body: lines.join('\n'),
  }
}
