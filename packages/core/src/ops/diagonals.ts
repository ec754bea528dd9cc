import { ShapeError, show } from '../errors.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { sum } from './reduction.ts'
import { diagonal, narrow, pad, reshape } from './shape.ts'

/** Diagonals: taken from matrices, summed, and made into matrices. */

/**
 * Adds up the main diagonal of a matrix [m, n], as a 0-d tensor.
 *
 * @throws ShapeError if x is no matrix.
 * @example
 * await trace(tensor([[1, 2], [3, 4]])).item() // → 5
 */
export function trace(x: Tensor): Tensor {
  const from = asTensor('trace', x)
  if (from.rank !== 2) throw new ShapeError(`trace: takes a matrix, got ${show(from.shape)}`)
  return sum(diagonal(from))
}

/**
 * Takes a diagonal of a matrix [m, n] as a vector; or makes of a vector [n] the matrix [n + |d|, n + |d|] that has it
 * as its diagonal and 0 elsewhere. Diagonals d > 0 lie above the main one, d < 0 below.
 *
 * @throws ShapeError if x is neither a vector nor a matrix.
 * @example
 * await diag(tensor([1, 2])).toArray() // → [[1, 0], [0, 2]]
 * await diag(tensor([[1, 2], [3, 4]]), 1).toArray() // → [2]
 */
export function diag(x: Tensor, d = 0): Tensor {
  const from = asTensor('diag', x)
  if (from.rank === 2) return diagonal(from, { offset: d })
  if (from.rank !== 1) throw new ShapeError(`diag: takes a vector or a matrix, got ${show(from.shape)}`)
  const n = from.numel
  // n zeros after each element put the next one a column further in rows of n.
  const square = reshape(narrow(reshape(pad(reshape(from, [n, 1]), [0, n]), [n * (n + 1)]), 0, 0, n * n), [
    n,
    n,
  ])
  return d > 0 ? pad(square, [d, 0, 0, d]) : d < 0 ? pad(square, [0, -d, -d, 0]) : square
}
