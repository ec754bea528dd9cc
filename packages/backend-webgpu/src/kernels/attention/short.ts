/**
 * All gradients at once where all keys fit one block: a workgroup of the kernel of dK and dV then has whole rows of dS, so
 * that it makes dQ as well, and before that δ = rowsum(dO ∘ O): one dispatch instead of three, and five products instead
 * of seven. (rowsum(P ∘ dP) would need no O, but is not δ where attention goes by parts of the keys, whose O and statistics
 * are those of all.)
 *
 * For both, threads share queries by fours: a thread has four, and some of the vectors of their rows.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention-short.test.ts.
 */

import type { AttentionAttrs, View } from '@tilegrad/core'
import { colsOf, each, type Form, rowsOf, store, type Tile, threadsOf, zeroSums } from './blocks.ts'
import { notFinite } from './careful.ts'

/** The number of workgroups above which a large GPU's cores have several at a time, if they fit. */
const onePerCore = 128

/**
 * The tiles for which one kernel of all gradients pays, the best first. One workgroup per key head goes through all
 * blocks of queries: n blocks take 5n products, one after the other. Three kernels take 4n and 3, as the blocks of dQ
 * run side by side on a GPU that is large enough: no less up to n = 3. Where as many workgroups as `enough` fill the GPU,
 * fewer products are less time in any case. Masks of blocks skip blocks of queries, whose dQ nobody would write.
 *
 * On one H100, B 12, H 4, T 64, D 32: 22 µs, 24 with 32 queries at a time, in three kernels 48; B 128, H 6, D 64: 165,
 * 129 and 156.
 */
export function shortTiles(
  tiles: readonly Tile[],
  q: View,
  k: View,
  { blockSize }: AttentionAttrs,
  enough: number,
): Tile[] {
  const [b, h, t] = q.shape
  const [, hk, s] = k.shape
  if (blockSize > 0 || b * h * t * s === 0) return []
  const pays = (tile: Tile): boolean => (h / hk) * Math.ceil(t / colsOf(tile)) <= 3 || b * hk >= enough
  const fit = tiles.filter((tile) => s <= rowsOf(tile) && pays(tile))
  return b * hk > onePerCore ? fit.sort((x, y) => colsOf(x) - colsOf(y)) : fit
}

/** How threads share a block's queries by fours, of `width4` vectors; `begin` opens a scope with their `ty` and `tx`. */
function byFours(tile: Tile, width4: number): { own: Tile; begin: string } {
  const ty = colsOf(tile) / 4
  const tx = Math.min(threadsOf(tile) / ty, width4)
  const idle = ty * tx < threadsOf(tile) ? `if (li < ${ty * tx}u) ` : ''
  return { own: { ...tile, ty, rm: 4, tx }, begin: `${idle}{ let tx = li % ${tx}u; let ty = li / ${tx}u;` }
}

/** Puts what threads add to δ of the queries at q0 into `tv`, a vector for four queries. */
export function putDeltas({ tile, dv }: Form): string {
  const { own, begin } = byFours(tile, dv / 4)
  const row = (i: number): string => `min(q0 + i32(ty) * 4 + ${i}, p.queries - 1)`
  return `${begin}
var sum = vec4f();
${each(4, (i) => `let g${i} = gBase + ${row(i)} * p.gRow; let o${i} = oBase + ${row(i)} * p.oRow;`)}
for (var c = i32(tx); c < p.valueWidth / 4; c += ${own.tx}) {
sum += vec4f(${[0, 1, 2, 3].map((i) => `dot(g[u32(g${i} + c)], o[u32(o${i} + c)])`).join(', ')});
}
tv[tx * ${own.ty}u + ty] = sum; }`
}

/** Declares z{j}: what `weight` takes of a thread's columns, and their δ. Needs `putDeltas` and a barrier. */
export function takeDeltas({ tile, dv }: Form): string {
  const { kn, tx } = tile
  const { own } = byFours(tile, dv / 4)
  return `let plane = u32(i32(p.count / p.blocks * p.group) * p.queries);
${each(kn / 4, (v) => {
  const first = `tx + ${v * tx}u`
  return `var delta${v} = tv[${first}];
for (var part = 1u; part < ${own.tx}u; part++) { delta${v} += tv[part * ${own.ty}u + ${first}]; }
${each(4, (i) => {
  const j = 4 * v + i
  return `let row${j} = u32(p.statsAt + firstRow + min(q0 + i32(${first}) * 4 + ${i}, p.queries - 1));
let z${j} = vec3f(shifts(stats[row${j}], stats[row${j} + plane]), delta${v}[${i}]);`
})}`
})}`
}

/** Stores dQ of the queries at q0 through the binding `to`; `tv` has dSᵀ, a row per key, as `putWeights` puts it. */
export function storeDq(form: Form, to: string): string {
  const { tile, dq } = form
  const { rm } = tile
  const cols4 = colsOf(tile) / 4
  const { own, begin } = byFours(tile, dq / 4)
  const vectors = Math.ceil(dq / 4 / own.tx)
  return `${begin}
${zeroSums(own, 'o', vectors * own.tx)}
${each(vectors, (c) => `let c${c} = min(tx + ${c * own.tx}u, u32(p.width / 4 - 1));`)}
let end = (u32(p.keys) + ${rm - 1}u) / ${rm}u;
for (var r = 0u; r < end; r++) {
let at = r * ${rm * cols4}u + (ty ^ (r & ${Math.min(8, cols4) - 1}u));
${each(
  rm,
  (i) => `let w${i} = tv[at + ${i * cols4}u];
let row${i} = u32(kBase + min(i32(r) * ${rm} + ${i}, p.keys - 1) * p.kRow);
${each(vectors, (c) => `let k${i}_${c} = k[row${i} + c${c}];`)}`,
)}
${each(rm, (i) => each(4, (e) => each(vectors, (c) => `o${e}_${c} = fma(vec4f(w${i}[${e}]), k${i}_${c}, o${e}_${c});`)))}
}
// A key that is hidden but not finite was multiplied by its 0: once more without what is 0.
if (${notFinite(4, vectors, 'o')}) {
${each(4, (e) => each(vectors, (c) => `o${e}_${c} = vec4f();`))}
for (var j = 0u; j < u32(p.keys); j++) {
let w = tv[j * ${cols4}u + (ty ^ ((j / ${rm}u) & ${Math.min(8, cols4) - 1}u))];
let row = u32(kBase + i32(j) * p.kRow);
${each(vectors, (c) => `let k${c} = k[row + c${c}];`)}
${each(4, (e) => `if (!(w[${e}] == 0.0)) { ${each(vectors, (c) => `o${e}_${c} = fma(vec4f(w[${e}]), k${c}, o${e}_${c});`)} }`)}
}
}
${store({ ...form, tile: own }, { to, name: 'dq', width4: vectors * own.tx, width: 'p.width', head: 'h', first: 'q0', limit: 'p.queries', value: (i, c) => `o${i}_${c} * p.scale` })}
}`
}
