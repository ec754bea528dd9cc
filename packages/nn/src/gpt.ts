import { checkpoint, crossEntropy, ShapeError, type Tensor } from '@tilegrad/core'
import type { GELUKind } from './activation.ts'
import type { AttentionCache } from './cache.ts'
import { Dropout } from './dropout.ts'
import { Embedding } from './embedding.ts'
import { type GenerateOptions, type Generation, generate, type LanguageModel } from './generate.ts'
import * as init from './init.ts'
import { Linear, positive } from './linear.ts'
import { Module } from './module.ts'
import { LayerNorm } from './norm.ts'
import type { RopeOptions } from './rope.ts'
import { type AttentionFactory, type AttentionKind, TransformerBlock } from './transformer.ts'

export interface GPTConfig {
  /** Number of different tokens, V. */
  vocabSize: number
  /** Longest sequence the model can see, in tokens, where positions are learned. */
  blockSize: number
  numLayers: number
  numHeads: number
  /** Fewer key-value heads than query heads, a divisor of them. Default numHeads. */
  numKvHeads?: number
  embedDim: number
  /** Probability for attention weights, residual branches and embeddings; default 0. */
  dropout?: number
  /** Biases in projections and norms (the head never has one); default true. */
  bias?: boolean
  /** Default 'softmax'. */
  attention?: AttentionKind | AttentionFactory
  /** Rotary positions in place of learned ones; default false. */
  rope?: boolean | RopeOptions
  /** ALiBi in place of learned positions; default false. */
  alibi?: boolean
  /** Each position sees the last `window` ones only, itself among them. Default 0: all. */
  window?: number
  /** RMSNorm of each head's queries and keys; default false. */
  qkNorm?: boolean
  /** The head shares the token embedding's weight; default true. */
  tieWeights?: boolean
  /** Default 'exact'; GPT-2 itself used 'tanh'. */
  gelu?: GELUKind
  /**
   * While training, store each block's input only, and compute the block again in the backward pass: less memory for
   * the time of one more forward pass. Default false. See `checkpoint`.
   */
  gradientCheckpointing?: boolean
}

export interface GPTOutput<L extends Tensor | null> {
  /** (B, T, V) */
  logits: Tensor
  /** Mean cross-entropy in nats, a scalar; null without targets. */
  loss: L
}

/**
 * A GPT-2 style language model (Radford et al. 2019): token and position embeddings, pre-norm transformer blocks, a
 * final norm and a linear head. Parameter names are GPT-2's: `wte.weight`, `wpe.weight`, `h.0.ln_1.weight`,
 * `h.0.attn.c_attn.weight`, `h.0.mlp.c_fc.weight`, `ln_f.weight`, `lm_head.weight`; Linear weights are (out, in).
 *
 * Initialised as GPT-2: weights normal with deviation 0.02, of projections onto the residual stream
 * 0.02 / √(2 · numLayers), biases zero.
 *
 * @throws ValueError for sizes that are not positive integers or do not divide.
 * @example
 * manualSeed(1)
 * const model = new GPT({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 })
 * const optimizer = new AdamW(decayGroups(model, 0.1), { lr: 1e-3, betas: [0.9, 0.95] })
 * const tokens = randint(0, 11, [4, 9])
 *
 * const loss = scope(() => {
 *   const { loss } = model.forward(tokens.narrow(1, 0, 8), tokens.narrow(1, 1, 8))
 *   loss.backward()
 *   clipGradNorm(model.parameters(), 1)
 *   optimizer.step()
 *   optimizer.zeroGrad()
 *   return loss
 * })
 * Math.abs((await loss.item()) - Math.log(11)) < 0.5 // → true
 */
export class GPT extends Module implements LanguageModel {
  readonly config: Readonly<GPTConfig>
  wte: Embedding
  /** Null with `rope` or `alibi`. */
  wpe: Embedding | null
  drop: Dropout
  h: TransformerBlock[]
  ln_f: LayerNorm
  lm_head: Linear

