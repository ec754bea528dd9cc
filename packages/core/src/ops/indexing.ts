import { describe, expectInt, expectOptions } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { fill, fillLike } from '../primitives/elementwise.ts'
import { gatherPrimitive, scatterAddPrimitive } from '../primitives/indexing.ts'
import { expandView, reshapeView } from '../primitives/views.ts'
import { wrapDim } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { ne, where } from './pointwise.ts'

/**
 * Takes x's elements at `index`, an int32 tensor of as many dims as x, along dim: out[i][j] = x[i][index[i][j]]
 * for dim 1. The result has the shape of the index.
 *
 * @throws ShapeError if index does not fit x, DTypeError unless it is int32, ValueError for an index beyond the
 * dim.
 * @example
 * const index = tensor([[1], [0]], { dtype: 'int32' })
 * await tensor([[1, 2], [3, 4]]).gather(1, index).toArray() // → [[2], [3]]
 */
export function gather(x: Tensor, dim: number, at: Tensor | ArrayOperand): Tensor {
  x = asTensor('gather', x)
  const index = asTensor('gather', at, x, 'int32')
  const d = wrapDim('gather', dim, x.rank)
  // As in PyTorch an empty index picks nothing, whatever its rank.
  if (index.numel === 0) return fillLike(x, 0, index.shape)
  if (x.rank === 0 || index.rank === 0) {
    const out = gatherPrimitive('gather', reshapeView(x, [x.numel]), 0, reshapeView(index, [index.numel]))
    return reshapeView(out, index.shape)
  }
  return gatherPrimitive('gather', x, d, index)
}

/**
 * Copies x and adds the elements of `source` at `index`, an int32 tensor of source's shape, along dim: the adjoint
 * of `gather`.
 *
 * @throws ShapeError if the shapes do not fit, DTypeError unless index is int32, ValueError for an index beyond
 * the dim.
 * @example
 * const index = tensor([0, 0, 1], { dtype: 'int32' })
 * await zeros([2]).scatterAdd(0, index, tensor([1, 2, 3])).toArray() // → [3, 3]
 */
export function scatterAdd(
  x: Tensor,
  dim: number,
  at: Tensor | ArrayOperand,
  values: Tensor | ArrayOperand,
): Tensor {
  x = asTensor('scatter_add', x)
  const index = asTensor('scatter_add', at, x, 'int32')
  const source = asTensor('scatter_add', values, x)
  const d = wrapDim('scatter_add', dim, x.rank)
  if (x.rank === 0 || index.rank === 0) {
    const flat = (t: Tensor): Tensor => reshapeView(t, [t.numel])
    return reshapeView(scatterAddPrimitive('scatter_add', flat(x), 0, flat(index), flat(source)), x.shape)
  }
  return scatterAddPrimitive('scatter_add', x, d, index, source)
}

/**
 * Takes the parts of x at the positions of a one-dimensional int32 index along dim.
 *
 * @throws ShapeError if index has more than one dim, DTypeError unless it is int32, ValueError for an index beyond
 * the dim.
 * @example
 * const index = tensor([1, 1], { dtype: 'int32' })
 * await tensor([[1, 2], [3, 4]]).indexSelect(0, index).toArray() // → [[3, 4], [3, 4]]
 */
export function indexSelect(x: Tensor, dim: number, at: Tensor | ArrayOperand): Tensor {
  x = asTensor('index_select', x)
  const index = asTensor('index_select', at, x, 'int32')
  const d = wrapDim('index_select', dim, x.rank)
  if (index.rank > 1) throw new ShapeError(`index_select: index must have one dim, got ${show(index.shape)}`)
  if (x.rank === 0) return reshapeView(gather(reshapeView(x, [1]), 0, reshapeView(index, [index.numel])), [])
  const spread = reshapeView(
    index,
    x.shape.map((_, i) => (i === d ? index.numel : 1)),
  )
  return gatherPrimitive(
    'index_select',
    x,
    d,
    expandView('index_select', spread, x.shape.with(d, index.numel)),
  )
}

/** What decides how rows are taken, beside the tensors. */
export interface EmbeddingAttrs {
  /** The row that learns nothing, or null. */
  readonly paddingIdx: number | null
}

