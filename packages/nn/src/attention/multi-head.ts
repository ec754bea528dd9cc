import {
  DTypeError,
  expectOptions,
  mergeHeads,
  type Names,
  scaledDotProductAttention,
  splitHeads,
  type Tensor,
  tensor,
  ValueError,
} from '@tilegrad/core'
import { expectWindow } from '@tilegrad/core/kernel'
import { probability } from '../layers/dropout.ts'
import { Linear, positive } from '../layers/linear.ts'
import { RMSNorm } from '../layers/norm.ts'
import { buffer, Module } from '../module/module.ts'
import { type AttentionBlocks, BlockChooser } from './block-attention.ts'
import { type AttentionCache, KVCache, storedDType } from './cache.ts'
import { keyMaskOf } from './key-mask.ts'
import { Rope, type RopeOptions } from './rope.ts'

/** Options of all attention layers. */
export interface AttentionModuleOptions {
  /** Fewer key-value heads than query heads, a divisor of them (Ainslie et al. 2023). Default numHeads. */
  numKvHeads?: number
  /** D, the size of a head; default embedDim / numHeads. */
  headDim?: number
  /** Biases of the projections to queries, keys and values; default true. */
  bias?: boolean
  /** Bias of the projection back to embedDim; default as `bias`. */
  outBias?: boolean
  /** Size of what keys and values are made of, for cross-attention; default embedDim. */
  kvDim?: number
  /** Uses one projection for queries, keys and values, with the same results; default true, if kvDim is embedDim. */
  packed?: boolean
  /** Rotary position embedding of queries and keys (Su et al. 2021); default false. */
  rope?: boolean | RopeOptions
  /** RMSNorm (eps 1e-6) of each head's queries and keys, before `rope` (Henry et al. 2020); default false. */
  qkNorm?: boolean
  /** Each position sees itself and earlier ones only; default false. */
  isCausal?: boolean
}

/** Options of `MultiHeadAttention`. */
export interface MultiHeadAttentionOptions extends AttentionModuleOptions {
  /** Probability of dropping an attention weight while training; default 0. */
  dropout?: number
  /** Each position sees the last `window` ones only, itself among them; for causal attention. Default 0: all. */
  window?: number
  /** The number of first positions that are seen from everywhere in spite of a window. Default 0. */
  globalTokens?: number
  /**
   * Blocks of keys that blocks of queries see, the only ones that are computed. Default: all. Where they are chosen
   * from the input (`keep`), the choice depends on all queries of a block, later ones too, and there is no cache.
   */
  blocks?: AttentionBlocks | null
  /** Adds −slope · distance to the scores, a slope for each head: see `alibiSlopes`. Default false. */
  alibi?: boolean
  /** Factor of the scores; default 1 / √D. */
  scale?: number
}

const CALL: Names<AttentionForwardOptions> = {
  residual: 1,
  context: 1,
  attnMask: 1,
  keyMask: 1,
  positions: 1,
  cache: 1,
}

/** Options of every attention module. @internal */
export const PROJECTIONS: Names<AttentionModuleOptions> = {
  numKvHeads: 1,
  headDim: 1,
  bias: 1,
  outBias: 1,
  kvDim: 1,
  packed: 1,
  rope: 1,
  qkNorm: 1,
  isCausal: 1,
}

/** @internal */
export const SOFTMAX: Names<MultiHeadAttentionOptions> = {
  ...PROJECTIONS,
  dropout: 1,
  window: 1,
  globalTokens: 1,
  blocks: 1,
  alibi: 1,
  scale: 1,
}

