import {
  apply,
  describeValue,
  dropout,
  type Op,
  ones,
  ShapeError,
  show,
  type Tensor,
  ValueError,
} from '@tilegrad/core'
import { Module } from '../module/module.ts'

/**
 * While training, sets each element to 0 with probability p and divides the others by 1 − p (Srivastava et al. 2014);
 * in evaluation mode does nothing. Keeps the shape.
 *
 * @throws ValueError unless 0 ≤ p ≤ 1.
 * @example
 * const layer = new Dropout(0.2)
 * const noisy = layer.forward(ones([4])) // zeros and 1.25s
 * await layer.eval().forward(ones([4])).toArray() // → 1,1,1,1
 */
export class Dropout extends Module {
  /** The probability of an element to become 0. */
  readonly p: number

  constructor(p = 0.5) {
    super()
    this.p = probability('Dropout', p)
  }

  forward(x: Tensor): Tensor {
    return dropout(x, this.p, this.training)
  }

  override extraRepr(): string {
    return `p=${this.p}`
  }
}

/** Multiplies whole channels, of as many last dims, by 0 or by 1 / (1 − p). */
const CHANNELS: Op<{ p: number; dims: number }> = {
  name: 'dropout',
  compose: ([x], { p, dims }) => {
    const shape = x.shape.map((size, d) => (d < x.rank - dims ? size : 1))
    return [x.mul(dropout(ones(shape, { dtype: x.dtype, device: x.backend }), p))]
  },
}

/**
 * While training, sets whole channels of x (N, C, L) or (C, L) to 0 with probability p and divides the others by 1 − p
 * (Tompson et al. 2015); in evaluation mode does nothing. Keeps the shape.
 *
 * @throws ValueError unless 0 ≤ p ≤ 1; `forward` throws ShapeError for other ranks.
 * @example
 * new Dropout1d(0.2).forward(randn([2, 3, 8])).shape // → 2,3,8
 */
export class Dropout1d extends Dropout {
  override forward(x: Tensor): Tensor {
    if (x.rank !== 2 && x.rank !== 3)
      throw new ShapeError(`Dropout1d: expected (N, C, L) or (C, L), got ${show(x.shape)}`)
    return this.training && this.p > 0 ? (apply(CHANNELS, [x], { p: this.p, dims: 1 })[0] as Tensor) : x
  }
}

/**
 * While training, sets whole channels of x (N, C, H, W) to 0 with probability p and divides the others by 1 − p (Tompson
 * et al. 2015); in evaluation mode does nothing. Keeps the shape.
 *
 * @throws ValueError unless 0 ≤ p ≤ 1; `forward` throws ShapeError for other ranks.
 * @example
 * new Dropout2d(0.2).forward(randn([2, 3, 8, 8])).shape // → 2,3,8,8
 */
export class Dropout2d extends Dropout {
  override forward(x: Tensor): Tensor {
    if (x.rank !== 4)
      throw new ShapeError(
        `Dropout2d: expected (N, C, H, W), got ${show(x.shape)}; of (N, C, L) it is Dropout1d, of one image x.unsqueeze(0)`,
      )
    return this.training && this.p > 0 ? (apply(CHANNELS, [x], { p: this.p, dims: 2 })[0] as Tensor) : x
  }
}

/** @internal */
export function probability(op: string, p: number): number {
  if (!(p >= 0 && p <= 1))
    throw new ValueError(`${op}: the dropout probability must lie within 0 … 1, got ${describeValue(p)}`)
  return p
}
