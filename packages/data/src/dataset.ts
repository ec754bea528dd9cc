import {
  describeValue,
  expectOptions,
  hostRandint,
  indexSelect,
  RandomGenerator,
  ShapeError,
  select,
  Tensor,
  ValueError,
} from '@tilegrad/core'

/** A dataset whose samples have numbers, as torch.utils.data.Dataset: anything with a length and a way to get a sample. */
export interface Dataset<T = unknown> {
  /** The number of samples. */
  readonly length: number
  /** Gets the sample of an index from 0 to length − 1, at once or as a promise. */
  get(index: number): T | Promise<T>
  /**
   * Gets the samples of many indices as one batch, collated already, where that is faster than one by one; a `DataLoader`
   * calls it unless it has a `collate` of its own.
   */
  batch?(indices: readonly number[]): unknown
}

/** A dataset whose samples come one after the other: anything that `for` or `for await` goes through. */
export type IterableDataset<T = unknown> = Iterable<T> | AsyncIterable<T>

/** Checks that an index is one of a dataset. */
export function expectIndex(op: string, index: number, length: number): void {
  if (!Number.isInteger(index) || index < 0 || index >= length)
    throw new ValueError(`${op}: there are samples 0 … ${length - 1}, got the index ${describeValue(index)}`)
}

/**
 * A dataset of tensors: sample i is row i of each, as torch.utils.data.TensorDataset. A batch of it is one index select per
 * tensor.
 *
 * @throws ShapeError unless all tensors have the same size in dim 0.
 * @example
 * import { TensorDataset } from 'tilegrad/data'
 *
 * const dataset = new TensorDataset(tensor([[1, 2], [3, 4]]), tensor([0, 1], { dtype: 'int32' }))
 * dataset.length // → 2
 * dataset.get(1)[0].dataSync() // → [3, 4]
 */
export class TensorDataset<T extends readonly Tensor[] = readonly Tensor[]> implements Dataset<T> {
  /** The tensors whose rows are the samples. */
  readonly tensors: T

  constructor(...tensors: T) {
    if (tensors.length === 0) throw new ShapeError('TensorDataset: takes one tensor or more, got none')
    for (const t of tensors)
      if (!(t instanceof Tensor))
        throw new ValueError(`TensorDataset: takes tensors one after the other, got ${describeValue(t)}`)
    const sizes = tensors.map(({ shape }) => shape[0])
    if (sizes[0] === undefined || sizes.some((size) => size !== sizes[0]))
      throw new ShapeError(
        `TensorDataset: tensors must have as many rows as each other, got ${tensors.map(({ shape }) => `[${shape.join(', ')}]`).join(', ')}`,
      )
    this.tensors = tensors
  }

  /** The number of rows. */
  get length(): number {
    return this.tensors[0].shape[0]
  }

  /** Gets row i of each tensor, as views. */
  get(index: number): T {
    expectIndex('TensorDataset', index, this.length)
    return this.tensors.map((t) => select(t, 0, index)) as unknown as T
  }

  /** Gets rows as a batch: a copy of them per tensor. */
  batch(indices: readonly number[]): T {
    for (const index of indices) expectIndex('TensorDataset', index, this.length)
    const rows = Int32Array.from(indices)
    return this.tensors.map((t) => indexSelect(t, 0, rows)) as unknown as T
  }
}

/**
 * Some samples of another dataset, as torch.utils.data.Subset.
 *
 * @throws ValueError for an index that the dataset has not.
 * @example
 * import { Subset, TensorDataset } from 'tilegrad/data'
 *
 * const [row] = new Subset(new TensorDataset(arange(10)), [7, 3]).get(0)
 * row.itemSync() // → 7
 */
export class Subset<D extends Dataset> {
  /** The dataset that this is a part of. */
  readonly dataset: D
  /** Which samples of it there are, in their order. */
  readonly indices: readonly number[]
  /** Gets samples as a batch, where the dataset does. */
  declare batch?: (indices: readonly number[]) => unknown

  constructor(dataset: D, indices: readonly number[]) {
    for (const index of indices) expectIndex('Subset', index, dataset.length)
    this.dataset = dataset
    this.indices = indices
    // Only there if the dataset's is: a loader asks.
    if (dataset.batch) this.batch = (at) => dataset.batch?.(at.map((i) => indices[i]))
  }

  /** The number of indices. */
  get length(): number {
    return this.indices.length
  }

