import { describe } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reduce } from '../primitives/reduce.ts'
import { expandView, permuteView, reshapeView } from '../primitives/views.ts'
import { sameShape } from '../tensor/layout.ts'
import { tensorsOf } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { diagonal } from './shape.ts'

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
