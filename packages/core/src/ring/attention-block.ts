import { noGrad } from '../autograd/tape.ts'
import { apply, type Op } from '../dispatch/op.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import type { AttentionAttrs } from '../ops/attention/attention.ts'
import { finite, valuesOf } from '../ops/attention/products.ts'
import { div, exp, mul, sub, where } from '../ops/pointwise.ts'
import { sum } from '../ops/reduction.ts'
import { cat, narrow } from '../ops/shape.ts'
import { elementwise, elementwiseInto } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reduce } from '../primitives/reduce.ts'
import { contiguous, expandView, reshapeView, transposeView } from '../primitives/views.ts'
import type { Tensor } from '../tensor/tensor.ts'

/**
 * Softmax attention against a part of the keys, for parts that are computed apart and merged by the maxima and sums of their rows: on
 * several devices, or over time. These are the operator's fused kernels, where a backend has them, without the tape;
 * q (B, H, T, D), k (B, Hk, S, D), v (B, Hk, S, Dv) and stats (2, B, H, T) are checked by the caller.
 */

const FORWARD = 'scaled_dot_product_attention'
const HIDE_AHEAD = program('attention.hide_ahead', 1, ([s]) =>
  e.select(e.gt(e.coord(-1), e.coord(-2)), -Infinity, s),
)
/** Inputs: scores, gradients of them. */
const SEEN_ONLY = program('attention.seen_only', 2, ([s, d]) => e.select(e.eq(s, -Infinity), 0, d))
const ALL_HIDDEN = program('attention.all_hidden', 1, ([m]) => e.eq(m, -Infinity))

/** (B, H, T, S) */
function scores(q: Tensor, keys: Tensor, { scale, causal }: AttentionAttrs): Tensor {
  const s = mul(matmulPrimitive(FORWARD, q, transposeView(keys, 2, 3)), scale)
  return causal === 'none' ? s : elementwise(HIDE_AHEAD, [s])
}

/** (B, Hk, S, D) → (B, heads, S, D): each key head serves as many query heads in a row. */
function spread(x: Tensor, heads: number): Tensor {
  const [b, h, s, d] = x.shape
  if (h === heads) return x
  const each = expandView('repeat', reshapeView(x, [b, h, 1, s, d]), [b, h, heads / h, s, d])
  return reshapeView(each, [b, heads, s, d])
}

/** The maxima and sums of rows, (2, B, H, T), as two (B, H, T, 1). */
function rowStats(stats: Tensor): [top: Tensor, total: Tensor] {
  const column = (i: number): Tensor => {
    const [, b, h, t] = stats.shape
    return reshapeView(narrow(stats, 0, i, 1), [b, h, t, 1])
  }
  return [column(0), column(1)]
}

const BLOCK: Op<AttentionAttrs> = {
  name: FORWARD,
  kernel: (kernels) => kernels.scaled_dot_product_attention,
  outputs: 2,
  infer: ([q, , v]) => [
    { shape: [...q.shape.slice(0, 3), v.shape[3]], dtype: q.dtype },
    { shape: [2, ...q.shape.slice(0, 3)], dtype: q.dtype },
  ],
  compose: ([q, k, v], attrs) => {
    const s = scores(q, spread(k, q.shape[1]), attrs)
    const top = reduce('max', s, [3], true)
    const hidden = elementwise(ALL_HIDDEN, [top])
    const p = exp(sub(s, where(hidden, 0, top)))
    const total = reduce('sum', p, [3], true)
    const weights = div(p, where(hidden, 1, total))
    const out = valuesOf(weights, spread(v, q.shape[1]), s, attrs.causal !== 'none')
    return [out, reshapeView(cat([top, total], 0), [2, ...q.shape.slice(0, 3)])]
  },
}

/**
 * Inputs q, k, v, out, stats, dout, where out and stats are those of all keys: P = exp(S − m) / l is then right for a
 * part.
 */
