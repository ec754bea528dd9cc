/** Where bytes come from: files, addresses, streams and memory, in Node and in browsers; gz is unpacked on the way. */

import { describeValue, ValueError } from '@tilegrad/core'
import { DataError } from './collate.ts'

// Written out rather than named, so that the types stand without those of browsers and Node.
/**
 * What readers read: a path (Node) or an address as a string, a URL, bytes, a Blob or File, a stream, pieces as they come, or a
 * function that opens one of these anew for each epoch. What is packed with gzip is unpacked.
 */
export type ByteSource =
  | string
  | { readonly href: string }
  | ArrayBuffer
  | Uint8Array
  | { readonly size: number; slice(start: number, end: number): { arrayBuffer(): Promise<ArrayBuffer> } }
  | { readonly locked: boolean; getReader(): object }
  | AsyncIterable<Uint8Array>
  | (() => ByteSource | Promise<ByteSource>)

/** What is used of Node's files, written out so that the types stand without Node's. */
export interface Files {
  readonly promises: {
    open(path: string): Promise<{
      read(into: Uint8Array, at: number, length: number, from?: number): Promise<{ bytesRead: number }>
      stat(): Promise<{ size: number }>
      close(): Promise<void>
    }>
  }
  statSync(path: string): { size: number }
  openSync(path: string, flags: string): number
  readSync(file: number, into: ArrayBufferView, at: number, length: number, from: number): number
  closeSync(file: number): void
}

/** Node's files, reached without imports, so that bundles for browsers stay whole; undefined in a browser. */
export const nodeFs = (): Files | undefined => globalThis.process?.getBuiltinModule?.('node:fs')

const isAddress = (text: string): boolean => /^[a-z][a-z0-9+.-]+:\/\//i.test(text)

/** The path that a source is, or null: an address, or no file at all. */
export function pathOf(source: unknown): string | null {
  if (source instanceof URL || (typeof source === 'string' && isAddress(source))) {
    const url = new URL(source)
    if (url.protocol !== 'file:') return null
    return globalThis.process?.getBuiltinModule?.('node:url').fileURLToPath(url) ?? null
  }
  return typeof source === 'string' && nodeFs() ? source : null
}

/** How a source is called in messages. */
export function nameOf(source: unknown): string {
  if (typeof source === 'string') return source
  if (source instanceof URL) return source.href
  const { name } = Object(source) as { name?: unknown }
  return typeof name === 'string' && typeof source !== 'function' && name !== '' ? name : 'the data'
}

export const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

async function* fromFile(path: string): AsyncGenerator<Uint8Array> {
  const file = await (nodeFs() as Files).promises.open(path)
  try {
    for (;;) {
      // A new one for each piece: who reads may keep it.
      const buffer = new Uint8Array(pieceBytes)
      const { bytesRead } = await file.read(buffer, 0, pieceBytes)
      if (bytesRead === 0) return
      yield buffer.subarray(0, bytesRead)
    }
  } finally {
    await file.close()
  }
}

/** How much of a file is read at once. */
export const pieceBytes = 2 ** 16

async function* fromStream(op: string, stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  if (stream.locked)
    throw new ValueError(
      `${op}: the stream has been read already; a stream goes once, pass a function that opens a new one: () => stream`,
    )
  const reader = stream.getReader()
  let ended = false
  try {
    for (;;) {
      const { done, value } = await reader.read()
      ended = done
      if (done) return
      yield value
    }
  } finally {
    // Locked for good: a second reader is told what to do.
    if (!ended) await reader.cancel()
  }
}

async function* fetched(url: string | URL): AsyncGenerator<Uint8Array> {
  const response = await fetch(url)
  if (!response.ok) throw new Error(`the server answers ${response.status} ${response.statusText}`.trim())
  if (response.body) yield* fromStream('fetch', response.body)
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes
}

