import { expectFloat, expectOptions, expectWindow, type Names } from '../../checks.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import { DTypeError, ShapeError, show, ValueError } from '../../errors.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { elementwise } from '../../primitives/elementwise.ts'
import { matmulPrimitive } from '../../primitives/matmul.ts'
import { reduce } from '../../primitives/reduce.ts'
import { expandView, reshapeView } from '../../primitives/views.ts'
import { isFloat, promote } from '../../tensor/dtype.ts'
import { broadcastShapes, sameShape } from '../../tensor/layout.ts'
import { asTensor, expectTensor } from '../../tensor/operands.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { div, exp, mul, sub, where } from '../pointwise.ts'
import { drawDropout, dropWith } from '../random.ts'
import { type BlockMask, type BlockTensor, blockTensors, spreadBlocks } from './block-mask.ts'
import { scoresOf, valuesOf } from './products.ts'

/** Which keys a query sees: all; j ≤ i from the top left corner (PyTorch's is_causal); or from the bottom right (a key-value cache's). */
export type Causal = 'none' | 'top-left' | 'bottom-right'

/** What decides how attention is computed, beside its tensors. */
export interface AttentionAttrs {
  /** The corner of queries × keys at which causality begins; 'none' without causality. */
  causal: Causal
  /** Query i sees key j only if i − window < j (with the causal offset); 0: no window. */
  window: number
  /** The count of first keys that all queries see, and of first queries that see all keys, past the window. */
  globalTokens: number
  /** What scores are multiplied by. */
  scale: number
  /** Whether there is a mask among the inputs. */
  hasMask: boolean
  /** Rows and columns of the blocks of a block mask; 0: none. */
  blockSize: number
  /** The share of visible blocks, as far as it is known: for profiles. */
  density: number
  /** Whether there are ALiBi's slopes among the inputs. */
  hasAlibi: boolean
  /** The probability of a weight to become 0. */
  dropout: number
}

/** The operator's inputs by name, and what follows them. */
export interface AttentionOperands<T> {
  /** The queries, (B, H, T, D). */
  q: T
  /** The keys, (B, Hk, S, D). */
  k: T
  /** The values, (B, Hk, S, Dv). */
  v: T
  /** The mask (B, H, T, S), bool or float. */
  mask: T | null
  /** The tensors of a `BlockMask`, with all of (B, H, …). */
  blocks: Readonly<Record<BlockTensor, T>> | null
  /** ALiBi's slopes, (H). */
  slopes: T | null
  /** What follows the operator's own inputs. */
  rest: readonly T[]
}

/** Takes the operator's inputs apart: the one place that knows their order. */
export function attentionOperands<T>(
  inputs: readonly T[],
  { hasMask, blockSize, hasAlibi }: Pick<AttentionAttrs, 'hasMask' | 'blockSize' | 'hasAlibi'>,
): AttentionOperands<T> {
  const [q, k, v, ...rest] = inputs
  const mask = hasMask ? (rest.shift() as T) : null
  const tensors = blockSize > 0 ? rest.splice(0, blockTensors.length) : null
  const blocks = tensors
    ? (Object.fromEntries(blockTensors.map((name, i) => [name, tensors[i]])) as Record<BlockTensor, T>)
    : null
  const slopes = hasAlibi ? (rest.shift() as T) : null
  return { q, k, v, mask, blocks, slopes, rest }
}

/** Hides key `coord(-1)` from query `coord(-2)`. Params: offset of the diagonal, window, causal, global tokens. */
const HIDE = program(
  'attention.hide',
  1,
  ([s], [offset, window, causal, globals]) => {
    const position = e.add(e.coord(-2), offset)
    const ahead = e.sub(e.coord(-1), position)
    const future = e.and(e.gt(ahead, 0), e.ne(causal, 0))
    const local = e.or(e.lt(e.coord(-1), globals), e.lt(position, globals))
    const past = e.and(e.and(e.le(ahead, e.neg(window)), e.ne(window, 0)), e.not(local))
    return e.select(e.or(future, past), -Infinity, s)
  },
  4,
)
/** Subtracts slope · distance from scores. Inputs: scores, slopes; param: offset of the diagonal. */
const ALIBI = program(
  'attention.alibi',
  2,
  ([s, slope], [offset]) => e.sub(s, e.mul(slope, e.abs(e.sub(e.add(e.coord(-2), offset), e.coord(-1))))),
  1,
)
/** A mask to add: −∞ hides, whatever the score is. */
const ADD_MASK = program('attention.mask', 2, ([s, mask]) =>
  e.select(e.eq(mask, -Infinity), -Infinity, e.add(s, mask)),
)
const ALL_HIDDEN = program('attention.all_hidden', 1, ([m]) => e.eq(m, -Infinity))

declare module '../../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Attention that never stores queries × keys (Dao et al. 2022). */
    readonly scaled_dot_product_attention?: KernelOf<AttentionAttrs>
    /**
     * Attention of one query to caches, into which it also puts its own key and value: what `compile` makes of the two. The
     * inputs are those of attention, and then the key, the value (B, Hk, 1, D) and the number of their row, int32; the outputs
     * those of attention, and then the caches, which are its inputs k and v.
     */
    readonly attention_row?: KernelOf<AttentionAttrs>
    /** The gradients of attention. */
    readonly scaled_dot_product_attentionBackward?: KernelOf<GradientAttrs<AttentionAttrs>>
  }
}

