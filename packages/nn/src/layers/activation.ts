import {
  celu,
  describeValue,
  elu,
  expectOptions,
  full,
  gelu,
  glu,
  hardshrink,
  hardsigmoid,
  hardswish,
  hardtanh,
  leakyRelu,
  logSoftmax,
  logsigmoid,
  mish,
  prelu,
  relu,
  relu6,
  selu,
  sigmoid,
  silu,
  softmax,
  softmin,
  softplus,
  softshrink,
  softsign,
  type Tensor,
  tanh,
  tanhshrink,
  threshold,
  ValueError,
} from '@tilegrad/core'
import { constant_ } from '../init.ts'
import { Module, parameter } from '../module/module.ts'
import { moduleOf } from './function-module.ts'
import { positive } from './linear.ts'

/** Activations as modules, for `Sequential`: of any shape, and but for PReLU without parameters. */

/** A module that is a function of one tensor. @internal */
export declare class Activation extends Module {
  forward(x: Tensor): Tensor
}

/* @__NO_SIDE_EFFECTS__ */
const activation = (fn: (x: Tensor) => Tensor): (new () => Activation) =>
  class extends Module {
    forward(x: Tensor): Tensor {
      return fn(x)
    }
  }

/** A module that is a function of one tensor along a dim. @internal */
export declare class AlongDim extends Activation {
  /** The dim that it works along; negative counts from the end. */
  readonly dim: number
}

/* @__NO_SIDE_EFFECTS__ */
const alongDim = (fn: (x: Tensor, dim: number) => Tensor): (new (dim: number) => AlongDim) =>
  class extends Module {
    readonly dim: number

    constructor(dim: number) {
      super()
      if (!Number.isInteger(dim)) {
        const { name } = this.constructor
        throw new ValueError(
          `${name}: dim must be an integer, got ${describeValue(dim)}; expected new ${name}(-1)`,
        )
      }
      this.dim = dim
    }

    forward(x: Tensor): Tensor {
      return fn(x, this.dim)
    }

    override extraRepr(): string {
      return `dim=${this.dim}`
    }
  }

/**
 * max(x, 0) of every element.
 *
 * @example
 * await new ReLU().forward(tensor([-1, 2])).toArray() // → [0, 2]
 */
export class ReLU extends /* @__PURE__ */ activation(relu) {}

/**
 * Limits every element to [0, 6].
 *
 * @example
 * await new ReLU6().forward(tensor([-1, 5, 9])).toArray() // → [0, 5, 6]
 */
export class ReLU6 extends /* @__PURE__ */ activation(relu6) {}

/**
 * x · sigmoid(x) of every element (Ramachandran et al. 2017).
 *
 * @example
 * await new SiLU().forward(tensor([0, 100])).toArray() // → [0, 100]
 */
export class SiLU extends /* @__PURE__ */ activation(silu) {}

/**
 * tanh(x) of every element.
 *
 * @example
 * await new Tanh().forward(tensor([0, 100])).toArray() // → [0, 1]
 */
export class Tanh extends /* @__PURE__ */ activation(tanh) {}

/**
 * 1 / (1 + exp(−x)) of every element.
 *
 * @example
 * await new Sigmoid().forward(tensor([0, 100])).toArray() // → [0.5, 1]
 */
export class Sigmoid extends /* @__PURE__ */ activation(sigmoid) {}

/**
 * ln σ(x) of every element, the logarithm of the sigmoid, without overflow.
 *
 * @example
 * await new LogSigmoid().forward(tensor([-200, 200])).toArray() // → [-200, 0]
 */
export class LogSigmoid extends /* @__PURE__ */ activation(logsigmoid) {}

/**
 * Limits (x + 3) / 6 to [0, 1]: a sigmoid of straight lines.
 *
 * @example
 * await new Hardsigmoid().forward(tensor([-9, 0, 9])).toArray() // → [0, 0.5, 1]
 */
export class Hardsigmoid extends /* @__PURE__ */ activation(hardsigmoid) {}

