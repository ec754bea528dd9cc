/** The code that a worker of a `DataLoader` runs, and what it says. */

/** A tensor on its way between threads. */
export interface Packed {
  readonly tilegradTensor: { readonly data: Float32Array; readonly shape: number[]; readonly dtype: string }
}

/** What a worker tells: that its dataset is there, why it is not, samples, or why one failed. */
export type FromWorker =
  | { readonly length: number }
  | { readonly why: string }
  | { readonly id: number; readonly samples: unknown[] }
  | {
      readonly id: number
      readonly index: number
      readonly error: { readonly name: string; readonly message: string; readonly stack?: string }
    }

/**
 * What a worker runs. It is a string, so that it needs no file and no bundler, in Node (as a script) and in browsers (as a
 * module of a Blob's address). Functions do not cross between threads: the module is loaded here, by its URL.
 */
export const workerSource = `'use strict'
const node = globalThis.process?.getBuiltinModule?.('node:worker_threads')
const post = (message) => node ? node.parentPort.postMessage(message) : postMessage(message)
const told = (error) => error instanceof Error ? { name: error.name, message: error.message, stack: error.stack } : { name: 'Error', message: String(error) }
const pack = (value) => {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value
  if (typeof value.dataSync === 'function' && Array.isArray(value.shape))
    return { tilegradTensor: { data: value.dataSync(), shape: [...value.shape], dtype: value.dtype } }
  if (Array.isArray(value)) return value.map(pack)
  if (Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, pack(inner)]))
}
const begin = async (url) => {
  const module = await import(url)
  const exported = module.dataset ?? module.default
  const made = typeof exported === 'function' ? await exported() : exported
  const dataset = Array.isArray(made) ? { length: made.length, get: (i) => made[i] } : made
  if (typeof dataset?.get !== 'function' || typeof dataset.length !== 'number')
    throw new Error("the module must export a dataset, with length and get(index), as 'dataset' or default, or a function that makes it")
  return dataset
}
const answer = async (dataset, { id, indices }) => {
  const samples = []
  for (const index of indices) {
    try {
      samples.push(pack(await dataset.get(index)))
    } catch (error) {
      return post({ id, index, error: told(error) })
    }
  }
  try {
    post({ id, samples })
  } catch (error) {
    post({ id, index: indices[0], error: { name: 'DataCloneError', message: told(error).message + ' (samples must be plain data)' } })
  }
}
const serve = (url) => {
  const ready = begin(url)
  ready.then((dataset) => post({ length: dataset.length }), (error) => post({ why: told(error).message }))
  return (message) => ready.then((dataset) => answer(dataset, message), () => {})
}
if (node) node.parentPort.on('message', serve(node.workerData.url))
else onmessage = ({ data }) => {
  const handle = serve(data.url)
  onmessage = ({ data }) => handle(data)
}
`
