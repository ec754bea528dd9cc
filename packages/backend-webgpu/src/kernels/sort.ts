/**
 * Stable sort along a dim: values and positions; NaN counts as the largest.
 *
 * Elements become unsigned keys in their order (descending: complemented), paired with their position, so that no two
 * pairs are equal and any correct sort is stable. Batcher's bitonic network sorts them, rows padded to a power of two:
 * blocks of 1,024 pairs in workgroup memory (several short rows at once), and for longer rows the steps of the
 * network that reach further in memory, one dispatch each: (log₂ n − 10)(log₂ n − 9) / 2 of them.
 *
 * Where rows are few and not too long, as the logits of one token, so many dispatches take far longer than the work. Then
 * a second dispatch looks every element up in all blocks of its row, which gives its place (merging by ranks, Satish,
 * Harris and Garland 2009): 11 steps a block, eight blocks at a time.
 *
 * Reference: `sort` in core's reference/kernels.ts. Test: indexing.test.ts.
 */

import { type DType, isFloat, layout, type Primitives, type View } from '@tilegrad/core'
import type { Engine } from '../commands/queue.ts'
import { bufferOf } from '../device/buffers.ts'
import { block, i32, u32, type ValuesOf } from '../wgsl/block.ts'
import { elementOf, type Lane, laneOf } from '../wgsl/element.ts'
import { mathCode } from '../wgsl/math.ts'
import type { Shader } from '../wgsl/shader.ts'
import { grid, nestOf, otherDims, pickDims, walk, walkFunction, walkOf } from './layout.ts'

/** Pairs of a block, four to a thread: 8 KiB of workgroup memory. */
const blockSize = 1024
const workgroup = 256
/** Elements times blocks in which each is looked up: up to here that takes less time than the network's dispatches. */
const mostRanked = 2 ** 25
/** Blocks in which an element is looked up at a time. */
const abreast = 8

export function sort(engine: Engine): Primitives['sort'] {
  return {
    run: ([values, indices], [x], { dim, descending }) =>
      sortInto(engine, values, indices, x, dim, descending),
  }
}

/** `values` and `indices` are contiguous. */
export function sortInto(
  engine: Engine,
  values: View,
  indices: View,
  x: View,
  dim: number,
  descending: boolean,
): void {
  const others = otherDims(x, dim)
  const sizes = others.map((d) => x.shape[d])
  const rows = layout.numel(sizes)
  const length = x.shape[dim] ?? 1
  if (rows === 0 || length === 0) return
  const blocks = Math.ceil(length / blockSize)
  const ranked = rows * length * blocks <= mostRanked
  const power = 2 ** Math.ceil(Math.log2(length))
  const padded = ranked && power > blockSize ? blocks * blockSize : power
  const [from, to] = [nestOf(sizes, [pickDims(x, others)]), nestOf(sizes, [pickDims(values, others)])]
  const [inRank, outRank] = [from.sizes.length, to.sizes.length]
  const read = { x0: x.offset, x_step: x.strides[dim] ?? 0, x_at: walkOf(from, 0) }
  const write = {
    ...{ values0: values.offset, indices0: indices.offset, y_step: values.strides[dim] ?? 0 },
    y_at: walkOf(to, 0),
  }
  const results = [values, indices].map(bufferOf)
  const source = bufferOf(x)
  const groups = (count: number) => grid(Math.ceil(count / blockSize))
  const { dtype } = x

  if (padded <= blockSize) {
    const kernel = engine.kernel(`sort short ${dtype} ${descending} ${inRank} ${outRank}`, 'sort', () =>
      shortRows(dtype, descending, inRank, outRank),
    )
    const own = { rows, length, padded, ...read, ...write }
    engine.run(kernel, [...results, source], own, groups(rows * padded))
    return
  }
  const keys = engine.pool.alloc(rows * padded, 'int32')
  const places = engine.pool.alloc(rows * padded, 'int32')
  const first = engine.kernel(`sort blocks ${dtype} ${descending} ${inRank}`, 'sort', () =>
    firstBlocks(dtype, descending, inRank),
  )
  const turn = (ranked ? blockSize : padded) - 1
  const all = groups(rows * padded)
  const each = grid(Math.ceil((rows * length) / workgroup))
  engine.run(
    first,
    [keys, places, source],
    { count: rows * padded, length, padded, turn, rows, ...read },
    all,
  )
  if (ranked) {
    const merge = engine.kernel(`sort ranks ${dtype} ${inRank} ${outRank}`, 'sort', () =>
      rankRows(dtype, inRank, outRank),
    )
    const own = { count: rows * length, length, padded, end: rows * padded, blocks, ...read, ...write }
    engine.run(merge, [...results, source, keys, places], own, each)
    engine.pool.free(keys)
    engine.pool.free(places)
    return
  }
  const far = engine.kernel('sort far', 'sort', farStep)
  const near = engine.kernel('sort near', 'sort', nearSteps)
  for (let size = 2 * blockSize; size <= padded; size *= 2) {
    for (let reach = size / 2; reach >= blockSize; reach /= 2) {
      const pairs = grid(Math.ceil((rows * padded) / 2 / workgroup))
      engine.run(far, [keys, places], { count: rows * padded, padded, size, reach }, pairs)
    }
    engine.run(near, [keys, places], { count: rows * padded, padded, size }, all)
  }
  const last = engine.kernel(`sort write ${dtype} ${inRank} ${outRank}`, 'sort', () =>
    writeRows(dtype, inRank, outRank),
  )
  const own = { count: rows * length, length, padded, ...read, ...write }
  engine.run(last, [...results, source, places], own, each)
  engine.pool.free(keys)
  engine.pool.free(places)
}

