/**
 * Core's plain-JavaScript kernels on this backend's memory: for dtypes that no WebAssembly kernel takes. They are
 * slow and right. Whether they run is decided here, by dtype and by what a kernel says of itself.
 */

import {
  dtypeInfo,
  type KernelOf,
  type Primitives,
  referenceKernels,
  reportPath,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { takes } from '@tilegrad/core/kernel'
import { viewOf } from '../element.ts'
import type { CpuBuffer, Engine } from '../engine.ts'

/** Every primitive in JavaScript. */
export function fallbackKernels(engine: Engine): Primitives {
  return referenceKernels(({ buffer, dtype }: View): TypedArray => {
    const { ptr, bytes } = buffer as CpuBuffer
    return viewOf(engine.memory.memory.buffer, dtype, ptr, bytes / dtypeInfo[dtype].bytes)
  })
}

/** The kernel where it takes the inputs, else the JavaScript one. */
export function either<A>(kernel: KernelOf<A>, js: KernelOf<A>): KernelOf<A> {
  return {
    // What has 16 bits is widened for it: see core's primitives/widen.ts.
    ...(kernel.dtypes && { dtypes: kernel.dtypes }),
    run(outputs, inputs, attrs, numbers) {
      if (takes(kernel, inputs, attrs)) return kernel.run(outputs, inputs, attrs, numbers)
      reportPath('javascript')
      js.run(outputs, inputs, attrs, numbers)
    },
  }
}
