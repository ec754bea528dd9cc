/**
 * Fused softmax attention, forward and backward (FlashAttention-2, Dao 2023): `softmax(scale · q kᵀ + mask) v` by
 * blocks, so that no T×S matrix is ever stored. This file decides which kernel runs and with what; the kernels are in
 * `attention/forward.ts` and `attention/backward.ts`, their common steps in `attention/blocks.ts`, which blocks they
 * visit in `attention/visits.ts`, what else happens to scores in `attention/scores.ts`.
 *
 * Takes operands in float32, in float16 where `attention/matrices.ts` does, and few queries in 16 bits, with any strides, D and Dv up to 128, grouped heads, a mask to add or to keep by (any
 * strides), causality from either corner, windows, global tokens, masks of blocks, ALiBi and dropout. Declines the
 * gradient of a mask, and what needs more buffers than the GPU binds (8 by default: masks of blocks with both a mask and
 * ALiBi, or backward with either): the composition takes over. A query that sees no key gives zeros and no gradient,
 * also where that key is NaN or infinite. Saved for the gradients is [2, B, H, T]: the largest score of each row, and
 * Σ e^(score − largest); −∞ and 0 where no key is visible.
 *
 * Where all keys fit one block, one kernel makes all gradients (`attention/short.ts`): small models wait for dispatches.
 * Up to four queries of a head, as decoding has, are not worth a block (`attention/single.ts`).
 *
 * LADDER.md beside this file has the steps on the way here and their reasons. Today on one H100, float32, causal, B4 H12
 * T2048 D64: forward 0.86 ms (floor 0.44), forward and backward 3.4 ms with dS stored (`attention/stored.ts`).
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention.test.ts.
 */

import {
  type AttentionAttrs,
  attentionOperands,
  type DType,
  dropoutFactors,
  dropoutParams,
  type GradientAttrs,
  type KernelOf,
  specialize,
  type View,
} from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { grid } from '../layout.ts'
import { backwardBytes, backwardShader, type Gradients, statRows, statShader } from './backward.ts'
import {
  canShuffle,
  colsOf,
  commonOf,
  type Form,
  formName,
  isVectors,
  type MaskKind,
  padded,
  rowsOf,
  type Tile,
} from './blocks.ts'
import { forwardBytes, forwardShader } from './forward.ts'
import { isFloat16, matrixBackward, matrixForward, takesMatrices, takesMatrixGradients } from './matrices.ts'
import { optionBuffers, optionsOf } from './options.ts'
import { shortTiles } from './short.ts'
import {
  buffersOfRow,
  type Few,
  few,
  type Row,
  single,
  singleTile,
  takesHalves,
  takesSingle,
} from './single.ts'
import { type Allowance, allowance, type Chunk, chunksOf, storedOf } from './stored.ts'

/** The largest head: its blocks must fit in workgroup memory. */
const maxWidth = 128

/** The tiles, the best first; which fit depends on the size of the heads and on the GPU's workgroup memory. */
export const forwardTiles: readonly Tile[] = [
  { ty: 16, rm: 4, tx: 8, kn: 8, inPlace: 'rows and values' },
  { ty: 8, rm: 4, tx: 8, kn: 4 },
  { ty: 16, rm: 1, tx: 4, kn: 4 },
  { ty: 8, rm: 1, tx: 2, kn: 4 },
]
export const backwardTiles: readonly Tile[] = [
  { ty: 16, rm: 4, tx: 8, kn: 8, inPlace: 'rows', inTurn: true },
  { ty: 16, rm: 4, tx: 8, kn: 4, inPlace: 'rows' },
  { ty: 8, rm: 4, tx: 8, kn: 4 },
  { ty: 16, rm: 2, tx: 4, kn: 4 },
  { ty: 16, rm: 1, tx: 4, kn: 4 },
  { ty: 8, rm: 1, tx: 2, kn: 4 },
]

/** Buffers of the kernels without options: forward, and backward with one result. */
const forwardBuffers = 5
const backwardBuffers = 6

