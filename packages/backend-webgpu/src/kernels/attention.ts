/**
 * Fused softmax attention, forward and backward (FlashAttention-2, Dao 2023): `softmax(scale · q kᵀ + mask) v` by
 * blocks, so that no T×S matrix is ever stored. This file decides which kernel runs and with what; the kernels are in
 * `attention-forward.ts` and `attention-backward.ts`, their common steps in `attention-blocks.ts`.
 *
 * Takes float32 operands with any strides, D and Dv up to 128, grouped heads, a mask to add or to keep by (any
 * strides), causality from either corner, windows. Declines dropout, global tokens, masks of blocks, ALiBi and the
 * gradient of a mask: the composition takes over. A query that sees no key gives zeros, lse = −∞, and no gradient.
 *
 * The ladder on one H100 (chain of multiply-adds: 59 TFLOP/s), float32, causal, B4 H12 T2048 D64, GPU time in ms; tiles as
 * threads × rows, threads × columns:
 *
 * | | forward | dQ | dK and dV |
 * |---|---|---|---|
 * | floor: 2, 3 and 4 products of half a T × T matrix | 0.44 | 0.66 | 0.87 |
 * | 8×8, 8×8; backward 8×8, 8×4: all blocks in workgroup memory | 2.08 | 2.79 | 4.76 |
 * | 16×4, 8×8; backward 16×4, 8×4: twice the threads | 1.14 | 1.94 | 2.32 |
 * | held rows (and forward values) read in place, through the cache | 1.17 | 1.70 | 2.12 |
 * | one set of registers is loaded while the other is multiplied | 1.02 | 1.70 | 2.07 |
 *
 * The driver gives a core about 50 KB of workgroup memory however many workgroups there are: of 26 KB and more only one
 * runs at a time, and where it waits nobody else computes. Larger tiles per thread (8×8, 8×4, 6×8) read less per
 * product, but leave too few threads. SwiftShader cannot compile tiles with several rows per thread in reasonable time
 * and takes those with one.
 *
 * Reference: `ATTENTION` in core's ops/attention.ts. Test: attention.test.ts.
 */

import type { KernelOf, View } from '@tilegrad/core'
import type { GpuBuffer } from '../buffers.ts'
import type { Engine } from '../engine.ts'
import { grid } from '../layout.ts'
import { backwardBytes, backwardShader, type Gradients, statRows, statShader } from './attention-backward.ts'
import {
  type AttentionAttrs,
  canShuffle,
  commonWords,
  type Form,
  formName,
  isVectors,
  type MaskKind,
  operandWords,
  padded,
  rowsOf,
  type Tile,
} from './attention-blocks.ts'
import { forwardBytes, forwardShader } from './attention-forward.ts'

/** The largest head: its blocks must fit in workgroup memory. */
const maxWidth = 128

/** Best first; which fit depends on the size of the heads and on the GPU's workgroup memory. */
export const forwardTiles: readonly Tile[] = [
  { ty: 16, rm: 4, tx: 8, kn: 8, inPlace: 'rows and values' },
  { ty: 8, rm: 4, tx: 8, kn: 4 },
  { ty: 16, rm: 1, tx: 4, kn: 4 },
  { ty: 8, rm: 1, tx: 2, kn: 4 },
]
export const backwardTiles: readonly Tile[] = [
  { ty: 16, rm: 4, tx: 8, kn: 4, inPlace: 'rows' },
  { ty: 8, rm: 4, tx: 8, kn: 4 },
  { ty: 16, rm: 2, tx: 4, kn: 4 },
  { ty: 16, rm: 1, tx: 4, kn: 4 },
  { ty: 8, rm: 1, tx: 2, kn: 4 },
]

const takes = (
  inputs: readonly View[],
  { dropout, hasMask, globalTokens = 0, blockSize = 0, hasAlibi = false }: AttentionAttrs,
): boolean => {
  const [q, k, v, mask] = inputs as [View, View, View, View]
  return (
    dropout === 0 &&
    globalTokens === 0 &&
    blockSize === 0 &&
    !hasAlibi &&
    [q, k, v].every((t) => t.dtype === 'float32') &&
    (!hasMask || mask.dtype === 'float32' || mask.dtype === 'bool') &&
    [q.shape[3], v.shape[3]].every((n) => (n as number) >= 1 && (n as number) <= maxWidth)
  )
}

/** SwiftShader compiles for minutes where a thread has more than one row. */
const usable = (engine: Engine, tiles: readonly Tile[]): readonly Tile[] =>
  engine.gpu.adapterName.startsWith('SwiftShader') ? tiles.filter(({ rm }) => rm === 1) : tiles

