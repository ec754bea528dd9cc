import { type Arg, away, bool, distinct, f, int, ints, list, pos } from '../samples.ts'
import { FUNCTION, op, POINTWISE } from './row.ts'

/** Rows of operators that work element by element. */

// Elementwise, one tensor.
for (const name of ['neg', 'square', 'exp', 'expm1', 'sin', 'cos', 'tanh', 'sigmoid', 'erf', 'silu'])
  op(name, 2, [[f([3, 4])], [f([])], [f([2, 0, 3])]], POINTWISE)
for (const name of ['sqrt', 'rsqrt', 'log', 'log1p']) op(name, 2, [[pos([3, 4])], [pos([7])]], POINTWISE)
op('abs', 2, [[away([3, 5])], [int([9])]], POINTWISE)
op('reciprocal', 2, [[away([3, 5])]], POINTWISE)
for (const name of ['sign', 'floor', 'ceil']) op(name, 1, [[f([3, 5], -3, 3)], [int([4])]], POINTWISE)
op('round', 1, [[f([3, 5], -3, 3)], [f([8], -9, 9), { decimals: 2 }]], POINTWISE)
// Halves go to the even neighbour; there the differences jump.
op('round', 0, [[list([6], [0.5, 1.5, 2.5, -0.5, -1.5, 3.5])]], POINTWISE)
for (const name of ['isnan', 'logicalNot'])
  op(name, 0, [[f([3, 4])], [int([5], -1, 2)], [bool([4])]], POINTWISE)
op('relu', 2, [[away([3, 4])], [int([6])]], POINTWISE)
op('leakyRelu', 2, [[away([3, 4])], [away([5]), { negativeSlope: 0.2 }]], POINTWISE)
op('elu', 2, [[away([3, 4])], [away([5]), { alpha: 1.7 }]], POINTWISE)
op('softplus', 2, [[f([3, 4])], [f([5]), { beta: 3, threshold: 0.4 }]], POINTWISE)
op('gelu', 2, [[f([3, 4])], [f([3, 4]), { approximate: 'tanh' }]], POINTWISE)

// Elementwise, two operands.
const broadcasts: readonly (readonly Arg[])[] = [
  [f([3, 4]), f([3, 4])],
  [f([2, 1, 4]), f([3, 1])],
  [f([]), f([5])],
  [f([4]), 2.5],
  [f([2, 0]), f([1, 1])],
]
op('add', 2, [...broadcasts, [f([3]), f([2, 3]), { alpha: -0.5 }], [int([4]), int([3, 1]), { alpha: 3 }]])
op('sub', 2, [...broadcasts, [f([3]), f([2, 3]), { alpha: -0.5 }], [int([4]), 3]])
op('mul', 2, [...broadcasts, [int([4]), int([3, 1])], [bool([6]), bool([6])]])
op('div', 2, [
  [f([3, 4]), away([3, 4])],
  [f([2, 1, 3]), away([4, 1])],
  [f([4]), -2.5],
  [int([4, 5], -20, 20), ints([5], [3, -3, 7, 1, -4])],
])
op('div', 1, [
  [f([3, 4], -9, 9), away([3, 4]), { roundingMode: 'floor' }],
  [f([3, 4], -9, 9), away([3, 4]), { roundingMode: 'trunc' }],
  [int([4, 5], -20, 20), ints([5], [3, -3, 7, 1, -4]), { roundingMode: 'floor' }],
  [int([4, 5], -2e9, 2e9), ints([5], [3, -3, 70001, 1, -4]), { roundingMode: 'floor' }],
  [int([4, 5], -2e9, 2e9), ints([5], [3, -3, 70001, 1, -4]), { roundingMode: 'trunc' }],
])
// A rounded quotient of these has reached the next whole number; signs, infinities, NaN.
op('div', 0, [
  [
    list([12], [1, 6, 10, 8, -1, 1, 1e30, -1e30, 0, Infinity, 5, Number.NaN]),
    list([12], [0.1, 0.1, 0.1, 0.2, Infinity, -Infinity, 7, 7, -3, 2, -2, 1]),
    { roundingMode: 'floor' },
  ],
])
op('pow', 2, [
  [pos([3, 4]), f([3, 4])],
  [pos([2, 1, 3]), f([2, 1])],
  [away([4]), 3],
  [away([4]), -2],
  [pos([4]), 0.5],
  [int([5, 1], -4, 5), int([6], 0, 7)],
])
op('pow', 2, [[2.5, f([4])]], { method: false })
for (const name of ['maximum', 'minimum'])
  op(name, 2, [
    [distinct([3, 4]), f([3, 4], 0.03, 0.04)],
    [distinct([3, 1]), f([5], 0.03, 0.04)],
    [distinct([5]), 0.06],
    [int([3, 4]), int([4])],
    [bool([6]), bool([6])],
  ])
for (const name of ['eq', 'ne', 'lt', 'le', 'gt', 'ge'])
  op(name, 0, [
    [f([3, 4]), f([4])],
    [int([3, 4], 0, 3), int([3, 1], 0, 3)],
    [int([4]), 0.5],
    [bool([5]), bool([5])],
  ])
for (const name of ['logicalAnd', 'logicalOr'])
  op(name, 0, [
    [bool([8]), bool([8])],
    [int([3, 1], 0, 2), f([4])],
  ])
op('clamp', 2, [
  [distinct([4, 5]), -1.03, 0.96],
  [distinct([4, 5]), -1.03],
  [distinct([4, 5]), null, 0.96],
  [distinct([3, 4]), f([4], -0.52, -0.51), f([3, 1], 0.51, 0.52)],
  [int([9]), -2, 3],
])
op('clamp', 0, [
  [f([3]), Number.NaN, 1],
  [f([3]), null, Number.NaN],
  [list([4], [1, Number.NaN, 3, 4]), list([4], [0, 1, Number.NaN, 0]), list([4], [2, 2, 2, Number.NaN])],
])
op(
  'where',
  2,
  [
    [bool([3, 4]), f([3, 4]), f([4])],
    [bool([5]), f([1]), -1],
    [bool([5]), 0.5, f([5])],
    [bool([5]), 1, 2],
    [bool([4]), int([4]), int([4])],
  ],
  FUNCTION,
)
op('maskedFill', 2, [
  [f([3, 4]), bool([4]), -1.5],
  [f([3, 4]), bool([3, 4]), f([])],
  [int([5]), bool([5]), 7],
])
