import * as nn from '@tilegrad/nn'
import { torchModule } from './module-row.ts'

torchModule('Linear', 'in_features out_features bias', (a) => {
  return new nn.Linear(a.number('in_features'), a.number('out_features'), { bias: a.flag('bias', true) })
})
torchModule(
  'LayerNorm',
  'normalized_shape eps',
  (a) => new nn.LayerNorm(a.numbers('normalized_shape'), { eps: a.number('eps', 1e-5) }),
)
torchModule('RMSNorm', 'normalized_shape', (a) => new nn.RMSNorm(a.numbers('normalized_shape')))
torchModule(
  'GroupNorm',
  'num_groups num_channels eps',
  (a) => new nn.GroupNorm(a.number('num_groups'), a.number('num_channels'), { eps: a.number('eps', 1e-5) }),
)
