/**
 * States of linear attention, S = Σⱼ kⱼᵀ vⱼ: a workgroup walks over a segment of rows with a block of S in registers.
 * At every chunk it writes what S was before (`local`), at the end what it has become: the segment's sum. A second
 * kernel turns these into sums over the segments before, or after, or over all. The state that a chunk starts with is
 * the sum of both, so that all but a few states are written once and read once.
 *
 * Decays fade a state chunk by chunk and segment by segment: `fadesShader` and `chunkFadesShader` say by how much.
 *
 * Behind a state lies the extra vector: Σ kⱼ (for 'norm'), or Σ eⱼ vⱼ with e the column that k has in addition.
 *
 * Reference: `LINEAR_ATTENTION` in core's ops/linear-attention/linear-attention.ts. Test: linear-attention.test.ts.
 */

import { block, f32, group, i32, u32, type ValuesOf } from '../../wgsl/block.ts'
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
  type Reach,
  rowOf,
  stageRows,
  threads,
  vectorOf,
  zero,
} from './blocks.ts'

/** Numbers that all kernels get; lengths of states are in vectors of four. */
export const planParams = group({
  ...{ count: u32, blocksI: u32, blocksO: u32, heads: u32 },
  ...{ rows: i32, keys: i32, inner: i32, outer: i32 },
  /** Rows of a chunk, chunks of a segment, chunks and segments of a head. */
  ...{ chunkRows: i32, segmentChunks: u32, chunks: u32, segments: u32 },
  /** Rows of a state, its columns, the length with the extra vector, and where the segments' states begin. */
  ...{ innerPad: i32, outer4: u32, stateSize: u32, segmentsAt: u32 },
  ...{ depth: u32, eps: f32 },
  /** The places in `fade` at which the chunks' and the segments' numbers begin. */
  ...{ chunkFadeAt: u32, segmentFadeAt: u32 },
})
const ownParams = block({ plan: planParams })
const statesParams = (vectors: boolean) =>
  block({ plan: planParams, k: operand(vectors), v: operand(vectors) })
const fadesParams = block({ plan: planParams, decay: operand(false) })

export function statesShader(form: Form): Shader<ValuesOf<typeof statesParams>> {
  const { kind, reach, local, vectors, blockI, blockO } = form
  const { k, v, extra } = productOf(form)
  const faded = kind === 'faded'
  const [tm, tn] = [blockI / 8, blockO / 8]
  const [i4, o4] = [blockI / 4, blockO / 4]
  const item = vectors ? 'vec4<f32>' : 'f32'
  const stat = needsStat(form)
  const write = (base: string): string => `{
let base = ${base};
${each(
  tm,
  (i) => `{ let i = u32(i0) + ${rowOf(i)};
if (i < u32(p.innerPad)) { let at = base + i * p.outer4 + u32(o0) / 4u;
${each(tn / 4, (h) => `states[at + ${vectorOf(h)}] = c${i}_${h};`)} } }`,
)}
${
  extra === 'norm'
    ? `if (bo == 0u && li < ${i4}u && u32(i0) / 4u + li < u32(p.innerPad) / 4u) { states[base + u32(p.innerPad) * p.outer4 + u32(i0) / 4u + li] = z; }`
    : extra === 'none'
      ? ''
      : `if (bi == 0u && li < ${o4}u) { states[base + u32(p.innerPad) * p.outer4 + u32(o0) / 4u + li] = z; }`
}
}`
  const sum =
    extra === 'norm'
      ? `if (bo == 0u && li < ${i4}u) { for (var k = 0u; k < p.depth; k++) { z += s[k * ${i4}u + li]; } }`
      : extra === 'none'
        ? ''
        : `if (bi == 0u && li < ${o4}u) { for (var k = 0u; k < p.depth; k++) {
z += ${extra === 'k' ? 'stat[u32(lines + min(t + i32(k), p.keys - 1)) * 2u + 1u] * ' : ''}s[${depth * i4}u + k * ${o4}u + li]; } }`
  return {
    params: statesParams(vectors),
    bindings: [
      { name: 'k', item },
      { name: 'v', item },
      ...(stat ? [{ name: 'stat', item: 'f32' } as const] : []),
      ...fadeBindings(form),
      { name: 'states', item: 'vec4<f32>', write: true },
    ],
    workgroup: [threads],
    declarations: `var<workgroup> s: array<vec4f, ${depth * (i4 + o4)}>;
${getter('k', k, form, 'p.keys', 'p.inner')}
${getter('v', faded ? 'faded' : v, form, 'p.keys', 'p.outer')}`,
    body: `let index = wg.x + wg.y * groups.x;
if (index >= p.count) { return; }
${place}
let bo = index % p.blocksO; let bi = (index / p.blocksO) % p.blocksI;
let item = index / (p.blocksO * p.blocksI);
let segment = item % p.segments; let head = item / p.segments;
let b = i32(head / p.heads); let h = i32(head % p.heads);
let lines = i32(head) * p.keys;
let kBase = ${basis('k')};
let vBase = ${basis('v')};
let i0 = i32(bi) * ${blockI}; let o0 = i32(bo) * ${blockO};
${zero('c', tm, tn)}
var z = vec4f();
let first = segment * p.segmentChunks;
let n = min(first + p.segmentChunks, p.chunks) - first;
for (var step = 0u; step < n; step++) {
let chunk = first + ${reach === 'future' ? 'n - 1u - step' : 'step'};
${local ? write('(head * p.chunks + chunk) * p.stateSize') : ''}
${faded ? `let kept = fade[p.chunkFadeAt + head * p.chunks + chunk].y;\n${each(tm, (i) => each(tn / 4, (h) => `c${i}_${h} *= kept;`))}` : ''}
let start = i32(chunk) * p.chunkRows;
let end = min(p.keys, start + p.chunkRows);
for (var t = start; t < end; t += ${depth}) {
${stageRows('0u', i4, 'get_k(lines, kBase, t + i32($r), i0 + i32($c) * 4)')}
${stageRows(`${depth * i4}u`, o4, 'get_v(lines, vBase, t + i32($r), o0 + i32($c) * 4)')}
workgroupBarrier();
${multiply('c', tm, tn, ['0u', i4], [`${depth * i4}u`, o4], form.tile.unroll)}
${sum}
workgroupBarrier();
}
}
${write('p.segmentsAt + (head * p.segments + segment) * p.stateSize')}`,
  }
}

