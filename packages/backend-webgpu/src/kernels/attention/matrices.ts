/**
 * Attention in float16 on subgroup matrices, where the GPU has them: which kernels run and with what. They take what those of
 * float32 take, of q, k and v in float16 whose rows are vectors of eight; of all else float32 copies are made
 * (core's primitives/widen.ts). A few queries, as decoding has, fill no matrices.
 *
 * LADDER.md beside this file has the steps on the way here and their reasons.
 */

import {
  type AttentionAttrs,
  attentionOperands,
  DeviceError,
  dropoutFactors,
  dropoutParams,
  type GradientAttrs,
  specialize,
  type View,
} from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf } from '../../device/buffers.ts'
import { grid } from '../layout.ts'
import type { Gradients } from './backward.ts'
import { commonOf, type Form, formName, type MaskKind, rowsOf } from './blocks.ts'
import {
  holdsBoth,
  matrixBackwardBytes,
  matrixBackwardShader,
  matrixStatRows,
  matrixStatShader,
} from './matrix-backward.ts'
import { isEights, matricesFor, matrixPadded, matrixTile } from './matrix-blocks.ts'
import { matrixForwardBytes, matrixForwardShader } from './matrix-forward.ts'
import { optionsOf } from './options.ts'

/** Rows of queries below which a block of them is mostly empty. */
const fewest = 16

export const isFloat16 = ([q]: readonly View[]): boolean => q.dtype === 'float16'

/** Whether these kernels take operands in float16; `more`: what else has rows of vectors of eight. */
export function takesMatrices(
  engine: Engine,
  inputs: readonly View[],
  attrs: AttentionAttrs,
  more: readonly View[] = [],
): boolean {
  const { q, k, v, mask, slopes } = attentionOperands(inputs, attrs)
  const halves = [q, k, v, ...more]
  return (
    matricesFor(engine) !== null &&
    halves.every((x) => x.dtype === 'float16' && isEights(x)) &&
    mask?.dtype !== 'float16' &&
    (slopes === null || slopes.dtype === 'float32') &&
    q.shape[2] >= fewest &&
    formOf(engine, matrixForwardBytes, inputs, attrs) !== null
  )
}

/** The form of kernels; null where blocks do not fit workgroup memory, or do not divide those of a mask. */
function formOf(
  engine: Engine,
  bytes: (form: Form) => number,
  inputs: readonly View[],
  attrs: AttentionAttrs,
): Form | null {
  const { q, v, mask } = attentionOperands(inputs, attrs)
  const { blockSize, dropout } = attrs
  if (blockSize % rowsOf(matrixTile) !== 0) return null
  const form: Form = {
    tile: matrixTile,
    dq: matrixPadded(q.shape[3]),
    dv: matrixPadded(v.shape[3]),
    vectors: true,
    mask: (mask ? mask.dtype : 'none') as MaskKind,
    ...{ rowsInPlace: false, valuesInPlace: false, exact: false, shuffle: true, stored: false },
    globals: attrs.globalTokens > 0,
    blocks: blockSize > 0,
    alibi: attrs.hasAlibi,
    sharing: [],
    dropout:
      dropout === 0 ? null : specialize(dropoutFactors, [], dropoutParams(dropout, [0, 0, 0]), ['float32']),
  }
  return bytes(form) <= engine.gpu.limits.maxComputeWorkgroupStorageSize ? form : null
}

/** What `supports` has made sure of. */
function needed<T>(value: T | null): T {
  if (value === null)
    throw new DeviceError('scaled_dot_product_attention: this GPU does not take it in float16')
  return value
}

