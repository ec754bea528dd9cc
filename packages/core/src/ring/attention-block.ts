import * as e from '../expr.ts'
import { apply, type Op } from '../op.ts'
import type { AttentionAttrs } from '../ops/attention.ts'
import { add, div, exp, log, mul, sub, where } from '../ops/pointwise.ts'
import { sum } from '../ops/reduction.ts'
import { elementwise, elementwiseInto } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reduce } from '../primitives/reduce.ts'
import { contiguous, expandView, reshapeView, transposeView } from '../primitives/views.ts'
import { program } from '../program.ts'
import { noGrad } from '../tape.ts'
import type { Tensor } from '../tensor.ts'

/**
 * Softmax attention against a part of the keys, for parts that are computed apart and merged by their log-sum-exp: on
 * several devices, or over time. These are the operator's fused kernels, where a backend has them, without the tape;
 * q (B, H, T, D), k (B, Hk, S, D), v (B, Hk, S, Dv) and lse (B, H, T) are checked by the caller.
 */

const FORWARD = 'scaled_dot_product_attention'
const HIDE_AHEAD = program('attention.hide_ahead', 1, ([s]) =>
  e.select(e.gt(e.coord(-1), e.coord(-2)), -Infinity, s),
)
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

const BLOCK: Op<AttentionAttrs> = {
  name: FORWARD,
  outputs: 2,
  infer: ([q, , v]) => [
    { shape: [...q.shape.slice(0, 3), v.shape[3]], dtype: q.dtype },
    { shape: q.shape.slice(0, 3), dtype: q.dtype },
  ],
  compose: ([q, k, v], attrs) => {
    const s = scores(q, spread(k, q.shape[1]), attrs)
    const top = reduce('max', s, [3], true)
    const hidden = elementwise(ALL_HIDDEN, [top])
    const p = exp(sub(s, where(hidden, 0, top)))
    const total = reduce('sum', p, [3], true)
    const out = matmulPrimitive(FORWARD, div(p, where(hidden, 1, total)), spread(v, q.shape[1]))
    return [out, reshapeView(add(top, log(where(hidden, 1, total))), q.shape.slice(0, 3))]
  },
}

/** Inputs q, k, v, out, lse, dout, where out and lse are those of all keys: P = exp(S − lse) is then right for a part. */
const BLOCK_BACKWARD: Op<AttentionAttrs & { needs: readonly boolean[] }> = {
  name: `${FORWARD}Backward`,
  outputs: 3,
  infer: ([q, k, v]) => [q, k, v].map(({ shape, dtype }) => ({ shape, dtype })),
  compose: ([q, k, v, out, lse, dout], attrs) => {
    const [b, h, t] = q.shape
    const keys = spread(k, h)
    const rows = reshapeView(lse, [b, h, t, 1])
    const hidden = elementwise(ALL_HIDDEN, [rows])
    const p = exp(sub(scores(q, keys, attrs), where(hidden, Infinity, rows)))
    const delta = sum(mul(dout, out), 3, { keepdim: true })
    const dp = matmulPrimitive(FORWARD, dout, transposeView(spread(v, h), 2, 3))
    const ds = mul(mul(p, sub(dp, delta)), attrs.scale)
    const grouped = (x: Tensor, like: Tensor): Tensor => {
      const [, heads, s, d] = like.shape
      return heads === h ? x : sum(reshapeView(x, [b, heads, h / heads, s, d]), 2)
    }
    return [
      matmulPrimitive(FORWARD, ds, keys),
      grouped(matmulPrimitive(FORWARD, transposeView(ds, 2, 3), q), k),
      grouped(matmulPrimitive(FORWARD, transposeView(p, 2, 3), dout), v),
    ]
  },
}

export interface AttentionBlockOptions {
  scale: number
  /** Query i sees keys j ≤ i of this part; T = S then. */
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
  draw: [0, 0, 0],
})

/**
 * Attention over a part of the keys, untaped: the part's output (B, H, T, Dv) and its log-sum-exp (B, H, T).
 */
export function attentionBlock(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionBlockOptions,
): { out: Tensor; lse: Tensor } {
  const [out, lse] = noGrad(() => apply(BLOCK, [q, k, v], attrsOf(options)))
  return { out, lse }
}

/**
 * What a part of the keys adds to the gradients of q, and the gradients of that part's k and v; `out`, `lse` and `dout`
 * are those of attention over all keys.
 */
export function attentionBlockBackward(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  whole: { out: Tensor; lse: Tensor; dout: Tensor },
  options: AttentionBlockOptions,
): { dq: Tensor; dk: Tensor; dv: Tensor } {
  // Kernels take out and lse as they wrote them.
  const [out, lse, dout] = [whole.out, whole.lse, whole.dout].map(contiguous)
  const attrs = { ...attrsOf(options), needs: [true, true, true] }
  const [dq, dk, dv] = noGrad(() => apply(BLOCK_BACKWARD, [q, k, v, out, lse, dout], attrs))
  return { dq, dk, dv }
}

const weight = (a: e.Expr, b: e.Expr): { wa: e.Expr; wb: e.Expr; none: e.Expr; top: e.Expr } => {
  const top = e.max(a, b)
  const none = e.eq(top, -Infinity)
  const safe = e.select(none, 0, top)
  return { wa: e.exp(e.sub(a, safe)), wb: e.exp(e.sub(b, safe)), none, top }
}
const MERGE_OUT = program('attention.merge', 4, ([x, y, a, b]) => {
  const { wa, wb, none } = weight(a, b)
  return e.div(e.add(e.mul(wa, x), e.mul(wb, y)), e.select(none, 1, e.add(wa, wb)))
})
const MERGE_LSE = program('attention.merge_lse', 2, ([a, b]) => {
  const { wa, wb, none, top } = weight(a, b)
  return e.select(none, -Infinity, e.add(top, e.log(e.select(none, 1, e.add(wa, wb)))))
})

/**
 * Merges attention over further keys into what there is, in place: lse = log(e^lse₁ + e^lse₂),
 * out = e^(lse₁ − lse) out₁ + e^(lse₂ − lse) out₂ (Liu et al. 2023).
 */
export function mergeAttention(into: { out: Tensor; lse: Tensor }, more: { out: Tensor; lse: Tensor }): void {
  const column = (lse: Tensor): Tensor => reshapeView(lse, [...lse.shape, 1])
  noGrad(() => {
    elementwiseInto([into.out], MERGE_OUT, [into.out, more.out, column(into.lse), column(more.lse)])
    elementwiseInto([into.lse], MERGE_LSE, [into.lse, more.lse])
  })
}
