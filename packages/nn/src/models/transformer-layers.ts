import {
  type Activation,
  expectActivation,
  expectOptions,
  expectTensor,
  type Names,
  type Tensor,
} from '@tilegrad/core'
import { MultiheadAttention } from '../attention/multihead-attention.ts'
import { Dropout } from '../layers/dropout.ts'
import { Linear } from '../layers/linear.ts'
import { LayerNorm } from '../layers/norm.ts'
import { Module } from '../module/module.ts'
import { addBranch } from './transformer.ts'

/** The layers that PyTorch's `nn.Transformer` is made of. */

/** Options of `TransformerEncoderLayer` and `TransformerDecoderLayer`. */
export interface TransformerLayerOptions {
  /** The size between the two linear layers; default 2048. */
  dimFeedforward?: number
  /** The probability of dropping attention weights, and elements of what each part adds; default 0.1. */
  dropout?: number
  /** Which activation the feed-forward part has: 'relu' (the default), 'gelu', another of `linear`'s, or a function. */
  activation?: Activation | ((x: Tensor) => Tensor)
  /** Added to the norms' variances; default 1e-5. */
  layerNormEps?: number
  /** Inputs are (B, T, E) in place of (T, B, E); default false, as in PyTorch. */
  batchFirst?: boolean
  /** Norms come before each part and not after its sum, which trains without warm-up; default false. */
  normFirst?: boolean
  /** Biases of all projections and norms; default true. */
  bias?: boolean
}

/** @internal */
export const LAYER: Names<TransformerLayerOptions> = {
  dimFeedforward: 1,
  dropout: 1,
  activation: 1,
  layerNormEps: 1,
  batchFirst: 1,
  normFirst: 1,
  bias: 1,
}

/** Options of the forward pass of `TransformerEncoderLayer`. In both masks true hides, as in PyTorch. */
export interface EncoderLayerForwardOptions {
  /** Bool (T, T) or (B·H, T, T), true where a token must not see another, or floating, added to the scores. */
  srcMask?: Tensor | null
  /** Bool (B, T), true for padding, which nobody sees, or floating, added to the scores. */
  srcKeyPaddingMask?: Tensor | null
  /** Each token sees itself and earlier ones only, with or without a mask beside it; default false. */
  isCausal?: boolean
}

/** Options of the forward pass of `TransformerDecoder` and of its layers. In all masks true hides, as in PyTorch. */
export interface DecoderForwardOptions {
  /** Bool (T, T) or (B·H, T, T), true where a token must not see another, or floating, added to the scores. */
  tgtMask?: Tensor | null
  /** Bool (T, S) or (B·H, T, S), true where a token must not see one of memory, or floating, added to the scores. */
  memoryMask?: Tensor | null
  /** Bool (B, T), true for padding, which nobody sees, or floating, added to the scores. */
  tgtKeyPaddingMask?: Tensor | null
  /** Bool (B, S), true for padding of memory, which nobody sees, or floating, added to the scores. */
  memoryKeyPaddingMask?: Tensor | null
  /** Each token sees itself and earlier ones only, with or without a mask beside it; default false. */
  tgtIsCausal?: boolean
  /** Each token sees memory up to its own place only; default false. */
  memoryIsCausal?: boolean
}

/** @internal */
export const DECODER_CALL: Names<DecoderForwardOptions> = {
  tgtMask: 1,
  memoryMask: 1,
  tgtKeyPaddingMask: 1,
  memoryKeyPaddingMask: 1,
  tgtIsCausal: 1,
  memoryIsCausal: 1,
}

type LayerClass<L> = new (dModel: number, nhead: number, options: TransformerLayerOptions) => L

/** A part of a layer: with `residual` it adds that to its result. */
type Part = (x: Tensor, options: { residual: Tensor | null }) => Tensor

const asItIs = { forward: (x: Tensor): Tensor => x }

