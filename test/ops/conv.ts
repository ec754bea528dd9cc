import { batchNorm } from '@tilegrad/core'
import { distinct, f, pos } from '../samples.ts'
import { FUNCTION, LONG, op } from './row.ts'

/** Rows of convolutions, pools and batch normalisation. */

const CONV = { ...FUNCTION, ...LONG }
op(
  'conv1d',
  2,
  [
    [f([2, 3, 7]), f([4, 3, 3]), f([4])],
    [f([3, 7]), f([2, 3, 2]), null, { stride: 2, padding: 1 }],
    [f([2, 4, 6]), f([6, 2, 3]), f([6]), { groups: 2, dilation: 2, padding: 'same' }],
    [f([2, 3, 5]), f([4, 3, 1]), f([4])],
    [f([0, 3, 5]), f([4, 3, 2])],
  ],
  CONV,
)
op(
  'conv2d',
  2,
  [
    [f([2, 2, 5, 4]), f([3, 2, 3, 2]), f([3])],
    [f([2, 5, 6]), f([3, 2, 3, 3]), null, { stride: [2, 3], padding: [1, 2] }],
    [f([1, 4, 5, 4]), f([4, 1, 2, 3]), f([4]), { groups: 4, dilation: [2, 1], padding: 'same' }],
    [f([2, 2, 4, 4]), f([3, 2, 2, 2]), f([3]), { stride: 2 }],
    [f([2, 4, 3, 3]), f([4, 2, 1, 1]), f([4]), { groups: 2 }],
    [f([1, 2, 5, 5]), f([3, 2, 1, 1]), f([3]), { stride: 2 }],
  ],
  CONV,
)

op(
  'convTranspose1d',
  2,
  [
    [f([2, 3, 5]), f([3, 4, 3]), f([4])],
    [f([4, 5]), f([4, 2, 3]), null, { stride: 2, padding: 1, outputPadding: 1, groups: 2 }],
    [f([2, 3, 5]), f([3, 9, 2]), f([9]), { dilation: 2 }],
    [f([2, 3, 4]), f([3, 2, 1])],
  ],
  CONV,
)
op(
  'convTranspose2d',
  2,
  [
    [f([2, 2, 3, 2]), f([2, 3, 3, 2]), f([3])],
    [f([2, 3, 3]), f([2, 3, 3, 3]), null, { stride: [2, 3], padding: [1, 0], outputPadding: [1, 2] }],
    [f([1, 4, 3, 2]), f([4, 1, 2, 2]), f([2]), { groups: 2, stride: 2 }],
  ],
  CONV,
)

op(
  'im2col',
  2,
  [
    [f([2, 2, 4, 5]), 2],
    [f([2, 5, 4]), [3, 2], { stride: [2, 1], padding: 1, dilation: [1, 2] }],
    [f([1, 2, 4, 4]), 2, { stride: 2 }],
  ],
  FUNCTION,
)
op(
  'col2im',
  2,
  [
    [f([2, 8, 12]), [4, 5], 2],
    [f([12, 12]), [5, 4], [3, 2], { stride: [2, 1], padding: [1, 1], dilation: [1, 2] }],
    [f([1, 8, 4]), 4, 2, { stride: 2 }],
  ],
  CONV,
)

op(
  'maxPool1d',
  2,
  [
    [distinct([2, 3, 7]), 3],
    [distinct([3, 8]), [2], { stride: 1, dilation: 3 }],
    [distinct([2, 2, 7]), 3, { stride: 2, padding: 1, ceilMode: true }],
    [distinct([1, 23]), 11, { stride: 5 }],
  ],
  FUNCTION,
)
op(
  'maxPool2d',
  2,
  [
    [distinct([2, 2, 4, 6]), 2],
    [distinct([2, 5, 7]), [3, 2], { stride: [2, 1], padding: 1 }],
    [distinct([1, 2, 5, 6]), 3, { stride: 2, ceilMode: true, padding: [0, 1] }],
  ],
  FUNCTION,
)
for (const name of ['avgPool1d', 'adaptiveAvgPool1d'])
  op(
    name,
    2,
    [
      [f([2, 3, 7]), 3],
      [f([3, 8]), [4]],
    ],
    CONV,
  )
op(
  'avgPool1d',
  2,
  [
    [f([2, 7]), 3, { stride: 2, padding: 1, ceilMode: true }],
    [f([2, 7]), 3, { stride: 2, padding: 1, ceilMode: true, countIncludePad: false }],
  ],
  CONV,
)
op(
  'avgPool2d',
  2,
  [
    [f([2, 2, 4, 6]), 2],
    [f([2, 5, 7]), [3, 2], { stride: [2, 1], padding: 1 }],
    [f([1, 2, 5, 6]), 3, { stride: 2, padding: [0, 1], ceilMode: true, countIncludePad: false }],
  ],
  CONV,
)
op(
  'adaptiveAvgPool2d',
  2,
  [
    [f([2, 2, 4, 6]), 2],
    [f([2, 5, 7]), [3, null]],
    [f([2, 2, 3, 3]), [1, 5]],
  ],
  CONV,
)
op(
  'adaptiveMaxPool1d',
  2,
  [
    [distinct([2, 3, 7]), 3],
    [distinct([3, 8]), [4]],
  ],
  FUNCTION,
)
op(
  'adaptiveMaxPool2d',
  2,
  [
    [distinct([2, 2, 4, 6]), 2],
    [distinct([2, 5, 7]), [3, null]],
  ],
  FUNCTION,
)

op(
  'batchNorm',
  2,
  [
    [f([5, 3]), f([3]), pos([3]), f([3]), f([3])],
    [f([2, 3, 4]), f([3]), pos([3]), null, f([3]), { eps: 0.1 }],
    [f([2, 2, 3, 4]), f([2]), pos([2]), f([2])],
  ],
  CONV,
)
op(
  'batchNorm',
  2,
  [
    [f([5, 3]), f([3]), f([3])],
    [f([2, 3, 4]), null, f([3])],
    [f([2, 2, 3, 4]), f([2]), null],
    [f([20, 3, 33]), f([3]), f([3])],
  ],
  {
    ...CONV,
    run: (x, weight, bias) => batchNorm(x, null, null, weight, bias, { training: true, eps: 1e-3 }),
  },
)
