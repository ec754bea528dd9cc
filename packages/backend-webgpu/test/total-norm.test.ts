/** The norm of many tensors against a sum in float64. */

import { testTotalNorm } from '../../../test/kernels/total-norm.cases.ts'
import { engine } from './support/engine.ts'

// A tree of sums: a few roundings, each of 6e-8.
testTotalNorm(engine, 1e-6)
