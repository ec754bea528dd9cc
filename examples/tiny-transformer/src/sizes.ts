import { totalmem } from 'node:os'
import { getHeapStatistics } from 'node:v8'
import type { Options } from './options.ts'
import { UsageError } from './usage-error.ts'

/**
 * Sizes are refused before anything is made of them: by the least that training takes, so that nothing is refused that
 * would have worked. Measured on the CPU engine, of softmax attention; the other kinds take as much or more.
 */

/** Weights, gradients, AdamW's two moments, and the copy of the last good weights. */
const COPIES = 5
/** Float32 numbers per character of a batch that are alive at once: for each element of each layer's width. */
const PER_WIDTH = 14
/** The same, for each character of the alphabet: logits and their gradients. */
const PER_CHARACTER = 2
/** Bytes of JavaScript's heap for the objects of one layer. */
const PER_LAYER = 7000

/** Memory of the CPU engine: addresses have 32 bits. */
const ADDRESSED = 2 ** 32

/** More memory than any GPU has. */
const ANY_GPU = 2 ** 41

/** A day's writing. */
const LONGEST_SAMPLE = 10_000_000

/** The sizes that decide how much memory a run takes, and their defaults. */
const USUAL = { layers: 4, width: 128, block: 64, batch: 12 } as const

type Size = keyof typeof USUAL
type Sizes = Readonly<Record<Size, number>>

/** Parameters of a GPT: embeddings, and in each layer four projections of attention and two that are four times as wide. */
const parametersOf = ({ layers, width, block }: Sizes, alphabet: number): number =>
  width * (alphabet + block) + layers * 12 * width ** 2

/** The least bytes of tensors that training takes. */
const bytesOf = (sizes: Sizes, alphabet: number): number => {
  const perCharacter = PER_WIDTH * sizes.layers * sizes.width + PER_CHARACTER * alphabet
  return 4 * (COPIES * parametersOf(sizes, alphabet) + sizes.batch * sizes.block * perCharacter)
}

/** This machine's memory, or what of it this process may have. */
function systemMemory(): number {
  // Of no limit it says 0, or more than there is. Absent before Node 20.12.
  const constrained = process.constrainedMemory?.() ?? 0
  return constrained > 0 ? Math.min(constrained, totalmem()) : totalmem()
}

/** `1.5 GiB`, of any size. */
function showBytes(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB']
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(bytes) / 10)))
  return `${Number((bytes / 2 ** (10 * power)).toPrecision(3)).toLocaleString('en')} ${units[power]}`
}

/** The largest value of one size up to what it is, in steps, with which `fits` is true; 0 if there is none. */
function largest(size: Size, sizes: Sizes, step: number, fits: (sizes: Sizes) => boolean): number {
  let [works, fails] = [0, Math.ceil(sizes[size] / step)]
  while (fails - works > 1) {
    const middle = Math.floor((works + fails) / 2)
    if (fits({ ...sizes, [size]: middle * step })) works = middle
    else fails = middle
  }
  return works * step
}

/**
 * @param alphabet how many different characters there are; null where that is not known yet.
 * @throws UsageError for sizes that do not fit the memory, naming the option and what would fit.
 */
export function checkSizes(options: Options, alphabet: number | null): void {
  if (options.sample > LONGEST_SAMPLE)
    throw new UsageError(
      `--sample ${options.sample}: that takes days; at most --sample ${LONGEST_SAMPLE} is written`,
    )
  const characters = alphabet ?? 1
  const limit =
    options.backend === 'webgpu'
      ? ANY_GPU
      : Math.min(systemMemory(), options.backend === 'cpu' ? ADDRESSED : Number.POSITIVE_INFINITY)
  const heap = getHeapStatistics().heap_size_limit
  const fits = (sizes: Sizes): boolean =>
    bytesOf(sizes, characters) <= limit && sizes.layers * PER_LAYER <= heap
  const { layers, width, block, batch } = options
  const sizes = { layers, width, block, batch }
  if (fits(sizes)) return
  const ratio = (size: Size): number => sizes[size] / USUAL[size]
  const byRatio = (Object.keys(USUAL) as Size[]).sort((a, b) => ratio(b) - ratio(a))
  const tries = byRatio.map((size) => ({
    size,
    most: largest(size, sizes, size === 'width' ? options.heads : 1, fits),
  }))
  const helps = tries.find(({ most }) => most > 0)
  const named = helps?.size ?? byRatio[0]!
  const bytes = bytesOf(sizes, characters)
  const takes =
    bytes > limit
      ? `${alphabet === null ? 'at least ' : ''}${parametersOf(sizes, characters).toLocaleString('en')} parameters and batches of ${batch.toLocaleString('en')} × ${block.toLocaleString('en')} characters${alphabet === null ? '' : `, ${alphabet.toLocaleString('en')} different ones,`} take at least ${showBytes(bytes)}, and there are ${showBytes(limit)}`
      : `the objects of so many layers take at least ${showBytes(layers * PER_LAYER)} of JavaScript's heap, and there are ${showBytes(heap)}`
  const fix = helps
    ? `at most --${named} ${helps.most} would fit`
    : `nothing fits with ${byRatio
        .slice(0, 2)
        .map((size) => `--${size} ${sizes[size]}`)
        .join(' and ')}; make both smaller`
  throw new UsageError(`--${named} ${sizes[named]}: ${takes}; ${fix}`)
}
