import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { DataLoader, RandomSampler, TextStream, TokenWindows } from '../src/index.ts'

const folder = mkdtempSync(join(tmpdir(), 'tilegrad-windows-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** What both kinds of windows must give, written the slow way. */
const expected = (tokens: readonly number[], size: number, stride: number): number[][][] => {
  const all: number[][][] = []
  for (let i = 0; i + size < tokens.length; i += stride)
    all.push([tokens.slice(i, i + size), tokens.slice(i + 1, i + size + 1)])
  return all
}
const plain = ([x, y]: readonly ArrayLike<number>[]): number[][] => [Array.from(x), Array.from(y)]

describe('TokenWindows', () => {
  test('any tokens, sizes and strides, from memory and from files', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(255), { minLength: 2, maxLength: 40 }),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 9 }),
        fc.constantFrom('uint8' as const, 'uint16' as const, 'int32' as const),
        (tokens, blockSize, stride, dtype) => {
          fc.pre(tokens.length > blockSize)
          const path = join(folder, 'tokens.bin')
          const array = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array }[dtype].from(tokens)
          writeFileSync(path, array)
          const want = expected(tokens, blockSize, stride)
          for (const source of [array, path]) {
            const windows = new TokenWindows(source, { blockSize, stride, dtype })
            expect(Array.from({ length: windows.length }, (_, i) => plain(windows.get(i)))).toEqual(want)
          }
        },
      ),
      { numRuns: 80, seed: 7 },
    )
  })

  test('batches are int32 [B, T]; random ones are those of the seed', () => {
    const windows = new TokenWindows(
      Uint16Array.from({ length: 50 }, (_, i) => 1000 + i),
      { blockSize: 8 },
    )
    const drawn = (seed: number): number[][] => {
      const sampler = new RandomSampler(windows, { replacement: true, numSamples: 7, seed })
      return [...new DataLoader(windows, { batchSize: 3, sampler, collate: (all) => all.map(([x]) => x[0]) })]
    }
    expect(drawn(1)).toEqual(drawn(1))
    expect(drawn(1)).not.toEqual(drawn(2))
    expect(drawn(1).map(({ length }) => length)).toEqual([3, 3, 1])
    for (const [x, y] of new DataLoader(windows, { batchSize: 4, shuffle: true, dropLast: true })) {
      expect([x.shape, x.dtype, y.dtype]).toEqual([[4, 8], 'int32', 'int32'])
      expect([...y.dataSync()]).toEqual([...x.dataSync()].map((token) => token + 1))
    }
  })

  test('says what is wrong', () => {
    const of = (tokens: unknown, options: object) => () =>
      new TokenWindows(tokens as Uint8Array, options as never)
    expect(of(new Uint8Array(4), { blockSize: 4 })).toThrow(
      'TokenWindows: windows of 4 tokens and the one that follows need 5 tokens, got 4',
    )
    expect(of(new Uint8Array(4), {})).toThrow(/blockSize must be a whole number ≥ 1, got undefined/)
    expect(of(new Uint8Array(4), { blockSize: 1, dtype: 'int8' })).toThrow(/dtype is one of uint8/)
    expect(of('https://example.org/a', { blockSize: 1 })).toThrow(/TextStream reads addresses/)
    expect(() => new TokenWindows(new Uint8Array(4), { blockSize: 2 }).get(2)).toThrow(
      /samples 0 … 1, got the index 2/,
    )
    const path = join(folder, 'short.bin')
    writeFileSync(path, new Uint8Array(10))
    const windows = new TokenWindows(path, { blockSize: 4 })
    truncateSync(path, 8)
    expect(() => [...new DataLoader(windows, { batchSize: 2 })]).toThrow(/short.bin is cut off at byte 8/)
  })
})

describe('TextStream', () => {
  const read = async (stream: TextStream): Promise<number[][][]> => {
    const all: number[][][] = []
    for await (const window of stream) all.push(plain(window))
    return all
  }

  test('any text, sizes, strides and pieces', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.stringMatching(/^[ab\né€ ]{0,40}$/),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 12 }),
        fc.integer({ min: 1, max: 11 }),
        async (text, blockSize, stride, size) => {
          const bytes = new TextEncoder().encode(text)
          const source = async function* () {
            for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
          }
          const stream = new TextStream(source, { blockSize, stride })
          expect(await read(stream)).toEqual(expected([...bytes], blockSize, stride))
          const encode = (piece: string): number[] => Array.from(piece, (c) => c.codePointAt(0) as number)
          expect(await read(new TextStream(source, { blockSize, stride, encode }))).toEqual(
            expected(encode(text), blockSize, stride),
          )
        },
      ),
      { numRuns: 150, seed: 7 },
    )
  })

  test('a file is read by pieces, as far as the loop goes, and again', async () => {
    const path = join(folder, 'text.txt')
    writeFileSync(path, 'to be or not to be, that is the question\n'.repeat(20_000))
    let [encoded, longest] = [0, 0]
    const encode = (text: string): Uint8Array => {
      encoded += text.length
      longest = Math.max(longest, text.length)
      expect(text.endsWith('\n')).toBe(true)
      return new TextEncoder().encode(text)
    }
    const loader = new DataLoader(new TextStream(path, { blockSize: 16, encode }), { batchSize: 8 })
    for (let epoch = 0; epoch < 2; epoch++)
      for await (const [x] of loader) {
        expect(x.shape).toEqual([8, 16])
        break
      }
    // 820,000 bytes are there; 65,536 are read at once.
    expect(longest).toBeLessThan(2 ** 17)
    expect(encoded).toBeLessThan(4 * 2 ** 16)
    let windows = 0
    for await (const [x] of loader) windows += x.shape[0]
    expect(windows).toBe(Math.floor((820_000 - 1) / 16))
  })

  test('says what is wrong', async () => {
    expect(() => new TextStream('a', {} as never)).toThrow(/blockSize/)
    expect(() => new TextStream('a', { blockSize: 2, encode: 'bytes' as never })).toThrow(
      /encode makes tokens/,
    )
    const stream = new TextStream(Uint8Array.of(97, 255), { blockSize: 1, encode: () => [] })
    await expect(read(stream)).rejects.toThrow(/TextStream: the data is not utf-8 between bytes 0 and 2/)
  })
})
