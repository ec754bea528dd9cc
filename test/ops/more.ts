import { away, bool, distinct, f, int, ints, list, pos } from '../samples.ts'
import { FUNCTION, LONG, op, POINTWISE } from './row.ts'

/** Rows of operators that not every program needs: their methods come with their modules. */

// Scalar functions.
for (const name of ['atan', 'sinh', 'cosh', 'asinh', 'exp2'])
  op(name, 2, [[f([3, 4])], [f([])], [f([2, 0, 3])], [int([5])]], POINTWISE)
op('tan', 2, [[f([3, 4], -1.4, 1.4)], [int([3], -1, 2)]], POINTWISE)
for (const name of ['asin', 'acos', 'atanh', 'erfinv']) op(name, 2, [[f([3, 4], -0.9, 0.9)]], POINTWISE)
op('acosh', 2, [[f([3, 4], 1.2, 5)]], POINTWISE)
op('erfc', 2, [[f([3, 4])]], POINTWISE)
for (const name of ['log2', 'log10']) op(name, 2, [[pos([3, 4])], [int([4], 1, 9)]], POINTWISE)
op('trunc', 1, [[away([3, 5])], [int([4])]], POINTWISE)
op('frac', 2, [[f([3, 5], 0.1, 0.9)]], POINTWISE)
for (const name of ['isinf', 'isfinite', 'isposinf', 'isneginf'])
  op(name, 0, [[f([3, 4])], [int([5])]], POINTWISE)
op('nanToNum', 2, [[f([3, 4])], [f([4]), { nan: 1, posinf: 2, neginf: 3 }], [int([4])]], POINTWISE)
for (const name of ['remainder', 'fmod'])
  op(name, 2, [
    [list([4], [5.3, -5.3, 1.1, -0.4]), list([4], [2, 2, -0.7, 1.5])],
    [list([3], [5.3, -5.3, 1.1]), 1.7],
    [int([6], -9, 9), ints([6], [3, -3, 2, -4, 5, 1])],
  ])
op('floorDivide', 0, [
  [f([5], -9, 9), away([5])],
  [int([6], -9, 9), ints([6], [3, -3, 2, -4, 5, 1])],
])
op('lerp', 2, [
  [f([3, 4]), f([4]), 0.3],
  [f([3]), f([3]), 0.8],
  [f([3]), f([3]), f([3], 0.6, 0.9)],
])
op('logaddexp', 2, [
  [f([3, 4]), f([4])],
  [f([4]), 0.5],
])
op('hypot', 2, [[away([3, 4]), pos([4])]])
op('atan2', 2, [
  [away([3, 4]), away([4])],
  [list([4], [1, -1, 2, -2]), list([4], [-3, -3, 0.5, 0.5])],
])
op('logicalXor', 0, [
  [bool([8]), bool([8])],
  [int([3, 1], 0, 2), f([4])],
])
op('isclose', 0, [
  [list([4], [1, 2, 3, 0]), list([4], [1.000001, 2.1, 3, 1e-9])],
  [int([4], 0, 2), int([4], 0, 2)],
])
op('addcmul', 2, [[f([3, 4]), f([4]), f([3, 1]), { value: 0.5 }]])
op('addcdiv', 2, [[f([3, 4]), f([4]), away([3, 1]), { value: -0.5 }]])

// The largest, the smallest, the middle.
for (const name of ['max', 'min'])
  op(name, 2, [
    [distinct([3, 4])],
    [distinct([3, 4, 2]), 1],
    [distinct([3, 4]), -2, { keepdim: true }],
    [distinct([3, 1]), f([5], 0.03, 0.04)],
    [int([6], 0, 2), 0],
    [int([3, 4]), null],
  ])
op('aminmax', 2, [[distinct([3, 4])], [distinct([3, 4]), 1, { keepdim: true }]])
op('median', 2, [
  [distinct([3, 4])],
  [distinct([3, 5]), 1],
  [distinct([4, 3]), 0, { keepdim: true }],
  [int([7])],
])
op('quantile', 2, [
  [distinct([9]), 0.3],
  [distinct([3, 5]), [0.25, 0.5], 1],
  [distinct([5, 3]), 0.9, 0, { keepdim: true, interpolation: 'midpoint' }],
  [distinct([6]), 0.5, 0, { interpolation: 'nearest' }],
])
for (const name of ['cummax', 'cummin'])
  op(name, 2, [
    [distinct([3, 7]), 1],
    [distinct([5, 2]), 0],
    [int([9], 0, 3), 0],
  ])