/** What q, k and v are, and what follows them: floating, or flags and lists of blocks. */
function dtypesOf(floats: readonly DType[]): readonly (readonly DType[])[] {
  return [floats, floats, floats, [...floats, 'bool', 'int32']]
}

/** What the gradients' kernels read: in 16 bits float16 alone, for subgroup matrices. */
const gradientTypes = ({ gpu }: Engine): readonly (readonly DType[])[] =>
  dtypesOf(gpu.matrices ? ['float32', 'float16'] : ['float32'])

const isHalf = ({ dtype }: View): boolean => dtype === 'float16' || dtype === 'bfloat16'

/** Operands are all float32, or of 16 bits what some kernel takes. */
const canRead = (inputs: readonly View[], halves: () => boolean): boolean => !inputs.some(isHalf) || halves()

/** Few queries of any dtype, whose mask is of flags or float32. */
const takesFew = (inputs: readonly View[], attrs: AttentionAttrs, apart: Few | null): apart is Few =>
  apart !== null &&
  takesSingle(inputs[0], attrs, apart) &&
  takesHalves(inputs) &&
  !inputs.slice(3).some(isHalf)

const canTake = (
  engine: Engine,
  inputs: readonly View[],
  attrs: AttentionAttrs,
  buffers: number,
): boolean => {
  const [q, , v] = inputs
  return (
    buffers + optionBuffers(attrs) <= engine.gpu.limits.maxStorageBuffersPerShaderStage &&
    q.shape[1] !== 0 &&
    [q.shape[3], v.shape[3]].every((n) => n >= 1 && n <= maxWidth)
  )
}

/** The tiles for SwiftShader, which compiles for minutes where a thread has more than one row. */
const usable = (engine: Engine, tiles: readonly Tile[]): readonly Tile[] =>
  engine.gpu.isSoftware ? tiles.filter(({ rm }) => rm === 1) : tiles

const maskKind = (mask: View | null): MaskKind => (mask ? (mask.dtype as 'float32' | 'bool') : 'none')

/** The form with the first tile that fits, and divides a block of a mask of blocks. */
function chooseForm(
  engine: Engine,
  tiles: readonly Tile[],
  bytes: (form: Form) => number,
  inputs: readonly View[],
  attrs: AttentionAttrs,
  more: readonly View[],
): Form {
  const { q, k, v, mask } = attentionOperands(inputs, attrs)
  const { blockSize, dropout } = attrs
  const { maxComputeWorkgroupStorageSize: most } = engine.gpu.limits
  const vectors = [q, k, v, ...more].every(isVectors)
  // Loops take two vectors at a time, and what lies behind a row in memory is another row.
  const pairs = vectors && [q, v].every((x) => x.shape[3] % 8 === 0)
  const forms = tiles
    .filter((tile) => [rowsOf(tile), colsOf(tile)].every((n) => blockSize % n === 0))
    .map((tile) => ({
      tile,
      dq: padded(q.shape[3]),
      dv: padded(v.shape[3]),
      vectors,
      mask: maskKind(mask),
      rowsInPlace: pairs && tile.inPlace !== undefined,
      valuesInPlace: pairs && tile.inPlace === 'rows and values',
      exact:
        pairs &&
        tile.inPlace !== undefined &&
        [q, k].every((x) => x.shape[2] % 8 === 0) &&
        [q, v].every((x) => x.shape[3] === padded(x.shape[3])),
      shuffle: canShuffle(engine, tile.tx),
      globals: attrs.globalTokens > 0,
      blocks: blockSize > 0,
      alibi: attrs.hasAlibi,
      stored: false,
      sharing: [],
      dropout:
        dropout === 0 ? null : specialize(dropoutFactors, [], dropoutParams(dropout, NO_DRAW), ['float32']),
    }))
  return (forms.find((form) => bytes(form) <= most) ?? forms.at(-1)) as Form
}

/** Code depends on dropout, not on its numbers. */
const NO_DRAW = [0, 0, 0]

