import {
  type Activation,
  expectActivation,
  expectOptions,
  type Names,
  type Tensor,
  ValueError,
} from '@tilegrad/core'
import type { AttentionCache } from '../attention/cache.ts'
import { type AttentionFactory, type AttentionKind, makeAttention, only } from '../attention/kinds.ts'
import {
  type AttentionForwardOptions,
  MultiHeadAttention,
  type MultiHeadAttentionOptions,
  type SelfAttention,
  SOFTMAX,
} from '../attention/multi-head.ts'
import { Dropout } from '../layers/dropout.ts'
import { Linear, positive } from '../layers/linear.ts'
import { LayerNorm } from '../layers/norm.ts'
import { Module } from '../module/module.ts'

/** What a block hands on to its attention. */
export type BlockForwardOptions = Pick<AttentionForwardOptions, 'cache' | 'keyMask' | 'positions'>

/** Options of the forward pass of `TransformerBlock`. */
export interface TransformerBlockForwardOptions extends BlockForwardOptions {
  /** What the block attends to beside x, (B, S, contextDim), for blocks made with `contextDim`. */
  context?: Tensor | null
  /** A bool mask (B, S), true for rows of the context that may be attended to and false for padding. */
  contextMask?: Tensor | null
}

/**
 * x + drop(branch(norm(x))), the half of a pre-norm block. Without dropout in between the branch's last projection
 * adds x itself. @internal
 */
export function addBranch(
  x: Tensor,
  norm: { forward(x: Tensor): Tensor },
  branch: (normed: Tensor, options: { residual: Tensor | null }) => Tensor,
  drop: Dropout | null = null,
): Tensor {
  const normed = norm.forward(x)
  return drop?.training && drop.p > 0
    ? x.add(drop.forward(branch(normed, { residual: null })))
    : branch(normed, { residual: x })
}

/** Options of `MLP` and `GatedMLP`. */
export interface MLPOptions {
  /** The size between the layers. Default 4 · embedDim. */
  hiddenDim?: number
  /** Biases in both layers; default true. */
  bias?: boolean
  /** The activation between the layers. Default 'gelu', the exact one; GPT-2 itself used 'gelu_tanh'. */
  activation?: Activation
}

/** @internal */
export const MLPS: Names<MLPOptions> = { hiddenDim: 1, bias: 1, activation: 1 }

/** Options of the forward pass of `MLP` and `GatedMLP`. */
export interface MLPForwardOptions {
  /** A tensor of x's shape that is added to the result. Default: none (null). */
  residual?: Tensor | null
}

/**
 * The position-wise layers of a transformer: c_proj(act(c_fc(x))), (…, embedDim) → (…, embedDim) by way of
 * (…, hiddenDim).
 *
 * @example
 * new MLP(8, { activation: 'gelu_tanh' }).forward(randn([2, 5, 8])).shape // → 2,5,8
 */
export class MLP extends Module {
  /** What follows the first layer. */
  readonly activation: Activation
  /** The first layer, (hiddenDim, embedDim). */
  c_fc: Linear
  /** The second layer, (embedDim, hiddenDim). */
  c_proj: Linear

  constructor(embedDim: number, options: MLPOptions = {}) {
    super()
    const { hiddenDim = 4 * embedDim, bias = true, activation = 'gelu' } = expectOptions('MLP', options, MLPS)
    this.activation = expectActivation('MLP', activation)
    this.c_fc = new Linear(embedDim, hiddenDim, { bias })
    this.c_proj = new Linear(hiddenDim, embedDim, { bias })
  }

  /** `residual`, of x's shape, is added to the result. */
  forward(x: Tensor, options: MLPForwardOptions = {}): Tensor {
    const { residual = null } = expectOptions('MLP', options, { residual: 1 })
    const { activation } = this
    return this.c_proj.forward(this.c_fc.forward(x, { activation }), { residual })
  }

  override extraRepr(): string {
    return `activation=${this.activation}`
  }
}

