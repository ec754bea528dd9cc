/**
 * Makes all operators methods, also those that a bundle leaves out where nothing names them. `import '@tilegrad/core/methods'`;
 * layers bring it along.
 *
 * @module methods
 */
import { addMethods } from './add-methods.ts'
import { at, indexPut, set } from './ops/at.ts'
import * as extremes from './ops/extremes.ts'
import * as found from './ops/found.ts'
import * as functions from './ops/functions.ts'
import { histc, repeatInterleave, swapaxes, unfold } from './ops/grids.ts'
import * as matrices from './ops/matrices.ts'
import * as activations from './ops/more-activations.ts'
import * as overwriting from './ops/more-inplace.ts'
import { multinomial } from './ops/multinomial.ts'
import * as scatter from './ops/scatter.ts'
import * as sizes from './ops/sizes.ts'
import * as statistics from './ops/statistics.ts'
import * as trigonometry from './ops/trigonometry.ts'

for (const family of [
  activations,
  extremes,
  found,
  functions,
  matrices,
  scatter,
  sizes,
  statistics,
  trigonometry,
  overwriting,
])
  addMethods(family)
addMethods({ at, histc, indexPut, multinomial, repeatInterleave, set, swapaxes, unfold })
