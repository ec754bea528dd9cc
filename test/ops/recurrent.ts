import type { Tensor } from '@tilegrad/core'
import { recurrence } from '@tilegrad/core/kernel'
import { f } from '../samples.ts'
import { FUNCTION, op } from './row.ts'

/** Recurrences: each direction of a layer is an operator, which is no one's method. */

const ways = [
  { reverse: false, batchFirst: false },
  { reverse: true, batchFirst: true },
]

for (const way of ways) {
  const run =
    (kind: Parameters<typeof recurrence>[0]) =>
    (x: Tensor, w: Tensor, h: Tensor, extra?: Tensor): readonly Tensor[] =>
      recurrence(kind, extra ? [x, w, h, extra] : [x, w, h], way) as readonly Tensor[]
  const named = (kind: Parameters<typeof recurrence>[0]) => ({ ...FUNCTION, run: run(kind) })
  const end = way.reverse ? ' reverse' : ''
  for (const kind of ['rnn_tanh', 'rnn_relu'] as const)
    op(
      `${kind}${end}`,
      2,
      [
        [f([3, 2, 5]), f([5, 5]), f([2, 5])],
        [f([1, 1, 1]), f([1, 1]), f([1, 1])],
      ],
      named(kind),
    )
  op(
    `lstm${end}`,
    2,
    [
      [f([3, 2, 12]), f([12, 3]), f([2, 3]), f([2, 3])],
      [f([1, 1, 4]), f([4, 1]), f([1, 1]), f([1, 1])],
    ],
    named('lstm'),
  )
  op(
    `gru${end}`,
    2,
    [
      [f([3, 2, 15]), f([15, 5]), f([2, 5]), f([5])],
      [f([1, 1, 3]), f([3, 1]), f([1, 1]), f([1])],
    ],
    named('gru'),
  )
}