/** Options of the forward pass of attention layers. */
export interface AttentionForwardOptions<C extends AttentionCache = AttentionCache> {
  /** A tensor of x's shape that is added to the result. */
  residual?: Tensor | null
  /** Cross-attention: keys and values are made of this, (B, S, kvDim), in place of x; its first row is position 0. */
  context?: Tensor | null
  /**
   * A bool mask is true where a query may attend to a key, as in `scaledDotProductAttention` and in every mask of this
   * library; PyTorch's layer has it the other way round. A floating one is added to the scores. It broadcasts to
   * (B, H, T, S).
   */
  attnMask?: Tensor | null
  /**
   * A bool mask (B, S), true where any query may attend to a key and false where it is padding: a tokenizer's
   * attention mask as bool. PyTorch's `key_padding_mask` is the opposite, so that name is refused.
   */
  keyMask?: Tensor | null
  /** int32 (B, T), where `rope` puts x's rows; default one after the other, after those of the cache. */
  positions?: Tensor | null
  /**
   * A cache from this layer's `newCache`: x are the tokens after those it holds, and see these as well, so that S in the
   * masks counts all of them. It works only without gradients.
   */
  cache?: C | null
}

/** What a way to attend learns of a call beside the heads. */
export interface AttentionCall<C extends AttentionCache = AttentionCache> {
  /** What the layer was given, (B, T, embedDim). */
  readonly x: Tensor
  /** The mask over queries and keys, where one was given: true (or 0) is visible. */
  readonly attnMask: Tensor | null
  /** The mask over keys, (B, S), where one was given: true is visible. */
  readonly keyMask: Tensor | null
  /** Takes in k and v, which come after what it holds. */
  readonly cache: C | null
}

/**
 * Attention around some way to attend: projections make queries, keys and values, whose heads attend as views of their
 * outputs, and another mixes the heads. A subclass says how to attend, and which cache it wants for decoding, C.
 *
 * Parameters are GPT-2's, `c_attn` (queries, keys and values in this order: (H + 2Hk)·D outputs) and `c_proj`; with
 * `packed: false` they are Llama's, `q_proj`, `k_proj`, `v_proj` and `o_proj`. Norms are `q_norm` and `k_norm`.
 */
export abstract class SelfAttention<C extends AttentionCache = AttentionCache> extends Module {
  /** The size of its input and output. */
  readonly embedDim: number
  /** The size of all keys, and of all values, of a token. */
  readonly kvDim: number
  /** The number of heads of queries. */
  readonly numHeads: number
  /** The number of heads of keys and values. */
  readonly numKvHeads: number
  /** The size of a head. */
  readonly headDim: number
  /** Says whether a query sees only keys up to its own place. */
  readonly isCausal: boolean
  /**
   * Makes queries, keys and values in one product, named as in GPT-2; null where they have layers of their own.
   */
  c_attn: Linear | null = null
  /** Makes the queries; null where `c_attn` does. */
  q_proj: Linear | null = null
  /** Makes the keys; null where `c_attn` does. */
  k_proj: Linear | null = null
  /** Makes the values; null where `c_attn` does. */
  v_proj: Linear | null = null
  /** Normalises the queries of each head, where asked for. */
  q_norm: RMSNorm | null
  /** Normalises the keys of each head, where asked for. */
  k_norm: RMSNorm | null
  /** Makes the output of all heads, named as in GPT-2; null where `o_proj` does. */
  c_proj: Linear | null = null
  /** Makes the output of all heads, named as in Llama; null where `c_proj` does. */
  o_proj: Linear | null = null
  readonly #rope: Rope | null

