/**
 * Gradients of attention in float16 on subgroup matrices. As in `attention/backward.ts`, P and dS = P ∘ (dP − δ) are computed
 * anew from what the forward pass saved of each row:
 *
 *   dQ = scale · dS K,   dK = scale · dSᵀ Q,   dV = Pᵀ dO
 *
 * in a kernel that holds a block of queries, and one that holds a block of keys; for heads wider than 64 two of these, for
 * the sums of both do not fit registers. What a workgroup holds stays in matrices. S and dP go through the same workgroup
 * memory one after the other, and P and dS then share its rows: with 18 KB, for heads of 64, two workgroups run on a core, and
 * barriers cost little.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention-half.test.ts.
 */

import type { View } from '@tilegrad/core'
import type { Matrices } from '../../device/matrices.ts'
import { block, i32, type Part, u32, type ValuesOf, when } from '../../wgsl/block.ts'
import { mathCode } from '../../wgsl/math.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { type Gradients, keyBases, queryBases } from './backward.ts'
import {
  colsOf,
  column,
  commonParams,
  each,
  type Form,
  operandIn,
  place,
  rowsOf,
  type Tile,
  threadsOf,
  turns,
  zeroScores,
} from './blocks.ts'
import { notFiniteFunction } from './careful.ts'
import {
  addProducts,
  carefulProducts,
  copied,
  lefts,
  matrixAliases,
  putHalves,
  rowOf,
  type Stage,
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
import {
  atEdge,
  draw,
  drop,
  droppedFunction,
  factor,
  forget,
  hide,
  scaled,
  shiftsFunction,
  weight,
} from './scores.ts'
import { reach, walk } from './visits.ts'

/** Both sums of keys fit registers. */
export const holdsBoth = ({ dq, dv }: Form): boolean => Math.max(dq, dv) <= 64

/** Vectors of `tb`: the blocks that stream by, and before them those that are held. */
const vectorsOf = ({ tile, dq, dv }: Form): number =>
  Math.max(colsOf(tile) * (rowOf(dq) + rowOf(dv)), rowsOf(tile) * Math.max(rowOf(dq), rowOf(dv)))
const scoreVectors = ({ tile }: Form): number => rowsOf(tile) * scoreRow(tile)

/** Bytes of workgroup memory. */
export const matrixBackwardBytes = (form: Form): number => 16 * (vectorsOf(form) + scoreVectors(form) + 1)

const params = (form: Form, gradients: Gradients) => {
  const x = operandIn(8)
  const gradient = (of: string): Part<View | null | undefined> => when(gradients.includes(of), operandIn(4))
  return block({
    ...{ common: commonParams, q: x, k: x, v: x, g: x, options: optionParams(form) },
    ...{ dq: gradient('q'), dk: gradient('k'), dv: gradient('v') },
  })
}

export function matrixBackwardShader(
  form: Form,
  gradients: Gradients,
  has: Matrices,
): Shader<ValuesOf<typeof params>> {
  const { tile, dropout, sharing } = form
  const ofQueries = gradients === 'q'
  const own = [...gradients].map((g) => `d${g}`)
  return {
    params: params(form, gradients),
    bindings: [
      { name: 'q', item: 'vec4<u32>' },
      { name: 'k', item: 'vec4<u32>' },
      { name: 'v', item: 'vec4<u32>' },
      { name: 'g', item: 'vec4<u32>' },
      { name: 'stat', item: 'vec4<f32>' },
      ...optionBindings(form),
      ...own
        .filter((_, n) => sharing[n] === n)
        .map((name) => ({ name, item: 'vec2<u32>', write: true }) as const),
    ],
    workgroup: [threadsOf(tile)],
    enables: has.enables,
    declarations: [
      matrixAliases,
      `var<workgroup> tb: array<vec4u, ${vectorsOf(form)}>;`,
      `var<workgroup> ts: array<vec4u, ${scoreVectors(form)}>;`,
      ...(ofQueries ? [notFiniteFunction, 'var<workgroup> flag: u32;'] : []),
      ...(dropout ? [droppedFunction(form)] : []),
    ].join('\n'),
    body: `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
${place(tile)}
${strip}
${ofQueries ? queriesBody(form) : keysBody(form, gradients)}`,
  }
}

const ofQuery = { first: 'q0', limit: 'p.queries' }
const ofKey = { first: 'k0', limit: 'p.keys' }

/** The blocks of operands: what loads each, the held ones from the start of `tb`. */
function stages(form: Form, ofQueries: boolean) {
  const { tile, dq, dv } = form
  const threads = threadsOf(tile)
  const [rows, cols] = [rowsOf(tile), colsOf(tile)]
  const behind = cols * rowOf(dq)
  const get = (from: string, of: typeof ofQuery, wide: boolean): Stage => {
    const held = (of === ofQuery) === ofQueries
    return stage({
      ...of,
      ...{ at: held || !wide ? 0 : behind, rows: held ? rows : cols, width: wide ? dv : dq, threads },
      ...{ from, base: `${from}Base`, columns: wide ? 'p.valueWidth' : 'p.width' },
    })
  }
  return {
    behind,
    q: get('q', ofQuery, false),
    g: get('g', ofQuery, true),
    k: get('k', ofKey, false),
    v: get('v', ofKey, true),
  }
}

/** Puts a block that is held into matrices. */
const held = (block: Stage, first: string, name: string, width: number): string => `${copied(block, first)}
workgroupBarrier();
${lefts(name, 0, width)}
workgroupBarrier();`

type Product = readonly [left: string, at: number, width: number]

/** Declares a thread's part of two products, S as s and dP as d, which go through `ts` one after the other. */
function twoScores(tile: Tile, first: Product, second: Product | null): string {
  const one = (
    [left, at, width]: Product,
    name: string,
  ): string => `${scoreProducts(tile, left, at, width, 'ts')}
workgroupBarrier();
${zeroScores(tile, name)}
${takeScores(tile, name, 'ts')}`
  return second ? `${one(first, 's')}\nworkgroupBarrier();\n${one(second, 'd')}` : one(first, 's')
}

/** Where in a row of scores a second row of weights begins. */
const behindWeights = (tile: Tile): number => colsOf(tile) / 8

function queriesBody(form: Form): string {
  const { tile, dq, dv } = form
  const { rm, kn } = tile
  const get = stages(form, true)
  const own = vectorsOfRow(tile, dq)
  const inside = (c: number): string => `i32(tx * 4u) + ${4 * tile.tx * c} < p.width`
  const blocks = streamed(form, [get.k, get.v], 'k0')
  const block = `${blocks.body}
workgroupBarrier();
${blocks.next}
${twoScores(tile, ['lq', 0, dq], ['lg', get.behind, dv])}
${scaled(form, 's', 'keys')}
${atEdge(form, 'keys', hide(form, 's', 'keys'))}
${drop(form, 'd', 'keys')}${each(rm, (i) =>
  each(
    kn,
    (j) =>
      `s${i}_${j} = ${weight(`s${i}_${j}`, `z${i}.x`, `z${i}.y`)}; d${i}_${j} = s${i}_${j} * (d${i}_${j} - z${i}.z);`,
  ),
)}
${atEdge(form, 'keys', forget(form, 'd', 's'))}
workgroupBarrier();
${putHalves(tile, 'd', 'ts', scoreRow(tile))}
workgroupBarrier();`
  return `${turns}
let q0 = i32(p.blocks - 1u - turn) * ${rowsOf(tile)};
let b = i32(head / p.heads); let h = i32(head % p.heads); let hk = i32(head % p.heads / p.group);
${queryBases(form)}
${keyBases}
${reach(form, 'keys')}
${held(get.q, 'q0', 'lq', dq)}
${held(get.g, 'q0', 'lg', dv)}
${each(rm, (i) => `let z${i} = stat[u32(firstRow + min(q0 + i32(ty) * ${rm} + ${i}, p.queries - 1))];`)}
${zeroMatrices('o', dq)}
{
${blocks.before}
${walk(
  form,
  'keys',
  `${block}
${addProducts(tile, 'o', 'ts', 0, 0, dq)}
workgroupBarrier();`,
)}
}
${zeroVectors(tile, 'r', dq)}
${takeMatrices(tile, 'o', dq, 'r')}
// What is hidden may be NaN or infinite: then all again, leaving out what has weight 0.
if (li == 0u) { flag = 0u; }
workgroupBarrier();
${each(own, (c) => `if (${inside(c)} && (${Array.from({ length: rm }, (_, i) => `unbounded(r${i}_${c})`).join(' || ')})) { flag = 1u; }`)}
if (workgroupUniformLoad(&flag) != 0u) {
${each(rm, (i) => each(own, (c) => `r${i}_${c} = vec4f();`))}
${blocks.before}
${walk(
  form,
  'keys',
  `${block}
${carefulProducts(tile, 'r', 'ts', scoreRow(tile), 0, dq, 'end - k0')}
workgroupBarrier();`,
)}
}
${storeHalves(tile, { to: 'dq', width: dq, columns: 'p.width', head: 'h', ...ofQuery, value: (i, c) => `r${i}_${c} * p.scale` })}`
}

function keysBody(form: Form, gradients: Gradients): string {
  const { tile, dq, dv, dropout, sharing } = form
  const { rm, kn } = tile
  const get = stages(form, false)
  const blocks = streamed(form, [get.q, get.g], 'q0')
  const [needK, needV] = [gradients.includes('k'), gradients.includes('v')]
  /** The binding of a result. */
  const to = (of: 'k' | 'v'): string => `d${gradients[sharing[gradients.indexOf(of)]]}`
  const product = (d: (i: number, j: number) => string): string =>
    each(rm, (i) => each(kn, (j) => `d${i}_${j} = s${i}_${j} * (${d(i, j)} - z${j}.z);`)) +
    atEdge(form, 'queries', forget(form, 'd', 's'))
  const dropped = (): string => {
    const keep = (i: number, j: number): string => factor(tile, i, j)
    return `${draw(form, 'queries')}
${needK ? product((i, j) => `d${i}_${j} * ${keep(i, j)}`) : ''}
${needV ? each(rm, (i) => each(kn, (j) => `s${i}_${j} *= ${keep(i, j)};`)) : ''}`
  }
  const result = (
    of: 'k' | 'v',
    name: string,
    width: number,
    times: string,
  ): string => `${zeroVectors(tile, `r${of}`, width)}
${takeMatrices(tile, name, width, `r${of}`)}
${storeHalves(tile, {
  ...{ to: to(of), name: `d${of}`, width, columns: of === 'k' ? 'p.width' : 'p.valueWidth' },
  ...{ head: 'hk', ...ofKey, value: (i: number, c: number) => `r${of}${i}_${c}${times}` },
})}`
  return `${turns}
let k0 = i32(turn) * ${rowsOf(tile)};
let keyHeads = p.heads / p.group;
let b = i32(head / keyHeads); let hk = i32(head % keyHeads);
${keyBases}
${reach(form, 'queries')}
${held(get.k, 'k0', 'lk', dq)}
${needK ? held(get.v, 'k0', 'lv', dv) : ''}
${needK ? zeroMatrices('x', dq) : ''}
${needV ? zeroMatrices('y', dv) : ''}
for (var h = hk * i32(p.group); h < (hk + 1) * i32(p.group); h++) {
${queryBases(form)}
${blocks.before}
${walk(
  form,
  'queries',
  `${blocks.body}
${each(kn, (j) => `let z${j} = stat[u32(firstRow + min(q0 + i32(tx) * 4 + ${column(tile, j)}, p.queries - 1))];`)}
workgroupBarrier();
${blocks.next}
${twoScores(tile, ['lk', 0, dq], needK ? ['lv', get.behind, dv] : null)}
${scaled(form, 's', 'queries')}
${atEdge(form, 'queries', hide(form, 's', 'queries'))}
${each(rm, (i) => each(kn, (j) => `s${i}_${j} = ${weight(`s${i}_${j}`, `z${j}.x`, `z${j}.y`)};`))}
${dropout ? dropped() : needK ? product((i, j) => `d${i}_${j}`) : ''}
workgroupBarrier();
${needV ? putHalves(tile, 's', 'ts', scoreRow(tile)) : ''}
${needK ? putHalves(tile, 'd', 'ts', scoreRow(tile), behindWeights(tile)) : ''}
workgroupBarrier();
${needV ? addProducts(tile, 'y', 'ts', 0, get.behind, dv) : ''}
${needK ? addProducts(tile, 'x', 'ts', behindWeights(tile), 0, dq) : ''}
workgroupBarrier();`,
)}
}
${needK ? result('k', 'x', dq, ' * p.scale') : ''}
${needV ? result('v', 'y', dv, '') : ''}`
}

const lanes = 8
/** Rows per workgroup of `matrixStatShader`. */
export const matrixStatRows = 32

const statParams = () =>
  block({
    ...{ rows: u32, heads: u32, queries: u32, width: u32 },
    ...{ g: operandIn(8), o: operandIn(8), statsAt: i32 },
  })

/** As `statShader` in `attention/backward.ts`, of rows in float16. */
export function matrixStatShader(): Shader<ValuesOf<typeof statParams>> {
  const dots = ['x', 'y', 'z', 'w'].map((e) => `sum += dot(tg_load_f16(a.${e}), tg_load_f16(c.${e}));`)
  return {
    params: statParams(),
    bindings: [
      { name: 'g', item: 'vec4<u32>' },
      { name: 'o', item: 'vec4<u32>' },
      { name: 'stats', item: 'f32' },
      { name: 'stat', item: 'vec4<f32>', write: true },
    ],
    workgroup: [lanes * matrixStatRows],
    declarations: `${mathCode(['tg_load_f16'])}
${shiftsFunction}
var<workgroup> t: array<f32, ${lanes * matrixStatRows}>;`,
    body: `let lane = li % ${lanes}u;
let row = (wg.x + wg.y * groups.x) * ${matrixStatRows}u + li / ${lanes}u;
let r = min(row, p.rows - 1u);
let q = r % p.queries; let head = r / p.queries;
let start = p.gAt + i32(head / p.heads) * p.gBatch + i32(head % p.heads) * p.gHead + i32(q) * p.gRow;
let at = p.oAt + i32(head / p.heads) * p.oBatch + i32(head % p.heads) * p.oHead + i32(q) * p.oRow;
var sum = 0.0;
for (var v = i32(lane); v < i32(p.width) / 8; v += ${lanes}) {
let a = g[u32(start + v)]; let c = o[u32(at + v)];
${dots.join(' ')}
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