/**
 * Position-wise layers with a gate, by default SwiGLU (Shazeer 2020): down_proj(act(gate_proj(x)) · up_proj(x)),
 * (…, embedDim) → (…, embedDim) by way of (…, hiddenDim). Parameter names are Llama's.
 *
 * @param options.hiddenDim default ⅔ of an MLP's, which makes as many parameters, rounded up.
 * @param options.bias biases in all three layers; default false.
 * @param options.activation default 'silu'.
 * @example
 * new GatedMLP(6).forward(randn([2, 5, 6])).shape // → 2,5,6
 */
export class GatedMLP extends Module {
  /** What follows the layer of the gate. */
  readonly activation: Activation
  /** Makes the gate, (hiddenDim, embedDim). */
  gate_proj: Linear
  /** Makes what the gate is multiplied with, (hiddenDim, embedDim). */
  up_proj: Linear
  /** The last layer, (embedDim, hiddenDim). */
  down_proj: Linear

  constructor(embedDim: number, options: MLPOptions = {}) {
    super()
    const {
      hiddenDim = Math.ceil((8 / 3) * embedDim),
      bias = false,
      activation = 'silu',
    } = expectOptions('GatedMLP', options, MLPS)
    this.activation = expectActivation('GatedMLP', activation)
    this.gate_proj = new Linear(embedDim, hiddenDim, { bias })
    this.up_proj = new Linear(embedDim, hiddenDim, { bias })
    this.down_proj = new Linear(hiddenDim, embedDim, { bias })
  }

  /** `residual`, of x's shape, is added to the result. */
  forward(x: Tensor, options: MLPForwardOptions = {}): Tensor {
    const { residual = null } = expectOptions('GatedMLP', options, { residual: 1 })
    const { activation } = this
    const gate = this.gate_proj.forward(x, { activation })
    return this.down_proj.forward(gate.mul(this.up_proj.forward(x)), { residual })
  }

  override extraRepr(): string {
    return `activation=${this.activation}`
  }
}

/** Probabilities of dropping, each 0 by default; a number alone stands for all. */
export interface DropoutRates {
  /** The probability of dropping attention weights, for softmax attention only. */
  attention?: number
  /** The probability of dropping elements of what attention and MLP add to the residual stream. */
  residual?: number
  /** The probability of dropping elements of the sum of embeddings. */
  embedding?: number
}

/** @internal */
export const dropoutRates = (rates: number | DropoutRates): Required<DropoutRates> =>
  typeof rates === 'number'
    ? { attention: rates, residual: rates, embedding: rates }
    : {
        attention: 0,
        residual: 0,
        embedding: 0,
        ...expectOptions('dropout', rates, { attention: 1, residual: 1, embedding: 1 }),
      }

/** Options of `TransformerBlock`. */
export interface TransformerBlockOptions extends MLPOptions, Omit<MultiHeadAttentionOptions, 'dropout'> {
  /** A name (see `AttentionKind`), or a function that makes one; default 'softmax'. */
  attention?: AttentionKind | AttentionFactory
  /** The probabilities of dropping. Default 0. */
  dropout?: number | DropoutRates
  /** Added to the norms' variances; default 1e-5. */
  normEps?: number
  /** The size of the rows of a context, to which the block attends as well; default none. */
  contextDim?: number
}

/** @internal */
export const BLOCK: Names<TransformerBlockOptions> = {
  ...SOFTMAX,
  ...MLPS,
  attention: 1,
  dropout: 1,
  normEps: 1,
  contextDim: 1,
}

/** The options that attention to a context has in common with a block's own. */
const CROSS = { numKvHeads: 1, headDim: 1, bias: 1, outBias: 1, qkNorm: 1 } as const

