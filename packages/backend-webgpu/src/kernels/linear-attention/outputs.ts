/**
 * The rows that linear attention and its gradients are made of, for a block of rows of x and a block of columns of v:
 *
 *   Y = X S + (X Kᵀ ∘ M) V
 *
 * with S the state that the rows' chunk starts with, and K and V the rows from there to the diagonal. Scores go
 * through workgroup memory, where x was staged before. Then Y is divided by its norm, or multiplied by φ′.
 *
 * Reference: `LINEAR_ATTENTION` in core's ops/linear-attention/linear-attention.ts. Test: linear-attention.test.ts.
 */

import { block, i32, u32, type ValuesOf, when } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { each, operand } from '../attention/blocks.ts'
import {
  basis,
  depth,
  type Form,
  fadeBindings,
  getter,
  multiply,
  needsStat,
  place,
  productOf,
  rowOf,
  side,
  stageColumns,
  stageRows,
  type Tile,
  threads,
  vectorOf,
  zero,
} from './blocks.ts'
import { planParams } from './states.ts'

export const rowsOf = ({ tm }: Tile): number => side * tm
export const columnsOf = ({ tc }: Tile): number => side * tc

/** Vectors of workgroup memory: scores, or x; then k, v or a state; then a part of the state's extra vector. */
function sizes({ tile, blockO, reach }: Form) {
  const [rows, columns] = [rowsOf(tile), columnsOf(tile)]
  const row4 = rows / 4 + 1
  const inner = Math.max(depth, reach === 'all' ? 0 : columns) * row4
  const outer = depth * Math.max(blockO / 4, reach === 'all' ? 0 : columns / 4 + 1)
  return { row4, inner, outer, all: Math.max(inner + outer + depth / 4, rows * 2) }
}

/** Bytes of workgroup memory. */
export const outputsBytes = (form: Form): number => 16 * sizes(form).all

const params = (vectors: boolean, factor: boolean, norm: boolean) => {
  const x = operand(vectors)
  return block({
    ...{ plan: planParams, x, k: x, v: x, f: when(factor, x) },
    ...{ yAt: i32, normAt: when(norm, i32) },
  })
}

