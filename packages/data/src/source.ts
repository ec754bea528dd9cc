/** Where a loader's batches come from: samples of indices, or of what comes one after the other. */

import { DataError } from './collate.ts'
import { type Dataset, expectIndex, type IterableDataset } from './dataset.ts'

/** What a batch is made of: samples, or a batch that the dataset has made itself; null at the end. */
export type Fetched = { readonly samples: readonly unknown[] } | { readonly batch: unknown } | null

/** The batches of one epoch. */
export interface Source {
  /** Begins the next batch; others may be on their way still. */
  next(): Fetched | Promise<Fetched>
  /** Ends what was begun, when the loop ends. */
  stop(): void | Promise<void>
}

export const isPromise = (value: unknown): value is Promise<unknown> =>
  typeof (value as { then?: unknown } | null | undefined)?.then === 'function'

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

const failed = (index: number, error: unknown): DataError =>
  error instanceof DataError && error.index !== undefined
    ? error
    : new DataError(`DataLoader: sample ${index} of the dataset failed: ${messageOf(error)}`, {
        index,
        cause: error,
      })

function getOne(dataset: Dataset, index: number): unknown {
  try {
    const got = dataset.get(index)
    return isPromise(got)
      ? got.then(undefined, (error: unknown) => {
          throw failed(index, error)
        })
      : got
  } catch (error) {
    throw failed(index, error)
  }
}

function getAll(dataset: Dataset, indices: readonly number[]): Fetched | Promise<Fetched> {
  const samples: unknown[] = []
  try {
    for (const index of indices) samples.push(getOne(dataset, index))
  } catch (error) {
    // Nobody waits for those that were begun.
    for (const begun of samples) if (isPromise(begun)) begun.then(undefined, () => {})
    throw error
  }
  if (!samples.some(isPromise)) return { samples }
  return Promise.all(samples).then((all) => ({ samples: all }))
}

function getBatch(dataset: Dataset, indices: readonly number[]): Fetched | Promise<Fetched> {
  const fail = (error: unknown): never => {
    if (error instanceof DataError) throw error
    const shown = `${indices.slice(0, 8).join(', ')}${indices.length > 8 ? ', …' : ''}`
    throw new DataError(`DataLoader: the batch of samples ${shown} failed: ${messageOf(error)}`, {
      cause: error,
    })
  }
  try {
    const batch = dataset.batch?.(indices)
    return isPromise(batch) ? batch.then((got) => ({ batch: got }), fail) : { batch }
  } catch (error) {
    return fail(error)
  }
}

/** Batches of a dataset whose samples have numbers. */
export function indexed(dataset: Dataset, batches: Iterator<number[]>, whole: boolean): Source {
  return {
    next() {
      const { done, value: indices } = batches.next()
      if (done) return null
      for (const index of indices) expectIndex('DataLoader', index, dataset.length)
      return whole && dataset.batch ? getBatch(dataset, indices) : getAll(dataset, indices)
    },
    stop() {},
  }
}

/** Batches of a dataset whose samples come one after the other. */
export function streamed(dataset: IterableDataset, size: number, dropLast: boolean): Source {
  let taken = 0
  const fail = (error: unknown): never => {
    throw new DataError(`DataLoader: the dataset failed after ${taken} samples: ${messageOf(error)}`, {
      index: taken,
      cause: error,
    })
  }
  const give = (samples: unknown[]): Fetched =>
    samples.length === 0 || (dropLast && samples.length < size) ? null : { samples }
  const begin = (dataset as Partial<AsyncIterable<unknown>>)[Symbol.asyncIterator]
  if (begin === undefined) {
    const iterator = (dataset as Iterable<unknown>)[Symbol.iterator]()
    let ended = false
    return {
      next() {
        const samples: unknown[] = []
        while (!ended && samples.length < size) {
          try {
            const { done, value } = iterator.next()
            ended = done === true
            if (!ended) samples.push(value)
          } catch (error) {
            ended = true
            fail(error)
          }
          taken++
        }
        return give(samples)
      },
      stop() {
        if (!ended) iterator.return?.()
      },
    }
  }
  const iterator = begin.call(dataset)
  let ended = false
  const gather = async (): Promise<Fetched> => {
    const samples: unknown[] = []
    try {
      while (!ended && samples.length < size) {
        const { done, value } = await iterator.next()
        if (done) ended = true
        else {
          samples.push(value)
          taken++
        }
      }
    } catch (error) {
      ended = true
      return fail(error)
    }
    return give(samples)
  }
  let last: Promise<unknown> = Promise.resolve()
  let waiting = 0
  return {
    // One after the other: a batch takes up where the one before it ends.
    next() {
      waiting++
      const batch = last.then(gather).finally(() => waiting--)
      last = batch.catch(() => {})
      return batch
    },
    async stop() {
      if (ended) return
      ended = true
      const closed = Promise.resolve(iterator.return?.())
      // What is being waited for may never come.
      if (waiting > 0) closed.catch(() => {})
      else await closed
    },
  }
}
