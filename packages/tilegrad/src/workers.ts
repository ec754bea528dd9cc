/**
 * Ranks that truly run in parallel: each in a worker thread of Node, with an engine of its own. For browsers and for
 * ranks in one thread see `runRanks`.
 *
 * @module workers
 */
import { MessageChannel, type MessagePort, parentPort, Worker, workerData } from 'node:worker_threads'
import { type Link, Mailbox, type Message, RankError, ValueError } from '@tilegrad/core'

/** What a worker is started with, under this name in its data. */
const key = 'tilegradRank'

interface Start {
  readonly rank: number
  readonly size: number
  /** The ports to the other ranks; null in its own place. */
  readonly ports: readonly (MessagePort | null)[]
  readonly input: unknown
}

/** An error on its way between threads, which only carry the standard classes. */
interface Failure {
  readonly rank: number
  readonly name: string
  readonly message: string
  readonly stack: string | undefined
}

const pack = (rank: number, error: unknown): Failure => {
  if (error instanceof RankError && error.cause) return pack(error.rank, error.cause)
  const { name, message, stack } = error instanceof Error ? error : new Error(String(error))
  return { rank, name, message, stack }
}

const unpack = ({ rank, name, message, stack }: Failure): RankError =>
  new RankError(rank, Object.assign(new Error(message), { name, ...(stack !== undefined && { stack }) }))

/** To the main thread. */
type Report = { readonly result: unknown } | { readonly failure: Failure }

/** Options of `runWorkers`. */
export interface RunWorkersOptions {
  /** Flags of Node for the workers, such as a loader. Default: those of the main thread. */
  readonly execArgv?: readonly string[]
}

/** Ranks that hear of a failure while they compute are ended after so many milliseconds. */
const patience = 2000

/**
 * Runs a module in `size` worker threads, which call `asRank` to get their links: messages go straight from thread to
 * thread.
 *
 * @param module the module to run: a URL, as `new URL('./rank.js', import.meta.url)`, or a path
 * @param input plain data for every rank: `asRank` hands it on
 * @returns what each rank returned, which must be plain data as well
 * @throws RankError when a rank throws or its thread ends early; the others then fail at their next message, and are
 * ended if they do not get there.
 */
export async function runWorkers(
  size: number,
  module: string | { readonly href: string },
  input?: unknown,
  options: RunWorkersOptions = {},
): Promise<unknown[]> {
  const { execArgv } = options
  if (!Number.isInteger(size) || size < 1)
    throw new ValueError(`runWorkers: needs a whole number of ranks ≥ 1, got ${size}`)
  const ports = Array.from({ length: size }, () => new Array<MessagePort | null>(size).fill(null))
  for (let a = 0; a < size; a++)
    for (let b = a + 1; b < size; b++) {
      const { port1, port2 } = new MessageChannel()
      ;(ports[a] as (MessagePort | null)[])[b] = port1
      ;(ports[b] as (MessagePort | null)[])[a] = port2
    }
  let failure: Failure | null = null
  const fail = (failed: Failure): void => {
    if (failure) return
    failure = failed
    for (const { worker } of ranks) worker.postMessage(failed)
    setTimeout(() => {
      for (const { worker } of ranks) void worker.terminate()
    }, patience).unref()
  }
  const results = new Array<unknown>(size)
  const ranks = ports.map((mine, rank) => {
    const start: Start = { rank, size, ports: mine, input }
    const worker = new Worker(module as string | URL, {
      workerData: { [key]: start },
      transferList: mine.filter((port) => port !== null),
      ...(execArgv && { execArgv: [...execArgv] }),
    })
    let finished = false
    worker.on('message', (report: Report) => {
      finished = true
      if ('failure' in report) fail(report.failure)
      else results[rank] = report.result
    })
    worker.on('error', (error) => fail(pack(rank, error)))
    const ended = new Promise<void>((resolve) => {
      worker.once('exit', (code) => {
        if (!finished)
          fail(pack(rank, new Error(`its thread ended with code ${code} before it had a result from asRank`)))
        resolve()
      })
    })
    return { worker, ended }
  })
  await Promise.all(ranks.map(({ ended }) => ended))
  if (failure) throw unpack(failure)
  return results
}

/**
 * In a module that `runWorkers` runs: calls `run` with this worker's link and the input, and reports what it returns.
 * The thread ends when nothing of the module is left to do.
 *
 * @throws ValueError where `runWorkers` did not start this thread.
 */
export async function asRank<T>(run: (link: Link, input: unknown) => Promise<T>): Promise<void> {
  const start = (workerData as { [key]?: Start } | null)?.[key]
  const main = parentPort
  if (!start || !main)
    throw new ValueError(
      'asRank: this is no worker of runWorkers; start the module with runWorkers(size, url)',
    )
  const { rank, size, ports, input } = start
  const box = new Mailbox(rank)
  ports.forEach((port, from) => {
    port?.on('message', (message: Message | null) => {
      if (message === null) box.end(from)
      else box.deliver(from, message)
    })
  })
  main.on('message', (failed: Failure) => box.fail(unpack(failed)))
  const port = (to: number): MessagePort | null => {
    if (!Number.isInteger(to) || to < 0 || to >= size)
      throw new ValueError(`Link: there are ranks 0 … ${size - 1}, not ${to}`)
    return ports[to] ?? null
  }
  const link: Link = {
    rank,
    size,
    send(to, message) {
      box.check()
      const way = port(to)
      // The elements move, they are not copied.
      const buffers = new Set(message.tensors.map(({ data }) => data.buffer as ArrayBuffer))
      if (way) way.postMessage(message, [...buffers])
      else box.deliver(rank, message)
    },
    async receive(from) {
      port(from)
      return box.receive(from)
    },
  }
  try {
    const result = await run(link, input)
    for (const way of ports) way?.postMessage(null)
    main.postMessage({ result } satisfies Report)
  } catch (error) {
    main.postMessage({ failure: pack(rank, error) } satisfies Report)
  } finally {
    // Nothing more is awaited: the thread may end.
    for (const way of ports) way?.unref()
    main.unref()
  }
}
