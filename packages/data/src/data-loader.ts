import {
  type Backend,
  describeValue,
  expectOptions,
  type RandomGenerator,
  scope,
  Tensor,
  to,
  ValueError,
  withBackend,
} from '@tilegrad/core'
import { type Collated, defaultCollate, mapTensors } from './collate.ts'
import { type Dataset, type IterableDataset, shuffled } from './dataset.ts'
import { batched, generatorOf, type Sampler } from './sampler.ts'
import { type Fetched, indexed, isPromise, type Source, streamed } from './source.ts'
import { fromWorkers, moduleOf } from './workers.ts'

/** Options of `DataLoader`. */
export interface DataLoaderOptions<T = unknown, B = Collated<T>> {
  /** How many samples a batch has. Default: 1. */
  batchSize?: number
  /** Goes through the samples in another random order in each epoch. Default: false. */
  shuffle?: boolean
  /** Makes the orders a function of it; without, they are drawn from what `manualSeed` sets. */
  seed?: number | string
  /** The indices of an epoch, in place of `shuffle`: an array, a `RandomSampler`, or another iterable of numbers. */
  sampler?: Sampler
  /** Leaves out the last batch if it is smaller than the others. Default: false. */
  dropLast?: boolean
  /** Makes a batch of samples. Default: `defaultCollate`. */
  collate?: (samples: T[]) => B
  /** The device that batches are put on. Default: where they are made. */
  device?: Backend | string
  /**
   * How many batches of an asynchronous dataset are begun ahead while the program works on one. Default: 1, and 2 for each
   * worker.
   */
  prefetchFactor?: number
  /** How many workers get samples, where the dataset is the URL of a module. Default: 1. */
  numWorkers?: number
}

const NAMES = {
  batchSize: 1,
  shuffle: 1,
  seed: 1,
  sampler: 1,
  dropLast: 1,
  collate: 1,
  device: 1,
  prefetchFactor: 1,
  numWorkers: 1,
} as const

/** A batch, and the tensors in it that were made for it. */
interface Made {
  readonly batch: unknown
  readonly own: readonly Tensor[]
}

type Begun = Made | { readonly promise: Promise<Fetched> } | null

function tensorsOf(value: unknown): Set<Tensor> {
  const found = new Set<Tensor>()
  mapTensors(value, (t) => {
    found.add(t)
    return t
  })
  return found
}

const free = ({ own }: Made): void => {
  for (const t of own)
    if (!t.kept)
      t.release('its DataLoader when the next batch was asked for; call .keep() on what you need longer')
}

const whole = (name: string, value: number, least: number): number => {
  if (Number.isInteger(value) && value >= least) return value
  throw new ValueError(`DataLoader: ${name} must be a whole number ≥ ${least}, got ${describeValue(value)}`)
}

/** Is it a dataset whose samples have numbers? */
const hasNumbers = (dataset: object): dataset is Dataset =>
  typeof (dataset as Partial<Dataset>).get === 'function' &&
  typeof (dataset as Partial<Dataset>).length === 'number'

/**
 * Goes through a dataset in batches, as torch.utils.data.DataLoader: `for await (const [x, y] of loader)`, or a plain `for`
 * where the dataset is synchronous. Each loop is an epoch, with an order of its own if `shuffle` is set.
 *
 * A batch lives until the next one is asked for, which frees it; call `.keep()` on a tensor of it that is needed longer. The
 * last batch of a loop that was left early belongs to the garbage collector. What a dataset's synchronous `get` makes is
 * freed with the batch as well, but for what it calls `keep()` on, such as the entries of a cache.
 *
 * @param dataset one with numbers (`length` and `get`), an array of samples, an iterable, synchronous or not, or the URL of a
 * module that exports one of the first two as `dataset` or default: workers then get its samples, which must be plain data
 * or tensors, from the beginning of each loop to its end.
 * @throws ValueError for options that do not fit the dataset; while it runs, DataError naming the sample that failed.
 * @example
 * import { DataLoader, TensorDataset } from 'tilegrad/data'
 *
 * const dataset = new TensorDataset(randn([10, 3]), zeros([10], { dtype: 'int32' }))
 * const loader = new DataLoader(dataset, { batchSize: 4, shuffle: true, seed: 1 })
 * loader.length // → 3
 * for await (const [x, y] of loader) console.log(x.shape, y.shape)
 */
export class DataLoader<T = unknown, B = Collated<T>> implements Iterable<B>, AsyncIterable<B> {
  /** What the batches are made of. */
  readonly dataset: Dataset<T> | IterableDataset<T> | { readonly href: string }
  /** How many samples a batch has. */
  readonly batchSize: number
  readonly #numbered: Dataset | null
  readonly #options: DataLoaderOptions<T, B>
  readonly #dropLast: boolean
  readonly #prefetch: number
  readonly #url: string | null
  readonly #numWorkers: number
  #length: number | undefined
  readonly #generator: () => RandomGenerator

