import { away, bool, distinct, f, int, list } from '../samples.ts'
import { FUNCTION, LONG, op } from './row.ts'

/** Rows of operators that are functions only: they weigh nothing in programs that leave them alone. */
const EACH = { method: false, pointwise: true }

for (const name of ['isfinite', 'isinf', 'isposinf', 'isneginf'])
  op(name, 0, [[f([3, 4])], [int([5])], [list([4], [Infinity, -Infinity, Number.NaN, 0])]], EACH)
const odd = [1, 1.000001, Infinity, -Infinity, Infinity, Number.NaN, 3]
const other = [1.000001, 1.1, Infinity, Infinity, 5, Number.NaN, Infinity]
for (const options of [{}, { equalNan: true }, { rtol: 0.2, atol: 0.1 }])
  op(
    'isclose',
    0,
    [
      [f([2, 3]), f([3]), options],
      [list([7], odd), list([7], other), options],
    ],
    FUNCTION,
  )

for (const name of ['max', 'min'])
  op(
    name,
    2,
    [
      [distinct([3, 4])],
      [distinct([3, 4, 2]), 1],
      [distinct([3, 4]), -1, { keepdim: true }],
      [f([]), 0],
      [int([3, 4], 0, 2), 0],
      [distinct([3, 4]), f([4], 0.03, 0.04)],
    ],
    FUNCTION,
  )

op(
  'clip',
  2,
  [
    [f([3, 4]), -0.31, 0.42],
    [f([5]), null, 0.2],
    [int([6]), 0, 3],
  ],
  FUNCTION,
)
op('trunc', 1, [[f([3, 5], -3, 3)], [int([4])]], EACH)
op('frac', 2, [[away([3, 5])], [list([4], [1.5, -1.25, 7.75, -0.5])]], EACH)
op('trace', 2, [[f([3, 3])], [f([2, 4])], [int([3, 2])], [f([0, 2])]], FUNCTION)
op(
  'diag',
  2,
  [[f([3])], [f([3]), 2], [f([2]), -1], [f([0])], [f([3, 4])], [f([3, 4]), 1], [bool([2])]],
  FUNCTION,
)

// The zeros beside them stay zeros.
op('diag', 0, [[list([2], [Infinity, Number.NaN])]], FUNCTION)

for (const name of ['softsign', 'relu6']) op(name, 2, [[away([3, 4])], [int([6])]], EACH)
op('logsigmoid', 2, [[away([3, 4])], [f([5], -20, 20)]], EACH)
op('glu', 2, [[f([3, 4])], [f([4, 3]), 0]], FUNCTION)

// Weights that 16 bits hold: numbers of a call that they do not hold are rounded by the reference, and not by engines.
op(
  'lerp',
  2,
  [
    [f([3, 4]), f([4]), 0.25],
    [f([3]), f([3]), 0.75],
  ],
  FUNCTION,
)
op(
  'logaddexp',
  2,
  [
    [f([3, 4]), f([4], 3, 4)],
    [f([5], -3, -2), 1.5],
    [list([2], [1, 90]), list([2], [30, -90])],
  ],
  FUNCTION,
)
for (const p of [2, 1, 3, 0.5, Infinity, -Infinity])
  op(
    'norm',
    2,
    [
      [distinct([3, 4]), p],
      [distinct([3, 4]), p, 1],
      [distinct([2, 3, 2]), p, [0, -1], { keepdim: true }],
    ],
    { ...FUNCTION, ...LONG },
  )
op(
  'norm',
  0,
  [
    [list([3], [0, 2, 3]), 0],
    [list([2], [0, 0]), 3],
  ],
  FUNCTION,
)
for (const name of ['varMean', 'stdMean'])
  op(name, 2, [[f([3, 4])], [f([3, 4, 2]), [0, 2], { keepdim: true }], [f([3, 4]), 1, { correction: 0 }]], {
    ...FUNCTION,
    ...LONG,
  })
op(
  'countNonzero',
  0,
  [[int([3, 4], 0, 2)], [list([4], [0, 1, Number.NaN, 2])], [int([3, 4], 0, 2), 1]],
  FUNCTION,
)
op('nansum', 2, [[f([3, 4])], [f([3, 4]), 1]], { ...FUNCTION, ...LONG })
op('nansum', 0, [[list([3], [1, Number.NaN, 3])]], FUNCTION)
op('diff', 2, [[f([5])], [f([3, 4]), 0, { n: 2 }], [f([2]), 0, { n: 3 }], [int([4])]], FUNCTION)