/**
 * x · hardsigmoid(x) of every element (Howard et al. 2019).
 *
 * @example
 * await new Hardswish().forward(tensor([-9, 0, 9])).toArray() // → [0, 0, 9]
 */
export class Hardswish extends /* @__PURE__ */ activation(hardswish) {}

/**
 * x · tanh(ln(1 + eˣ)) of every element (Misra 2019).
 *
 * @example
 * await new Mish().forward(tensor([0, 30])).toArray() // → [0, 30]
 */
export class Mish extends /* @__PURE__ */ activation(mish) {}

/**
 * Takes scale · x above 0, else scale · α · (eˣ − 1), with the two numbers that keep mean 0 and variance 1 (Klambauer et
 * al. 2017).
 *
 * @example
 * await new SELU().forward(tensor([0, 1])).mul(1e4).round().toArray() // → [0, 10507]
 */
export class SELU extends /* @__PURE__ */ activation(selu) {}

/**
 * x / (1 + |x|) of every element.
 *
 * @example
 * await new Softsign().forward(tensor([-1, 3])).toArray() // → [-0.5, 0.75]
 */
export class Softsign extends /* @__PURE__ */ activation(softsign) {}

/**
 * x − tanh(x) of every element.
 *
 * @example
 * await new Tanhshrink().forward(tensor([0])).toArray() // → [0]
 */
export class Tanhshrink extends /* @__PURE__ */ activation(tanhshrink) {}

/**
 * x · Φ(x) of every element, Φ the normal distribution function (Hendrycks & Gimpel 2016), exact or with
 * `{ approximate: 'tanh' }` as in GPT-2.
 *
 * @example
 * (await new GELU({ approximate: 'tanh' }).forward(tensor([1])).item()).toFixed(4) // → 0.8412
 */
export class GELU extends /* @__PURE__ */ moduleOf(gelu, { approximate: 'none' }) {}

/**
 * Takes x above 0, else alpha · (eˣ − 1) (Clevert et al. 2016), of every element.
 *
 * @example
 * await new ELU({ alpha: 0.5 }).forward(tensor([-50, 2])).toArray() // → [-0.5, 2]
 */
export class ELU extends /* @__PURE__ */ moduleOf(elu, { alpha: 1 }) {}

/**
 * Takes x above 0, else alpha · (e^(x / alpha) − 1) (Barron 2017), of every element.
 *
 * @example
 * await new CELU({ alpha: 2 }).forward(tensor([-50, 1])).toArray() // → [-2, 1]
 */
export class CELU extends /* @__PURE__ */ moduleOf(celu, { alpha: 1 }) {}

/**
 * Takes x above 0, else negativeSlope · x, of every element.
 *
 * @example
 * await new LeakyReLU({ negativeSlope: 0.5 }).forward(tensor([-2, 2])).toArray() // → [-1, 2]
 */
export class LeakyReLU extends /* @__PURE__ */ moduleOf(leakyRelu, { negativeSlope: 0.01 }) {}

/**
 * Limits every element to [minVal, maxVal]; at the limits and beyond no gradient passes.
 *
 * @example
 * await new Hardtanh().forward(tensor([-2, 0.5, 2])).toArray() // → [-1, 0.5, 1]
 */
export class Hardtanh extends /* @__PURE__ */ moduleOf(hardtanh, { minVal: -1, maxVal: 1 }) {}

/**
 * ln(1 + exp(beta · x)) / beta of every element, a smooth relu; x itself where beta · x > threshold.
 *
 * @example
 * await new Softplus().forward(tensor([-200, 30])).toArray() // → [0, 30]
 */
export class Softplus extends /* @__PURE__ */ moduleOf(softplus, { beta: 1, threshold: 20 }) {}

/**
 * Brings every element nearer to 0 by lambd, and those nearer than that to 0.
 *
 * @example
 * await new Softshrink().forward(tensor([-2, 0.2, 2])).toArray() // → [-1.5, 0, 1.5]
 */
export class Softshrink extends /* @__PURE__ */ moduleOf(softshrink, { lambd: 0.5 }) {}

