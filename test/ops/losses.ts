import { away, distinct, f, list } from '../samples.ts'
import { FUNCTION, LONG, op, POINTWISE } from './row.ts'

/** Rows of losses, and of an activation, that only their modules stand for. */

op('hardshrink', 2, [[distinct([3, 4])], [distinct([3, 4]), { lambd: 0.3 }]], POINTWISE)
const LOSS = { ...FUNCTION, ...LONG }
op(
  'hingeEmbeddingLoss',
  2,
  [
    [f([4], 0.1, 0.9), list([4], [1, -1, -1, 1])],
    [f([3, 4], 0.1, 0.4), list([4], [1, -1, -1, 1]), { margin: 0.5, reduction: 'none' }],
    [f([4], 2, 3), list([4], [-1, -1, -1, 1])],
  ],
  LOSS,
)
op(
  'softMarginLoss',
  2,
  [
    [away([4]), list([4], [1, -1, -1, 1])],
    [f([2, 2], 40, 90), list([2, 2], [1, -1, -1, 1]), { reduction: 'sum' }],
  ],
  LOSS,
)
