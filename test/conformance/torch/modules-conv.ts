import type { WindowPadding, WindowSizes } from '@tilegrad/core'
import * as nn from '@tilegrad/nn'
import type { Arguments } from '../arguments.ts'
import { Skip } from '../manifest.ts'
import { torchModule } from './module-row.ts'

/** Layers of convolutions, pools and batch normalisation. */

/** Those of the named arguments that are given, by our names. */
const given = (a: Arguments, names: Readonly<Record<string, string>>): object =>
  Object.fromEntries(
    Object.entries(names).flatMap(([theirs, ours]) => (a.has(theirs) ? [[ours, a.get(theirs)]] : [])),
  )

const size = (a: Arguments): WindowSizes => a.get('kernel_size') as WindowSizes

const CONV = 'in_channels out_channels kernel_size stride padding dilation groups bias padding_mode'
for (const [name, Layer] of Object.entries({ Conv1d: nn.Conv1d, Conv2d: nn.Conv2d }))
  torchModule(
    name,
    CONV,
    (a) =>
      new Layer(a.number('in_channels'), a.number('out_channels'), size(a), {
        ...given(a, { stride: 'stride', dilation: 'dilation', groups: 'groups', bias: 'bias' }),
        ...given(a, { padding_mode: 'paddingMode' }),
        ...(a.has('padding') && { padding: a.get('padding') as WindowPadding }),
      }),
  )

for (const [name, Layer] of Object.entries({
  ConvTranspose1d: nn.ConvTranspose1d,
  ConvTranspose2d: nn.ConvTranspose2d,
}))
  torchModule(
    name,
    'in_channels out_channels kernel_size stride padding output_padding groups bias dilation padding_mode',
    (a) => {
      const names = { stride: 'stride', padding: 'padding', output_padding: 'outputPadding' }
      const more = { groups: 'groups', bias: 'bias', dilation: 'dilation' }
      const options = given(a, { ...names, ...more })
      return new Layer(a.number('in_channels'), a.number('out_channels'), size(a), options)
    },
  )

const WINDOWS = { dilation: 'dilation', padding: 'padding', stride: 'stride' }
torchModule('Unfold', 'kernel_size dilation padding stride', (a) => new nn.Unfold(size(a), given(a, WINDOWS)))
torchModule(
  'Fold',
  'output_size kernel_size dilation padding stride',
  (a) => new nn.Fold(a.get('output_size') as WindowSizes, size(a), given(a, WINDOWS)),
)

for (const [name, Layer] of Object.entries({ MaxPool1d: nn.MaxPool1d, MaxPool2d: nn.MaxPool2d }))
  torchModule(name, 'kernel_size stride padding dilation return_indices ceil_mode', (a) => {
    if (a.flag('return_indices', false)) throw new Skip('places of the largest are not returned here')
    const names = { stride: 'stride', padding: 'padding', dilation: 'dilation', ceil_mode: 'ceilMode' }
    return new Layer(size(a), given(a, names))
  })
for (const [name, Layer] of Object.entries({ AvgPool1d: nn.AvgPool1d, AvgPool2d: nn.AvgPool2d }))
  torchModule(name, 'kernel_size stride padding ceil_mode count_include_pad divisor_override', (a) => {
    const names = { ceil_mode: 'ceilMode', count_include_pad: 'countIncludePad' }
    const more = { stride: 'stride', padding: 'padding', divisor_override: 'divisorOverride' }
    return new Layer(size(a), given(a, { ...names, ...more }))
  })
const adaptive = {
  ...{ AdaptiveAvgPool1d: nn.AdaptiveAvgPool1d, AdaptiveAvgPool2d: nn.AdaptiveAvgPool2d },
  ...{ AdaptiveMaxPool1d: nn.AdaptiveMaxPool1d, AdaptiveMaxPool2d: nn.AdaptiveMaxPool2d },
}
for (const [name, Layer] of Object.entries(adaptive))
  torchModule(name, 'output_size return_indices', (a) => {
    if (a.flag('return_indices', false)) throw new Skip('places of the largest are not returned here')
    return new Layer(a.get('output_size') as number | (number | null)[])
  })

for (const [name, Layer] of Object.entries({ BatchNorm1d: nn.BatchNorm1d, BatchNorm2d: nn.BatchNorm2d }))
  torchModule(
    name,
    'num_features eps momentum affine track_running_stats',
    (a) =>
      new Layer(a.number('num_features'), {
        eps: a.number('eps', 1e-5),
        momentum: a.given('momentum') ? (a.get('momentum') as number | null) : 0.1,
        affine: a.flag('affine', true),
        trackRunningStats: a.flag('track_running_stats', true),
      }),
  )
