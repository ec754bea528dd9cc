import { linearAttention, scaledDotProductAttention, split, type Tensor, ValueError } from '@tilegrad/core'
import { probability } from './dropout.ts'
import { Linear, positive } from './linear.ts'
import { Module } from './module.ts'

export interface AttentionModuleOptions {
  /** Fewer key-value heads than query heads, a divisor of them (Ainslie et al. 2023). Default numHeads. */
  numKvHeads?: number
  /** Biases in both projections; default true. */
  bias?: boolean
  /** Each position sees itself and earlier ones only; default false. */
  isCausal?: boolean
}

export interface MultiHeadAttentionOptions extends AttentionModuleOptions {
  /** Probability of dropping an attention weight while training; default 0. */
  dropout?: number
}

/**
 * Self-attention around some way to attend: one projection makes queries, keys and values, whose heads attend as views
 * of its output, and another mixes the heads.
 */
export abstract class SelfAttention extends Module {
  readonly embedDim: number
  readonly numHeads: number
  readonly numKvHeads: number
  readonly headDim: number
  readonly isCausal: boolean
  /** (…, embedDim) → queries, keys and values, packed in this order. */
  c_attn: Linear
  /** The heads' outputs side by side → (…, embedDim). */
  c_proj: Linear

  constructor(embedDim: number, numHeads: number, options: AttentionModuleOptions = {}) {
    super()
    const { numKvHeads = numHeads, bias = true, isCausal = false } = options
    const name = this.constructor.name
    positive(name, { embedDim, numHeads, numKvHeads })
    if (embedDim % numHeads !== 0)
      throw new ValueError(`${name}: embedDim ${embedDim} must be a multiple of numHeads ${numHeads}`)
    if (numHeads % numKvHeads !== 0)
      throw new ValueError(`${name}: numHeads ${numHeads} must be a multiple of numKvHeads ${numKvHeads}`)
    this.embedDim = embedDim
    this.numHeads = numHeads
    this.numKvHeads = numKvHeads
    this.headDim = embedDim / numHeads
    this.isCausal = isCausal
    this.c_attn = new Linear(embedDim, embedDim + 2 * numKvHeads * this.headDim, { bias })
    this.c_proj = new Linear(embedDim, embedDim, { bias })
  }

  /** From q (B, H, T, D), k and v (B, Hk, T, D) to (B, H, T, D). */
  protected abstract attend(q: Tensor, k: Tensor, v: Tensor): Tensor

  /** (B, T, embedDim) → the same shape. */
  /** `residual`, of x's shape, is added to the result. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    const kv = this.numKvHeads * this.headDim
    const [q, k, v] = split(this.c_attn.forward(x), [this.embedDim, kv, kv], -1).map((part) =>
      part.unflatten(-1, [-1, this.headDim]).transpose(-3, -2),
    ) as [Tensor, Tensor, Tensor]
    return this.c_proj.forward(this.attend(q, k, v).transpose(-3, -2).flatten(-2), { residual })
  }

  override extraRepr(): string {
    const kv = this.numKvHeads === this.numHeads ? '' : `, numKvHeads: ${this.numKvHeads}`
    return `${this.embedDim}, ${this.numHeads}${kv}${this.isCausal ? ', isCausal' : ''}`
  }
}

/**
 * Multi-head self-attention (Vaswani et al. 2017), (B, T, embedDim) → (B, T, embedDim): each of the H heads computes
 * softmax(q kᵀ / √D) v with D = embedDim / H.
 *
 * Parameters are GPT-2's: `c_attn` projects to queries, keys and values in one, with weight
 * (embedDim + 2 · numKvHeads · D, embedDim); `c_proj` mixes the heads.
 *
 * @throws ValueError unless numHeads divides embedDim, numKvHeads divides numHeads and dropout is a probability.
 * @example
 * const attention = new MultiHeadAttention(16, 4, { numKvHeads: 2, isCausal: true })
 * attention.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class MultiHeadAttention extends SelfAttention {
  /** Probability of dropping an attention weight while training. */
  readonly dropout: number

  constructor(
    embedDim: number,
    numHeads: number,
    { dropout = 0, ...options }: MultiHeadAttentionOptions = {},
  ) {
    super(embedDim, numHeads, options)
    this.dropout = probability('MultiHeadAttention', dropout)
  }

  protected attend(q: Tensor, k: Tensor, v: Tensor): Tensor {
    const dropoutP = this.training ? this.dropout : 0
    return scaledDotProductAttention(q, k, v, { isCausal: this.isCausal, dropoutP })
  }
}

export interface LinearAttentionOptions extends AttentionModuleOptions {
  /** Added to the normaliser; default 1e-6. */
  eps?: number
}

/**
 * Multi-head self-attention in time and memory linear in T (Katharopoulos et al. 2020), with MultiHeadAttention's
 * parameters: φ(q)·φ(k) with φ(x) = elu(x) + 1 takes the place of exp(q·k / √D). (B, T, embedDim) → the same shape.
 *
 * @throws ValueError unless numHeads divides embedDim and numKvHeads divides numHeads.
 * @example
 * const attention = new LinearAttention(16, 4, { isCausal: true })
 * attention.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class LinearAttention extends SelfAttention {
  readonly eps: number

  constructor(embedDim: number, numHeads: number, { eps = 1e-6, ...options }: LinearAttentionOptions = {}) {
    super(embedDim, numHeads, options)
    this.eps = eps
  }

  protected attend(q: Tensor, k: Tensor, v: Tensor): Tensor {
    const [keys, values] = [this.#served(k), this.#served(v)]
    return linearAttention(q, keys, values, { isCausal: this.isCausal, eps: this.eps })
  }

  /** (B, Hk, T, D) → (B, H, T, D): each key-value head repeated for the query heads it serves. */
  #served(x: Tensor): Tensor {
    const groups = this.numHeads / this.numKvHeads
    if (groups === 1) return x
    const [b, hk, t, d] = x.shape as [number, number, number, number]
    return x.unsqueeze(2).expand([b, hk, groups, t, d]).flatten(1, 2)
  }
}
