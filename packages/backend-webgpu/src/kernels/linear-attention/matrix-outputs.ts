/**
 * The rows of linear attention and its gradients as in `outputs.ts`, of operands in float16, on subgroup matrices:
 *
 *   Y = X S + (X Kᵀ ∘ M) V
 *
 * 64 rows of a block of columns per workgroup. A state is float32: it is multiplied as two float16, a high and a low part, with
 * a scale of its own. Scores are rounded once, with a scale per row. Each product's sums go through workgroup memory to
 * threads that undo scales and add up in float32. dO is taken as it is, and the 1 / n of its row multiplies what comes of it.
 *
 * Reference: `LINEAR_ATTENTION` in core's ops/linear-attention/linear-attention.ts. Test: linear-attention-half.test.ts.
 */

import type { Matrices } from '../../device/matrices.ts'
import { block, i32, u32, type ValuesOf, when } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { each, operandIn } from '../attention/blocks.ts'
import { basis, features, needsStat, productOf } from './blocks.ts'
import {
  halfRow,
  isExact,
  largestOf,
  largestOfAll,
  type MatrixForm,
  matrixAliases,
  matrixFunctions,
  matrixRows,
  multiplyInto,
  operandOf,
  rightRows,
  storeSums,
  sumOf,
  sumRow,
  takeFunction,
} from './matrix-blocks.ts'
import { planParams } from './states.ts'

const threads = 2 * matrixRows

/** Vectors of workgroup memory. */
function sizeOf({ inner, blockO }: MatrixForm): number {
  const stateRows = Math.min(inner, 64)
  return Math.max(
    matrixRows * halfRow(inner),
    2 * stateRows * halfRow(blockO),
    matrixRows * sumRow(Math.max(matrixRows, blockO)),
    matrixRows * (halfRow(matrixRows) + halfRow(blockO)),
  )
}

/** Bytes of workgroup memory, at most. */
export const matrixOutputsBytes = (form: MatrixForm): number => 16 * sizeOf(form) + 24 * matrixRows + 64

const params = (factor: boolean, norm: boolean) => {
  const x = operandIn(8)
  return block({
    ...{ plan: planParams, x, k: x, v: x, f: when(factor, x) },
    ...{ yAt: i32, normAt: when(norm, i32) },
  })
}