async function opened(op: string, source: ByteSource): Promise<AsyncIterable<Uint8Array>> {
  if (typeof source === 'function') return opened(op, await source())
  const path = pathOf(source)
  if (path !== null) return fromFile(path)
  if (typeof source === 'string' || source instanceof URL) return fetched(source)
  if (source instanceof Uint8Array) return once(source)
  if (source instanceof ArrayBuffer) return once(new Uint8Array(source))
  if (source instanceof Blob) return fromStream(op, source.stream())
  if (source instanceof ReadableStream) return fromStream(op, source)
  if (typeof source === 'object' && source !== null && Symbol.asyncIterator in source) return source
  throw new ValueError(
    `${op}: reads a path, a URL, bytes, a Blob or a stream, got ${describeValue(source)}; a text is new TextEncoder().encode(text)`,
  )
}

/** Pieces, unpacked if they begin as gzip does. */
async function* unpacked(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const iterator = pieces[Symbol.asyncIterator]()
  try {
    let head = new Uint8Array(0)
    let done: boolean | undefined = false
    while (head.length < 2 && !done) {
      const next = await iterator.next()
      done = next.done
      if (!done) head = head.length === 0 ? next.value : Uint8Array.of(...head, ...next.value)
    }
    if (head[0] !== 0x1f || head[1] !== 0x8b) {
      if (head.length > 0) yield head
      for (let next = await iterator.next(); !next.done; next = await iterator.next()) yield next.value
      return
    }
    let first: Uint8Array | null = head
    const packed = new ReadableStream<Uint8Array>({
      async pull(controller) {
        const piece = first ?? (await iterator.next()).value
        first = null
        if (piece) controller.enqueue(piece)
        else controller.close()
      },
    })
    const plain = packed.pipeThrough(
      new DecompressionStream('gzip') as unknown as ReadableWritablePair<Uint8Array, Uint8Array>,
    )
    yield* fromStream('gzip', plain)
  } finally {
    await iterator.return?.()
  }
}

/** The pieces of a source. @throws DataError naming the source and the byte where reading it fails. */
export async function* openBytes(op: string, source: ByteSource): AsyncGenerator<Uint8Array> {
  let at = 0
  try {
    for await (const piece of unpacked(await opened(op, source))) {
      if (!(piece instanceof Uint8Array))
        throw new ValueError(`${op}: a piece of the stream is no Uint8Array but ${describeValue(piece)}`)
      yield piece
      at += piece.length
    }
  } catch (error) {
    if (error instanceof DataError || error instanceof ValueError) throw error
    throw new DataError(`${op}: ${nameOf(source)} cannot be read from byte ${at} on: ${messageOf(error)}`, {
      cause: error,
    })
  }
}

/** All bytes of a source. */
export async function readBytes(op: string, source: ByteSource): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  let length = 0
  for await (const piece of openBytes(op, source)) {
    pieces.push(piece)
    length += piece.length
  }
  const all = new Uint8Array(length)
  let at = 0
  for (const piece of pieces) {
    all.set(piece, at)
    at += piece.length
  }
  return all
}

/** The text of a source in pieces that break no character. @throws DataError where it is not in that encoding. */
export async function* openText(op: string, source: ByteSource, encoding = 'utf-8'): AsyncGenerator<string> {
  const decoder = new TextDecoder(encoding, { fatal: true })
  let at = 0
  const decode = (piece?: Uint8Array): string => {
    try {
      return piece ? decoder.decode(piece, { stream: true }) : decoder.decode()
    } catch (error) {
      throw new DataError(
        `${op}: ${nameOf(source)} is not ${encoding} between bytes ${at} and ${at + (piece?.length ?? 0)}; pass { encoding }, such as 'latin1'`,
        { cause: error },
      )
    }
  }
  for await (const piece of openBytes(op, source)) {
    const text = decode(piece)
    at += piece.length
    if (text !== '') yield text
  }
  const rest = decode()
  if (rest !== '') yield rest
}
