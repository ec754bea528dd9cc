import {
  type ArrayOperand,
  amax,
  applyProgram,
  asTensor,
  type DType,
  dequantize,
  describeValue,
  expr as e,
  embedding,
  expectOptions,
  isFloat,
  type LinearEpilogue,
  type Names,
  noGrad,
  program,
  quantizedLinear,
  scope,
  type Tensor,
  ValueError,
} from '@tilegrad/core'
import { Embedding } from './layers/embedding.ts'
import { Linear } from './layers/linear.ts'
import { buffer, Module, replaceModules } from './module/module.ts'

/** Options of `quantize`. */
export interface QuantizeOptions {
  /** Bits of a number; only 8 are possible, which is the default. */
  bits?: 8
  /** How many consecutive numbers of a row share a scale: a multiple of 16. Default: 64. A layer
   * whose rows are no multiple of it takes half of it, or a quarter, where that divides them. */
  blockSize?: number
  /** Says whether a layer, of this dotted name, is to be quantized. Default: every one is. */
  filter?: (name: string, module: Linear) => boolean
}

const OPTIONS: Names<QuantizeOptions> = { bits: 1, blockSize: 1, filter: 1 }

/** The scale of a block whose largest magnitude is given: that becomes 127. */
const SCALE = program('quantize.scale', 1, ([top]) => e.div(top, 127))

/** Four neighbours as the bytes of a word, each divided by the scale and rounded to the nearest. */
const PACK = program('quantize.pack', 5, ([a, b, c, d, scale]) => {
  const byte = (x: e.Expr): e.Expr => {
    const whole = e.max(-127, e.min(127, e.round(e.div(x, scale))))
    return e.and(e.cast('int32', e.select(e.eq(scale, 0), 0, whole)), 255)
  }
  return e.or(e.or(byte(a), e.shl(byte(b), 8)), e.or(e.shl(byte(c), 16), e.shl(byte(d), 24)))
})

interface Packed {
  readonly weight: Tensor
  readonly scales: Tensor
}

/** A matrix as words of four bytes each and the scales of blocks. */
function packed(matrix: Tensor, blockSize: number): Packed {
  const [rows, columns] = matrix.shape as [number, number]
  const blocks = Math.ceil(columns / blockSize)
  const [weight, scales] = scope(() => {
    const padding = blocks * blockSize - columns
    const whole = padding > 0 ? matrix.pad([0, padding]) : matrix
    const parts = whole.reshape([rows, blocks, blockSize])
    const scales = applyProgram(SCALE, [amax(parts.abs(), 2)])
    const fours = parts.reshape([rows, blocks, blockSize / 4, 4])
    const four = [0, 1, 2, 3].map((i) => fours.select(3, i))
    const words = applyProgram(PACK, [...four, scales.unsqueeze(2)])
    return [words.reshape([rows, (blocks * blockSize) / 4]), scales] as const
  })
  return { weight: buffer(weight), scales: buffer(scales) }
}

/** A size of blocks, or half of it or less, that divides the columns, if one does. */
function fitting(blockSize: number, columns: number): number {
  let size = blockSize
  while (columns % size !== 0 && size % 32 === 0) size /= 2
  return columns % size === 0 ? size : blockSize
}

const shown = ({ weight, scales }: Packed): string =>
  `bits=8, blockSize=${(4 * (weight.shape[1] as number)) / (scales.shape[1] as number)}`

/**
 * A `Linear` whose weight has 8 bits, made by `quantize`: whole numbers from −127 to 127, each times the scale of its block.
 * It computes in the precision of its input, by core's `quantizedLinear`, and has no gradient.
 */
export class QuantizedLinear extends Module implements Linear {
  /** The size of the input's last dim. */
  readonly inFeatures: number
  /** The size of the output's last dim. */
  readonly outFeatures: number
  /** The numbers, int32 (outFeatures, blocks · blockSize / 4), four bytes to each, the first one lowest. */
  weight: Tensor
  /** The scales of blocks along a row, (outFeatures, blocks), of the dtype that the weight had. */
  scales: Tensor
  /** What is added, (outFeatures), or null. */
  bias: Tensor | null

  /** @internal */
  constructor({ inFeatures, outFeatures, bias }: Linear, { weight, scales }: Packed) {
    super()
    this.inFeatures = inFeatures
    this.outFeatures = outFeatures
    this.weight = weight
    this.scales = scales
    this.bias = bias
  }

  /** The dtype of what it is made of, which is that of caches. */
  get dtype(): DType {
    return this.scales.dtype
  }

  /** Refuses: initial values are for training. */
  resetParameters(): void {
    throw new ValueError('QuantizedLinear: a weight of 8 bits cannot be drawn; draw it before quantize')
  }

  /** `epilogue`: an activation and a tensor to add, computed with the product. */
  forward(x: Tensor, epilogue?: LinearEpilogue): Tensor {
    return quantizedLinear(x, this.weight, this.scales, this.bias, epilogue)
  }

  /** Computes `length` of the outputs, from number `from` on. */
  forwardPart(x: Tensor, from: number, length: number): Tensor {
    const { weight, scales, bias } = this
    const [w, s] = [weight.narrow(0, from, length), scales.narrow(0, from, length)]
    return quantizedLinear(x, w, s, bias?.narrow(0, from, length))
  }

  override extraRepr(): string {
    const { inFeatures, outFeatures, bias } = this
    return `inFeatures=${inFeatures}, outFeatures=${outFeatures}, bias=${bias !== null}, ${shown(this)}`
  }
}

