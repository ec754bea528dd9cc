import {
  DTypeError,
  noGrad,
  ShapeError,
  scope,
  show,
  type Tensor,
  tensor,
  UnsupportedOpError,
  ValueError,
} from '@tilegrad/core'
import { brief, quoted } from '../brief.ts'
import { GPT } from '../models/gpt.ts'
import { Llama } from '../models/llama.ts'
import {
  gpt2Config,
  llamaConfig,
  type ModelConfig,
  type PretrainedConfig,
  readConfig,
} from './pretrained-config.ts'
import { readSafetensors, type StoredTensor, saveSafetensors, storedValues } from './safetensors.ts'

/** How Hugging Face's checkpoints name and lay out a model's tensors. */
interface Format {
  /** The text before the names of all tensors but the head's; a model without a head is stored without it. */
  readonly prefix: string
  /** Tensors that are computed, not learned, and that older files hold. */
  readonly ignored: RegExp
  /** Weights that are stored (in, out). */
  readonly transposed: RegExp
}

const GPT2: Format = {
  prefix: 'transformer.',
  ignored: /^h\.\d+\.attn\.(masked_)?bias$/,
  transposed: /^h\.\d+\.(attn|mlp)\.c_\w+\.weight$/,
}
const LLAMA: Format = { prefix: 'model.', ignored: /rotary_emb\.inv_freq$/, transposed: /^$/ }

const HEAD = 'lm_head.weight'

/** A parameter and where it is stored. */
interface Slot {
  readonly target: Tensor
  readonly transposed: boolean
}

/** A model's parameters by their stored names without prefix; a tied head is not among them. */
function slots(model: GPT | Llama, { prefix, transposed }: Format): Map<string, Slot> {
  return new Map(
    model.namedParameters().map(([own, target]) => {
      const name = own.startsWith(prefix) ? own.slice(prefix.length) : own
      return [name, { target, transposed: transposed.test(name) }]
    }),
  )
}

const formatOf = (model: GPT | Llama): Format => (model instanceof GPT ? GPT2 : LLAMA)

/** The tensors of all files, by name without prefix, without those that are ignored. */
function collect(files: readonly Uint8Array[], { prefix, ignored }: Format): Map<string, StoredTensor> {
  const stored = new Map<string, StoredTensor>()
  for (const file of files) {
    for (const [full, t] of readSafetensors(file).tensors) {
      const name = full.startsWith(prefix) ? full.slice(prefix.length) : full
      if (ignored.test(name)) continue
      if (stored.has(name)) throw new ValueError(`loadPretrained: ${quoted(name)} is stored twice`)
      stored.set(name, t)
    }
  }
  return stored
}

const sameSizes = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((n, i) => n === b[i])

const sameBytes = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && a.every((v, i) => v === b[i])

/** Files may hold a tied head, too: it must be the embedding's copy. */
function dropTiedHead(stored: Map<string, StoredTensor>, embedding: string): void {
  const [head, weight] = [stored.get(HEAD), stored.get(embedding)]
  if (!head || !weight) return
  if (!sameBytes(head.bytes, weight.bytes))
    throw new ValueError(
      `loadPretrained: the config ties the head, but ${HEAD} differs from ${embedding}; set tie_word_embeddings to false`,
    )
  stored.delete(HEAD)
}

/** The first of many, for a message. */
const some = (all: readonly string[], separator = ', '): string => {
  const shown = all.slice(0, 20).map((text) => (text.length > 200 ? `${text.slice(0, 200)}…` : text))
  return [...shown, ...(all.length > 20 ? [`and ${all.length - 20} more`] : [])].join(separator)
}

/** Weights that are stored for half of a model leave it to `check` to say what is missing. */
const partly = 4
/** Models with fewer numbers than this are built whatever is stored. */
const small = 2 ** 16

/**
 * A config may name any sizes: the model is not built if it would be far larger than what is stored.
 *
 * @throws ValueError naming both.
 */
function checkSize({ config }: ModelConfig, stored: ReadonlyMap<string, StoredTensor>): void {
  const { vocabSize, embedDim, numLayers, hiddenDim = embedDim } = config
  // What every model of these sizes has at least: embeddings, and norms and an MLP in each layer.
  const least = embedDim * (vocabSize + numLayers * 2 * (1 + hiddenDim))
  let numbers = 0
  for (const { shape } of stored.values()) numbers += shape.reduce((n, d) => n * d, 1)
  if (least > partly * numbers + small)
    throw new ValueError(
      `loadPretrained: the config describes a model of at least ${least} numbers, but the weights hold ${numbers}; do they belong together, and is every part given?`,
    )
}