/**
 * A pre-norm transformer block, (B, T, embedDim) → (B, T, embedDim): y = x + attn(ln_1(x)), then y + mlp(ln_2(y)).
 * Norms before the branches keep deep stacks trainable without warm-up (Xiong et al. 2020).
 *
 * With `contextDim` it is a block of a decoder: between the two it adds cross_attn(ln_cross(y), context), softmax attention
 * to all rows of a context, as of an encoder. A cache holds what x was before; keys and values of the context are made again
 * in each call.
 *
 * @param options.bias biases in all projections and norms; default true.
 * @throws ValueError for sizes that do not divide, or a dropout that is no probability; `forward` throws ValueError for a
 * context that it does not take, and for the lack of one that it does.
 * @example
 * const block = new TransformerBlock(16, 4, { isCausal: true, attention: 'linear' })
 * block.forward(randn([2, 5, 16])).shape // → 2,5,16
 * const decoder = new TransformerBlock(16, 4, { isCausal: true, contextDim: 24 })
 * decoder.forward(randn([2, 5, 16]), { context: randn([2, 9, 24]) }).shape // → 2,5,16
 */
export class TransformerBlock extends Module {
  /** The norm before attention. */
  ln_1: LayerNorm
  /** The attention. */
  attn: SelfAttention
  /** The norm before attention to a context, for blocks that have that. */
  ln_cross: LayerNorm | null = null
  /** The attention to a context, for blocks that have that. */
  cross_attn: MultiHeadAttention | null = null
  /** The norm before the position-wise layers. */
  ln_2: LayerNorm
  /** The position-wise layers. */
  mlp: MLP
  /** Drops elements of what both parts add. */
  drop: Dropout

  constructor(embedDim: number, numHeads: number, options: TransformerBlockOptions = {}) {
    super()
    expectOptions('TransformerBlock', options, BLOCK)
    const { attention = 'softmax', bias = true, normEps: eps = 1e-5 } = options
    const { dropout, contextDim: kvDim, ...settings } = options
    const rates = dropoutRates(dropout ?? 0)
    this.ln_1 = new LayerNorm(embedDim, { bias, eps })
    this.attn = makeAttention(attention, embedDim, numHeads, {
      ...only<MultiHeadAttentionOptions>(settings, SOFTMAX),
      dropout: rates.attention,
    })
    if (kvDim !== undefined) {
      positive('TransformerBlock', { contextDim: kvDim })
      this.ln_cross = new LayerNorm(embedDim, { bias, eps })
      const shared = only<MultiHeadAttentionOptions>(settings, CROSS as Names<MultiHeadAttentionOptions>)
      this.cross_attn = new MultiHeadAttention(embedDim, numHeads, {
        ...shared,
        kvDim,
        dropout: rates.attention,
      })
    }
    this.ln_2 = new LayerNorm(embedDim, { bias, eps })
    this.mlp = new MLP(embedDim, only<MLPOptions>(options, MLPS))
    this.drop = new Dropout(rates.residual)
  }

  /** Makes an empty cache of its attention. */
  newCache(batch: number, maxLength: number): AttentionCache | null {
    return this.attn.newCache(batch, maxLength)
  }

  /** Computes the block. With a `cache` from `newCache`, x are the tokens after those it holds. */
  forward(x: Tensor, options: TransformerBlockForwardOptions = {}): Tensor {
    const { context = null, contextMask: keyMask = null, ...own } = options
    const { ln_cross, cross_attn } = this
    if (Boolean(context) !== Boolean(cross_attn) || (keyMask && !context))
      throw new ValueError(
        cross_attn
          ? 'TransformerBlock: was made with contextDim; give it a context (B, S, contextDim)'
          : 'TransformerBlock: takes no context; make it with { contextDim }, the size of its rows',
      )
    const attended = addBranch(
      x,
      this.ln_1,
      (z, { residual }) => this.attn.forward(z, { ...own, residual }),
      this.drop,
    )
    const y =
      ln_cross && cross_attn
        ? addBranch(
            attended,
            ln_cross,
            (z, { residual }) => cross_attn.forward(z, { context, keyMask, residual }),
            this.drop,
          )
        : attended
    return addBranch(y, this.ln_2, (z, add) => this.mlp.forward(z, add), this.drop)
  }
}
