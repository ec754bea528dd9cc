import { checkLeaks, memory, reference, registerBackend, scope, type Tensor, tensor } from '@tilegrad/core'
import fc from 'fast-check'
import { beforeEach, describe, expect, test } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import {
  ConcatDataset,
  DataError,
  DataLoader,
  type Dataset,
  defaultCollate,
  RandomSampler,
  randomSplit,
  Subset,
  TensorDataset,
} from '../src/index.ts'

const rows = (n: number): TensorDataset<[Tensor, Tensor]> =>
  new TensorDataset(
    tensor(
      Float32Array.from({ length: 2 * n }, (_, i) => i),
      [n, 2],
    ),
    tensor(Int32Array.from({ length: n }, (_, i) => i)),
  )
const read = (t: Tensor): number[] => [...t.dataSync()]

/** The same dataset, but that every sample takes a turn of the event loop; counts what was begun. */
const slow = (n: number): Dataset<number> & { begun: number } => ({
  length: n,
  begun: 0,
  async get(i) {
    this.begun++
    await new Promise((resolve) => setImmediate(resolve))
    return i
  },
})

describe('batches', () => {
  test('a plain for and for await give the rows in order', async () => {
    const loader = new DataLoader(rows(5), { batchSize: 2 })
    expect(loader.length).toBe(3)
    const seen: unknown[] = []
    for (const [x, y] of loader) seen.push([read(x), read(y), x.shape])
    expect(seen).toEqual([
      [
        [0, 1, 2, 3],
        [0, 1],
        [2, 2],
      ],
      [
        [4, 5, 6, 7],
        [2, 3],
        [2, 2],
      ],
      [[8, 9], [4], [1, 2]],
    ])
    const again: unknown[] = []
    for await (const [x, y] of loader) again.push([read(x), read(y), x.shape])
    expect(again).toEqual(seen)
  })

  test('any sizes: each sample once, in order or in an order of the seed, dropLast counted', () => {
    fc.assert(
      fc.property(
        fc.nat(40),
        fc.integer({ min: 1, max: 12 }),
        fc.boolean(),
        fc.boolean(),
        (n, batchSize, shuffle, dropLast) => {
          const loader = new DataLoader(
            { length: n, get: (i: number) => i },
            { batchSize, shuffle, dropLast, seed: n },
          )
          const batches = [...loader].length
          const all: number[] = []
          for (const x of loader) all.push(...read(x))
          const kept = dropLast ? n - (n % batchSize) : n
          expect(batches).toBe(loader.length)
          expect(all.length).toBe(kept)
          expect(new Set(all).size).toBe(kept)
          if (!shuffle) expect(all).toEqual(Array.from({ length: kept }, (_, i) => i))
        },
      ),
      { numRuns: 60, seed: 7 },
    )
  })

  test('a batch of a TensorDataset is one select per tensor', () => {
    const made: number[] = []
    const dataset = rows(6)
    const { batch } = dataset
    dataset.get = () => {
      throw new Error('rows are not taken one by one')
    }
    dataset.batch = (indices) => {
      made.push(indices.length)
      return batch.call(dataset, indices)
    }
    for (const [x] of new DataLoader(new Subset(dataset, [5, 0, 3]), { batchSize: 2 })) read(x)
    expect(made).toEqual([2, 1])
  })

  test('batches are put on a device', () => {
    registerBackend('other', () => ({ ...reference, name: 'other' }))
    const samples = [1, 2, 3].map((i) => ({ x: tensor([i]), y: i }))
    for (const { x, y } of new DataLoader(samples, { batchSize: 3, device: 'other' }))
      expect([x.device, y.device, read(x), read(y)]).toEqual(['other', 'other', [1, 2, 3], [1, 2, 3]])
  })

  test('iterables, synchronous and not, and arrays', async () => {
    const numbers = function* () {
      yield* [1, 2, 3, 4, 5]
    }
    const later = async function* () {
      yield* [1, 2, 3, 4, 5]
    }
    const all: unknown[] = []
    for (const x of new DataLoader(numbers(), { batchSize: 2 })) all.push(read(x))
    for (const x of new DataLoader([1, 2, 3, 4, 5], { batchSize: 2 })) all.push(read(x))
    for await (const x of new DataLoader(later(), { batchSize: 2, prefetchFactor: 3 })) all.push(read(x))
    for await (const x of new DataLoader(later(), { batchSize: 2, dropLast: true })) all.push(read(x))
    expect(all).toEqual([[1, 2], [3, 4], [5], [1, 2], [3, 4], [5], [1, 2], [3, 4], [5], [1, 2], [3, 4]])
    expect(() => new DataLoader(numbers()).length).toThrow(/no length/)
  })

  test('a dataset without samples has no batches', async () => {
    const loader = new DataLoader({ length: 0, get: () => 1 }, { shuffle: true })
    expect([loader.length, [...loader].length]).toEqual([0, 0])
    for await (const _ of loader) throw new Error('a batch of nothing')
    for await (const _ of new DataLoader((async function* () {})())) throw new Error('a batch of nothing')
  })
})

