/** What kernels read for the options of attention beside q, k, v and their gradients: parameters and buffers. */

import { type AttentionAttrs, attentionOperands, type View } from '@tilegrad/core'
import { bufferOf } from '../../device/buffers.ts'
import { group, i32, numbers, when } from '../../wgsl/block.ts'
import { elementOf } from '../../wgsl/element.ts'
import type { Binding } from '../../wgsl/shader.ts'
import { type Form, offsetOf, operand } from './blocks.ts'
import type { Streamed } from './visits.ts'

/** What options add to a kernel's parameters. */
export const optionParams = ({ mask, blocks, alibi, globals, dropout }: Form) =>
  group({
    mask: when(mask !== 'none', operand(false)),
    blocks: when(blocks, group({ counts: operand(false), list: operand(false), blockSize: i32 })),
    slopes: when(alibi, group({ slopesAt: i32, slopesStep: i32, offset: i32 })),
    globals: when(globals, group({ globalKeys: i32, globalQueries: i32 })),
    dropout: when(dropout !== null, group({ draws: i32, drop: numbers(dropout?.params ?? []) })),
  })

export const optionBindings = ({ mask, blocks, alibi }: Form): Binding[] => [
  ...(mask === 'none' ? [] : [{ name: 'mask', item: elementOf(mask).item }]),
  ...(blocks ? [{ name: 'counts', item: 'i32' } as const, { name: 'list', item: 'i32' } as const] : []),
  ...(alibi ? [{ name: 'slopes', item: 'f32' } as const] : []),
]

/** The number of buffers that the options of attention take. */
export const optionBuffers = ({ hasMask, blockSize, hasAlibi }: AttentionAttrs): number =>
  Number(hasMask) + (blockSize > 0 ? 2 : 0) + Number(hasAlibi)

/** Values of `optionParams`, and the buffers of `optionBindings`. */
export function optionsOf(
  { tile }: Form,
  streamed: Streamed,
  inputs: readonly View[],
  attrs: AttentionAttrs,
) {
  const { q, k, mask, blocks, slopes } = attentionOperands(inputs, attrs)
  const { blockSize, globalTokens } = attrs
  const [counts, list] = !blocks
    ? []
    : streamed === 'keys'
      ? [blocks.kvNumBlocks, blocks.kvIndices]
      : [blocks.qNumBlocks, blocks.qIndices]
  const offset = offsetOf(q, k, attrs)
  return {
    values: {
      mask,
      blocks: counts && list && { counts, list, blockSize },
      slopes: slopes && { slopesAt: slopes.offset, slopesStep: slopes.strides[0], offset },
      globals: { globalKeys: globalTokens, globalQueries: globalTokens - offset },
      dropout: { draws: tile.rm * tile.kn, drop: 0 },
    },
    buffers: [mask, counts, list, slopes].flatMap((view) => (view ? [bufferOf(view)] : [])),
  }
}
