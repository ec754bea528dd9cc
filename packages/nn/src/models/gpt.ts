import { type Activation, expectOptions, type Names, type Tensor } from '@tilegrad/core'
import type { AttentionBlocks } from '../attention/block-attention.ts'
import { type AttentionFactory, type AttentionKind, only } from '../attention/kinds.ts'
import type { RopeOptions } from '../attention/rope.ts'
import * as init from '../init.ts'
import { Dropout } from '../layers/dropout.ts'
import { Embedding } from '../layers/embedding.ts'
import { Linear, positive } from '../layers/linear.ts'
import { LayerNorm } from '../layers/norm.ts'
import { CausalLM, type CausalLMConfig, type TokenPlaces } from './causal-lm.ts'
import {
  BLOCK,
  type DropoutRates,
  dropoutRates,
  TransformerBlock,
  type TransformerBlockOptions,
} from './transformer.ts'

/** The sizes and choices of a `GPT`. */
export interface GPTConfig extends CausalLMConfig {
  /** How many blocks follow each other. */
  numLayers: number
  /** The number of heads of each block's attention. */
  numHeads: number
  /** Fewer key-value heads than query heads, a divisor of them. Default numHeads. */
  numKvHeads?: number
  /** The size of a token's vector. */
  embedDim: number
  /** Size of the MLPs between; default 4 · embedDim. */
  hiddenDim?: number
  /** Probability for attention weights, residual branches and embeddings, or one for each; default 0. */
  dropout?: number | DropoutRates
  /** Biases in projections and norms (the head never has one); default true. */
  bias?: boolean
  /** The kind of attention. Default 'softmax'. */
  attention?: AttentionKind | AttentionFactory
  /** Rotary positions in place of learned ones; default false. */
  rope?: boolean | RopeOptions
  /** ALiBi in place of learned positions; default: with attention 'alibi'. */
  alibi?: boolean
  /** Each position sees the last `window` ones only, itself among them. Default 0: all. */
  window?: number
  /** The number of first positions that are seen from everywhere in spite of a window. Default 0. */
  globalTokens?: number
  /** Blocks of keys that blocks of queries see; default: all. */
  blocks?: AttentionBlocks
  /** RMSNorm of each head's queries and keys; default false. */
  qkNorm?: boolean
  /** Divide attention scores by √D; default true. */
  scaleAttention?: boolean
  /** Divide attention scores by the block's number, counted from 1 (Mistral's GPT-2); default false. */
  scaleByLayer?: boolean
  /** The head shares the token embedding's weight; default true. */
  tieWeights?: boolean
  /** The activation of the MLPs. Default 'gelu', the exact one; GPT-2 itself used 'gelu_tanh'. */
  activation?: Activation
  /** Added to the norms' variances; default 1e-5. */
  normEps?: number
  /** Standard deviation of the initial weights; default 0.02. */
  initStd?: number
}

const GPTS: Names<GPTConfig> = {
  vocabSize: 1,
  blockSize: 1,
  numLayers: 1,
  numHeads: 1,
  numKvHeads: 1,
  embedDim: 1,
  hiddenDim: 1,
  dropout: 1,
  bias: 1,
  attention: 1,
  rope: 1,
  alibi: 1,
  window: 1,
  globalTokens: 1,
  blocks: 1,
  qkNorm: 1,
  scaleAttention: 1,
  scaleByLayer: 1,
  tieWeights: 1,
  activation: 1,
  normEps: 1,
  initStd: 1,
  gradientCheckpointing: 1,
}

/**
 * A GPT-2 style language model (Radford et al. 2019): token and position embeddings, pre-norm transformer blocks, a
 * final norm and a linear head. Parameter names are GPT-2's: `wte.weight`, `wpe.weight`, `h.0.ln_1.weight`,
 * `h.0.attn.c_attn.weight`, `h.0.mlp.c_fc.weight`, `ln_f.weight`, `lm_head.weight`; Linear weights are (out, in).
 *
 * Initialised as GPT-2: weights normal with deviation initStd, of projections onto the residual stream
 * initStd / √(2 · numLayers), biases zero.
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
export class GPT extends CausalLM {
  /** What the model was made with. */
  readonly config: Readonly<GPTConfig>
  /** The vectors of tokens, (vocabSize, embedDim). */
  wte: Embedding
  /** The table of learned positions; null with rotary positions or ALiBi. */
  wpe: Embedding | null
  /** Drops elements of the first block's input. */
  drop: Dropout
  /** The blocks. */
  h: TransformerBlock[]
  /** The norm after the last block. */
  ln_f: LayerNorm
  /** Maps vectors to logits over the vocabulary. */
  lm_head: Linear

  constructor(config: GPTConfig) {
    super()
    expectOptions('GPT', config, GPTS)
    const { vocabSize, blockSize, numLayers, numHeads, embedDim, tieWeights = true } = config
    const { dropout = 0, bias = true, normEps: eps = 1e-5, rope = false, alibi } = config
    const { scaleAttention = true, scaleByLayer = false } = config
    const options = only<TransformerBlockOptions>(config, BLOCK)
    positive('GPT', { vocabSize, blockSize, numLayers, numHeads, embedDim })
    this.config = { ...config }
    this.wte = new Embedding(vocabSize, embedDim)
    this.wpe = rope || (alibi ?? config.attention === 'alibi') ? null : new Embedding(blockSize, embedDim)
    this.drop = new Dropout(dropoutRates(dropout).embedding)
    this.h = Array.from({ length: numLayers }, (_, i) => {
      const scale = (scaleAttention ? 1 / Math.sqrt(embedDim / numHeads) : 1) / (scaleByLayer ? i + 1 : 1)
      const scaled = scaleByLayer || !scaleAttention ? { scale } : {}
      return new TransformerBlock(embedDim, numHeads, { ...options, ...scaled, isCausal: true })
    })
    this.ln_f = new LayerNorm(embedDim, { bias, eps })
    this.lm_head = new Linear(embedDim, vocabSize, { bias: false })
    if (tieWeights) {
      this.lm_head.weight.dispose()
      this.lm_head.weight = this.wte.weight
    }
    this.resetParameters()
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    const { initStd = 0.02 } = this.config
    this.drawParameters(initStd)
    const std = initStd / Math.sqrt(2 * this.h.length)
    for (const { attn, mlp } of this.h) {
      init.normal_(attn.outProj.weight, 0, std)
      init.normal_(mlp.c_proj.weight, 0, std)
    }
  }

  /** The longest sequence: blockSize, or Infinity where positions are not learned. */
  get maxLength(): number {
    return this.wpe ? this.config.blockSize : Infinity
  }

  protected get blocks(): readonly TransformerBlock[] {
    return this.h
  }

  protected embed(idx: Tensor, places: TokenPlaces): Tensor {
    const { before, positions } = places
    const tokens = this.wte.forward(idx)
    if (!this.wpe) return this.drop.forward(tokens)
    // Positions that follow each other are a slice of the table.
    const rows = positions
      ? this.wpe.forward(positions)
      : this.wpe.weight.narrow(0, before, idx.shape[1] as number)
    return this.drop.forward(tokens.add(rows))
  }

  protected finish(x: Tensor): Tensor {
    return this.ln_f.forward(x)
  }
}