describe('order', () => {
  const orders = (seed: number | undefined, epochs: number): number[][] => {
    const loader = new DataLoader(rows(9), {
      batchSize: 4,
      shuffle: true,
      ...(seed !== undefined && { seed }),
    })
    return Array.from({ length: epochs }, () => {
      const all: number[] = []
      for (const [, y] of loader) all.push(...read(y))
      return all
    })
  }

  test('each epoch has another one, and the seed decides all', () => {
    const [a, b] = [orders(3, 3), orders(3, 3)]
    expect(a).toEqual(b)
    expect(new Set(a.map(String)).size).toBe(3)
    expect(orders(4, 3)).not.toEqual(a)
    for (const order of a) expect([...order].sort()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8])
  })

  test('a sampler says which, with replacement too', () => {
    const loader = new DataLoader(rows(4), { sampler: [3, 3, 0], batchSize: 2 })
    expect(loader.length).toBe(2)
    const all: number[] = []
    for (const [, y] of loader) all.push(...read(y))
    expect(all).toEqual([3, 3, 0])
    const sampler = new RandomSampler({ length: 5 }, { replacement: true, numSamples: 200, seed: 1 })
    const drawn = [...sampler]
    expect([drawn.length, new Set(drawn)]).toEqual([200, new Set([0, 1, 2, 3, 4])])
    expect([...sampler]).not.toEqual(drawn)
    expect([...new RandomSampler({ length: 5 }, { replacement: true, numSamples: 200, seed: 1 })]).toEqual(
      drawn,
    )
    expect([...new RandomSampler({ length: 5 }, { numSamples: 5 })].sort()).toEqual([0, 1, 2, 3, 4])
  })

  test('randomSplit shares nothing and leaves nothing out', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(9), { minLength: 1, maxLength: 5 }), fc.integer(), (lengths, seed) => {
        const n = lengths.reduce((a, b) => a + b, 0)
        const parts = randomSplit({ length: n, get: (i: number) => i }, lengths, { seed })
        expect(parts.map(({ length }) => length)).toEqual(lengths)
        expect(parts.flatMap(({ indices }) => indices).sort((a, b) => a - b)).toEqual(
          Array.from({ length: n }, (_, i) => i),
        )
      }),
      { numRuns: 50, seed: 7 },
    )
    // As PyTorch: [int(10 * f) for f in …], and one more each for the first ones.
    const sizes = (n: number, ...parts: number[]) =>
      randomSplit({ length: n, get: (i: number) => i }, parts, { seed: 1 }).map(({ length }) => length)
    expect(sizes(10, 0.33, 0.33, 0.34)).toEqual([4, 3, 3])
    expect(sizes(10, 0.7, 0.2, 0.1)).toEqual([7, 2, 1])
    expect(() => sizes(10, 7, 2)).toThrow(/sum is the dataset's length 10/)
    expect(() => sizes(10, 0.7, 0.2)).toThrow(/randomSplit/)
  })

  test('ConcatDataset and Subset find their samples', () => {
    const both = new ConcatDataset([
      { length: 2, get: (i: number) => i },
      { length: 0, get: (i: number) => i },
      { length: 3, get: (i: number) => 10 + i },
    ])
    expect(Array.from({ length: both.length }, (_, i) => both.get(i))).toEqual([0, 1, 10, 11, 12])
    expect(new Subset(both, [4, 0]).get(0)).toBe(12)
    expect(() => both.get(5)).toThrow('ConcatDataset: there are samples 0 … 4, got the index 5')
    expect(() => new Subset(both, [5])).toThrow(/^Subset/)
  })
})