export function matrixOutputsShader(form: MatrixForm, has: Matrices): Shader<ValuesOf<typeof params>> {
  const { result, reach, local, blockO, inner, feature, kind } = form
  const { x: takeX, extra } = productOf(form)
  const causal = reach !== 'all'
  const factor = kind === 'mean' && (result === 'q' || result === 'k')
  const [norm, stat] = [extra === 'norm', needsStat(form)]
  const [rowX, rowO, row] = [halfRow(inner), halfRow(blockO), sumRow(blockO)]
  const [o4, o8, own] = [blockO / 4, blockO / 8, blockO / 8]
  const stateRows = Math.min(inner, 64)
  const x = operandOf(form, 'x', inner, threads, '0')
  const xScaled = !isExact(form, 'x')
  const divided = takeX === 'scaled'
  const state = (at: string): string =>
    `(states[segmentAt + ${at}]${local ? ` + states[localAt + ${at}]` : ''})`
  const rowAt = (n: number): string => `(yr + ${n * (threads / o4)})`
  const statRow = (at: string): string => `u32(xLines + min(r0 + ${at}, p.rows - 1)) * 2u`
  const stageX = each(x.passes, (i) => {
    const words = xScaled
      ? `${x.values(i, 'r0')}
var m = top(xa${i}, xb${i});
${largestOf('m', x.across)}
let back1 = down(m);
if (xl == 0) { xs[${x.row(i)}] = back1; }
let w = eight(xa${i} * up(m), xb${i} * up(m));`
      : `let back1 = 1.0; let w = ${x.words(i, 'r0')};`
    return `{ ${words}
s[${x.row(i)} * ${rowX} + xl] = w;
${
  norm
    ? `var sum = (dot(front(w), z0) + dot(back(w), z1)) * back1;
${sumOf('sum', x.across)}
if (xl == 0) { ns[${x.row(i)}] = sum; }`
    : ''
} }`
  })
  const passes = (stateRows * o8) / threads
  const part = (t: number): string => `{
${each(
  passes,
  (
    n,
  ) => `let at${n} = u32(${t * stateRows} + i32((li + ${n * threads}u) / ${o8}u)) * p.outer4 + o0 / 4u + 2u * (li % ${o8}u);
let sa${n} = ${state(`at${n}`)}; let sb${n} = ${state(`at${n} + 1u`)};`,
)}
var m = 0u;
${each(passes, (n) => `m = max(m, top(sa${n}, sb${n}));`)}
${largestOfAll(threads)}
let scale = up(m); let unscale = down(m);
${each(
  passes,
  (n) => `{ let a = sa${n} * scale; let b = sb${n} * scale; let w = eight(a, b);
let to = i32((li + ${n * threads}u) / ${o8}u) * ${rowO} + i32(li % ${o8}u);
s[to] = w; s[to + ${stateRows * rowO}] = eight(rest(a, front(w)), rest(b, back(w))); }`,
)}
workgroupBarrier();
${each(blockO / 16, (n) => `var c${n} = Sum();`)}
${each(stateRows / 16, (kk) =>
  each(blockO / 16, (n) =>
    [0, stateRows * rowO]
      .map((from) =>
        multiplyInto(
          `c${n}`,
          `lx${(t * stateRows) / 16 + kk}`,
          rightRows(`${from + 16 * kk * rowO + 2 * n}`, rowO),
        ),
      )
      .join('\n'),
  ),
)}
workgroupBarrier();
${storeSums('c', blockO / 16, row)}
workgroupBarrier();
${each(own, (n) => `y${n} += bitcast<vec4f>(s[${rowAt(n)} * ${row} + yc]) * (unscale * (g${n}${xScaled ? ` * xs[${rowAt(n)}]` : ''}));`)}
workgroupBarrier();
}`
  const item = 'vec4<u32>'
  const extraRow = extra === 'x' ? 'e' : ''
  return {
    params: params(factor, norm),
    bindings: [
      { name: 'x', item },
      ...(causal ? (['k', 'v'] as const).map((name) => ({ name, item }) as const) : []),
      ...(factor ? [{ name: 'f', item } as const] : []),
      ...(stat ? [{ name: 'stat', item: 'f32' } as const] : []),
      { name: 'states', item: 'vec4<f32>' },
      { name: 'y', item: 'vec2<u32>', write: true },
      ...(norm ? [{ name: 'norm', item: 'f32', write: true } as const] : []),
    ],
    workgroup: [threads],
    enables: has.enables,
    shared: { name: 's', item, count: sizeOf(form) },
    declarations: `${matrixAliases}
${matrixFunctions}
${takeFunction(form, 'x')}
${causal ? `${takeFunction(form, 'k')}\n${takeFunction(form, 'v')}` : ''}
fn slope(x: vec4f) -> vec4f { return ${features[feature][1]}; }
var<workgroup> tops: array<u32, ${threads / 32}>;
${['xs', 'ns', 'ks', 'vs', 'rs'].map((name) => `var<workgroup> ${name}: array<f32, ${matrixRows}>;`).join('\n')}`,
    body: `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
let sub = i32(li / 32u);
let bo = index % p.blocksO;
let tiles = u32(p.rows + ${matrixRows - 1}) / ${matrixRows}u;
let item = index / p.blocksO;
let r0 = i32(item % tiles) * ${matrixRows}; let o0 = bo * ${blockO}u;
let head = item / tiles;
let b = i32(head / p.heads); let h = i32(head % p.heads);
let xLines = i32(head) * p.rows; let lines = i32(head) * p.keys;
let xBase = ${basis('x')};
${causal ? `let kBase = ${basis('k')}; let vBase = ${basis('v')};` : ''}
${factor ? `let fBase = ${basis('f')};` : ''}
${causal ? 'let chunk = u32(r0 / p.chunkRows);' : ''}
let segmentAt = p.segmentsAt + (head * p.segments${causal ? ' + chunk / p.segmentChunks' : ''}) * p.stateSize;
${local ? 'let localAt = (head * p.chunks + chunk) * p.stateSize;' : ''}
let yc = i32(li % ${o4}u); let yr = i32(li / ${o4}u);
${x.declare}
${x.read('r0')}
${each(own, (n) => `let g${n} = ${divided ? `stat[${statRow(rowAt(n))}]` : '1.0'};`)}
${
  extra === 'x' || extra === 'k'
    ? `let zAt = u32(p.innerPad) * p.outer4 + o0 / 4u + u32(yc); let z = ${state('zAt')};
${each(own, (n) => `var y${n} = ${extraRow ? `(stat[${statRow(rowAt(n))} + 1u] * g${n}) * z` : 'z'};`)}`
    : each(own, (n) => `var y${n} = vec4f();`)
}
${
  norm
    ? `let zAt = u32(p.innerPad) * p.outer4 + 2u * u32(xl);
let z0 = ${state('zAt')}; let z1 = ${state('zAt + 1u')};`
    : ''
}
${stageX}
workgroupBarrier();
${each(inner / 16, (kk) => `let lx${kk} = subgroupMatrixLoad<Left, row_major>(&s, sub * ${16 * rowX} + ${2 * kk}, ${rowX});`)}
workgroupBarrier();
${each(inner / stateRows, part)}
${causal ? near(form) : ''}
${each(own, (n) => {
  const value = norm
    ? `y${n} / (ns[${rowAt(n)}] + p.eps)`
    : factor
      ? `y${n} * slope(select(front(w), back(w), (yc & 1) == 1))`
      : `y${n}`
  return `{ let row = r0 + ${rowAt(n)}; let column = i32(o0) + 4 * yc;
if (row < p.rows && column < p.outer) {
let line = i32(head) * p.rows + row;
${factor ? 'let w = f[u32(fBase + row * p.fRow + column / 8)];' : ''}
let value = ${value};
${norm ? `if (yc == 0 && bo == 0u) { norm[u32(p.normAt + line)] = ns[${rowAt(n)}] + p.eps; }` : ''}
y[u32(p.yAt + line * p.outer + column) / 4u] = vec2u(two(value.xy), two(value.zw));
} }`
})}`,
  }
}