/** What encoder and decoder layers have in common. */
abstract class TransformerLayer extends Module {
  /** The size of its input and output. */
  readonly dModel: number
  /** The number of heads. */
  readonly nhead: number
  /** What it was made with. */
  readonly options: Readonly<TransformerLayerOptions>
  /** Lets tokens attend to each other. */
  self_attn: MultiheadAttention
  /** Lets tokens attend to memory; null in an encoder. */
  multihead_attn: MultiheadAttention | null
  /** The first layer of the feed-forward part, (dimFeedforward, dModel). */
  linear1: Linear
  /** Drops elements between the linear layers. */
  dropout: Dropout
  /** The second layer of the feed-forward part, (dModel, dimFeedforward). */
  linear2: Linear
  /** The norm of the first part. */
  norm1: LayerNorm
  /** The norm of the second part. */
  norm2: LayerNorm
  /** Drops elements of what the first part adds. */
  dropout1: Dropout
  /** Drops elements of what the second part adds. */
  dropout2: Dropout

  constructor(dModel: number, nhead: number, options: TransformerLayerOptions, decodes: boolean) {
    super()
    const { name } = this.constructor
    expectOptions(name, options, LAYER)
    const { dimFeedforward = 2048, dropout = 0.1, activation = 'relu', bias = true, batchFirst } = options
    if (typeof activation !== 'function') expectActivation(name, activation)
    this.dModel = dModel
    this.nhead = nhead
    this.options = { ...options }
    const settings = { dropout, bias, batchFirst: batchFirst ?? false }
    this.self_attn = new MultiheadAttention(dModel, nhead, settings)
    this.multihead_attn = decodes ? new MultiheadAttention(dModel, nhead, settings) : null
    this.linear1 = new Linear(dModel, dimFeedforward, { bias })
    this.dropout = new Dropout(dropout)
    this.linear2 = new Linear(dimFeedforward, dModel, { bias })
    this.norm1 = this.newNorm()
    this.norm2 = this.newNorm()
    this.dropout1 = new Dropout(dropout)
    this.dropout2 = new Dropout(dropout)
  }

  /**
   * Makes a layer of the same settings, values, dtype and device, which shares nothing with this one. (A subclass with
   * another constructor needs a `clone` of its own to be stacked.)
   */
  clone(): this {
    const copy = new (this.constructor as LayerClass<this>)(this.dModel, this.nhead, this.options)
    const { dtype, backend: device } = this.norm1.weight as Tensor
    copy.to({ dtype, device }).loadStateDict(this.stateDict())
    const own = this.parameters()
    copy.parameters().forEach((p, i) => {
      p.requiresGrad = (own[i] as Tensor).requiresGrad
    })
    return copy.train(this.training)
  }

  protected newNorm(): LayerNorm {
    const { layerNormEps: eps = 1e-5, bias = true } = this.options
    return new LayerNorm(this.dModel, { eps, bias })
  }

  /** norm(x + part(x)), or x + part(norm(x)). */
  protected add(x: Tensor, norm: LayerNorm, drop: Dropout, part: Part): Tensor {
    return this.options.normFirst
      ? addBranch(x, norm, part, drop)
      : norm.forward(addBranch(x, asItIs, part, drop))
  }

  protected feedForward(x: Tensor, { residual }: { residual: Tensor | null }): Tensor {
    const { activation = 'relu' } = this.options
    const hidden =
      typeof activation === 'function'
        ? activation(this.linear1.forward(x))
        : this.linear1.forward(x, { activation })
    return this.linear2.forward(this.dropout.forward(hidden), { residual })
  }
}

/**
 * PyTorch's `nn.TransformerEncoderLayer`, whose checkpoints it loads (Vaswani et al. 2017): (T, B, dModel), or batch first,
 * → the same shape. y = norm1(x + attention(x)), then norm2(y + linear2(act(linear1(y)))); with `normFirst` norms come
 * before the parts. Attention is fused. In its masks **true hides**, as in PyTorch and unlike the rest of this library. A
 * token that sees nothing at all gets zeros from attention, where PyTorch may give NaN.
 *
 * @throws ValueError unless nhead divides dModel and dropout is a probability; `forward` throws ShapeError or DTypeError
 * for what does not fit.
 * @example
 * const layer = new TransformerEncoderLayer(16, 4, { dimFeedforward: 32, batchFirst: true })
 * const padding = tensor([[false, false, true], [false, false, false]])
 * layer.forward(randn([2, 3, 16]), { srcKeyPaddingMask: padding }).shape // → 2,3,16
 */