export function outputsShader(form: Form): Shader<ValuesOf<typeof params>> {
  const { kind, result, reach, local, vectors, blockO, tile } = form
  const { x, k, v, extra } = productOf(form)
  const faded = kind === 'faded'
  const { tm } = tile
  const tn = blockO / 8
  const o4 = blockO / 4
  const { row4, inner, outer, all } = sizes(form)
  const item = vectors ? 'vec4<f32>' : 'f32'
  const factor = kind === 'mean' && (result === 'q' || result === 'k')
  const norm = extra === 'norm'
  const stat = needsStat(form)
  const causal = reach !== 'all'

  const state = (at: string): string =>
    `states[segmentAt + ${at}]${local ? `${faded ? ' * kept' : ''} + states[localAt + ${at}]` : ''}`
  const second = `${inner}u`
  const stageX = stageColumns('0u', rowsOf(tile), 'x', 'r0', 'i', 'xLines')
  // Thread tx takes two of every 16 steps of the norm.
  const normSteps = each(
    2,
    (half) => `{ let z = s[${inner + outer + 2 * half}u + tx / 4u][tx % 4u];
${each(tm / 4, (g) => `n${g} += z * s[(${8 * half}u + tx) * ${row4}u + ${g * side}u + ty];`)} }`,
  )
  const through = `for (var i = 0; i < p.innerPad; i += ${depth}) {
${stageX}
${stageRows(second, o4, state(`u32(i + i32($r)) * p.outer4 + o0 / 4u + $c`))}
${norm ? `if (li < 4u) { let at = u32(p.innerPad) * p.outer4 + u32(i) / 4u + li; s[${inner + outer}u + li] = ${state('at')}; }` : ''}
workgroupBarrier();
${multiply('y', tm, tn, ['0u', row4], [second, o4], tile.unroll)}
${norm ? normSteps : ''}
workgroupBarrier();
}`
  const finish = norm
    ? `${each(tm / 4, (g) => `s[(${g * side}u + ty) * ${side}u + tx] = n${g};`)}
workgroupBarrier();
${each(
  tm / 4,
  (g) => `n${g} = vec4f(p.eps);
for (var t = 0u; t < ${side}u; t++) { n${g} += s[(${g * side}u + ty) * ${side}u + t]; }`,
)}`
    : ''
  const store = each(
    tm,
    (i) => `{ let row = r0 + i32(${rowOf(i)});
if (row < p.rows) {
let line = i32(head) * p.rows + row;
${norm ? `let f = 1.0 / n${i >> 2}[${i & 3}]; if (tx == 0u && bo == 0u) { norm[u32(p.normAt + line)] = n${i >> 2}[${i & 3}]; }` : ''}
${each(tn / 4, (h) => {
  const scale = norm ? ' * f' : factor ? ` * get_f(0, fBase, row, column)` : ''
  const to = 'p.yAt + line * p.outer + column'
  const put = vectors
    ? `if (column < p.outer) { y[u32(${to}) / 4u] = x; }`
    : `for (var e = 0; e < 4; e++) { if (column + e < p.outer) { y[u32(${to} + e)] = x[e]; } }`
  return `{ let column = i32(o0 + (${vectorOf(h)}) * 4u); let x = y${i}_${h}${scale}; ${put} }`
})}
} }`,
  )
  return {
    params: params(vectors, factor, norm),
    bindings: [
      { name: 'x', item },
      ...(causal ? (['k', 'v'] as const).map((name) => ({ name, item }) as const) : []),
      ...(factor ? [{ name: 'f', item } as const] : []),
      ...(stat ? [{ name: 'stat', item: 'f32' } as const] : []),
      ...fadeBindings(form),
      { name: 'states', item: 'vec4<f32>' },
      { name: 'y', item, write: true },
      ...(norm ? [{ name: 'norm', item: 'f32', write: true } as const] : []),
    ],
    workgroup: [threads],
    declarations: `var<workgroup> s: array<vec4f, ${all}>;
${getter('x', x, form, 'p.rows', 'p.inner')}
${causal ? getter('k', k, form, 'p.keys', 'p.inner') : ''}
${causal ? getter('v', v, form, 'p.keys', 'p.outer') : ''}
${factor ? getter('f', 'slope', form, 'p.rows', 'p.outer') : ''}`,
    body: `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
${place}
let bo = index % p.blocksO;
let tiles = u32(p.rows + ${rowsOf(tile) - 1}) / ${rowsOf(tile)}u;
let item = index / p.blocksO;
let r0 = i32(item % tiles) * ${rowsOf(tile)}; let o0 = bo * ${blockO}u;
let head = item / tiles;
let b = i32(head / p.heads); let h = i32(head % p.heads);
let xLines = i32(head) * p.rows; let lines = i32(head) * p.keys;
let xBase = ${basis('x')};
${causal ? `let kBase = ${basis('k')}; let vBase = ${basis('v')};` : ''}
${factor ? `let fBase = ${basis('f')};` : ''}
${causal ? 'let chunk = u32(r0 / p.chunkRows);' : ''}
let segmentAt = p.segmentsAt + (head * p.segments${causal ? ' + chunk / p.segmentChunks' : ''}) * p.stateSize;
${local ? 'let localAt = (head * p.chunks + chunk) * p.stateSize;' : ''}
${local && faded ? 'let kept = fade[p.chunkFadeAt + head * p.chunks + chunk].x;' : ''}
${zero('y', tm, tn)}
${norm ? each(tm / 4, (g) => `var n${g} = vec4f();`) : ''}
${extra === 'x' ? each(tm, (i) => `let e${i} = stat[u32(xLines + min(r0 + i32(${rowOf(i)}), p.rows - 1)) * 2u + 1u];`) : ''}
${
  extra === 'x' || extra === 'k'
    ? each(
        tn / 4,
        (h) => `{ let at = u32(p.innerPad) * p.outer4 + o0 / 4u + ${vectorOf(h)}; let z = ${state('at')};
${each(tm, (i) => `y${i}_${h} = ${extra === 'x' ? `e${i} * z` : 'z'};`)} }`,
      )
    : ''
}
${through}
${
  faded
    ? each(
        tm,
        (i) => `let w${i} = fade[u32(lines + min(r0 + i32(${rowOf(i)}), p.rows - 1))];
${each(tn / 4, (h) => `y${i}_${h} *= w${i}.${reach === 'past' ? 'x' : 'y'};`)}`,
      )
    : ''
}
${causal ? near(form, stageX, row4, second) : ''}
${finish}
${store}`,
  }
}

