import { expectOptions, hostRandint, hostRandom, RandomGenerator, ValueError } from '@tilegrad/core'
import { shuffled } from './dataset.ts'

/** An order of indices, gone through anew in every epoch: any iterable of numbers, such as an array. */
export interface Sampler extends Iterable<number> {
  /** The number of indices, where it is known. */
  readonly length?: number
}

/** Where an epoch's random numbers come from: a generator of one's own, or a new one that the global seed decides. */
export const generatorOf = (seed: number | string | undefined): (() => RandomGenerator) => {
  if (seed === undefined) return () => new RandomGenerator(hostRandom())
  const own = new RandomGenerator(seed)
  return () => own
}

/** Options of `RandomSampler`. */
export interface RandomSamplerOptions {
  /** Draws each index from all, so that some come twice. Default: false. */
  replacement?: boolean
  /** How many indices an epoch has. Default: as many as the dataset has samples. */
  numSamples?: number
  /** Makes the order of each epoch a function of it; without, it is drawn from what `manualSeed` sets. */
  seed?: number | string
}

/**
 * Indices of a dataset in random order, another one in each epoch, as torch.utils.data.RandomSampler: all of them once, or
 * `numSamples` of them, with replacement one by one and without a list of all.
 *
 * @throws ValueError for options out of range.
 * @example
 * import { RandomSampler } from 'tilegrad/data'
 *
 * const sampler = new RandomSampler({ length: 1e9 }, { replacement: true, numSamples: 3, seed: 1 })
 * const drawn = [...sampler]
 * drawn.length // → 3
 */
export class RandomSampler implements Sampler {
  readonly #size: number
  readonly #replacement: boolean
  readonly #generator: () => RandomGenerator
  /** The number of indices in an epoch. */
  readonly length: number

  constructor(dataset: { readonly length: number }, options: RandomSamplerOptions = {}) {
    const {
      replacement = false,
      numSamples,
      seed,
    } = expectOptions('RandomSampler', options, { replacement: 1, numSamples: 1, seed: 1 })
    this.#size = dataset.length
    this.#replacement = replacement
    this.#generator = generatorOf(seed)
    this.length = numSamples ?? dataset.length
    if (!Number.isInteger(this.length) || this.length < 0 || (!replacement && this.length > this.#size))
      throw new ValueError(
        `RandomSampler: numSamples must be a whole number from 0 to the dataset's length ${this.#size} (any with { replacement: true }), got ${this.length}`,
      )
    if (this.#size === 0 && this.length > 0)
      throw new ValueError(`RandomSampler: cannot draw ${this.length} indices of a dataset without samples`)
  }

  *[Symbol.iterator](): Iterator<number> {
    const generator = this.#generator()
    if (!this.#replacement) yield* generator.run(() => shuffled(this.#size)).subarray(0, this.length)
    else for (let i = 0; i < this.length; i++) yield generator.run(() => hostRandint(this.#size))
  }
}

/** Indices, so many at a time. */
export function* batched(order: Iterable<number>, size: number, dropLast: boolean): Generator<number[]> {
  let batch: number[] = []
  for (const index of order) {
    batch.push(index)
    if (batch.length < size) continue
    yield batch
    batch = []
  }
  if (batch.length > 0 && !dropLast) yield batch
}