  constructor(embedDim: number, numHeads: number, options: AttentionModuleOptions = {}) {
    super()
    const { numKvHeads = numHeads, bias = true, outBias = bias, isCausal = false } = options
    const { headDim = embedDim / numHeads, kvDim = embedDim, rope = false, qkNorm = false } = options
    const { packed = kvDim === embedDim } = options
    const name = this.constructor.name
    positive(name, { embedDim, numHeads, numKvHeads, kvDim })
    if (packed && kvDim !== embedDim)
      throw new ValueError(
        `${name}: kvDim ${kvDim} differs from embedDim ${embedDim}, which needs packed: false`,
      )
    if (options.headDim === undefined && embedDim % numHeads !== 0) {
      throw new ValueError(
        `${name}: embedDim ${embedDim} must be a multiple of numHeads ${numHeads}, or headDim be given`,
      )
    }
    positive(name, { headDim })
    if (numHeads % numKvHeads !== 0)
      throw new ValueError(`${name}: numHeads ${numHeads} must be a multiple of numKvHeads ${numKvHeads}`)
    this.embedDim = embedDim
    this.kvDim = kvDim
    this.numHeads = numHeads
    this.numKvHeads = numKvHeads
    this.headDim = headDim
    this.isCausal = isCausal
    const [q, kv] = [numHeads * headDim, numKvHeads * headDim]
    if (packed) this.c_attn = new Linear(embedDim, q + 2 * kv, { bias })
    else {
      this.q_proj = new Linear(embedDim, q, { bias })
      this.k_proj = new Linear(kvDim, kv, { bias })
      this.v_proj = new Linear(kvDim, kv, { bias })
    }
    this.q_norm = qkNorm ? new RMSNorm(headDim, { eps: 1e-6 }) : null
    this.k_norm = qkNorm ? new RMSNorm(headDim, { eps: 1e-6 }) : null
    const out = new Linear(q, embedDim, { bias: outBias })
    if (packed) this.c_proj = out
    else this.o_proj = out
    this.#rope = rope === false ? null : new Rope(name, headDim, rope === true ? {} : rope)
  }

  /** The projection that mixes the heads, (…, H·D) → (…, embedDim): `c_proj`, or `o_proj` of separate ones. */
  get outProj(): Linear {
    return (this.c_proj ?? this.o_proj) as Linear
  }

  /** Attends: q (B, H, T, D), k and v (B, Hk, S, D) → (B, H, T, D). */
  protected abstract attend(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall<C>): Tensor

  /**
   * A cache for decoding `batch` sequences of up to `maxLength` tokens, for `forward`; null if this way to attend has
   * none.
   */
  newCache(_batch: number, _maxLength: number): C | null {
    return null
  }

  /**
   * (B, T, embedDim) → the same shape.
   *
   * @throws ShapeError or DTypeError for what does not fit, ValueError for a context together with a cache and for
   *   PyTorch's `keyPaddingMask`.
   */
  forward(x: Tensor, options: AttentionForwardOptions<C> = {}): Tensor {
    const { residual = null, context = null, attnMask = null, cache = null } = options
    const { positions = null } = options
    const name = this.constructor.name
    if (context && cache)
      throw new ValueError(`${name}: a cache holds what x was before; with a context leave it out`)
    const [b, s] = (context ?? x).shape
    const keyMask = keyMaskOf(name, options, [b, cache ? cache.keysOf(s as number) : s])
    expectOptions(name, options, CALL)
    if (attnMask && attnMask.dtype === 'int32')
      throw new DTypeError(
        `${name}: attnMask must be bool (true: may attend) or floating (added to the scores), not int32; convert a mask of 0 and 1 with .to('bool')`,
      )
    const [q, k, v] = this.#project(x, context) as [Tensor, Tensor, Tensor]
    const place = (heads: Tensor, norm: RMSNorm | null): Tensor => {
      const normed = norm ? norm.forward(heads) : heads
      return this.#rope ? this.#rope.turn(normed, cache?.length ?? 0, positions) : normed
    }
    const [query, key] = [place(q, this.q_norm), place(k, this.k_norm)]
    const heads = this.attend(query, key, v, { x, attnMask, keyMask, cache })
    return this.outProj.forward(mergeHeads(heads), { residual })
  }