/**
 * Keeps the elements that are farther than lambd from 0; the others become 0.
 *
 * @example
 * await new Hardshrink().forward(tensor([-2, 0.2, 2])).toArray() // → [-2, 0, 2]
 */
export class Hardshrink extends /* @__PURE__ */ moduleOf(hardshrink, { lambd: 0.5 }) {}

/**
 * exp(x) / Σ exp(x) along a dim.
 *
 * @throws ValueError for a dim that is no integer.
 * @example
 * await new Softmax(-1).forward(tensor([[1, 1], [0, 100]])).toArray() // → [[0.5, 0.5], [0, 1]]
 */
export class Softmax extends /* @__PURE__ */ alongDim(softmax) {}

/**
 * x − ln Σ exp(x) along a dim: the logarithm of `Softmax`, without its loss of precision.
 *
 * @throws ValueError for a dim that is no integer.
 * @example
 * await new LogSoftmax(-1).forward(tensor([0, 100])).toArray() // → [-100, 0]
 */
export class LogSoftmax extends /* @__PURE__ */ alongDim(logSoftmax) {}

/**
 * The softmax of −x along a dim.
 *
 * @throws ValueError for a dim that is no integer.
 * @example
 * await new Softmin(-1).forward(tensor([0, 100])).toArray() // → [1, 0]
 */
export class Softmin extends /* @__PURE__ */ alongDim(softmin) {}

/**
 * Takes the first half of x along a dim, by default the last, times the sigmoid of the second (Dauphin et al. 2017):
 * (…, 2N, …) → (…, N, …).
 *
 * @throws ValueError for a dim that is no integer; `forward` throws ShapeError for a dim whose size is odd.
 * @example
 * await new GLU().forward(tensor([3, 0])).toArray() // → [1.5]
 */
export class GLU extends /* @__PURE__ */ alongDim(glu) {
  constructor(dim = -1) {
    super(dim)
  }
}

/**
 * Takes x where it is above a threshold, else a value.
 *
 * @throws ValueError unless both are numbers.
 * @example
 * await new Threshold(2, 9).forward(tensor([1, 3])).toArray() // → [9, 3]
 */
export class Threshold extends Module {
  /** The number that elements must be above. */
  readonly threshold: number
  /** What the other elements become. */
  readonly value: number

  constructor(threshold: number, value: number) {
    super()
    for (const [name, given] of Object.entries({ threshold, value }))
      if (typeof given !== 'number')
        throw new ValueError(`Threshold: ${name} must be a number, got ${describeValue(given)}`)
    this.threshold = threshold
    this.value = value
  }

  forward(x: Tensor): Tensor {
    return threshold(x, this.threshold, this.value)
  }

  override extraRepr(): string {
    return `threshold=${this.threshold}, value=${this.value}`
  }
}

/** Options of `PReLU`. */
export interface PReLUOptions {
  /** 1 slope for all, or as many as there are channels (dim 1). Default: 1. */
  numParameters?: number
  /** What the slopes start as. Default: 0.25. */
  init?: number
}

/**
 * Takes x above 0, else weight · x with a slope that learns (He et al. 2015): one, or one for each channel (dim 1).
 *
 * @throws ValueError unless numParameters is a positive integer; `forward` throws ShapeError unless there are one or as
 * many slopes as channels.
 * @example
 * await new PReLU().forward(tensor([-2, 2])).toArray() // → [-0.5, 2]
 */
export class PReLU extends Module {
  /** What the slopes start as. */
  readonly init: number
  /** The slopes, (numParameters). */
  weight: Tensor

  constructor(options: PReLUOptions = {}) {
    super()
    const { numParameters = 1, init = 0.25 } = expectOptions('PReLU', options, { numParameters: 1, init: 1 })
    positive('PReLU', { numParameters })
    this.init = init
    this.weight = parameter(full([numParameters], init))
  }

  /** Gives the slopes their first values again. */
  resetParameters(): void {
    constant_(this.weight, this.init)
  }

  forward(x: Tensor): Tensor {
    return prelu(x, this.weight)
  }

  override extraRepr(): string {
    return `numParameters=${this.weight.numel}`
  }
}
