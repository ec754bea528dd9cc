import { noGrad } from '../autograd/tape.ts'
import type { Backend } from '../dispatch/backend.ts'
import { TilegradError, ValueError } from '../errors.ts'
import { data, tensor } from '../ops/create.ts'
import { add } from '../ops/pointwise.ts'
import { clone } from '../ops/shape.ts'
import type { DType, TypedArray } from '../tensor/dtype.ts'
import { scope } from '../tensor/memory.ts'
import type { Tensor } from '../tensor/tensor.ts'

/**
 * Several devices at one computation. Each device is a rank that runs the same function on its part of the data, and
 * sees the others through a `Link`: messages from one rank to another arrive in the order in which they were sent.
 * Only messages are awaited, operators never.
 */

/** A tensor on its way: the elements in row-major order. */
export interface HostTensor {
  /** The elements, in row-major order. */
  readonly data: TypedArray
  /** The size of each dim. */
  readonly shape: readonly number[]
  /** The type of the elements. */
  readonly dtype: DType
}

/** Anything that `structuredClone` copies. The arrays of what is sent belong to the receiver. */
export interface Message {
  /** What it is for: receivers say when they got another one than they wait for. */
  readonly what: string
  /** The tensors that it carries. */
  readonly tensors: readonly HostTensor[]
  /** Plain data beside the tensors. */
  readonly note?: unknown
}

/** A rank's connection to the others. */
export interface Link {
  /** The number of this rank, from 0 on. */
  readonly rank: number
  /** How many ranks there are. */
  readonly size: number
  /** Sends a message to another rank, or to this one; messages to one rank arrive in order. */
  send(to: number, message: Message): void
  /** The next message from a rank. Rejects with RankError if a rank fails or the sender ends without sending. */
  receive(from: number): Promise<Message>
}

/** A rank failed, and the others with it: `cause` is its error. */
export class RankError extends TilegradError {
  override name = 'RankError'
  /** The rank that failed first. */
  readonly rank: number