const ATTENTION: Op<AttentionAttrs> = {
  name: 'scaled_dot_product_attention',
  kernel: (kernels) => kernels.scaled_dot_product_attention,
  gradient: (kernels) => kernels.scaled_dot_product_attentionBackward,
  placesGradients: true,
  flops: ([q, k, v], { causal, window, globalTokens, density }) => {
    const [b, h, t, d] = q.shape
    const s = k.shape[2]
    const all = causal === 'none' ? t * s : (t * s) / 2
    const near = window > 0 ? t * Math.min(window + globalTokens, s) + globalTokens * s : all
    return 2 * b * h * Math.min(all, near, density * t * s) * (d + v.shape[3])
  },
  infer: ([q, , v]) => {
    const [b, h, t] = q.shape
    return [
      // In memory (B, T, H, Dv), so that heads merge as a view.
      { shape: [b, h, t, v.shape[3]], dtype: q.dtype, order: [0, 2, 1, 3] },
      // The maximum m of each row's scores, and Σ exp(s − m): −∞ and 0 of a row without any key. As one float32,
      // m + ln Σ would lose the logarithm beside a large m.
      { shape: [2, b, h, t], dtype: promote(q.dtype, 'float32') },
    ]
  },
  compose: (inputs, attrs, numbers) => {
    const { causal, window, globalTokens, scale, blockSize, dropout } = attrs
    const { q, k, v, mask, blocks, slopes } = attentionOperands(inputs, attrs)
    const groups = q.shape[1] / k.shape[1]
    const keys = repeatHeads(k, groups)
    const values = repeatHeads(v, groups)
    const offset = causal === 'bottom-right' ? k.shape[2] - q.shape[2] : 0
    const hides = Boolean(mask ?? blocks) || causal !== 'none' || window > 0
    let s = mul(scoresOf(q, keys, hides), scale)
    if (slopes) s = elementwise(ALIBI, [s, reshapeView(slopes, [q.shape[1], 1, 1])], [offset])
    if (mask) s = mask.dtype === 'bool' ? where(mask, s, -Infinity) : elementwise(ADD_MASK, [s, mask])
    if (blocks) s = where(spreadBlocks(blocks.visible, blockSize, s.shape), s, -Infinity)
    if (causal !== 'none' || window > 0)
      s = elementwise(HIDE, [s], [offset, window, Number(causal !== 'none'), globalTokens])
    if (k.shape[2] === 0) return [matmulPrimitive('scaled_dot_product_attention', s, values)]
    const top = reduce('max', s.detach(), [3], true)
    // A row with no key at all gives zeros: exp(−∞ − 0) = 0 everywhere, and 0 / 1.
    const hidden = elementwise(ALL_HIDDEN, [top])
    const p = exp(sub(s, where(hidden, 0, top)))
    const weights = div(p, where(hidden, 1, reduce('sum', p, [3], true)))
    const kept = dropout > 0 ? dropWith(weights, numbers) : weights
    return [valuesOf(kept, values, s, hides)]
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

/** Options of `scaledDotProductAttention`. */
export interface AttentionOptions {
  /**
   * A bool mask is true where a query may attend to a key, as in every mask of this library; a floating one is added to
   * the scores, and −∞ in it hides. It broadcasts to (…, H, T, S). A hidden key never reaches the result, even if it or
   * its value is NaN.
   */
  attnMask?: Tensor | null
  /** Probability of dropping an attention weight. */
  dropoutP?: number
  /** Whether attention is causal, aligned at the top left corner, as in PyTorch, or at a corner by name. */
  isCausal?: boolean | Causal
  /** Query i sees the last `window` keys up to its own position. */
  window?: number
  /**
   * The number of first keys that are seen from everywhere past the window, and of first queries that see all keys, both
   * still subject to causality (Beltagy et al. 2020; Zaheer et al. 2020). Default: 0.
   */
  globalTokens?: number
  /** A block mask, of which only the visible blocks are computed; causality, windows and masks hold inside of them. */
  blockMask?: BlockMask | null
  /** A slope per head, (H), which adds −slope · |i − j| to the scores (ALiBi, Press et al. 2022). It gets no gradient. */
  alibi?: Tensor | null
  /** The factor of the scores. Default 1 / √D. */
  scale?: number | null
  /** Allow fewer key-value heads than query heads (a divisor); always on here, accepted for familiarity. */
  enableGqa?: boolean
}

const KNOWN: Names<AttentionOptions> = {
  attnMask: 1,
  dropoutP: 1,
  isCausal: 1,
  window: 1,
  globalTokens: 1,
  blockMask: 1,
  alibi: 1,
  scale: 1,
  enableGqa: 1,
}

/**
 * softmax(q kᵀ · scale + mask) v, row by row and without storing the T×S matrix where the backend has the fused kernel
 * (Vaswani et al. 2017; Dao 2023). A query that sees no key gives zeros; so does having no keys at all.
 *
 * @param q (…, H, T, D) — with (T, D) or (H, T, D) also taken; every leading dim is a batch.
 * @param k (…, Hk, S, D), Hk a divisor of H (grouped-query attention, Ainslie et al. 2023).
 * @param v (…, Hk, S, Dv)
 * @returns (…, H, T, Dv)
 * @throws ShapeError for shapes that do not fit; DTypeError for operands that are not floating and for a mask that is
 *   neither bool nor floating; ValueError for options out of range.
 * @example
 * const q = randn([1, 2, 5, 4])
 * scaledDotProductAttention(q, q, q, { isCausal: true }).shape // → [1, 2, 5, 4]
 */
export function scaledDotProductAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): Tensor {
  const op = 'scaled_dot_product_attention'
  const {
    attnMask,
    blockMask,
    alibi,
    dropoutP = 0,
    isCausal = false,
    window = 0,
    globalTokens = 0,
  } = expectOptions(op, options, KNOWN)
  for (const t of [q, k, v]) {
    expectTensor(op, t)
    expectFloat(op, t.dtype)
    if (t.rank < 2) throw new ShapeError(`${op}: takes (…, H, T, D), got ${show(t.shape)}`)
  }
  if (!(dropoutP >= 0 && dropoutP <= 1))
    throw new ValueError(`${op}: dropoutP must lie within 0 … 1, got ${dropoutP}`)
  expectWindow(op, window, globalTokens)
  const [d, s, dv] = [q.shape[q.rank - 1], k.shape[k.rank - 2], v.shape[v.rank - 1]]
  if (k.shape[k.rank - 1] !== d || v.shape[v.rank - 2] !== s) {
    throw new ShapeError(
      `${op}: q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)} do not fit; expected q (…, T, D), k (…, S, D), v (…, S, Dv)`,
    )
  }
  const causal: Causal = isCausal === true ? 'top-left' : isCausal === false ? 'none' : isCausal
  const { batch, query, key, value, heads } = canonical(op, q, k, v)
  const t = q.shape[q.rank - 2]
  /** (…, H, `tail`), as far as it is there, as (B, H, `tail`). */
  const spread = (what: string, x: Tensor, tail: readonly number[]): Tensor => {
    const full = [...batch, ...tail]
    if (!sameShape(broadcastShapes(op, [x.shape, full]), full))
      throw new ShapeError(`${op}: ${what} ${show(x.shape)} does not broadcast to ${show(full)}`)
    const all = expandView(op, x, full)
    return batch.length === 2 ? all : reshapeView(all, [query.shape[0], heads, ...tail])
  }
  const inputs = [query, key, value]
  if (attnMask) {
    const mask = asTensor(op, attnMask, q)
    // A plain array of numbers became a floating tensor, but 0 and 1 are hardly meant to be added.
    const flags = Array.isArray(attnMask) && attnMask.flat(4).every((x) => x === 0 || x === 1)
    if (flags || (mask.dtype !== 'bool' && !isFloat(mask.dtype)))
      throw new DTypeError(
        `${op}: attnMask must be bool (true: may attend) or floating (added to the scores), not ${flags ? 'numbers' : mask.dtype}; convert a mask of 0 and 1 with .to('bool')`,
      )
    inputs.push(spread('mask', mask, [t, s]))
  }
  if (blockMask) {
    const { blockSize } = blockMask
    const [nq, nk] = [Math.ceil(t / blockSize), Math.ceil(s / blockSize)]
    if (blockMask.queryBlocks !== nq || blockMask.keyBlocks !== nk) {
      throw new ShapeError(
        `${op}: the block mask has ${blockMask.queryBlocks} × ${blockMask.keyBlocks} blocks of ${blockSize}; ${t} queries and ${s} keys need ${nq} × ${nk}`,
      )
    }
    for (const name of blockTensors) {
      const x = blockMask[name]
      inputs.push(spread(`block mask's ${name}`, x, x.shape.slice(name.endsWith('Blocks') ? -1 : -2)))
    }
  }
  if (alibi) {
    if (!isFloat(alibi.dtype) || !sameShape(alibi.shape, [heads]))
      throw new ShapeError(
        `${op}: alibi must be one float slope per head, [${heads}], got ${alibi.dtype} ${show(alibi.shape)}`,
      )
    inputs.push(alibi.detach())
  }
  const attrs: AttentionAttrs = {
    causal,
    window,
    globalTokens,
    // Heads of no size have scores of 0, not of 0 · ∞.
    scale: options.scale ?? 1 / Math.sqrt(Math.max(1, d)),
    hasMask: Boolean(attnMask),
    blockSize: blockMask?.blockSize ?? 0,
    density: blockMask?.density ?? 1,
    hasAlibi: Boolean(alibi),
    dropout: dropoutP,
  }
  const numbers = dropoutP > 0 ? drawDropout(dropoutP) : []
  const out = apply(ATTENTION, inputs, attrs, numbers)[0]
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
