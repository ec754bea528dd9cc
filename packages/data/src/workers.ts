/** Datasets that live in workers: how these are started in Node and in browsers, and what is said between. */

import { describeValue, type TensorOptions, tensor, ValueError } from '@tilegrad/core'
import { DataError } from './collate.ts'
import type { Fetched, Source } from './source.ts'
import { type FromWorker, type Packed, workerSource } from './worker-source.ts'

/** A worker of Node or of a browser, as far as it is needed. */
interface Helper {
  send(message: unknown): void
  /** Says whether the process waits for it. */
  hold(on: boolean): void
  stop(): void | Promise<unknown>
}

interface Listener {
  message(message: FromWorker): void
  /** It ends, or never began. */
  ended(why: string): void
}

function start(url: string, on: Listener): Helper {
  const threads = globalThis.process?.getBuiltinModule?.('node:worker_threads')
  if (threads) {
    const worker = new threads.Worker(workerSource, { eval: true, workerData: { url } })
    let why = ''
    worker.on('message', on.message)
    worker.on('error', (error) => {
      why = `: ${error instanceof Error ? error.message : String(error)}`
    })
    worker.on('messageerror', () => on.ended('sent what cannot be read'))
    worker.on('exit', (code) => on.ended(`ended with code ${code}${why}`))
    return {
      send: (message) => worker.postMessage(message),
      hold: (on) => (on ? worker.ref() : worker.unref()),
      stop: () => worker.terminate(),
    }
  }
  const code = URL.createObjectURL(new Blob([workerSource], { type: 'text/javascript' }))
  const worker = new Worker(code, { type: 'module' })
  worker.onmessage = ({ data }) => on.message(data as FromWorker)
  worker.onerror = (event) => on.ended(`failed: ${event.message ?? 'it cannot be loaded'}`)
  worker.onmessageerror = () => on.ended('sent what cannot be read')
  worker.postMessage({ url })
  return {
    send: (message) => worker.postMessage(message),
    hold() {},
    stop() {
      worker.terminate()
      URL.revokeObjectURL(code)
    },
  }
}

/** Tensors, which came as arrays, made anew. */
function unpack(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value
  if (Array.isArray(value)) return value.map(unpack)
  if (Object.hasOwn(value, 'tilegradTensor')) {
    const { data, shape, dtype } = (value as Packed).tilegradTensor
    return tensor(data, shape, { dtype } as TensorOptions)
  }
  if (Object.getPrototypeOf(value) !== Object.prototype) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, unpack(inner)]))
}

/** Samples of one batch, before their tensors are made. */
const samplesOf = (samples: readonly unknown[]): Fetched => ({
  get samples() {
    return samples.map(unpack)
  },
})

interface Waiting {
  resolve(samples: unknown[]): void
  reject(error: Error): void
}

/** The workers of one epoch: they start with it, and end with it. */
export class Workers {
  /** The number of samples of the dataset, once a worker has told it. */
  readonly length: Promise<number>
  readonly #helpers: Helper[]
  readonly #waiting = new Map<number, Waiting>()
  #failure: Error | null = null
  #stopped = false
  #next = 0
  #fail: (error: Error) => void = () => {}

  constructor(url: string, count: number) {
    let known: (length: number) => void = () => {}
    this.length = new Promise((resolve, reject) => {
      known = resolve
      this.#fail = reject
    })
    this.length.catch(() => {})
    this.#helpers = Array.from({ length: count }, (_, worker) =>
      start(url, {
        message: (message) => {
          if ('length' in message) {
            known(message.length)
            this.#settle()
            return
          }
          if ('why' in message) return this.#end(new DataError(`DataLoader: ${url}: ${message.why}`))
          const waiting = this.#waiting.get(message.id)
          this.#waiting.delete(message.id)
          this.#settle()
          if ('samples' in message) return waiting?.resolve(message.samples)
          const { index, error } = message
          waiting?.reject(
            new DataError(
              `DataLoader: sample ${index} of the dataset failed in its worker: ${error.message}`,
              {
                index,
                cause: Object.assign(new Error(error.message), error),
              },
            ),
          )
        },
        ended: (why) => this.#end(new DataError(`DataLoader: worker ${worker} of ${url} ${why}`)),
      }),
    )
  }

  #end(error: Error): void {
    if (this.#stopped || this.#failure) return
    this.#failure = error
    this.#fail(error)
    for (const { reject } of this.#waiting.values()) reject(error)
    this.#waiting.clear()
  }

  /** A loop that nobody goes on with must not keep the process: workers that have nothing to do are let go. */
  #settle(): void {
    if (this.#waiting.size === 0) for (const helper of this.#helpers) helper.hold(false)
  }

  /** Has one of the workers get samples, in turn. */
  get(indices: readonly number[]): Promise<unknown[]> {
    if (this.#failure) return Promise.reject(this.#failure)
    const id = this.#next++
    const worker = id % this.#helpers.length
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      this.#helpers[worker].hold(true)
      this.#helpers[worker].send({ id, indices })
    })
  }

  /** Ends them all, whatever they do. */
  async stop(): Promise<void> {
    this.#stopped = true
    await Promise.all(this.#helpers.map((helper) => helper.stop()))
    for (const { reject } of this.#waiting.values()) reject(new DataError('DataLoader: the loop has ended'))
    this.#waiting.clear()
  }
}

/** The URL of a module that exports a dataset. */
export function moduleOf(dataset: unknown): string | null {
  const { href } = Object(dataset) as { href?: unknown }
  return typeof href === 'string' && /^[a-z][a-z0-9+.-]*:/i.test(href) ? href : null
}

/** Batches of a dataset in workers, of which the indices come later, when its length is known. */
export function fromWorkers(
  url: string,
  count: number,
  batches: (length: number) => Iterator<number[]>,
  learnt: (length: number) => void,
): Source {
  const workers = new Workers(url, count)
  const order = workers.length.then((length) => {
    learnt(length)
    return { length, iterator: batches(length) }
  })
  order.catch(() => {})
  let last: Promise<unknown> = order
  return {
    next() {
      // Each takes its indices in turn; the samples of several are on their way at once.
      const indices = last.then(async () => {
        const { length, iterator } = await order
        const { done, value } = iterator.next()
        if (done) return null
        for (const index of value)
          if (!Number.isInteger(index) || index < 0 || index >= length)
            throw new ValueError(
              `DataLoader: there are samples 0 … ${length - 1}, got the index ${describeValue(index)}`,
            )
        return value
      })
      last = indices.catch(() => {})
      return indices.then(async (value) => value && samplesOf(await workers.get(value)))
    },
    stop: () => workers.stop(),
  }
}
