/**
 * Fused softmax attention, forward and backward (FlashAttention-2, Dao 2023): `softmax(scale · q kᵀ + mask)
 * v` by blocks of 64 queries and 96 keys, so that no T×S matrix is ever stored. This file decides which
 * kernel runs and with what; the kernels are in `attention/forward.ts` and `attention/backward.ts`, their
 * common steps in `attention/blocks.ts`, which blocks they visit in `attention/visits.ts`.
 *
 * Takes float32 operands with any strides, D and Dv up to 256, grouped heads, a mask to add or to keep by
 * (any strides), causality from either corner, windows, global tokens, masks of blocks, ALiBi and dropout.
 * Declines the gradient of a mask: the composition takes over. Results are the same bits on any number of threads. A
 * query that sees no key gives zeros, a maximum of −∞, a sum of 0, and no gradient.
 *
 * LADDER.md beside this file has the steps on the way here. Today, causal, B1 H8 T1024 D64 on one core of a Zen 4, forward
 * and backward: 25.3 and 58.3 ms on Node 20 (floors 18.2 and 45.5), 13.2 and 30.3 ms on Node 24 revectorized (9.1, 22.8).
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention.test.ts.
 */

import {
  type AttentionAttrs,
  attentionOperands,
  dropoutFactors,
  dropoutParams,
  type GradientAttrs,
  specialize,
  type View,
} from '@tilegrad/core'
import { wordOf } from '../../element.ts'
import { align64, type Engine, type KernelFactory } from '../../engine.ts'
import { flagOf } from '../indexing/indexing.ts'
import { narrow, type Tile, tileFor } from '../matmul/micro.ts'
import { type BackwardMode, buildBackward } from './backward.ts'
import { commonParams, type Form, formName, passParams, queryBlock } from './blocks.ts'
import { buildForward, forwardScratch } from './forward.ts'
import { backwardScratch } from './queries.ts'
import { chunksOf, chunksPerBlock, far, keyStep } from './visits.ts'

/** The largest head that the blocks' scratch memory is meant for. */
const maxWidth = 256

/** What follows q, k and v is floating, or flags and lists of blocks. */
const dtypes = [['float32'], ['float32'], ['float32'], ['float32', 'bool', 'int32']] as const

const fits = ([q, , v]: readonly View[]): boolean =>
  [q.shape[3], v.shape[3]].every((n) => n >= 1 && n <= maxWidth) && q.shape[1] > 0

/** Dropout's expression, whatever its numbers are. */
const dropoutOf = ({ dropout }: AttentionAttrs): Form['dropout'] =>
  dropout === 0 ? null : specialize(dropoutFactors, [], dropoutParams(dropout, NO_DRAW), ['float32'])
const NO_DRAW = [0, 0, 0]

/** The form that kernels are built for. */
function formOf(engine: Engine, inputs: readonly View[], attrs: AttentionAttrs): Form {
  const { q, mask, blocks, slopes } = attentionOperands(inputs, attrs)
  const { blockSize } = attrs
  return {
    tile: tileOf(tileFor(engine.features), blockSize > 0 ? Math.min(blockSize, q.shape[2]) : q.shape[2]),
    mask: mask === null ? 'none' : (mask.dtype as 'float32' | 'bool'),
    blocks: blocks !== null,
    alibi: slopes !== null,
    dropout: dropoutOf(attrs),
    careful: false,
  }
}

/** A tile whose columns are not many more than the queries. */
function tileOf(tile: Tile, queries: number): Tile {
  const vectors = queries > 4 * (tile.vectors / 2) ? tile.vectors : queries > 4 ? tile.vectors / 2 : 1
  return narrow(tile, vectors)
}

/** Writes the parameters that do not depend on the pass. */
function writeCommon(
  engine: Engine,
  inputs: readonly View[],
  attrs: AttentionAttrs,
  numbers: readonly number[],
): void {
  const { q, k, v, mask, blocks, slopes } = attentionOperands(inputs, attrs)
  const { causal, window, globalTokens, blockSize } = attrs
  const [queries, keys] = [q.shape[2], k.shape[2]]
  const offset = causal === 'bottom-right' ? keys - queries : 0
  const globals = window > 0 ? Math.min(globalTokens, far) : 0
  const step = keyStep(blockSize)
  commonParams.write(engine, {
    heads: q.shape[1],
    group: q.shape[1] / k.shape[1],
    queries,
    keys,
    width: q.shape[3],
    valueWidth: v.shape[3],
    scale: attrs.scale,
    low: window > 0 ? offset - Math.min(window, far) : -far,
    high: causal === 'none' ? far : offset,
    globalKeys: globals,
    globalQueries: globals > 0 ? globals - offset : 0,
    offset,
    queryChunks: chunksOf(queries, queryBlock, blockSize),
    flagPtr: flagOf(engine),
    q,
    k,
    v,
    mask,
    blockSize,
    keyStep: step,
    queriesPerBlock: chunksPerBlock(queryBlock, blockSize),
    keysPerBlock: chunksPerBlock(step, blockSize),
    kvNumBlocks: blocks?.kvNumBlocks,
    kvIndices: blocks?.kvIndices,
    qNumBlocks: blocks?.qNumBlocks,
    qIndices: blocks?.qIndices,
    slopesPtr: slopes ? engine.address(slopes) : 0,
    slopesStep: slopes ? 4 * slopes.strides[0] : 0,
    drop: dropoutOf(attrs)?.params.map(({ source, dtype }) => wordOf(dtype, numbers[source])),
  })
}