describe('defaultCollate', () => {
  test('goes through what samples are made of', () => {
    const batch = defaultCollate(
      [1, 2].map((i) => ({
        t: tensor([i, i]),
        typed: Uint8Array.of(i, 200),
        pair: [i, i > 1] as const,
        big: BigInt(i),
        name: `n${i}`,
        none: null,
      })),
    )
    expect([batch.t.shape, batch.typed.dtype, read(batch.typed)]).toEqual([[2, 2], 'int32', [1, 200, 2, 200]])
    const [numbers, flags] = batch.pair
    expect([numbers.dtype, flags.dtype, batch.big.dtype]).toEqual(['float32', 'bool', 'int32'])
    expect([batch.name, batch.none]).toEqual([
      ['n1', 'n2'],
      [null, null],
    ])
  })

  test('says which sample is not like the first, and where', () => {
    const of =
      (...samples: unknown[]) =>
      (): unknown =>
        defaultCollate(samples)
    expect(of({ x: [Float32Array.of(1)] }, { x: [Float32Array.of(1, 2)] })).toThrow(
      'collate: at x.0, sample 1 of the batch is Float32Array of 2, the first is Float32Array of 1; make them alike (pad them), or pass a collate of your own',
    )
    expect(of(tensor([1]), tensor([1, 2]))).toThrow(/sample 1 of the batch is a tensor \[2\] of float32/)
    expect(of(1, 'a')).toThrow(/sample 1 of the batch is 'a', the first is 1/)
    expect(of()).toThrow(/one sample or more/)
  })
})

describe('memory', () => {
  beforeEach(collected)

  const train = (x: Tensor): void => scope(() => void x.mul(2).sum())

  test('a loop leaves nothing behind, whatever the samples are made of', async () => {
    const dataset = rows(7)
    const views = { length: 7, get: (i: number) => ({ x: dataset.tensors[0].select(0, i).mul(2), y: i }) }
    const before = memory()
    checkLeaks(() => {
      for (const [x] of new DataLoader(dataset, { batchSize: 3, shuffle: true })) train(x)
      for (const { x } of new DataLoader(views, { batchSize: 3 })) train(x)
    })
    await checkLeaks(async () => {
      for await (const [x] of new DataLoader(dataset, { batchSize: 3 })) train(x)
      for await (const x of new DataLoader(slow(7), { batchSize: 3, prefetchFactor: 2 })) train(x)
    })
    expect(memory().tensors).toBe(before.tensors)
    expect(memory().bytes).toBe(before.bytes)
  })

  test('one batch at a time is alive, and what was kept', async () => {
    const dataset = rows(8)
    const before = memory().bytes
    const kept: Tensor[] = []
    for await (const [, y] of new DataLoader(dataset, { batchSize: 2 })) {
      // x [2, 2] and y [2] in 4 bytes each.
      expect(memory().bytes - before).toBe(24 + 8 * kept.length)
      kept.push(y.keep())
      if (kept.length === 1) expect(memory().bytes - before).toBe(24)
    }
    expect(kept.map(read)).toEqual([
      [0, 1],
      [2, 3],
      [4, 5],
      [6, 7],
    ])
    for (const y of kept) y.dispose()
    expect(memory().bytes).toBe(before)
  })

  test('a freed batch says by whom, and how to have it longer', () => {
    const seen: Tensor[] = []
    for (const [x] of new DataLoader(rows(2))) seen.push(x)
    expect(() => seen[0].dataSync()).toThrow(
      /freed by its DataLoader when the next batch was asked for; call .keep\(\)/,
    )
  })

  test('the first batch of a loader lives, and so do samples and caches of a dataset', () => {
    const [[x]] = new DataLoader(rows(4), { batchSize: 2 })
    expect(read(x)).toEqual([0, 1, 2, 3])
    const samples = [tensor([1]), tensor([2])]
    const cache = new Map<number, Tensor>()
    const caching = {
      length: 2,
      get(i: number) {
        const found = cache.get(i) ?? tensor([i]).keep()
        cache.set(i, found)
        return found
      },
    }
    for (let epoch = 0; epoch < 2; epoch++) {
      const all: number[] = []
      for (const batch of new DataLoader(samples, { collate: ([only]) => only })) all.push(...read(batch))
      for (const batch of new DataLoader(caching)) all.push(...read(batch))
      expect(all).toEqual([1, 2, 0, 1])
    }
    for (const t of [x, ...samples, ...cache.values()]) t.dispose()
  })

  test('in a scope all of it ends with the scope', () => {
    const dataset = rows(4)
    const before = memory().tensors
    scope(() => {
      for (const [x] of new DataLoader(dataset, { batchSize: 2 })) x.mul(2)
    })
    expect(memory().tensors).toBe(before)
  })
})