/** All that does not fit, so that one message says it. */
function check(
  model: string,
  wanted: ReadonlyMap<string, Slot>,
  stored: ReadonlyMap<string, StoredTensor>,
): void {
  const missing = [...wanted.keys()].filter((name) => !stored.has(name))
  const unexpected = [...stored.keys()].filter((name) => !wanted.has(name))
  const shapes: string[] = []
  for (const [name, { target, transposed }] of wanted) {
    const found = stored.get(name)
    const expected = transposed ? [...target.shape].reverse() : target.shape
    if (found && !sameSizes(found.shape, expected))
      shapes.push(`${name} is ${brief(found.shape)}, expected ${show(expected)}`)
    if (found && !/^B?F\d/.test(found.dtype))
      throw new DTypeError(`loadPretrained: ${name} is ${found.dtype}, no floating dtype`)
  }
  const problems = [
    ...(missing.length > 0 ? [`missing: ${some(missing)}`] : []),
    ...(unexpected.length > 0 ? [`unexpected: ${some(unexpected)}`] : []),
    ...(shapes.length > 0 ? [some(shapes, '\n  ')] : []),
  ]
  if (problems.length === 0) return
  const message = `loadPretrained: the weights do not fit the ${model} of this config.\n  ${problems.join('\n  ')}`
  throw shapes.length > 0 ? new ShapeError(message) : new ValueError(message)
}

/**
 * A model of a checkpoint in Hugging Face's format, on the default device and in training mode: GPT-2 (Radford et al.
 * 2019) and Llama (Touvron et al. 2023), by the config's `model_type`. Weights are widened to float32.
 *
 * @param config the content of `config.json`. Values that do not exist here are refused; entries that do not change
 * what the model computes are not read.
 * @param weights the bytes of `model.safetensors`, or of each of its parts.
 * @throws ValueError for configs and files that are wrong and tensors that are missing or unexpected, ShapeError for
 * misshapen ones, UnsupportedOpError for what is not built here.
 * @example
 * const trained = new GPT({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 })
 * const { config, weights } = await savePretrained(trained)
 * const model = loadPretrained(config, weights).eval()
 * const start = tensor([[1, 2, 3]], { dtype: 'int32' })
 * const continued = await model.generate(start, { maxNewTokens: 5 }).tensor()
 * continued.shape // → 1,8
 */
export function loadPretrained(
  config: PretrainedConfig,
  weights: Uint8Array | readonly Uint8Array[],
): GPT | Llama {
  const read = readConfig(config)
  const format = read.type === 'gpt2' ? GPT2 : LLAMA
  const stored = collect(weights instanceof Uint8Array ? [weights] : weights, format)
  checkSize(read, stored)
  const model = read.type === 'gpt2' ? new GPT(read.config) : new Llama(read.config)
  try {
    const wanted = slots(model, format)
    if (!wanted.has(HEAD)) dropTiedHead(stored, read.type === 'gpt2' ? 'wte.weight' : 'embed_tokens.weight')
    check(model.constructor.name, wanted, stored)
    for (const [name, { target, transposed }] of wanted) {
      const found = stored.get(name) as StoredTensor
      const { dtype, backend: device } = target
      noGrad(() =>
        scope(() => {
          const values = tensor(storedValues(found), found.shape, { dtype, device })
          target.copy_(transposed ? values.T : values)
        }),
      )
    }
  } catch (error) {
    model.dispose()
    throw error
  }
  return model
}

/**
 * Weights that are no parameters, as those of 8 bits, have no place in a checkpoint: it would be written without them.
 *
 * @throws UnsupportedOpError naming the first.
 */
function refuseBuffers(model: GPT | Llama): void {
  const learned = new Set(model.namedParameters().map(([, tensor]) => tensor))
  for (const [name, tensor] of Object.entries(model.stateDict()))
    if (!learned.has(tensor))
      throw new UnsupportedOpError(
        `savePretrained: ${name} is ${tensor.dtype} and no parameter, as quantize(model) makes it; save the model before that, and quantize what loadPretrained gives`,
      )
}

/** A checkpoint in Hugging Face's format. */
export interface Pretrained {
  /** The content of `config.json`, which JSON.stringify turns into text. */
  config: Record<string, unknown>
  /** The bytes of `model.safetensors`. */
  weights: Uint8Array
}

/**
 * A GPT or Llama as a checkpoint that `loadPretrained` reads, and so does Hugging Face's `from_pretrained`. Reads from
 * the device. The config says nothing of tokens (`eos_token_id` …): that is the tokenizer's.
 *
 * @throws UnsupportedOpError for a GPT that GPT-2 cannot express (linear attention, fewer key-value heads, no biases), and for a
 * quantized model.
 * @example
 * const { config, weights } = await savePretrained(
 *   new Llama({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 }),
 * )
 * config.model_type // → llama
 * readSafetensors(weights).tensors.has('model.layers.0.self_attn.q_proj.weight') // → true
 */
export async function savePretrained(model: GPT | Llama): Promise<Pretrained> {
  const config = model instanceof GPT ? gpt2Config(model) : llamaConfig(model)
  const format = formatOf(model)
  refuseBuffers(model)
  const views: Tensor[] = []
  const tensors: Record<string, Tensor> = {}
  for (const [name, { target, transposed }] of slots(model, format)) {
    const stored = transposed ? target.T : target
    if (transposed) views.push(stored)
    tensors[name === HEAD ? name : format.prefix + name] = stored
  }
  try {
    return { config, weights: await saveSafetensors(tensors, { format: 'pt' }) }
  } finally {
    for (const view of views) view.dispose()
  }
}
