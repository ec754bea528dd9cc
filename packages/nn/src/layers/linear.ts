import {
  type DType,
  describeValue,
  expectOptions,
  type LinearEpilogue,
  linear,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import * as init from '../init.ts'
import { Module, parameter } from '../module/module.ts'

/** Options of `Linear`. */
export interface LinearOptions {
  /** Learn an additive bias; default true. */
  bias?: boolean
}

/**
 * x · weightᵀ + bias: (…, inFeatures) → (…, outFeatures), with weight (outFeatures, inFeatures) and bias
 * (outFeatures). Both start uniform within ±1/√inFeatures, as in PyTorch.
 *
 * @throws ValueError unless both sizes are positive integers; `forward` throws ShapeError for another last size.
 * @example
 * const layer = new Linear(4, 3)
 * layer.forward(randn([2, 4])).shape // → 2,3
 */
export class Linear extends Module {
  /** The size of the input's last dim. */
  readonly inFeatures: number
  /** The size of the output's last dim. */
  readonly outFeatures: number
  /** The matrix, (outFeatures, inFeatures). */
  weight: Tensor
  /** What is added, (outFeatures), or null. */
  bias: Tensor | null

  constructor(inFeatures: number, outFeatures: number, options: LinearOptions = {}) {
    super()
    const { bias = true } = expectOptions('Linear', options, { bias: 1 })
    positive('Linear', { inFeatures, outFeatures })
    this.inFeatures = inFeatures
    this.outFeatures = outFeatures
    this.weight = parameter(zeros([outFeatures, inFeatures]))
    this.bias = bias ? parameter(zeros([outFeatures])) : null
    this.resetParameters()
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    const bound = 1 / Math.sqrt(this.inFeatures)
    init.uniform_(this.weight, -bound, bound)
    if (this.bias) init.uniform_(this.bias, -bound, bound)
  }

  /** `epilogue`: an activation and a tensor to add, computed with the product; see core's `linear`. */
  forward(x: Tensor, epilogue?: LinearEpilogue): Tensor {
    return linear(x, this.weight, this.bias, epilogue)
  }

  /** The dtype of what it is made of, which is that of caches. */
  get dtype(): DType {
    return this.weight.dtype
  }

  /** Computes `length` of the outputs, from number `from` on. */
  forwardPart(x: Tensor, from: number, length: number): Tensor {
    return linear(x, this.weight.narrow(0, from, length), this.bias?.narrow(0, from, length))
  }

  override extraRepr(): string {
    return `inFeatures=${this.inFeatures}, outFeatures=${this.outFeatures}, bias=${this.bias !== null}`
  }
}

/** Checks constructor arguments that must be positive integers. @internal */
export function positive(op: string, sizes: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(sizes)) {
    if (!Number.isInteger(value) || value < 1) {
      throw new ValueError(`${op}: ${name} must be a positive integer, got ${describeValue(value)}`)
    }
  }
}
