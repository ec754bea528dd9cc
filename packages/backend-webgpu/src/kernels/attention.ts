/**
 * Fused softmax attention, forward and backward (FlashAttention-2, Dao 2023): `softmax(scale · q kᵀ + mask) v` by
 * blocks, so that no T×S matrix is ever stored. This file decides which kernel runs and with what; the kernels are in
 * `attention-forward.ts` and `attention-backward.ts`, their common steps in `attention-blocks.ts`.
 *
 * Takes float32 operands with any strides, D and Dv up to 128, grouped heads, a mask to add or to keep by (any
 * strides), causality from either corner, windows. Declines dropout, global tokens, masks of blocks, ALiBi and the
 * gradient of a mask: the composition takes over. A query that sees no key gives zeros, lse = −∞, and no gradient.
 *
 * Not yet measured on a GPU; tiles with several rows per thread have not run yet, as SwiftShader cannot compile them in
 * reasonable time and takes those with one.
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
const forwardTiles: readonly Tile[] = [
  { ty: 8, rm: 8, tx: 8, kn: 8 },
  { ty: 8, rm: 4, tx: 8, kn: 4 },
  { ty: 16, rm: 1, tx: 4, kn: 4 },
  { ty: 8, rm: 1, tx: 2, kn: 4 },
]
const backwardTiles: readonly Tile[] = [
  { ty: 8, rm: 8, tx: 8, kn: 4 },
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
const isSoftware = (engine: Engine): boolean => engine.gpu.adapterName.startsWith('SwiftShader')

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
  const forms = (isSoftware(engine) ? tiles.filter(({ rm }) => rm === 1) : tiles).map((tile) => ({
    tile,
    dq: padded((q as View).shape[3] as number),
    dv: padded((v as View).shape[3] as number),
    vectors: all.every(isVectors),
    mask,
    shuffle: canShuffle(engine, tile.tx),
  }))
  return (forms.find((form) => bytes(form) <= most) ?? forms.at(-1)) as Form
}

const maskOf = (inputs: readonly View[], { hasMask }: AttentionAttrs): MaskKind =>
  hasMask ? ((inputs[3] as View).dtype as 'float32' | 'bool') : 'none'

const buffer = (view: View): GpuBuffer => view.buffer as GpuBuffer

export function attention(engine: Engine): KernelOf<AttentionAttrs> {
  return {
    supports: takes,
    run(outputs, inputs, attrs) {
      const [out, lse] = outputs as [View, View]
      const [q, k, v, mask] = inputs as [View, View, View, View]
      const [b, h, t] = q.shape as [number, number, number]
      if (b * h * t === 0) return
      const form = chooseForm(engine, forwardTiles, forwardBytes, inputs, maskOf(inputs, attrs), [])
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
        const form = chooseForm(engine, backwardTiles, (f) => backwardBytes(f, gradients), inputs, kind, [
          dout,
        ])
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
