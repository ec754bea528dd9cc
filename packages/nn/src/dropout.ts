import { describeValue, dropout, type Tensor, ValueError } from '@tilegrad/core'
import { Module } from './module.ts'

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

/** @internal */
export function probability(op: string, p: number): number {
  if (!(p >= 0 && p <= 1))
    throw new ValueError(`${op}: the dropout probability must lie within 0 … 1, got ${describeValue(p)}`)
  return p
}
