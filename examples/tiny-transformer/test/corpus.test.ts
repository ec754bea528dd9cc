import { manualSeed } from 'tilegrad'
import { expect, it } from 'vitest'
import { bigramEntropy, type Corpus, corpusOf, mobyDick, randomBatch, spacedBatches } from '../src/corpus.ts'
import { numberText } from '../src/text.ts'

const encode = (text: string, block: number): Corpus => corpusOf('x', numberText(text), block)

it('loads the whole of Moby-Dick, without licence texts', () => {
  const text = mobyDick()
  expect(text.length).toBeGreaterThan(1_190_000)
  expect(text).toContain('Call me Ishmael.')
  expect(text).not.toMatch(/project gutenberg/i)
})

it('holds out the last tenth', () => {
  const corpus = encode('abcab'.repeat(20), 4)
  expect(corpus.alphabet).toEqual(['a', 'b', 'c'])
  expect([corpus.train.length, corpus.held.length]).toEqual([90, 10])
  expect([...corpus.train.subarray(0, 5)]).toEqual([0, 1, 2, 0, 1])
})

it('knows the entropy of pairs', () => {
  // After a comes b or c, each half of the time: ln 2 for every a; the rest is certain.
  const { train, alphabet } = encode('abac'.repeat(1000), 4)
  expect(bigramEntropy(train, alphabet.length)).toBeCloseTo(Math.log(2) / 2, 3)
})

it('counts pairs of a large alphabet as those of a small one', () => {
  const text = Uint16Array.from({ length: 30_000 }, (_, i) => ((i * i) % 97) + ((i * 7) % 31))
  // The larger alphabet has characters that do not occur; only the way to count differs.
  expect(bigramEntropy(text, 70_000)).toBeCloseTo(bigramEntropy(text, 128), 10)
})

it('targets are the inputs one character on', async () => {
  manualSeed(3)
  const { train } = encode('hello world '.repeat(50), 8)
  for (const { inputs, targets } of [randomBatch(train, 3, 8), ...spacedBatches(train, 2, 2, 8)]) {
    const [x, y] = [await inputs.data(), await targets.data()]
    for (let i = 0; i + 1 < x.length; i++) if (i % 8 !== 7) expect(y[i]).toBe(x[i + 1])
  }
})
