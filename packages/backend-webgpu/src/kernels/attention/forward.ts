/**
 * Forward attention for one block of queries (FlashAttention-2, Dao 2023): keys and values stream by in blocks; a running
 * maximum m and sum l per row; O rescaled where m grows. At the end O / l; m and l are kept for the gradients.
 *
 * Workgroup memory holds the block of queries, a block of keys, whose place the weights then take, and one of values. Blocks in which no key is visible are not visited; only those at an edge look at every score.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention.test.ts.
 */

import { block, i32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import {
  colsOf,
  columnSwizzle,
  commonParams,
  each,
  type Form,
  load,
  operand,
  place,
  power,
  putWeights,
  rowSwizzle,
  rowsInMemory,
  rowsOf,
  scores,
  store,
  sums,
  threadsOf,
  turns,
  zeroScores,
  zeroSums,
} from './blocks.ts'
import { carefully, carefulSums, notFinite, notFiniteFunction, notZero } from './careful.ts'
import { optionBindings, optionParams } from './options.ts'
import { atEdge, drop, droppedFunction, headOptions, hide, scaled } from './scores.ts'
import { reach, walk } from './visits.ts'

/** Bytes of workgroup memory. */
export function forwardBytes({ tile, dq, dv, shuffle, rowsInPlace, valuesInPlace }: Form): number {
  const [rows, cols] = [rowsOf(tile), colsOf(tile)]
  const blocks = (rowsInPlace ? 0 : rows * dq) + (valuesInPlace ? 0 : cols * dv)
  return 4 * (blocks + Math.max(cols * dq, rows * cols) + (shuffle ? 0 : rows * tile.tx))
}

/** Combines a number per row over the threads of the row: `name` + i; `and` is max or +. */
function combine(
  { tile: { rm, tx }, shuffle }: Form,
  name: string,
  and: (a: string, b: string) => string,
): string {
  if (shuffle) {
    const steps: string[] = []
    for (let step = 1; step < tx; step *= 2)
      steps.push(
        each(rm, (i) => `${name}${i} = ${and(`${name}${i}`, `subgroupShuffleXor(${name}${i}, ${step}u)`)};`),
      )
    return steps.join('\n')
  }
  const of = (i: number, t: number): string => `tr[(ty * ${rm}u + ${i}u) * ${tx}u + ${t}u]`
  return `workgroupBarrier();
${each(rm, (i) => `tr[(ty * ${rm}u + ${i}u) * ${tx}u + tx] = ${name}${i};`)}
workgroupBarrier();
${each(rm, (i) => {
  let all = of(i, 0)
  for (let t = 1; t < tx; t++) all = and(all, of(i, t))
  return `${name}${i} = ${all};`
})}`
}

const params = (form: Form) => {
  const x = operand(form.vectors)
  return block({ common: commonParams, q: x, k: x, v: x, options: optionParams(form), o: x, statsAt: i32 })
}

export function forwardShader(form: Form): Shader<ValuesOf<typeof params>> {
  const { tile, dq, dv, vectors, shuffle, rowsInPlace, valuesInPlace, exact, dropout } = form
  const { rm, kn, tx } = tile
  const [rows, cols, threads] = [rowsOf(tile), colsOf(tile), threadsOf(tile)]
  const [q4, v4] = [dq / 4, dv / 4]
  const item = vectors ? 'vec4<f32>' : 'f32'
  const common = { threads, vectors }
  const value = (column: string, vector: string): string =>
    exact
      ? `vAt + (${column}) * vRow + ${vector}`
      : `u32(vBase + min(k0 + i32(${column}), p.keys - 1) * p.vRow) + min(${vector}, last)`
  const values = valuesInPlace ? 'v' : 'tv'
  const weighed = [tile, 'o', 'tk', values, v4, false, 'end - k0', valuesInPlace ? value : undefined] as const
  const body = `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
${place(tile)}
// The last blocks of causal attention are the longest: they go first.
${turns}
let q0 = i32(p.blocks - 1u - turn) * ${rows};
let b = i32(head / p.heads); let h = i32(head % p.heads); let hk = i32(head % p.heads / p.group);
let qBase = p.qAt + b * p.qBatch + h * p.qHead;
let kBase = p.kAt + b * p.kBatch + hk * p.kHead;
let vBase = p.vAt + b * p.vBatch + hk * p.vHead;
${headOptions(form)}${dropout ? '\nlet firstRow = i32(head) * p.queries;' : ''}
${reach(form, 'keys')}
${rowsInPlace ? rowsInMemory(tile, 'q', 'qBase', 'q0', 'p.queries') : load({ ...common, to: 'tq', width4: q4, rows, from: 'q', base: 'qBase', first: 'q0', limit: 'p.queries', width: 'p.width', swizzle: rowSwizzle(tile) })}
${valuesInPlace ? (exact ? 'let vRow = u32(p.vRow);' : 'let last = u32(p.valueWidth / 4 - 1);') : ''}
${zeroSums(tile, 'o', v4)}
${each(rm, (i) => `var m${i} = p.ninf; var l${i} = 0.0;`)}
${carefully(
  `${each(rm, (i) => `m${i} = p.ninf; l${i} = 0.0; ${each(v4 / tx, (c) => `o${i}_${c} = vec4f();`)}`)}
${walk(
  form,
  'keys',
  `${load({ ...common, to: 'tk', width4: q4, rows: cols, from: 'k', base: 'kBase', first: 'k0', limit: 'p.keys', width: 'p.width', swizzle: columnSwizzle })}
${valuesInPlace ? '' : load({ ...common, to: 'tv', width4: v4, rows: cols, from: 'v', base: 'vBase', first: 'k0', limit: 'p.keys', width: 'p.valueWidth' })}
workgroupBarrier();
${zeroScores(tile, 's')}
${scores(tile, 's', rowsInPlace ? 'q' : 'tq', 'tk', q4, 'p.width', rowsInPlace)}
${scaled(form, 's', 'keys')}
${atEdge(form, 'keys', hide(form, 's', 'keys'))}
${each(rm, (i) => {
  let top = `s${i}_0`
  for (let j = 1; j < kn; j++) top = `max(${top}, s${i}_${j})`
  return `var x${i} = ${top};`
})}
${combine(form, 'x', (a, c) => `max(${a}, ${c})`)}
${each(
  rm,
  (i) => `let n${i} = max(m${i}, x${i}); let u${i} = select(n${i}, 0.0, n${i} == p.ninf);
let f${i} = ${power(`m${i} - u${i}`)}; m${i} = n${i}; l${i} *= f${i};`,
)}
if (careful) {
${each(rm, (i) => each(kn, (j) => `s${i}_${j} = ${notZero(`s${i}_${j}`, `u${i}`)};`))}
}
${each(
  rm,
  (i) => `${each(kn, (j) => `s${i}_${j} = ${power(`s${i}_${j} - u${i}`)}; l${i} += s${i}_${j};`)}
${each(v4 / tx, (c) => `o${i}_${c} *= f${i};`)}`,
)}
${drop(form, 's', 'keys')}${shuffle ? 'workgroupBarrier();' : ''}
${putWeights(tile, 's', 'tk')}
workgroupBarrier();
${exact ? 'let vAt = u32(vBase + k0 * p.vRow);' : ''}
if (careful) ${carefulSums(...weighed)} else ${sums(...weighed)}
workgroupBarrier();`,
)}`,
  notFinite(rm, v4 / tx, 'o'),
  'tk',
)}
${combine(form, 'l', (a, c) => `(${a} + ${c})`)}
let statsRow = p.statsAt + i32(head) * p.queries;
let statsPlane = i32(p.count / p.blocks) * p.queries;
${each(
  rm,
  (i) => `{ let row = q0 + i32(ty) * ${rm} + ${i};
if (tx == 0u && row < p.queries) { stats[u32(statsRow + row)] = m${i}; stats[u32(statsPlane + statsRow + row)] = l${i}; }
l${i} = select(1.0 / l${i}, 0.0, l${i} == 0.0); }`,
)}
${store(form, { to: 'o', width4: v4, width: 'p.valueWidth', head: 'h', first: 'q0', limit: 'p.queries', value: (i, c) => `o${i}_${c} * l${i}` })}`
  return {
    params: params(form),
    bindings: [
      { name: 'q', item },
      { name: 'k', item },
      { name: 'v', item },
      ...optionBindings(form),
      { name: 'o', item, write: true },
      { name: 'stats', item: 'f32', write: true },
    ],
    workgroup: [threads],
    ...(shuffle && { enables: ['subgroups'] }),
    declarations: `${notFiniteFunction}
${rowsInPlace ? '' : `var<workgroup> tq: array<vec4f, ${rows * q4}>;`}
var<workgroup> tk: array<vec4f, ${Math.max(cols * q4, (rows * cols) / 4)}>;
${valuesInPlace ? '' : `var<workgroup> tv: array<vec4f, ${cols * v4}>;`}
${shuffle ? '' : `var<workgroup> tr: array<f32, ${rows * tx}>;`}${dropout ? `\n${droppedFunction(form)}` : ''}`,
    body,
  }
}
