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
  dtypeInfo,
  type GradientAttrs,
  specialize,
  type View,
} from '@tilegrad/core'
import { f32bits, wordOf } from '../../element.ts'
import { align64, type Engine, type KernelFactory } from '../../engine.ts'
import { flagOf } from '../indexing/indexing.ts'
import { narrow, type Tile, tileFor } from '../matmul/micro.ts'
import { type BackwardMode, buildBackward } from './backward.ts'
import { type Form, formName, type operands, queryBlock, type Word, wordNames } from './blocks.ts'
import { buildForward, forwardScratch } from './forward.ts'
import { backwardScratch } from './queries.ts'
import { dropWord } from './scores.ts'
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

/** Writes parameters by name, straight into the block that kernels read. */
function writer(engine: Engine): (name: Word, value: number) => void {
  const base = engine.params >>> 2
  return (name, value) => {
    // Compiling a kernel may grow memory, which renews its views.
    engine.memory.i32[base + (wordIndex.get(name) as number)] = value
  }
}
const wordIndex = new Map<Word, number>(wordNames.map((name, i) => [name, i]))

function writeOperand(
  engine: Engine,
  set: ReturnType<typeof writer>,
  name: (typeof operands)[number],
  view: View,
): void {
  const { bytes } = dtypeInfo[view.dtype]
  const [b, h, row, step = 0] = view.strides
  set(`${name}Ptr`, engine.address(view))
  set(`${name}Batch`, b * bytes)
  set(`${name}Head`, h * bytes)
  set(`${name}Row`, row * bytes)
  set(`${name}Step`, step * bytes)
}

/** The rows' maxima, then their sums, (2, B, H, T). */
function writeStats(engine: Engine, set: ReturnType<typeof writer>, stats: View): void {
  const [, b, h, t] = stats.shape
  set('topPtr', engine.address(stats))
  set('sumPtr', engine.address(stats) + 4 * b * h * t)
}

function writeCommon(
  engine: Engine,
  inputs: readonly View[],
  attrs: AttentionAttrs,
  numbers: readonly number[],
): ReturnType<typeof writer> {
  const set = writer(engine)
  set('flagPtr', flagOf(engine))
  const { q, k, v, mask, blocks, slopes } = attentionOperands(inputs, attrs)
  const { causal, window, globalTokens, blockSize } = attrs
  const [queries, keys] = [q.shape[2], k.shape[2]]
  set('heads', q.shape[1])
  set('group', q.shape[1] / k.shape[1])
  set('queries', queries)
  set('keys', keys)
  set('width', q.shape[3])
  set('valueWidth', v.shape[3])
  set('scale', f32bits(attrs.scale))
  const offset = causal === 'bottom-right' ? keys - queries : 0
  set('offset', offset)
  set('high', causal === 'none' ? far : offset)
  set('low', window > 0 ? offset - Math.min(window, far) : -far)
  const globals = window > 0 ? Math.min(globalTokens, far) : 0
  set('globalKeys', globals)
  set('globalQueries', globals > 0 ? globals - offset : 0)
  set('queryChunks', chunksOf(queries, queryBlock, blockSize))
  writeOperand(engine, set, 'q', q)
  writeOperand(engine, set, 'k', k)
  writeOperand(engine, set, 'v', v)
  if (mask) writeOperand(engine, set, 'mask', mask)
  if (blocks) {
    const step = keyStep(blockSize)
    set('blockSize', blockSize)
    set('keyStep', step)
    set('queriesPerBlock', chunksPerBlock(queryBlock, blockSize))
    set('keysPerBlock', chunksPerBlock(step, blockSize))
    for (const name of ['kvNumBlocks', 'kvIndices', 'qNumBlocks', 'qIndices'] as const)
      writeOperand(engine, set, name, blocks[name])
  }
  if (slopes) {
    set('slopesPtr', engine.address(slopes))
    set('slopesStep', 4 * slopes.strides[0])
  }
  dropoutOf(attrs)?.params.forEach(({ source, dtype }, slot) => {
    set(dropWord(slot), wordOf(dtype, numbers[source]))
  })
  return set
}

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
    const set = writeCommon(engine, inputs, attrs, numbers)
    writeOperand(engine, set, 'out', out)
    writeStats(engine, set, stats)
    set('scratch', scratch)
    set('scratchStep', align64(bytes))
    const chunks = chunksOf(t, queryBlock, attrs.blockSize)
    set('blocks', chunks)
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
    const set = writeCommon(engine, inputs, attrs, numbers)
    writeOperand(engine, set, 'out', out)
    writeOperand(engine, set, 'dout', dout)
    let next = 0
    for (const [name, need, flag] of [
      ['dq', needQ, 'needQ'],
      ['dk', needK, 'needK'],
      ['dv', needV, 'needV'],
    ] as const) {
      if (need) writeOperand(engine, set, name, outputs[next++])
      set(flag, Number(need))
    }
    writeStats(engine, set, stats)
    set('scratch', scratch)
    set('scratchStep', align64(bytes))
    const run = (careful: boolean, mode: BackwardMode, items: number, chunks: number): void => {
      if (items * chunks === 0) return
      const built = careful ? { ...form, careful } : form
      const key = `attentionBackward:${mode}:${formName(built)}`
      const kernel = engine.kernel(key, (m) => buildBackward(m, built, mode))
      set('blocks', chunks)
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
