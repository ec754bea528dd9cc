/**
 * What backends are made of and programs do not need: a bundle has it only where a backend asks for it.
 *
 * @module kernel
 */

export { runsAgain } from './autograd/again.ts'
export { expectWindow } from './checks.ts'
export { type Listener, listen, takes } from './dispatch/call.ts'
export {
  assigned,
  eachRun,
  expected,
  live,
  outsideOnly,
  uncaptured,
  unchanged,
} from './dispatch/capturing.ts'
export { cacheRow } from './ops/attention/cache-row.ts'
export { windowSizes } from './ops/convolution/spans.ts'
export { recurrence } from './ops/recurrent.ts'
export { pack, unpack } from './tensor/dtype.ts'
export { collapse, denseFrom, leadOf, type Nest, stridesOver, viewOf } from './tensor/nest.ts'
