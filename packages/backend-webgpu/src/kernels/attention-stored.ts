/**
 * dQ = scale · dS K as a plain product: the kernel of dK and dV, which has dS = P ∘ (dP − δ) anyway, stores it for as many
 * heads at a time as memory is allowed for. That is five products instead of seven. Stored are scale · dSᵀ, a row per key;
 * pairs that causality hides are not written, but for those that the product reads at the diagonal.
 */

import { type AttentionAttrs, attentionOperands, type View } from '@tilegrad/core'
import type { GpuBuffer } from '../buffers.ts'
import type { Engine } from '../engine.ts'
import { colsOf, each, offsetOf, rowsOf, type Tile } from './attention-blocks.ts'
import { multiply } from './matmul.ts'
import { planOf } from './matmul-plan.ts'
import type { Problem } from './matmul-problem.ts'

export const storedParams = ['firstHead: u32', 'dsKeys: i32', 'dsRow: i32', 'margin: i32']

/** What dS may take, and how many workgroups must run at a time for it to pay. */
export interface Allowance {
  readonly bytes: number
  readonly leastGroups: number
}
/** Half a large GPU's workgroups at a time would leave it idle while the last ones finish. */
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
  const [b, h, t, d] = q.shape as [number, number, number, number]
  const [, hk, s] = k.shape as [number, number, number]
  if (b * hk * t * s === 0) return []
  const { maxBufferSize, maxStorageBufferBindingSize } = engine.gpu.limits
  const operands = 8 * b * ((h * t + hk * s) * (d + (v.shape[3] as number)))
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

/** dQ = dS K for the heads of a chunk, when the kernel before has stored dS. */
export interface Stored {
  readonly buffer: GpuBuffer
  /** Values of `storedParams`. */
  readonly words: readonly number[]
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
  const [, h, t, d] = q.shape as [number, number, number, number]
  const [, hk, s] = k.shape as [number, number, number]
  const group = h / hk
  const row = rowBytes(t, tile) / 4
  const keys = Math.ceil(s / rowsOf(tile)) * rowsOf(tile)
  const step = keys * row
  const count = chunk.items * chunk.heads * group * step
  const buffer = engine.pool.alloc(count, 'float32')
  const [item, head] = [Math.floor(chunk.first / hk), chunk.first % hk]
  const [kItem, kHead, kRow, kColumn] = k.strides as [number, number, number, number]
  const [dqItem, dqHead, dqRow, dqColumn] = dq.strides as [number, number, number, number]
  const problem: Problem = {
    ...{ m: t, n: d, k: s, type: 'f32', extras: [] },
    items: chunk.items * chunk.heads * group,
    sizes: [chunk.items, chunk.heads, group],
    a: { buffer, offset: 0, row: 1, column: row, batch: [chunk.heads * group * step, group * step, step] },
    b: {
      buffer: k.buffer as GpuBuffer,
      offset: k.offset + item * kItem + head * kHead,
      row: kRow,
      column: kColumn,
      batch: [kItem, kHead, 0],
    },
    outs: [
      {
        buffer: dq.buffer as GpuBuffer,
        offset: dq.offset + item * dqItem + head * group * dqHead,
        row: dqRow,
        column: dqColumn,
        batch: [dqItem, group * dqHead, dqHead],
      },
    ],
    ...(attrs.causal !== 'none' && { band: offsetOf(q, k, attrs) }),
  }
  const { bm, bk } = planOf(engine, problem, true).tile
  return {
    buffer,
    words: [chunk.first, keys, row / 4, bm + bk],
    multiply: () => multiply(engine, 'scaled_dot_product_attentionBackward', problem, undefined),
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
