import { describeValue, expectOptions, type Tensor, tensor, ValueError } from '@tilegrad/core'
import { type ByteSource, nodeFs, openBytes, openText, pathOf } from './bytes.ts'
import { DataError } from './collate.ts'
import { type Dataset, expectIndex } from './dataset.ts'

/** Tokens and those that follow them: what a language model reads, and what it shall predict. */
export type Window = [x: Int32Array, y: Int32Array]

const expectSize = (op: string, name: string, value: number): number => {
  if (Number.isInteger(value) && value >= 1) return value
  throw new ValueError(`${op}: ${name} must be a whole number ≥ 1, got ${describeValue(value)}`)
}

/** Options of `TokenWindows`. */
export interface TokenWindowsOptions {
  /** How many tokens a window has, T. */
  blockSize: number
  /** How many tokens lie between the beginnings of two windows. Default: 1; `blockSize` for windows side by side. */
  stride?: number
  /** What a file of tokens holds: numbers of so many bits, the lowest byte first. Default: uint8, the bytes of a text. */
  dtype?: 'uint8' | 'uint16' | 'int32'
}

const FILES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array } as const

/**
 * All windows of T tokens and the tokens that follow each, as a dataset for language models: x = tokens[i … i + T),
 * y = tokens[i + 1 … i + T]. A batch is a pair of int32 tensors [B, T]. Random windows are `shuffle: true`, or of large files
 * `sampler: new RandomSampler(windows, { replacement: true, numSamples })`. Files are read window by window, never as a whole.
 *
 * @param tokens a typed array, or in Node a path or URL of a file of tokens.
 * @throws ValueError for fewer than T + 1 tokens, and for options out of range.
 * @example
 * import { DataLoader, TokenWindows } from 'tilegrad/data'
 *
 * const windows = new TokenWindows(new TextEncoder().encode('abcdef'), { blockSize: 3 })
 * windows.length // → 3
 * for (const [x, y] of new DataLoader(windows, { batchSize: 2, shuffle: true, seed: 1 })) console.log(x.shape, y.shape)
 */
export class TokenWindows implements Dataset<Window> {
  /** How many tokens a window has. */
  readonly blockSize: number
  /** How many tokens lie between the beginnings of two windows. */
  readonly stride: number
  /** The number of windows. */
  readonly length: number
  readonly #read: (from: number, count: number) => ArrayLike<number>

  constructor(tokens: ArrayLike<number> | string | { readonly href: string }, options: TokenWindowsOptions) {
    const {
      blockSize,
      stride = 1,
      dtype = 'uint8',
    } = expectOptions('TokenWindows', options, { blockSize: 1, stride: 1, dtype: 1 })
    this.blockSize = expectSize('TokenWindows', 'blockSize', blockSize)
    this.stride = expectSize('TokenWindows', 'stride', stride)
    if (!Object.hasOwn(FILES, dtype))
      throw new ValueError(
        `TokenWindows: dtype is one of ${Object.keys(FILES).join(', ')}, got ${describeValue(dtype)}`,
      )
    let count: number
    if (ArrayBuffer.isView(tokens) || Array.isArray(tokens)) {
      const list = tokens as Int32Array
      count = list.length
      this.#read = (from, size) => list.slice(from, from + size)
    } else {
      const path = pathOf(tokens)
      const fs = nodeFs()
      if (path === null || !fs)
        throw new ValueError(
          `TokenWindows: takes tokens in a typed array, or in Node the path of a file of them, got ${describeValue(tokens)}; TextStream reads addresses and streams`,
        )
      const Kind = FILES[dtype]
      const bytes = Kind.BYTES_PER_ELEMENT
      count = Math.floor(fs.statSync(path).size / bytes)
      this.#read = (from, size) => {
        const read = new Kind(size)
        const file = fs.openSync(path, 'r')
        try {
          const got = fs.readSync(file, read, 0, size * bytes, from * bytes)
          if (got < size * bytes)
            throw new DataError(`TokenWindows: ${path} is cut off at byte ${from * bytes + got}`)
        } finally {
          fs.closeSync(file)
        }
        return read
      }
    }
    if (count <= blockSize)
      throw new ValueError(
        `TokenWindows: windows of ${blockSize} tokens and the one that follows need ${blockSize + 1} tokens, got ${count}`,
      )
    this.length = Math.floor((count - blockSize - 1) / stride) + 1
  }

  /** Gets the window that begins at token `index` · stride. */
  get(index: number): Window {
    expectIndex('TokenWindows', index, this.length)
    const tokens = Int32Array.from(this.#read(index * this.stride, this.blockSize + 1))
    return [tokens.slice(0, -1), tokens.slice(1)]
  }

  /** Gets windows as two tensors [B, T]. */
  batch(indices: readonly number[]): [x: Tensor, y: Tensor] {
    const shape = [indices.length, this.blockSize]
    const [xs, ys] = [new Int32Array(shape[0] * shape[1]), new Int32Array(shape[0] * shape[1])]
    indices.forEach((index, b) => {
      const [x, y] = this.get(index)
      xs.set(x, b * this.blockSize)
      ys.set(y, b * this.blockSize)
    })
    return [tensor(xs, shape), tensor(ys, shape)]
  }
}