// Norms and statistics.
op(
  'norm',
  2,
  [
    [f([3, 4])],
    [away([3, 4]), 1, 1],
    [away([3, 4]), 3, [0, 1], { keepdim: true }],
    [distinct([3, 4]), Infinity, 1],
    [distinct([3, 4]), -Infinity, 0],
  ],
  LONG,
)
op('norm', 0, [[f([3, 4]), 0]])
op('clip', 2, [[distinct([4, 5]), -1.03, 0.96]])
for (const name of ['varMean', 'stdMean'])
  op(name, 2, [[f([3, 4])], [f([3, 4]), 1, { correction: 0, keepdim: true }]], LONG)
op('countNonzero', 0, [[int([3, 4], 0, 2)], [bool([3, 4]), 1]])
for (const name of ['nansum', 'nanmean']) op(name, 2, [[f([3, 4])], [f([3, 4]), 1, { keepdim: true }]], LONG)
op('diff', 2, [[f([3, 4])], [f([5, 2]), { n: 2, dim: 0 }], [int([6])]])
op('diff', 0, [[bool([6])]])
op(
  'logcumsumexp',
  2,
  [
    [f([3, 7]), 1],
    [f([5, 2]), 0],
  ],
  LONG,
)
op('dist', 2, [[f([3, 4]), f([4])]], LONG)
op(
  'cdist',
  2,
  [
    [f([3, 4]), f([5, 4])],
    [f([2, 3, 4]), f([2, 2, 4], 3, 5), { p: 1 }],
  ],
  { ...FUNCTION, ...LONG },
)
op('normalize', 2, [[f([3, 4])], [f([3, 4]), { dim: 0, p: 2 }]], LONG)
op('cosineSimilarity', 2, [[f([3, 4]), f([3, 4])]], LONG)

// Matrices.
op('diag', 2, [[f([3])], [f([3]), -1], [f([3, 4]), 1]])
op('diagEmbed', 2, [[f([2, 3])], [f([3]), { offset: 2 }], [f([2]), { offset: -1 }]])
op('trace', 2, [[f([3, 4])]])
op('kron', 2, [
  [f([2, 3]), f([3, 2])],
  [f([2]), f([2, 3])],
])
op(
  'tensordot',
  2,
  [
    [f([2, 3, 4]), f([3, 4, 5]), 2],
    [f([2, 3]), f([5, 2]), [[0], [1]]],
    [f([2]), f([3]), 0],
  ],
  LONG,
)
op('cross', 2, [
  [f([4, 3]), f([4, 3])],
  [f([3, 2]), f([3, 2]), 0],
])

// Grids and windows.
op('meshgrid', 2, [[[f([2]), f([3])]], [[f([2]), f([3])], { indexing: 'xy' }]], FUNCTION)
op('repeatInterleave', 2, [
  [f([2, 3]), 2],
  [f([2, 3]), 3, 1],
  [f([2, 3]), [0, 2, 1], 1],
])
op('hstack', 2, [[[f([2, 3]), f([2, 1])]], [[f([2]), f([3])]]], FUNCTION)
op('vstack', 2, [[[f([2, 3]), f([1, 3])]], [[f([3]), f([3])]]], FUNCTION)
op('swapaxes', 2, [[f([2, 3, 4]), 0, 2]])
op('unfold', 2, [
  [f([7]), 0, 3, 2],
  [f([2, 5]), 1, 2, 1],
  [f([5, 2]), 0, 5, 1],
])
op(
  'searchsorted',
  0,
  [
    [ints([5], [1, 3, 3, 7, 9]), int([2, 4], 0, 11)],
    [ints([5], [1, 3, 3, 7, 9]), int([2, 4], 0, 11), { right: true }],
    [ints([2, 3], [1, 3, 5, 2, 4, 6]), int([2, 4], 0, 7)],
  ],
  FUNCTION,
)
op('histc', 0, [
  [f([20]), { bins: 5, min: -1, max: 1 }],
  [f([9]), { bins: 4 }],
])
op(
  'trilIndices',
  0,
  [
    [3, 4],
    [3, 3, -1],
  ],
  FUNCTION,
)
op(
  'triuIndices',
  0,
  [
    [3, 4],
    [3, 3, 1],
  ],
  FUNCTION,
)