/** Adds (X Kᵀ ∘ M) V of the rows of k and v in the chunk. */
function near(form: MatrixForm): string {
  const { reach, blockO, inner } = form
  const { k: takeK, v: takeV, extra } = productOf(form)
  const past = reach === 'past'
  const k = operandOf(form, 'k', inner, threads, '0')
  const v = operandOf(form, 'v', blockO, threads, 'i32(o0) / 8')
  const [kScaled, vScaled, xScaled] = (['k', 'v', 'x'] as const).map((name) => !isExact(form, name))
  const factor = takeK === 'scaled' || takeV === 'scaled'
  const [rowK, rowO, rowS, rowW, row] = [
    halfRow(inner),
    halfRow(blockO),
    sumRow(matrixRows),
    halfRow(matrixRows),
    sumRow(blockO),
  ]
  const lanes = matrixRows / 8
  const behind = matrixRows * rowW
  const apart = threads / lanes
  const rowAt = (i: number): string => `(sr + ${i * apart})`
  const key = (e: number): string => `u32(lines + min(j0 + 8 * sc + ${e}, p.keys - 1)) * 2u`
  const vectors = (name: string, part: (e: number) => string): string =>
    `let ${name}a = vec4f(${[0, 1, 2, 3].map(part).join(', ')}); let ${name}b = vec4f(${[4, 5, 6, 7].map(part).join(', ')});`
  const scores = (i: number): string => {
    const score = (half: 'a' | 'b', n: number): string => {
      const scaled = `bitcast<vec4f>(s[${rowAt(i)} * ${rowS} + 2 * sc + ${n}])`
      const back = `${xScaled || kScaled ? ` * (${xScaled ? `xs[${rowAt(i)}]` : '1.0'}${kScaled ? ` * k${half}` : ''})` : ''}`
      const plus = extra === 'x' ? ' + e' : extra === 'k' ? ` + d${half}` : ''
      const js = `vec4i(j0 + 8 * sc + ${4 * n}) + vec4i(0, 1, 2, 3)`
      return `select(vec4f(), (${scaled}${back}${plus})${factor ? ` * f${half}` : ''}${vScaled ? ` * v${half}` : ''}, ${js} ${past ? '<=' : '>='} vec4i(r0 + ${rowAt(i)}))`
    }
    return `{ ${extra === 'x' ? `let e = stat[u32(xLines + min(r0 + ${rowAt(i)}, p.rows - 1)) * 2u + 1u];` : ''}
let a = ${score('a', 0)};
let b = ${score('b', 1)};
var m = top(a, b);
${largestOf('m', lanes)}
weight${i} = eight(a * up(m), b * up(m));
if (sc == 0) { rs[${rowAt(i)}] = down(m); }
${
  extra === 'norm'
    ? `var sum = (dot(front(weight${i}), vec4f(1.0)) + dot(back(weight${i}), vec4f(1.0))) * down(m);
${sumOf('sum', lanes)}
if (sc == 0) { ns[${rowAt(i)}] += sum; }`
    : ''
} }`
  }
  return `let begin = ${past ? 'i32(chunk) * p.chunkRows' : 'r0'};
let stop = min(p.keys, ${past ? `r0 + ${matrixRows}` : 'i32(chunk + 1u) * p.chunkRows'});
let sc = i32(li % ${lanes}u); let sr = i32(li / ${lanes}u);
${k.declare}
${v.declare}
if (begin < stop) {
${k.read('begin')}
${v.read('begin')}
}
for (var j0 = begin; j0 < stop; j0 += ${matrixRows}) {
${each(k.passes, (i) => {
  const to = `s[${k.row(i)} * ${rowK} + kl]`
  if (!kScaled) return `${to} = ${k.words(i, 'j0')};`
  return `{ ${k.values(i, 'j0')}
var m = top(ka${i}, kb${i});
${largestOf('m', k.across)}
if (kl == 0) { ks[${k.row(i)}] = down(m); }
${to} = eight(ka${i} * up(m), kb${i} * up(m)); }`
})}
${each(v.passes, (i) => {
  if (!vScaled) return `vw${i} = ${v.words(i, 'j0')};`
  return `{ ${v.values(i, 'j0')}
var m = top(va${i}, vb${i});
${largestOf('m', v.across)}
if (vl == 0) { vs[${v.row(i)}] = down(m); }
vw${i} = eight(va${i} * up(m), vb${i} * up(m)); }`
})}
workgroupBarrier();
{
${each(matrixRows / 16, (n) => `var c${n} = Sum();`)}
${each(inner / 16, (kk) =>
  each(matrixRows / 16, (n) =>
    multiplyInto(
      `c${n}`,
      `lx${kk}`,
      `subgroupMatrixLoad<Right, col_major>(&s, ${16 * n * rowK + 2 * kk}, ${rowK})`,
    ),
  ),
)}
workgroupBarrier();
${storeSums('c', matrixRows / 16, rowS)}
}
workgroupBarrier();
${each(matrixRows / apart, (i) => `var weight${i}: vec4u;`)}
{
${kScaled ? vectors('k', (e) => `ks[8 * sc + ${e}]`) : ''}
${vScaled ? vectors('v', (e) => `vs[8 * sc + ${e}]`) : ''}
${factor ? vectors('f', (e) => `stat[${key(e)}]`) : ''}
${extra === 'k' ? vectors('d', (e) => `stat[${key(e)} + 1u]`) : ''}
${each(matrixRows / apart, scores)}
}
workgroupBarrier();
${each(matrixRows / apart, (i) => `s[${rowAt(i)} * ${rowW} + sc] = weight${i};`)}
${each(v.passes, (i) => `s[${v.row(i)} * ${rowO} + vl + ${behind}] = vw${i};`)}
workgroupBarrier();
if (j0 + ${matrixRows} < stop) {
let next = j0 + ${matrixRows};
${k.read('next')}
${v.read('next')}
}
{
${each(blockO / 16, (n) => `var c${n} = Sum();`)}
${each(
  matrixRows / 16,
  (j) => `{ let left = subgroupMatrixLoad<Left, row_major>(&s, sub * ${16 * rowW} + ${2 * j}, ${rowW});
${each(blockO / 16, (n) => multiplyInto(`c${n}`, 'left', rightRows(`${behind + 16 * j * rowO + 2 * n}`, rowO)))} }`,
)}
workgroupBarrier();
${storeSums('c', blockO / 16, row)}
}
workgroupBarrier();
${each(blockO / 8, (n) => {
  const at = `(yr + ${n * (threads / (blockO / 4))})`
  return `y${n} += bitcast<vec4f>(s[${at} * ${row} + yc]) * (rs[${at}] * g${n});`
})}
workgroupBarrier();
}`
}

