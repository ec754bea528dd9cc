import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { reason } from './files.ts'
import { UsageError } from './usage-error.ts'

/** Characters as numbers, in the narrowest type that holds them all. */
export type Tokens = Uint8Array | Uint16Array | Uint32Array

/** A text as numbers: token i is the character `alphabet[i]`. */
export interface Text {
  readonly tokens: Tokens
  /** The characters that occur, in code-point order. */
  readonly alphabet: readonly string[]
}

/** Longer files are refused: they would be read for minutes, and trained on for days. */
export const LONGEST_TEXT = 2 ** 30

const CHUNK = 2 ** 20
const CR = 13
const LF = 10
/** A byte-order mark. */
const BOM = 0xfeff

/** A byte that no UTF-8 text has there. */
class NotUtf8 extends Error {
  readonly byte: number
  readonly offset: number

  constructor(byte: number, offset: number) {
    super(`byte ${offset} is 0x${byte.toString(16).padStart(2, '0')}`)
    this.byte = byte
    this.offset = offset
  }
}

/** Collects characters as numbers in order of appearance, and puts these into code-point order at the end. */
class Numbering {
  #tokens: Tokens
  #length = 0
  /** The number of each code point + 1; 0: not seen. */
  readonly #numbers = new Uint32Array(0x110000)
  readonly #points: number[] = []

  constructor(expected: number) {
    this.#tokens = new Uint8Array(expected)
  }

  add(point: number): void {
    let number = this.#numbers[point]!
    if (number === 0) {
      number = this.#points.push(point)
      this.#numbers[point] = number
      if (number === 2 ** 8 + 1) this.#move(new Uint16Array(this.#tokens.length))
      if (number === 2 ** 16 + 1) this.#move(new Uint32Array(this.#tokens.length))
    }
    if (this.#length === this.#tokens.length) {
      const Type = this.#tokens.constructor as new (length: number) => Tokens
      this.#move(new Type(Math.max(CHUNK, 2 * this.#length)))
    }
    this.#tokens[this.#length++] = number - 1
  }

  #move(to: Tokens): void {
    to.set(this.#tokens.subarray(0, this.#length))
    this.#tokens = to
  }

  /** The text so far. Ends the numbering. */
  finish(): Text {
    const sorted = Uint32Array.from(this.#points).sort()
    const place = new Uint32Array(sorted.length)
    sorted.forEach((point, i) => {
      place[this.#numbers[point]! - 1] = i
    })
    const tokens = this.#tokens.subarray(0, this.#length)
    for (let i = 0; i < tokens.length; i++) tokens[i] = place[tokens[i]!]!
    return { tokens, alphabet: Array.from(sorted, (point) => String.fromCodePoint(point)) }
  }
}

/**
 * Takes UTF-8 apart as it comes: a byte-order mark in front is left out, and line ends of two characters become one.
 *
 * @throws NotUtf8 at the first byte that cannot be, as RFC 3629 has it: no overlong forms, no surrogates.
 */
class Decoder {
  readonly #to: Numbering
  #point = 0
  /** Bytes of the character that are still to come, and what the next of them may be. */
  #missing = 0
  #least = 0x80
  #most = 0xbf
  /** Bytes taken before this chunk, and where the character began. */
  #before = 0
  #from = 0
  #afterCr = false

  constructor(to: Numbering) {
    this.#to = to
  }

  take(bytes: Uint8Array): void {
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i]!
      if (this.#missing === 0 && byte < 0x80) this.#give(byte, this.#before + i)
      else if (this.#missing === 0) this.#begin(byte, this.#before + i)
      else if (byte < this.#least || byte > this.#most) throw new NotUtf8(byte, this.#before + i)
      else {
        this.#point = (this.#point << 6) | (byte & 0x3f)
        this.#least = 0x80
        this.#most = 0xbf
        if (--this.#missing === 0) this.#give(this.#point, this.#from)
      }
    }
    this.#before += bytes.length
  }

  #begin(byte: number, at: number): void {
    if (byte < 0xc2 || byte > 0xf4) throw new NotUtf8(byte, at)
    this.#from = at
    this.#missing = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3
    this.#point = byte & (0x3f >> this.#missing)
    if (byte === 0xe0) this.#least = 0xa0
    if (byte === 0xed) this.#most = 0x9f
    if (byte === 0xf0) this.#least = 0x90
    if (byte === 0xf4) this.#most = 0x8f
  }

  #give(point: number, from: number): void {
    if (this.#afterCr && point !== LF) this.#to.add(CR)
    this.#afterCr = point === CR
    if (point !== CR && !(point === BOM && from === 0)) this.#to.add(point)
  }

  end(): void {
    if (this.#missing > 0)
      throw new UsageError(`the file ends within the character that begins at byte ${this.#from}`)
    if (this.#afterCr) this.#to.add(CR)
  }
}

/** The text of a string or of bytes in memory, by the rules for files. @throws as Decoder does. */
export function numberText(text: string | Uint8Array): Text {
  const bytes = typeof text === 'string' ? new TextEncoder().encode(text) : text
  const numbering = new Numbering(bytes.length)
  const decoder = new Decoder(numbering)
  decoder.take(bytes)
  decoder.end()
  return numbering.finish()
}

/**
 * Reads a UTF-8 file piece by piece: no more than its numbers is held, one byte for each character of a small alphabet.
 *
 * @throws UsageError where there is nothing to learn from in it, saying what is wrong and at which byte.
 */
export function readText(file: string): Text {
  const refuse = (why: string): never => {
    throw new UsageError(`--data ${file}: ${why}`)
  }
  const most = `texts of up to ${LONGEST_TEXT.toLocaleString('en')} bytes are read; give a part of it`
  let fd: number
  try {
    fd = openSync(file, 'r')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    return refuse(code === 'ENOENT' ? 'there is no such file' : `it cannot be read: ${reason(error)}`)
  }
  try {
    const stat = fstatSync(fd)
    if (stat.isDirectory()) return refuse('it is a folder; give a text file')
    if (stat.isCharacterDevice() || stat.isBlockDevice()) return refuse('it is a device; give a text file')
    if (stat.size > LONGEST_TEXT) return refuse(`it has ${stat.size.toLocaleString('en')} bytes; ${most}`)
    const numbering = new Numbering(stat.size)
    const decoder = new Decoder(numbering)
    const chunk = new Uint8Array(CHUNK)
    let total = 0
    for (;;) {
      const n = readSync(fd, chunk, 0, CHUNK, null)
      if (n === 0) break
      total += n
      // A pipe or a device says its size only by ending.
      if (total > LONGEST_TEXT) return refuse(`it does not end; ${most}`)
      decoder.take(chunk.subarray(0, n))
    }
    decoder.end()
    if (total === 0) return refuse('the file is empty')
    return numbering.finish()
  } catch (error) {
    if (error instanceof NotUtf8) {
      const utf16 = error.offset === 0 && error.byte >= 0xfe ? '; is it UTF-16?' : ''
      return refuse(`it is not UTF-8: ${error.message}${utf16}; convert it (iconv -t UTF-8)`)
    }
    if (error instanceof UsageError && !error.message.startsWith('--data')) return refuse(error.message)
    if ((error as NodeJS.ErrnoException).syscall) return refuse(`it cannot be read: ${reason(error)}`)
    throw error
  } finally {
    closeSync(fd)
  }
}
