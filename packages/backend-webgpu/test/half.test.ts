/** float16 and bfloat16 on GPUs: two to a word, with or without the feature shader-f16. */

import { testHalf } from '../../../test/kernels/half.cases.ts'
import { engine } from './support/engine.ts'

testHalf(engine)
