import {
  expectOptions,
  expectTensor,
  linear,
  matmul,
  mergeHeads,
  type Names,
  ones,
  ShapeError,
  scaledDotProductAttention,
  show,
  softmax,
  splitHeads,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import * as init from '../init.ts'
import { probability } from '../layers/dropout.ts'
import { Linear, positive } from '../layers/linear.ts'
import { Module } from '../module/module.ts'
import { parameter } from '../module/parameter.ts'
import { maskOf, type TorchMasks } from './torch-masks.ts'

/** Options of `MultiheadAttention`. */
export interface MultiheadAttentionOptions {
  /** Probability of dropping an attention weight while training; default 0. */
  dropout?: number
  /** Biases of all projections; default true. */
  bias?: boolean
  /** Size of what keys are made of; default embedDim. */
  kdim?: number
  /** Size of what values are made of; default embedDim. */
  vdim?: number
  /** Inputs are (B, T, E) in place of (T, B, E); default false, as in PyTorch. */
  batchFirst?: boolean
}

/** Options of the forward pass of `MultiheadAttention`. In both masks true hides, as in PyTorch. */
export interface MultiheadAttentionForwardOptions {
  /**
   * Bool (B, S), true for keys that nobody may attend to, such as padding, or floating, added to the scores; (S) without a
   * batch. It is the opposite of a `keyMask` of this library.
   */
  keyPaddingMask?: Tensor | null
  /**
   * Bool (T, S) or (B·H, T, S), true where a query must not attend to a key, or floating, added to the scores. It is
   * the opposite of the `attnMask` of `scaledDotProductAttention`.
   */
  attnMask?: Tensor | null
  /** Each query sees only keys up to its own place, with or without an `attnMask` beside it; default false. */
  isCausal?: boolean
  /** Computes the attention weights as well, T · S numbers for each head; default true, as in PyTorch. */
  needWeights?: boolean
  /** Averages the weights over the heads; default true. */
  averageAttnWeights?: boolean
}

const OPTIONS: Names<MultiheadAttentionOptions> = { dropout: 1, bias: 1, kdim: 1, vdim: 1, batchFirst: 1 }

const CALL: Names<MultiheadAttentionForwardOptions> = {
  keyPaddingMask: 1,
  attnMask: 1,
  isCausal: 1,
  needWeights: 1,
  averageAttnWeights: 1,
}

/** The heads of a call, and what they may see of each other. */
interface Heads {
  readonly q: Tensor
  readonly k: Tensor
  readonly v: Tensor
  readonly mask: Tensor | null
  readonly isCausal: boolean
}

/**
 * PyTorch's `nn.MultiheadAttention`, whose checkpoints it loads (Vaswani et al. 2017): query (T, B, E), key (S, B, kdim) and
 * value (S, B, vdim) → [output (T, B, E), weights (B, T, S)], or batch first, or without a batch. Each of the H heads
 * computes softmax(q kᵀ / √(E / H) + mask) v. Its masks are PyTorch's: **true hides**, in `keyPaddingMask` and in `attnMask`.
 * In `MultiHeadAttention`, this library's own layer with caches, rotary positions and windows, and in every other mask, true
 * is visible.
 *
 * The output comes from the fused kernel. Weights cost T · S numbers for each head, so pass `needWeights: false` where
 * nobody looks at them; they are those before dropout. A query that sees no key at all gets zeros from its heads, where
 * PyTorch may give NaN.
 *
 * @throws ValueError unless numHeads divides embedDim and dropout is a probability; `forward` throws ShapeError or
 * DTypeError for inputs and masks that do not fit.
 * @example
 * const attention = new MultiheadAttention(16, 4, { batchFirst: true })
 * const x = randn([2, 5, 16])
 * const [y, weights] = attention.forward(x, x, x)
 * y.shape // → 2,5,16
 * weights?.shape // → 2,5,5
 * Object.keys(attention.stateDict()).join(' ') // → in_proj_weight in_proj_bias out_proj.weight out_proj.bias
 */
export class MultiheadAttention extends Module {
  /** The size of queries and of the output. */
  readonly embedDim: number
  /** The number of heads. */
  readonly numHeads: number
  /** The size of a head. */
  readonly headDim: number
  /** Probability of dropping an attention weight while training. */
  readonly dropout: number
  /** Says whether inputs are (B, T, E). */
  readonly batchFirst: boolean
  /** Makes queries, keys and values, (3 · embedDim, embedDim); null where kdim or vdim differ from embedDim. */
  in_proj_weight: Tensor | null = null
  /** Makes the queries, (embedDim, embedDim); null where `in_proj_weight` does. */
  q_proj_weight: Tensor | null = null
  /** Makes the keys, (embedDim, kdim); null where `in_proj_weight` does. */
  k_proj_weight: Tensor | null = null
  /** Makes the values, (embedDim, vdim); null where `in_proj_weight` does. */
  v_proj_weight: Tensor | null = null
  /** What is added to queries, keys and values, (3 · embedDim), or null. */
  in_proj_bias: Tensor | null
  /** Mixes the heads. */
  out_proj: Linear

  constructor(embedDim: number, numHeads: number, options: MultiheadAttentionOptions = {}) {
    super()
    const name = 'MultiheadAttention'
    const { dropout = 0, bias = true, batchFirst = false } = expectOptions(name, options, OPTIONS)
    const { kdim = embedDim, vdim = embedDim } = options
    positive(name, { embedDim, numHeads, kdim, vdim })
    if (embedDim % numHeads !== 0)
      throw new ValueError(`${name}: embedDim ${embedDim} must be a multiple of numHeads ${numHeads}`)
    this.embedDim = embedDim
    this.numHeads = numHeads
    this.headDim = embedDim / numHeads
    this.dropout = probability(name, dropout)
    this.batchFirst = batchFirst
    if (kdim === embedDim && vdim === embedDim)
      this.in_proj_weight = parameter(zeros([3 * embedDim, embedDim]))
    else {
      this.q_proj_weight = parameter(zeros([embedDim, embedDim]))
      this.k_proj_weight = parameter(zeros([embedDim, kdim]))
      this.v_proj_weight = parameter(zeros([embedDim, vdim]))
    }
    this.in_proj_bias = bias ? parameter(zeros([3 * embedDim])) : null
    this.out_proj = new Linear(embedDim, embedDim, { bias })
    this.resetParameters()
  }

  /** Draws the initial values again: Glorot's uniform ones for what makes queries, keys and values, and no biases. */
  resetParameters(): void {
    const { in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias, out_proj } = this
    for (const weight of [in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight])
      if (weight) init.xavierUniform_(weight)
    out_proj.resetParameters()
    for (const bias of [in_proj_bias, out_proj.bias]) if (bias) init.zeros_(bias)
  }

  /** Computes the output and, unless `needWeights` is false, the weights, (B, T, S) or (B, H, T, S); else null. */
  forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: MultiheadAttentionForwardOptions = {},
  ): [Tensor, Tensor | null] {
    const { needWeights = true, averageAttnWeights = true } = expectOptions(
      'MultiheadAttention',
      options,
      CALL,
    )
    for (const x of [query, key, value]) expectTensor('MultiheadAttention', x)
    if (query.rank === 2) {
      const at = this.batchFirst ? 0 : 1
      const [q, k, v] = [query, key, value].map((x) => x.unsqueeze(at)) as [Tensor, Tensor, Tensor]
      const keyPaddingMask = options.keyPaddingMask?.unsqueeze(0) ?? null
      const [y, weights] = this.forward(q, k, v, { ...options, keyPaddingMask })
      return [y.squeeze(at), weights?.squeeze(0) ?? null]
    }
    const heads = this.#heads(query, key, value, options)
    const y = this.#mix(heads, null)
    if (!needWeights) return [y, null]
    const weights = weightsOf(heads)
    return [y, averageAttnWeights ? weights.mean(1) : weights]
  }

  /** @internal The output alone, and a tensor of its shape added to it. */
  attend(query: Tensor, context: Tensor, options: TorchMasks, residual: Tensor | null): Tensor {
    return this.#mix(this.#heads(query, context, context, options), residual)
  }

  #mix({ q, k, v, mask, isCausal }: Heads, residual: Tensor | null): Tensor {
    const dropoutP = this.training ? this.dropout : 0
    const y = mergeHeads(scaledDotProductAttention(q, k, v, { attnMask: mask, isCausal, dropoutP }))
    if (this.batchFirst) return this.out_proj.forward(y, { residual })
    return this.out_proj.forward(y, { residual: residual?.transpose(0, 1) }).transpose(0, 1)
  }

  #heads(query: Tensor, key: Tensor, value: Tensor, { isCausal = false, ...masks }: TorchMasks): Heads {
    const { name } = this.constructor
    const at = this.batchFirst ? 0 : 1
    const [b, t, s] = [query.shape[at], query.shape[1 - at], key.shape[1 - at]]
    for (const x of [query, key, value])
      if (x.rank !== 3 || x.shape[at] !== b)
        throw new ShapeError(
          `${name}: takes query, key and value ${at ? '(T, B, E)' : '(B, T, E)'} of one batch, got ${show(query.shape)}, ${show(key.shape)} and ${show(value.shape)}; batchFirst is ${this.batchFirst}`,
        )
    const [q, k, v] = this.#project(query, key, value) as [Tensor, Tensor, Tensor]
    const mask = maskOf(name, masks, [b as number, this.numHeads, t as number, s as number])
    return { q, k, v, mask, isCausal }
  }

  /** Queries, keys and values, (B, H, T, D), in as few products as the inputs allow. */
  #project(query: Tensor, key: Tensor, value: Tensor): Tensor[] {
    const { in_proj_weight: weight, in_proj_bias: bias, embedDim, numHeads, headDim } = this
    const heads = (y: Tensor, parts: number): Tensor[] =>
      splitHeads(this.batchFirst ? y : y.transpose(0, 1), Array(parts).fill(numHeads), headDim)
    const rows = (x: Tensor, from: number, parts: number): Tensor[] => {
      const part = (t: Tensor): Tensor => t.narrow(0, from * embedDim, parts * embedDim)
      return heads(linear(x, part(weight as Tensor), bias && part(bias)), parts)
    }
    if (!weight) {
      const weights = [this.q_proj_weight, this.k_proj_weight, this.v_proj_weight] as Tensor[]
      return [query, key, value].flatMap((x, i) =>
        heads(linear(x, weights[i] as Tensor, bias?.narrow(0, i * embedDim, embedDim)), 1),
      )
    }
    if (query === key && key === value) return heads(linear(query, weight, bias), 3)
    if (key === value) return [...rows(query, 0, 1), ...rows(key, 1, 2)]
    return [query, key, value].flatMap((x, i) => rows(x, i, 1))
  }

  override extraRepr(): string {
    const { embedDim, numHeads, dropout, batchFirst } = this
    return `embedDim=${embedDim}, numHeads=${numHeads}${dropout > 0 ? `, dropout=${dropout}` : ''}${batchFirst ? ', batchFirst=true' : ''}`
  }
}

/** softmax(q kᵀ / √D + mask), (B, H, T, S), written out; rows that see nothing are zeros. */
function weightsOf({ q, k, mask, isCausal }: Heads): Tensor {
  let scores = matmul(q, k.transpose(-2, -1)).div(Math.sqrt(q.shape[3] as number))
  const see = (visible: Tensor): Tensor => scores.maskedFill(visible.logicalNot(), -Infinity)
  if (mask) scores = mask.dtype === 'bool' ? see(mask) : scores.add(mask)
  if (isCausal)
    scores = see(
      ones(q.shape.slice(2, 3).concat(k.shape[2] as number), { dtype: 'bool', device: q.backend }).tril(),
    )
  const blind = scores.detach().amax(-1, { keepdim: true }).eq(-Infinity)
  return softmax(scores.maskedFill(blind, 0), -1).maskedFill(blind, 0)
}
