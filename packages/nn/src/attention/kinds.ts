import { type Names, ValueError } from '@tilegrad/core'
import { fixedBlocks } from './block-attention.ts'
import { GatedDeltaNet, GatedLinearAttention, LinearAttention, Retention } from './linear-attention.ts'
import {
  MultiHeadAttention,
  type MultiHeadAttentionOptions,
  PROJECTIONS,
  type SelfAttention,
} from './multi-head.ts'

/** Makes a block's attention; called with the block's options. */
export type AttentionFactory = (
  embedDim: number,
  numHeads: number,
  options: MultiHeadAttentionOptions,
) => SelfAttention

/** Picks the named ones out of some options. @internal */
export const only = <O extends object>(options: O, names: Names<O>): O =>
  Object.fromEntries(Object.entries(options).filter(([name]) => Object.hasOwn(names, name))) as O

const kinds = {
  softmax: (dim, heads, options) => new MultiHeadAttention(dim, heads, options),
  window: (dim, heads, options) =>
    new MultiHeadAttention(dim, heads, { ...options, window: options.window || 256 }),
  alibi: (dim, heads, options) => new MultiHeadAttention(dim, heads, { ...options, alibi: true }),
  blocks: (dim, heads, options) =>
    new MultiHeadAttention(dim, heads, { ...options, blocks: options.blocks ?? { visible: fixedBlocks(4) } }),
  dynamic: (dim, heads, options) =>
    new MultiHeadAttention(dim, heads, { ...options, blocks: options.blocks ?? { keep: 4 } }),
  linear: (dim, heads, options) => new LinearAttention(dim, heads, only(options, PROJECTIONS)),
  retention: (dim, heads, options) => new Retention(dim, heads, only(options, PROJECTIONS)),
  gla: (dim, heads, options) => new GatedLinearAttention(dim, heads, only(options, PROJECTIONS)),
  gatedDelta: (dim, heads, options) => new GatedDeltaNet(dim, heads, only(options, PROJECTIONS)),
} satisfies Record<string, AttentionFactory>

/**
 * The name of a way to attend. With MultiHeadAttention's options and parameters: 'softmax', 'window' (256 unless
 * `window` says), 'alibi', 'blocks' (`fixedBlocks(4)` unless `blocks` says), 'dynamic' (the 4 best blocks of 64 unless
 * `blocks` says). In time linear in the length: 'linear', 'retention', 'gla' (GatedLinearAttention), 'gatedDelta'
 * (GatedDeltaNet).
 */
export type AttentionKind = keyof typeof kinds

/** All names of ways to attend. */
export const attentionKinds = Object.keys(kinds) as readonly AttentionKind[]

const recurrent: readonly AttentionKind[] = ['linear', 'retention', 'gla', 'gatedDelta']

/** @internal @throws ValueError for an unknown name, or options that it does not take. */
export function makeAttention(
  kind: AttentionKind | AttentionFactory,
  embedDim: number,
  numHeads: number,
  options: MultiHeadAttentionOptions,
): SelfAttention {
  if (typeof kind === 'function') {
    // Layers without weights to drop know no such option: it is only handed on where it says something.
    const { dropout, ...rest } = options
    return kind(embedDim, numHeads, dropout ? options : rest)
  }
  const make: AttentionFactory | undefined = kinds[kind]
  if (!make)
    throw new ValueError(`TransformerBlock: attention '${kind}' is not one of ${attentionKinds.join(', ')}`)
  const { window, globalTokens, blocks, alibi, scale } = options
  if (recurrent.includes(kind) && (window || globalTokens || blocks || alibi || scale !== undefined))
    throw new ValueError(
      `TransformerBlock: ${kind} attention takes no window, globalTokens, blocks, alibi or scale`,
    )
  return make(embedDim, numHeads, options)
}
