import * as tg from '@tilegrad/core'
import type { Arguments } from '../arguments.ts'
import { Skip } from '../manifest.ts'
import { LONG, op } from './row.ts'

/** Convolutions, pools and batch normalisation. */

const sizes = (a: Arguments, name: string, usual: number): tg.WindowSizes => {
  const given = a.get(name)
  return given === undefined || given === null || (Array.isArray(given) && given.length === 0)
    ? usual
    : (given as tg.WindowSizes)
}

for (const [name, fn] of Object.entries({ conv1d: tg.conv1d, conv2d: tg.conv2d }))
  op(
    name,
    'input weight bias stride padding dilation groups',
    (a) => {
      const padding = a.get('padding')
      return fn(a.tensor('input'), a.tensor('weight'), a.maybeTensor('bias'), {
        stride: sizes(a, 'stride', 1),
        padding: padding === 'same' || padding === 'valid' ? padding : sizes(a, 'padding', 0),
        dilation: sizes(a, 'dilation', 1),
        groups: a.number('groups', 1),
      })
    },
    LONG,
  )

for (const [name, fn] of Object.entries({
  conv_transpose1d: tg.convTranspose1d,
  conv_transpose2d: tg.convTranspose2d,
}))
  op(
    name,
    'input weight bias stride padding output_padding groups dilation',
    (a) =>
      fn(a.tensor('input'), a.tensor('weight'), a.maybeTensor('bias'), {
        stride: sizes(a, 'stride', 1),
        padding: sizes(a, 'padding', 0),
        outputPadding: sizes(a, 'output_padding', 0),
        groups: a.number('groups', 1),
        dilation: sizes(a, 'dilation', 1),
      }),
    LONG,
  )

const windows = (a: Arguments) => ({
  dilation: sizes(a, 'dilation', 1),
  padding: sizes(a, 'padding', 0),
  stride: sizes(a, 'stride', 1),
})
op('nn.functional.unfold', 'input kernel_size dilation padding stride', (a) =>
  tg.im2col(a.tensor('input'), a.get('kernel_size') as tg.WindowSizes, windows(a)),
)
op(
  'fold',
  'input output_size kernel_size dilation padding stride',
  (a) => {
    const [output, kernel] = [a.get('output_size'), a.get('kernel_size')] as tg.WindowSizes[]
    return tg.col2im(a.tensor('input'), output, kernel, windows(a))
  },
  LONG,
)

const stride = (a: Arguments) => {
  const given = sizes(a, 'stride', 0)
  return given === 0 ? {} : { stride: given }
}
for (const [name, fn] of Object.entries({ max_pool1d: tg.maxPool1d, max_pool2d: tg.maxPool2d }))
  op(name, 'input kernel_size stride padding dilation ceil_mode return_indices', (a) => {
    if (a.flag('return_indices', false)) throw new Skip('places of the largest are not returned here')
    return fn(a.tensor('input'), a.get('kernel_size') as tg.WindowSizes, {
      ...stride(a),
      padding: sizes(a, 'padding', 0),
      dilation: sizes(a, 'dilation', 1),
      ceilMode: a.flag('ceil_mode', false),
    })
  })
for (const [name, fn] of Object.entries({ avg_pool1d: tg.avgPool1d, avg_pool2d: tg.avgPool2d }))
  op(name, 'input kernel_size stride padding ceil_mode count_include_pad divisor_override', (a) => {
    return fn(a.tensor('input'), a.get('kernel_size') as tg.WindowSizes, {
      ...stride(a),
      padding: sizes(a, 'padding', 0),
      ceilMode: a.flag('ceil_mode', false),
      countIncludePad: a.flag('count_include_pad', true),
      divisorOverride: a.has('divisor_override') ? a.number('divisor_override') : null,
    })
  })
const adaptive = {
  adaptive_avg_pool1d: tg.adaptiveAvgPool1d,
  adaptive_avg_pool2d: tg.adaptiveAvgPool2d,
  adaptive_max_pool1d: tg.adaptiveMaxPool1d,
  adaptive_max_pool2d: tg.adaptiveMaxPool2d,
}
for (const [name, fn] of Object.entries(adaptive))
  op(name, 'input output_size return_indices', (a) => {
    if (a.flag('return_indices', false)) throw new Skip('places of the largest are not returned here')
    return fn(a.tensor('input'), a.get('output_size') as number | (number | null)[])
  })

op(
  'batch_norm',
  'input running_mean running_var weight bias training momentum eps',
  (a) => {
    const x = a.tensor('input')
    if (x.rank < 2) throw new Skip('one dim has no channels')
    const options = { momentum: a.number('momentum', 0.1), eps: a.number('eps', 1e-5) }
    const [mean, variance] = [a.maybeTensor('running_mean'), a.maybeTensor('running_var')]
    const training = a.flag('training', false)
    return tg.batchNorm(x, mean, variance, a.maybeTensor('weight'), a.maybeTensor('bias'), {
      training,
      ...options,
    })
  },
  LONG,
)