declare module '../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Rows of a matrix by their indices. */
    readonly embedding?: KernelOf<EmbeddingAttrs>
    /** The gradient of an embedding's matrix. */
    readonly embeddingBackward?: KernelOf<GradientAttrs<EmbeddingAttrs>>
  }
}

const EMBEDDING: Op<EmbeddingAttrs> = {
  name: 'embedding',
  kernel: (kernels) => kernels.embedding,
  gradient: (kernels) => kernels.embeddingBackward,
  unread: true,
  validate: ([weight, index], { paddingIdx }) => {
    if (weight.rank !== 2)
      throw new ShapeError(
        `embedding: weight must be [numEmbeddings, embeddingDim], got ${show(weight.shape)}`,
      )
    expectInt('embedding', 'indices', index.dtype)
    const v = weight.shape[0]
    if (paddingIdx !== null && !(Number.isInteger(paddingIdx) && paddingIdx >= 0 && paddingIdx < v))
      throw new ValueError(`embedding: paddingIdx ${paddingIdx} must lie within −${v} … ${v - 1}`)
  },
  infer: ([weight, index]) => [{ shape: [...index.shape, weight.shape[1]], dtype: weight.dtype }],
  compose: ([weight, index], { paddingIdx }) => {
    const [, d] = weight.shape
    const column = reshapeView(index, [index.numel, 1])
    const spread = expandView('embedding', column, [index.numel, d])
    const rows = gatherPrimitive('embedding', weight, 0, spread)
    // The padding row is read as any other but learns nothing.
    const out = paddingIdx === null ? rows : where(ne(column, paddingIdx), rows, rows.detach())
    return [reshapeView(out, [...index.shape, d])]
  },
}

/** Options of `embedding`. */
export interface EmbeddingCallOptions {
  /** A row whose gradient is zero; negative counts from the end. Default: none (null). */
  paddingIdx?: number | null
}

/**
 * Takes rows of weight (V, D) at int32 indices of any shape: (…) → (…, D).
 *
 * @throws ValueError for an index outside 0 … V − 1, DTypeError unless indices are int32, ShapeError unless weight
 * is a matrix.
 * @example
 * const index = tensor([2, 0], { dtype: 'int32' })
 * await embedding(index, tensor([[1, 2], [3, 4], [5, 6]])).toArray() // → [[5, 6], [1, 2]]
 */
export function embedding(
  index: Tensor | ArrayOperand,
  weight: Tensor,
  options: EmbeddingCallOptions = {},
): Tensor {
  weight = asTensor('embedding', weight)
  const { paddingIdx = null } = expectOptions('embedding', options, { paddingIdx: 1 })
  return apply(EMBEDDING, [weight, asTensor('embedding', index, weight, 'int32')], {
    paddingIdx: paddingIdx !== null && paddingIdx < 0 ? paddingIdx + weight.shape[0] : paddingIdx,
  })[0]
}

/**
 * Makes one row of zeros and a one per int32 index: (…) → (…, numClasses), int32.
 *
 * @throws DTypeError unless indices are int32; ValueError for an index outside 0 … numClasses − 1 where the engine can
 * look: a GPU makes a row of zeros of it.
 * @example
 * await oneHot(tensor([2, 0], { dtype: 'int32' }), 3).toArray() // → [[0, 0, 1], [1, 0, 0]]
 */
export function oneHot(at: Tensor | ArrayOperand, numClasses: number): Tensor {
  const index = asTensor('one_hot', at, undefined, 'int32')
  if (!Number.isInteger(numClasses) || numClasses < 0)
    throw new ValueError(`one_hot: numClasses must be a whole number ≥ 0, got ${describe(numClasses)}`)
  expectInt('one_hot', 'indices', index.dtype)
  return apply(ONE_HOT, [index], { numClasses })[0]
}

const ONE_HOT: Op<{ numClasses: number }> = {
  name: 'one_hot',
  compose: ([index], { numClasses }) => {
    const at = reshapeView(index, [index.numel, 1])
    const filled = (shape: readonly number[], value: number): Tensor =>
      fill(index.backend, shape, value, 'int32')
    const rows = scatterAddPrimitive(
      'one_hot',
      filled([index.numel, numClasses], 0),
      1,
      at,
      filled(at.shape, 1),
    )
    return [reshapeView(rows, [...index.shape, numClasses])]
  },
}
