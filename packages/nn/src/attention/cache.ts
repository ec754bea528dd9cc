import {
  applyProgramInto,
  type Backend,
  cat,
  type DType,
  expectOptions,
  GradError,
  gradEnabled,
  noGrad,
  Printable,
  ShapeError,
  show,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import { cacheRow, eachRun } from '@tilegrad/core/kernel'
import { positive } from '../layers/linear.ts'
import type { Place } from './place.ts'

/**
 * What an attention layer remembers of B sequences that grow together, so that the next tokens need not compute the
 * earlier ones anew. A layer makes its own (`newCache`), takes new tokens in where its `forward` is given one, and so
 * chooses what to keep: all keys and values, those of a window, or a state of constant size.
 *
 * Its tensors are made where `newCache` is called and follow the rules of `scope` there; `dispose()` frees them.
 */
export abstract class AttentionCache extends Printable {
  /** B, the number of sequences. */
  readonly batch: number
  /** How many tokens of each sequence it can take in; Infinity where its size does not depend on it. */
  readonly maxLength: number
  /**
   * Says whether the cache takes in one token after another by the same calls, where the device knows their place: not with
   * masks or biases that depend on how many tokens came before.
   */
  steady = false
  /** The place of the next token, for caches that are asked for one token after another. @internal */
  place: Place | null = null
  #length = 0

  constructor(batch: number, maxLength: number) {
    super()
    positive(new.target.name, { batch, ...(maxLength === Infinity ? {} : { maxLength }) })
    this.batch = batch
    this.maxLength = maxLength
  }

  /** How many tokens of each sequence it has taken in: the position of the next one. */
  get length(): number {
    return this.#length
  }

  /**
   * Counts `tokens` more; what takes tokens in calls it first.
   *
   * @throws ValueError if they are more than maxLength, GradError if one of `made` needs a gradient: what is
   * remembered has none.
   */
  protected admit(tokens: number, made: readonly Tensor[]): void {
    if (gradEnabled() && made.some((t) => t.requiresGrad))
      throw new GradError('cache: what it remembers has no gradient; decode inside noGrad()')
    eachRun(() => {
      if (this.#length + tokens > this.maxLength) {
        throw new ValueError(
          `cache: ${tokens} more tokens after ${this.#length} exceed maxLength ${this.maxLength}; ask newCache for a longer one`,
        )
      }
      this.#length += tokens
    })
  }

  /** How many keys `tokens` more see, themselves included: the columns of their mask. @internal */
  keysOf(tokens: number): number {
    return this.place && tokens === 1 ? this.place.rows : this.#length + tokens
  }

  /** Forgets all tokens and keeps the memory. */
  reset(): void {
    this.#length = 0
    this.place = null
  }

  /** Says how many sequences it holds, and how many tokens of how many. */
  toString(): string {
    return `${this.constructor.name}(batch=${this.batch}, length=${this.length}, maxLength=${this.maxLength})`
  }

  /** Frees its tensors. */
  abstract dispose(): void

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/**
 * The dtype of the keys and values that a layer of a dtype remembers: that, or float32 on a device whose attention has no
 * code for it, where all of them would be widened for every token.
 *
 * @internal
 */
export function storedDType({ kernels }: Backend, dtype: DType): DType {
  const [, keys] = kernels.scaled_dot_product_attention?.dtypes ?? []
  return isHalf(dtype) && keys && !keys.includes(dtype) ? 'float32' : dtype
}

const isHalf = (dtype: DType): boolean => dtype === 'float16' || dtype === 'bfloat16'

/** Options of `KVCache`. */
export interface KVCacheOptions {
  /** How many sequences it holds. */
  batch: number
  /** The number of key-value heads, Hk: grouped heads are stored once. */
  numKvHeads: number
  /** The size of a head. */
  headDim: number
  /** Tokens of each sequence; Infinity is possible with a window. */
  maxLength: number
  /** Queries see the last `window` keys only, so that older ones make room. Default 0: all are kept. */
  window?: number
  /** The type of its elements. Default: float32. */
  dtype?: DType
  /** The device of the cache. Default: the default device. */
  device?: Backend | string
}

/**
 * Keys and values of the tokens seen, (B, Hk, maxLength, D) each, allocated once and written in place. With a window it
 * holds twice the window at most: once full, the last `window − 1` rows move to its front, one row per token on
 * average, and rows stay in order, as masks and biases by distance want them.
 *
 * @example
 * const cache = new KVCache({ batch: 1, numKvHeads: 2, headDim: 4, maxLength: 8 })
 * cache.append(randn([1, 2, 5, 4]), randn([1, 2, 5, 4]))
 * cache.append(randn([1, 2, 1, 4]), randn([1, 2, 1, 4])).keys.shape // → 1,2,6,4
 */
export class KVCache extends AttentionCache {
  /** How many tokens it keeps at most. */
  readonly window: number
  /** The keys, (B, Hk, capacity, D), of which the first rows are in use. */
  readonly keys: Tensor
  /** The values of all tokens so far. */
  readonly values: Tensor
  /** How many rows are in use. */
  #held = 0

  constructor(options: KVCacheOptions) {
    const {
      batch,
      numKvHeads,
      headDim,
      maxLength,
      window = 0,
      dtype = 'float32',
      device,
    } = expectOptions('KVCache', options, {
      batch: 1,
      numKvHeads: 1,
      headDim: 1,
      maxLength: 1,
      window: 1,
      dtype: 1,
      device: 1,
    })
    super(batch, maxLength)
    positive('KVCache', { numKvHeads, headDim })
    if (window === 0 && maxLength === Infinity)
      throw new ValueError('KVCache: without a window maxLength must be finite; every token is kept')
    this.window = window
    this.steady = window === 0
    const capacity = window > 0 ? Math.min(maxLength, 2 * window) : maxLength
    const where = device === undefined ? { dtype } : { dtype, device }
    this.keys = zeros([batch, numKvHeads, capacity, headDim], where)
    this.values = zeros([batch, numKvHeads, capacity, headDim], where)
  }

  /**
   * Takes in the keys and values of T more tokens, (B, Hk, T, D) each.
   *
   * @returns those that the T tokens may see, earlier ones first: (B, Hk, S, D), the last T of them their own; S is
   * `length`, or with a window at most window − 1 + T. They hold until the next call.
   * @throws ShapeError for another B, Hk or D, ValueError beyond maxLength, GradError where a gradient would be lost.
   */
  append(k: Tensor, v: Tensor): { keys: Tensor; values: Tensor } {
    const [b, h, capacity, d] = this.keys.shape as [number, number, number, number]
    const t = k.shape[2] ?? 0
    for (const x of [k, v]) {
      if (x.shape.join() !== [b, h, t, d].join()) {
        throw new ShapeError(
          `KVCache: got keys ${show(k.shape)} and values ${show(v.shape)}; expected [${b}, ${h}, T, ${d}] both`,
        )
      }
    }
    this.admit(t, [k, v])
    if (this.place && t === 1) return this.#write(k, v, this.place)
    return noGrad(() => {
      const seen = (rows: number): number => (this.window > 0 ? Math.min(rows, this.window - 1 + t) : rows)
      if (this.#held + t > capacity) {
        const past = Math.min(this.#held, this.window - 1)
        // Rows cannot move onto themselves either.
        if (past + t > capacity || this.#held < 2 * past) return this.#pass(k, v, past)
        for (const store of [this.keys, this.values])
          store.narrow(2, 0, past).copy_(store.narrow(2, this.#held - past, past))
        this.#held = past
      }
      this.keys.narrow(2, this.#held, t).copy_(k)
      this.values.narrow(2, this.#held, t).copy_(v)
      this.#held += t
      const rows = seen(this.#held)
      return {
        keys: this.keys.narrow(2, this.#held - rows, rows),
        values: this.values.narrow(2, this.#held - rows, rows),
      }
    })
  }

  /** One token, in the row that only the device knows. */
  #write(k: Tensor, v: Tensor, place: Place): { keys: Tensor; values: Tensor } {
    const { rows } = place
    const [keys, values] = [this.keys.narrow(2, 0, rows), this.values.narrow(2, 0, rows)]
    noGrad(() => applyProgramInto([keys, values], cacheRow, [keys, k, values, v, place.position]))
    eachRun(() => void this.#held++)
    return { keys, values }
  }

  /** More new tokens than there is room for: they are seen as they come, and the last rows are kept. */
  #pass(k: Tensor, v: Tensor, past: number): { keys: Tensor; values: Tensor } {
    const joined = (store: Tensor, x: Tensor): Tensor =>
      past === 0 ? x : cat([store.narrow(2, this.#held - past, past), x], 2)
    const all = { keys: joined(this.keys, k), values: joined(this.values, v) }
    const rows = all.keys.shape[2]
    const kept = Math.min(rows, this.window - 1)
    this.keys.narrow(2, 0, kept).copy_(all.keys.narrow(2, rows - kept, kept))
    this.values.narrow(2, 0, kept).copy_(all.values.narrow(2, rows - kept, kept))
    this.#held = kept
    return all
  }

  override reset(): void {
    super.reset()
    this.#held = 0
  }

  dispose(): void {
    this.keys.dispose()
    this.values.dispose()
  }
}
