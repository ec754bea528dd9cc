/** What kernels read for the options of attention beside q, k, v and their gradients: parameters and buffers in order. */

import { type AttentionAttrs, attentionOperands, type View } from '@tilegrad/core'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import type { Scalar } from '../../wgsl/block.ts'
import { elementOf } from '../../wgsl/element.ts'
import type { Binding } from '../../wgsl/shader.ts'
import { type Form, offsetOf, operandParams, operandWords } from './blocks.ts'
import type { Streamed } from './visits.ts'

export const optionParams = ({ mask, blocks, alibi, globals, dropout }: Form): string[] => [
  ...(mask === 'none' ? [] : operandParams('mask')),
  ...(blocks ? [...operandParams('counts'), ...operandParams('list'), 'blockSize: i32'] : []),
  ...(alibi ? ['slopesAt: i32', 'slopesStep: i32', 'offset: i32'] : []),
  ...(globals ? ['globalKeys: i32', 'globalQueries: i32'] : []),
  ...(dropout
    ? ['draws: i32', ...dropout.params.map(({ dtype }, slot) => `drop${slot}: ${elementOf(dtype).item}`)]
    : []),
]

export const optionBindings = ({ mask, blocks, alibi }: Form): Binding[] => [
  ...(mask === 'none' ? [] : [{ name: 'mask', item: elementOf(mask).item }]),
  ...(blocks ? [{ name: 'counts', item: 'i32' } as const, { name: 'list', item: 'i32' } as const] : []),
  ...(alibi ? [{ name: 'slopes', item: 'f32' } as const] : []),
]

/** The number of buffers that the options of attention take. */
export const optionBuffers = ({ hasMask, blockSize, hasAlibi }: AttentionAttrs): number =>
  Number(hasMask) + (blockSize > 0 ? 2 : 0) + Number(hasAlibi)

/** Appends the options of attention to a call's parameters and buffers. */
export function addOptions(
  call: { words: number[]; scalars: Scalar[]; buffers: GpuBuffer[] },
  { tile, globals, dropout }: Form,
  streamed: Streamed,
  inputs: readonly View[],
  attrs: AttentionAttrs,
): void {
  const { words, scalars, buffers } = call
  const { q, k, mask, blocks, slopes } = attentionOperands(inputs, attrs)
  const add = (view: View): void => {
    buffers.push(bufferOf(view))
  }
  if (mask) {
    add(mask)
    words.push(...operandWords(mask, false))
  }
  if (blocks) {
    const [counts, list] =
      streamed === 'keys' ? [blocks.kvNumBlocks, blocks.kvIndices] : [blocks.qNumBlocks, blocks.qIndices]
    for (const x of [counts, list]) {
      add(x)
      words.push(...operandWords(x, false))
    }
    words.push(attrs.blockSize)
  }
  const offset = offsetOf(q, k, attrs)
  if (slopes) {
    add(slopes)
    words.push(slopes.offset, slopes.strides[0], offset)
  }
  if (globals) words.push(attrs.globalTokens, attrs.globalTokens - offset)
  if (dropout) {
    words.push(tile.rm * tile.kn)
    for (const { source, dtype } of dropout.params) scalars.push({ at: words.push(0) - 1, source, dtype })
  }
}
