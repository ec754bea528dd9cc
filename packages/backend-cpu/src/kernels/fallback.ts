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
import { isLane, viewOf } from '../element.ts'
import type { CpuBuffer, Engine } from '../engine.ts'

/** Every primitive in JavaScript. */
export function fallbackKernels(engine: Engine): Primitives {
  return referenceKernels(({ buffer, dtype }: View): TypedArray => {
    const { ptr, bytes } = buffer as CpuBuffer
    return viewOf(engine.memory.memory.buffer, dtype, ptr, bytes / dtypeInfo[dtype].bytes)
  })
}

/** Whether a view's dtype is one that WebAssembly kernels work in: float32, int32, bool. */
export const isNarrow = (view: View): boolean => isLane(view.dtype)

/**
 * The kernel where it takes the inputs, else the JavaScript one. A kernel without `supports` is asked nothing, and
 * given no float64.
 */
export function either<A>(kernel: KernelOf<A>, js: KernelOf<A>): KernelOf<A> {
  return {
    run(outputs, inputs, attrs, numbers) {
      const takes = kernel.supports?.(inputs, attrs) ?? (inputs.every(isNarrow) && outputs.every(isNarrow))
      if (takes) return kernel.run(outputs, inputs, attrs, numbers)
      reportPath('javascript')
      js.run(outputs, inputs, attrs, numbers)
    },
  }
}