describe('prefetch', () => {
  test('the next batches are begun while one is worked on, no more', async () => {
    const dataset = slow(12)
    const begun: number[] = []
    for await (const _ of new DataLoader(dataset, { batchSize: 2, prefetchFactor: 2 }))
      begun.push(dataset.begun)
    expect(begun).toEqual([6, 8, 10, 12, 12, 12])
  })

  test('breaking out stops it, and closes iterators', async () => {
    const dataset = slow(100)
    for await (const _ of new DataLoader(dataset, { batchSize: 2 })) break
    for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(dataset.begun).toBe(4)
    let closed = 0
    const endless = async function* () {
      try {
        for (let i = 0; ; i++) {
          await new Promise((resolve) => setImmediate(resolve))
          yield i
        }
      } finally {
        closed++
      }
    }
    for await (const _ of new DataLoader(endless(), { batchSize: 2 })) break
    for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(closed).toBe(1)
    const counting = function* () {
      try {
        for (let i = 0; ; i++) yield i
      } finally {
        closed++
      }
    }
    for (const _ of new DataLoader(counting())) break
    expect(closed).toBe(2)
  })
})

describe('errors', () => {
  const failing = (get: (i: number) => unknown): Dataset => ({ length: 4, get })

  test('name the sample', async () => {
    const at2 = (i: number): number => {
      if (i === 2) throw new RangeError('no such picture')
      return i
    }
    const loop = async (dataset: Dataset, prefetchFactor = 1): Promise<void> => {
      for await (const _ of new DataLoader(dataset, { batchSize: 2, prefetchFactor }));
    }
    for (const dataset of [failing(at2), failing(async (i) => at2(i))]) {
      const error = await loop(dataset).catch((e: unknown) => e)
      expect(error).toBeInstanceOf(DataError)
      expect(error).toMatchObject({
        message: 'DataLoader: sample 2 of the dataset failed: no such picture',
        index: 2,
        cause: expect.any(RangeError),
      })
    }
    // Several that fail at once, begun ahead: one is told, and no rejection is left to end the process.
    await expect(
      loop(
        failing(async () => {
          throw new Error('gone')
        }),
        3,
      ),
    ).rejects.toThrow('sample 0 of the dataset failed: gone')
    await expect(
      loop({
        length: 3,
        get: () => 1,
        batch: async () => {
          throw new Error('gone')
        },
      }),
    ).rejects.toThrow('the batch of samples 0, 1 failed: gone')
    const stream = async function* () {
      yield 1
      yield 2
      throw new Error('cut off')
    }
    const got: number[] = []
    await expect(
      (async () => {
        for await (const x of new DataLoader(stream())) got.push(...read(x))
      })(),
    ).rejects.toThrow('DataLoader: the dataset failed after 2 samples: cut off')
    expect(got).toEqual([1, 2])
  })

  test('a plain for over an asynchronous dataset says what to write', () => {
    expect(() => [...new DataLoader(slow(2))]).toThrow(/for await/)
    expect(() => [...new DataLoader((async function* () {})())]).toThrow(/for await/)
  })

  test.each([
    [{ batchSize: 0 }, /batchSize must be a whole number ≥ 1, got 0/],
    [{ batchSize: 1.5 }, /got 1.5/],
    [{ prefetchFactor: -1 }, /prefetchFactor/],
    [{ batch_size: 3 }, /did you mean 'batchSize'/],
    [{ shuffle: true, sampler: [0] }, /not both/],
    [{ collate: 3 }, /collate must be a function/],
  ])('options %j', (options, message) => {
    expect(() => new DataLoader(rows(2), options as object)).toThrow(message)
  })

  test('datasets that are none, and what an iterable cannot do', () => {
    expect(() => new DataLoader(3 as never)).toThrow(/takes a dataset .* got 3/)
    expect(() => new DataLoader({} as never)).toThrow(/has length and get.* got an object with nothing$/)
    expect(() => new DataLoader(tensor([1]) as never)).toThrow(/got a tensor \[1\]; .*new TensorDataset\(x\)/)
    expect(() => new DataLoader(new Set([1]), { shuffle: true })).toThrow(/an order of its own/)
    expect(() => [...new DataLoader(rows(2), { sampler: [2] })]).toThrow(
      'DataLoader: there are samples 0 … 1, got the index 2',
    )
    expect(() => new TensorDataset(tensor([1]), tensor([1, 2]))).toThrow(/as many rows/)
    expect(() => new TensorDataset()).toThrow(/one tensor or more/)
  })
})