/** Options of `TextStream`. */
export interface TextStreamOptions {
  /** How many tokens a window has, T. */
  blockSize: number
  /** How many tokens lie between the beginnings of two windows. Default: `blockSize`. */
  stride?: number
  /**
   * Makes tokens of a piece of the text, which ends behind a line's end where there is one. Default: each byte is a token, and
   * the text is not decoded.
   */
  encode?: (text: string) => ArrayLike<number>
  /** How the text is encoded. Default: utf-8. */
  encoding?: string
}

/**
 * The windows of a text that is read by pieces, one after the other, as an iterable dataset for language models: pairs
 * x, y of T tokens, y one token further. No more of the text is held than a piece and a window; what is left at the end is too
 * short for a window, and left out. Each loop opens the source anew.
 *
 * @param source a path, a URL, bytes, a Blob, a stream, or a function that opens one of these for each epoch.
 * @throws ValueError for options out of range; DataError with the byte where reading fails, while it goes on.
 * @example
 * import { DataLoader, TextStream } from 'tilegrad/data'
 *
 * const text = new TextEncoder().encode('to be or not to be')
 * const stream = new TextStream(text, { blockSize: 4 })
 * for await (const [x, y] of new DataLoader(stream, { batchSize: 2 })) console.log(x.shape, y.shape)
 */
export class TextStream implements AsyncIterable<Window> {
  readonly #source: ByteSource
  readonly #options: TextStreamOptions

  constructor(source: ByteSource, options: TextStreamOptions) {
    const { blockSize, stride, encode } = expectOptions('TextStream', options, {
      blockSize: 1,
      stride: 1,
      encode: 1,
      encoding: 1,
    })
    expectSize('TextStream', 'blockSize', blockSize)
    if (stride !== undefined) expectSize('TextStream', 'stride', stride)
    if (encode !== undefined && typeof encode !== 'function')
      throw new ValueError(`TextStream: encode makes tokens of a text, got ${describeValue(encode)}`)
    this.#source = source
    this.#options = options
  }

  async *#tokens(): AsyncGenerator<ArrayLike<number>> {
    const { encode, encoding } = this.#options
    if (!encode) return yield* openBytes('TextStream', this.#source)
    let rest = ''
    for await (const piece of openText('TextStream', this.#source, encoding)) {
      rest += piece
      // A tokenizer joins letters: what may go on in the next piece waits for it. Lines without an end do not.
      const end = rest.lastIndexOf('\n') + 1 || (rest.length > 2 ** 20 ? rest.length : 0)
      if (end > 0) yield encode(rest.slice(0, end))
      rest = rest.slice(end)
    }
    if (rest !== '') yield encode(rest)
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Window, void, undefined> {
    const { blockSize, stride = blockSize } = this.#options
    let held = new Int32Array(0)
    let skip = 0
    for await (const piece of this.#tokens()) {
      const all = new Int32Array(held.length + piece.length)
      all.set(held)
      all.set(piece, held.length)
      let at = skip
      for (; at + blockSize < all.length; at += stride)
        yield [all.slice(at, at + blockSize), all.slice(at + 1, at + blockSize + 1)]
      // With a long stride the next window begins in a piece to come.
      skip = Math.max(0, at - all.length)
      held = all.slice(at)
    }
  }
}