const reading = (rank: number) => ({ x0: i32, x_step: i32, x_at: walk(rank) })
const writing = (rank: number) => ({ values0: i32, indices0: i32, y_step: i32, y_at: walk(rank) })

/** `k`: unsigned integers in the order of elements v; −0 equals 0, and NaN is the largest. */
const keys: Readonly<Record<Lane, string>> = {
  float32: `let b = bitcast<u32>(v);
  var k = select(b | 0x80000000u, ~b, (b >> 31u) == 1u);
  if (b == 0x80000000u) { k = 0x80000000u; }
  if (tg_isnan(v)) { k = 0xffffffffu; }`,
  int32: 'let k = bitcast<u32>(v) ^ 0x80000000u;',
  bool: 'let k = v;',
}

const keyFunction = (
  dtype: DType,
  descending: boolean,
): string => `${mathCode(isFloat(dtype) ? ['tg_isnan'] : [])}
fn key(v: ${elementOf(dtype).item}) -> u32 {
  ${keys[laneOf(dtype)]}
  return ${descending ? '~k' : 'k'};
}`

/** Reads `pair` elements of x: what is beyond the end of a row comes after all that is in it. */
const loadPair = (length: string): string => `var k = 0xffffffffu;
var place = 0xffffffffu;
if (${length} && i < p.length) { k = key(x[p.x0 + x_at(row) + i32(i) * p.x_step]); place = i; }`

/** Compares the pairs `a` and `b = a + reach` of a block in workgroup memory. */
const exchange = `
var<workgroup> keys: array<u32, ${blockSize}>;
var<workgroup> places: array<u32, ${blockSize}>;
fn exchange(a: u32, b: u32, down: bool) {
  let ka = keys[a]; let kb = keys[b];
  let pa = places[a]; let pb = places[b];
  let greater = ka > kb || (ka == kb && pa > pb);
  if (greater != down) {
    keys[a] = kb; keys[b] = ka;
    places[a] = pb; places[b] = pa;
  }
}`

/** The steps of the network over a block from reach `first` down to 1; `down` by the place of pair `a` in the block. */
const steps = (
  first: string,
  down: string,
): string => `for (var reach = ${first}; reach >= 1u; reach >>= 1u) {
  workgroupBarrier();
  for (var t = li; t < ${blockSize / 2}u; t += ${workgroup}u) {
    let a = 2u * t - (t & (reach - 1u));
    exchange(a, a + reach, ${down});
  }
}`

/** The whole network for runs of `most` pairs, up and down by `turn`; `start` is the block's place. */
const network = (most: string, start: string, turn: string): string =>
  `for (var size = 2u; size <= ${most}; size <<= 1u) {
${steps('size >> 1u', `((${start}a) & ${turn} & size) != 0u`)}
}`

