import { isFloat } from '../dtype.ts'
import { DTypeError, ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr.ts'
import { broadcastShapes, sameShape } from '../layout.ts'
import { apply, type Op } from '../op.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { matmulPrimitive } from '../primitives/matmul.ts'
import { reduce } from '../primitives/reduce.ts'
import { expandView, reshapeView, transposeView } from '../primitives/views.ts'
import { program } from '../program.ts'
import type { Tensor } from '../tensor.ts'
import { add, div, exp, mul, sub, where } from './pointwise.ts'
import { dropout as drop } from './random.ts'

/** Which keys a query sees: all; j ≤ i from the top left corner (PyTorch's is_causal); or from the bottom right (a key-value cache's). */
export type Causal = 'none' | 'top-left' | 'bottom-right'

export interface AttentionAttrs {
  causal: Causal
  /** Query i sees key j only if i − window < j (with the causal offset); 0: no window. */
  window: number
  scale: number
  hasMask: boolean
  dropout: number
}

/** Is key `coord(-1)` hidden from query `coord(-2)`? Params: offset of the diagonal, window. */
const HIDE = program(
  'attention.hide',
  1,
  ([s], [offset, window, causal]) => {
    const ahead = e.sub(e.sub(e.coord(-1), e.coord(-2)), offset)
    const future = e.and(e.gt(ahead, 0), e.ne(causal, 0))
    const past = e.and(e.le(ahead, e.neg(window)), e.ne(window, 0))
    return e.select(e.or(future, past), -Infinity, s)
  },
  3,
)
const ALL_HIDDEN = program('attention.all_hidden', 1, ([m]) => e.eq(m, -Infinity))

const ATTENTION: Op<AttentionAttrs> = {
  name: 'scaled_dot_product_attention',
  flops: ([q, k, v], { causal, window }) => {
    const [b, h, t, d] = q.shape
    const s = k.shape[2]
    const pairs = window > 0 ? t * Math.min(window, s) : causal === 'none' ? t * s : (t * s) / 2
    return 2 * b * h * pairs * (d + v.shape[3])
  },
  infer: ([q, , v]) => {
    const [b, h, t] = q.shape
    return [
      { shape: [b, h, t, v.shape[3]], dtype: q.dtype },
      { shape: [b, h, t], dtype: q.dtype },
    ]
  },
  compose: ([q, k, v, mask], { causal, window, scale, dropout }) => {
    const groups = q.shape[1] / k.shape[1]
    const keys = repeatHeads(k, groups)
    const values = repeatHeads(v, groups)
    let s = mul(matmulPrimitive('scaled_dot_product_attention', q, transposeView(keys, 2, 3)), scale)
    if (mask) s = mask.dtype === 'bool' ? where(mask, s, -Infinity) : add(s, mask)
    if (causal !== 'none' || window > 0) {
      const offset = causal === 'bottom-right' ? k.shape[2] - q.shape[2] : 0
      s = elementwise(HIDE, [s], [offset, window, Number(causal !== 'none')])
    }
    if (k.shape[2] === 0) return [matmulPrimitive('scaled_dot_product_attention', s, values)]
    const top = reduce('max', s.detach(), [3], true)
    // A row with no key at all gives zeros: exp(−∞ − 0) = 0 everywhere, and 0 / 1.
    const hidden = elementwise(ALL_HIDDEN, [top])
    const p = exp(sub(s, where(hidden, 0, top)))
    const weights = div(p, where(hidden, 1, reduce('sum', p, [3], true)))
    return [matmulPrimitive('scaled_dot_product_attention', drop(weights, dropout), values)]
  },
}

/** (B, Hk, S, D) → (B, Hk · groups, S, D): each key head serves `groups` query heads in a row. */
function repeatHeads(x: Tensor, groups: number): Tensor {
  if (groups === 1) return x
  const [b, h, s, d] = x.shape
  return reshapeView(expandView('repeat', reshapeView(x, [b, h, 1, s, d]), [b, h, groups, s, d]), [
    b,
    h * groups,
    s,
    d,
  ])
}

export interface AttentionOptions {
  /** bool (true: may attend) or float (added to the scores); broadcasts to (…, H, T, S). */
  attnMask?: Tensor | null
  /** Probability of dropping an attention weight. */
  dropoutP?: number
  /** Causal, aligned at the top left corner, as PyTorch; or name the corner. */
  isCausal?: boolean | Causal
  /** Query i sees the last `window` keys up to its own position. */
  window?: number
  /** Default 1 / √D. */
  scale?: number | null
  /** Allow fewer key-value heads than query heads (a divisor); always on here, accepted for familiarity. */
  enableGqa?: boolean
}

/**
 * softmax(q kᵀ · scale + mask) v, row by row and without storing the T×S matrix where the backend has the fused kernel
 * (Vaswani et al. 2017; Dao 2023). A query that sees no key gives zeros.
 *
 * @param q (…, H, T, D) — with (T, D) or (H, T, D) also taken; every leading dim is a batch.
 * @param k (…, Hk, S, D), Hk a divisor of H (grouped-query attention, Ainslie et al. 2023).
 * @param v (…, Hk, S, Dv)
 * @returns (…, H, T, Dv)
 */
export function scaledDotProductAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): Tensor {
  const { attnMask, dropoutP = 0, isCausal = false, window = 0, scale } = options
  const op = 'scaled_dot_product_attention'
  for (const t of [q, k, v]) {
    if (!isFloat(t.dtype)) throw new DTypeError(`${op}: takes floating tensors, not ${t.dtype}`)
    if (t.rank < 2) throw new ShapeError(`${op}: takes (…, H, T, D), got ${show(t.shape)}`)
  }
  if (!(dropoutP >= 0 && dropoutP <= 1))
    throw new ValueError(`${op}: dropoutP must lie within 0 … 1, got ${dropoutP}`)
  if (!Number.isInteger(window) || window < 0)
    throw new ValueError(`${op}: window must be a whole number ≥ 0, got ${window}`)
  const [d, s, dv] = [q.shape[q.rank - 1], k.shape[k.rank - 2], v.shape[v.rank - 1]]
  if (k.shape[k.rank - 1] !== d || v.shape[v.rank - 2] !== s) {
    throw new ShapeError(
      `${op}: q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)} do not fit; expected q (…, T, D), k (…, S, D), v (…, S, Dv)`,
    )
  }
  const causal: Causal = isCausal === true ? 'top-left' : isCausal === false ? 'none' : isCausal
  const { batch, query, key, value, heads } = canonical(op, q, k, v)
  const t = q.shape[q.rank - 2]
  let mask: Tensor | null = null
  if (attnMask) {
    const full = [...q.shape.slice(0, -1), s]
    if (!sameShape(broadcastShapes(op, [attnMask.shape, full]), full))
      throw new ShapeError(`${op}: mask ${show(attnMask.shape)} does not broadcast to ${show(full)}`)
    // Leading dims beyond four are one batch; a mask that varies in them has to follow.
    mask =
      q.rank === 4
        ? expandView(op, attnMask, full)
        : reshapeView(expandView(op, attnMask, full), [query.shape[0], heads, t, s])
  }
  const attrs: AttentionAttrs = {
    causal,
    window,
    scale: scale ?? 1 / Math.sqrt(d),
    hasMask: mask !== null,
    dropout: dropoutP,
  }
  const out = apply(ATTENTION, mask ? [query, key, value, mask] : [query, key, value], attrs)[0]
  return reshapeView(out, [...batch, t, dv])
}