export class TransformerEncoderLayer extends TransformerLayer {
  constructor(dModel: number, nhead: number, options: TransformerLayerOptions = {}) {
    super(dModel, nhead, options, false)
  }

  forward(src: Tensor, options: EncoderLayerForwardOptions = {}): Tensor {
    const name = 'TransformerEncoderLayer'
    const { srcMask, srcKeyPaddingMask, isCausal } = expectOptions(name, options, {
      srcMask: 1,
      srcKeyPaddingMask: 1,
      isCausal: 1,
    })
    const call = { attnMask: srcMask, keyPaddingMask: srcKeyPaddingMask, isCausal }
    const y = this.add(src, this.norm1, this.dropout1, (x, { residual }) =>
      this.self_attn.attend(x, x, call, residual),
    )
    return this.add(y, this.norm2, this.dropout2, (x, add) => this.feedForward(x, add))
  }
}

/**
 * PyTorch's `nn.TransformerDecoderLayer`, whose checkpoints it loads (Vaswani et al. 2017): tgt (T, B, dModel) and memory
 * (S, B, dModel), or batch first, → tgt's shape. y = norm1(x + self_attn(x)), z = norm2(y + multihead_attn(y, memory)), then
 * norm3(z + linear2(act(linear1(z)))); with `normFirst` norms come before the parts. Attention is fused. In its masks
 * **true hides**, as in PyTorch and unlike the rest of this library; `tgtIsCausal: true` needs no mask.
 *
 * @throws ValueError unless nhead divides dModel and dropout is a probability; `forward` throws ShapeError or DTypeError
 * for what does not fit.
 * @example
 * const layer = new TransformerDecoderLayer(16, 4, { dimFeedforward: 32, batchFirst: true })
 * layer.forward(randn([2, 3, 16]), randn([2, 7, 16]), { tgtIsCausal: true }).shape // → 2,3,16
 */
export class TransformerDecoderLayer extends TransformerLayer {
  /** Lets tokens attend to memory. */
  declare multihead_attn: MultiheadAttention
  /** The norm of the third part. */
  norm3: LayerNorm
  /** Drops elements of what the third part adds. */
  dropout3: Dropout

  constructor(dModel: number, nhead: number, options: TransformerLayerOptions = {}) {
    super(dModel, nhead, options, true)
    this.norm3 = this.newNorm()
    this.dropout3 = new Dropout(this.dropout.p)
  }

  forward(tgt: Tensor, memory: Tensor, options: DecoderForwardOptions = {}): Tensor {
    const { tgtMask, memoryMask, tgtKeyPaddingMask, memoryKeyPaddingMask, tgtIsCausal, memoryIsCausal } =
      expectOptions('TransformerDecoderLayer', options, DECODER_CALL)
    expectTensor('TransformerDecoderLayer: tgt', tgt)
    expectTensor('TransformerDecoderLayer: memory', memory)
    const own = { attnMask: tgtMask, keyPaddingMask: tgtKeyPaddingMask, isCausal: tgtIsCausal }
    const cross = { attnMask: memoryMask, keyPaddingMask: memoryKeyPaddingMask, isCausal: memoryIsCausal }
    const y = this.add(tgt, this.norm1, this.dropout1, (x, { residual }) =>
      this.self_attn.attend(x, x, own, residual),
    )
    const z = this.add(y, this.norm2, this.dropout2, (x, { residual }) =>
      this.multihead_attn.attend(x, memory, cross, residual),
    )
    return this.add(z, this.norm3, this.dropout3, (x, add) => this.feedForward(x, add))
  }
}
