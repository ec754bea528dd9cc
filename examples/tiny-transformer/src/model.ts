import { readFileSync } from 'node:fs'
import {
  fixedBlocks,
  GPT,
  type GPTConfig,
  loadSafetensors,
  readSafetensors,
  saveSafetensors,
  type Tensor,
} from 'tilegrad'
import type { Options } from './options.ts'

/** What of the options makes the model. */
export type ModelOptions = Pick<
  Options,
  'attention' | 'window' | 'layers' | 'heads' | 'width' | 'block' | 'dropout' | 'bias'
>

/** How far the kinds of attention that do not look at everything see, in a context as short as the example's. */
function sight({ attention, block, window = Math.ceil(block / 4) }: ModelOptions): Partial<GPTConfig> {
  const blockSize = 16
  if (attention === 'window') return { window }
  if (attention === 'blocks') return { blocks: { blockSize, visible: fixedBlocks(4) } }
  if (attention === 'dynamic') return { blocks: { blockSize, keep: 1 + Math.ceil(window / blockSize) } }
  return {}
}

/** A GPT of these options for an alphabet of so many characters. */
export const modelOf = (options: ModelOptions, alphabet: number): GPT =>
  new GPT({
    vocabSize: alphabet,
    blockSize: options.block,
    numLayers: options.layers,
    numHeads: options.heads,
    embedDim: options.width,
    dropout: options.dropout,
    bias: options.bias,
    attention: options.attention,
    ...sight(options),
  })

/** What a file of weights says of itself: with it alone the model can be made again and its characters written. */
export interface Description {
  readonly corpus: string
  readonly alphabet: readonly string[]
  readonly options: Options
  /** Steps that the weights have learned for; fewer than the options ask where the run did not end by itself. */
  readonly steps: number
}

/** The bytes of a safetensors file of weights with their description. */
export const describedWeights = (
  weights: Readonly<Record<string, Tensor>>,
  { corpus, alphabet, options, steps }: Description,
): Promise<Uint8Array> =>
  saveSafetensors(weights, {
    corpus,
    alphabet: alphabet.join(''),
    options: JSON.stringify(options),
    steps: String(steps),
  })

/** The description in the metadata of a file of weights, or null where it has none. */
function descriptionIn(metadata: ReadonlyMap<string, string>): Description | null {
  const [corpus, alphabet, options, steps] = ['corpus', 'alphabet', 'options', 'steps'].map((key) =>
    metadata.get(key),
  )
  if (corpus === undefined || alphabet === undefined || options === undefined || steps === undefined)
    return null
  return { corpus, alphabet: [...alphabet], options: JSON.parse(options) as Options, steps: Number(steps) }
}

/** What a file of weights says of itself; null where it does not, or there is no such file. */
export function describedBy(file: string): Description | null {
  try {
    return descriptionIn(readSafetensors(readFileSync(file)).metadata)
  } catch {
    return null
  }
}

/** A trained model and its description, from a file that the example wrote. */
export function loadModel(file: string): { model: GPT; description: Description } {
  const bytes = readFileSync(file)
  const description = descriptionIn(readSafetensors(bytes).metadata)
  if (!description) throw new Error(`${file}: it does not say which characters and sizes its model has`)
  const model = modelOf(description.options, description.alphabet.length)
  const weights = loadSafetensors(bytes)
  model.loadStateDict(weights)
  for (const t of Object.values(weights)) t.dispose()
  return { model: model.eval(), description }
}
