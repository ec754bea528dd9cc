import {
  type ArrayOperand,
  asTensor,
  checkpoint,
  crossEntropy,
  ShapeError,
  show,
  type Tensor,
} from '@tilegrad/core'
import { type AttentionCache, KVCache } from '../attention/cache.ts'
import { keyMaskOf } from '../attention/key-mask.ts'
import * as init from '../init.ts'
import { Embedding } from '../layers/embedding.ts'
import { Linear } from '../layers/linear.ts'
import { LayerNorm, RMSNorm } from '../layers/norm.ts'
import { Module } from '../module/module.ts'
import { type GenerateOptions, type Generation, generate, type LanguageModel } from './generate.ts'
import type { BlockForwardOptions } from './transformer.ts'

/** The sizes that every causal language model has. */
export interface CausalLMConfig {
  /** Number of different tokens, V. */
  vocabSize: number
  /** Longest sequence the model can see, in tokens, where its positions end. */
  blockSize: number
  /**
   * While training, store each block's input only, and compute the block again in the backward pass: less memory for
   * the time of one more forward pass. Default false. See `checkpoint`.
   */
  gradientCheckpointing?: boolean
}

/** What the forward pass of a language model gives. */
export interface CausalLMOutput<L extends Tensor | null> {
  /** The logits of the next token, (B, T, V). */
  logits: Tensor
  /** Mean cross-entropy in nats, a scalar; null without targets. */
  loss: L
}

/** What a block of a CausalLM must be. */
export interface CausalBlock {
  /** Maps tokens' vectors (B, T, C) to new ones of the same shape. */
  forward(x: Tensor, options: BlockForwardOptions): Tensor
  /** A cache of its attention's; null if that has none. */
  newCache(batch: number, maxLength: number): AttentionCache | null
}

/** The places of tokens in their sequences. */
export interface TokenPlaces {
  /** How many tokens come before the first, in a cache. */
  readonly before: number
  /** Positions (B, T), int32, where padding among the tokens shifts them; null: they follow each other. */
  readonly positions: Tensor | null
}

/**
 * A model that predicts the next token from those before: embeddings, a stack of blocks, a norm and a linear head. A
 * subclass says which.
 */
export abstract class CausalLM extends Module implements LanguageModel {
  /** What the model was made with. */
  abstract readonly config: Readonly<CausalLMConfig>
  /** Maps vectors to logits over the vocabulary. */
  abstract lm_head: Linear

  /** Longest sequence its positions allow; Infinity where they do not end. */
  abstract get maxLength(): number
  /** The blocks, from the first to the last. */
  protected abstract get blocks(): readonly CausalBlock[]
  /** Turns token indices (B, T) into what the first block sees, (B, T, embedDim). */
  protected abstract embed(idx: Tensor, places: TokenPlaces): Tensor
  /** Turns what the last block gives into what the head sees. */
  protected abstract finish(x: Tensor): Tensor

  /** Weights of layers and embeddings normal with mean 0, those of norms ones, biases zeros. */
  protected drawParameters(std: number): void {
    for (const module of this.modules()) {
      if (module instanceof Linear || module instanceof Embedding) init.normal_(module.weight, 0, std)
      else if ((module instanceof LayerNorm || module instanceof RMSNorm) && module.weight)
        init.ones_(module.weight)
      if ((module instanceof Linear || module instanceof LayerNorm) && module.bias) init.zeros_(module.bias)
    }
  }

