import { addMethods } from '../add-methods.ts'
import { expectOptions } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'
import { copy } from '../primitives/elementwise.ts'
import { reshapeView } from '../primitives/views.ts'
import { numel, wrapDim } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import { arange } from './create.ts'
import { matmul } from './linalg.ts'
import { eq, mul, sub, where } from './pointwise.ts'
import { sum } from './reduction.ts'
import { diagonal, movedim, permute, stack } from './shape.ts'

/** Operators on matrices that are compositions: diagonals and products. */

/**
 * Makes a matrix with x on a diagonal and 0 elsewhere, of a vector; of a matrix it takes the diagonal, as a view.
 *
 * @throws ShapeError unless x has one or two dims.
 * @example
 * await tensor([1, 2]).diag().toArray() // → [[1, 0], [0, 2]]
 * await tensor([[1, 2], [3, 4]]).diag().toArray() // → [1, 4]
 */
export function diag(x: Tensor, offset = 0): Tensor {
  x = asTensor('diag', x)
  if (x.rank === 2) return diagonal(x, { offset })
  if (x.rank === 1) return diagEmbed(x, { offset })
  throw new ShapeError(`diag: takes a vector or a matrix, got ${show(x.shape)}`)
}

/** Options of `diagEmbed`. */
export interface DiagEmbedOptions {
  /** The number of the diagonal: 0 is the main one, those above 0 lie above it. Default: 0. */
  offset?: number
}

/**
 * Makes matrices with the last dim of x on a diagonal and 0 elsewhere: (…, N) → (…, N + |offset|, N + |offset|).
 *
 * @throws ShapeError for a scalar.
 * @example
 * await tensor([1, 2]).diagEmbed().toArray() // → [[1, 0], [0, 2]]
 */
export function diagEmbed(x: Tensor, options: DiagEmbedOptions = {}): Tensor {
  const { offset = 0 } = expectOptions('diag_embed', options, { offset: 1 })
  x = asTensor('diag_embed', x)
  if (x.rank === 0) throw new ShapeError('diag_embed: a scalar has no dims')
  const n = x.shape[x.rank - 1] + Math.abs(offset)
  return composed(
    'diag_embed',
    [x],
    ([t]) => {
      const own = x.shape[x.rank - 1]
      const places = arange(0, n, 1, { device: t.backend })
      const [rows, columns] = [reshapeView(places, [n, 1]), reshapeView(places, [1, n])]
      // Along the diagonal rows, above it, and columns, below it, count the elements of x.
      const padded = t.pad(offset >= 0 ? [0, n - own] : [0, n - own])
      const along = reshapeView(padded, [...x.shape.slice(0, -1), ...(offset >= 0 ? [n, 1] : [1, n])])
      return [copy(where(eq(sub(columns, rows), offset), along, 0), t.dtype)]
    },
    true,
  )[0]
}

/**
 * Adds the elements of the main diagonal of a matrix.
 *
 * @throws ShapeError unless x is a matrix.
 * @example
 * await tensor([[1, 2], [3, 4]]).trace().item() // → 5
 */
export function trace(x: Tensor): Tensor {
  x = asTensor('trace', x)
  if (x.rank !== 2) throw new ShapeError(`trace: takes a matrix, got ${show(x.shape)}`)
  return sum(diagonal(x))
}

/**
 * Takes the Kronecker product: every element of a times all of b, in blocks.
 *
 * @example
 * await kron(tensor([1, 2]), tensor([1, 10])).toArray() // → [1, 10, 2, 20]
 */
export function kron(a: Tensor, b: Tensor | ArrayOperand): Tensor {
  a = asTensor('kron', a)
  return composed('kron', [a, asTensor('kron', b, a)], ([x, y]) => {
    const rank = Math.max(x.rank, y.rank)
    const sizes = (t: Tensor): number[] => [...new Array<number>(rank - t.rank).fill(1), ...t.shape]
    const [p, q] = [sizes(x), sizes(y)]
    const blocks = mul(
      reshapeView(
        x,
        p.flatMap((n) => [n, 1]),
      ),
      reshapeView(
        y,
        q.flatMap((n) => [1, n]),
      ),
    )
    return [
      reshapeView(
        blocks,
        p.map((n, d) => n * q[d]),
      ),
    ]
  })[0]
}