  constructor(
    dataset: Dataset<T> | IterableDataset<T> | readonly T[] | { readonly href: string },
    options: DataLoaderOptions<T, B> = {},
  ) {
    const {
      batchSize = 1,
      shuffle = false,
      dropLast = false,
      prefetchFactor,
      numWorkers,
      sampler,
      collate,
      seed,
    } = expectOptions('DataLoader', options, NAMES)
    if (typeof dataset !== 'object' || dataset === null)
      throw new ValueError(
        `DataLoader: takes a dataset (length and get), an array or an iterable, got ${describeValue(dataset)}`,
      )
    const list = dataset as readonly T[]
    const numbered = Array.isArray(dataset) ? { length: list.length, get: (i: number) => list[i] } : dataset
    this.#url = moduleOf(dataset)
    if (this.#url !== null) this.#numbered = null
    else if (hasNumbers(numbered)) this.#numbered = numbered
    else if (Symbol.iterator in numbered || Symbol.asyncIterator in numbered) this.#numbered = null
    else
      throw new ValueError(
        `DataLoader: a dataset has length and get(index), or is iterable; got ${describeValue(dataset)}${dataset instanceof Tensor ? '; make it one with new TensorDataset(x)' : ''}`,
      )
    if (!this.#numbered && this.#url === null && (shuffle || sampler))
      throw new ValueError(
        `DataLoader: ${shuffle ? 'shuffle' : 'sampler'} needs a dataset with length and get(index); an iterable one has an order of its own`,
      )
    if (shuffle && sampler)
      throw new ValueError('DataLoader: takes shuffle or a sampler, not both; RandomSampler shuffles')
    if (collate !== undefined && typeof collate !== 'function')
      throw new ValueError(`DataLoader: collate must be a function of samples, got ${describeValue(collate)}`)
    if (this.#url === null && numWorkers)
      throw new ValueError(
        'DataLoader: numWorkers needs the URL of a module that exports the dataset, as new URL("./my-dataset.js", import.meta.url): functions cannot cross between threads',
      )
    this.#numWorkers = this.#url === null ? 0 : whole('numWorkers', numWorkers ?? 1, 1)
    this.dataset = dataset as Dataset<T> | IterableDataset<T> | { readonly href: string }
    this.batchSize = whole('batchSize', batchSize, 1)
    this.#dropLast = dropLast
    const ahead = whole('prefetchFactor', prefetchFactor ?? (this.#numWorkers > 0 ? 2 : 1), 0)
    this.#prefetch = ahead * Math.max(1, this.#numWorkers)
    this.#options = options
    this.#generator = generatorOf(seed)
  }

  /**
   * The number of batches in an epoch.
   *
   * @throws ValueError where nobody knows: the dataset or the sampler is an iterable without a length, or the dataset is in
   * workers, which tell it when the first epoch has begun.
   */
  get length(): number {
    const { sampler } = this.#options
    const samples = (
      sampler ?? (this.#url === null ? (this.dataset as { length?: number }) : { length: this.#length })
    ).length
    if (typeof samples !== 'number')
      throw new ValueError(
        `DataLoader: ${sampler ? 'its sampler' : this.#url === null ? 'an iterable dataset' : 'a dataset in workers that have not begun'} has no length; count the batches as they come`,
      )
    return this.#dropLast ? Math.floor(samples / this.batchSize) : Math.ceil(samples / this.batchSize)
  }

  /** The samples of the next epoch. */
  #begin(): Source {
    const numbered = this.#numbered
    if (this.#url !== null)
      return fromWorkers(
        this.#url,
        this.#numWorkers,
        (length) => batched(this.#order(length), this.batchSize, this.#dropLast),
        (length) => {
          this.#length = length
        },
      )
    if (!numbered) return streamed(this.dataset as IterableDataset, this.batchSize, this.#dropLast)
    return indexed(
      numbered,
      batched(this.#order(numbered.length), this.batchSize, this.#dropLast),
      this.#options.collate === undefined,
    )
  }

  /** The indices of the next epoch. */
  #order(length: number): Iterable<number> {
    const { sampler, shuffle } = this.#options
    if (sampler) return sampler
    if (shuffle) return this.#generator().run(() => shuffled(length))
    return (function* () {
      for (let i = 0; i < length; i++) yield i
    })()
  }

  #collate(fetched: NonNullable<Fetched>): Made {
    const { collate = defaultCollate, device } = this.#options
    // Asked for once: those of workers are made when they are.
    const samples = 'samples' in fetched ? fetched.samples : []
    const given = tensorsOf(samples)
    const make = (): unknown => ('batch' in fetched ? fetched.batch : collate([...samples] as T[]))
    const made = device === undefined ? make() : withBackend(device, make)
    const batch = device === undefined ? made : mapTensors(made, (t) => to(t, { device }))
    return { batch, own: [...tensorsOf(batch)].filter((t) => !given.has(t)) }
  }

  /** Begins the next batch, and makes it where that does not take a promise. */
  #next(source: Source): Begun {
    return scope(() => {
      const fetched = source.next()
      if (isPromise(fetched)) return { promise: fetched }
      return fetched && this.#collate(fetched)
    })
  }

  *[Symbol.iterator](): Generator<B, void, undefined> {
    const source = this.#begin()
    try {
      for (;;) {
        const made = this.#next(source)
        if (!made) return
        if ('promise' in made) {
          made.promise.catch(() => {})
          throw new ValueError(
            'DataLoader: the dataset is asynchronous; write for await (const batch of loader)',
          )
        }
        yield made.batch as B
        free(made)
      }
    } finally {
      void source.stop()
    }
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<B, void, undefined> {
    const source = this.#begin()
    const begun: NonNullable<Begun>[] = []
    let ahead = 0
    let ended = false
    try {
      for (;;) {
        while (!ended && begun.length <= ahead) {
          const next = this.#next(source)
          if (!next) {
            ended = true
            break
          }
          if ('promise' in next) {
            // Only what waits for something else gains by being begun early.
            ahead = this.#prefetch
            next.promise.catch(() => {})
          }
          begun.push(next)
        }
        const first = begun.shift()
        if (!first) return
        let made: Made
        if ('promise' in first) {
          const fetched = await first.promise
          if (!fetched) {
            ended = true
            continue
          }
          made = scope(() => this.#collate(fetched))
        } else made = first
        yield made.batch as B
        free(made)
      }
    } finally {
      for (const next of begun) if ('own' in next) free(next)
      await source.stop()
    }
  }
}
