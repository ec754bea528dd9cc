/** Elementwise operators on operands of every layout against the reference. */

import { testElementwise } from '../../../test/kernels/elementwise.cases.ts'
import { engine } from './support/engine.ts'

// One of each set of instructions: elementwise.test.ts has threads and memory.
testElementwise({
  ...engine,
  backends: engine.backends.filter(({ name }) => name.includes('threads')).slice(-3),
})
