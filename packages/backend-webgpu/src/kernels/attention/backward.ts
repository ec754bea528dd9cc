/**
 * Gradients of attention (FlashAttention-2, Dao 2023), deterministic and without atomics: one kernel for dQ, whose
 * workgroups hold a block of queries while keys stream by; one for dK and dV, the other way round. Each recomputes
 * P = e^(S − m) / l, of the forward pass's maxima and sums, and dP = dO Vᵀ; dS = P ∘ (dP − δ) with δ = rowsum(dO ∘ O),
 * which a small kernel computes first:
 *
 *   dQ = scale · dS K,   dK = scale · dSᵀ Q,   dV = Pᵀ dO
 *
 * Weights that threads exchange take the place of the block of V, which dK and dV then read anew for every block: it
 * is in the cache, and this lets blocks of 64 × 32 fit in 48 KiB.
 *
 * For heads up to 64 wide the second kernel takes 64 × 64 in 24 KiB: dO takes the place of Q once S is there, weights go around
 * in halves, and Q is read in place the second time.
 *
 * Where memory allows, the second kernel stores dS, and a product makes dQ of it: see `attention/stored.ts`. Where all keys
 * fit one block, it makes dQ and δ itself: see `attention/short.ts`.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention.test.ts.
 */

import type { View } from '@tilegrad/core'
import { block, group, i32, type Part, u32, type ValuesOf, when } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import {
  colsOf,
  column,
  columnSwizzle,
  commonParams,
  each,
  type Form,
  load,
  operand,
  place,
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
import { carefully, carefulSums, notFinite, notFiniteFunction } from './careful.ts'
import { optionBindings, optionParams } from './options.ts'
import {
  atEdge,
  draw,
  drop,
  droppedFunction,
  factor,
  forget,
  headOptions,
  hide,
  scaled,
  shiftsFunction,
  weight,
} from './scores.ts'
import { putDeltas, storeDq, takeDeltas } from './short.ts'
import { putStored, storedParams, zeroStored } from './stored.ts'
import { reach, walk } from './visits.ts'

/** Which gradients a kernel computes; all of them only where all keys fit its block: see attention/short.ts. */
export type Gradients = 'q' | 'k' | 'v' | 'kv' | 'qkv'

const takesTurns = ({ tile, rowsInPlace, dq, dv }: Form): boolean =>
  tile.inTurn === true && rowsInPlace && Math.max(dq, dv) <= 64
/** The number of parts in which weights are exchanged: 2 where queries and dO take turns, except with dQ, of whole rows. */
const partsOf = (form: Form, gradients: Gradients): number =>
  takesTurns(form) && gradients !== 'qkv' ? 2 : 1

/** Floats of workgroup memory by name. Weights take the place of a block of values, or have one of their own. */
function tilesOf(form: Form, gradients: Gradients): Record<string, number> {
  const { tile, dq, dv, rowsInPlace } = form
  const [rows, cols] = [rowsOf(tile), colsOf(tile)]
  const weights = rows * cols
  if (gradients === 'q') {
    const streamed = { tk: cols * dq, tv: Math.max(cols * dv, weights) }
    return rowsInPlace ? streamed : { tq: rows * dq, tg: rows * dv, ...streamed }
  }
  if (takesTurns(form)) return { tv: weights / partsOf(form, gradients), tq: cols * Math.max(dq, dv) }
  const streamed = { tq: cols * dq, tg: cols * dv }
  return rowsInPlace
    ? { tv: weights, ...streamed }
    : { tk: rows * dq, tv: Math.max(rows * dv, weights), ...streamed }
}

/** Bytes of workgroup memory; ∞ where there is no such kernel. */
export const backwardBytes = (form: Form, gradients: Gradients): number =>
  (form.tile.inTurn && !(takesTurns(form) && gradients !== 'q')) || (gradients === 'qkv' && !form.rowsInPlace)
    ? Infinity
    : Object.values(tilesOf(form, gradients)).reduce((sum, floats) => sum + 4 * floats, 0)

const params = (form: Form, gradients: Gradients) => {
  const x = operand(form.vectors)
  const gradient = (of: string): Part<View | null | undefined> => when(gradients.includes(of), x)
  return block({
    ...{ common: commonParams, q: x, k: x, v: x, g: x, options: optionParams(form) },
    short: when(gradients === 'qkv', group({ o: x, statsAt: i32 })),
    stored: when(form.stored, storedParams),
    ...{ dq: gradient('q'), dk: gradient('k'), dv: gradient('v') },
  })
}

export function backwardShader(form: Form, gradients: Gradients): Shader<ValuesOf<typeof params>> {
  const { tile, vectors, dropout, stored, sharing } = form
  const item = vectors ? 'vec4<f32>' : 'f32'
  const ofQueries = gradients === 'q'
  const own = [...gradients].map((g) => `d${g}`)
  const short = gradients === 'qkv'
  return {
    params: params(form, gradients),
    bindings: [
      { name: 'q', item },
      { name: 'k', item },
      { name: 'v', item },
      { name: 'g', item },
      ...(short ? [{ name: 'o', item } as const, { name: 'stats', item: 'f32' } as const] : []),
      ...(short ? [] : [{ name: 'stat', item: 'vec4<f32>' } as const]),
      ...optionBindings(form),
      ...own.filter((_, n) => sharing[n] === n).map((name) => ({ name, item, write: true }) as const),
      ...(stored ? [{ name: 'ds', item: 'vec4<f32>', write: true } as const] : []),
    ],
    workgroup: [threadsOf(tile)],
    declarations: [
      ...Object.entries(tilesOf(form, gradients)).map(
        ([name, floats]) => `var<workgroup> ${name}: array<vec4f, ${floats / 4}>;`,
      ),
      ...(ofQueries ? [notFiniteFunction] : []),
      ...(short ? [notFiniteFunction, shiftsFunction] : []),
      ...(dropout ? [droppedFunction(form)] : []),
    ].join('\n'),
    body: `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
${place(tile)}
${ofQueries ? queriesBody(form) : keysBody(form, gradients)}`,
  }
}

/** Loads of tiles of rows and of columns. */
function loads(form: Form, ofQueries: boolean) {
  const { tile, dq, dv, vectors, rowsInPlace } = form
  const common = { threads: threadsOf(tile), vectors }
  const held = { ...common, rows: rowsOf(tile), swizzle: rowSwizzle(tile) }
  const streamed = { ...common, rows: colsOf(tile), swizzle: columnSwizzle }
  const [queries, keys] = ofQueries ? [held, streamed] : [streamed, held]
  const [ofQuery, ofKey] = [
    { first: 'q0', limit: 'p.queries' },
    { first: 'k0', limit: 'p.keys' },
  ]
  const [narrow, wide] = [
    { width4: dq / 4, width: 'p.width' },
    { width4: dv / 4, width: 'p.valueWidth' },
  ]
  const get = (of: typeof ofQuery, name: string, size: typeof narrow, more = {}): string =>
    rowsInPlace && (of === ofQuery) === ofQueries
      ? rowsInMemory(tile, name, `${name}Base`, of.first, of.limit)
      : load({
          ...(of === ofQuery ? queries : keys),
          ...of,
          ...size,
          to: `t${name}`,
          from: name,
          base: `${name}Base`,
          ...more,
        })
  return {
    q: get(ofQuery, 'q', narrow),
    g: get(ofQuery, 'g', wide, takesTurns(form) ? { to: 'tq' } : {}),
    k: get(ofKey, 'k', narrow),
    v: get(ofKey, 'v', wide),
  }
}

export const keyBases = `let kBase = p.kAt + b * p.kBatch + hk * p.kHead;
let vBase = p.vAt + b * p.vBatch + hk * p.vHead;`
export const queryBases = (form: Form): string => `let qBase = p.qAt + b * p.qBatch + h * p.qHead;
let gBase = p.gAt + b * p.gBatch + h * p.gHead;
let firstRow = (b * i32(p.heads) + h) * p.queries;
${headOptions(form)}`

function queriesBody(form: Form): string {
  const { tile, dq, dv, rowsInPlace } = form
  const { rm, kn, tx } = tile
  const rows = rowsOf(tile)
  const [q4, v4] = [dq / 4, dv / 4]
  const get = loads(form, true)
  const weighed = [tile, 'o', 'tv', 'tk', q4, true, 'end - k0'] as const
  return `${turns}
let q0 = i32(p.blocks - 1u - turn) * ${rows};
let b = i32(head / p.heads); let h = i32(head % p.heads); let hk = i32(head % p.heads / p.group);
${queryBases(form)}
${keyBases}
${reach(form, 'keys')}
${get.q}
${get.g}
${each(rm, (i) => `let z${i} = stat[u32(firstRow + min(q0 + i32(ty) * ${rm} + ${i}, p.queries - 1))];`)}
${zeroSums(tile, 'o', q4)}
${carefully(
  `${each(rm, (i) => each(q4 / tx, (c) => `o${i}_${c} = vec4f();`))}
${walk(
  form,
  'keys',
  `${get.k}
${get.v}
workgroupBarrier();
${zeroScores(tile, 's')}
${scores(tile, 's', rowsInPlace ? 'q' : 'tq', 'tk', q4, 'p.width', rowsInPlace)}
${scaled(form, 's', 'keys')}
${atEdge(form, 'keys', hide(form, 's', 'keys'))}
${zeroScores(tile, 'd')}
${scores(tile, 'd', rowsInPlace ? 'g' : 'tg', 'tv', v4, 'p.valueWidth', rowsInPlace)}
${drop(form, 'd', 'keys')}${each(rm, (i) =>
  each(
    kn,
    (j) =>
      `s${i}_${j} = ${weight(`s${i}_${j}`, `z${i}.x`, `z${i}.y`)}; d${i}_${j} = s${i}_${j} * (d${i}_${j} - z${i}.z);`,
  ),
)}
${atEdge(form, 'keys', forget(form, 'd', 's'))}
workgroupBarrier();
${putWeights(tile, 'd', 'tv')}
workgroupBarrier();
if (careful) ${carefulSums(...weighed)} else ${sums(...weighed)}
workgroupBarrier();`,
)}`,
  notFinite(rm, q4 / tx, 'o'),
  'tk',
)}
${store(form, { to: 'dq', width4: q4, width: 'p.width', head: 'h', first: 'q0', limit: 'p.queries', value: (i, c) => `o${i}_${c} * p.scale` })}`
}

function keysBody(form: Form, gradients: Gradients): string {
  const { tile, dq, dv, rowsInPlace, dropout, stored, sharing } = form
  const { rm, kn } = tile
  const [rows, cols] = [rowsOf(tile), colsOf(tile)]
  const [q4, v4] = [dq / 4, dv / 4]
  const get = loads(form, false)
  const [needK, needV] = [gradients.includes('k'), gradients.includes('v')]
  const short = gradients === 'qkv'
  /** The binding of a result. */
  const to = (of: 'q' | 'k' | 'v'): string => `d${gradients[sharing[gradients.indexOf(of)]]}`
  const inTurn = takesTurns(form)
  const tg = inTurn ? 'tq' : 'tg'
  /** A vector of a query of the block, where it lies. */
  const query = (column: string, vector: string): string =>
    form.exact
      ? `u32(qBase + q0 * p.qRow) + (${column}) * qStep + ${vector}`
      : `u32(qBase + min(q0 + i32(${column}), p.queries - 1) * p.qRow) + min(${vector}, last)`
  /** Hands the weights \`of\` around, and adds what comes of them to \`sum\`. */
  const exchanged = (
    sum: string,
    of: string,
    b: string,
    width4: number,
    row?: (column: string, vector: string) => string,
  ): string => {
    const parts = partsOf(form, gradients)
    return Array.from({ length: parts }, (_, index) => {
      const part = { index, of: parts }
      const count = index === 0 ? 'end - q0' : `end - q0 - ${(index * cols) / parts}`
      const code = sums(tile, sum, 'tv', b, width4, row === undefined, count, row, part)
      const add = index === 0 ? code : `if (${count} > 0) ${code}`
      return `${putWeights(tile, of, 'tv', part)}\nworkgroupBarrier();\n${add}`
    }).join('\nworkgroupBarrier();\n')
  }
  // With all keys in one block, dQ is made of the whole block, also of what lies beyond the last key.
  const more = short ? ` || k0 + ${rows} > p.keys` : ''
  const ofKey = { head: 'hk', first: 'k0', limit: 'p.keys' }
  const product = (d: (i: number, j: number) => string): string =>
    each(rm, (i) => each(kn, (j) => `d${i}_${j} = s${i}_${j} * (${d(i, j)} - z${j}.z);`)) +
    atEdge(form, 'queries', forget(form, 'd', 's'), more)
  /** Keys get gradients by all weights, and by what values get of those that are kept. */
  const dropped = (): string => {
    const keep = (i: number, j: number): string => factor(tile, i, j)
    return `${draw(form, 'queries')}
${needK ? product((i, j) => `d${i}_${j} * ${keep(i, j)}`) : ''}
${needV ? each(rm, (i) => each(kn, (j) => `s${i}_${j} *= ${keep(i, j)};`)) : ''}
`
  }
  return `${turns}${stored ? '\nhead += p.firstHead;' : ''}
let k0 = i32(turn) * ${rows};
let keyHeads = p.heads / p.group;
let b = i32(head / keyHeads); let hk = i32(head % keyHeads);
${keyBases}
${short ? 'let begin = 0; let end = p.queries;' : reach(form, 'queries')}
${get.k}
${rowsInPlace && needK ? get.v : ''}
${inTurn ? 'let qStep = u32(p.qRow); let last = u32(p.width / 4 - 1);' : ''}
${needK ? zeroSums(tile, 'x', q4) : ''}
${needV ? zeroSums(tile, 'y', v4) : ''}
for (var h = hk * i32(p.group); h < (hk + 1) * i32(p.group); h++) {
${queryBases(form)}
${short ? 'let oBase = p.oAt + b * p.oBatch + h * p.oHead;' : ''}
${stored ? zeroStored(tile) : ''}
${walk(
  form,
  'queries',
  `${get.q}
${inTurn ? '' : get.g}
${needK && !rowsInPlace ? get.v : ''}
${short ? putDeltas(form) : each(kn, (j) => `let z${j} = stat[u32(firstRow + min(q0 + i32(tx) * 4 + ${column(tile, j)}, p.queries - 1))];`)}
workgroupBarrier();
${short ? takeDeltas(form) : ''}
${zeroScores(tile, 's')}
${scores(tile, 's', rowsInPlace ? 'k' : 'tk', 'tq', q4, 'p.width', rowsInPlace)}
${scaled(form, 's', 'queries')}
${atEdge(form, 'queries', hide(form, 's', 'queries'), more)}
${each(rm, (i) => each(kn, (j) => `s${i}_${j} = ${weight(`s${i}_${j}`, `z${j}.x`, `z${j}.y`)};`))}
${inTurn ? `workgroupBarrier();\n${get.g}\nworkgroupBarrier();` : ''}
${needK ? `${zeroScores(tile, 'd')}\n${scores(tile, 'd', rowsInPlace ? 'v' : 'tv', tg, v4, 'p.valueWidth', rowsInPlace)}` : ''}
${dropout ? dropped() : ''}${rowsInPlace && (inTurn || !short) ? '' : 'workgroupBarrier();'}
${needV ? exchanged('y', 's', tg, v4) : ''}
${needK && !dropout ? product((i, j) => `d${i}_${j}`) : ''}
${stored ? putStored(tile, 'd') : ''}
${needK && needV ? 'workgroupBarrier();' : ''}
${needK ? exchanged('x', 'd', inTurn ? 'q' : 'tq', q4, inTurn ? query : undefined) : ''}
${short ? storeDq(form, to('q')) : ''}
workgroupBarrier();`,
)}
}
${needK ? store(form, { to: to('k'), name: 'dk', width4: q4, width: 'p.width', ...ofKey, value: (i, c) => `x${i}_${c} * p.scale` }) : ''}
${needV ? store(form, { to: to('v'), name: 'dv', width4: v4, width: 'p.valueWidth', ...ofKey, value: (i, c) => `y${i}_${c}` }) : ''}`
}

const lanes = 16
/** Rows per workgroup of `statShader`. */
export const statRows = 16

const statParams = (vectors: boolean) =>
  block({
    ...{ rows: u32, heads: u32, queries: u32, width: u32 },
    ...{ g: operand(vectors), o: operand(vectors), statsAt: i32 },
  })

/** Computes what `weight` takes of the softmax and δ = sum(dO ∘ O) for every row of queries, by 16 threads per row. */
export function statShader({ vectors }: Pick<Form, 'vectors'>): Shader<ValuesOf<typeof statParams>> {
  const item = vectors ? 'vec4<f32>' : 'f32'
  const step = vectors ? 4 : 1
  return {
    params: statParams(vectors),
    bindings: [
      { name: 'g', item },
      { name: 'o', item },
      { name: 'stats', item: 'f32' },
      { name: 'stat', item: 'vec4<f32>', write: true },
    ],
    workgroup: [lanes * statRows],
    declarations: `${shiftsFunction}
var<workgroup> t: array<f32, ${lanes * statRows}>;`,
    body: `let lane = li % ${lanes}u;
let row = (wg.x + wg.y * groups.x) * ${statRows}u + li / ${lanes}u;
let r = min(row, p.rows - 1u);
let q = r % p.queries; let head = r / p.queries;
let start = p.gAt + i32(head / p.heads) * p.gBatch + i32(head % p.heads) * p.gHead + i32(q) * p.gRow;
let at = p.oAt + i32(head / p.heads) * p.oBatch + i32(head % p.heads) * p.oHead + i32(q) * p.oRow;
var sum = 0.0;
for (var c = i32(lane); c < i32(p.width) / ${step}; c += ${lanes}) {
${vectors ? 'sum += dot(g[u32(start + c)], o[u32(at + c)]);' : 'sum += g[u32(start + c * p.gStep)] * o[u32(at + c * p.oStep)];'}
}
t[li] = sum;
workgroupBarrier();
if (lane == 0u && row < p.rows) {
for (var i = 1u; i < ${lanes}u; i++) { sum += t[li + i]; }
let at = u32(p.statsAt) + row;
stat[row] = vec4f(shifts(stats[at], stats[at + p.rows]), sum, 0.0);
}`,
  }
}
