import { type Activation, UnsupportedOpError, ValueError } from '@tilegrad/core'
import type { RopeOptions, RopeScaling } from '../attention/rope.ts'
import { brief } from '../brief.ts'
import type { GPT, GPTConfig } from '../models/gpt.ts'
import type { Llama, LlamaConfig } from '../models/llama.ts'
import { dropoutRates } from '../models/transformer.ts'

/** A model's `config.json`, in Hugging Face's names. */
export type PretrainedConfig = Readonly<Record<string, unknown>>

/** Hugging Face's names of activations. */
const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  gelu: 'gelu',
  gelu_python: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  relu: 'relu',
  silu: 'silu',
  swish: 'silu',
  tanh: 'tanh',
}

/** Reads values of a config by name, of the type they must have, with Hugging Face's defaults where they are absent. */
class Values {
  readonly #config: PretrainedConfig

  constructor(config: PretrainedConfig) {
    if (typeof config !== 'object' || config === null || Array.isArray(config))
      throw new ValueError(
        `loadPretrained: the config must be the object in config.json, not ${brief(config)}; for its text, JSON.parse(text)`,
      )
    this.#config = config
  }

  /** Gets a value of the config; undefined where it is absent or null. */
  get(name: string): unknown {
    return Object.hasOwn(this.#config, name) ? (this.#config[name] ?? undefined) : undefined
  }

  wrong(name: string, expected: string): ValueError {
    return new ValueError(
      `loadPretrained: the config's ${name} is ${brief(this.get(name))}; expected ${expected}`,
    )
  }

  number<D>(name: string, otherwise: D): number | D {
    const value = this.get(name)
    if (value === undefined) return otherwise
    if (typeof value !== 'number') throw this.wrong(name, 'a number')
    return value
  }

  size<D>(name: string, otherwise: D): number | D {
    const value = this.number(name, otherwise)
    if (this.get(name) !== undefined && !(Number.isSafeInteger(value) && Number(value) > 0))
      throw this.wrong(name, 'a positive whole number')
    return value
  }

  flag(name: string, otherwise: boolean): boolean {
    const value = this.get(name) ?? otherwise
    if (typeof value !== 'boolean') throw this.wrong(name, 'true or false')
    return value
  }

  activation(name: string, otherwise: string): Activation {
    const value = this.get(name) ?? otherwise
    const known = typeof value === 'string' && Object.hasOwn(ACTIVATIONS, value) && ACTIVATIONS[value]
    if (!known) throw this.wrong(name, `one of ${Object.keys(ACTIVATIONS).join(', ')}`)
    return known
  }

  /** Refuses what would change the results and does not exist here. */
  absent(...names: string[]): void {
    for (const name of names) {
      const value = this.get(name)
      if (value !== undefined && value !== false)
        throw new UnsupportedOpError(
          `loadPretrained: the config has ${name}: ${brief(value)}, which is not supported`,
        )
    }
  }
}

/** What our models need of a config. */
export type ModelConfig =
  | { readonly type: 'gpt2'; readonly config: GPTConfig }
  | { readonly type: 'llama'; readonly config: LlamaConfig }

export function readConfig(config: PretrainedConfig): ModelConfig {
  const values = new Values(config)
  const type = values.get('model_type')
  if (type !== 'gpt2' && type !== 'llama') throw values.wrong('model_type', "'gpt2' or 'llama'")
  values.absent('quantization_config')
  return type === 'gpt2' ? { type, config: gpt2(values) } : { type, config: llama(values) }
}

function gpt2(values: Values): GPTConfig {
  values.absent('add_cross_attention')
  const embedDim = values.size('n_embd', 768)
  return {
    vocabSize: values.size('vocab_size', 50257),
    blockSize: values.size('n_positions', 1024),
    numLayers: values.size('n_layer', 12),
    numHeads: values.size('n_head', 12),
    embedDim,
    hiddenDim: values.size('n_inner', 4 * embedDim),
    activation: values.activation('activation_function', 'gelu_new'),
    normEps: values.number('layer_norm_epsilon', 1e-5),
    scaleAttention: values.flag('scale_attn_weights', true),
    scaleByLayer: values.flag('scale_attn_by_inverse_layer_idx', false),
    dropout: {
      attention: values.number('attn_pdrop', 0.1),
      residual: values.number('resid_pdrop', 0.1),
      embedding: values.number('embd_pdrop', 0.1),
    },
    tieWeights: values.flag('tie_word_embeddings', true),
    initStd: values.number('initializer_range', 0.02),
  }
}

function llama(values: Values): LlamaConfig {
  const [embedDim, numHeads] = [values.size('hidden_size', 4096), values.size('num_attention_heads', 32)]
  const headDim = values.size('head_dim', undefined)
  return {
    vocabSize: values.size('vocab_size', 32000),
    blockSize: values.size('max_position_embeddings', 2048),
    numLayers: values.size('num_hidden_layers', 32),
    numHeads,
    numKvHeads: values.size('num_key_value_heads', numHeads),
    ...(headDim === undefined ? {} : { headDim }),
    embedDim,
    hiddenDim: values.size('intermediate_size', 11008),
    activation: values.activation('hidden_act', 'silu'),
    rope: rope(values),
    normEps: values.number('rms_norm_eps', 1e-6),
    attentionBias: values.flag('attention_bias', false),
    mlpBias: values.flag('mlp_bias', false),
    dropout: values.number('attention_dropout', 0),
    tieWeights: values.flag('tie_word_embeddings', false),
    initStd: values.number('initializer_range', 0.02),
  }
}

/** `rope_parameters`, in older configs `rope_theta` and `rope_scaling`, whose type may be called `type`. */
function rope(values: Values): RopeOptions {
  const name = values.get('rope_parameters') === undefined ? 'rope_scaling' : 'rope_parameters'
  const given = values.get(name) ?? {}
  if (typeof given !== 'object' || Array.isArray(given)) throw values.wrong(name, 'an object')
  const parameters = new Values(given as PretrainedConfig)
  const base = parameters.number('rope_theta', values.number('rope_theta', 10000))
  if (parameters.number('partial_rotary_factor', 1) !== 1) parameters.absent('partial_rotary_factor')
  const type = parameters.get('rope_type') ?? parameters.get('type') ?? 'default'
  return { base, scaling: scaling(type, parameters) }
}

function scaling(type: unknown, parameters: Values): RopeScaling | null {
  const needed = (name: string): number => {
    const value = parameters.number(name, undefined)
    if (value === undefined) throw new ValueError(`loadPretrained: rope_type '${String(type)}' needs ${name}`)
    return value
  }
  switch (type) {
    case 'default':
      return null
    case 'linear':
      return { type, factor: needed('factor') }
    case 'llama3':
      return {
        type,
        factor: needed('factor'),
        lowFreqFactor: needed('low_freq_factor'),
        highFreqFactor: needed('high_freq_factor'),
        originalMaxPositions: needed('original_max_position_embeddings'),
      }
    default:
      throw new UnsupportedOpError(
        `loadPretrained: rope_type ${brief(type)} is not supported; expected 'default', 'linear' or 'llama3'`,
      )
  }
}

/** Our activations' names at Hugging Face's. */
const HF_ACTIVATIONS: Readonly<Record<Activation, string>> = {
  gelu: 'gelu',
  gelu_tanh: 'gelu_new',
  relu: 'relu',
  silu: 'silu',
  tanh: 'tanh',
}

/** @throws UnsupportedOpError for what GPT-2 has not. */
export function gpt2Config({ config }: GPT): Record<string, unknown> {
  const { attention = 'softmax', bias = true, numHeads, numKvHeads = numHeads, embedDim } = config
  const lacks = [
    attention !== 'softmax' && `${attention} attention`,
    !bias && 'bias: false',
    numKvHeads !== numHeads && 'numKvHeads',
    ...(['rope', 'alibi', 'window', 'qkNorm'] as const).map((name) => config[name] && name),
  ].find((name) => name)
  if (lacks)
    throw new UnsupportedOpError(
      `savePretrained: GPT-2 has no ${lacks}; saveSafetensors(model.stateDict()) keeps the weights under our names`,
    )
  const rates = dropoutRates(config.dropout ?? 0)
  return {
    architectures: ['GPT2LMHeadModel'],
    model_type: 'gpt2',
    vocab_size: config.vocabSize,
    n_positions: config.blockSize,
    n_embd: embedDim,
    n_layer: config.numLayers,
    n_head: numHeads,
    n_inner: config.hiddenDim ?? 4 * embedDim,
    activation_function: HF_ACTIVATIONS[config.activation ?? 'gelu'],
    layer_norm_epsilon: config.normEps ?? 1e-5,
    scale_attn_weights: config.scaleAttention ?? true,
    scale_attn_by_inverse_layer_idx: config.scaleByLayer ?? false,
    attn_pdrop: rates.attention,
    resid_pdrop: rates.residual,
    embd_pdrop: rates.embedding,
    tie_word_embeddings: config.tieWeights ?? true,
    initializer_range: config.initStd ?? 0.02,
  }
}

/** @throws UnsupportedOpError for what Llama has not. */
export function llamaConfig({ config, model }: Llama): Record<string, unknown> {
  const { rope: { base = 10000, dim, interleaved = false, scaling = null } = {} } = config
  const [{ self_attn, mlp }] = model.layers as [Llama['model']['layers'][number]]
  if (interleaved || (dim !== undefined && dim !== self_attn.headDim))
    throw new UnsupportedOpError("savePretrained: Llama's rotary embedding turns halves of whole heads")
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: config.vocabSize,
    max_position_embeddings: config.blockSize,
    hidden_size: config.embedDim,
    intermediate_size: mlp.gate_proj.outFeatures,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: self_attn.numKvHeads,
    head_dim: self_attn.headDim,
    hidden_act: HF_ACTIVATIONS[mlp.activation],
    // The older spelling, which newer readers take, too.
    rope_theta: base,
    rope_scaling: scaling && ropeOf(scaling),
    rms_norm_eps: config.normEps ?? 1e-6,
    attention_bias: config.attentionBias ?? false,
    mlp_bias: config.mlpBias ?? false,
    attention_dropout: config.dropout ?? 0,
    tie_word_embeddings: config.tieWeights ?? false,
    initializer_range: config.initStd ?? 0.02,
  }
}

const ropeOf = (scaling: RopeScaling): Record<string, unknown> =>
  scaling.type === 'linear'
    ? { rope_type: scaling.type, factor: scaling.factor }
    : {
        rope_type: scaling.type,
        factor: scaling.factor,
        low_freq_factor: scaling.lowFreqFactor,
        high_freq_factor: scaling.highFreqFactor,
        original_max_position_embeddings: scaling.originalMaxPositions,
      }
