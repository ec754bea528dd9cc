/**
 * Core's plain-JavaScript kernels on this backend's memory: for dtypes that no WebAssembly kernel takes. They are
 * slow and right. Whether they run is decided here, by dtype and by what a kernel says of itself.
 */

import {
  type KernelOf,
  type Primitives,
  referenceKernels,
  reportPath,
  type TypedArray,
  type View,
} from '@tilegrad/core'
import { bytesOf, type CpuBuffer, type Engine } from '../engine.ts'

/** Every primitive in JavaScript. */
export function fallbackKernels(engine: Engine): Primitives {
  const views = {
    bool: Uint8Array,
    int32: Int32Array,
    float16: Uint16Array,
    float32: Float32Array,
    float64: Float64Array,
  } as const
  return referenceKernels(({ buffer, dtype }: View): TypedArray => {
    const { ptr, bytes } = buffer as CpuBuffer
    return new views[dtype](engine.memory.memory.buffer, ptr, bytes / bytesOf[dtype])
  })
}

const isWide = (view: View): boolean => view.dtype === 'float64' || view.dtype === 'float16'

/** Whether a view's dtype is one that WebAssembly kernels work in: float32, int32, bool. */
export const isNarrow = (view: View): boolean => !isWide(view)

/**
 * The kernel where it takes the inputs, else the JavaScript one. A kernel without `supports` is asked nothing, and
 * given no float64.
 */
export function either<A>(kernel: KernelOf<A>, js: KernelOf<A>): KernelOf<A> {
  return {
    run(outputs, inputs, attrs) {
      const takes = kernel.supports?.(inputs, attrs) ?? !(inputs.some(isWide) || outputs.some(isWide))
      if (takes) return kernel.run(outputs, inputs, attrs)
      reportPath('javascript')
      js.run(outputs, inputs, attrs)
    },
  }
}
