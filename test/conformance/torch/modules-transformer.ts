import type { Tensor } from '@tilegrad/core'
import * as nn from '@tilegrad/nn'
import type { Arguments } from '../arguments.ts'
import type { Value } from '../manifest.ts'
import { torchModule } from './module-row.ts'

const LAYER = 'd_model nhead dim_feedforward dropout activation layer_norm_eps batch_first norm_first bias'

const settings = (a: Arguments): nn.TransformerLayerOptions => ({
  dimFeedforward: a.number('dim_feedforward', 2048),
  dropout: a.number('dropout', 0.1),
  activation: a.text('activation', 'relu') as 'relu' | 'gelu',
  layerNormEps: a.number('layer_norm_eps', 1e-5),
  batchFirst: a.flag('batch_first', false),
  normFirst: a.flag('norm_first', false),
  bias: a.flag('bias', true),
})

/** `src_key_padding_mask` → `srcKeyPaddingMask`. */
const camel = (named: Readonly<Record<string, Value>>): Record<string, Value> =>
  Object.fromEntries(
    Object.entries(named).map(([name, value]) => [
      name.replaceAll(/_(\w)/g, (_, letter: string) => letter.toUpperCase()),
      value,
    ]),
  )

type Forward = (...inputs: readonly unknown[]) => Tensor | readonly [Tensor, Tensor | null]

/** The tensors first, keyword arguments as options. */
const call = (module: nn.Module, inputs: readonly Value[], named: Readonly<Record<string, Value>>): unknown =>
  (module.forward as Forward)(...inputs, camel(named))

torchModule(
  'TransformerEncoderLayer',
  LAYER,
  (a) => new nn.TransformerEncoderLayer(a.number('d_model'), a.number('nhead'), settings(a)),
  { call },
)
torchModule(
  'TransformerDecoderLayer',
  LAYER,
  (a) => new nn.TransformerDecoderLayer(a.number('d_model'), a.number('nhead'), settings(a)),
  { call },
)
torchModule(
  'Transformer',
  'd_model nhead num_encoder_layers num_decoder_layers dim_feedforward dropout activation custom_encoder custom_decoder layer_norm_eps batch_first norm_first bias',
  (a) =>
    new nn.Transformer({
      dModel: a.number('d_model', 512),
      nhead: a.number('nhead', 8),
      numEncoderLayers: a.number('num_encoder_layers', 6),
      numDecoderLayers: a.number('num_decoder_layers', 6),
      ...settings(a),
    }),
  { call },
)
torchModule(
  'MultiheadAttention',
  'embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim batch_first',
  (a) => {
    const embedDim = a.number('embed_dim')
    return new nn.MultiheadAttention(embedDim, a.number('num_heads'), {
      dropout: a.number('dropout', 0),
      bias: a.flag('bias', true),
      kdim: a.number('kdim', embedDim),
      vdim: a.number('vdim', embedDim),
      batchFirst: a.flag('batch_first', false),
    })
  },
  { call },
)
