import { type Arg, bool, distinct, f, int, list } from '../samples.ts'
import { FUNCTION, LONG, op } from './row.ts'

/** Rows of operators that add up: reductions, scans, sorting, matrix products. */

// Reductions.
const dims: readonly (readonly Arg[])[] = [
  [f([3, 4])],
  [f([3, 4, 2]), 1],
  [f([3, 4, 2]), [0, -1], { keepdim: true }],
  [f([])],
]
op(
  'sum',
  2,
  [...dims, [f([2, 0, 3]), 1], [int([3, 4]), 0], [bool([3, 4]), 1], [f([40, 50]), 0], [f([40, 50]), 1]],
  LONG,
)
op('mean', 2, [...dims, [f([40, 50]), 1]], LONG)
op(
  'prod',
  2,
  [
    ...dims,
    [list([2, 3], [1.5, 0, -2, 0.5, 2, 3]), 1],
    [list([2, 3], [1.5, 0, 0, 0.5, 2, 3])],
    [int([3, 4]), 0],
  ],
  LONG,
)
for (const name of ['amax', 'amin'])
  op(name, 2, [
    [distinct([3, 4])],
    [distinct([3, 4, 2]), [0, 2], { keepdim: true }],
    [distinct([5]), 0],
    [int([3, 4]), 1],
    [distinct([40, 50]), 0],
  ])
for (const name of ['argmax', 'argmin'])
  op(name, 0, [
    [distinct([3, 4])],
    [distinct([3, 4, 2]), 1, { keepdim: true }],
    [int([6], 0, 2), 0],
    [distinct([40, 50]), 1],
  ])
for (const name of ['var', 'std'])
  op(
    name,
    2,
    [[f([3, 4])], [f([3, 4, 2]), [0, 2], { keepdim: true }], [f([3, 4]), 1, { correction: 0 }]],
    LONG,
  )
op('softmax', 2, [
  [f([3, 4]), 1],
  [f([3, 4, 2]), 0],
  [f([]), 0],
  [f([40, 70], -9, 9), 1],
])
op('logSoftmax', 2, [
  [f([3, 4]), 1],
  [f([3, 4, 2]), 1],
  [f([40, 70], -9, 9), 1],
])
op('softmin', 2, [[f([3, 4]), -1]])
op('logsumexp', 2, [
  [f([3, 4]), 1],
  [f([3, 4, 2]), [0, 2], { keepdim: true }],
  [f([5], 90, 95), 0],
])
op(
  'cumsum',
  2,
  [
    [f([3, 4]), 1],
    [f([3, 4, 2]), 0],
    [int([5]), 0],
    [f([6, 300]), 1],
  ],
  LONG,
)
op(
  'cumprod',
  2,
  [
    [f([3, 4]), 1],
    [list([2, 4], [1.5, 0, -2, 0.5, 2, 3, 0, 0]), 1],
    [int([5], -3, 4), 0],
  ],
  LONG,
)
op('sort', 2, [[distinct([3, 4])], [distinct([4, 3]), 0, { descending: true }], [int([20], 0, 4)]])
op('argsort', 0, [
  [distinct([3, 4]), 0],
  [int([20], 0, 4), 0, { descending: true }],
])
op('topk', 2, [
  [distinct([3, 5]), 2],
  [distinct([4, 3]), 3, 0, { largest: false }],
])
for (const name of ['any', 'all']) op(name, 0, [[bool([3, 4]), 1], [int([3, 4], 0, 3)], [f([2, 0, 3]), 1]])

// Matrix products.
op(
  'matmul',
  2,
  [
    [f([3, 4]), f([4, 2])],
    [f([4]), f([4])],
    [f([4]), f([2, 4, 3])],
    [f([2, 3, 4]), f([4])],
    [f([2, 3, 4]), f([4, 2])],
    [f([2, 1, 3, 4]), f([3, 4, 2])],
    [f([3, 0]), f([0, 2])],
    [int([3, 4]), int([4, 2])],
    [f([37, 65]), f([65, 43])],
    [f([3, 70, 33]), f([3, 33, 17])],
  ],
  LONG,
)
op('mm', 2, [[f([3, 4]), f([4, 2])]], LONG)
op('bmm', 2, [[f([2, 3, 4]), f([2, 4, 2])]], LONG)
op('mv', 2, [[f([3, 4]), f([4])]], LONG)
op('dot', 2, [[f([5]), f([5])]], LONG)
op(
  'addmm',
  2,
  [
    [f([2]), f([3, 4]), f([4, 2]), { beta: 0.5, alpha: -2 }],
    [f([3, 2]), f([3, 4]), f([4, 2])],
  ],
  LONG,
)
op('baddbmm', 2, [[f([3, 2]), f([2, 3, 4]), f([2, 4, 2]), { beta: 0.5, alpha: -2 }]], LONG)
op('outer', 2, [[f([3]), f([4])]])
op(
  'linear',
  2,
  [
    [f([5, 4]), f([3, 4]), f([3])],
    [f([2, 5, 4]), f([3, 4])],
    [f([4]), f([4])],
    [f([33, 65]), f([70, 65]), f([70])],
    [f([5, 4]), f([3, 4]), f([3]), { activation: 'gelu', residual: f([5, 3]) }],
    [f([2, 5, 4]), f([3, 4]), null, { activation: 'relu' }],
    [f([2, 5, 4]), f([3, 4]), f([3]), { activation: 'silu' }],
    [f([5, 4]), f([3, 4]), null, { residual: f([5, 3]) }],
    [f([33, 65]), f([70, 65]), f([70]), { activation: 'gelu_tanh' }],
    [f([4]), f([4]), null, { activation: 'gelu' }],
  ],
  LONG,
)
op(
  'einsum',
  2,
  [
    ['ij,jk->ik', f([2, 3]), f([3, 4])],
    ['bhid,bhjd->bhij', f([2, 1, 3, 4]), f([2, 1, 5, 4])],
    ['ii->', f([3, 3])],
    ['i...,i->...', f([3, 2, 2]), f([3])],
    ['ij,j,i->', f([2, 3]), f([3]), f([2])],
  ],
  { ...FUNCTION, ...LONG },
)