const BLOCK_BACKWARD: Op<AttentionAttrs & { needs: readonly boolean[] }> = {
  name: `${FORWARD}Backward`,
  kernel: (kernels) => kernels.scaled_dot_product_attentionBackward,
  outputs: 3,
  infer: ([q, k, v]) => [q, k, v].map(({ shape, dtype }) => ({ shape, dtype })),
  compose: ([q, k, v, out, stats, dout], attrs) => {
    const [b, h] = q.shape
    const keys = spread(k, h)
    const [top, total] = rowStats(stats)
    const hidden = elementwise(ALL_HIDDEN, [top])
    const s = scores(q, keys, attrs)
    const p = div(exp(sub(s, where(hidden, 0, top))), where(hidden, 1, total))
    const delta = sum(mul(dout, out), 3, { keepdim: true })
    const dp = matmulPrimitive(FORWARD, dout, transposeView(spread(v, h), 2, 3))
    const ds = elementwise(SEEN_ONLY, [s, mul(mul(p, sub(dp, delta)), attrs.scale)])
    const grouped = (x: Tensor, like: Tensor): Tensor => {
      const [, heads, s, d] = like.shape
      return heads === h ? x : sum(reshapeView(x, [b, heads, h / heads, s, d]), 2)
    }
    return [
      matmulPrimitive(FORWARD, ds, finite(keys)),
      grouped(matmulPrimitive(FORWARD, transposeView(ds, 2, 3), q), k),
      grouped(matmulPrimitive(FORWARD, transposeView(p, 2, 3), dout), v),
    ]
  },
}

export interface AttentionBlockOptions {
  scale: number
  /** Whether query i sees only keys j ≤ i of this part, where T = S. */
  isCausal: boolean
}

const attrsOf = ({ scale, isCausal }: AttentionBlockOptions): AttentionAttrs => ({
  causal: isCausal ? 'top-left' : 'none',
  window: 0,
  globalTokens: 0,
  scale,
  hasMask: false,
  blockSize: 0,
  density: 1,
  hasAlibi: false,
  dropout: 0,
})

/**
 * Attention over a part of the keys, untaped: the part's output (B, H, T, Dv), and the maximum m
 * of each row's scores and Σ exp(s − m), (2, B, H, T).
 */
export function attentionBlock(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionBlockOptions,
): { out: Tensor; stats: Tensor } {
  const [out, stats] = noGrad(() => apply(BLOCK, [q, k, v], attrsOf(options)))
  return { out, stats }
}

/**
 * What a part of the keys adds to the gradients of q, and the gradients of that part's k and v; `out`, `stats` and `dout`
 * are those of attention over all keys.
 */
export function attentionBlockBackward(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  whole: { out: Tensor; stats: Tensor; dout: Tensor },
  options: AttentionBlockOptions,
): { dq: Tensor; dk: Tensor; dv: Tensor } {
  // Kernels take out and stats as they wrote them.
  const [out, stats, dout] = [whole.out, whole.stats, whole.dout].map(contiguous)
  const attrs = { ...attrsOf(options), needs: [true, true, true] }
  const [dq, dk, dv] = noGrad(() => apply(BLOCK_BACKWARD, [q, k, v, out, stats, dout], attrs))
  return { dq, dk, dv }
}

/**
 * Inputs: outputs, maxima and sums of two parts. An output is a mean weighted by its sum: e^(m₁ − m) l₁ of it, m being
 * the larger maximum; where neither part sees a key, both sums are 0.
 */
const MERGE = program('attention.merge', 6, ([x, y, m1, m2, l1, l2]) => {
  const { w1, w2, total } = weights(m1, m2, l1, l2)
  return e.div(e.add(e.mul(w1, x), e.mul(w2, y)), e.select(e.eq(total, 0), 1, total))
})
const MERGE_STATS = program('attention.merge_stats', 4, ([m1, m2, l1, l2]) => [
  e.max(m1, m2),
  weights(m1, m2, l1, l2).total,
])
function weights(m1: e.Expr, m2: e.Expr, l1: e.Expr, l2: e.Expr): Record<'w1' | 'w2' | 'total', e.Expr> {
  const top = e.max(m1, m2)
  const shift = e.select(e.eq(top, -Infinity), 0, top)
  const [w1, w2] = [e.mul(l1, e.exp(e.sub(m1, shift))), e.mul(l2, e.exp(e.sub(m2, shift)))]
  return { w1, w2, total: e.add(w1, w2) }
}

/** Merges attention over further keys into what there is, in place (Liu et al. 2023). */
export function mergeAttention(
  into: { out: Tensor; stats: Tensor },
  more: { out: Tensor; stats: Tensor },
): void {
  noGrad(() => {
    const [m1, l1] = rowStats(into.stats)
    const [m2, l2] = rowStats(more.stats)
    elementwiseInto([into.out], MERGE, [into.out, more.out, m1, m2, l1, l2])
    elementwiseInto([m1, l1], MERGE_STATS, [m1, m2, l1, l2])
  })
}