  constructor(config: GPTConfig) {
    super()
    const { vocabSize, blockSize, numLayers, numHeads, embedDim, tieWeights = true } = config
    const { dropout = 0, bias = true, attention = 'softmax', gelu = 'exact', numKvHeads = numHeads } = config
    const { rope = false, alibi = false, window = 0, qkNorm = false } = config
    positive('GPT', { vocabSize, blockSize, numLayers, numHeads, embedDim })
    this.config = { ...config }
    this.wte = new Embedding(vocabSize, embedDim)
    this.wpe = rope || alibi ? null : new Embedding(blockSize, embedDim)
    this.drop = new Dropout(dropout)
    const positions = { rope, alibi, window, qkNorm }
    const block = { dropout, bias, attention, gelu, numKvHeads, ...positions, isCausal: true }
    this.h = Array.from({ length: numLayers }, () => new TransformerBlock(embedDim, numHeads, block))
    this.ln_f = new LayerNorm(embedDim, { bias })
    this.lm_head = new Linear(embedDim, vocabSize, { bias: false })
    if (tieWeights) {
      this.lm_head.weight.dispose()
      this.lm_head.weight = this.wte.weight
    }
    this.resetParameters()
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    for (const module of this.modules()) {
      if (module instanceof Linear || module instanceof Embedding) init.normal_(module.weight, 0, 0.02)
      if (module instanceof Linear && module.bias) init.zeros_(module.bias)
      if (module instanceof LayerNorm) {
        if (module.weight) init.ones_(module.weight)
        if (module.bias) init.zeros_(module.bias)
      }
    }
    const std = 0.02 / Math.sqrt(2 * this.h.length)
    for (const { attn, mlp } of this.h) {
      init.normal_(attn.outProj.weight, 0, std)
      init.normal_(mlp.c_proj.weight, 0, std)
    }
  }

  /** blockSize, or Infinity where positions are not learned. */
  get maxLength(): number {
    return this.wpe ? this.config.blockSize : Infinity
  }

  /** Token indices (B, T), after those of the cache → what the head sees, (B, T, embedDim). */
  #hidden(idx: Tensor, cache: readonly AttentionCache[] | null): Tensor {
    const [, t] = idx.shape
    const before = cache?.[0]?.length ?? 0
    if (t === undefined || idx.rank !== 2 || before + t > this.maxLength) {
      throw new ShapeError(
        `GPT: idx must be (B, T) with T ≤ blockSize = ${this.maxLength}, got [${idx.shape.join(', ')}]${before ? ` after ${before} tokens` : ''}`,
      )
    }
    const tokens = this.wte.forward(idx)
    // Positions follow each other, so that the lookup is a slice.
    let x = this.drop.forward(this.wpe ? tokens.add(this.wpe.weight.narrow(0, before, t)) : tokens)
    const saves = this.training && this.config.gradientCheckpointing === true
    for (const [i, block] of this.h.entries()) {
      const run = (x: Tensor): Tensor => block.forward(x, { cache: cache?.[i] ?? null })
      x = saves ? checkpoint(run, x) : run(x)
    }
    return this.ln_f.forward(x)
  }

  /**
   * Logits of the next token at every position.
   *
   * @param idx int32 tokens (B, T), T ≤ blockSize
   * @throws ShapeError if T exceeds blockSize, DTypeError if idx is not int32.
   */
  forward(idx: Tensor): GPTOutput<null>
  /**
   * Logits of the next token at every position, and the loss.
   *
   * @param idx int32 tokens (B, T), T ≤ blockSize
   * @param targets int32 next tokens (B, T); −100 does not count.
   * @throws ShapeError if T exceeds blockSize or the shapes differ, DTypeError if a tensor is not int32.
   */
  forward(idx: Tensor, targets: Tensor): GPTOutput<Tensor>
  forward(idx: Tensor, targets?: Tensor): GPTOutput<Tensor | null>
  forward(idx: Tensor, targets?: Tensor): GPTOutput<Tensor | null> {
    const logits = this.lm_head.forward(this.#hidden(idx, null))
    if (!targets) return { logits, loss: null }
    if (targets.shape.join() !== idx.shape.join()) {
      throw new ShapeError(
        `GPT: targets [${targets.shape.join(', ')}] must have the shape of idx, [${idx.shape.join(', ')}]`,
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
    for (const { attn } of this.h) {
      const cache = attn.newCache(batch, maxLength)
      if (!cache) return null
      caches.push(cache)
    }
    return caches
  }

  /**
   * Logits (B, V) of the token after the last of idx.
   *
   * @param idx int32 tokens (B, T); with a cache, those after what it holds, which it takes in.
   * @throws ShapeError if the sequences become longer than `maxLength`.
   */
  nextLogits(idx: Tensor, cache: readonly AttentionCache[] | null = null): Tensor {
    return this.lm_head.forward(this.#hidden(idx, cache).select(1, -1))
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
  generate(idx: Tensor, options: GenerateOptions): Generation {
    return generate(this, idx, options)
  }
}
