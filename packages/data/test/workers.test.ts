import { checkLeaks, type Tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { DataError, DataLoader, type DataLoaderOptions } from '../src/index.ts'

interface Sample {
  x: Float32Array
  y: number
  thread: number
  even: boolean
}
const url = new URL('./worker-dataset.mjs', import.meta.url)
const faults = new URL('./worker-faults.mjs', import.meta.url)
const read = (t: Tensor): number[] => [...t.dataSync()]
/** The ports of workers that live: what would keep the process. */
const ports = (): number => process.getActiveResourcesInfo().filter((name) => name === 'MessagePort').length
const loop = async (module: URL, options: DataLoaderOptions): Promise<void> => {
  for await (const _ of new DataLoader(module, options));
}

test('workers get samples, in order, and end with the loop', async () => {
  const loader = new DataLoader<Sample>(url, {
    numWorkers: 2,
    batchSize: 2,
    sampler: [0, 1, 2, 3, 4, 5, 6, 8, 9],
  })
  const before = ports()
  for (let epoch = 0; epoch < 2; epoch++) {
    const [xs, threads] = [[] as number[], new Set<number>()]
    await checkLeaks(async () => {
      for await (const { x, y, thread, even } of loader) {
        expect([x.shape[1], y.dtype, even.dtype]).toEqual([2, 'float32', 'bool'])
        xs.push(...read(x))
        for (const id of read(thread)) threads.add(id)
      }
    })
    expect(xs).toEqual([0, 1, 2, 3, 4, 5, 6, 8, 9].flatMap((i) => [i, 2 * i]))
    expect([threads.size, threads.has(0)]).toEqual([2, false])
    expect(ports()).toBe(before)
  }
})

test('shuffling is that of the seed, and the length is known once an epoch has begun', async () => {
  const orders = async (): Promise<number[][]> => {
    const loader = new DataLoader<Sample>(url, { batchSize: 20, shuffle: true, seed: 2 })
    expect(() => loader.length).toThrow(/workers that have not begun has no length/)
    const all: number[][] = []
    for (let epoch = 0; epoch < 2; epoch++)
      await (async () => {
        for await (const { y } of loader) all.push(read(y))
      })().catch((error: DataError) => all.push([error.index as number]))
    expect(loader.length).toBe(1)
    return all
  }
  // Sample 7 fails in each of them.
  expect(await orders()).toEqual([[7], [7]])
})

test('an error names the sample, and has its message', async () => {
  const error = await loop(url, { numWorkers: 2, batchSize: 3 }).catch((e: unknown) => e)
  expect(error).toBeInstanceOf(DataError)
  expect(error).toMatchObject({
    message: 'DataLoader: sample 7 of the dataset failed in its worker: no such picture',
    index: 7,
    cause: { name: 'RangeError' },
  })
})

test('a worker that ends is an error, and so is what cannot cross', async () => {
  await expect(loop(faults, {})).rejects.toThrow(/worker 0 of file:.*worker-faults.mjs ended with code 3/)
  await expect(loop(faults, { sampler: [1] })).rejects.toThrow(
    /sample 1 of the dataset failed in its worker: .*could not be cloned. \(samples must be plain data\)/,
  )
})

test('leaving the loop ends workers, whatever they do', async () => {
  const before = ports()
  for await (const _ of new DataLoader(url, { numWorkers: 2 })) break
  expect(ports()).toBe(before)
  // The second sample never comes: it is being waited for when the loop is left.
  const module = new URL(`data:text/javascript,export default { length: 2, get(i) { while (i); return i } }`)
  for await (const _ of new DataLoader(module)) break
  expect(ports()).toBe(before)
})

test('modules that are not there or export no dataset', async () => {
  await expect(loop(new URL('./none.mjs', import.meta.url), {})).rejects.toThrow(
    /none.mjs: Cannot find module/,
  )
  await expect(loop(new URL('data:text/javascript,export default 3'), {})).rejects.toThrow(
    /the module must export a dataset, with length and get\(index\)/,
  )
  expect(() => new DataLoader([1], { numWorkers: 2 })).toThrow(/numWorkers needs the URL of a module/)
  expect(() => [...new DataLoader(url)]).toThrow(/for await/)
})