  /** Queries, keys and values, (B, heads, T, headDim). */
  #project(x: Tensor, context: Tensor | null): Tensor[] {
    const { c_attn, q_proj, k_proj, v_proj, headDim, numHeads: q, numKvHeads: kv } = this
    if (!c_attn) {
      const source = context ?? x
      const parts = [q_proj?.forward(x), k_proj?.forward(source), v_proj?.forward(source)]
      return parts.flatMap((y, i) => splitHeads(y as Tensor, [i === 0 ? q : kv], headDim))
    }
    if (!context) return splitHeads(c_attn.forward(x), [q, kv, kv], headDim)
    const rows = (input: Tensor, from: number, heads: readonly number[]): Tensor[] => {
      const [at, length] = [from * headDim, heads.reduce((n, h) => n + h) * headDim]
      return splitHeads(c_attn.forwardPart(input, at, length), heads, headDim)
    }
    return [...rows(x, 0, [q]), ...rows(context, q, [kv, kv])]
  }

  override extraRepr(): string {
    const { embedDim, numHeads, numKvHeads, headDim } = this
    const kv = numKvHeads === numHeads ? '' : `, numKvHeads=${numKvHeads}`
    const size = headDim * numHeads === embedDim ? '' : `, headDim=${headDim}`
    const more = `${this.#rope ? ', rope=true' : ''}${this.isCausal ? ', isCausal=true' : ''}`
    return `embedDim=${embedDim}, numHeads=${numHeads}${kv}${size}${more}`
  }
}