/** Adds (X Kᵀ ∘ M) V of the rows of k and v in the chunk. */
function near(form: Form, stageX: string, row4: number, second: string): string {
  const { kind, reach, blockO, tile } = form
  const { extra } = productOf(form)
  const { tm, tc } = tile
  const columns = columnsOf(tile)
  const past = reach === 'past'
  const column = (h: number, e: number): string => `j0 + i32((${vectorOf(h)}) * 4u) + ${e}`
  const extraOf = (i: number, h: number): string =>
    extra === 'x' ? ` + e${i}` : extra === 'k' ? ` + ke${h}` : ''
  return `let begin = ${past ? 'i32(chunk) * p.chunkRows' : 'r0'};
let stop = min(p.keys, ${past ? `r0 + ${rowsOf(tile)}` : 'i32(chunk + 1u) * p.chunkRows'});
for (var j0 = begin; j0 < stop; j0 += ${columns}) {
${zero('c', tm, tc)}
for (var i = 0; i < p.innerPad; i += ${depth}) {
${stageX}
${stageColumns(second, columns, 'k', 'j0', 'i', 'lines')}
workgroupBarrier();
${multiply('c', tm, tc, ['0u', row4], [second, columns / 4 + 1], tile.unroll)}
workgroupBarrier();
}
${each(tc / 4, (h) => {
  const ke = [0, 1, 2, 3].map((e) => `stat[u32(lines + min(${column(h, e)}, p.keys - 1)) * 2u + 1u]`)
  const fades = [0, 1, 2, 3].map((e) => `fade[u32(lines + min(${column(h, e)}, p.keys - 1))]`)
  const part = (which: string): string => fades.map((_, e) => `f${h}_${e}.${which}`).join(', ')
  const fade = `${fades.map((f, e) => `let f${h}_${e} = ${f};`).join('\n')}
let fh${h} = vec4f(${part('z')}); let fl${h} = vec4f(${part('w')});`
  return `${kind === 'faded' ? fade : ''}
${extra === 'k' ? `let ke${h} = vec4f(${ke.join(', ')});` : ''}
let js${h} = vec4i(${column(h, 0)}) + vec4i(0, 1, 2, 3);`
})}
${each(tm, (i) => {
  const seen = (h: number): string => `js${h} ${past ? '<=' : '>='} vec4i(r0 + i32(${rowOf(i)}))`
  const between = (h: number): string =>
    past ? `(w${i}.z - fh${h}) + (w${i}.w - fl${h})` : `(fh${h} - w${i}.z) + (fl${h} - w${i}.w)`
  const faded = (h: number): string => (kind === 'faded' ? ` * exp(${between(h)})` : '')
  return each(
    tc / 4,
    (h) => `c${i}_${h} = select(vec4f(), c${i}_${h}${extraOf(i, h)}${faded(h)}, ${seen(h)});`,
  )
})}
${
  extra === 'norm'
    ? each(tm, (i) => each(tc / 4, (h) => `n${i >> 2}[${i & 3}] += dot(c${i}_${h}, vec4f(1.0));`))
    : ''
}
${each(tc / 4, (h) =>
  each(4, (e) =>
    each(tm / 4, (g) => {
      const four = [0, 1, 2, 3].map((r) => `c${4 * g + r}_${h}[${e}]`)
      return `s[((${vectorOf(h)}) * 4u + ${e}u) * ${row4}u + ${g * side}u + ty] = vec4f(${four.join(', ')});`
    }),
  ),
)}
for (var j = 0; j < ${columns}; j += ${depth}) {
${stageRows(second, blockO / 4, 'get_v(lines, vBase, j0 + j + i32($r), i32(o0 + $c * 4u))')}
workgroupBarrier();
${multiply('y', tm, blockO / 8, [`u32(j) * ${row4}u`, row4], [second, blockO / 4], tile.unroll)}
workgroupBarrier();
}
}`
}

const lanes = 16
/** Rows per workgroup of `statShader`. */
export const statRows = 16

const statParams = (vectors: boolean) =>
  block({
    ...{ rows: u32, heads: u32, queries: u32, width: u32 },
    ...{ g: operand(vectors), oAt: i32, normAt: i32 },
  })

/** Computes 1 / n and −δ / n with δ = sum(dO ∘ O) for every row of queries, by 16 threads per row. */
export function statShader(vectors: boolean): Shader<ValuesOf<typeof statParams>> {
  const item = vectors ? 'vec4<f32>' : 'f32'
  const step = vectors ? 4 : 1
  return {
    params: statParams(vectors),
    bindings: [
      { name: 'g', item },
      { name: 'o', item },
      { name: 'norm', item: 'f32' },
      { name: 'stat', item: 'f32', write: true },
    ],
    workgroup: [lanes * statRows],
    declarations: `var<workgroup> t: array<f32, ${lanes * statRows}>;`,
    body: `let lane = li % ${lanes}u;
let row = (wg.x + wg.y * groups.x) * ${statRows}u + li / ${lanes}u;
let r = min(row, p.rows - 1u);
let head = r / p.queries;
let start = p.gAt + i32(head / p.heads) * p.gBatch + i32(head % p.heads) * p.gHead + i32(r % p.queries) * p.gRow;
let at = (p.oAt + i32(r * p.width)) / ${step};
var sum = 0.0;
for (var c = i32(lane); c < i32(p.width) / ${step}; c += ${lanes}) {
${vectors ? 'sum += dot(g[u32(start + c)], o[u32(at + c)]);' : 'sum += g[u32(start + c * p.gStep)] * o[u32(at + c)];'}
}
t[li] = sum;
workgroupBarrier();
if (lane == 0u && row < p.rows) {
for (var i = 1u; i < ${lanes}u; i++) { sum += t[li + i]; }
let inverse = 1.0 / norm[u32(p.normAt) + row];
stat[row * 2u] = inverse;
stat[row * 2u + 1u] = -sum * inverse;
}`,
  }
}
