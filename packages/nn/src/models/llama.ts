import { type Activation, expectOptions, type Names, type Tensor } from '@tilegrad/core'
import type { AttentionCache } from '../attention/cache.ts'
import { only } from '../attention/kinds.ts'
import {
  MultiHeadAttention,
  type MultiHeadAttentionOptions,
  type SelfAttention,
  SOFTMAX,
} from '../attention/multi-head.ts'
import type { RopeOptions } from '../attention/rope.ts'
import { Embedding } from '../layers/embedding.ts'
import { Linear, positive } from '../layers/linear.ts'
import { RMSNorm } from '../layers/norm.ts'
import { Module } from '../module/module.ts'
import { CausalLM, type CausalLMConfig } from './causal-lm.ts'
import { addBranch, type BlockForwardOptions, GatedMLP, type MLPOptions, MLPS } from './transformer.ts'

/** The sizes and choices of a `Llama`. */
export interface LlamaConfig extends CausalLMConfig {
  /** How many blocks follow each other. */
  numLayers: number
  /** The number of heads of queries. */
  numHeads: number
  /** Fewer key-value heads than query heads, a divisor of them. Default numHeads. */
  numKvHeads?: number
  /** D, the size of a head; default embedDim / numHeads. */
  headDim?: number
  /** The size of a token's vector. */
  embedDim: number
  /** Size of the gated MLPs between; default ⌈8/3 · embedDim⌉. */
  hiddenDim?: number
  /** The activation of the gates. Default 'silu', which makes the MLPs SwiGLU. */
  activation?: Activation
  /** Base and scaling of the rotary embedding's frequencies. */
  rope?: RopeOptions
  /** Added to the norms' mean squares; default 1e-6. */
  normEps?: number
  /** Biases in the attention's projections; default false. */
  attentionBias?: boolean
  /** Biases in the MLPs; default false. */
  mlpBias?: boolean
  /** Probability of dropping an attention weight while training; default 0. */
  dropout?: number
  /** The head shares the token embedding's weight; default false. */
  tieWeights?: boolean
  /** Standard deviation of the initial weights; default 0.02. */
  initStd?: number
}

const LLAMAS: Names<LlamaConfig> = {
  vocabSize: 1,
  blockSize: 1,
  numLayers: 1,
  numHeads: 1,
  numKvHeads: 1,
  headDim: 1,
  embedDim: 1,
  hiddenDim: 1,
  activation: 1,
  rope: 1,
  normEps: 1,
  attentionBias: 1,
  mlpBias: 1,
  dropout: 1,
  tieWeights: 1,
  initStd: 1,
  gradientCheckpointing: 1,
}

/** A block of Llama: attention with rotary positions and a gated MLP, each after an RMSNorm. */
export class LlamaBlock extends Module {
  /** The norm before attention. */
  input_layernorm: RMSNorm
  /** The attention. */
  self_attn: MultiHeadAttention
  /** The norm before the position-wise layers. */
  post_attention_layernorm: RMSNorm
  /** The position-wise layers. */
  mlp: GatedMLP

  constructor(config: LlamaConfig) {
    super()
    const { embedDim, numHeads, attentionBias = false, mlpBias = false, normEps: eps = 1e-6 } = config
    this.input_layernorm = new RMSNorm(embedDim, { eps })
    const { rope = true } = config
    this.self_attn = new MultiHeadAttention(embedDim, numHeads, {
      ...only<MultiHeadAttentionOptions>(config, SOFTMAX),
      rope,
      bias: attentionBias,
      packed: false,
      isCausal: true,
    })
    this.post_attention_layernorm = new RMSNorm(embedDim, { eps })
    this.mlp = new GatedMLP(embedDim, { ...only<MLPOptions>(config, MLPS), bias: mlpBias })
  }

  /** Makes an empty cache of its attention. */
  newCache(batch: number, maxLength: number): AttentionCache | null {
    return this.self_attn.newCache(batch, maxLength)
  }

  forward(x: Tensor, options: BlockForwardOptions = {}): Tensor {
    const attn: SelfAttention = this.self_attn
    const y = addBranch(x, this.input_layernorm, (z, add) => attn.forward(z, { ...options, ...add }))
    return addBranch(y, this.post_attention_layernorm, (z, add) => this.mlp.forward(z, add))
  }
}

/**
 * A Llama style language model (Touvron et al. 2023; Grattafiori et al. 2024): token embeddings, pre-norm blocks of
 * grouped-query attention with rotary positions and of SwiGLU, RMSNorm throughout, and a linear head. Parameter names
 * are Hugging Face's: `model.embed_tokens.weight`, `model.layers.0.self_attn.q_proj.weight`, `model.norm.weight`,
 * `lm_head.weight`. Initialised with weights normal of deviation initStd, norms ones and biases zero.
 *
 * @throws ValueError for sizes that are not positive integers or do not divide.
 * @example
 * const sizes = { vocabSize: 11, blockSize: 8, numLayers: 2, numHeads: 4, numKvHeads: 2, embedDim: 16 }
 * const model = new Llama({ ...sizes, rope: { base: 500_000 } })
 * const tokens = randint(0, 11, [3, 9])
 * const { logits, loss } = model.forward(tokens.narrow(1, 0, 8), tokens.narrow(1, 1, 8))
 * logits.shape // → 3,8,11
 * const continued = await model.generate(tokens, { maxNewTokens: 5 }).tensor()
 * continued.shape // → 3,14
 */
export class Llama extends CausalLM {
  /** What the model was made with. */
  readonly config: Readonly<LlamaConfig>
  /** The vectors of tokens, the blocks, and the norm after the last one. */
  model: { embed_tokens: Embedding; layers: LlamaBlock[]; norm: RMSNorm }
  /** Maps vectors to logits over the vocabulary. */
  lm_head: Linear

  constructor(config: LlamaConfig) {
    super()
    expectOptions('Llama', config, LLAMAS)
    const { vocabSize, blockSize, numLayers, embedDim, normEps: eps = 1e-6, tieWeights = false } = config
    positive('Llama', { vocabSize, blockSize, numLayers })
    this.config = { ...config }
    this.model = {
      embed_tokens: new Embedding(vocabSize, embedDim),
      layers: Array.from({ length: numLayers }, () => new LlamaBlock(config)),
      norm: new RMSNorm(embedDim, { eps }),
    }
    this.lm_head = new Linear(embedDim, vocabSize, { bias: false })
    if (tieWeights) {
      this.lm_head.weight.dispose()
      this.lm_head.weight = this.model.embed_tokens.weight
    }
    this.resetParameters()
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    this.drawParameters(this.config.initStd ?? 0.02)
  }

  /** The longest sequence. Rotary positions do not end; quality does, beyond blockSize. */
  get maxLength(): number {
    return Infinity
  }

  protected get blocks(): readonly LlamaBlock[] {
    return this.model.layers
  }

  protected embed(idx: Tensor): Tensor {
    return this.model.embed_tokens.forward(idx)
  }

  protected finish(x: Tensor): Tensor {
    return this.model.norm.forward(x)
  }
}