/**
 * Multi-head attention (Vaswani et al. 2017), (B, T, embedDim) → (B, T, embedDim): each of the H heads computes
 * softmax(q kᵀ · scale + mask) v, with keys and values of x itself or of a context. What sees no key at all gets zeros
 * from its heads. Causality begins at the top left corner, position 0 of x and context, or where a cache ends.
 * (`MultiheadAttention` is PyTorch's class of that name, with its masks and parameter names.)
 *
 * @throws ValueError unless sizes divide, dropout is a probability and a window is a whole number of causal attention.
 * @example
 * const attention = new MultiHeadAttention(16, 4, { numKvHeads: 2, isCausal: true, rope: true })
 * attention.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class MultiHeadAttention extends SelfAttention<KVCache> {
  /** Probability of dropping an attention weight while training. */
  readonly dropout: number
  /** How many keys before a query it sees, itself included, where there is a limit. */
  readonly window: number
  /** How many first tokens stay visible past the window. */
  readonly globalTokens: number
  /** What scores are multiplied by, where it is not 1 / √headDim. */
  readonly scale: number
  /** ALiBi's slopes (H). */
  slopes: Tensor | null
  readonly #blocks: BlockChooser | null

  constructor(embedDim: number, numHeads: number, options: MultiHeadAttentionOptions = {}) {
    super(embedDim, numHeads, expectOptions('MultiHeadAttention', options, SOFTMAX))
    const { dropout = 0, window = 0, globalTokens = 0, blocks, alibi = false } = options
    const { scale = 1 / Math.sqrt(this.headDim) } = options
    this.dropout = probability('MultiHeadAttention', dropout)
    expectWindow('MultiHeadAttention', window, globalTokens)
    if (window > 0 && !this.isCausal)
      throw new ValueError('MultiHeadAttention: a window needs isCausal: true; it ends at each position')
    if (!Number.isFinite(scale))
      throw new ValueError(`MultiHeadAttention: scale must be finite, got ${scale}`)
    this.window = window
    this.globalTokens = globalTokens
    this.scale = scale
    this.slopes = alibi ? buffer(tensor(alibiSlopes(numHeads)), { persistent: false }) : null
    this.#blocks = blocks ? new BlockChooser('MultiHeadAttention', blocks) : null
  }

  /**
   * Null where blocks are chosen from the input.
   *
   * @throws ValueError unless attention is causal, and for a maxLength of Infinity without a window.
   * @example
   * const attention = new MultiHeadAttention(16, 4, { isCausal: true })
   * const cache = attention.newCache(2, 10)
   * noGrad(() => attention.forward(randn([2, 3, 16]), { cache }))
   * noGrad(() => attention.forward(randn([2, 1, 16]), { cache })) // the fourth token, which sees all four
   * cache?.length // → 4
   */
  override newCache(batch: number, maxLength: number): KVCache | null {
    if (!this.isCausal) {
      throw new ValueError(
        'MultiHeadAttention: a cache needs isCausal: true; otherwise earlier tokens see later ones',
      )
    }
    if (this.#blocks?.dynamic) return null
    const { numKvHeads, headDim } = this
    // Global tokens stay in sight, so that nothing may go.
    const window = this.globalTokens > 0 ? 0 : this.window
    const { backend: device } = this.outProj.weight
    const dtype = storedDType(device, this.outProj.dtype)
    const cache = new KVCache({ batch, numKvHeads, headDim, maxLength, window, dtype, device })
    cache.steady &&= !this.slopes && !this.#blocks
    return cache
  }

  protected attend(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall<KVCache>): Tensor {
    const { cache } = call
    const { keys, values } = cache ? cache.append(k, v) : { keys: k, values: v }
    const rows = keys.shape[keys.rank - 2]
    // With a window the cache may hold the last keys only.
    const length = cache?.length ?? rows
    const last = (mask: Tensor): Tensor =>
      length > rows && mask.shape[mask.rank - 1] === length ? mask.narrow(-1, length - rows, rows) : mask
    let mask = this.#mask(call, last)
    if (cache && this.#blocks) {
      const queries = q.shape[q.rank - 2]
      const places = { firstQuery: length - queries, queries, firstKey: length - rows, keys: rows }
      const seen = this.#blocks.rows(places, q)
      mask = mask ? both(mask, seen) : seen
    }
    const y = scaledDotProductAttention(q, keys, values, {
      attnMask: mask,
      blockMask: cache || !this.#blocks ? null : this.#blocks.mask(q, k, this.isCausal),
      alibi: this.slopes,
      isCausal: this.isCausal && (cache ? 'bottom-right' : 'top-left'),
      window: this.window,
      globalTokens: this.globalTokens,
      scale: this.scale,
      dropoutP: this.training ? this.dropout : 0,
    })
    // A cache may be of more bits.
    return cache && y.dtype !== q.dtype ? y.to(q.dtype) : y
  }

  #mask({ attnMask, keyMask }: AttentionCall<KVCache>, last: (mask: Tensor) => Tensor): Tensor | null {
    const mask = attnMask && last(attnMask)
    if (!keyMask) return mask
    const real = last(keyMask).unsqueeze(1).unsqueeze(1)
    return mask ? both(mask, real) : real
  }

  override extraRepr(): string {
    const { window, globalTokens, slopes } = this
    const near = window > 0 ? `, window=${window}` : ''
    const far = globalTokens > 0 ? `, globalTokens=${globalTokens}` : ''
    const blocks = this.#blocks ? (this.#blocks.dynamic ? ', blocks=chosen' : ', blocks=true') : ''
    return `${super.extraRepr()}${near}${far}${blocks}${slopes ? ', alibi=true' : ''}`
  }
}

/** A mask, bool or float, and a bool one: what both let through. */
const both = (mask: Tensor, seen: Tensor): Tensor =>
  mask.dtype === 'bool' ? mask.logicalAnd(seen) : mask.maskedFill(seen.logicalNot(), -Infinity)

/**
 * Slopes of attention with linear biases, one for each head (Press et al. 2022): 2^(−8i/H), i = 1 … H, where H is a
 * power of two; otherwise those of the power of two P below, and then every other one of 2P's.
 *
 * @example
 * alibiSlopes(4) // → 0.25,0.0625,0.015625,0.00390625
 */
export function alibiSlopes(numHeads: number): number[] {
  positive('alibiSlopes', { numHeads })
  const geometric = (n: number): number[] => Array.from({ length: n }, (_, i) => 2 ** ((-8 * (i + 1)) / n))
  const power = 2 ** Math.floor(Math.log2(numHeads))
  const between = geometric(2 * power).filter((_, i) => i % 2 === 0)
  return [...geometric(power), ...between.slice(0, numHeads - power)]
}
