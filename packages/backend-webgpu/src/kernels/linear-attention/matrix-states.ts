/**
 * States of linear attention as in `states.ts`, of operands in float16, on subgroup matrices: S = Σⱼ kⱼᵀ vⱼ in stages of 64
 * rows. A stage's sum is scaled by a power of two (`matrix-blocks.ts`) and goes through workgroup memory to threads,
 * which keep the state in float32: it may be as large as in float32. Features are divided by powers of two row by row, and
 * v is multiplied by these, so that all terms of a stage have one scale. The extra vector is the sum of the
 * very numbers that are multiplied: roundings cancel where it divides, or is subtracted.
 *
 * Reference: `LINEAR_ATTENTION` in core's ops/linear-attention/linear-attention.ts. Test: linear-attention-half.test.ts.
 */

import type { Matrices } from '../../device/matrices.ts'
import { block, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { each, operandIn } from '../attention/blocks.ts'
import { basis, needsStat, productOf } from './blocks.ts'
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
  sumRow,
  takeFunction,
} from './matrix-blocks.ts'
import { planParams } from './states.ts'

const params = () => block({ plan: planParams, k: operandIn(8), v: operandIn(8) })

export function matrixStatesShader(form: MatrixForm, has: Matrices): Shader<ValuesOf<typeof params>> {
  const { reach, local, blockI, blockO } = form
  const { k: takeK, v: takeV, extra } = productOf(form)
  const threads = 2 * blockI
  const [rowI, rowO, row] = [halfRow(blockI), halfRow(blockO), sumRow(blockO)]
  const behind = matrixRows * rowI
  const o4 = blockO / 4
  const own = blockO / 8
  const k = operandOf(form, 'k', blockI, threads, 'i0 / 8')
  const v = operandOf(form, 'v', blockO, threads, 'o0 / 8')
  const kScaled = !isExact(form, 'k')
  const factor = takeK === 'scaled' || takeV === 'scaled'
  const vScaled = kScaled || factor || !isExact(form, 'v')
  const stat = needsStat(form)

  // The extra vector sums columns of k (for 'norm') or of v, whose threads take parts of the rows.
  const norm = extra === 'norm'
  const width = norm ? blockI : blockO
  const parts = threads / (width / 2)
  const weight = norm
    ? kScaled
      ? ' * ks[j]'
      : ''
    : extra === 'k'
      ? ' * stat[u32(lines + min(t + i32(j), p.keys - 1)) * 2u + 1u]'
      : ''
  const isMine = norm ? 'bo == 0u' : 'bi == 0u'
  const write = (base: string): string => `{
let base = ${base};
${each(own, (n) => `states[base + u32(i0 + yr + ${n * (threads / o4)}) * p.outer4 + u32(o0) / 4u + yc] = r${n};`)}
${
  extra === 'none'
    ? ''
    : `if (${isMine} && li < ${width / 4}u) { states[base + u32(p.innerPad) * p.outer4 + u32(${norm ? 'i0' : 'o0'}) / 4u + li] = z; }`
}
}`
  const times = `${factor ? ` * stat[u32(lines + min(t + ROW, p.keys - 1)) * 2u]` : ''}${kScaled ? ' * ks[ROW]' : ''}`
  const stageK = each(k.passes, (i) => {
    const to = `s[${k.row(i)} * ${rowI} + kl]`
    if (!kScaled) return `${to} = ${k.words(i, 't')};`
    return `{ ${k.values(i, 't')}
var m = top(ka${i}, kb${i});
${largestOf('m', k.across)}
if (kl == 0) { ks[${k.row(i)}] = down(m); }
${to} = eight(ka${i} * up(m), kb${i} * up(m)); }`
  })
  const stageV = vScaled
    ? `${kScaled ? 'workgroupBarrier();' : ''}
${each(v.passes, (i) => v.values(i, 't', times.replaceAll('ROW', v.row(i))))}
var m = 0u;
${each(v.passes, (i) => `m = max(m, top(va${i}, vb${i}));`)}
${largestOfAll(threads)}
let scale = up(m);
${each(v.passes, (i) => `s[${v.row(i)} * ${rowO} + vl + ${behind}] = eight(va${i} * scale, vb${i} * scale);`)}`
    : each(v.passes, (i) => `s[${v.row(i)} * ${rowO} + vl + ${behind}] = ${v.words(i, 't')};`)
  const back = vScaled ? ' * down(m)' : ''
  return {
    params: params(),
    bindings: [
      { name: 'k', item: 'vec4<u32>' },
      { name: 'v', item: 'vec4<u32>' },
      ...(stat ? [{ name: 'stat', item: 'f32' } as const] : []),
      { name: 'states', item: 'vec4<f32>', write: true },
    ],
    workgroup: [threads],
    enables: has.enables,
    shared: { name: 's', item: 'vec4<u32>', count: Math.max(matrixRows * (rowI + rowO), blockI * row) },
    declarations: `${matrixAliases}
${matrixFunctions}
${takeFunction(form, 'k')}
${takeFunction(form, 'v')}
var<workgroup> ks: array<f32, ${matrixRows}>;
var<workgroup> tops: array<u32, ${threads / 32}>;
var<workgroup> zs: array<vec2f, ${threads}>;
fn first_row(step: u32, first: u32, n: u32) -> i32 {
let each = u32(p.chunkRows) / ${matrixRows}u;
let chunk = first + ${reach === 'future' ? 'n - 1u - step / each' : 'step / each'};
return i32(chunk) * p.chunkRows + i32(step % each) * ${matrixRows};
}`,
    body: `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
let sub = i32(li / 32u);
let bo = index % p.blocksO; let bi = (index / p.blocksO) % p.blocksI;
let item = index / (p.blocksO * p.blocksI);
let segment = item % p.segments; let head = item / p.segments;
let b = i32(head / p.heads); let h = i32(head % p.heads);
let lines = i32(head) * p.keys;
let kBase = ${basis('k')};
let vBase = ${basis('v')};
let i0 = i32(bi) * ${blockI}; let o0 = i32(bo) * ${blockO};
let yc = li % ${o4}u; let yr = i32(li / ${o4}u);
${each(own, (n) => `var r${n} = vec4f();`)}
var z = vec4f();
let first = segment * p.segmentChunks;
let n = min(first + p.segmentChunks, p.chunks) - first;
let perChunk = u32(p.chunkRows) / ${matrixRows}u;
let steps = n * perChunk;
${k.declare}
${v.declare}
if (steps > 0u) {
let t = first_row(0u, first, n);
${k.read('t')}
${v.read('t')}
}
for (var step = 0u; step < steps; step++) {
let t = first_row(step, first, n);
${local ? `if (step % perChunk == 0u) { let chunk = u32(t / p.chunkRows); ${write('(head * p.chunks + chunk) * p.stateSize')} }` : ''}
${stageK}
${stageV}
workgroupBarrier();
if (step + 1u < steps) {
let next = first_row(step + 1u, first, n);
${k.read('next')}
${v.read('next')}
}
${each(blockO / 16, (n) => `var c${n} = Sum();`)}
${each(
  matrixRows / 16,
  (j) => `{ let left = subgroupMatrixLoad<Left, col_major>(&s, ${16 * j * rowI} + 2 * sub, ${rowI});
${each(blockO / 16, (n) => multiplyInto(`c${n}`, 'left', rightRows(`${behind + 16 * j * rowO + 2 * n}`, rowO)))} }`,
)}
${
  extra === 'none'
    ? ''
    : `var sum = vec2f();
if (${isMine}) {
let w = li % ${width / 2}u; let part = li / ${width / 2}u;
for (var j = part * ${matrixRows / parts}u; j < (part + 1u) * ${matrixRows / parts}u; j++) {
sum += unpack2x16float(s[${norm ? '' : `${behind}u + `}j * ${norm ? rowI : rowO}u + w / 4u][w % 4u])${weight};
}
zs[li] = sum;
}`
}
workgroupBarrier();
${storeSums('c', blockO / 16, row)}
workgroupBarrier();
${each(own, (n) => `r${n} += bitcast<vec4f>(s[u32(yr + ${n * (threads / o4)}) * ${row}u + yc])${back};`)}
${
  extra === 'none'
    ? ''
    : `if (${isMine} && li < ${width / 4}u) {
${each(parts, (i) => `z += vec4f(zs[2u * li + ${(i * width) / 2}u], zs[2u * li + ${(i * width) / 2 + 1}u])${norm ? '' : back};`)}
}`
}
workgroupBarrier();
}
${write('p.segmentsAt + (head * p.segments + segment) * p.stateSize')}`,
  }
}