/** An `Embedding` that shares its table with a `QuantizedLinear`, as that of a model with a tied head. */
export class QuantizedEmbedding extends Module implements Embedding {
  /** How many rows the table has. */
  readonly numEmbeddings: number
  /** The size of a row. */
  readonly embeddingDim: number
  /** The row whose gradient was 0, or null. */
  readonly paddingIdx: number | null
  /** The numbers, int32 (numEmbeddings, blocks · blockSize / 4), four bytes to each, the first one lowest. */
  weight: Tensor
  /** The scales of blocks along a row, (numEmbeddings, blocks), of the dtype that the table had. */
  scales: Tensor

  /** @internal */
  constructor({ numEmbeddings, embeddingDim, paddingIdx }: Embedding, { weight, scales }: Packed) {
    super()
    this.numEmbeddings = numEmbeddings
    this.embeddingDim = embeddingDim
    this.paddingIdx = paddingIdx
    this.weight = weight
    this.scales = scales
  }

  /** Refuses: initial values are for training. */
  resetParameters(): void {
    throw new ValueError('QuantizedEmbedding: a table of 8 bits cannot be drawn; draw it before quantize')
  }

  forward(index: Tensor | ArrayOperand): Tensor {
    const { weight, scales, embeddingDim } = this
    const at = asTensor('embedding', index, weight, 'int32')
    const rows = [weight, scales].map((t) => embedding(at, t).reshape([at.numel, t.shape[1] as number]))
    return dequantize(rows[0] as Tensor, rows[1] as Tensor, embeddingDim).reshape([...at.shape, embeddingDim])
  }

  override extraRepr(): string {
    return `numEmbeddings=${this.numEmbeddings}, embeddingDim=${this.embeddingDim}, ${shown(this)}`
  }
}

/**
 * Stores the weights of a model's `Linear` layers in 8 bits, for inference: in blocks of consecutive numbers of a row, each
 * rounded to the nearest of 255 multiples of its block's scale, which is 1/127 of the largest (as Q8_0 of llama.cpp). Each
 * layer becomes a `QuantizedLinear` of the same name, and an `Embedding` whose table one of them shares a
 * `QuantizedEmbedding`; other embeddings, norms and biases stay as they are. A number takes 1 + 4/blockSize bytes in place
 * of 4, and is off by at most half its block's scale. Layers compute in the precision of their input.
 *
 * The model has no gradients from then on: what parameters are left no longer require any. Its state dict holds words and
 * scales, which a model fits that was quantized alike; for other programs save it before.
 *
 * @param model is changed in place; optimisers made for it are of no use any more.
 * @returns the model.
 * @throws ValueError for options out of range, and for a model that is a layer itself or that has none to quantize.
 * @example
 * const model = new GPT({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 32 })
 * const start = tensor([[1, 2, 3]], { dtype: 'int32' })
 * const tokens = await quantize(model, { bits: 8, blockSize: 32 }).generate(start, { maxNewTokens: 5 }).tensor()
 * tokens.shape // → 1,8
 * String(model.lm_head) // → QuantizedLinear(inFeatures=32, outFeatures=11, bias=false, bits=8, blockSize=32)
 */
export function quantize<M extends Module>(model: M, options: QuantizeOptions = {}): M {
  if (!(model instanceof Module))
    throw new ValueError(`quantize: takes a module first, got ${describeValue(model)}`)
  const { bits = 8, blockSize = 64, filter = () => true } = expectOptions('quantize', options, OPTIONS)
  if (bits !== 8) throw new ValueError(`quantize: bits must be 8, got ${describeValue(bits)}`)
  if (!(Number.isInteger(blockSize) && blockSize > 0 && blockSize % 16 === 0))
    throw new ValueError(`quantize: blockSize must be a multiple of 16, got ${describeValue(blockSize)}`)
  if (model instanceof Linear)
    throw new ValueError(
      'quantize: replaces layers within a model, and this is a layer; put it in a Sequential',
    )

  const layers = new Map<Tensor, Linear[]>()
  const tables = new Map<Tensor, Embedding[]>()
  const list = <T>(map: Map<Tensor, T[]>, weight: Tensor, item: T): void => {
    map.set(weight, [...(map.get(weight) ?? []), item])
  }
  for (const [name, module] of model.namedModules()) {
    if (module.constructor === Linear && filter(name, module as Linear))
      list(layers, (module as Linear).weight, module as Linear)
    else if (module.constructor === Embedding) list(tables, (module as Embedding).weight, module as Embedding)
  }
  if (layers.size === 0)
    throw new ValueError(`quantize: ${model.constructor.name} has no Linear layer to quantize`)
  model.zeroGrad()
  model.requiresGrad_(false)
  noGrad(() => {
    // One weight after the other, so that only one of them is there twice.
    for (const [weight, users] of layers) {
      if (!isFloat(weight.dtype)) continue
      const stored = packed(weight, fitting(blockSize, weight.shape[1] as number))
      const others = new Map<Module, Module>()
      for (const layer of users) others.set(layer, new QuantizedLinear(layer, stored))
      for (const table of tables.get(weight) ?? []) others.set(table, new QuantizedEmbedding(table, stored))
      for (const [before, after] of others) after.training = before.training
      replaceModules(model, others)
      if (!model.parameters().includes(weight)) weight.dispose()
    }
  })
  return model
}