  /** Token indices (B, T), after those of the cache → what the head sees, (B, T, embedDim). */
  #hidden(idx: Tensor, caches: readonly AttentionCache[] | null, keyMask: Tensor | null): Tensor {
    const { name } = this.constructor
    const [b, t] = idx.shape
    const before = caches?.[0]?.length ?? 0
    if (t === undefined || idx.rank !== 2 || before + t > this.maxLength) {
      throw new ShapeError(
        `${name}: idx must be (B, T) with T ≤ blockSize = ${this.maxLength}, got ${show(idx.shape)}${before ? ` after ${before} tokens` : ''}`,
      )
    }
    const place = t === 1 ? (caches?.[0]?.place ?? null) : null
    const checked = place ? place.visible(b as number) : keyMaskOf(name, { keyMask }, [b, before + t])
    const positions = place
      ? place.position.unsqueeze(0).expand([b as number, 1])
      : checked && counted(checked, t)
    let x = this.embed(idx, { before, positions })
    const saves = this.training && this.config.gradientCheckpointing === true
    for (const [i, block] of this.blocks.entries()) {
      const cache = caches?.[i] ?? null
      // What keeps no rows has none to hide.
      const mask = place ? (cache instanceof KVCache ? checked : null) : keyMask
      const options = { cache, keyMask: mask, positions }
      x = saves ? checkpoint((input) => block.forward(input, options), x) : block.forward(x, options)
    }
    place?.advance()
    return this.finish(x)
  }

  /**
   * Logits of the next token at every position.
   *
   * @param idx int32 tokens (B, T), a tensor or nested arrays, T ≤ blockSize where positions end there
   * @throws ShapeError if T exceeds blockSize, DTypeError if idx is not int32.
   */
  forward(idx: Tensor | ArrayOperand): CausalLMOutput<null>
  /**
   * Logits of the next token at every position, and the loss.
   *
   * @param idx int32 tokens (B, T), a tensor or nested arrays, T ≤ blockSize where positions end there
   * @param targets int32 next tokens (B, T), a tensor or nested arrays; −100 does not count.
   * @throws ShapeError if T exceeds blockSize or the shapes differ, DTypeError if a tensor is not int32.
   */
  forward(idx: Tensor | ArrayOperand, targets: Tensor | ArrayOperand): CausalLMOutput<Tensor>
  forward(idx: Tensor | ArrayOperand, targets?: Tensor | ArrayOperand): CausalLMOutput<Tensor | null>
  forward(tokens: Tensor | ArrayOperand, next?: Tensor | ArrayOperand): CausalLMOutput<Tensor | null> {
    const { name } = this.constructor
    const { weight } = this.lm_head
    const idx = asTensor(name, tokens, weight, 'int32')
    const logits = this.lm_head.forward(this.#hidden(idx, null, null))
    if (!next) return { logits, loss: null }
    const targets = asTensor(name, next, weight, 'int32')
    if (targets.shape.join() !== idx.shape.join()) {
      throw new ShapeError(
        `${name}: targets ${show(targets.shape)} must have the shape of idx, ${show(idx.shape)}`,
      )
    }
    const loss = crossEntropy(
      logits.reshape([idx.numel, this.config.vocabSize]),
      targets.reshape([idx.numel]),
    )
    return { logits, loss }
  }

  /**
   * Caches for decoding `batch` sequences of up to `maxLength` tokens, one for each block; null with attention that has
   * none.
   */
  newCache(batch: number, maxLength = this.config.blockSize): AttentionCache[] | null {
    const caches: AttentionCache[] = []
    for (const block of this.blocks) {
      const cache = block.newCache(batch, maxLength)
      if (!cache) return null
      caches.push(cache)
    }
    return caches
  }

  /**
   * Logits (B, V) of the token after the last of idx.
   *
   * @param idx int32 tokens (B, T); with a cache, those after what it holds, which it takes in.
   * @param keyMask bool (B, S), of the cache's tokens and idx's, true for those that tokens may attend to and false for
   *   padding, which no token sees and positions do not count.
   * @throws ShapeError if the sequences become longer than `maxLength`.
   */
  nextLogits(
    idx: Tensor,
    cache: readonly AttentionCache[] | null = null,
    keyMask: Tensor | null = null,
  ): Tensor {
    return this.lm_head.forward(this.#hidden(idx, cache, keyMask).select(1, -1))
  }

  /**
   * Continues sequences: see `generate`.
   *
   * @example
   * manualSeed(1)
   * const model = new GPT({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 })
   * const start = tensor([[1, 2, 3]], { dtype: 'int32' })
   * const tokens = await model.generate(start, { maxNewTokens: 5, temperature: 0.8, topK: 4 }).tensor()
   * tokens.shape // → 1,8
   */
  generate(idx: Tensor | ArrayOperand, options: GenerateOptions): Generation {
    return generate(this, idx, options)
  }
}

/** Positions (B, T) of the last T tokens, int32: how many before each are no padding. */
function counted(mask: Tensor, t: number): Tensor {
  // Padding itself stands anywhere.
  return mask
    .cumsum(1)
    .sub(1)
    .clamp(0)
    .narrow(1, mask.shape[1] - t, t)
}
