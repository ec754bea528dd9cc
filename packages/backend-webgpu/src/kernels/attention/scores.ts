/** What happens to a thread's scores beside the softmax: ALiBi, a mask, what queries do not see, and dropout. */

import { lower } from '../../wgsl/lowering.ts'
import { mathCode } from '../../wgsl/math.ts'
import { colsOf, column, each, type Form, rowsOf, type Tile } from './blocks.ts'
import type { Streamed } from './visits.ts'

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

/** Declares where head h's part of the mask begins, and its slope. */
export const headOptions = ({ mask, alibi }: Form): string =>
  [
    mask === 'none' ? '' : 'let maskBase = p.maskAt + b * p.maskBatch + h * p.maskHead;',
    alibi ? `let slope = slopes[u32(p.slopesAt + h * p.slopesStep)];` : '',
  ]
    .filter(Boolean)
    .join('\n')

/**
 * Products become scores: times the scale, less slope · |i − j|, i counted from where the diagonal begins. All kernels must
 * agree on every bit of a score, as its row's maximum is taken off it: hence a multiply-add that is spelt out, and a 0 that
 * the compiler does not know. A plain product it might contract with the subtraction that follows.
 */
export function scaled({ tile, alibi }: Form, name: string, streamed: Streamed): string {
  return each(tile.rm, (i) =>
    each(tile.kn, (j) => {
      const [query, key] = pair(tile, streamed, i, column(tile, j))
      const bias = alibi ? `-(slope * f32(abs(${query} + p.offset - (${key}))))` : 'p.zero'
      return `${name}${i}_${j} = fma(${name}${i}_${j}, p.scale, ${bias});`
    }),
  )
}

/** Code for blocks that may have pairs to hide; `more`: other reasons for them to. */
export function atEdge({ tile, mask }: Form, streamed: Streamed, code: string, more = ''): string {
  if (mask !== 'none') return `{\n${code}\n}`
  const [rows, cols] = [rowsOf(tile), colsOf(tile)]
  const edge =
    streamed === 'keys'
      ? `k0 + ${cols - 1} - q0 > p.high || k0 - q0 - ${rows - 1} <= p.low || k0 + ${cols} > p.keys`
      : `k0 + ${rows - 1} - q0 > p.high || k0 - q0 - ${cols - 1} <= p.low || q0 + ${cols} > p.queries`
  return `if (${edge}${more}) {\n${code}\n}`
}

/** Sets what pairs of weight 0 have in `name` to 0, whatever it is: their keys need not be finite. */
export const forget = ({ tile }: Form, name: string, weight: string): string =>
  each(tile.rm, (i) =>
    each(tile.kn, (j) => `${name}${i}_${j} = select(${name}${i}_${j}, 0.0, ${weight}${i}_${j} == 0.0);`),
  )

/** Hides scores, sets them to `ninf`, and adds the mask. No short cuts: each would be a branch. */
export function hide(form: Form, name: string, streamed: Streamed): string {
  const { tile, mask, globals } = form
  // Beyond the last query the weight e^(0 − max) may be ∞, and ∞ times the zeros there no number; queries that are read in
  // place are no zeros there.
  const beyond = streamed === 'queries' ? ' | (iq >= p.queries)' : ''
  const far = globals ? '((d <= p.low) & (ik >= p.globalKeys) & (iq >= p.globalQueries))' : '(d <= p.low)'
  return each(tile.rm, (i) =>
    each(tile.kn, (j) => {
      const [query, key] = pair(tile, streamed, i, column(tile, j))
      const at = `mask[u32(maskBase + min(iq, p.queries - 1) * p.maskRow + min(ik, p.keys - 1) * p.maskStep)]`
      const s = `${name}${i}_${j}`
      const hidden = { none: '', bool: ' | (m == 0u)', float32: ' | (bitcast<u32>(m) == 0xff800000u)' }
      return `{ let iq = ${query}; let ik = ${key}; let d = ik - iq;
${mask === 'none' ? '' : `let m = ${at};`}
let out = (d > p.high) | ${far} | (ik >= p.keys)${beyond}${hidden[mask]};
${s} = select(${s}${mask === 'float32' ? ' + m' : ''}, p.ninf, out); }`
    }),
  )
}

/** `fn dropped(number: i32) -> f32`: core's expression for dropout's factor of a weight. */
export function droppedFunction({ dropout }: Form): string {
  if (!dropout) return ''
  const { code, values, functions } = lower(dropout.exprs, (node) =>
    node.kind === 'param' ? `p.drop_${node.slot}` : 'number',
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

/**
 * What `weight` needs of a row's statistics, its largest score and its sum: that score, and −log₂ of the sum. Where no key is
 * visible they are −∞ and 0; all scores are −∞ then, and their weights 0.
 */
export const shiftsFunction = `fn shifts(top: f32, sum: f32) -> vec2f {
return vec2f(select(top, 0.0, bitcast<u32>(top) == 0xff800000u), select(-log2(sum), 0.0, sum == 0.0));
}`
/** e^(score − largest) / sum: the difference first, for it is exact. */
export const weight = (score: string, largest: string, shift: string): string =>
  `exp2(fma(${score} - ${largest}, 1.4426950408889634, ${shift}))`

/** The factor of the weight in row i and column j of a thread, after `draw`. */
export const factor = ({ kn }: Tile, i: number, j: number): string =>
  `select(0.0, keep, (kept & ${2 ** (i * kn + j)}u) != 0u)`

/** Draws, and drops from `name`. */
export const drop = (form: Form, name: string, streamed: Streamed): string =>
  form.dropout
    ? `${draw(form, streamed)}\n${each(form.tile.rm, (i) => each(form.tile.kn, (j) => `${name}${i}_${j} *= ${factor(form.tile, i, j)};`))}\n`
    : ''