const meet = (m: number, n: number): boolean => m === n || m === 1 || n === 1

/** x, added up over those of its dims whose partner has size 1. */
const narrowed = (x: Tensor, mine: readonly number[], y: Tensor, theirs: readonly number[]): Tensor => {
  const over = mine.filter((d, i) => x.shape[d] > 1 && y.shape[theirs[i]] === 1)
  return over.length > 0 ? sum(x, over, { keepdim: true }) : x
}

/**
 * Multiplies over several dims at once: the last `dims` of a with the first of b, or the listed ones of each.
 *
 * @throws ShapeError if their sizes differ.
 * @example
 * tensordot(zeros([2, 3, 4]), zeros([3, 4, 5]), 2).shape // → [2, 5]
 * tensordot(zeros([2, 3]), zeros([5, 2]), [[0], [1]]).shape // → [3, 5]
 */
export function tensordot(
  a: Tensor,
  b: Tensor | ArrayOperand,
  dims: number | readonly [readonly number[], readonly number[]] = 2,
): Tensor {
  const op = 'tensordot'
  a = asTensor(op, a)
  const other = asTensor(op, b, a)
  if (typeof dims === 'number' && (dims > Math.min(a.rank, other.rank) || dims < 0))
    throw new ShapeError(
      `${op}: ${show(a.shape)} and ${show(other.shape)} have no ${dims} dims to multiply over`,
    )
  const count = typeof dims === 'number' ? Array.from({ length: dims }, (_, i) => i) : []
  const [mine, theirs] =
    typeof dims === 'number'
      ? [count.map((i) => a.rank - dims + i), count]
      : [dims[0].map((d) => wrapDim(op, d, a.rank)), dims[1].map((d) => wrapDim(op, d, other.rank))]
  if (mine.length !== theirs.length || mine.some((d, i) => !meet(a.shape[d], other.shape[theirs[i]])))
    throw new ShapeError(
      `${op}: dims ${show(mine)} of ${show(a.shape)} and ${show(theirs)} of ${show(other.shape)} differ`,
    )
  return composed(op, [a, other], ([p0, q0]) => {
    // Where one has size 1 the other is added up.
    const [x, y] = [narrowed(p0, mine, q0, theirs), narrowed(q0, theirs, p0, mine)]
    const rest = (t: Tensor, used: readonly number[]): number[] =>
      t.shape.map((_, d) => d).filter((d) => !used.includes(d))
    const [p, q] = [rest(x, mine), rest(y, theirs)]
    const [m, n] = [p.map((d) => x.shape[d]), q.map((d) => y.shape[d])]
    const k = numel(mine.map((d) => x.shape[d]))
    const left = reshapeView(permute(x, [...p, ...mine]), [numel(m), k])
    const right = reshapeView(permute(y, [...theirs, ...q]), [k, numel(n)])
    return [reshapeView(matmul(left, right), [...m, ...n])]
  })[0]
}

/**
 * Takes the cross product of vectors of three along a dim, by default the last. Shapes broadcast.
 *
 * @throws ShapeError unless the dim has three elements.
 * @example
 * await cross(tensor([1, 0, 0]), tensor([0, 1, 0])).toArray() // → [0, 0, 1]
 */
export function cross(a: Tensor, b: Tensor | ArrayOperand, dim = -1): Tensor {
  a = asTensor('cross', a)
  const other = asTensor('cross', b, a)
  const d = wrapDim('cross', dim, a.rank)
  if (a.shape[d] !== 3 || other.shape[wrapDim('cross', dim, other.rank)] !== 3)
    throw new ShapeError(
      `cross: dim ${dim} of ${show(a.shape)} and ${show(other.shape)} must have 3 elements`,
    )
  return composed('cross', [a, other], ([x, y]) => {
    const [u, v] = [movedim(x, dim, 0), movedim(y, dim, 0)]
    const part = (i: number, j: number): Tensor =>
      sub(mul(u.select(0, i), v.select(0, j)), mul(u.select(0, j), v.select(0, i)))
    return [movedim(stack([part(1, 2), part(2, 0), part(0, 1)]), 0, dim)]
  })[0]
}

addMethods({ diag, diagEmbed, trace, kron, tensordot, cross })