export function matrixForward(
  engine: Engine,
  [out, stats]: readonly View[],
  inputs: readonly View[],
  attrs: AttentionAttrs,
  numbers: readonly number[],
): void {
  const { q, k, v } = attentionOperands(inputs, attrs)
  const [b, h, t] = q.shape
  const has = needed(matricesFor(engine))
  const form = needed(formOf(engine, matrixForwardBytes, inputs, attrs))
  const kernel = engine.kernel(`attentionMatrix:${formName(form)}`, 'scaled_dot_product_attention', () =>
    matrixForwardShader(form, has),
  )
  const common = commonOf([q, k, v], attrs, b * h, Math.ceil(t / rowsOf(form.tile)))
  const options = optionsOf(form, 'keys', inputs, attrs)
  const values = { common, q, k, v, options: options.values, o: out, statsAt: stats.offset }
  const buffers = [...[q, k, v].map(bufferOf), ...options.buffers, ...[out, stats].map(bufferOf)]
  engine.run(kernel, buffers, values, grid(common.count), numbers)
}

/** Whether the kernels of gradients fit as well. */
export const takesMatrixGradients = (
  engine: Engine,
  inputs: readonly View[],
  attrs: AttentionAttrs,
): boolean => {
  const [out, , dout] = attentionOperands(inputs, attrs).rest
  return (
    takesMatrices(engine, inputs, attrs, [out, dout]) &&
    formOf(engine, matrixBackwardBytes, inputs, attrs) !== null
  )
}

/** `fits`: whether the GPU binds so many buffers more than a kernel of one gradient has. */
export function matrixBackward(
  engine: Engine,
  outputs: readonly View[],
  inputs: readonly View[],
  attrs: GradientAttrs<AttentionAttrs>,
  numbers: readonly number[],
  fits: (more: number) => boolean,
): void {
  const name = 'scaled_dot_product_attentionBackward'
  const { q, k, v, rest } = attentionOperands(inputs, attrs)
  const [b, h, t] = q.shape
  const [keyHeads, s] = [k.shape[1], k.shape[2]]
  const [out, stats, dout] = rest
  const has = needed(matricesFor(engine))
  const general = needed(formOf(engine, matrixBackwardBytes, inputs, attrs))

  const rows = b * h * t
  const stat = engine.pool.alloc(4 * rows, 'float32')
  if (rows > 0) {
    const kernel = engine.kernel('attentionMatrixStat', name, matrixStatShader)
    const sizes = { rows, heads: h, queries: t, width: v.shape[3] }
    const values = { ...sizes, g: dout, o: out, statsAt: stats.offset }
    const buffers = [dout, out, stats].map(bufferOf).concat(stat)
    engine.run(kernel, buffers, values, grid(Math.ceil(rows / matrixStatRows)))
  }

  const run = (gradients: Gradients, results: readonly View[]): void => {
    const sharing = results.map((x) => results.findIndex((y) => y.buffer === x.buffer))
    const form: Form = { ...general, sharing }
    const isQ = gradients === 'q'
    const key = `attentionMatrixBackward:${gradients}:${formName(form)}`
    const kernel = engine.kernel(key, name, () => matrixBackwardShader(form, gradients, has))
    const items = isQ ? b * h : b * keyHeads
    const common = commonOf([q, k, v], attrs, items, Math.ceil((isQ ? t : s) / rowsOf(form.tile)))
    const options = optionsOf(form, isQ ? 'keys' : 'queries', inputs, attrs)
    const gradient = (of: string): View | undefined => results[gradients.indexOf(of)]
    const values = {
      ...{ common, q, k, v, g: dout, options: options.values },
      ...{ dq: gradient('q'), dk: gradient('k'), dv: gradient('v') },
    }
    const buffers = [
      ...[q, k, v, dout].map(bufferOf),
      ...[stat, ...options.buffers],
      ...results.filter((_, n) => sharing[n] === n).map(bufferOf),
    ]
    engine.run(kernel, buffers, values, grid(common.count), numbers)
  }

  const [needQ, needK, needV] = attrs.needs
  const left = [...outputs]
  const together = needK && needV && fits(1) && holdsBoth(general)
  if (needQ) run('q', left.splice(0, 1))
  if (together) run('kv', left.splice(0, 2))
  else {
    if (needK) run('k', left.splice(0, 1))
    if (needV) run('v', left.splice(0, 1))
  }
  engine.pool.free(stat)
}
