/**
 * dQ = scale · dS K as a plain product: the kernel of dK and dV, which has dS = P ∘ (dP − δ) anyway, stores it for as many
 * heads at a time as memory is allowed for. That is five products instead of seven. Stored are scale · dSᵀ, a row per key;
 * pairs that causality hides are not written, but for those that the product reads at the diagonal.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention-stored.test.ts.
 */

import { type AttentionAttrs, attentionOperands, type View } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { block, group, i32, type Part, several, u32, type ValuesOf } from '../../wgsl/block.ts'
import type { Shader } from '../../wgsl/shader.ts'
import { grid } from '../layout.ts'
import { multiply } from '../matmul/matmul.ts'
import { planOf } from '../matmul/plan.ts'
import type { Matrix, Problem } from '../matmul/problem.ts'
import { colsOf, each, far, offsetOf, rowsOf, type Tile } from './blocks.ts'

export const storedParams = group({ firstHead: u32, dsKeys: i32, dsRow: i32, margin: i32 })

/** The bytes that dS may take, and the number of workgroups that must run at a time for it to pay. */
export interface Allowance {
  readonly bytes: number
  readonly leastGroups: number
}
/** The default allowance: half a large GPU's workgroups at a time would leave it idle while the last ones finish. */
export const allowance: Allowance = { bytes: 2 ** 29, leastGroups: 512 }

/** Key heads `first` … `first + count − 1`: all heads of some items of the batch, or some heads of one. */
export interface Chunk {
  readonly first: number
  readonly items: number
  readonly heads: number
}

/**
 * Key heads by chunks that fit; none where dS does not pay. At most twice the memory of the operands and gradients, so
 * that memory still grows with T.
 */
export function chunksOf(
  engine: Engine,
  { bytes, leastGroups }: Allowance,
  tile: Tile,
  inputs: readonly View[],
  attrs: AttentionAttrs,
): Chunk[] {
  if (attrs.window > 0 || attrs.globalTokens > 0 || attrs.blockSize > 0) return []
  const { q, k, v } = attentionOperands(inputs, attrs)
  const [b, h, t, d] = q.shape
  const [, hk, s] = k.shape
  if (b * hk * t * s === 0) return []
  const { maxBufferSize, maxStorageBufferBindingSize } = engine.gpu.limits
  const operands = 8 * b * ((h * t + hk * s) * (d + v.shape[3]))
  const most = Math.min(bytes, 2 * operands, maxBufferSize, maxStorageBufferBindingSize)
  const perHead = (h * rowBytes(t, tile) * Math.ceil(s / rowsOf(tile)) * rowsOf(tile)) / hk
  const even = (all: number, fit: number): number => Math.ceil(all / Math.ceil(all / fit))
  const fit = Math.floor(most / perHead)
  if (fit === 0) return []
  const [items, heads] = fit >= hk ? [even(b, Math.floor(fit / hk)), hk] : [1, even(hk, fit)]
  if (items * heads * Math.ceil(s / rowsOf(tile)) < leastGroups) return []
  const chunks: Chunk[] = []
  for (let item = 0; item < b; item += items)
    for (let head = 0; head < hk; head += heads)
      chunks.push({
        first: item * hk + head,
        items: Math.min(items, b - item),
        heads: Math.min(heads, hk - head),
      })
  return chunks
}

/** Bytes of a row of dSᵀ, which whole blocks of queries fill. */
const rowBytes = (queries: number, tile: Tile): number => 4 * Math.ceil(queries / colsOf(tile)) * colsOf(tile)

/** Computes dQ = dS K for the heads of a chunk, when the kernel before has stored dS. */
export interface Stored {
  readonly buffer: GpuBuffer
  /** Values of `storedParams`. */
  readonly values: { firstHead: number; dsKeys: number; dsRow: number; margin: number }
  multiply(): void
}

