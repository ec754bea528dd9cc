/**
 * The gradient of an embedding's weight: each row is the sum, in the order of the index, of the rows of dy whose index
 * it is. There are no atomic sums of floats, and in whatever order they come the result would vary; so:
 *
 * 1. The index is sorted with its positions, by digits of 8 bits, the last first: count the digits of each block of
 *    keys, add the counts up, put every key to its place, those of one digit in their order. Time grows with the number
 *    of indices; one pass does for up to 255 rows, two for up to 65,535.
 * 2. Runs of equal keys are added up, in spans of 32 sorted positions, whatever the runs' lengths: one row that takes
 *    most of the index, such as a space among characters, is spread over as many workgroups. A run within a span is a
 *    row of the result.
 * 3. Runs that go on into other spans are added up from the spans' sums, in order.
 *
 * Indices out of range and the padding row's count as key V, which goes nowhere.
 *
 * Where both the index and the weight are small, every row looks through the whole index by itself: one launch.
 *
 * Reference: `EMBEDDING` in core's ops/indexing.ts. Test: embedding.test.ts.
 */

import { layout, type View } from '@tilegrad/core'
import { viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { block, group, i32, u32, type ValuesOf, when } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid, nestOf, walk, walkFunction, walkOf } from '../layout.ts'
import { itemOfWidth, widthOf } from '../rows.ts'

const workgroup = 256
/** Sorted positions that one workgroup adds up. */
const span = 32
/** Threads to a span: a vector of each row for every thread. */
const columns = 64

/** Indices, and indices times rows, that are looked through by every row. */
const few = { count: 2048, all: 2 ** 20 }

const label = 'embeddingBackward'

/**
 * Fills dweight (V, D), contiguous, with sums of dy (…, D), whose rows are dense; `skip` is a row left at 0. Adds `rest`
 * (V, D), contiguous, if there is one.
 */
export function sumRows(
  engine: Engine,
  dweight: View,
  index: View,
  dy: View,
  rest: View | undefined,
  skip: number,
): void {
  const [v, d] = dweight.shape
  const count = layout.numel(index.shape)
  const lead = index.shape.length
  const width = Math.min(widthOf(d, lead, [dy]), rest ? widthOf(d, 1, [rest]) : 4) as 4 | 1
  const nest = nestOf(index.shape, [viewOf(dy, index.shape, dy.strides.slice(0, lead))])
  const rank = nest.sizes.length
  if (count <= few.count && count * v <= few.all) {
    const own = nestOf(index.shape, [index])
    const adds = rest !== undefined
    const search = { width, lanes: lanesOf(d / width), index: own.sizes.length, dy: rank, adds } as const
    const key = `${label}.search:${Object.values(search)}`
    const kernel = engine.kernel(key, label, () => searchShader(search))
    const values = {
      ...{ count, size: v, vectors: d / width, skipped: skip, i0: index.offset, width },
      ...{ dy0: dy.offset, rest0: rest ? rest.offset / width : 0 },
      ...{ index_at: walkOf(own, 0), dy_at: walkOf(nest, 0) },
    }
    const buffers = [index, dy, dweight, ...(rest ? [rest] : [])].map(bufferOf)
    engine.run(kernel, buffers, values, [Math.ceil(d / width / search.lanes), ...grid(v)])
    return
  }
  begin(engine, dweight, rest, rest ? width : 4)
  const [keys, order] = sortKeys(engine, index, count, v, skip)

  const vectors = d / width
  const spans = Math.ceil(count / span)
  const [first, last] = [0, 1].map(() => engine.pool.alloc(spans * d, 'float32'))
  const to = bufferOf(dweight)
  const add = engine.kernel(`${label}.add:${width}:${rank}`, label, () => addShader(width, rank))
  const size = [Math.ceil(vectors / columns), ...grid(spans)] as const
  const sizes = { count, size: v, vectors, spans }
  const values = { ...sizes, width, dy0: dy.offset, dy_at: walkOf(nest, 0) }
  engine.run(add, [keys, order, bufferOf(dy), to, first, last], values, size)
  const join = engine.kernel(`${label}.join:${width}`, label, () => joinShader(width))
  engine.run(join, [keys, to, first, last], sizes, size)
  for (const buffer of [keys, order, first, last]) engine.pool.free(buffer)
}

/** Threads to a row: one for each of its vectors, as far as they go. */
function lanesOf(vectors: number): number {
  let lanes = 8
  while (lanes < 64 && lanes < vectors) lanes *= 2
  return lanes
}

