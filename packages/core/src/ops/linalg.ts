import { expectOptions } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reshapeView } from '../primitives/views.ts'
import { numel } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor, tensorsOf } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { add, mul } from './pointwise.ts'

/**
 * Multiplies matrices: (…, M, K) · (…, K, N) → (…, M, N), with batch dims that broadcast. A vector counts as a row
 * on the left and as a column on the right.
 *
 * @throws ShapeError if the inner dimensions differ or an operand is a scalar.
 * @example
 * randn([8, 3, 4]).matmul(randn([4, 5])).shape // → [8, 3, 5]
 * await tensor([1, 2]).matmul(tensor([3, 4])).item() // → 11
 */
export function matmul(a: Tensor, b: Tensor | ArrayOperand): Tensor {
  ;[a, b] = tensorsOf('matmul', [a, b])
  if (a.rank === 0 || b.rank === 0)
    throw new ShapeError(
      `matmul: takes vectors and matrices, got ${show(a.shape)} × ${show(b.shape)}; use mul for scalars`,
    )
  if (a.rank === 1 && b.rank === 1)
    return reshapeView(
      matmulPrimitive('matmul', reshapeView(a, [1, a.numel]), reshapeView(b, [b.numel, 1])),
      [],
    )
  if (a.rank === 1) {
    const out = matmulPrimitive('matmul', reshapeView(a, [1, a.numel]), b)
    return reshapeView(out, out.shape.toSpliced(-2, 1))
  }
  if (b.rank === 1) {
    const out = matmul(a, reshapeView(b, [b.numel, 1]))
    return reshapeView(out, out.shape.slice(0, -1))
  }
  if (b.rank === 2 && a.rank > 2) {
    // One tall product instead of a batch: also its gradients stay matrices.
    const [k] = a.shape.slice(-1)
    const rows = numel(a.shape.slice(0, -1))
    const tall = k === b.shape[0] ? reshapeView(a, [rows, k]) : a
    return reshapeView(matmulPrimitive('matmul', tall, b), [...a.shape.slice(0, -1), b.shape[1]])
  }
  return matmulPrimitive('matmul', a, b)
}

function ranks(op: string, a: Tensor, b: Tensor, rank: number): void {
  asTensor(op, a)
  asTensor(op, b)
  if (a.rank !== rank || b.rank !== rank)
    throw new ShapeError(
      `${op}: takes tensors of rank ${rank}, got ${show(a.shape)} × ${show(b.shape)}; use matmul`,
    )
}

/**
 * Multiplies two matrices, (M, K) · (K, N) → (M, N).
 *
 * @throws ShapeError unless both are matrices and the inner dimensions agree.
 * @example
 * randn([2, 3]).mm(randn([3, 4])).shape // → [2, 4]
 */
export function mm(a: Tensor, b: Tensor): Tensor {
  ranks('mm', a, b, 2)
  return matmulPrimitive('mm', a, b)
}

/**
 * Multiplies two batches of matrices, (B, M, K) · (B, K, N) → (B, M, N).
 *
 * @throws ShapeError unless both are batches of equal size and the inner dimensions agree.
 * @example
 * randn([5, 2, 3]).bmm(randn([5, 3, 4])).shape // → [5, 2, 4]
 */
export function bmm(a: Tensor, b: Tensor): Tensor {
  ranks('bmm', a, b, 3)
  if (a.shape[0] !== b.shape[0])
    throw new ShapeError(`bmm: batch sizes differ: ${show(a.shape)} × ${show(b.shape)}`)
  return matmulPrimitive('bmm', a, b)
}

/**
 * Multiplies a matrix and a vector, (M, K) · (K) → (M).
 *
 * @throws ShapeError for other ranks, or if the inner dimensions differ.
 * @example
 * await tensor([[1, 2], [3, 4]]).mv(tensor([1, 1])).toArray() // → [3, 7]
 */
export function mv(a: Tensor, b: Tensor): Tensor {
  ;[a, b] = tensorsOf('mv', [a, b])
  if (a.rank !== 2 || b.rank !== 1)
    throw new ShapeError(`mv: takes a matrix and a vector, got ${show(a.shape)} × ${show(b.shape)}`)
  return matmul(a, b)
}

/**
 * Takes the inner product of two vectors, (K) · (K) → a scalar.
 *
 * @throws ShapeError unless both are vectors of one size.
 * @example
 * await tensor([1, 2]).dot(tensor([3, 4])).item() // → 11
 */
export function dot(a: Tensor, b: Tensor): Tensor {
  ranks('dot', a, b, 1)
  return matmul(a, b)
}

const BLEND = program('addmm', 2, ([x, y], [beta, alpha]) => e.add(e.mul(beta, x), e.mul(alpha, y)), 2)

/** Options of `addmm` and `baddbmm`. */
export interface Scale {
  /** What x is multiplied by; 0 ignores it altogether, NaN included. Default: 1. */
  beta?: number
  /** What the product is multiplied by. Default: 1. */
  alpha?: number
}

function blend(x: Tensor, y: Tensor, scale: Scale): Tensor {
  const { beta = 1, alpha = 1 } = expectOptions('addmm', scale, { beta: 1, alpha: 1 })
  if (alpha === 1 && beta === 1) return add(x, y)
  // beta 0 ignores x altogether, NaN included, as in PyTorch.
  return beta === 0 ? mul(y, alpha) : elementwise(BLEND, [x, y], [beta, alpha])
}

/**
 * Takes beta · x + alpha · (a · b) for matrices (M, K) and (K, N); x broadcasts to (M, N).
 *
 * @throws ShapeError if the sizes do not fit.
 * @example
 * await ones([2]).addmm(tensor([[1, 2]]), tensor([[1, 0], [0, 1]])).toArray() // → [[2, 3]]
 */
export const addmm = (x: Tensor, a: Tensor, b: Tensor, scale: Scale = {}): Tensor => blend(x, mm(a, b), scale)

/**
 * Takes beta · x + alpha · (a · b) for batches of matrices (B, M, K) and (B, K, N); x broadcasts to (B, M, N).
 *
 * @throws ShapeError if the sizes do not fit.
 * @example
 * zeros([1]).baddbmm(ones([5, 2, 3]), ones([5, 3, 4])).shape // → [5, 2, 4]
 */
export const baddbmm = (x: Tensor, a: Tensor, b: Tensor, scale: Scale = {}): Tensor =>
  blend(x, bmm(a, b), scale)

/**
 * Takes all products a[i] · b[j] of two vectors, (N), (M) → (N, M).
 *
 * @throws ShapeError unless both are vectors.
 * @example
 * await tensor([1, 2]).outer(tensor([3, 4])).toArray() // → [[3, 4], [6, 8]]
 */
export function outer(a: Tensor, b: Tensor): Tensor {
  ranks('outer', a, b, 1)
  return mul(reshapeView(a, [a.numel, 1]), reshapeView(b, [1, b.numel]))
}
