import {
  type ArrayOperand,
  amax,
  applyProgram,
  argmax,
  asTensor,
  type Compiled,
  cat,
  compile,
  cumsum,
  describeValue,
  expr as e,
  expectOptions,
  type Names,
  noGrad,
  Printable,
  program,
  RandomGenerator,
  rand,
  ShapeError,
  scope,
  show,
  softmax,
  type Tensor,
  tensor,
  topk,
  ValueError,
  where,
  zeros,
} from '@tilegrad/core'
import type { AttentionCache } from '../attention/cache.ts'
import { keyMaskOf } from '../attention/key-mask.ts'
import { Place } from '../attention/place.ts'
import { positive } from '../layers/linear.ts'
import type { Module } from '../module/module.ts'
import { wide } from '../module/parameter.ts'

/** What `generate` needs of a model. */
export interface LanguageModel {
  /** Longest sequence its positions allow; Infinity where they do not end. */
  readonly maxLength: number
  /** All modules in it: caches are made for those that have them. */
  modules(): Module[]
  /** A cache for each attention layer, for sequences of up to `maxLength` tokens; null if the model has none. */
  newCache(batch: number, maxLength: number): readonly AttentionCache[] | null
  /**
   * Logits (B, V) of the token after the last of idx, int32 (B, T). With caches idx comes after what they hold, and
   * they take it in. The mask, bool (B, S), is true for those tokens of caches and idx that may be
   * attended to, and false for padding.
   */
  nextLogits(idx: Tensor, cache: readonly AttentionCache[] | null, keyMask: Tensor | null): Tensor
}

/** Options of `generate`. */
export interface GenerateOptions {
  /** How many tokens each sequence gets; Infinity where the model's caches have an end of their own, as windows do. */
  maxNewTokens: number
  /** Divides the logits; 0 takes the likeliest token. Default 1. */
  temperature?: number
  /** Choose among the k likeliest tokens only. Default: all. */
  topK?: number
  /** Choose among the fewest likeliest tokens whose probabilities reach topP (Holtzman et al. 2020). Default 1: all. */
  topP?: number
  /** Choose among tokens at least minP times as likely as the likeliest (Nguyen et al. 2024). Default 0: all. */
  minP?: number
  /** Tokens that end a sequence. They are part of it, and repeated while other sequences go on. */
  stop?: readonly number[]
  /** Draws from a generator of this seed's own. Default: from `manualSeed`'s. */
  seed?: number | string
  /** Keep keys and values, so that each token is computed from the one before; default true. */
  useCache?: boolean
  /**
   * A bool mask (B, T), true for tokens of idx that others may attend to and false for padding, which no token sees and
   * positions do not count: on the left of prompts that are shorter than others. A tokenizer's attention mask as bool.
   */
  keyMask?: Tensor | null
}

/**
 * Tokens to come. Nothing happens before they are asked for, and each `for await` and each `tensor()` generates anew.
 */
export class Generation extends Printable implements AsyncIterable<Int32Array> {
  readonly #model: LanguageModel
  readonly #idx: Tensor
  readonly #options: GenerateOptions

  /** @internal */
  constructor(model: LanguageModel, tokens: Tensor | ArrayOperand, options: GenerateOptions) {
    super()
    if (typeof model?.nextLogits !== 'function')
      throw new ValueError(`generate: takes a language model first, got ${describeValue(model)}`)
    const idx = asTensor('generate', tokens, undefined, 'int32')
    check(idx, options)
    this.#model = model
    this.#idx = idx
    this.#options = options
  }

  /** Says what is generated, and how to get it. */
  toString(): string {
    const { maxNewTokens } = this.#options
    return `Generation(${maxNewTokens} tokens after ${show(this.#idx.shape)}: for await, or await tensor())`
  }

