/** What happens to a thread's scores beside the softmax: ALiBi, a mask, what queries do not see, and dropout. */

import { lower } from '../wgsl/lowering.ts'
import { mathCode } from '../wgsl/math.ts'
import { column, each, type Form, type Tile, unit } from './attention-blocks.ts'
import type { Streamed } from './attention-visits.ts'

/** The query and the key of row i and column `j` of a thread, as expressions; `j` as `column` numbers them. */
function pair(
  { rm }: Tile,
  streamed: Streamed,
  i: number | string,
  j: number | string,
): [query: string, key: string] {
  const row = `i32(ty) * ${rm} + ${i}`
  const col = `i32(tx) * 4 + ${j}`
  return streamed === 'keys' ? [`q0 + ${row}`, `k0 + ${col}`] : [`q0 + ${col}`, `k0 + ${row}`]
}

/** Declares where head h's part of the mask begins, and its slope in the scores' unit. */
export const headOptions = ({ mask, alibi }: Form): string =>
  [
    mask === 'none' ? '' : 'let maskBase = p.maskAt + b * p.maskBatch + h * p.maskHead;',
    alibi ? `let slope = slopes[u32(p.slopesAt + h * p.slopesStep)] * ${unit(mask)};` : '',
  ]
    .filter(Boolean)
    .join('\n')

/** Subtracts slope · |i − j|, i counted from where the diagonal begins. */
export function alibi({ tile, ...form }: Form, name: string, streamed: Streamed): string {
  if (!form.alibi) return ''
  return each(tile.rm, (i) =>
    each(tile.kn, (j) => {
      const [query, key] = pair(tile, streamed, i, column(tile, j))
      return `${name}${i}_${j} -= slope * f32(abs(${query} + p.offset - (${key})));`
    }),
  )
}

/** Hides scores, sets them to `ninf`, and adds the mask. No short cuts: each would be a branch. */
export function hide(form: Form, name: string, streamed: Streamed): string {
  const { tile, mask, globals } = form
  // Beyond the last query the weight e^(0 − lse) may be ∞, and ∞ times the zeros there no number; queries that are read in
  // place are no zeros there.
  const beyond = streamed === 'queries' ? ' | (iq >= p.queries)' : ''
  const far = globals ? '((d <= p.low) & (ik >= p.globalKeys) & (iq >= p.globalQueries))' : '(d <= p.low)'
  return each(tile.rm, (i) =>
    each(tile.kn, (j) => {
      const [query, key] = pair(tile, streamed, i, column(tile, j))
      const at = `mask[u32(maskBase + min(iq, p.queries - 1) * p.maskRow + min(ik, p.keys - 1) * p.maskStep)]`
      const s = `${name}${i}_${j}`
      return `{ let iq = ${query}; let ik = ${key}; let d = ik - iq;
let out = (d > p.high) | ${far} | (ik >= p.keys)${beyond}${mask === 'bool' ? ` | (${at} == 0u)` : ''};
${s} = select(${s}${mask === 'float32' ? ` + ${at}` : ''}, p.ninf, out); }`
    }),
  )
}

/** `fn dropped(number: i32) -> f32`: core's expression for dropout's factor of a weight. */
export function droppedFunction({ dropout }: Form): string {
  if (!dropout) return ''
  const { code, values, functions } = lower(dropout.exprs, (node) =>
    node.kind === 'param' ? `p.drop${node.slot}` : 'number',
  )
  return `${mathCode(functions)}\nfn dropped(number: i32) -> f32 {\n${code}\nreturn ${values[0]};\n}`
}

/**
 * Declares `kept`, a bit per weight of the thread, and `keep`, the factor of those that are. Weights are numbered as core's
 * dropout numbers them, in (B, H, T, S) modulo 2³², `firstRow` rows lying before the head. A loop whose end the compiler
 * does not know, so that it compiles the generator once.
 */
export function draw({ tile, dropout }: Form, streamed: Streamed): string {
  if (!dropout) return ''
  const { kn, tx } = tile
  const [query, key] = pair(tile, streamed, 'i', 'j')
  return `var kept = 0u; var keep = 0.0;
for (var n = 0; n < p.draws; n++) {
let i = n / ${kn}; let j = n % ${kn} / 4 * ${4 * tx} + n % 4;
let factor = dropped((firstRow + ${query}) * p.keys + ${key});
kept |= select(0u, 1u, factor > 0.0) << u32(n);
keep = max(keep, factor);
}`
}

/** lse in the scores' unit. −∞: no key is visible, all weights are 0. */
export const exponent = (lse: string, mask: Form['mask']): string =>
  `select(${lse} * ${unit(mask)}, 3e38, ${lse} < -3.4e38)`

/** The factor of the weight in row i and column j of a thread, after `draw`. */
export const factor = ({ kn }: Tile, i: number, j: number): string =>
  `select(0.0, keep, (kept & ${2 ** (i * kn + j)}u) != 0u)`

/** Draws, and drops from `name`. */
export const drop = (form: Form, name: string, streamed: Streamed): string =>
  form.dropout
    ? `${draw(form, streamed)}\n${each(form.tile.rm, (i) => each(form.tile.kn, (j) => `${name}${i}_${j} *= ${factor(form.tile, i, j)};`))}\n`
    : ''
