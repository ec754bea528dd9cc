import { describe, expectOptions } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr.ts'
import { numel, sameShape } from '../layout.ts'
import { type ArrayOperand, asTensor, tensorsOf } from '../operands.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reduce } from '../primitives/reduce.ts'
import { expandView, permuteView, reshapeView } from '../primitives/views.ts'
import { program } from '../program.ts'
import type { Tensor } from '../tensor.ts'
import { add, mul } from './pointwise.ts'
import { diagonal } from './shape.ts'

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

/**
 * Sums products by Einstein's convention. Letters name dims, a repeated letter in one operand takes its diagonal,
 * letters missing from the output are summed, `...` stands for broadcast dims; without `->` the output has the
 * letters that appear once, in alphabetical order.
 *
 * @throws ValueError for a malformed equation, ShapeError where sizes differ.
 * @example
 * einsum('bij,bjk->bik', randn([5, 2, 3]), randn([5, 3, 4])).shape // → [5, 2, 4]
 */
export function einsum(equation: string, ...tensors: readonly Tensor[]): Tensor {
  if (typeof equation !== 'string')
    throw new ValueError(`einsum: takes an equation such as 'ij,jk->ik' first, got ${describe(equation)}`)
  const operands = tensorsOf(
    'einsum',
    tensors.length === 1 && Array.isArray(tensors[0]) ? tensors[0] : tensors,
  )
  const { inputs, output } = parse(equation, operands)
  const sizes = new Map<string, number>()
  const terms = operands.map((t, i) => {
    let [letters, x] = [inputs[i], t]
    // A letter twice in one operand: its diagonal, as a last dim.
    for (let again = repeated(letters); again; again = repeated(letters)) {
      const [a, b] = again
      if (x.shape[a] !== x.shape[b])
        throw new ShapeError(
          `einsum: '${letters[a]}' repeats with sizes ${x.shape[a]} and ${x.shape[b]} in ${show(t.shape)}`,
        )
      const letter = letters[a]
      x = diagonal(x, { dim1: a, dim2: b })
      letters = [...letters.filter((_, d) => d !== a && d !== b), letter]
    }
    letters.forEach((l, d) => {
      const have = sizes.get(l) ?? 1
      if (have !== 1 && x.shape[d] !== 1 && have !== x.shape[d])
        throw new ShapeError(`einsum: '${l}' has sizes ${have} and ${x.shape[d]} in '${equation}'`)
      sizes.set(l, Math.max(have, x.shape[d] === 0 ? 0 : x.shape[d]))
      if (x.shape[d] === 0) sizes.set(l, 0)
    })
    return { letters, x }
  })
  let left: Term = terms[0]
  for (let i = 1; i < terms.length; i++) {
    const later = new Set([...output, ...terms.slice(i + 1).flatMap((t) => t.letters)])
    left = contract(left, terms[i], later)
  }
  left = sumOut(left, new Set(output))
  const missing = output.filter((l) => !left.letters.includes(l))
  if (missing.length > 0)
    throw new ValueError(`einsum: output letter '${missing[0]}' is in no operand of '${equation}'`)
  return permuteView(
    left.x,
    output.map((l) => left.letters.indexOf(l)),
  )
}

interface Term {
  letters: readonly string[]
  x: Tensor
}

