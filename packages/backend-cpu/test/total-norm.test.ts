/** The norm of many tensors against a sum in float64. */

import { tensor, totalNorm } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { testTotalNorm } from '../../../test/kernels/total-norm.cases.ts'
import { backends, engine } from './support/engine.ts'

// Sums of 64 squares or fewer per lane and block in float32, the rest in float64.
testTotalNorm(engine, 2e-6)

test('refuses what makes no sense', () => {
  expect(() => totalNorm([])).toThrow('got no tensors')
  expect(() => totalNorm([tensor([1], { device: backends[0].backend, dtype: 'int32' })])).toThrow(
    /takes floating tensors, not int32/,
  )
})
