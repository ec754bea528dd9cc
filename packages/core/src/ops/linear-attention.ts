import { isFloat } from '../dtype.ts'
import { DTypeError, ShapeError, show } from '../errors.ts'
import * as e from '../expr.ts'
import { sameShape } from '../layout.ts'
import { apply, type Op } from '../op.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reduce } from '../primitives/reduce.ts'
import { transposeView } from '../primitives/views.ts'
import { program } from '../program.ts'
import type { Tensor } from '../tensor.ts'
import { add, div } from './pointwise.ts'
import { tril } from './shape.ts'

export interface LinearAttentionAttrs {
  causal: boolean
  eps: number
}

// The exponent is 0 where it is not taken, so that the gradient has no 0 · ∞.
const FEATURE = program('linear_attention.feature', 1, ([x]) =>
  e.select(e.gt(x, 0), e.add(x, 1), e.exp(e.select(e.gt(x, 0), 0, x))),
)

const LINEAR_ATTENTION: Op<LinearAttentionAttrs> = {
  name: 'linear_attention',
  infer: ([q, , v]) => {
    const [b, h, t] = q.shape
    return [
      { shape: [b, h, t, v.shape[3]], dtype: q.dtype },
      { shape: [b, h, t], dtype: q.dtype },
    ]
  },
  compose: ([q, k, v], { causal, eps }) => {
    const op = 'linear_attention'
    const query = elementwise(FEATURE, [q])
    const key = elementwise(FEATURE, [k])
    if (causal) {
      // The quadratic form is the meaning; chunked and recurrent forms are ways to compute it.
      const s = tril(matmulPrimitive(op, query, transposeView(key, 2, 3)))
      return [div(matmulPrimitive(op, s, v), add(reduce('sum', s, [3], true), eps))]
    }
    const state = matmulPrimitive(op, transposeView(key, 2, 3), v)
    const total = transposeView(reduce('sum', key, [2], true), 2, 3)
    return [div(matmulPrimitive(op, query, state), add(matmulPrimitive(op, query, total), eps))]
  },
}

/**
 * Attention with the feature map φ(x) = elu(x) + 1 in place of the softmax's exponential, in time and memory linear in
 * T (Katharopoulos et al. 2020): out_i = Σ_j φ(q_i)·φ(k_j) v_j / (Σ_j φ(q_i)·φ(k_j) + eps), over j ≤ i if causal.
 *
 * @param q (B, H, T, D)
 * @param k (B, H, S, D), S = T if causal
 * @param v (B, H, S, Dv)
 * @returns (B, H, T, Dv)
 */
export function linearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { isCausal = false, eps = 1e-6 }: { isCausal?: boolean; eps?: number } = {},
): Tensor {
  const op = 'linear_attention'
  for (const t of [q, k, v]) {
    if (!isFloat(t.dtype)) throw new DTypeError(`${op}: takes floating tensors, not ${t.dtype}`)
    if (t.rank !== 4) throw new ShapeError(`${op}: takes (B, H, T, D), got ${show(t.shape)}`)
  }
  const [b, h, t, d] = q.shape
  const s = k.shape[2]
  if (!sameShape(k.shape, [b, h, s, d]) || !sameShape(v.shape.slice(0, 3), [b, h, s])) {
    throw new ShapeError(
      `${op}: q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)} do not fit; expected (B, H, T, D), (B, H, S, D), (B, H, S, Dv)`,
    )
  }
  if (isCausal && s !== t)
    throw new ShapeError(`${op}: causal attention needs as many keys as queries, got ${s} and ${t}`)
  return apply(LINEAR_ATTENTION, [q, k, v], { causal: isCausal, eps })[0]
}
