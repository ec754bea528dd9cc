/** Rotary position embedding and its gradient against the composition on the reference backend, in float64. */

import { testRotary } from '../../../test/kernels/rotary.cases.ts'
import { engine } from './support/engine.ts'

testRotary(engine)
