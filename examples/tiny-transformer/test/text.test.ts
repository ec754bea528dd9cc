import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { numberText, readText, type Text } from '../src/text.ts'

const folder = mkdtempSync(join(tmpdir(), 'tiny-transformer-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const of = (bytes: string | Uint8Array): Text => {
  const file = join(folder, 'text.txt')
  writeFileSync(file, bytes)
  return readText(file)
}
const spelled = ({ tokens, alphabet }: Text): string => Array.from(tokens, (t) => alphabet[t]).join('')

it.each([
  'plain',
  'naïve – 木 – 𝄞 – e\u0301',
  '\u{10ffff}\u{ffff}\u{10000}\ud7ff\ue000\u0080\u07ff\u0800',
  'tabs\tand\0zeros',
])('reads %j as it is', (text) => {
  expect(spelled(of(text))).toBe(text)
  expect(of(text).alphabet).toEqual(
    [...new Set(text)].sort((a, b) => (a.codePointAt(0) ?? 0) - (b.codePointAt(0) ?? 0)),
  )
})

it('leaves out a byte-order mark in front, and makes line ends one character', () => {
  expect(spelled(of('\ufeffa\r\nb\r\r\nc\rd\n\r\ufeff\r'))).toBe('a\nb\r\nc\rd\n\r\ufeff\r')
})

it('reads characters and line ends across the pieces that a file is read in', () => {
  // Pieces of 2²⁰ bytes.
  for (const end of ['\r\n', '木', '𝄞', 'é'])
    for (const before of [2 ** 20 - 3, 2 ** 20 - 2, 2 ** 20 - 1]) {
      const { tokens, alphabet } = of(`${'x'.repeat(before)}${end}y`)
      expect(tokens.length).toBe(before + 2)
      expect(spelled({ tokens: tokens.subarray(-3), alphabet })).toBe(`x${end.replace('\r\n', '\n')}y`)
    }
})

it('has room for every character there is', () => {
  const points = Array.from({ length: 0x110000 }, (_, i) => i).filter((i) => i < 0xd800 || i > 0xdfff)
  const text = points.map((i) => String.fromCodePoint(i)).join('')
  const { tokens, alphabet } = numberText(`a${text}`)
  expect(alphabet.length).toBe(points.length)
  expect(tokens.length).toBe(points.length + 1)
  expect(alphabet[tokens.at(-1) ?? 0]).toBe('\u{10ffff}')
})

describe('refuses what is no UTF-8, with the place', () => {
  const cases: [string, number[], RegExp][] = [
    ['a lone continuation byte', [97, 0x80], /byte 1 is 0x80/],
    ['an overlong form', [97, 98, 0xc0, 0xaf], /byte 2 is 0xc0/],
    ['an overlong form of three bytes', [0xe0, 0x9f, 0xbf], /byte 1 is 0x9f/],
    ['a lone surrogate', [0xed, 0xa0, 0x80], /byte 1 is 0xa0/],
    ['a code point too large', [0xf4, 0x90, 0x80, 0x80], /byte 1 is 0x90/],
    ['a byte that is never used', [0xff], /byte 0 is 0xff; is it UTF-16\?; convert it/],
    ['UTF-16', [0xfe, 0xff, 0, 97], /is it UTF-16\?/],
    ['Latin-1', [99, 97, 102, 0xe9, 32], /byte 4 is 0x20/],
    ['an end within a character', [97, 0xe6, 0x9c], /ends within the character that begins at byte 1/],
  ]
  it.each(cases)('%s', (_, bytes, message) => {
    expect(() => of(Uint8Array.from(bytes))).toThrow(message)
    // The same far into a file.
    const far = new Uint8Array(2 ** 20 + 100).fill(97)
    far.set(bytes, far.length - bytes.length)
    expect(() => of(far)).toThrow(/--data .*(not UTF-8|ends within)/)
  })

  it('agrees with TextDecoder on random bytes', () => {
    const decoder = new TextDecoder('utf-8', { fatal: true })
    let state = 1
    const random = (n: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
      return (state >> 8) % n
    }
    const pieces = [
      [97],
      [0xc3, 0xa9],
      [0xe6, 0x9c, 0xa8],
      [0xf0, 0x9d, 0x84, 0x9e],
      [0xed],
      [0xa0],
      [0xf4],
      [0x8f],
    ]
    let refused = 0
    for (let i = 0; i < 300; i++) {
      const bytes = Uint8Array.from(
        Array.from({ length: 1 + random(6) }, () => pieces[random(pieces.length)] ?? []).flat(),
      )
      let expected: string | null = null
      try {
        expected = decoder.decode(bytes)
      } catch {
        refused++
      }
      if (expected === null) expect(() => numberText(bytes)).toThrow(/^byte \d+ is 0x|ends within/)
      else expect(spelled(numberText(bytes))).toBe(expected)
    }
    expect(refused).toBeGreaterThan(50)
  })
})

it('refuses what is no text, or too much, at once', () => {
  const huge = join(folder, 'huge.txt')
  const fd = openSync(huge, 'w')
  // Sparse: it takes no room.
  ftruncateSync(fd, 5e9)
  closeSync(fd)
  expect(() => readText(huge)).toThrow(
    /it has 5,000,000,000 bytes; texts of up to 1,073,741,824 bytes are read/,
  )
  expect(() => readText(folder)).toThrow(/it is a folder/)
  expect(() => readText(join(folder, 'nowhere'))).toThrow(/there is no such file/)
  expect(() => of('')).toThrow(/the file is empty/)
})
