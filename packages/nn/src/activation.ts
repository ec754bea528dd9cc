import { gelu, relu, sigmoid, silu, type Tensor, tanh } from '@tilegrad/core'
import { Module } from './module.ts'

/** Activations as modules, for `Sequential`: elementwise, any shape, no parameters. */

/** max(x, 0) */
export class ReLU extends Module {
  forward(x: Tensor): Tensor {
    return relu(x)
  }
}

/** x · sigmoid(x) (Ramachandran et al. 2017) */
export class SiLU extends Module {
  forward(x: Tensor): Tensor {
    return silu(x)
  }
}

/** tanh(x) */
export class Tanh extends Module {
  forward(x: Tensor): Tensor {
    return tanh(x)
  }
}

/** 1 / (1 + exp(−x)) */
export class Sigmoid extends Module {
  forward(x: Tensor): Tensor {
    return sigmoid(x)
  }
}

/** How GELU is computed: with the error function, or approximately with tanh as GPT-2 does. */
export type GELUKind = 'exact' | 'tanh'

/**
 * x · Φ(x), Φ the normal distribution function (Hendrycks & Gimpel 2016), exact or by tanh.
 *
 * @example
 * (await new GELU('tanh').forward(tensor([1])).item()).toFixed(4) // → 0.8412
 */
export class GELU extends Module {
  /** Which approximation of Φ it computes. */
  readonly kind: GELUKind

  constructor(kind: GELUKind = 'exact') {
    super()
    this.kind = kind
  }

  forward(x: Tensor): Tensor {
    return gelu(x, { approximate: this.kind === 'tanh' ? 'tanh' : 'none' })
  }

  override extraRepr(): string {
    return `kind=${this.kind}`
  }
}
