import {
  describeValue,
  expectOptions,
  expectTensor,
  full,
  type Names,
  noGrad,
  ShapeError,
  scope,
  show,
  type Tensor,
  type TensorOptions,
  ValueError,
} from '@tilegrad/core'
import * as init from '../init.ts'
import { positive } from '../layers/linear.ts'
import { LayerNorm } from '../layers/norm.ts'
import { Module } from '../module/module.ts'
import {
  DECODER_CALL,
  type DecoderForwardOptions,
  LAYER,
  TransformerDecoderLayer,
  TransformerEncoderLayer,
  type TransformerLayerOptions,
} from './transformer-layers.ts'

/** A norm, or another module from one tensor to one tensor. */
type Norm = Module & { forward(x: Tensor): Tensor }

/** Options of `TransformerEncoder` and `TransformerDecoder`. */
export interface StackOptions {
  /** Follows the last layer; default none. */
  norm?: Norm | null
}

/** Options of the forward pass of `TransformerEncoder`. In both masks true hides, as in PyTorch. */
export interface EncoderForwardOptions {
  /** Bool (T, T) or (B·H, T, T), true where a token must not see another, or floating, added to the scores. */
  mask?: Tensor | null
  /** Bool (B, T), true for padding, which nobody sees, or floating, added to the scores. */
  srcKeyPaddingMask?: Tensor | null
  /** Each token sees itself and earlier ones only, with or without a mask beside it; default false. */
  isCausal?: boolean
}

/** Copies of a layer, as many as asked for. */
function copies<L extends { clone(): L }>(op: string, layer: L, numLayers: number): L[] {
  positive(op, { numLayers })
  if (typeof layer?.clone !== 'function')
    throw new ValueError(
      `${op}: takes a layer such as new ${op}Layer(…), which has a clone(), got ${describeValue(layer)}`,
    )
  return Array.from({ length: numLayers }, () => layer.clone())
}

/**
 * PyTorch's `nn.TransformerEncoder`: `numLayers` copies of a layer, which all start with its values, one after the other,
 * and a norm if there is one. (T, B, dModel), or batch first, → the same shape. In its masks **true hides**. Rows of padding are
 * computed as all others are; PyTorch's fast path for inference has zeros there.
 *
 * @param layer is copied (`layer.clone()`), so that it does not become a part of the encoder; call its `dispose()` if you
 * have no other use for it.
 * @throws ValueError unless numLayers is a positive integer.
 * @example
 * const layer = new TransformerEncoderLayer(16, 4, { dimFeedforward: 32 })
 * const encoder = new TransformerEncoder(layer, 2, { norm: new LayerNorm(16) })
 * encoder.forward(randn([5, 3, 16]), { mask: Transformer.generateSquareSubsequentMask(5) }).shape // → 5,3,16
 */
export class TransformerEncoder extends Module {
  /** The layers. */
  layers: TransformerEncoderLayer[]
  /** What follows the last layer, or null. */
  norm: Norm | null

  constructor(layer: TransformerEncoderLayer, numLayers: number, options: StackOptions = {}) {
    super()
    const { norm = null } = expectOptions('TransformerEncoder', options, { norm: 1 })
    this.layers = copies('TransformerEncoder', layer, numLayers)
    this.norm = norm
  }

  forward(src: Tensor, options: EncoderForwardOptions = {}): Tensor {
    const {
      mask = null,
      srcKeyPaddingMask = null,
      isCausal = false,
    } = expectOptions('TransformerEncoder', options, {
      mask: 1,
      srcKeyPaddingMask: 1,
      isCausal: 1,
    })
    const call = { srcMask: mask, srcKeyPaddingMask, isCausal }
    const y = this.layers.reduce((x, layer) => layer.forward(x, call), src)
    return this.norm ? this.norm.forward(y) : y
  }
}

/**
 * PyTorch's `nn.TransformerDecoder`: `numLayers` copies of a layer, which all start with its values, one after the other,
 * and a norm if there is one. tgt (T, B, dModel) and memory (S, B, dModel), or batch first, → tgt's shape. In its masks
 * **true hides**.
 *
 * @param layer is copied (`layer.clone()`), so that it does not become a part of the decoder; call its `dispose()` if you
 * have no other use for it.
 * @throws ValueError unless numLayers is a positive integer.
 * @example
 * const decoder = new TransformerDecoder(new TransformerDecoderLayer(16, 4, { dimFeedforward: 32 }), 2)
 * decoder.forward(randn([5, 3, 16]), randn([7, 3, 16]), { tgtIsCausal: true }).shape // → 5,3,16
 */
export class TransformerDecoder extends Module {
  /** The layers. */
  layers: TransformerDecoderLayer[]
  /** What follows the last layer, or null. */
  norm: Norm | null

  constructor(layer: TransformerDecoderLayer, numLayers: number, options: StackOptions = {}) {
    super()
    const { norm = null } = expectOptions('TransformerDecoder', options, { norm: 1 })
    this.layers = copies('TransformerDecoder', layer, numLayers)
    this.norm = norm
  }

  forward(tgt: Tensor, memory: Tensor, options: DecoderForwardOptions = {}): Tensor {
    expectOptions('TransformerDecoder', options, DECODER_CALL)
    const y = this.layers.reduce((x, layer) => layer.forward(x, memory, options), tgt)
    return this.norm ? this.norm.forward(y) : y
  }
}

/** Options of `Transformer`. */
export interface TransformerOptions extends TransformerLayerOptions {
  /** The size of a token's vector; default 512. */
  dModel?: number
  /** The number of heads; default 8. */
  nhead?: number
  /** The number of layers of the encoder; default 6. */
  numEncoderLayers?: number
  /** The number of layers of the decoder; default 6. */
  numDecoderLayers?: number
}