/** The form with the first tile that fits. */
function chooseForm(
  engine: Engine,
  tiles: readonly Tile[],
  bytes: (form: Form) => number,
  [q, k, v]: readonly View[],
  mask: MaskKind,
  more: readonly View[],
): Form {
  const all = [q, k, v, ...more] as View[]
  const { maxComputeWorkgroupStorageSize: most } = engine.gpu.limits
  const vectors = all.every(isVectors)
  // Loops take two vectors at a time, and what lies behind a row in memory is another row.
  const pairs = vectors && [q, v].every((x) => ((x as View).shape[3] as number) % 8 === 0)
  const forms = tiles.map((tile) => ({
    tile,
    dq: padded((q as View).shape[3] as number),
    dv: padded((v as View).shape[3] as number),
    vectors,
    mask,
    rowsInPlace: pairs && tile.inPlace !== undefined,
    valuesInPlace: pairs && tile.inPlace === 'rows and values',
    shuffle: canShuffle(engine, tile.tx),
  }))
  return (forms.find((form) => bytes(form) <= most) ?? forms.at(-1)) as Form
}

const maskOf = (inputs: readonly View[], { hasMask }: AttentionAttrs): MaskKind =>
  hasMask ? ((inputs[3] as View).dtype as 'float32' | 'bool') : 'none'

const buffer = (view: View): GpuBuffer => view.buffer as GpuBuffer

export function attention(engine: Engine, tiles = usable(engine, forwardTiles)): KernelOf<AttentionAttrs> {
  return {
    supports: takes,
    run(outputs, inputs, attrs) {
      const [out, lse] = outputs as [View, View]
      const [q, k, v, mask] = inputs as [View, View, View, View]
      const [b, h, t] = q.shape as [number, number, number]
      if (b * h * t === 0) return
      const form = chooseForm(engine, tiles, forwardBytes, inputs, maskOf(inputs, attrs), [])
      const kernel = engine.kernel(`attention:${formName(form)}`, 'scaled_dot_product_attention', () =>
        forwardShader(form),
      )
      const { words, floats } = commonWords(inputs, attrs, b * h, Math.ceil(t / rowsOf(form.tile)))
      for (const x of [q, k, v]) words.push(...operandWords(x, form.vectors))
      if (attrs.hasMask) words.push(...operandWords(mask, false))
      words.push(out.offset, lse.offset)
      const buffers = [q, k, v, ...(attrs.hasMask ? [mask] : []), out, lse].map(buffer)
      engine.run(kernel, buffers, words, ...grid(words[0] as number), 1, floats)
    },
  }
}

export function attentionBackward(
  engine: Engine,
  tiles = usable(engine, backwardTiles),
): KernelOf<AttentionAttrs & { readonly needs: readonly boolean[] }> {
  return {
    supports: (inputs, attrs) => takes(inputs, attrs) && !(attrs.hasMask && attrs.needs[3]),
    run(outputs, inputs, attrs) {
      const [q, k, v, mask] = inputs as [View, View, View, View]
      const [b, h, t] = q.shape as [number, number, number]
      const [keyHeads, s] = [k.shape[1] as number, k.shape[2] as number]
      const [out, lse, dout] = inputs.slice(attrs.hasMask ? 4 : 3) as [View, View, View]
      const kind = maskOf(inputs, attrs)

      const rows = b * h * t
      const stat = engine.pool.alloc(2 * rows, 'float32')
      if (rows > 0) {
        const vectors = [out, dout].every(isVectors)
        const kernel = engine.kernel(
          `attentionStat:${vectors}:${kind}`,
          'scaled_dot_product_attentionBackward',
          () => statShader({ vectors, mask: kind }),
        )
        const width = v.shape[3] as number
        const words = [rows, h, t, width, ...operandWords(dout, vectors), out.offset, lse.offset]
        engine.run(
          kernel,
          [dout, out, lse].map(buffer).concat(stat),
          words,
          ...grid(Math.ceil(rows / statRows)),
        )
      }

      const run = (gradients: Gradients, results: readonly View[], items: number, length: number): void => {
        const form = chooseForm(engine, tiles, (f) => backwardBytes(f, gradients), inputs, kind, [dout])
        const key = `attentionBackward:${gradients}:${formName(form)}`
        const kernel = engine.kernel(key, 'scaled_dot_product_attentionBackward', () =>
          backwardShader(form, gradients),
        )
        const { words, floats } = commonWords(inputs, attrs, items, Math.ceil(length / rowsOf(form.tile)))
        for (const x of [q, k, v, dout]) words.push(...operandWords(x, form.vectors))
        if (attrs.hasMask) words.push(...operandWords(mask, false))
        words.push(...results.map((x) => x.offset))
        const buffers = [q, k, v, dout].map(buffer).concat(stat)
        if (attrs.hasMask) buffers.push(buffer(mask))
        engine.run(kernel, buffers.concat(results.map(buffer)), words, ...grid(words[0] as number), 1, floats)
      }
      const [needQ, needK, needV] = attrs.needs
      const rest = [...outputs]
      if (needQ) run('q', rest.splice(0, 1), b * h, t)
      if (needK || needV) run(needK && needV ? 'kv' : needK ? 'k' : 'v', rest, b * keyHeads, s)
      engine.pool.free(stat)
    },
  }
}