const searchParams = (index: number, dy: number) =>
  block({
    ...{ count: u32, size: u32, vectors: u32, skipped: i32, i0: i32, width: i32 },
    ...{ dy0: i32, rest0: u32 },
    ...{ index_at: walk(index), dy_at: walk(dy) },
  })

/** A workgroup for each row of the weight and tile of columns: its threads share the index and the columns. */
function searchShader({
  width,
  lanes,
  index,
  dy,
  adds,
}: {
  readonly width: 4 | 1
  readonly lanes: number
  readonly index: number
  readonly dy: number
  readonly adds: boolean
}): Shader<ValuesOf<typeof searchParams>> {
  const item = itemOfWidth(width)
  const halves: string[] = []
  for (let half = workgroup / 2; half >= lanes; half /= 2)
    halves.push(`if (li < ${half}u) { tile[li] += tile[li + ${half}u]; }`, 'workgroupBarrier();')
  return {
    params: searchParams(index, dy),
    bindings: [
      { name: 'source', item: 'i32' },
      { name: 'dy', item },
      { name: 'y', item, write: true },
      ...(adds ? [{ name: 'rest', item } as const] : []),
    ],
    workgroup: [workgroup],
    declarations: `${walkFunction('index_at', index)}
${walkFunction('dy_at', dy)}
alias V = ${item};
var<workgroup> tile: array<V, ${workgroup}>;`,
    body: `let column = wg.x * ${lanes}u + li % ${lanes}u;
let part = li / ${lanes}u;
let k = wg.y + wg.z * groups.y;
let inside = k < p.size && column < p.vectors;
var sum = V();
if (inside && i32(k) != p.skipped) {
  for (var i = part; i < p.count; i += ${workgroup / lanes}u) {
    if (source[p.i0 + index_at(i)] == i32(k)) { sum += dy[u32(p.dy0 + dy_at(i)) / u32(p.width) + column]; }
  }
}
tile[li] = sum;
workgroupBarrier();
${halves.join('\n')}
let at = k * p.vectors + column;
if (inside && part == 0u) { y[at] = tile[li]${adds ? ' + rest[p.rest0 + at]' : ''}; }`,
  }
}

/** Fills what is added to: with `rest`, contiguous, or zeros. What is behind a tensor in its own buffer is nobody's. */
function begin(engine: Engine, to: View, rest: View | undefined, width: 4 | 1): void {
  const item = itemOfWidth(width)
  const kernel = engine.kernel(`${label}.begin:${width}${rest !== undefined}`, label, () => ({
    params: block({ count: u32, first: u32 }),
    bindings: [{ name: 'y', item, write: true }, ...(rest ? [{ name: 'x', item } as const] : [])],
    workgroup: [workgroup] as const,
    body: `let i = (wg.x + wg.y * groups.x) * ${workgroup}u + li;
if (i < p.count) { y[i] = ${rest ? 'x[p.first + i]' : `${item}()`}; }`,
  }))
  const count = Math.ceil(layout.numel(to.shape) / width)
  const values = { count, first: rest ? rest.offset / width : 0 }
  const buffers = [to, ...(rest ? [rest] : [])].map(bufferOf)
  engine.run(kernel, buffers, values, grid(Math.ceil(count / workgroup)))
}

/** The index's keys in ascending order, and their positions: equal keys by position. */
function sortKeys(
  engine: Engine,
  index: View,
  count: number,
  v: number,
  skip: number,
): [keys: GpuBuffer, order: GpuBuffer] {
  const { pool } = engine
  // Blocks grow where there would be many: one workgroup adds up the counts of all.
  const per = Math.min(16, Math.ceil(count / (64 * workgroup)))
  const blocks = Math.ceil(count / (per * workgroup))
  const nest = nestOf(index.shape, [index])
  const rank = nest.sizes.length
  const counts = pool.alloc(256 * blocks, 'int32')
  const starts = pool.alloc(256 * blocks, 'int32')
  const scan = engine.kernel(`${label}.scan`, label, scanShader)
  let source: GpuBuffer[] = [bufferOf(index)]
  for (let shift = 0; shift === 0 || v >> shift > 0; shift += 8) {
    const direct = shift === 0
    const keys = direct ? { i0: index.offset, size: v, skipped: skip, index_at: walkOf(nest, 0) } : null
    const values = { count, per, shift, keys }
    const key = `${direct ? rank : 'k'}`
    const digits = engine.kernel(`${label}.count:${key}`, label, () => countShader(direct ? rank : 0))
    engine.run(digits, [source[0], counts], values, [blocks])
    engine.run(scan, [counts, starts], { blocks }, [1])
    const sorted = [pool.alloc(count, 'int32'), pool.alloc(count, 'int32')]
    const place = engine.kernel(`${label}.place:${key}`, label, () => placeShader(direct ? rank : 0))
    engine.run(place, [...source, starts, ...sorted], values, [blocks])
    if (!direct) for (const buffer of source) pool.free(buffer)
    source = sorted
  }
  pool.free(counts)
  pool.free(starts)
  return source as [GpuBuffer, GpuBuffer]
}

