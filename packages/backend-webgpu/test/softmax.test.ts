/** Softmax, log-softmax and their gradients against the composition on the reference backend, in float64. */

import { testSoftmax } from '../../../test/kernels/softmax.cases.ts'
import { engine } from './support/engine.ts'

testSoftmax(engine, {
  // x − m, of size up to 60, is rounded by 2e-6, which exp makes a relative error; WGSL's exp may add 3 + 2 |x − m| ulp.
  // The gradient subtracts terms of size up to |y dy|.
  softmax: [
    [1e-37, 2e-5],
    [1e-6, 2e-5],
  ],
  // The output is a difference of numbers of size |x| ≤ 30.
  log_softmax: [
    [5e-6, 1e-6],
    [6e-6, 2e-5],
  ],
})