const shortParams = (inRank: number, outRank: number) =>
  block({ rows: u32, length: u32, padded: u32, ...reading(inRank), ...writing(outRank) })

function shortRows(
  dtype: DType,
  descending: boolean,
  inRank: number,
  outRank: number,
): Shader<ValuesOf<typeof shortParams>> {
  const { item } = elementOf(dtype)
  return {
    params: shortParams(inRank, outRank),
    bindings: [
      { name: 'values', item, write: true },
      { name: 'indices', item: 'i32', write: true },
      { name: 'x', item },
    ],
    workgroup: [workgroup],
    declarations: `${keyFunction(dtype, descending)}${exchange}
${walkFunction('x_at', inRank)}\n${walkFunction('y_at', outRank)}`,
    body: `let first = (wg.x + wg.y * groups.x) * (${blockSize}u / p.padded);
for (var t = li; t < ${blockSize}u; t += ${workgroup}u) {
  let row = first + t / p.padded;
  let i = t % p.padded;
  ${loadPair('row < p.rows')}
  keys[t] = k;
  places[t] = place;
}
${network('p.padded', '', '(p.padded - 1u)')}
workgroupBarrier();
for (var t = li; t < ${blockSize}u; t += ${workgroup}u) {
  let row = first + t / p.padded;
  let i = t % p.padded;
  if (row < p.rows && i < p.length) {
    let y = y_at(row) + i32(i) * p.y_step;
    values[p.values0 + y] = x[p.x0 + x_at(row) + i32(places[t]) * p.x_step];
    indices[p.indices0 + y] = i32(places[t]);
  }
}`,
  }
}

const firstParams = (rank: number) =>
  block({ count: u32, length: u32, padded: u32, turn: u32, rows: u32, ...reading(rank) })

/** Sorts blocks of 1,024, up and down in turn, or with `turn` of 1,023 all up. */
function firstBlocks(dtype: DType, descending: boolean, rank: number): Shader<ValuesOf<typeof firstParams>> {
  return {
    params: firstParams(rank),
    bindings: [
      { name: 'all_keys', item: 'u32', write: true },
      { name: 'all_places', item: 'u32', write: true },
      { name: 'x', item: elementOf(dtype).item },
    ],
    workgroup: [workgroup],
    declarations: `${keyFunction(dtype, descending)}${exchange}\n${walkFunction('x_at', rank)}`,
    body: `let first = (wg.x + wg.y * groups.x) * ${blockSize}u;
let row = first / p.padded;
for (var t = li; t < ${blockSize}u; t += ${workgroup}u) {
  let i = (first + t) % p.padded;
  ${loadPair('row < p.rows')}
  keys[t] = k;
  places[t] = place;
}
${network(`${blockSize}u`, 'first + ', 'p.turn')}
${storeBlock}`,
  }
}

const storeBlock = `workgroupBarrier();
for (var t = li; t < ${blockSize}u; t += ${workgroup}u) {
  if (first + t < p.count) { all_keys[first + t] = keys[t]; all_places[first + t] = places[t]; }
}`

const scratchBindings = [
  { name: 'all_keys', item: 'u32', write: true },
  { name: 'all_places', item: 'u32', write: true },
] as const

const farParams = block({ count: u32, padded: u32, size: u32, reach: u32 })

/** Takes one step of the network that reaches beyond a block. */
const farStep = (): Shader<ValuesOf<typeof farParams>> => ({
  params: farParams,
  bindings: scratchBindings,
  workgroup: [workgroup],
  body: `let t = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
let a = 2u * t - (t & (p.reach - 1u));
if (a >= p.count) { return; }
let b = a + p.reach;
let ka = all_keys[a]; let kb = all_keys[b];
let pa = all_places[a]; let pb = all_places[b];
let greater = ka > kb || (ka == kb && pa > pb);
if (greater != (((a & (p.padded - 1u)) & p.size) != 0u)) {
  all_keys[a] = kb; all_keys[b] = ka;
  all_places[a] = pb; all_places[b] = pa;
}`,
})