  /** Yields the next token of each sequence, (B), as soon as it is known. Throws as `tensor()` does. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Int32Array, void, undefined> {
    const run = new Run(this.#model, this.#idx, this.#options)
    try {
      while (run.step()) yield await run.read()
    } finally {
      run.dispose()
    }
  }

  /**
   * All tokens, int32 (B, T + n), beginning with idx. A device that cannot be read at once is read when all are there,
   * or with stop tokens after each.
   *
   * @throws ValueError if maxNewTokens is Infinity, and where the logits have no finite maximum: NaN, ∞, or nothing but −∞.
   */
  async tensor(): Promise<Tensor> {
    const { maxNewTokens, stop = [] } = this.#options
    if (maxNewTokens === Infinity)
      throw new ValueError('generate: tensor() needs an end; give maxNewTokens, or use for await')
    const [b, t] = this.#idx.shape as [number, number]
    const run = new Run(this.#model, this.#idx, this.#options)
    const out = zeros([b, t + maxNewTokens], { dtype: 'int32', device: this.#idx.backend })
    const write = (from: number, tokens: Tensor): void =>
      scope(() => {
        out.narrow(1, from, tokens.shape[1] as number).copy_(tokens)
      })
    try {
      write(0, this.#idx)
      while (run.step()) {
        write(t + run.tokens - 1, run.last as Tensor)
        if (stop.length > 0) await run.read()
      }
      // What cannot be read at once has not been looked at yet.
      if (!out.backend.readSync) checkTokens(await out.narrow(1, t, run.tokens).data())
      if (run.tokens === maxNewTokens) return out
      const short = scope(() => out.narrow(1, 0, t + run.tokens).clone())
      out.dispose()
      return short
    } catch (error) {
      out.dispose()
      throw error
    } finally {
      run.dispose()
    }
  }
}

/**
 * Continues sequences token by token, in evaluation mode and untaped. The prompt runs through the model once and each
 * new token alone, where the model has caches and its positions do not end; beyond, each token is computed from the last
 * `model.maxLength` tokens anew. Sampling runs on the device: Gumbel noise is added to the logits and the largest taken
 * (Gumbel 1954; Maddison et al. 2014); temperature comes first, then topK, topP and minP.
 *
 * @param idx int32 tokens (B, T), T ≥ 1, a tensor or nested arrays; keep a tensor until the tokens are there.
 * @returns new tokens as they come, by `for await`, or all by `tensor()`.
 * @throws ShapeError for an idx that is not (B, T), ValueError for options out of range.
 * @example
 * const model = new GPT({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 })
 * const start = tensor([[1, 2, 3]], { dtype: 'int32' })
 * for await (const [token] of generate(model, start, { maxNewTokens: 2, topP: 0.9 })) console.log(token)
 * const tokens = await generate(model, start, { maxNewTokens: 5, temperature: 0.8, seed: 1 }).tensor()
 * tokens.shape // → 1,8
 */
export const generate = (
  model: LanguageModel,
  idx: Tensor | ArrayOperand,
  options: GenerateOptions,
): Generation => new Generation(model, idx, options)

const KNOWN: Names<GenerateOptions> = {
  maxNewTokens: 1,
  temperature: 1,
  topK: 1,
  topP: 1,
  minP: 1,
  stop: 1,
  seed: 1,
  useCache: 1,
  keyMask: 1,
}

function check(idx: Tensor, options: GenerateOptions): void {
  keyMaskOf('generate', Object(options), idx.shape)
  expectOptions('generate', options, KNOWN)
  const { maxNewTokens, temperature = 1, topK, topP = 1, minP = 0, stop = [] } = options
  if (!(maxNewTokens === Infinity || Number.isInteger(maxNewTokens)) || maxNewTokens < 0)
    throw new ValueError(
      `generate: maxNewTokens must be a whole number or Infinity, got ${describeValue(maxNewTokens)}`,
    )
  if (!(temperature >= 0 && temperature < Infinity))
    throw new ValueError(`generate: temperature must be ≥ 0 and finite, got ${temperature}`)
  if (topK !== undefined) positive('generate', { topK })
  if (!(topP > 0 && topP <= 1)) throw new ValueError(`generate: topP must lie within (0, 1], got ${topP}`)
  if (!(minP >= 0 && minP <= 1)) throw new ValueError(`generate: minP must lie within [0, 1], got ${minP}`)
  if (!Array.isArray(stop))
    throw new ValueError(`generate: stop must list tokens, got ${describeValue(stop)}`)
  for (const token of stop) {
    if (!Number.isInteger(token)) throw new ValueError(`generate: stop must list tokens, got ${token}`)
  }
  if (idx.rank !== 2 || idx.shape[0] === 0 || idx.shape[1] === 0) {
    throw new ShapeError(`generate: idx must be (B, T) with at least one token, got ${show(idx.shape)}`)
  }
}

/** One way through a generation, with all that is alive between two tokens. */
class Run {
  readonly #model: LanguageModel
  readonly #options: GenerateOptions
  readonly #modules: readonly Module[]
  readonly #generator: RandomGenerator | null
  readonly #stop: Tensor | null
  #cache: readonly AttentionCache[] | null
  /** The last tokens, as many as the model can see, where they may have to be computed anew; else null. */
  #seen: Tensor | null
  /** The mask of tokens that are no padding, of all that the model can see. */
  #mask: Tensor | null
  /** The tokens that the model has not taken in yet. */
  #next: Tensor
  #stopped = false
  #compiled: Compiled<[], Tensor> | null = null
  /** The newest token of each sequence, in memory that the recorded step reads and writes. */
  #token: Tensor | null = null
  #place: Place | null = null
  /** The newest token of each sequence, (B, 1). */
  last: Tensor | null = null
  /** How many new tokens there are. */
  tokens = 0

  constructor(model: LanguageModel, idx: Tensor, options: GenerateOptions) {
    const { maxNewTokens, stop = [], seed, useCache = true, keyMask = null } = options
    const [b, t] = idx.shape as [number, number]
    this.#model = model
    this.#options = options
    this.#modules = model.modules()
    this.#generator = seed === undefined ? null : new RandomGenerator(seed)
    this.#stop = stop.length > 0 ? tensor(Int32Array.from(stop), { device: idx.backend }) : null
    const whole = t + maxNewTokens - 1
    const cached = useCache && t < model.maxLength && maxNewTokens > 1
    this.#cache = cached ? model.newCache(b, Math.min(whole, model.maxLength)) : null
    const seen = Math.min(t, model.maxLength)
    const visible = (x: Tensor): Tensor => scope(() => x.narrow(1, t - seen, seen).clone())
    this.#next = visible(idx)
    this.#mask = keyMask && visible(keyMask)
    this.#seen = this.#cache && whole <= model.maxLength ? null : scope(() => this.#next.clone())
  }

  /** Makes one more token; false if there is none to come. */
  step(): boolean {
    if (this.#stopped || this.tokens >= this.#options.maxNewTokens) return false
    const modes = this.#modules.map((module) => module.training)
    for (const module of this.#modules) module.training = false
    try {
      if (this.#generator) this.#generator.run(() => this.#advance())
      else this.#advance()
    } finally {
      for (const [i, module] of this.#modules.entries()) module.training = modes[i] as boolean
    }
    this.tokens++
    const last = this.last as Tensor
    if (last.backend.readSync) checkTokens(last.dataSync())
    return true
  }

  /** The step after the first, where it is the same for each token: recorded, and then replayed. */
  #steady(): Compiled<[], Tensor> | null {
    const caches = this.#cache
    if (this.#compiled || !caches || this.#seen || this.#mask || this.tokens === 0) return this.#compiled
    if (!caches.every((cache) => cache.steady && cache.length === caches[0]?.length)) return null
    const { length } = caches[0] as AttentionCache
    const capacity = Math.min(...caches.map((cache) => cache.maxLength))
    this.#place = new Place(length, Math.max(1, capacity === Infinity ? 1 : capacity), this.#next.backend)
    for (const cache of caches) cache.place = this.#place
    const token = scope(() => this.#next.clone())
    this.#token = token
    this.#compiled = compile(() => noGrad(() => token.copy_(this.#draw(token, token, null))))
    return this.#compiled
  }

  /** The token after `input`, of each sequence; where one has ended, its last one again. */
  #draw(input: Tensor, last: Tensor | null, mask: Tensor | null): Tensor {
    const drawn = sample(this.#model.nextLogits(input, this.#cache, mask), this.#options)
    return this.#stop && last ? where(isOneOf(last, this.#stop), last, drawn) : drawn
  }

  #advance(): void {
    const { maxLength } = this.#model
    const steady = this.#steady()
    if (steady) {
      const next = steady()
      this.#next.dispose()
      this.#next = this.last = next
      return
    }
    // Positions have come to their end: from here on they begin elsewhere for each token.
    if (this.#cache?.[0] && this.#cache[0].length + 1 > maxLength) this.#forget()
    const { next, seen, mask } = noGrad(() =>
      scope(() => {
        const input = this.#cache ? this.#next : (this.#seen as Tensor)
        const next = this.#draw(input, this.last, this.#mask)
        const grow = (x: Tensor | null, by: Tensor): Tensor | null => {
          if (!x) return null
          const all = cat([x, by], 1)
          const length = all.shape[1]
          return length > maxLength ? all.narrow(1, length - maxLength, maxLength).clone() : all
        }
        return { next, seen: grow(this.#seen, next), mask: grow(this.#mask, next.eq(next)) }
      }),
    )
    this.#next.dispose()
    this.#seen?.dispose()
    this.#mask?.dispose()
    this.#next = next
    this.#seen = seen
    this.#mask = mask
    this.last = next
  }

  /** The newest tokens; notices when all sequences have stopped. */
  async read(): Promise<Int32Array> {
    const tokens = Int32Array.from(await (this.last as Tensor).data())
    checkTokens(tokens)
    const { stop = [] } = this.#options
    this.#stopped = tokens.every((token) => stop.includes(token))
    return tokens
  }

  #forget(): void {
    this.#compiled?.dispose()
    this.#place?.dispose()
    this.#token?.dispose()
    for (const cache of this.#cache ?? []) cache.dispose()
    this.#cache = this.#compiled = this.#place = this.#token = null
  }

  dispose(): void {
    this.#forget()
    for (const t of [this.#next, this.#seen, this.#mask, this.#stop]) t?.dispose()
  }
}

/** The number that stands for a token that could not be chosen. */
const NONE = -1

function checkTokens(tokens: ArrayLike<number>): void {
  for (let i = 0; i < tokens.length; i++)
    if (tokens[i] === NONE)
      throw new ValueError(
        'generate: the logits are NaN or infinite, so that there is no likeliest token; look for NaN in the weights',
      )
}

/** Tells which of x (B, 1) are among the tokens (S), as bool (B, 1). */
const isOneOf = (x: Tensor, tokens: Tensor): Tensor => x.eq(tokens).any(1, { keepdim: true })

/** Draws a token per row of logits (B, V), int32 (B, 1); -1 where a row has no finite maximum. */
function sample(from: Tensor, options: GenerateOptions): Tensor {
  const { temperature = 1 } = options
  // Noise and sums of probabilities need more than 16 bits.
  const logits = from.to(wide(from.dtype))
  const top = temperature > 0 && temperature < 1 ? amax(logits, 1, { keepdim: true }) : null
  const token = choose(logits, top, options)
  // NaN and ∞ are chosen wherever they are, −∞ where there is nothing else; but for what the largest is taken from.
  return applyProgram(FINITE, [top ?? logits.gather(1, token), token])
}

const FINITE = program('finite_choice', 2, ([logit, token]) =>
  e.select(e.lt(e.abs(logit), Infinity), token, NONE),
)

function choose(logits: Tensor, top: Tensor | null, options: GenerateOptions): Tensor {
  const { temperature = 1, topK, topP = 1, minP = 0 } = options
  if (temperature === 0) return argmax(logits, 1, { keepdim: true })
  const size = logits.shape[1]
  // Counted from the largest, scores cannot leave float32's range at the upper end, however cold it is.
  let scores = top === null ? logits.div(temperature) : logits.sub(top).div(Math.max(temperature, 2 ** -100))
  let tokens: Tensor | null = null
  if ((topK ?? size) < size || topP < 1) {
    ;[scores, tokens] = topk(scores, Math.min(topK ?? size, size), 1)
    if (topP < 1) {
      const p = softmax(scores, 1)
      // What comes before a token sums to less than topP; nothing comes before the first.
      scores = scores.maskedFill(cumsum(p, 1).sub(p).ge(topP), -Infinity)
    }
  }
  if (minP > 0) {
    const least = amax(scores, 1, { keepdim: true }).add(Math.log(minP))
    scores = scores.maskedFill(scores.lt(least), -Infinity)
  }
  // Never 0 nor, rounded, 1, so that no token is forced or excluded by its noise.
  const uniform = rand(scores.shape, { device: scores.backend, dtype: scores.dtype, low: 2 ** -26 })
  const choice = argmax(scores.add(uniform.log().neg().log().neg()), 1, { keepdim: true })
  return tokens ? tokens.gather(1, choice) : choice
}
