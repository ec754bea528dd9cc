import { type Tensor, ValueError } from '@tilegrad/core'
import { GELU, type GELUKind } from './activation.ts'
import { MultiHeadAttention, type MultiHeadAttentionOptions, type SelfAttention } from './attention.ts'
import type { AttentionCache } from './cache.ts'
import { Dropout } from './dropout.ts'
import { Linear } from './linear.ts'
import { GatedDeltaNet, GatedLinearAttention, LinearAttention, Retention } from './linear-attention.ts'
import { Module } from './module.ts'
import { LayerNorm } from './norm.ts'

export interface MLPOptions {
  /** Default 4 · embedDim. */
  hiddenDim?: number
  /** Biases in both layers; default true. */
  bias?: boolean
  /** Default 'exact'. */
  gelu?: GELUKind
}

/**
 * The position-wise layers of a transformer: c_proj(gelu(c_fc(x))), (…, embedDim) → (…, embedDim) by way of
 * (…, hiddenDim).
 *
 * @example
 * new MLP(8, { gelu: 'tanh' }).forward(randn([2, 5, 8])).shape // → 2,5,8
 */
export class MLP extends Module {
  c_fc: Linear
  act: GELU
  c_proj: Linear

  constructor(embedDim: number, { hiddenDim = 4 * embedDim, bias = true, gelu = 'exact' }: MLPOptions = {}) {
    super()
    this.c_fc = new Linear(embedDim, hiddenDim, { bias })
    this.act = new GELU(gelu)
    this.c_proj = new Linear(hiddenDim, embedDim, { bias })
  }

  /** `residual`, of x's shape, is added to the result. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    const activation = this.act.kind === 'tanh' ? 'gelu_tanh' : 'gelu'
    return this.c_proj.forward(this.c_fc.forward(x, { activation }), { residual })
  }
}

const attentions = {
  softmax: MultiHeadAttention,
  linear: LinearAttention,
  retention: Retention,
  gla: GatedLinearAttention,
  gatedDelta: GatedDeltaNet,
}
/** The name of a way to attend. */
export type AttentionKind = keyof typeof attentions
/** Makes a block's attention of a kind of your own; called with the block's options. */
export type AttentionFactory = (
  embedDim: number,
  numHeads: number,
  options: MultiHeadAttentionOptions,
) => SelfAttention

export interface TransformerBlockOptions extends MLPOptions, MultiHeadAttentionOptions {
  /**
   * 'softmax' (default), or in time linear in the length and without window, ALiBi or scale: 'linear', 'retention',
   * 'gla' (GatedLinearAttention), 'gatedDelta' (GatedDeltaNet); or a function that makes one.
   */
  attention?: AttentionKind | AttentionFactory
  /** Probability of dropping attention weights (softmax only) and elements of both residual branches; default 0. */
  dropout?: number
}

/**
 * A pre-norm transformer block, (B, T, embedDim) → (B, T, embedDim): y = x + attn(ln_1(x)), then y + mlp(ln_2(y)).
 * Norms before the branches keep deep stacks trainable without warm-up (Xiong et al. 2020).
 *
 * @param options.bias biases in all projections and norms; default true.
 * @throws ValueError for sizes that do not divide, or a dropout that is no probability.
 * @example
 * const block = new TransformerBlock(16, 4, { isCausal: true, attention: 'linear' })
 * block.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class TransformerBlock extends Module {
  ln_1: LayerNorm
  attn: SelfAttention
  ln_2: LayerNorm
  mlp: MLP
  drop: Dropout

  constructor(embedDim: number, numHeads: number, options: TransformerBlockOptions = {}) {
    super()
    const { attention = 'softmax', bias = true, dropout = 0, window, alibi, scale } = options
    if (typeof attention === 'string' && !(attention in attentions))
      throw new ValueError(
        `TransformerBlock: attention '${attention}' is not one of ${Object.keys(attentions).join(', ')}`,
      )
    if (typeof attention === 'string' && attention !== 'softmax' && (window || alibi || scale !== undefined))
      throw new ValueError(`TransformerBlock: ${attention} attention takes no window, alibi or scale`)
    this.ln_1 = new LayerNorm(embedDim, { bias })
    this.attn =
      typeof attention === 'function'
        ? attention(embedDim, numHeads, options)
        : new attentions[attention](embedDim, numHeads, options)
    this.ln_2 = new LayerNorm(embedDim, { bias })
    this.mlp = new MLP(embedDim, options)
    this.drop = new Dropout(dropout)
  }

  /** `cache`: of `attn.newCache`; then x are the tokens after those it holds. */
  forward(x: Tensor, { cache = null }: { cache?: AttentionCache | null } = {}): Tensor {
    const y = this.#add(x, this.ln_1, (z, residual) =>
      this.attn.forward(z, { residual: residual ?? null, cache }),
    )
    return this.#add(y, this.ln_2, (z, residual) => this.mlp.forward(z, residual))
  }

  /** x + drop(branch(norm(x))). Without dropout in between the branch's last projection adds x itself. */
  #add(x: Tensor, norm: LayerNorm, branch: (z: Tensor, residual?: Tensor) => Tensor): Tensor {
    const drops = this.training && this.drop.p > 0
    return drops ? x.add(this.drop.forward(branch(norm.forward(x)))) : branch(norm.forward(x), x)
  }
}
