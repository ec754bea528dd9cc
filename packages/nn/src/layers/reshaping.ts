import { describeValue, show, type Tensor, ValueError } from '@tilegrad/core'
import { Module } from '../module/module.ts'

/** Modules that move no data, for `Sequential`. */

function whole(op: string, dims: Readonly<Record<string, unknown>>): void {
  for (const [name, dim] of Object.entries(dims))
    if (!Number.isInteger(dim))
      throw new ValueError(`${op}: ${name} must be an integer, got ${describeValue(dim)}`)
}

/**
 * Joins the dims from startDim to endDim into one, by default all but the first: (N, C, H, W) → (N, C · H · W).
 *
 * @throws ValueError for dims that are no integers; `forward` throws ShapeError for dims that x does not have.
 * @example
 * new Flatten().forward(zeros([2, 3, 4])).shape // → 2,12
 */
export class Flatten extends Module {
  /** The first dim that is joined; negative counts from the end. */
  readonly startDim: number
  /** The last dim that is joined; negative counts from the end. */
  readonly endDim: number

  constructor(startDim = 1, endDim = -1) {
    super()
    whole('Flatten', { startDim, endDim })
    this.startDim = startDim
    this.endDim = endDim
  }

  forward(x: Tensor): Tensor {
    return x.flatten(this.startDim, this.endDim)
  }

  override extraRepr(): string {
    return `startDim=${this.startDim}, endDim=${this.endDim}`
  }
}

/**
 * Splits a dim into several of the given sizes, of which one may be −1.
 *
 * @throws ValueError for what are no integers; `forward` throws ShapeError if the sizes do not make up the dim.
 * @example
 * new Unflatten(1, [3, -1]).forward(zeros([2, 12])).shape // → 2,3,4
 */
export class Unflatten extends Module {
  /** The dim that is split; negative counts from the end. */
  readonly dim: number
  /** What the dim is split into. */
  readonly sizes: readonly number[]

  constructor(dim: number, sizes: readonly number[]) {
    super()
    whole('Unflatten', { dim })
    if (!Array.isArray(sizes))
      throw new ValueError(`Unflatten: sizes are an array, got ${describeValue(sizes)}`)
    whole('Unflatten', { ...sizes })
    this.dim = dim
    this.sizes = [...sizes]
  }

  forward(x: Tensor): Tensor {
    return x.unflatten(this.dim, this.sizes)
  }

  override extraRepr(): string {
    return `dim=${this.dim}, sizes=${show(this.sizes)}`
  }
}

/**
 * Gives what it is given: a place to put something else later, or a layer that is left out.
 *
 * @example
 * new Identity().forward(zeros([2, 3])).shape // → 2,3
 */
export class Identity extends Module {
  forward<T>(x: T): T {
    return x
  }
}
