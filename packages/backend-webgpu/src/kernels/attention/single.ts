/**
 * Forward attention of few queries, as decoding has: a workgroup of 256 threads per query and head. A thread scores a key
 * at a time, with all of the query in sight; the softmax is taken over scores in workgroup memory; then v4 × ways threads
 * add values up, each a vector of four columns of every `ways`-th key, eight of them under way at a time.
 *
 * Where one workgroup would take long over its keys, they are shared out: each part leaves its sums, its largest score
 * and its total, and a second kernel puts them together (flash-decoding, Dao et al. 2023). All is in an order that
 * depends on sizes only. A score has the bits that the kernels of blocks give it, whose gradients take its row's
 * statistics off. What is hidden has weight −1 here, and is left out of every sum: it may be NaN or infinite.
 *
 * Takes what `attention.ts` takes but global tokens, masks of blocks and dropout; and operands of 16 bits where rows are
 * vectors of four, of any mixture. With `row` it also puts the newest key and value into the caches, in the row that a
 * number on the device tells, and takes that row from where they come from: whoever writes it need not be waited for.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts, `cacheRow` in cache-row.ts. Test: attention-single.test.ts.
 */

import { type AttentionAttrs, attentionOperands, type DType, type View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { block, f32, group, i32, u32, type ValuesOf, when } from '../../wgsl/block.ts'
import { isPacked } from '../../wgsl/element.ts'
import type { Item, Shader } from '../../wgsl/shader.ts'
import { grid } from '../layout.ts'
import { itemOfWidth, packedCode, stored } from '../rows.ts'
import {
  commonOf,
  commonParams,
  each,
  type Form,
  formName,
  isVectors,
  operand,
  power,
  type Tile,
} from './blocks.ts'
import { optionBindings, optionParams, optionsOf } from './options.ts'
import { headOptions, hide, scaled } from './scores.ts'

/** When queries are few, and how their keys are shared out. */
export interface Few {
  /** The queries of a head, at most. */
  readonly queries: number
  /** The keys that a workgroup goes through alone. */
  readonly alone: number
  /** The keys that a part has at least. */
  readonly part: number
  /** The workgroups that fill the GPU: there are no more parts than it takes. */
  readonly enough: number
}
export const few: Few = { queries: 4, alone: 512, part: 128, enough: 128 }

/** A thread has a key at a time. */
export const singleTile: Tile = { ty: 1, rm: 1, tx: 1, kn: 1 }

const threads = 256
/** The keys whose scores fit the array for them. */
const most = 1024
/** Vectors of a key, and vectors of a column's values, that a thread has under way together. */
const wide = 16
const ahead = 8
/** Threads in a column that share out keys, at most. */
const mostWays = 32

export const takesSingle = (q: View, attrs: AttentionAttrs, { queries }: Few): boolean =>
  q.shape[2] <= queries && attrs.globalTokens === 0 && attrs.blockSize === 0 && attrs.dropout === 0

/** Whether operands of 16 bits can be loaded, and results stored: as vectors of four. */
export const takesHalves = (inputs: readonly View[]): boolean => inputs.slice(0, 3).every(isVectors)

/** What the code depends on beside a form: the dtypes of operands and result, and of the newest key and value. */
interface Types {
  readonly q: DType
  readonly k: DType
  readonly v: DType
  readonly o: DType
  readonly key: DType | null
  readonly value: DType | null
  /** The bindings that `q`, the newest key and value are read by: a buffer in which several lie is bound once. */
  readonly by: readonly string[]
}

/** The newest key and value, and the row of the caches in which they belong. */
export interface Row {
  readonly key: View
  readonly value: View
  readonly place: View
}

/** By which of their names each of these is bound. */
const boundBy = (views: Readonly<Record<string, View>>): string[] => {
  const all = Object.entries(views)
  return all.map(([, v]) => all.find(([, w]) => w.buffer === v.buffer && w.dtype === v.dtype)?.[0] as string)
}

/** The buffers that a kernel with a row binds, without options. */
export const buffersOfRow = (q: View, { key, value }: Row): number =>
  new Set(boundBy({ q, key, value })).size + 5

function partsOf(rows: number, keys: number, { alone, part, enough }: Few): number {
  if (keys <= Math.min(alone, most)) return 1
  return Math.max(Math.ceil(keys / most), Math.min(Math.floor(keys / part), Math.ceil(enough / rows)))
}

/** Runs it; `form` has `singleTile`. */
export function single(
  engine: Engine,
  padded: Form,
  outputs: readonly View[],
  inputs: readonly View[],
  attrs: AttentionAttrs,
  how: Few,
  row: Row | null = null,
): void {
  const name = 'scaled_dot_product_attention'
  const [out, stats] = outputs
  const { q, k, v } = attentionOperands(inputs, attrs)
  const [b, h, t, dq] = q.shape
  const [, , s, dv] = v.shape
  const form = { ...padded, dq, dv }
  const rows = b * h * t
  const span = Math.max(1, Math.ceil(s / partsOf(rows, s, how)))
  const parts = Math.max(1, Math.ceil(s / span))
  const v4 = Math.ceil(dv / 4)

  const fresh = row ? { q, key: row.key, value: row.value } : { q }
  const types: Types = {
    ...{ q: q.dtype, k: k.dtype, v: v.dtype, o: out.dtype },
    ...{ key: row ? row.key.dtype : null, value: row ? row.value.dtype : null, by: boundBy(fresh) },
  }
  const key = `attentionSingle:${formName(form)}:${parts > 1}:${Object.values(types)}`
  const kernel = engine.kernel(key, name, () => singleShader(form, parts > 1, types))
  const common = commonOf([q, k, v], attrs, b * h, t)
  const options = optionsOf(form, 'keys', inputs, attrs)
  const result = { o: out, statsAt: stats.offset }
  const newest = row && { key: row.key, value: row.value, placeAt: row.place.offset }
  const values = { common, q, k, v, options: options.values, span, parts, result, newest }
  const read = Object.entries(fresh).flatMap(([name, view]) => (types.by.includes(name) ? [view] : []))
  const buffers = [
    ...[...read, k, v].map(bufferOf),
    ...(row ? [bufferOf(row.place)] : []),
    ...options.buffers,
  ]
  const results = [out, stats].map(bufferOf)
  if (parts === 1) {
    engine.run(kernel, [...buffers, ...results], values, grid(rows))
    return
  }
  const apart = engine.pool.alloc(4 * rows * parts * (v4 + 1), 'float32')
  engine.run(kernel, [...buffers, apart], values, [...grid(rows), parts])
  const { o } = types
  const merge = engine.kernel(`attentionMerge:${form.vectors}:${dv}:${o}`, name, () => mergeShader(form, o))
  const sizes = { count: rows, parts, heads: h, queries: t, ninf: -Infinity }
  const groups = grid(Math.ceil((rows * v4) / mergeThreads))
  engine.run(merge, [apart, ...results], { ...sizes, result }, groups)
  engine.pool.free(apart)
}

/** An operand of a kernel: its name among the parameters, the binding it is read by, its dtype and width. */
interface Operand {
  readonly name: string
  readonly binding: string
  readonly dtype: DType
  readonly width: number
  /** The dtype of the cache that it will have been read from. */
  readonly cache?: DType
}

/** A vector as it is loaded. */
const loaded = ({ binding, dtype, cache = dtype }: Operand, at: string): string => {
  const item = `${binding}[u32(${at})]`
  const value = isPacked(dtype) ? `load_${dtype}(${item})` : item
  return cache !== dtype && isPacked(cache) ? `load_${cache}(${stored(cache, value)})` : value
}

/** The vector of four columns at `c` of the row at `base`; what lies beyond the last column is 0. */
function columns({ vectors }: Form, x: Operand, base: string, c: number): string {
  if (vectors) return loaded(x, `${base} + ${c}`)
  const part = (e: number): string =>
    e < x.width ? `${x.binding}[u32(${base} + ${e} * p.${x.name}Step)]` : '0.0'
  return `vec4f(${[0, 1, 2, 3].map((e) => part(4 * c + e)).join(', ')})`
}

/** The vector of four columns at an expression `c` of the row at `base`; past the last column it repeats that one. */
function columnsAt({ vectors }: Form, x: Operand, base: string, c: string): string {
  if (vectors) return loaded(x, `${base} + ${c}`)
  const at = (e: number): string =>
    `${x.binding}[u32(${base} + min(4 * ${c} + ${e}, ${x.width - 1}) * p.${x.name}Step)]`
  return `vec4f(${[0, 1, 2, 3].map(at).join(', ')})`
}

/** Writes vector `c` of a result's row, and with it the row's statistics. Needs `sum`, `largest`, `total` and `row`. */
function storeRow({ vectors, dv }: Form, o: DType, c: string, queries: string, plane: string): string {
  const put = vectors
    ? `o[u32(at + ${c})] = ${stored(o, 'value')};`
    : each(4, (e) => `if (4 * ${c} + ${e} < ${dv}) { o[u32(at + 4 * ${c} + ${e})] = value[${e}]; }`)
  return `let value = sum * select(1.0 / total, 0.0, total == 0.0);
let at = p.oAt + i32(row / ${queries} / p.heads) * p.oBatch + i32(row / ${queries} % p.heads) * p.oHead + i32(row % ${queries}) * p.oRow;
${put}
if (${c} == 0) { stats[u32(p.statsAt) + row] = largest; stats[u32(p.statsAt) + ${plane} + row] = total; }`
}

const resultParams = ({ vectors }: Form) => group({ o: operand(vectors), statsAt: i32 })
const resultBindings = ({ vectors }: Form, o: DType): Shader['bindings'] => [
  { name: 'o', item: itemOfWidth(vectors ? 4 : 1, o), write: true },
  { name: 'stats', item: 'f32', write: true },
]

const params = (form: Form, apart: boolean, { key }: Types) => {
  const x = operand(form.vectors)
  return block({
    ...{ common: commonParams, q: x, k: x, v: x, options: optionParams(form) },
    ...{ span: i32, parts: u32, result: when(!apart, resultParams(form)) },
    newest: when(key !== null, group({ key: x, value: x, placeAt: i32 })),
  })
}

/** `apart`: the workgroups of a row have a part of the keys each. */
function singleShader(form: Form, apart: boolean, types: Types): Shader<ValuesOf<typeof params>> {
  const { dq, dv, vectors, mask } = form
  const item = (dtype: DType): Item => itemOfWidth(vectors ? 4 : 1, dtype)
  const operandOf = (name: 'q' | 'k' | 'v', width: number): Operand => ({
    ...{ name, binding: name, dtype: types[name], width },
  })
  const [q, k, v] = [operandOf('q', dq), operandOf('k', dq), operandOf('v', dv)]
  const [, keyBy = '', valueBy = ''] = types.by
  const key: Operand | null = types.key && {
    ...{ ...k, name: 'key', binding: keyBy, dtype: types.key, cache: k.dtype },
  }
  const value: Operand | null = types.value && {
    ...{ ...v, name: 'value', binding: valueBy, dtype: types.value, cache: v.dtype },
  }
  const [q4, v4] = [Math.ceil(dq / 4), Math.ceil(dv / 4)]
  const ways = Math.min(mostWays, Math.floor(threads / v4))
  const productWith = (x: Operand, row: string): string =>
    each(Math.ceil(q4 / wide), (block) => {
      const count = Math.min(wide, q4 - block * wide)
      const load = (i: number): string =>
        `let a${i} = ${columns(form, q, 'qBase', block * wide + i)}; let b${i} = ${columns(form, x, row, block * wide + i)};`
      const add = (i: number): string =>
        ['x', 'y', 'z', 'w'].map((e) => `s0_0 = fma(a${i}.${e}, b${i}.${e}, s0_0);`).join(' ')
      return `{\n${each(count, load)}\n${each(count, add)}\n}`
    })
  const product = key
    ? `if (k0 == place) { ${productWith(key, 'keyBase')} } else { ${productWith(k, 'row')} }`
    : productWith(k, 'row')
  // The row that is being written is not read.
  const vRow = (i: number): string => (value ? `select(j${i}, other, j${i} == place)` : `j${i}`)
  const loadValues = (at: string): string =>
    each(
      ahead,
      (i) => `let j${i} = min(${at} + ${i * ways}, last); let base${i} = vBase + ${vRow(i)} * p.vRow;
${
  value
    ? `let w${i} = ${columnsAt(form, v, `base${i}`, 'c')}; let v${i} = select(w${i}, newest, j${i} == place);`
    : `let v${i} = ${columnsAt(form, v, `base${i}`, 'c')};`
}`,
    )
  const addValues = (at: string): string =>
    each(
      ahead,
      (i) => `{ let w = select(ts[max(j${i} - begin, 0)], -1.0, ${at} + ${i * ways} >= end);
sum = select(fma(vec4f(w), v${i}, sum), sum, w < 0.0); total = select(total + w, total, w < 0.0); }`,
    )
  const body = `let row = wg.x + wg.y * groups.x;
if (row >= p.count) { return; }
let head = row / p.blocks; let q0 = i32(row % p.blocks);
let b = i32(head / p.heads); let h = i32(head % p.heads); let hk = i32(head % p.heads / p.group);
let qBase = p.qAt + b * p.qBatch + h * p.qHead + q0 * p.qRow;
let kBase = p.kAt + b * p.kBatch + hk * p.kHead;
let vBase = p.vAt + b * p.vBatch + hk * p.vHead;
${
  key && value
    ? `let place = place_[u32(p.placeAt)]; let other = select(0, 1, place == 0);
let keyBase = p.keyAt + b * p.keyBatch + hk * p.keyHead;
let valueBase = p.valueAt + b * p.valueBatch + hk * p.valueHead;`
    : ''
}
${headOptions(form)}
// What causality and a window hide is not looked at.
let begin = max(i32(wg.z) * p.span, q0 + p.low + 1);
let end = min(min(i32(wg.z + 1u) * p.span, p.keys), q0 + p.high + 1);
let c = i32(li % ${v4}u); let way = i32(li / ${v4}u);
${
  key && value
    ? `let newest = ${columnsAt(form, value, 'valueBase', 'c')};
if (u32(h) % p.group == 0u && begin <= place && place < end) {
if (li < ${q4}u) { k[u32(kBase + place * p.kRow) + li] = ${stored(k.dtype, columnsAt(form, key, 'keyBase', 'i32(li)'))}; }
if (li < ${v4}u) { v[u32(vBase + place * p.vRow) + li] = ${stored(v.dtype, 'newest')}; }
}`
    : ''
}
// The first values are under way while scores are computed.
let first = begin + way; let last = max(end, 1) - 1;
${loadValues('first')}
let tx = 0u; let ty = 0u;
var top = p.ninf;
for (var k0 = begin + i32(li); k0 < end; k0 += ${threads}) {
let row = kBase + k0 * p.kRow;
var s0_0 = 0.0;
${product}
${scaled(form, 's', 'keys')}
${mask === 'none' ? '' : hide(form, 's', 'keys')}
ts[k0 - begin] = s0_0;
top = max(top, s0_0);
}
tr[li] = top;
workgroupBarrier();
if (li < 16u) {
for (var i = 1u; i < 16u; i++) { top = max(top, tr[li + 16u * i]); }
tops[li] = top;
}
workgroupBarrier();
var largest = tops[0];
for (var i = 1u; i < 16u; i++) { largest = max(largest, tops[i]); }
let level = select(largest, 0.0, largest == p.ninf);
for (var j = i32(li); j < end - begin; j += ${threads}) {
let s = ts[j];
ts[j] = select(${power('s - level')}, -1.0, s == p.ninf);
}
workgroupBarrier();
if (way < ${ways}) {
var sum = vec4f(); var total = 0.0;
${addValues('first')}
for (var j = first + ${ahead * ways}; j < end; j += ${ahead * ways}) {
${loadValues('j')}
${addValues('j')}
}
to[li] = sum;
if (c == 0) { tr[way] = total; }
}
workgroupBarrier();
if (li >= ${v4}u) { return; }
var sum = to[li]; var total = tr[0];
for (var i = 1u; i < ${ways}u; i++) { sum += to[i * ${v4}u + li]; total += tr[i]; }
${
  apart
    ? `let at = (row * p.parts + wg.z) * ${v4 + 1}u;
parts[at + li] = sum;
if (li == 0u) { parts[at + ${v4}u] = vec4f(largest, total, 0.0, 0.0); }`
    : storeRow(form, types.o, 'c', 'p.blocks', 'p.count')
}`
  return {
    params: params(form, apart, types),
    bindings: [
      { name: 'q', item: item(q.dtype) },
      ...[key, value].flatMap((x) =>
        x && x.binding === x.name ? [{ name: x.name, item: item(x.dtype) }] : [],
      ),
      { name: 'k', item: item(k.dtype), write: key !== null },
      { name: 'v', item: item(v.dtype), write: key !== null },
      ...(key ? [{ name: 'place_', item: 'i32' } as const] : []),
      ...optionBindings(form),
      ...(apart
        ? [{ name: 'parts', item: 'vec4<f32>', write: true } as const]
        : resultBindings(form, types.o)),
    ],
    workgroup: [threads],
    declarations: `${packedCode([q, k, v, ...(key && value ? [key, value] : [])].map(({ dtype }) => dtype).concat(types.o))}
var<workgroup> ts: array<f32, ${most}>;
var<workgroup> tr: array<f32, ${threads}>;
var<workgroup> tops: array<f32, 16>;
var<workgroup> to: array<vec4f, ${ways * v4}>;`,
    body,
  }
}

const mergeThreads = 64

const mergeParams = (form: Form) =>
  block({ count: u32, parts: u32, heads: u32, queries: u32, ninf: f32, result: resultParams(form) })

/** Puts parts together: a thread has a vector of a row. */
function mergeShader(form: Form, o: DType): Shader<ValuesOf<typeof mergeParams>> {
  const v4 = Math.ceil(form.dv / 4)
  return {
    params: mergeParams(form),
    bindings: [{ name: 'parts', item: 'vec4<f32>' }, ...resultBindings(form, o)],
    workgroup: [mergeThreads],
    declarations: packedCode([o]),
    body: `let index = (wg.x + wg.y * groups.x) * ${mergeThreads}u + li;
let row = index / ${v4}u; let c = i32(index % ${v4}u);
if (row >= p.count) { return; }
let first = row * p.parts * ${v4 + 1}u;
var largest = p.ninf;
for (var i = 0u; i < p.parts; i++) { largest = max(largest, parts[first + i * ${v4 + 1}u + ${v4}u].x); }
let level = select(largest, 0.0, largest == p.ninf);
var sum = vec4f(); var total = 0.0;
for (var i = 0u; i < p.parts; i++) {
let at = first + i * ${v4 + 1}u;
let part = parts[at + ${v4}u];
let share = ${power('part.x - level')};
total += part.y * share;
sum += parts[at + u32(c)] * share;
}
${storeRow(form, o, 'c', 'p.queries', 'p.count')}`,
  }
}
