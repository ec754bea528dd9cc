import { away, bool, distinct, f, int, list } from '../samples.ts'
import { FUNCTION, op } from './row.ts'

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