const nearParams = block({ count: u32, padded: u32, size: u32 })

/** The steps within blocks that end the merge of runs of `size`. */
function nearSteps(): Shader<ValuesOf<typeof nearParams>> {
  return {
    params: nearParams,
    bindings: scratchBindings,
    workgroup: [workgroup],
    declarations: exchange,
    body: `let first = (wg.x + wg.y * groups.x) * ${blockSize}u;
for (var t = li; t < ${blockSize}u; t += ${workgroup}u) {
  let inside = first + t < p.count;
  keys[t] = select(0xffffffffu, all_keys[first + t], inside);
  places[t] = select(0xffffffffu, all_places[first + t], inside);
}
${steps(`${blockSize / 2}u`, '((first + a) & (p.padded - 1u) & p.size) != 0u')}
${storeBlock}`,
  }
}

const rankParams = (inRank: number, outRank: number) =>
  block({
    ...{ count: u32, length: u32, padded: u32, end: u32, blocks: u32 },
    ...reading(inRank),
    ...writing(outRank),
  })

/** Puts the elements of sorted blocks where they belong: after all that is less, and what is equal and comes before. */
function rankRows(dtype: DType, inRank: number, outRank: number): Shader<ValuesOf<typeof rankParams>> {
  const { item } = elementOf(dtype)
  const each = (line: (i: number) => string): string =>
    Array.from({ length: abreast }, (_, i) => line(i)).join('\n')
  return {
    params: rankParams(inRank, outRank),
    bindings: [
      { name: 'values', item, write: true },
      { name: 'indices', item: 'i32', write: true },
      { name: 'x', item },
      { name: 'keys', item: 'u32' },
      { name: 'places', item: 'u32' },
    ],
    workgroup: [workgroup],
    declarations: `${walkFunction('x_at', inRank)}\n${walkFunction('y_at', outRank)}`,
    body: `let t = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (t >= p.count) { return; }
let row = t / p.length;
let e = t % p.length;
let first = row * p.padded;
let own = e / ${blockSize}u;
let k = keys[first + e];
var rank = e % ${blockSize}u;
for (var next = 0u; next < p.blocks; next += ${abreast}u) {
${each(
  (i) => `let b${i} = next + ${i}u;
let n${i} = select(min(${blockSize}u, p.length - min(b${i} * ${blockSize}u, p.length)), 0u, b${i} == own);
let at${i} = first + b${i} * ${blockSize}u;
var c${i} = 0u;`,
)}
for (var reach = ${blockSize}u; reach >= 1u; reach >>= 1u) {
${each(
  (i) => `{ let v = keys[min(at${i} + c${i} + reach, p.end) - 1u];
let before = select(v < k, v <= k, b${i} < own);
c${i} += select(0u, reach, before && c${i} + reach <= n${i}); }`,
)}
}
${each((i) => `rank += c${i};`)}
}
let place = i32(places[first + e]);
let y = y_at(row) + i32(rank) * p.y_step;
values[p.values0 + y] = x[p.x0 + x_at(row) + place * p.x_step];
indices[p.indices0 + y] = place;`,
  }
}

const writeParams = (inRank: number, outRank: number) =>
  block({ count: u32, length: u32, padded: u32, ...reading(inRank), ...writing(outRank) })

function writeRows(dtype: DType, inRank: number, outRank: number): Shader<ValuesOf<typeof writeParams>> {
  const { item } = elementOf(dtype)
  return {
    params: writeParams(inRank, outRank),
    bindings: [
      { name: 'values', item, write: true },
      { name: 'indices', item: 'i32', write: true },
      { name: 'x', item },
      { name: 'places', item: 'u32' },
    ],
    workgroup: [workgroup],
    declarations: `${walkFunction('x_at', inRank)}\n${walkFunction('y_at', outRank)}`,
    body: `let t = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (t >= p.count) { return; }
let row = t / p.length;
let i = t % p.length;
let place = i32(places[row * p.padded + i]);
let y = y_at(row) + i32(i) * p.y_step;
values[p.values0 + y] = x[p.x0 + x_at(row) + place * p.x_step];
indices[p.indices0 + y] = place;`,
  }
}