const lanes = 8
/** Rows per workgroup of `matrixStatShader`. */
export const matrixStatRows = 16

const statParams = () =>
  block({
    ...{ rows: u32, heads: u32, queries: u32, width: u32 },
    ...{ g: operandIn(8), oAt: i32, normAt: i32 },
  })

/** Computes 1 / n and −δ with δ = sum(dO ∘ O) for every row of queries in float16, by 8 threads per row. */
export function matrixStatShader(): Shader<ValuesOf<typeof statParams>> {
  const dots = ['x', 'y', 'z', 'w'].map(
    (e) => `sum += dot(unpack2x16float(a.${e}), unpack2x16float(c.${e}));`,
  )
  return {
    params: statParams(),
    bindings: [
      { name: 'g', item: 'vec4<u32>' },
      { name: 'o', item: 'vec4<u32>' },
      { name: 'norm', item: 'f32' },
      { name: 'stat', item: 'f32', write: true },
    ],
    workgroup: [lanes * matrixStatRows],
    declarations: `var<workgroup> t: array<f32, ${lanes * matrixStatRows}>;`,
    body: `let lane = li % ${lanes}u;
let row = (wg.x + wg.y * groups.x) * ${matrixStatRows}u + li / ${lanes}u;
let r = min(row, p.rows - 1u);
let head = r / p.queries;
let start = p.gAt + i32(head / p.heads) * p.gBatch + i32(head % p.heads) * p.gHead + i32(r % p.queries) * p.gRow;
let at = (p.oAt + i32(r * p.width)) / 8;
var sum = 0.0;
for (var i = i32(lane); i < i32(p.width) / 8; i += ${lanes}) {
let a = g[u32(start + i)]; let c = o[u32(at + i)];
${dots.join(' ')}
}
t[li] = sum;
workgroupBarrier();
if (lane == 0u && row < p.rows) {
for (var i = 1u; i < ${lanes}u; i++) { sum += t[li + i]; }
stat[row * 2u] = 1.0 / norm[u32(p.normAt) + row];
stat[row * 2u + 1u] = -sum;
}`,
  }
}