/** Turns the segments' sums into those of the segments before, after, or (the first one's place) all. */
export function segmentsShader({
  reach,
  kind,
}: Pick<Form, 'reach' | 'kind'>): Shader<ValuesOf<typeof ownParams>> {
  const faded = kind === 'faded'
  const add = (j: number): string => {
    const keep = reach === 'all' ? '' : `states[u32(at + ${j} * by)] = sum; `
    if (!faded) return `${keep}sum += x${j};`
    return `${keep}sum = sum * fade[u32(segment)].x + x${j}; segment += ${reach === 'future' ? -1 : 1};`
  }
  return {
    params: ownParams,
    bindings: [
      { name: 'states', item: 'vec4<f32>', write: true },
      ...(faded ? [{ name: 'fade', item: 'vec4<f32>' } as const] : []),
    ],
    workgroup: [threads],
    body: `let id = (wg.x + wg.y * groups.x) * ${threads}u + li;
if (id >= p.count) { return; }
let first = i32(p.segmentsAt + id / p.stateSize * p.segments * p.stateSize + id % p.stateSize);
let by = ${reach === 'future' ? '-' : ''}i32(p.stateSize);
var at = first${reach === 'future' ? ' - i32(p.segments - 1u) * by' : ''};
var sum = vec4f();
${faded ? `var segment = i32(p.segmentFadeAt + id / p.stateSize * p.segments${reach === 'future' ? ' + p.segments - 1u' : ''});` : ''}
var rest = p.segments;
for (; rest >= 4u; rest -= 4u) {
${each(4, (j) => `let x${j} = states[u32(at + ${j} * by)];`)}
${each(4, add)}
at += 4 * by;
}
for (; rest > 0u; rest--) { let x0 = states[u32(at)]; ${add(0)} at += by; }
${reach === 'all' ? 'states[u32(first)] = sum;' : ''}`,
  }
}

/**
 * What decays do within chunks, one thread per chunk: for every row the product of α from the chunk's first row up to it, of
 * those after it, and the sum of log α up to it as a pair of numbers, whose differences keep their digits where gates are
 * strong (Knuth's exact sum). For every chunk the product of all, second.
 */
export function fadesShader(): Shader<ValuesOf<typeof fadesParams>> {
  return {
    params: fadesParams,
    bindings: [
      { name: 'decay', item: 'f32' },
      { name: 'fade', item: 'vec4<f32>', write: true },
    ],
    workgroup: [threads],
    body: `let id = (wg.x + wg.y * groups.x) * ${threads}u + li;
if (id >= p.count) { return; }
let head = id / p.chunks;
let b = i32(head / p.heads); let h = i32(head % p.heads);
let base = ${basis('decay')};
let lines = i32(head) * p.keys;
let start = i32(id % p.chunks) * p.chunkRows;
let end = min(p.keys, start + p.chunkRows);
var high = 0.0; var low = 0.0;
for (var t = start; t < end; t++) {
let log = decay[u32(base + t * p.decayRow)];
let sum = high + log;
let part = sum - high;
low += (high - (sum - part)) + (log - part);
high = sum;
fade[u32(lines + t)] = vec4f(exp(high + low), 0.0, high, low);
}
for (var t = start; t < end; t++) {
let x = fade[u32(lines + t)];
fade[u32(lines + t)] = vec4f(x.x, exp((high - x.z) + (low - x.w)), x.z, x.w);
}
fade[p.chunkFadeAt + id] = vec4f(1.0, exp(high + low), 0.0, 0.0);`,
  }
}

/** Computes for every chunk what fades a state between it and its segment's edge, and for every segment the product. */
export function chunkFadesShader(reach: Reach): Shader<ValuesOf<typeof ownParams>> {
  return {
    params: ownParams,
    bindings: [{ name: 'fade', item: 'vec4<f32>', write: true }],
    workgroup: [threads],
    body: `let id = (wg.x + wg.y * groups.x) * ${threads}u + li;
if (id >= p.count) { return; }
let first = id % p.segments * p.segmentChunks;
let n = min(first + p.segmentChunks, p.chunks) - first;
let chunks = p.chunkFadeAt + id / p.segments * p.chunks + first;
var kept = 1.0;
for (var step = 0u; step < n; step++) {
let at = chunks + ${reach === 'future' ? 'n - 1u - step' : 'step'};
let own = fade[at].y;
fade[at] = vec4f(kept, own, 0.0, 0.0);
kept *= own;
}
fade[p.segmentFadeAt + id] = vec4f(kept);`,
  }
}
