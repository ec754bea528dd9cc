import type { LossReduction } from '@tilegrad/core'
import * as tg from '@tilegrad/core'
import type { Arguments } from '../arguments.ts'
import { LOOSE, type Tolerance } from '../compare.ts'
import { Skip } from '../manifest.ts'
import { LONG, op } from './row.ts'

// Layers.
/**
 * PyTorch computes x·r − mean·r with r = 1 / √(variance + eps). Of a single element the variance is 0, and its two terms,
 * up to 9 · 316, cancel to ± 3e-4 instead of 0.
 */
const normTolerance = (size: number): Tolerance => (size === 1 ? { rtol: 1e-4, atol: 1e-3 } : LOOSE)
op(
  'layer_norm',
  'input normalized_shape weight bias eps',
  (a) =>
    tg.layerNorm(
      a.tensor('input'),
      a.numbers('normalized_shape'),
      a.maybeTensor('weight'),
      a.maybeTensor('bias'),
      {
        eps: a.number('eps', 1e-5),
      },
    ),
  { tolerance: (a) => normTolerance(a.numbers('normalized_shape').reduce((p, n) => p * n, 1)) },
)
op(
  'rms_norm',
  'input normalized_shape weight eps',
  (a) =>
    tg.rmsNorm(a.tensor('input'), a.numbers('normalized_shape'), a.maybeTensor('weight'), {
      eps: a.has('eps') ? a.number('eps') : null,
    }),
  LONG,
)
op(
  'group_norm',
  'input num_groups weight bias eps',
  (a) =>
    tg.groupNorm(a.tensor('input'), a.number('num_groups'), a.maybeTensor('weight'), a.maybeTensor('bias'), {
      eps: a.number('eps', 1e-5),
    }),
  {
    tolerance: (a) => {
      const { numel, shape } = a.tensor('input')
      return normTolerance(numel / (shape[0] * a.number('num_groups')))
    },
  },
)
op(
  'dropout',
  'input p training|train inplace',
  (a) => tg.dropout(a.tensor('input'), a.number('p', 0.5), a.flag('training', true)),
  { choice: 'dropout' },
)
op(
  'scaled_dot_product_attention',
  'query|input key value attn_mask dropout_p is_causal scale enable_gqa',
  (a) => {
    if (a.number('dropout_p', 0) > 0)
      throw new Skip('scaled_dot_product_attention: the dropout mask is random')
    return tg.scaledDotProductAttention(a.tensor('query'), a.tensor('key'), a.tensor('value'), {
      attnMask: a.maybeTensor('attn_mask'),
      isCausal: a.flag('is_causal', false),
      scale: a.has('scale') ? a.number('scale') : null,
      enableGqa: a.flag('enable_gqa', false),
    })
  },
  LONG,
)

// Losses.
/** The reduction, also by the two flags that came before it. */
function reduction(a: Arguments): { reduction: LossReduction } {
  if (a.has('size_average') || a.has('reduce')) {
    if (!a.flag('reduce', true)) return { reduction: 'none' }
    return { reduction: a.flag('size_average', true) ? 'mean' : 'sum' }
  }
  return { reduction: a.text('reduction', 'mean') as LossReduction }
}
op(
  'mse_loss',
  'input target size_average reduce reduction',
  (a) => tg.mseLoss(a.tensor('input'), a.tensor('target'), reduction(a)),
  LONG,
)
op(
  'l1_loss',
  'input target size_average reduce reduction',
  (a) => tg.l1Loss(a.tensor('input'), a.tensor('target'), reduction(a)),
  LONG,
)
op(
  'smooth_l1_loss',
  'input target size_average reduce reduction beta',
  (a) =>
    tg.smoothL1Loss(a.tensor('input'), a.tensor('target'), { ...reduction(a), beta: a.number('beta', 1) }),
  LONG,
)
op(
  'huber_loss',
  'input target reduction delta',
  (a) =>
    tg.huberLoss(a.tensor('input'), a.tensor('target'), { ...reduction(a), delta: a.number('delta', 1) }),
  LONG,
)
op(
  'binary_cross_entropy_with_logits',
  'input target weight size_average reduce reduction pos_weight',
  (a) =>
    tg.binaryCrossEntropyWithLogits(a.tensor('input'), a.tensor('target'), {
      ...reduction(a),
      weight: a.maybeTensor('weight'),
      posWeight: a.maybeTensor('pos_weight'),
    }),
  LONG,
)
op(
  'nll_loss',
  'input target weight size_average ignore_index reduce reduction',
  (a) =>
    tg.nllLoss(a.tensor('input'), a.tensor('target'), {
      ...reduction(a),
      weight: a.maybeTensor('weight'),
      ignoreIndex: a.number('ignore_index', -100),
    }),
  LONG,
)
op(
  'cross_entropy',
  'input target weight size_average ignore_index reduce reduction label_smoothing',
  (a) =>
    tg.crossEntropy(a.tensor('input'), a.tensor('target'), {
      ...reduction(a),
      weight: a.maybeTensor('weight'),
      ignoreIndex: a.number('ignore_index', -100),
      labelSmoothing: a.number('label_smoothing', 0),
    }),
  LONG,
)
