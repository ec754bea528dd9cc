/** Layer norm, RMS norm and their gradients against the composition on the reference backend, in float64. */

import { testNorm } from '../../../test/kernels/norm.cases.ts'
import { engine } from './support/engine.ts'

testNorm(
  engine,
  {
    added: [[40, 65]],
    // Several blocks of the parameters' gradients.
    many: [
      [[2500], 65],
      [[70], 5000],
    ],
  },
  {
    // Terms of size 1: 40 rows per float32 sum, blocks in float64; relative to sums of size √rows ≈ 50.
    many: [
      [1e-5, 1e-5],
      [1e-5, 1e-5],
      [5e-5, 1e-5],
      [2e-5, 1e-5],
    ],
    // The mean is off by an ulp of 10⁴, 1e-3, and 1/deviation is 3.5.
    far: [[3e-6, 1e-5]],
  },
)