/** Room for a chunk's dS, and what becomes of it. */
export function storedOf(
  engine: Engine,
  tile: Tile,
  chunk: Chunk,
  inputs: readonly View[],
  attrs: AttentionAttrs,
  dq: View,
): Stored {
  const { q, k } = attentionOperands(inputs, attrs)
  const [, h, t, d] = q.shape
  const [, hk, s] = k.shape
  const perKey = h / hk
  const row = rowBytes(t, tile) / 4
  const keys = Math.ceil(s / rowsOf(tile)) * rowsOf(tile)
  const step = keys * row
  const count = chunk.items * chunk.heads * perKey * step
  const buffer = engine.pool.alloc(count, 'float32')
  const [item, head] = [Math.floor(chunk.first / hk), chunk.first % hk]
  const [kItem, kHead, kRow, kColumn] = k.strides
  const [dqItem, dqHead, dqRow, dqColumn] = dq.strides
  const problem: Problem = {
    ...{ m: t, n: d, k: s, type: 'f32', extras: [] },
    items: chunk.items * chunk.heads * perKey,
    sizes: [chunk.items, chunk.heads, perKey],
    a: { buffer, offset: 0, row: 1, column: row, batch: [chunk.heads * perKey * step, perKey * step, step] },
    b: {
      buffer: bufferOf(k),
      offset: k.offset + item * kItem + head * kHead,
      row: kRow,
      column: kColumn,
      batch: [kItem, kHead, 0],
    },
    outs: [
      {
        buffer: bufferOf(dq),
        offset: dq.offset + item * dqItem + head * perKey * dqHead,
        row: dqRow,
        column: dqColumn,
        batch: [dqItem, perKey * dqHead, dqHead],
      },
    ],
    ...(attrs.causal !== 'none' && { band: offsetOf(q, k, attrs) }),
  }
  const { bm, bk } = planOf(engine, problem, true).tile
  const elements = problem.items * t * d
  const high = attrs.causal === 'none' ? far : offsetOf(q, k, attrs)
  const mended = {
    ...{ count: elements, rows: t, width: d, keys: s, high, heads: chunk.heads, group: perKey },
    ...{ dsRow: row, dsStep: step, q: problem.outs[0], k: problem.b },
  }
  return {
    buffer,
    values: { firstHead: chunk.first, dsKeys: keys, dsRow: row / 4, margin: bm + bk },
    multiply() {
      const name = 'scaled_dot_product_attentionBackward'
      multiply(engine, name, problem, undefined)
      const kernel = engine.kernel('attentionBackward:mended', name, mendShader)
      engine.run(kernel, [dq, k].map(bufferOf).concat(buffer), mended, grid(Math.ceil(elements / 256)))
    },
  }
}

const place: Part<Matrix> = several(
  (name) => ['At', 'Item', 'Head', 'Group', 'Row', 'Step'].map((part) => `${name}${part}: i32`),
  ({ offset, batch, row, column }) => [offset, ...batch, row, column],
)
const mendParams = block({
  ...{ count: u32, rows: i32, width: i32, keys: i32, high: i32, heads: i32, group: i32 },
  ...{ dsRow: i32, dsStep: i32, q: place, k: place },
})

/**
 * Adds dQ up once more where it is not finite, without the keys whose dS is 0: one that is hidden but not finite was
 * multiplied by it.
 */
function mendShader(): Shader<ValuesOf<typeof mendParams>> {
  const at = (name: string, row: string): string =>
    `p.${name}At + item * p.${name}Item + head * p.${name}Head + part * p.${name}Group + ${row} * p.${name}Row + c * p.${name}Step`
  return {
    params: mendParams,
    bindings: [
      { name: 'dq', item: 'f32', write: true },
      { name: 'k', item: 'f32' },
      { name: 'ds', item: 'f32' },
    ],
    workgroup: [256],
    body: `let index = (wg.x + wg.y * groups.x) * 256u + li;
if (index >= p.count) { return; }
let c = i32(index) % p.width; let row = i32(index) / p.width % p.rows; let whole = i32(index) / p.width / p.rows;
let part = whole % p.group; let head = whole / p.group % p.heads; let item = whole / p.group / p.heads;
let to = u32(${at('q', 'row')});
if ((bitcast<u32>(dq[to]) & 0x7f800000u) != 0x7f800000u) { return; }
var sum = 0.0;
for (var j = 0; j < min(p.keys, row + p.high + 1); j++) {
let w = ds[u32(whole * p.dsStep + j * p.dsRow + row)];
if (!(w == 0.0)) { sum = fma(w, k[u32(${at('k', 'j')})], sum); }
}
dq[to] = sum;`,
  }
}

/**
 * Zeros at the diagonal, before the first query that sees the block of keys: a tile of the product reads up to its last
 * row's last key. Declares `dsBase`, where the head's rows of the block begin.
 */
export const zeroStored = ({ rm, tx }: Tile): string =>
  `let dsBase = ((b * i32(p.heads) + h - i32(p.firstHead * p.group)) * p.dsKeys + k0 + i32(ty) * ${rm}) * p.dsRow;
for (var z = max(0, begin - p.margin) / 4 + i32(tx); z < min(begin / 4, p.dsRow); z += ${tx}) {
${each(rm, (i) => `ds[u32(dsBase + ${i} * p.dsRow + z)] = vec4f();`)}
}`

/** Stores a thread's dS, in `name`. */
export const putStored = ({ rm, kn, tx }: Tile, name: string): string =>
  each(kn / 4, (v) => {
    const parts = (i: number): string => [0, 1, 2, 3].map((e) => `${name}${i}_${4 * v + e}`).join(', ')
    return each(
      rm,
      (i) =>
        `ds[u32(dsBase + ${i} * p.dsRow + q0 / 4 + i32(tx) + ${v * tx})] = vec4f(${parts(i)}) * p.scale;`,
    )
  })
