import { type ArrayOperand, embedding, expectOptions, type Tensor, ValueError, zeros } from '@tilegrad/core'
import * as init from '../init.ts'
import { Module, parameter } from '../module/module.ts'
import { positive } from './linear.ts'

/** Options of `Embedding`. */
export interface EmbeddingOptions {
  /** A row that starts as zeros and learns nothing; negative counts from the end. Default none. */
  paddingIdx?: number | null
}

/**
 * A table of vectors: int32 indices of shape (…) → (…, embeddingDim), the rows of weight (numEmbeddings,
 * embeddingDim). The weight starts standard normal, as in PyTorch.
 *
 * @throws ValueError for sizes that are not positive integers or a paddingIdx outside the table; `forward` throws
 * DTypeError for indices that are not int32 and, where the device can look, ValueError for one outside the table.
 * @example
 * const table = new Embedding(10, 3)
 * table.forward(tensor([[1, 2], [4, 5]], { dtype: 'int32' })).shape // → 2,2,3
 */
export class Embedding extends Module {
  /** How many rows the table has. */
  readonly numEmbeddings: number
  /** The size of a row. */
  readonly embeddingDim: number
  /** The row whose gradient is 0, never negative, or null. */
  readonly paddingIdx: number | null
  /** The table, (numEmbeddings, embeddingDim). */
  weight: Tensor

  constructor(numEmbeddings: number, embeddingDim: number, options: EmbeddingOptions = {}) {
    super()
    const { paddingIdx = null } = expectOptions('Embedding', options, { paddingIdx: 1 })
    positive('Embedding', { numEmbeddings, embeddingDim })
    this.numEmbeddings = numEmbeddings
    this.embeddingDim = embeddingDim
    this.paddingIdx = paddingIdx !== null && paddingIdx < 0 ? paddingIdx + numEmbeddings : paddingIdx
    const row = this.paddingIdx
    if (row !== null && !(Number.isInteger(row) && row >= 0 && row < numEmbeddings)) {
      throw new ValueError(
        `Embedding: paddingIdx ${paddingIdx} must lie within −${numEmbeddings} … ${numEmbeddings - 1}`,
      )
    }
    this.weight = parameter(zeros([numEmbeddings, embeddingDim]))
    this.resetParameters()
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    init.normal_(this.weight)
    if (this.paddingIdx !== null) init.zeroRow_(this.weight, this.paddingIdx)
  }

  forward(index: Tensor | ArrayOperand): Tensor {
    return embedding(index, this.weight, { paddingIdx: this.paddingIdx })
  }

  override extraRepr(): string {
    const padding = this.paddingIdx === null ? '' : `, paddingIdx=${this.paddingIdx}`
    return `numEmbeddings=${this.numEmbeddings}, embeddingDim=${this.embeddingDim}${padding}`
  }
}