  /** Gets the sample of the index that stands at this place. */
  get(index: number): ReturnType<D['get']> {
    expectIndex('Subset', index, this.length)
    return this.dataset.get(this.indices[index]) as ReturnType<D['get']>
  }
}

/**
 * Datasets one after the other, as torch.utils.data.ConcatDataset.
 *
 * @throws ValueError without datasets.
 * @example
 * import { ConcatDataset, TensorDataset } from 'tilegrad/data'
 *
 * const both = new ConcatDataset([new TensorDataset(zeros([3])), new TensorDataset(ones([2]))])
 * both.length // → 5
 */
export class ConcatDataset<T> implements Dataset<T> {
  /** The datasets, in order. */
  readonly datasets: readonly Dataset<T>[]

  constructor(datasets: readonly Dataset<T>[]) {
    if (!Array.isArray(datasets) || datasets.length === 0)
      throw new ValueError(`ConcatDataset: takes an array of datasets, got ${describeValue(datasets)}`)
    this.datasets = datasets
  }

  /** The number of samples of all. */
  get length(): number {
    return this.datasets.reduce((sum, { length }) => sum + length, 0)
  }

  /** Gets a sample from the dataset that has it. */
  get(index: number): T | Promise<T> {
    expectIndex('ConcatDataset', index, this.length)
    let left = index
    for (const dataset of this.datasets) {
      if (left < dataset.length) return dataset.get(left)
      left -= dataset.length
    }
    throw new ValueError(`ConcatDataset: a dataset lost samples while sample ${index} was looked for`)
  }
}

/** The numbers 0 … n − 1 in random order, from the generator that runs (Fisher and Yates 1938, Durstenfeld 1964). */
export function shuffled(n: number): Uint32Array {
  const order = Uint32Array.from({ length: n }, (_, i) => i)
  for (let i = n - 1; i > 0; i--) {
    const j = hostRandint(i + 1)
    const picked = order[j]
    order[j] = order[i]
    order[i] = picked
  }
  return order
}

/** Options of `randomSplit`. */
export interface RandomSplitOptions {
  /** Makes the split a function of it; without, it is drawn from what `manualSeed` sets. */
  seed?: number | string
}

/** How many samples each part gets: fractions are rounded down, and what is left over goes one each to the first parts. */
function lengthsOf(total: number, lengths: readonly number[]): number[] {
  const sum = lengths.reduce((a, b) => a + b, 0)
  if (
    lengths.every((x) => x >= 0 && x <= 1) &&
    Math.abs(sum - 1) < 1e-9 &&
    (total !== 1 || !lengths.every(Number.isInteger))
  ) {
    const sizes = lengths.map((x) => Math.floor(total * x + 1e-9))
    let left = total - sizes.reduce((a, b) => a + b, 0)
    for (let i = 0; left > 0; i = (i + 1) % sizes.length, left--) sizes[i]++
    return sizes
  }
  if (!lengths.every((x) => Number.isInteger(x) && x >= 0) || sum !== total)
    throw new ValueError(
      `randomSplit: lengths must be whole numbers whose sum is the dataset's length ${total}, or fractions whose sum is 1, got ${describeValue(lengths)}`,
    )
  return [...lengths]
}

/**
 * Splits a dataset at random into parts that share no sample, as torch.utils.data.random_split.
 *
 * @param lengths the number of samples of each part, or fractions whose sum is 1.
 * @throws ValueError if they do not add up.
 * @example
 * import { randomSplit, TensorDataset } from 'tilegrad/data'
 *
 * const [train, held] = randomSplit(new TensorDataset(arange(10)), [0.8, 0.2], { seed: 1 })
 * train.length // → 8
 * held.length // → 2
 */
export function randomSplit<D extends Dataset>(
  dataset: D,
  lengths: readonly number[],
  options: RandomSplitOptions = {},
): Subset<D>[] {
  const { seed } = expectOptions('randomSplit', options, { seed: 1 })
  if (!Array.isArray(lengths) || lengths.length === 0)
    throw new ValueError(`randomSplit: takes an array of lengths or fractions, got ${describeValue(lengths)}`)
  const sizes = lengthsOf(dataset.length, lengths)
  const draw = (): Uint32Array => shuffled(dataset.length)
  const order = seed === undefined ? draw() : new RandomGenerator(seed).run(draw)
  let from = 0
  return sizes.map((size) => {
    from += size
    return new Subset(dataset, Array.from(order.subarray(from - size, from)))
  })
}
