import type { LossReduction } from '@tilegrad/core'
import * as nn from '@tilegrad/nn'
import type { Arguments } from '../arguments.ts'
import { torchModule } from './module-row.ts'

/** Activations, losses, and what reshapes. */

for (const Made of [
  ...[nn.ReLU, nn.ReLU6, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish],
  ...[nn.Mish, nn.SELU, nn.Softsign, nn.Tanhshrink, nn.Identity],
])
  torchModule(Made.name, '', () => new Made())
for (const Made of [nn.ELU, nn.CELU])
  torchModule(Made.name, 'alpha', (a) => new Made({ alpha: a.number('alpha', 1) }))
for (const Made of [nn.Softshrink, nn.Hardshrink])
  torchModule(Made.name, 'lambd', (a) => new Made({ lambd: a.number('lambd', 0.5) }))
for (const Made of [nn.Softmax, nn.LogSoftmax, nn.Softmin])
  torchModule(Made.name, 'dim', (a) => new Made(a.number('dim')))
torchModule('GELU', 'approximate', (a) => {
  return new nn.GELU({ approximate: a.text('approximate', 'none') as 'none' | 'tanh' })
})
torchModule('LeakyReLU', 'negative_slope inplace', (a) => {
  return new nn.LeakyReLU({ negativeSlope: a.number('negative_slope', 0.01) })
})
torchModule('Hardtanh', 'min_val max_val', (a) => {
  return new nn.Hardtanh({ minVal: a.number('min_val', -1), maxVal: a.number('max_val', 1) })
})
torchModule('Softplus', 'beta threshold', (a) => {
  return new nn.Softplus({ beta: a.number('beta', 1), threshold: a.number('threshold', 20) })
})
torchModule('GLU', 'dim', (a) => new nn.GLU(a.number('dim', -1)))
torchModule(
  'Threshold',
  'threshold value inplace',
  (a) => new nn.Threshold(a.number('threshold'), a.number('value')),
)
torchModule('PReLU', 'num_parameters init', (a) => {
  return new nn.PReLU({ numParameters: a.number('num_parameters', 1), init: a.number('init', 0.25) })
})
torchModule('Flatten', 'start_dim end_dim', (a) => {
  return new nn.Flatten(a.number('start_dim', 1), a.number('end_dim', -1))
})
torchModule(
  'Unflatten',
  'dim unflattened_size',
  (a) => new nn.Unflatten(a.number('dim'), a.numbers('unflattened_size')),
)

const LOSS = 'size_average reduce reduction'
const reduction = (a: Arguments) => ({ reduction: a.text('reduction', 'mean') as LossReduction })
const weight = (a: Arguments) => ({ weight: a.maybeTensor('weight') ?? null })
const ignoreIndex = (a: Arguments) => ({ ignoreIndex: a.number('ignore_index', -100) })
const margin = (a: Arguments, usual: number) => ({ margin: a.number('margin', usual) })

torchModule('CrossEntropyLoss', 'weight size_average ignore_index reduce reduction label_smoothing', (a) => {
  const labelSmoothing = a.number('label_smoothing', 0)
  return new nn.CrossEntropyLoss({ ...weight(a), ...ignoreIndex(a), ...reduction(a), labelSmoothing })
})
torchModule('NLLLoss', 'weight size_average ignore_index reduce reduction', (a) => {
  return new nn.NLLLoss({ ...weight(a), ...ignoreIndex(a), ...reduction(a) })
})
for (const Made of [nn.MSELoss, nn.L1Loss, nn.SoftMarginLoss])
  torchModule(Made.name, LOSS, (a) => new Made(reduction(a)))
torchModule('SmoothL1Loss', `${LOSS} beta`, (a) => {
  return new nn.SmoothL1Loss({ ...reduction(a), beta: a.number('beta', 1) })
})
torchModule('HuberLoss', 'reduction delta', (a) => {
  return new nn.HuberLoss({ ...reduction(a), delta: a.number('delta', 1) })
})
torchModule('BCELoss', `weight ${LOSS}`, (a) => new nn.BCELoss({ ...weight(a), ...reduction(a) }))
torchModule(
  'BCEWithLogitsLoss',
  `weight ${LOSS} pos_weight`,
  (a) => {
    const posWeight = a.maybeTensor('pos_weight') ?? null
    return new nn.BCEWithLogitsLoss({ ...weight(a), ...reduction(a), posWeight })
  },
  { rename: (name) => (name === 'pos_weight' ? 'posWeight' : name) },
)
torchModule('KLDivLoss', `${LOSS} log_target`, (a) => {
  return new nn.KLDivLoss({ ...reduction(a), logTarget: a.flag('log_target', false) })
})
for (const Made of [nn.CosineEmbeddingLoss, nn.MarginRankingLoss])
  torchModule(Made.name, `margin ${LOSS}`, (a) => new Made({ ...margin(a, 0), ...reduction(a) }))
torchModule('HingeEmbeddingLoss', `margin ${LOSS}`, (a) => {
  return new nn.HingeEmbeddingLoss({ ...margin(a, 1), ...reduction(a) })
})
torchModule('TripletMarginLoss', `margin p eps swap ${LOSS}`, (a) => {
  const options = { p: a.number('p', 2), eps: a.number('eps', 1e-6), swap: a.flag('swap', false) }
  return new nn.TripletMarginLoss({ ...margin(a, 1), ...reduction(a), ...options })
})
torchModule('CosineSimilarity', 'dim eps', (a) => {
  return new nn.CosineSimilarity({ dim: a.number('dim', 1), eps: a.number('eps', 1e-8) })
})
torchModule('PairwiseDistance', 'p eps keepdim', (a) => {
  const [p, eps, keepdim] = [a.number('p', 2), a.number('eps', 1e-6), a.flag('keepdim', false)]
  return new nn.PairwiseDistance({ p, eps, keepdim })
})