/** `key(i)`: from the index itself, of so many dims, or (rank 0) from keys already in order of lower digits. */
function keyCode(rank: number): string {
  if (rank === 0) return 'fn key(i: u32) -> u32 { return u32(source[i]); }'
  return `${walkFunction('index_at', rank)}
fn key(i: u32) -> u32 {
  let k = source[p.i0 + index_at(i)];
  return u32(select(p.size, k, k >= 0 && k < p.size && k != p.skipped));
}`
}

const keyParams = (rank: number) =>
  block({
    ...{ count: u32, per: u32, shift: u32 },
    keys: when(rank > 0, group({ i0: i32, size: i32, skipped: i32, index_at: walk(rank) })),
  })

/** Counts how often each digit occurs in each block: [block][digit]. */
function countShader(rank: number): Shader<ValuesOf<typeof keyParams>> {
  return {
    params: keyParams(rank),
    bindings: [
      { name: 'source', item: 'i32' },
      { name: 'counts', item: 'u32', write: true },
    ],
    workgroup: [workgroup],
    declarations: `var<workgroup> bins: array<atomic<u32>, 256>;\n${keyCode(rank)}`,
    body: `let start = wg.x * p.per * ${workgroup}u;
for (var e = 0u; e < p.per; e++) {
  let i = start + e * ${workgroup}u + li;
  if (i < p.count) { atomicAdd(&bins[(key(i) >> p.shift) & 255u], 1u); }
}
workgroupBarrier();
counts[wg.x * 256u + li] = atomicLoad(&bins[li]);`,
  }
}

const scanParams = block({ blocks: u32 })

/** Finds where each block's keys of each digit begin: after those of smaller digits, and those of earlier blocks. */
const scanShader = (): Shader<ValuesOf<typeof scanParams>> => ({
  params: scanParams,
  bindings: [
    { name: 'counts', item: 'u32' },
    { name: 'starts', item: 'u32', write: true },
  ],
  workgroup: [workgroup],
  declarations: 'var<workgroup> sums: array<u32, 256>;',
  body: `var total = 0u;
for (var b = 0u; b < p.blocks; b++) { total += counts[b * 256u + li]; }
sums[li] = total;
for (var reach = 1u; reach < 256u; reach *= 2u) {
  workgroupBarrier();
  let before = select(0u, sums[li - min(reach, li)], li >= reach);
  workgroupBarrier();
  sums[li] += before;
}
var next = sums[li] - total;
var b = 0u;
for (; b + 8u <= p.blocks; b += 8u) {
  ${[0, 1, 2, 3, 4, 5, 6, 7].map((k) => `let c${k} = counts[(b + ${k}u) * 256u + li];`).join(' ')}
  ${[0, 1, 2, 3, 4, 5, 6, 7].map((k) => `starts[(b + ${k}u) * 256u + li] = next; next += c${k};`).join(' ')}
}
for (; b < p.blocks; b++) { starts[b * 256u + li] = next; next += counts[b * 256u + li]; }`,
})

/** Every key and its position to their place: among those of its digit after the ones before it in the block. */
function placeShader(rank: number): Shader<ValuesOf<typeof keyParams>> {
  return {
    params: keyParams(rank),
    bindings: [
      { name: 'source', item: 'i32' },
      ...(rank === 0 ? [{ name: 'positions', item: 'u32' } as const] : []),
      { name: 'starts', item: 'u32' },
      { name: 'keys', item: 'u32', write: true },
      { name: 'order', item: 'u32', write: true },
    ],
    workgroup: [workgroup],
    declarations: `var<workgroup> next: array<u32, 256>;\nvar<workgroup> digits: array<u32, ${workgroup}>;\n${keyCode(rank)}`,
    body: `next[li] = starts[wg.x * 256u + li];
for (var e = 0u; e < p.per; e++) {
  let i = (wg.x * p.per + e) * ${workgroup}u + li;
  let inside = i < p.count;
  var k = 0u;
  if (inside) { k = key(i); }
  // 256 is no digit.
  let digit = select(256u, (k >> p.shift) & 255u, inside);
  digits[li] = digit;
  workgroupBarrier();
  var before = 0u;
  var after = 0u;
  for (var q = 0u; q < ${workgroup}u; q++) {
    let same = digits[q] == digit;
    before += select(0u, 1u, same && q < li);
    after += select(0u, 1u, same && q > li);
  }
  var to = 0u;
  if (inside) {
    to = next[digit] + before;
    keys[to] = k;
    order[to] = ${rank === 0 ? 'positions[i]' : 'i'};
  }
  workgroupBarrier();
  if (inside && after == 0u) { next[digit] = to + 1u; }
}`,
  }
}