/** `apart`: where queries are so few, keys are shared out instead; null: never. */
export function attention(
  engine: Engine,
  tiles = usable(engine, forwardTiles),
  apart: Few | null = few,
): KernelOf<AttentionAttrs> {
  return {
    dtypes: dtypesOf(['float32', 'float16', 'bfloat16']),
    supports: (inputs, attrs) =>
      canTake(engine, inputs, attrs, forwardBuffers) &&
      canRead(inputs, () => takesFew(inputs, attrs, apart) || takesMatrices(engine, inputs, attrs)),
    run(outputs, inputs, attrs, numbers) {
      const [out, stats] = outputs
      const { q, k, v } = attentionOperands(inputs, attrs)
      const [b, h, t] = q.shape
      if (b * h * t === 0) return
      if (isFloat16(inputs) && !takesFew(inputs, attrs, apart)) {
        matrixForward(engine, outputs, inputs, attrs, numbers)
        return
      }
      if (apart && takesSingle(q, attrs, apart)) {
        const form = chooseForm(engine, [singleTile], () => 0, inputs, attrs, [out])
        single(engine, form, outputs, inputs, attrs, apart)
        return
      }
      const form = chooseForm(engine, tiles, forwardBytes, inputs, attrs, [out])
      const kernel = engine.kernel(`attention:${formName(form)}`, 'scaled_dot_product_attention', () =>
        forwardShader(form),
      )
      const common = commonOf([q, k, v], attrs, b * h, Math.ceil(t / rowsOf(form.tile)))
      const options = optionsOf(form, 'keys', inputs, attrs)
      const values = { common, q, k, v, options: options.values, o: out, statsAt: stats.offset }
      const buffers = [...[q, k, v].map(bufferOf), ...options.buffers, ...[out, stats].map(bufferOf)]
      engine.run(kernel, buffers, values, grid(common.count), numbers)
    },
  }
}

/** Attention of one query to caches, into which it puts its own key and value; the last inputs are those and their row. */
export function attentionRow(engine: Engine, apart = few): KernelOf<AttentionAttrs> {
  const rowOf = ({ rest }: { readonly rest: readonly View[] }): Row => ({
    key: rest[0],
    value: rest[1],
    place: rest[2],
  })
  return {
    supports(inputs, attrs) {
      const operands = attentionOperands(inputs, attrs)
      const { q, k, mask } = operands
      const row = rowOf(operands)
      return (
        canTake(engine, inputs, attrs, buffersOfRow(q, row)) &&
        q.shape[2] === 1 &&
        k.shape[2] > 1 &&
        takesFew(inputs.slice(0, 3), attrs, apart) &&
        [row.key, row.value].every(isVectors) &&
        [q, k, row.key, row.value].every((v) => v.dtype === 'float32' || isHalf(v)) &&
        (mask === null || !isHalf(mask))
      )
    },
    run(outputs, inputs, attrs) {
      const operands = attentionOperands(inputs, attrs)
      const [b, h] = operands.q.shape
      if (b * h === 0) return
      const form = chooseForm(engine, [singleTile], () => 0, inputs, attrs, [outputs[0]])
      single(engine, form, outputs, inputs, attrs, apart, rowOf(operands))
    },
  }
}