const OPTIONS: Names<TransformerOptions> = {
  dModel: 1,
  nhead: 1,
  numEncoderLayers: 1,
  numDecoderLayers: 1,
  ...LAYER,
}

/** Options of the forward pass of `Transformer`. In all masks true hides, as in PyTorch. */
export interface TransformerForwardOptions extends DecoderForwardOptions {
  /** Bool (S, S) or (B·H, S, S), true where a source token must not see another, or floating, added to the scores. */
  srcMask?: Tensor | null
  /**
   * Bool (B, S), true for padding of the source within the encoder, or floating, added to the scores. The decoder does
   * not see it: give it as `memoryKeyPaddingMask`, too.
   */
  srcKeyPaddingMask?: Tensor | null
  /** Each source token sees itself and earlier ones only; default false. */
  srcIsCausal?: boolean
}

const CALL: Names<TransformerForwardOptions> = {
  ...DECODER_CALL,
  srcMask: 1,
  srcKeyPaddingMask: 1,
  srcIsCausal: 1,
}

/**
 * PyTorch's `nn.Transformer`, whose checkpoints it loads (Vaswani et al. 2017): an encoder of src (S, B, dModel), a decoder
 * of tgt (T, B, dModel) that attends to it, or both batch first, → tgt's shape. Embeddings, positions and the layer to
 * logits are not part of it.
 *
 * Its masks are PyTorch's: in a bool one **true hides**, a floating one is added to the scores. Everywhere else in this
 * library (`scaledDotProductAttention`, `MultiHeadAttention`, `keyMask`) true is visible. A causal decoder is cheapest with
 * `tgtIsCausal: true` and no mask.
 *
 * @throws ValueError unless nhead divides dModel, sizes are positive integers and dropout is a probability; `forward`
 * throws ShapeError or DTypeError for what does not fit.
 * @example
 * const model = new Transformer({ dModel: 16, nhead: 4, numEncoderLayers: 2, numDecoderLayers: 2, dimFeedforward: 32 })
 * const [src, tgt] = [randn([7, 3, 16]), randn([5, 3, 16])]
 * model.forward(src, tgt, { tgtMask: Transformer.generateSquareSubsequentMask(5) }).shape // → 5,3,16
 */
export class Transformer extends Module {
  /** Makes memory of the source. */
  encoder: TransformerEncoder
  /** Makes the result of the target and of memory. */
  decoder: TransformerDecoder
  /** The size of a token's vector. */
  readonly dModel: number
  /** The number of heads. */
  readonly nhead: number
  /** Says whether inputs are (B, T, dModel). */
  readonly batchFirst: boolean

  constructor(options: TransformerOptions = {}) {
    super()
    const name = 'Transformer'
    const {
      dModel = 512,
      nhead = 8,
      numEncoderLayers = 6,
      numDecoderLayers = 6,
      ...settings
    } = expectOptions(name, options, OPTIONS)
    positive(name, { dModel, nhead, numEncoderLayers, numDecoderLayers })
    const { layerNormEps: eps = 1e-5, bias = true, batchFirst = false } = settings
    const norm = (): Norm => new LayerNorm(dModel, { eps, bias })
    const encoderLayer = new TransformerEncoderLayer(dModel, nhead, settings)
    this.encoder = new TransformerEncoder(encoderLayer, numEncoderLayers, { norm: norm() })
    const decoderLayer = new TransformerDecoderLayer(dModel, nhead, settings)
    this.decoder = new TransformerDecoder(decoderLayer, numDecoderLayers, { norm: norm() })
    for (const layer of [encoderLayer, decoderLayer]) layer.dispose()
    this.dModel = dModel
    this.nhead = nhead
    this.batchFirst = batchFirst
    this.resetParameters()
  }

  /** Draws the initial values of all matrices again, Glorot's uniform ones. */
  resetParameters(): void {
    for (const p of this.parameters()) if (p.rank > 1) init.xavierUniform_(p)
  }

  /**
   * An additive mask (n, n) for causal attention, as PyTorch's function of that name makes it: 0 where a token may see
   * another, −∞ where that comes later. With `isCausal` no mask is needed, and half of the work is skipped.
   *
   * @example
   * await Transformer.generateSquareSubsequentMask(2).toArray() // → [[0, -Infinity], [0, 0]]
   */
  static generateSquareSubsequentMask(n: number, options: TensorOptions = {}): Tensor {
    positive('generateSquareSubsequentMask', { n })
    return scope(() => noGrad(() => full([n, n], -Infinity, options).triu(1)))
  }

  forward(src: Tensor, tgt: Tensor, options: TransformerForwardOptions = {}): Tensor {
    const {
      srcMask: mask = null,
      srcKeyPaddingMask = null,
      srcIsCausal: isCausal = false,
      ...rest
    } = expectOptions('Transformer', options, CALL)
    const batch = this.batchFirst ? 0 : 1
    expectTensor('Transformer: src', src)
    expectTensor('Transformer: tgt', tgt)
    if (src.rank !== tgt.rank || (src.rank === 3 && src.shape[batch] !== tgt.shape[batch]))
      throw new ShapeError(
        `Transformer: src and tgt are ${this.batchFirst ? '(B, S, E) and (B, T, E)' : '(S, B, E) and (T, B, E)'} with one B, got ${show(src.shape)} and ${show(tgt.shape)}; batchFirst is ${this.batchFirst}`,
      )
    const memory = this.encoder.forward(src, { mask, srcKeyPaddingMask, isCausal })
    return this.decoder.forward(tgt, memory, rest)
  }

  override extraRepr(): string {
    return `dModel=${this.dModel}, nhead=${this.nhead}`
  }
}