const sizes = { count: u32, size: u32, vectors: u32, spans: u32 }
const joinParams = block(sizes)
const addParams = (rank: number) => block({ ...sizes, width: i32, dy0: i32, dy_at: walk(rank) })

/** The code that finds a workgroup's span, one for each y and z; x counts tiles of columns. */
const spanCode = `let s = wg.y + wg.z * groups.y;
let column = wg.x * ${columns}u + li;
let start = s * ${span}u;
let end = min(start + ${span}u, p.count);`

function addShader(width: 4 | 1, rank: number): Shader<ValuesOf<typeof addParams>> {
  const item = itemOfWidth(width)
  const some = [0, 1, 2, 3]
  return {
    params: addParams(rank),
    bindings: [
      { name: 'keys', item: 'u32' },
      { name: 'order', item: 'u32' },
      { name: 'dy', item },
      { name: 'y', item, write: true },
      { name: 'first', item, write: true },
      { name: 'last', item, write: true },
    ],
    workgroup: [columns],
    declarations: `${walkFunction('dy_at', rank)}
alias V = ${item};
var<workgroup> own: array<u32, ${span + 2}>;
var<workgroup> rows: array<u32, ${span}>;`,
    // own[1 + k]: the span's keys; before and after them those next to it, or 2³² − 1, which is no key.
    body: `${spanCode}
if (s < p.spans && li < ${span + 2}u) {
  let i = start + li;
  var k = 0xffffffffu;
  if (i > 0u && i <= p.count) { k = keys[i - 1u]; }
  own[li] = k;
  if (li < ${span}u && i < p.count) { rows[li] = u32(p.dy0 + dy_at(order[i])) / u32(p.width); }
}
workgroupBarrier();
if (s >= p.spans || column >= p.vectors) { return; }
let n = end - start;
var inherited = own[0] == own[1];
var sum = V();
for (var i = 0u; i < n; i += 4u) {
  ${some.map((k) => `let d${k} = dy[rows[min(i + ${k}u, n - 1u)] + column];`).join('\n  ')}
  ${some
    .map(
      (k) => `if (i + ${k}u < n) {
    sum += d${k};
    let k = own[i + ${k + 1}u];
    let closes = own[i + ${k + 2}u] != k;
    if (closes || i + ${k + 1}u == n) {
      if (inherited) { first[s * p.vectors + column] = sum; }
      else if (!closes) { last[s * p.vectors + column] = sum; }
      else if (k < p.size) { y[k * p.vectors + column] += sum; }
      sum = V();
      inherited = false;
    }
  }`,
    )
    .join('\n  ')}
}`,
  }
}

/** Runs that begin in this span and go on beyond it: `last` of this one and `first` of those after it. */
function joinShader(width: 4 | 1): Shader<ValuesOf<typeof joinParams>> {
  const item = itemOfWidth(width)
  return {
    params: joinParams,
    bindings: [
      { name: 'keys', item: 'u32' },
      { name: 'y', item, write: true },
      { name: 'first', item },
      { name: 'last', item },
    ],
    workgroup: [columns],
    body: `${spanCode}
if (s >= p.spans || column >= p.vectors || end == p.count) { return; }
let k = keys[end - 1u];
if (keys[end] != k || k >= p.size) { return; }
if (start > 0u && keys[start - 1u] == k) { return; }
var low = end;
var high = p.count;
while (low < high) {
  let mid = (low + high) / 2u;
  if (keys[mid] == k) { low = mid + 1u; } else { high = mid; }
}
// Spans up to the one that the run ends in.
let past = (low - 1u) / ${span}u + 1u;
var sum = last[s * p.vectors + column];
var t = s + 1u;
for (; t + 4u <= past; t += 4u) {
  ${[0, 1, 2, 3].map((q) => `let a${q} = first[(t + ${q}u) * p.vectors + column];`).join(' ')}
  sum = (((sum + a0) + a1) + a2) + a3;
}
for (; t < past; t++) { sum += first[t * p.vectors + column]; }
y[k * p.vectors + column] += sum;`,
  }
}
