/**
 * Forward attention in float16 on subgroup matrices, for one block of queries: as in `attention/forward.ts`, keys and values
 * stream by in blocks. Queries stay in matrices, and so do the sums, whose rows cannot be multiplied by a factor there.
 * So the number m that is taken off a row's scores need not be their maximum: it is raised only when a score is larger by
 * more than `slack`, for all rows at once, and the sums then go through workgroup memory. That is rare after the first block
 * (the idea is FlashAttention-4's). Weights are at most e^slack, and add up in float32.
 *
 * Blocks are 64 × 32, and the next one is on its way while this one is computed with.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention-half.test.ts.
 */

import type { Matrices } from '../../device/matrices.ts'
import { block, i32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import {
  colsOf,
  commonParams,
  each,
  type Form,
  operandIn,
  place,
  power,
  rowsOf,
  threadsOf,
  turns,
  zeroScores,
} from './blocks.ts'
import { notFiniteFunction, notZero } from './careful.ts'
import {
  addProducts,
  carefulProducts,
  copied,
  lefts,
  matrixAliases,
  putHalves,
  rowOf,
  scaleRows,
  scoreProducts,
  scoreRow,
  stage,
  storeHalves,
  streamed,
  strip,
  takeMatrices,
  takeScores,
  vectorsOfRow,
  zeroMatrices,
  zeroVectors,
} from './matrix-blocks.ts'
import { optionBindings, optionParams } from './options.ts'
import { atEdge, drop, droppedFunction, headOptions, hide, scaled } from './scores.ts'
import { reach, walk } from './visits.ts'

/** e^−16 is a float16 that is not 0. */
const leastPower = 16

/** By how much scores may exceed what is taken off them. */
const slack = 5

/** Vectors of `tb`: keys and values, and before these the queries. */
const vectorsOf = ({ tile, dq, dv }: Form): number =>
  Math.max(colsOf(tile) * (rowOf(dq) + rowOf(dv)), rowsOf(tile) * rowOf(dq))
const scoresOf = ({ tile }: Form): number => rowsOf(tile) * scoreRow(tile)

/** Bytes of workgroup memory. */
export const matrixForwardBytes = (form: Form): number => 16 * (vectorsOf(form) + scoresOf(form) + 1)

const params = (form: Form) => {
  const x = operandIn(8)
  const o = operandIn(4)
  return block({ common: commonParams, q: x, k: x, v: x, options: optionParams(form), o, statsAt: i32 })
}

/** Combines a number per row over the threads of the row. */
const combine = (name: string, and: (a: string, b: string) => string): string =>
  [1, 2, 4]
    .map((step) =>
      each(4, (i) => `${name}${i} = ${and(`${name}${i}`, `subgroupShuffleXor(${name}${i}, ${step}u)`)};`),
    )
    .join('\n')

export function matrixForwardShader(form: Form, has: Matrices): Shader<ValuesOf<typeof params>> {
  const { tile, dq, dv, dropout } = form
  const { rm, kn } = tile
  const [rows, cols, threads] = [rowsOf(tile), colsOf(tile), threadsOf(tile)]
  const values = cols * rowOf(dq)
  const key = { from: 'k', base: 'kBase', first: 'k0', limit: 'p.keys', columns: 'p.width' }
  const value = { from: 'v', base: 'vBase', first: 'k0', limit: 'p.keys', columns: 'p.valueWidth' }
  const query = { from: 'q', base: 'qBase', first: 'q0', limit: 'p.queries', columns: 'p.width' }
  const blocks = streamed(
    form,
    [
      stage({ at: 0, rows: cols, width: dq, threads, ...key }),
      stage({ at: values, rows: cols, width: dv, threads, ...value }),
    ],
    'k0',
  )
  const scores = `${scoreProducts(tile, 'lq', 0, dq, 'ts')}
workgroupBarrier();
${zeroScores(tile, 's')}
${takeScores(tile, 's', 'ts')}
${scaled(form, 's', 'keys')}
${atEdge(form, 'keys', hide(form, 's', 'keys'))}
${each(rm, (i) => {
  let top = `s${i}_0`
  for (let j = 1; j < kn; j++) top = `max(${top}, s${i}_${j})`
  return `var x${i} = ${top};`
})}
${combine('x', (a, c) => `max(${a}, ${c})`)}`
  /** What is taken off scores becomes their maximum; `f{i}`: what earlier weights are multiplied by. */
  const raise = each(
    rm,
    (i) => `let n${i} = max(m${i}, x${i});
let f${i} = ${power(`m${i} - select(n${i}, 0.0, n${i} == p.ninf)`)}; m${i} = n${i}; l${i} *= f${i};`,
  )
  const base = each(rm, (i) => `let u${i} = select(m${i}, 0.0, m${i} == p.ninf);`)
  const powers = each(rm, (i) =>
    each(kn, (j) => `s${i}_${j} = ${power(`s${i}_${j} - u${i}`)}; l${i} += s${i}_${j};`),
  )
  const weights = putHalves(tile, 's', 'ts', scoreRow(tile))
  const own = vectorsOfRow(tile, dv)
  const inside = (c: number): string => `i32(tx * 4u) + ${4 * tile.tx * c} < p.valueWidth`
  const body = `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
${place(tile)}
${strip}
// The last blocks of causal attention are the longest: they go first.
${turns}
let q0 = i32(p.blocks - 1u - turn) * ${rows};
let b = i32(head / p.heads); let h = i32(head % p.heads); let hk = i32(head % p.heads / p.group);
let qBase = p.qAt + b * p.qBatch + h * p.qHead;
let kBase = p.kAt + b * p.kBatch + hk * p.kHead;
let vBase = p.vAt + b * p.vBatch + hk * p.vHead;
${headOptions(form)}${dropout ? '\nlet firstRow = i32(head) * p.queries;' : ''}
${reach(form, 'keys')}
${copied(stage({ at: 0, rows, width: dq, threads, ...query }), 'q0')}
workgroupBarrier();
${lefts('lq', 0, dq)}
workgroupBarrier();
${zeroMatrices('o', dv)}
${each(rm, (i) => `var m${i} = p.ninf; var l${i} = 0.0;`)}
var fresh = true;
{
${blocks.before}
${walk(
  form,
  'keys',
  `${blocks.body}
if (li == 0u) { flag = 0u; }
workgroupBarrier();
${blocks.next}
${scores}
if (${Array.from({ length: rm }, (_, i) => `x${i} > m${i} + ${slack}.0`).join(' || ')}) { flag = 1u; }
if (workgroupUniformLoad(&flag) != 0u) {
${raise}
if (!fresh) {
${scaleRows(tile, 'o', dv, (i) => `f${i}`)}
}
fresh = false;
}
${base}
${powers}
${drop(form, 's', 'keys')}${weights}
workgroupBarrier();
${addProducts(tile, 'o', 'ts', 0, values, dv)}
workgroupBarrier();`,
)}
}
${zeroVectors(tile, 'r', dv)}
${takeMatrices(tile, 'o', dv, 'r')}
// What is hidden may be NaN or infinite: then all again, leaving out what has weight 0.
if (li == 0u) { flag = 0u; }
workgroupBarrier();
${each(
  own,
  (c) =>
    `if (${inside(c)} && (${each(rm, (i) => `unbounded(r${i}_${c})`)
      .split('\n')
      .join(' || ')})) { flag = 1u; }`,
)}
if (workgroupUniformLoad(&flag) != 0u) {
${each(rm, (i) => `m${i} = p.ninf; l${i} = 0.0; ${each(own, (c) => `r${i}_${c} = vec4f();`)}`)}
${blocks.before}
${walk(
  form,
  'keys',
  `${blocks.body}
workgroupBarrier();
${blocks.next}
${scores}
${raise}
${base}
${each(rm, (i) => each(kn, (j) => `s${i}_${j} = ${notZero(`s${i}_${j}`, `u${i}`, leastPower)};`))}
${each(rm, (i) => each(own, (c) => `r${i}_${c} *= f${i};`))}
${powers}
${drop(form, 's', 'keys')}workgroupBarrier();
${weights}
workgroupBarrier();
${carefulProducts(tile, 'r', 'ts', scoreRow(tile), values, dv, 'end - k0')}
workgroupBarrier();`,
)}
}
${combine('l', (a, c) => `(${a} + ${c})`)}
let statsRow = p.statsAt + i32(head) * p.queries;
let statsPlane = i32(p.count / p.blocks) * p.queries;
${each(
  rm,
  (i) => `{ let row = q0 + i32(ty) * ${rm} + ${i};
if (tx == 0u && row < p.queries) { stats[u32(statsRow + row)] = m${i}; stats[u32(statsPlane + statsRow + row)] = l${i}; }
l${i} = select(1.0 / l${i}, 0.0, l${i} == 0.0); }`,
)}
${storeHalves(tile, { to: 'o', width: dv, columns: 'p.valueWidth', head: 'h', first: 'q0', limit: 'p.queries', value: (i, c) => `r${i}_${c} * l${i}` })}`
  return {
    params: params(form),
    bindings: [
      { name: 'q', item: 'vec4<u32>' },
      { name: 'k', item: 'vec4<u32>' },
      { name: 'v', item: 'vec4<u32>' },
      ...optionBindings(form),
      { name: 'o', item: 'vec2<u32>', write: true },
      { name: 'stats', item: 'f32', write: true },
    ],
    workgroup: [threads],
    enables: has.enables,
    declarations: `${matrixAliases}
${notFiniteFunction}
var<workgroup> tb: array<vec4u, ${vectorsOf(form)}>;
var<workgroup> ts: array<vec4u, ${scoresOf(form)}>;
var<workgroup> flag: u32;${dropout ? `\n${droppedFunction(form)}` : ''}`,
    body,
  }
}