// Places.
op('at', 2, [
  [f([4, 5]), 1],
  [f([4, 5]), '1:-1', '::2'],
  [f([4, 5]), '...', -1],
  [f([4, 5]), null, [0, 3], null],
  [f([4, 5]), '::-1'],
  [f([4, 5]), ints([3], [0, -1, 0])],
  [f([4, 5]), ':', ints([2, 2], [0, 4, 4, -5])],
  [f([4, 5]), ints([2], [1, 3]), ints([2], [0, -1])],
  [f([3, 4, 5]), ints([2], [1, 2]), ':', ints([2], [0, -1])],
  [f([3, 4, 5]), 0, ints([2, 1], [1, 2]), ints([3], [0, -1, 2])],
  [f([2, 3, 4, 5]), ':', ints([2], [1, 2]), ints([2], [0, 3])],
  [int([4, 5]), ints([3], [0, -1, 0])],
])
op('indexPut', 2, [
  [f([4, 5]), [1], f([5])],
  [f([4, 5]), ['1:3', '::2'], 7],
  [f([4, 5]), [ints([3], [0, -1, 0])], f([3, 5])],
  [f([4, 5]), [ints([3], [0, -1, 0])], f([5]), { accumulate: true }],
  [f([4, 5]), [bool([4])], f([5])],
  [f([4, 5]), [bool([4, 5])], 2, { accumulate: true }],
  [int([4, 5]), [':', 2], int([4])],
])
op('scatter', 2, [
  [f([3, 5]), 1, ints([3, 2], [0, 1, 4, 3, 2, 2]), f([3, 2])],
  [f([3, 5]), 0, ints([2, 3], [0, 1, 2, 2, 0, 1]), 4],
  [f([3, 5]), 0, ints([2, 3], [0, 1, 2, 0, 0, 1]), f([2, 4]), { reduce: 'add' }],
])
op('indexAdd', 2, [[f([4, 3]), 0, ints([3], [0, 2, 0]), f([3, 3]), { alpha: 0.5 }]], LONG)
op('indexCopy', 2, [[f([4, 3]), 0, ints([2], [3, 1]), f([2, 3])]])
op('indexFill', 2, [[f([4, 3]), 1, ints([2], [0, -1]), 2.5]])
op('take', 2, [[f([4, 3]), ints([2, 2], [0, 11, -1, 5])]])
op('takeAlongDim', 2, [
  [f([3, 4]), ints([3, 2], [0, 1, 3, 2, 2, 2]), 1],
  [f([3, 4]), ints([1, 2], [0, 3]), 1],
  [f([3, 4]), ints([3], [0, 5, 11])],
])
op('maskedScatter', 2, [
  [f([3, 4]), bool([3, 4]), f([20])],
  [f([3, 4]), bool([4]), f([12])],
])

// Activations and losses.
for (const name of [
  'selu',
  'mish',
  'hardswish',
  'hardsigmoid',
  'relu6',
  'logsigmoid',
  'softsign',
  'tanhshrink',
])
  op(name, 2, [[away([3, 4])], [away([])]], POINTWISE)
op('celu', 2, [[away([3, 4])], [away([4]), { alpha: 1.7 }]], POINTWISE)
op('hardtanh', 2, [[distinct([3, 4])], [distinct([3, 4]), { minVal: -0.4, maxVal: 0.6 }]], POINTWISE)
op('softshrink', 2, [[distinct([3, 4])], [distinct([3, 4]), { lambd: 0.3 }]], POINTWISE)
op('threshold', 2, [[distinct([3, 4]), 0.1, -2]], POINTWISE)
op('prelu', 2, [
  [away([3, 4]), f([1])],
  [away([2, 3, 4]), f([3])],
])
op('glu', 2, [[f([3, 4])], [f([4, 3]), 0]])
const LOSS = { ...FUNCTION, ...LONG }
op(
  'klDiv',
  2,
  [
    [f([3, 4], -3, -1), pos([3, 4])],
    [f([3, 4], -3, -1), f([3, 4], -3, -1), { reduction: 'batchmean', logTarget: true }],
    [f([3, 4], -3, -1), pos([3, 4]), { reduction: 'none' }],
  ],
  LOSS,
)
op(
  'binaryCrossEntropy',
  2,
  [
    [f([3, 4], 0.1, 0.9), f([3, 4], 0, 1)],
    [f([3, 4], 0.1, 0.9), f([3, 4], 0, 1), { weight: pos([4]), reduction: 'sum' }],
  ],
  LOSS,
)
op(
  'pairwiseDistance',
  2,
  [
    [f([3, 4]), f([3, 4])],
    [f([3, 4]), f([3, 4]), { p: 1, keepdim: true }],
  ],
  LOSS,
)
op(
  'marginRankingLoss',
  2,
  [[f([5], 1, 2), f([5], 2.2, 3), list([5], [1, 1, 1, 1, 1]), { margin: 0.1 }]],
  LOSS,
)
op('cosineEmbeddingLoss', 2, [[f([4, 3]), f([4, 3], 0.5, 1), ints([4], [1, 1, 1, 1])]], LOSS)
op('tripletMarginLoss', 2, [[f([4, 3], 0, 1), f([4, 3], 3, 4), f([4, 3], 1.2, 2)]], LOSS)