  constructor(rank: number, cause: unknown) {
    super(`rank ${rank} failed: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
    this.rank = rank
  }
}

interface Waiting {
  resolve(message: Message): void
  reject(error: unknown): void
}

/** The place where one rank's messages arrive, with a queue per sender. Transports fill it. */
export class Mailbox {
  readonly #queues = new Map<number, Message[]>()
  readonly #waiting = new Map<number, Waiting[]>()
  readonly #ended = new Set<number>()
  readonly #rank: number
  #failure: unknown = null

  constructor(rank: number) {
    this.#rank = rank
  }

  /** Throws what made a rank fail. */
  check(): void {
    if (this.#failure !== null) throw this.#failure
  }

  /** Puts in a message from another rank. */
  deliver(from: number, message: Message): void {
    const next = this.#waiting.get(from)?.shift()
    if (next) next.resolve(message)
    else this.#queues.set(from, [...(this.#queues.get(from) ?? []), message])
  }

  /** Waits for the next message from another rank. */
  receive(from: number): Promise<Message> {
    if (this.#failure !== null) return Promise.reject(this.#failure)
    const message = this.#queues.get(from)?.shift()
    if (message) return Promise.resolve(message)
    if (this.#ended.has(from)) return Promise.reject(this.#missing(from))
    return new Promise((resolve, reject) => {
      this.#waiting.set(from, [...(this.#waiting.get(from) ?? []), { resolve, reject }])
    })
  }

  /** Tells the mailbox that a rank sends nothing more: whoever waits for its messages is refused. */
  end(from: number): void {
    this.#ended.add(from)
    for (const { reject } of this.#waiting.get(from) ?? []) reject(this.#missing(from))
    this.#waiting.delete(from)
  }

  /** Makes what waits, and what is asked for from now on, fail with an error. */
  fail(error: unknown): void {
    this.#failure ??= error
    for (const list of this.#waiting.values()) for (const { reject } of list) reject(this.#failure)
    this.#waiting.clear()
  }

  #missing(from: number): RankError {
    return new RankError(
      this.#rank,
      new ValueError(
        `it waits for a message from rank ${from}, which has ended; all ranks must call the same functions in the same order`,
      ),
    )
  }
}

/**
 * Runs `run` once for each rank, all in this thread: they take turns where they await messages. What a rank computes
 * on is its own choice: GPUs work side by side, CPU backends one after the other (for those see `runWorkers` of
 * `tilegrad/workers`).
 *
 * @returns what each rank returned
 * @throws RankError when a rank throws; the others then fail at their next message instead of waiting for ever.
 * @example
 * const sums = await runRanks(3, async (link) => {
 *   const [total] = await allReduce(link, [tensor([link.rank + 1])])
 *   return total.item()
 * })
 * sums // → 6,6,6
 */
export async function runRanks<T>(size: number, run: (link: Link) => Promise<T>): Promise<T[]> {
  if (!Number.isInteger(size) || size < 1)
    throw new ValueError(`runRanks: needs a whole number of ranks ≥ 1, got ${size}`)
  const boxes = Array.from({ length: size }, (_, rank) => new Mailbox(rank))
  const links = boxes.map(
    (box, rank): Link => ({
      rank,
      size,
      send(to, message) {
        box.check()
        boxes[other(size, to)].deliver(rank, message)
      },
      receive: (from) => box.receive(other(size, from)),
    }),
  )
  const results = await Promise.allSettled(
    links.map(async (link) => {
      try {
        const result = await run(link)
        for (const box of boxes) box.end(link.rank)
        return result
      } catch (error) {
        const failure = error instanceof RankError ? error : new RankError(link.rank, error)
        for (const box of boxes) box.fail(failure)
        throw failure
      }
    }),
  )
  return results.map((result) => {
    if (result.status === 'rejected') throw result.reason
    return result.value
  })
}

/** A rank's number, checked. */
function other(size: number, rank: number): number {
  if (!Number.isInteger(rank) || rank < 0 || rank >= size)
    throw new ValueError(`Link: there are ranks 0 … ${size - 1}, not ${rank}`)
  return rank
}

/** The next message from a rank, which must be of this kind. */
export async function expectMessage(link: Link, from: number, what: string): Promise<Message> {
  const message = await link.receive(from)
  if (message.what !== what)
    throw new ValueError(
      `rank ${link.rank} waits for '${what}' and got '${message.what}' from rank ${from}; all ranks must call the same functions in the same order`,
    )
  return message
}

/** Reads tensors, for sending. */
export const toHost = (tensors: readonly Tensor[]): Promise<HostTensor[]> =>
  Promise.all(tensors.map(async (t) => ({ data: await data(t), shape: t.shape, dtype: t.dtype })))

/** Received tensors on a device. */
export const fromHost = (tensors: readonly HostTensor[], device: Backend): Tensor[] =>
  noGrad(() => tensors.map(({ data, shape, dtype }) => tensor(data, shape, { dtype, device })))

/**
 * Every rank's note, in the order of ranks: small plain data.
 *
 * @example
 * const all = await runRanks(2, (link) => allGather(link, 'ranks', link.rank))
 * all // → [[0, 1], [0, 1]]
 */
export async function allGather<T>(link: Link, what: string, note: T): Promise<T[]> {
  for (let to = 0; to < link.size; to++) if (to !== link.rank) link.send(to, { what, tensors: [], note })
  const all: T[] = []
  for (let from = 0; from < link.size; from++)
    all.push(from === link.rank ? note : ((await expectMessage(link, from, what)).note as T))
  return all
}

/** Every rank's tensors, on this rank's device, in the order of ranks; this rank's own are the ones given. */
export async function allGatherTensors(
  link: Link,
  what: string,
  mine: readonly Tensor[],
): Promise<Tensor[][]> {
  for (let to = 0; to < link.size; to++)
    if (to !== link.rank) link.send(to, { what, tensors: await toHost(mine) })
  const all: Tensor[][] = []
  for (let from = 0; from < link.size; from++) {
    if (from === link.rank) all.push([...mine])
    else {
      const { tensors } = await expectMessage(link, from, what)
      all.push(mine.length > 0 ? fromHost(tensors, mine[0].backend) : [])
    }
  }
  return all
}

/**
 * Sums of every rank's tensors, the same bits on each rank: what gradients of shared parameters need.
 *
 * @param tensors of the same shapes on every rank
 * @returns new tensors
 * @example
 * const sums = await runRanks(2, async (link) => (await allReduce(link, [tensor([link.rank])]))[0]?.item())
 * sums // → [1, 1]
 */
export async function allReduce(link: Link, tensors: readonly Tensor[]): Promise<Tensor[]> {
  const all = await allGatherTensors(link, 'allReduce', tensors)
  const shapes = all.map((list) => JSON.stringify(list.map((t) => t.shape)))
  const odd = shapes.findIndex((s) => s !== shapes[0])
  if (odd >= 0) throw new ValueError(`allReduce: rank 0 brought ${shapes[0]}, rank ${odd} ${shapes[odd]}`)
  const sums = noGrad(() =>
    scope(() =>
      tensors.map((_, i) => all.slice(1).reduce((sum, list) => add(sum, list[i]), clone(all[0][i]))),
    ),
  )
  all.forEach((list, rank) => {
    if (rank !== link.rank) for (const t of list) t.dispose()
  })
  return sums
}
