/** Elementwise operators on operands of every layout against the reference. */

import { testElementwise } from '../../../test/kernels/elementwise.cases.ts'
import { engine } from './support/engine.ts'

testElementwise(engine)
