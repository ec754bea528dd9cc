/** Layer norm, RMS norm and their gradients against the composition on the reference backend, in float64. */

import { expect, test } from 'vitest'
import { testNorm } from '../../../test/kernels/norm.cases.ts'
import { engine } from './support/engine.ts'

testNorm(
  engine,
  {
    // Little, with one kernel; rows in registers, and in loops.
    added: [
      [40, 384],
      [2100, 36],
      [257, 4100],
    ],
    // Several rows per block, many blocks.
    many: [
      [[70, 70], 20],
      [[1100], 260],
      [[2100], 132],
      [[300], 4100],
    ],
  },
  {
    many: [
      [5e-6, 5e-6],
      [5e-6, 5e-6],
      // Sums of thousands of terms of size up to 1.
      [1e-4, 1e-5],
    ],
    far: [[3e-6, 1e-5]],
  },
)

test('empty tensors are left to the composition', () => {
  const empty = { buffer: {}, dtype: 'float32', shape: [0, 6], strides: [6, 1], offset: 0 } as const
  const { layer_norm, rms_norm } = engine.backends[0].backend.kernels
  const attrs = { size: 6, eps: 1e-5, affine: 'none' } as const
  expect([layer_norm?.supports?.([empty], attrs), rms_norm?.supports?.([empty], attrs)]).toEqual([
    false,
    false,
  ])
})
