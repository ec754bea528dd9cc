import { bool, f, int, ints } from '../samples.ts'
import { FUNCTION, LONG, op } from './row.ts'

/** Rows of operators that move elements around. */

// Shapes.
op('reshape', 2, [
  [f([3, 4]), [2, 6]],
  [f([3, 4]), [2, -1, 3]],
  [f([]), [1, 1]],
])
op('view', 2, [[f([3, 4]), [2, 6]]], { dense: true })
op('flatten', 2, [[f([2, 3, 4])], [f([2, 3, 4]), 1, 2], [f([])]])
op('unflatten', 2, [[f([2, 6]), 1, [3, -1]]])
op('permute', 2, [[f([2, 3, 4]), [2, 0, -2]]])
op('transpose', 2, [[f([2, 3, 4]), -1, 0]])
op('T', 2, [[f([3, 4])]], { method: false })
op('movedim', 2, [
  [f([2, 3, 4]), 0, -1],
  [f([2, 3, 4]), [0, 1], [2, 0]],
])
op('expand', 2, [
  [f([3, 1]), [2, 3, 4]],
  [f([3, 1]), [-1, 4]],
  [f([1]), [0]],
])
op('broadcastTo', 2, [[f([3, 1]), [2, 3, 4]]])
op('expandAs', 2, [[f([3, 1]), f([2, 3, 4])]])
op('squeeze', 2, [[f([1, 3, 1])], [f([1, 3, 1]), 0], [f([1, 3, 1]), [0, 1, 2]]])
op('unsqueeze', 2, [
  [f([3, 4]), 1],
  [f([3, 4]), -1],
])
op('slice', 2, [
  [f([5, 4]), 1, 4],
  [f([5, 4]), undefined, undefined, { step: 2 }],
  [f([5, 4]), 3, undefined, { dim: 1, step: -1 }],
  [f([5]), 3, 3],
])
op('narrow', 2, [
  [f([5, 4]), 0, 1, 3],
  [f([5, 4]), 1, -2, 2],
])
op('select', 2, [
  [f([5, 4]), 0, -1],
  [f([3]), 0, 1],
])
op('flip', 2, [
  [f([3, 4]), [0, 1]],
  [f([3, 4]), 1],
])
op('diagonal', 2, [[f([3, 4])], [f([2, 3, 4]), { offset: 1, dim1: 1, dim2: 2 }], [f([3, 4]), { offset: -1 }]])
op('split', 2, [
  [f([5, 2]), 2],
  [f([2, 5]), [1, 0, 4], 1],
])
op('chunk', 2, [[f([5, 2]), 3]])
op('unbind', 2, [[f([2, 3]), 1]])
op(
  'cat',
  2,
  [[[f([2, 3]), f([1, 3])]], [[f([2, 3]), f([2, 1]), f([2, 0])], 1], [[int([2]), f([3])]]],
  FUNCTION,
)
op('stack', 2, [[[f([2, 3]), f([2, 3])], -1]], FUNCTION)
op('repeat', 2, [
  [f([2, 3]), [2, 1, 2]],
  [f([2]), [0]],
])
op('tile', 2, [
  [f([2, 3]), [2]],
  [f([2]), [3, 1]],
])
op('roll', 2, [
  [f([3, 4]), 2, 1],
  [f([3, 4]), -5],
  [f([3, 4]), [1, -1], [0, 1]],
])
op('tril', 2, [[f([3, 4])], [f([2, 3, 3]), -1]])
op('triu', 2, [[f([3, 4])], [f([2, 3, 3]), 1]])
op('pad', 2, [
  [f([3, 4]), [1, 2]],
  [f([3, 4]), [1, 0, 2, 1], { value: -1.5 }],
  [f([3, 4]), [-1, 2], { value: 3 }],
  [f([2, 3, 4]), [2, 1, 1, 0], { mode: 'reflect' }],
  [f([2, 3, 4]), [2, 1], { mode: 'replicate' }],
  [f([2, 3, 4]), [2, 1], { mode: 'circular' }],
])
op(
  'splitHeads',
  2,
  [
    [f([2, 3, 8]), [2, 1, 1], 2],
    [f([3, 6]), [3], 2],
    [f([2, 4, 3]), [0, 1], 3],
  ],
  FUNCTION,
)
op('mergeHeads', 2, [[f([2, 3, 4, 2])], [f([1, 4, 3])], [f([3, 1, 2])]], FUNCTION)
op('contiguous', 2, [[f([3, 4])]])
op('clone', 2, [[f([3, 4])], [bool([5])]])

// Indices.
op('gather', 2, [
  [f([4, 3]), 0, int([2, 3], 0, 4)],
  [f([4, 3]), 1, int([4, 5], 0, 3)],
  [int([6]), 0, int([3], 0, 6)],
])
op(
  'scatterAdd',
  2,
  [
    [f([4, 3]), 0, int([6, 2], 0, 4), f([6, 3])],
    [f([4]), 0, int([9], 0, 4), f([9])],
  ],
  LONG,
)
op('indexSelect', 2, [
  [f([4, 3]), 0, int([5], 0, 4)],
  [f([4, 3]), -1, ints([2], [2, 0])],
])
op('embedding', 2, [[int([2, 3], 0, 5), f([5, 4])]], FUNCTION)
// The padding row has no gradient although the output depends on it.
op('embedding', 0, [[ints([4], [1, 0, 4, 1]), f([5, 4]), { paddingIdx: 1 }]], FUNCTION)
op('oneHot', 0, [[int([2, 3], 0, 4), 4]], FUNCTION)