export function attentionBackward(
  engine: Engine,
  tiles = usable(engine, backwardTiles),
  allowed: Allowance = allowance,
): KernelOf<GradientAttrs<AttentionAttrs>> {
  return {
    dtypes: gradientTypes(engine),
    supports: (inputs, attrs) =>
      canTake(engine, inputs, attrs, backwardBuffers) &&
      !(attrs.hasMask && attrs.needs[3]) &&
      canRead(inputs, () => takesMatrixGradients(engine, inputs, attrs)),
    run(outputs, inputs, attrs, numbers) {
      const { q, k, v, rest } = attentionOperands(inputs, attrs)
      const [b, h, t] = q.shape
      const [keyHeads, s] = [k.shape[1], k.shape[2]]
      const [out, stats, dout] = rest

      const formOf = (gradients: Gradients, results: readonly View[], of = tiles): Form => ({
        ...chooseForm(engine, of, (f) => backwardBytes(f, gradients), inputs, attrs, [out, dout, ...results]),
        sharing: results.map((x) => results.findIndex((y) => y.buffer === x.buffer)),
      })

      const run = (
        gradients: Gradients,
        results: readonly View[],
        form: Form,
        saved: readonly GpuBuffer[],
        chunk?: Chunk,
      ): void => {
        const isQ = gradients === 'q'
        const key = `attentionBackward:${gradients}:${formName(form)}`
        const kernel = engine.kernel(key, 'scaled_dot_product_attentionBackward', () =>
          backwardShader(form, gradients),
        )
        const items = isQ ? b * h : chunk ? chunk.items * chunk.heads : b * keyHeads
        const blocks = Math.ceil((isQ ? t : s) / rowsOf(form.tile))
        const common = commonOf([q, k, v], attrs, items, blocks)
        const options = optionsOf(form, isQ ? 'keys' : 'queries', inputs, attrs)
        const stored = chunk && storedOf(engine, form.tile, chunk, inputs, attrs, outputs[0])
        const gradient = (of: string): View | undefined => results[gradients.indexOf(of)]
        const values = {
          ...{ common, q, k, v, g: dout, options: options.values },
          short: { o: out, statsAt: stats.offset },
          stored: stored?.values,
          ...{ dq: gradient('q'), dk: gradient('k'), dv: gradient('v') },
        }
        const buffers = [
          ...[q, k, v, dout].map(bufferOf),
          ...[...saved, ...options.buffers],
          ...results.filter((_, n) => form.sharing[n] === n).map(bufferOf),
          ...(stored ? [stored.buffer] : []),
        ]
        engine.run(kernel, buffers, values, grid(common.count), numbers)
        if (stored) {
          stored.multiply()
          engine.pool.free(stored.buffer)
        }
      }

      const [needQ, needK, needV] = attrs.needs
      const needAll = needQ && needK && needV
      const fits = (more: number): boolean => canTake(engine, inputs, attrs, backwardBuffers + more)
      if (isFloat16(inputs)) {
        matrixBackward(engine, outputs, inputs, attrs, numbers, fits)
        return
      }
      const short = shortTiles(tiles, q, k, attrs, allowed.leastGroups)
      // Operands, out and its statistics, and the buffers of the results.
      if (needAll && short.length > 0 && fits(new Set(outputs.map(bufferOf)).size)) {
        const form = formOf('qkv', outputs, short)
        if (backwardBytes(form, 'qkv') <= engine.gpu.limits.maxComputeWorkgroupStorageSize) {
          run('qkv', outputs, form, [out, stats].map(bufferOf))
          return
        }
      }

      const rows = b * h * t
      const stat = engine.pool.alloc(4 * rows, 'float32')
      if (rows > 0) {
        const vectors = [out, dout].every(isVectors)
        const name = 'scaled_dot_product_attentionBackward'
        const kernel = engine.kernel(`attentionStat:${vectors}`, name, () => statShader({ vectors }))
        const width = v.shape[3]
        const sizes = { rows, heads: h, queries: t, width }
        const values = { ...sizes, g: dout, o: out, statsAt: stats.offset }
        const buffers = [dout, out, stats].map(bufferOf).concat(stat)
        engine.run(kernel, buffers, values, grid(Math.ceil(rows / statRows)))
      }

      const one = (gradients: Gradients, results: readonly View[]): void =>
        run(gradients, results, formOf(gradients, results), [stat])
      const left = [...outputs]
      const form = needAll && fits(2) ? { ...formOf('kv', outputs.slice(1)), stored: true } : null
      const chunks = form ? chunksOf(engine, allowed, form.tile, inputs, attrs) : []
      if (form && chunks.length > 0)
        for (const chunk of chunks) run('kv', outputs.slice(1), form, [stat], chunk)
      else {
        if (needQ) one('q', left.splice(0, 1))
        if (needK && needV && fits(1)) one('kv', left.splice(0, 2))
        else {
          if (needK) one('k', left.splice(0, 1))
          if (needV) one('v', left.splice(0, 1))
        }
      }
      engine.pool.free(stat)
    },
  }
}
