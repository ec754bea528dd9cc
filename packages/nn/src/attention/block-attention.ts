import { type BlockMask, createBlockMask, type Tensor, tensor, topkBlocks, ValueError } from '@tilegrad/core'
import { positive } from '../layers/linear.ts'

/**
 * Which blocks of keys each block of queries sees: a rule of their numbers, or the `keep` that suit it best (see
 * `topkBlocks`). Blocks have `blockSize` positions, a multiple of 16; default 64.
 */
export type AttentionBlocks =
  | { blockSize?: number; visible: (queryBlock: number, keyBlock: number) => boolean }
  | { blockSize?: number; keep: number }

/**
 * A rule for `blocks`: each block sees itself, the one before, and the last of every `stride` (the fixed pattern of
 * Child et al. 2019).
 *
 * @example
 * const sees = fixedBlocks(4)
 * Array.from({ length: 8 }, (_, k) => (sees(7, k) ? 1 : 0)) // → 0,0,0,1,0,0,1,1
 */
export function fixedBlocks(stride: number): (queryBlock: number, keyBlock: number) => boolean {
  positive('fixedBlocks', { stride })
  return (q, k) => k === q || k === q - 1 || (k + 1) % stride === 0
}

/** The places of T queries, and the number of keys that they face, which begin at `firstKey`. */
interface Places {
  readonly firstQuery: number
  readonly queries: number
  readonly firstKey: number
  readonly keys: number
}

/** Makes the block masks of a layer. @internal */
export class BlockChooser {
  readonly #blocks: AttentionBlocks
  readonly #size: number
  /** The mask of a rule depends on lengths alone: the last one is kept. */
  #last: { mask: BlockMask; t: number; s: number } | null = null

  constructor(name: string, blocks: AttentionBlocks) {
    const { blockSize = 64 } = blocks
    if (!Number.isInteger(blockSize) || blockSize < 16 || blockSize % 16 !== 0)
      throw new ValueError(`${name}: blockSize must be a multiple of 16, got ${blockSize}`)
    if ('keep' in blocks) positive(name, { keep: blocks.keep })
    this.#blocks = blocks
    this.#size = blockSize
  }

  /** Whether blocks are chosen from the input: decoding token by token cannot see the queries that choose then. */
  get dynamic(): boolean {
    return 'keep' in this.#blocks
  }

  /** Makes the mask of whole sequences of q (B, H, T, D) and k (B, Hk, S, D). */
  mask(q: Tensor, k: Tensor, isCausal: boolean): BlockMask {
    const blockSize = this.#size
    if ('keep' in this.#blocks) return topkBlocks(q, k, { blockSize, keep: this.#blocks.keep, isCausal })
    const [t, s] = [q.shape[2], k.shape[2]]
    const last = this.#last
    if (last && last.t === t && last.s === s && last.mask.visible.backend === q.backend) return last.mask
    const { visible } = this.#blocks
    // Key blocks ahead would be hidden element by element: better not to look at them.
    const sees = isCausal ? (i: number, j: number) => j <= i && visible(i, j) : visible
    const mask = createBlockMask(sees, { blockSize, qLen: t, kvLen: s, device: q.backend })
    for (const x of [mask.visible, mask.kvNumBlocks, mask.kvIndices, mask.qNumBlocks, mask.qIndices]) x.keep()
    this.#last = { mask, t, s }
    return mask
  }

  /** A rule's mask, bool (T, S), for queries and keys in the middle of a sequence. */
  rows({ firstQuery, queries, firstKey, keys }: Places, like: Tensor): Tensor {
    const [blocks, size] = [this.#blocks, this.#size]
    if ('keep' in blocks) throw new ValueError('MultiHeadAttention: chosen blocks take no cache')
    const flags = new Uint8Array(queries * keys)
    const at = (position: number): number => Math.floor(position / size)
    for (let i = 0; i < queries; i++) {
      for (let j = 0; j < keys; j++)
        flags[i * keys + j] = Number(blocks.visible(at(firstQuery + i), at(firstKey + j)))
    }
    return tensor(flags, [queries, keys], { dtype: 'bool', device: like.backend })
  }
}
