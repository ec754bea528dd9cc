import { describe, expectFloat } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ValueError } from '../errors.ts'
import { promote } from '../tensor/dtype.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { rootOfSquares } from './centred.ts'
import { add, square } from './pointwise.ts'
import { sum } from './reduction.ts'

declare module '../dispatch/kernels.ts' {
  interface FusedKernels {
    /** The Euclidean norm of all elements of all inputs. */
    readonly total_norm?: KernelOf<object>
  }
}

const TOTAL_NORM: Op<object> = {
  name: 'total_norm',
  kernel: (kernels) => kernels.total_norm,
  validate: (xs) => {
    for (const x of xs) expectFloat('total_norm', x.dtype)
  },
  flops: (xs) => xs.reduce((n, x) => n + 2 * x.shape.reduce((a, b) => a * b, 1), 0),
  infer: (xs) => [{ shape: [], dtype: xs.map((x) => x.dtype).reduce(promote) }],
  compose: (xs) => [rootOfSquares(xs.map((x) => sum(square(x))).reduce((a, b) => add(a, b)))],
}

/**
 * The Euclidean norm of all elements of all tensors together, √Σₖ Σ xₖ²: that of `clipGradNorm`, PyTorch's
 * get_total_norm. Its gradient is 0 where all elements are 0.
 *
 * @param tensors one or more, of any shapes
 * @returns a scalar
 * @throws ValueError for an empty list, DTypeError for integers.
 * @example
 * totalNorm([tensor([3]), tensor([[4]])]).dataSync() // → 5
 */
export function totalNorm(tensors: readonly Tensor[]): Tensor {
  if (!Array.isArray(tensors))
    throw new ValueError(`total_norm: takes an array of tensors, got ${describe(tensors)}`)
  if (tensors.length === 0) throw new ValueError('total_norm: got no tensors')
  return apply(TOTAL_NORM, tensors, {})[0]
}