interface Canonical {
  batch: readonly number[]
  heads: number
  query: Tensor
  key: Tensor
  value: Tensor
}

/** Everything as (B, H, T, D): leading dims broadcast and merge into B; the dim before T is H. */
function canonical(op: string, q: Tensor, k: Tensor, v: Tensor): Canonical {
  const heads = (t: Tensor): number => (t.rank > 2 ? t.shape[t.rank - 3] : 1)
  const lead = (t: Tensor): readonly number[] => t.shape.slice(0, Math.max(0, t.rank - 3))
  const outer = broadcastShapes(op, [lead(q), lead(k), lead(v)])
  const h = heads(q)
  if (heads(k) !== heads(v) || heads(k) === 0 || h % heads(k) !== 0) {
    throw new ShapeError(
      `${op}: ${heads(k)} key and ${heads(v)} value heads do not serve ${h} query heads; expected equal numbers that divide it`,
    )
  }
  const b = outer.reduce((p, n) => p * n, 1)
  const shaped = (t: Tensor): Tensor => {
    const tail = [heads(t), t.shape[t.rank - 2], t.shape[t.rank - 1]]
    if (t.rank === 4 && t.shape[0] === b) return t
    const ranked = t.rank === 2 ? reshapeView(t, tail) : t
    return reshapeView(expandView(op, ranked, [...outer, ...tail]), [b, ...tail])
  }
  return {
    batch: q.rank === 2 ? [] : [...outer, h],
    heads: h,
    query: shaped(q),
    key: shaped(k),
    value: shaped(v),
  }
}