/** Letters of operands and output, with `...` spelled out as private letters, aligned at the right. */
function parse(equation: string, operands: readonly Tensor[]): { inputs: string[][]; output: string[] } {
  const [lhs, rhs] = equation.replaceAll(' ', '').split('->')
  const parts = lhs.split(',')
  if (!/^[A-Za-z.,]*(->[A-Za-z.]*)?$/.test(equation.replaceAll(' ', '')))
    throw new ValueError(`einsum: '${equation}' holds characters other than letters, ',', '...' and '->'`)
  if (parts.length !== operands.length)
    throw new ValueError(`einsum: '${equation}' has ${parts.length} operands, ${operands.length} were given`)
  const spread = (part: string, rank: number): string[] => {
    const [before, after, more] = part.split('...')
    if (more !== undefined || before.includes('.') || after?.includes('.'))
      throw new ValueError(`einsum: '${part}' in '${equation}' is malformed`)
    if (after === undefined) return [...before]
    const n = rank - before.length - after.length
    if (n < 0) throw new ShapeError(`einsum: '${part}' names more dims than the operand's ${rank}`)
    return [...before, ...Array.from({ length: n }, (_, i) => `.${n - 1 - i}`), ...after]
  }
  const inputs = parts.map((p, i) => spread(p, operands[i].rank))
  inputs.forEach((letters, i) => {
    if (letters.length !== operands[i].rank)
      throw new ShapeError(
        `einsum: '${parts[i]}' names ${letters.length} dims, the operand ${show(operands[i].shape)} has ${operands[i].rank}`,
      )
  })
  const dots = [...new Set(inputs.flat().filter((l) => l.startsWith('.')))].sort(
    (a, b) => Number(b.slice(1)) - Number(a.slice(1)),
  )
  if (rhs === undefined) {
    const all = inputs.flat()
    return {
      inputs,
      output: [
        ...dots,
        ...[...new Set(all)]
          .filter((l) => !l.startsWith('.') && all.indexOf(l) === all.lastIndexOf(l))
          .sort(),
      ],
    }
  }
  const output = rhs.includes('...') ? spread(rhs, rhs.length - 3 + dots.length) : [...rhs]
  if (new Set(output).size !== output.length) throw new ValueError(`einsum: output '${rhs}' repeats a letter`)
  return { inputs, output }
}

function repeated(letters: readonly string[]): [number, number] | null {
  for (let i = 0; i < letters.length; i++) {
    const j = letters.indexOf(letters[i], i + 1)
    if (j > 0) return [i, j]
  }
  return null
}

function sumOut({ letters, x }: Term, keep: ReadonlySet<string>): Term {
  const dims = letters.flatMap((l, d) => (keep.has(l) ? [] : [d]))
  return dims.length === 0
    ? { letters, x }
    : { letters: letters.filter((l) => keep.has(l)), x: reduce('sum', x, dims, false) }
}

/** Two operands as one batched matrix product: shared kept letters are the batch, shared summed ones the inner dim. */
function contract(a: Term, b: Term, later: ReadonlySet<string>): Term {
  const left = sumOut(a, new Set([...later, ...b.letters]))
  const right = sumOut(b, new Set([...later, ...a.letters]))
  const shared = left.letters.filter((l) => right.letters.includes(l))
  const batch = shared.filter((l) => later.has(l))
  const inner = shared.filter((l) => !later.has(l))
  const onlyA = left.letters.filter((l) => !shared.includes(l))
  const onlyB = right.letters.filter((l) => !shared.includes(l))
  const size = (l: string): number => {
    const [p, q] = [left.letters.indexOf(l), right.letters.indexOf(l)]
    const [m, n] = [p < 0 ? 1 : left.x.shape[p], q < 0 ? 1 : right.x.shape[q]]
    return m === 1 ? n : m
  }
  const arrange = (t: Term, groups: readonly (readonly string[])[]): Tensor => {
    const order = groups.flat()
    const moved = permuteView(
      t.x,
      order.map((l) => t.letters.indexOf(l)),
    )
    const full = order.map(size)
    const grown = sameShape(moved.shape, full) ? moved : expandView('einsum', moved, full)
    return reshapeView(
      grown,
      groups.map((g) => g.reduce((p, l) => p * size(l), 1)),
    )
  }
  const x = matmulPrimitive(
    'einsum',
    arrange(left, [batch, onlyA, inner]),
    arrange(right, [batch, inner, onlyB]),
  )
  const letters = [...batch, ...onlyA, ...onlyB]
  return { letters, x: reshapeView(x, letters.map(size)) }
}
