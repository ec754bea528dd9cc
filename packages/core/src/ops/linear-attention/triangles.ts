import { apply, type Op } from '../../dispatch/op.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { elementwise, fillLike } from '../../primitives/elementwise.ts'
import { matmulPrimitive } from '../../primitives/matmul.ts'
import { reduce } from '../../primitives/reduce.ts'
import { permuteView, reshapeView, transposeView } from '../../primitives/views.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { mul, neg } from '../pointwise.ts'
import { cat, diagonal, narrow, select, tril, unbind } from '../shape.ts'

/**
 * Lower triangular matrices put together from their diagonal by doubling: two neighbouring blocks of w and the block
 * below the first one make a block of 2w. All work is in batched products of w × w.
 */

/** The smallest power of two that is not less. */
export const powerOfTwo = (n: number): number => 2 ** Math.ceil(Math.log2(Math.max(1, n)))

/** Diagonal blocks (M, 2p, w, w) and those below (M, p, w, w) → (M, p, 2w, 2w). */
function joined(diagonals: Tensor, below: Tensor): Tensor {
  const [m, p, w] = below.shape
  const [upper, lower] = unbind(reshapeView(diagonals, [m, p, 2, w, w]), 2)
  const zero = fillLike(below)
  return cat([cat([upper, zero], 3), cat([below, lower], 3)], 2)
}

const SHIFTED = program('decay', 3, ([x, a, b]) => e.mul(x, e.exp(e.sub(a, b))))
/** x · e^{to − from} */
export const decayedBetween = (x: Tensor, to: Tensor, from: Tensor): Tensor =>
  elementwise(SHIFTED, [x, to, from])

/**
 * Σ_d q[r, d] k[c, d] e^{g[r, d] − g[c, d]} for c ≤ r, else 0: (B, H, N, C, D) → (B, H, N, C, C), C a power of two.
 *
 * The two factors e^g and e^{−g} of a naive product leave float32's range after a few strong gates. Queries of a second
 * half meet keys of the first half by way of g at the border between them, so that no exponent is positive; then each
 * half is halved again (Yang et al. 2024 stop at sub-chunks of 16 and write those out).
 */
export function gatedScores(op: string, q: Tensor, k: Tensor, g: Tensor): Tensor {
  const [b, h, n, c, d] = q.shape
  const m = b * h * n
  let blocks = reshapeView(reduce('sum', mul(q, k), [4], true), [m, c, 1, 1])
  const [query, key, gate] = [q, k, g].map((x) => reshapeView(x, [m, c, d]))
  for (let w = 1; w < c; w *= 2) {
    const halves = (x: Tensor): Tensor[] => unbind(reshapeView(x, [m, c / (2 * w), 2, w, d]), 2)
    const [early, late] = halves(gate)
    const border = narrow(early, 2, w - 1, 1)
    const [to, from] = [halves(query)[1], halves(key)[0]]
    const left = decayedBetween(to, late, border)
    const right = decayedBetween(from, border, early)
    blocks = joined(blocks, matmulPrimitive(op, left, transposeView(right, 2, 3)))
  }
  return reshapeView(blocks, [b, h, n, c, c])
}

const UNIT_INVERSE: Op<{ op: string }> = {
  name: 'unit_lower_inverse',
  compose: ([a], { op }) => {
    const n = a.shape[4]
    const m = a.shape[0] * a.shape[1] * a.shape[2]
    const matrices = reshapeView(a, [m, n, n])
    let blocks = fillLike(a, 1, [m, n, 1, 1])
    for (let w = 1; w < n; w *= 2) {
      const p = n / (2 * w)
      // Of the matrix cut into p × p blocks of 2w those on the diagonal, and of them the lower left quarter.
      const cut = reshapeView(matrices, [m, p, 2, w, p, 2, w])
      const quarters = diagonal(select(select(cut, 5, 0), 2, 1), { dim1: 1, dim2: 3 })
      const quarter = permuteView(quarters, [0, 3, 1, 2])
      const [first, second] = unbind(reshapeView(blocks, [m, p, 2, w, w]), 2)
      const right = matmulPrimitive(op, quarter, first)
      blocks = joined(blocks, neg(matmulPrimitive(op, second, right)))
    }
    return [reshapeView(blocks, a.shape)]
  },
  backward: (node, [d]) => {
    if (!d) return [null]
    const { op } = node.attrs
    const x = transposeView(node.output(0), 3, 4)
    return [neg(tril(matmulPrimitive(op, matmulPrimitive(op, x, d), x), -1))]
  },
}

/**
 * (I + A)⁻¹ for matrices A, (B, H, N, C, C) with C a power of two, of which only what lies below the diagonal counts.
 *
 * By blocks: [[X, 0], [−Z L X, Z]] is the inverse of [[X⁻¹, 0], [L, Z⁻¹]]. The product of I + A^(2^i) over i would be
 * shorter, but its powers grow like binomials where keys resemble each other, and cancel.
 */
export const unitLowerInverse = (op: string, a: Tensor): Tensor => apply(UNIT_INVERSE, [a], { op })[0]