/** The distance of the rows' sums from their maxima: both are in one tensor, (2, B, H, T). */
const planeBytes = ({ shape: [, b, h, t] }: View): number => 4 * b * h * t

/**
 * Runs kernels; and once more, with care, where a result is not finite and something is hidden: 0 · NaN may have brought
 * a hidden key into it. So finite numbers pay no more than a look at the results.
 */
function withCare(
  engine: Engine,
  { causal, window, hasMask, blockSize }: AttentionAttrs,
  run: (careful: boolean) => void,
): void {
  run(false)
  const flag = flagOf(engine) >>> 2
  const { i32 } = engine.memory
  if (i32[flag] === 0) return
  i32[flag] = 0
  if (causal !== 'none' || window > 0 || hasMask || blockSize > 0) run(true)
}

export const attention: KernelFactory<AttentionAttrs> = (engine) => ({
  dtypes,
  supports: fits,
  run([out, stats], inputs, attrs, numbers) {
    const { q, k, v } = attentionOperands(inputs, attrs)
    const [b, h, t, d] = q.shape
    const dv = v.shape[3]
    if (b * h * t === 0) return
    const form = formOf(engine, inputs, attrs)
    const copies = k.strides[3] !== 1 || v.strides[3] !== 1 || v.strides[2] !== dv
    const bytes = forwardScratch(form.tile, d, dv, copies, form.mask)
    const scratch = engine.scratch(bytes)
    const chunks = chunksOf(t, queryBlock, attrs.blockSize)
    writeCommon(engine, inputs, attrs, numbers)
    passParams.write(engine, {
      out,
      topPtr: engine.address(stats),
      sumPtr: engine.address(stats) + planeBytes(stats),
      scratch,
      scratchStep: align64(bytes),
      blocks: chunks,
      dout: null,
      needQ: 0,
      needK: 0,
      needV: 0,
      dq: null,
      dk: null,
      dv: null,
    })
    withCare(engine, attrs, (careful) => {
      const built = careful ? { ...form, careful } : form
      const kernel = engine.kernel(`attention:${formName(built)}`, (m) => buildForward(m, built))
      engine.launch(kernel, b * h * chunks, 1)
    })
  },
})

export const attentionBackward: KernelFactory<GradientAttrs<AttentionAttrs>> = (engine) => ({
  dtypes,
  supports: (inputs, attrs) => fits(inputs) && !(attrs.hasMask && attrs.needs[3]),
  run(outputs, inputs, attrs, numbers) {
    const { q, k, v, rest } = attentionOperands(inputs, attrs)
    const [b, h, t, d] = q.shape
    const [keyHeads, s, dv] = [k.shape[1], k.shape[2], v.shape[3]]
    const [out, stats, dout] = rest
    const [needQ, needK, needV] = attrs.needs
    const form = formOf(engine, inputs, attrs)
    const bytes = backwardScratch(form.tile, form.mask, d, dv)
    const scratch = engine.scratch(bytes)
    let next = 0
    const [dq, dk, dvalues] = [needQ, needK, needV].map((need) => (need ? outputs[next++] : null))
    writeCommon(engine, inputs, attrs, numbers)
    passParams.write(engine, {
      out,
      topPtr: engine.address(stats),
      sumPtr: engine.address(stats) + planeBytes(stats),
      scratch,
      scratchStep: align64(bytes),
      blocks: 1,
      dout,
      needQ: Number(needQ),
      needK: Number(needK),
      needV: Number(needV),
      dq,
      dk,
      dv: dvalues,
    })
    const run = (careful: boolean, mode: BackwardMode, items: number, chunks: number): void => {
      if (items * chunks === 0) return
      const built = careful ? { ...form, careful } : form
      const key = `attentionBackward:${mode}:${formName(built)}`
      const kernel = engine.kernel(key, (m) => buildBackward(m, built, mode))
      passParams.set(engine, { blocks: chunks })
      engine.launch(kernel, items * chunks, 1)
    }
    const queryChunks = chunksOf(t, queryBlock, attrs.blockSize)
    const { threads } = engine.features
    const whole = b * keyHeads
    const even = whole % threads === 0 || whole >= 4 * threads
    withCare(engine, attrs, (careful) => {
      if (!needK && !needV) run(careful, 'queries', b * h, queryChunks)
      else if (even || threads === 1) run(careful, 'both', whole, 1)
      else {
        run(careful, 'keys', whole, chunksOf(s, keyStep(attrs.blockSize), attrs.blockSize))
        if (needQ) run(careful, 'queries', b * h, queryChunks)
      }
    })
  },
})
