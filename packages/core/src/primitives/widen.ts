/**
 * Dtypes of 16 bits are for keeping: kernels compute in float32. One that has no code for them is given its operands as
 * float32, and its results are rounded, once.
 */

import type { Backend, View } from '../dispatch/backend.ts'
import { type Call, run } from '../dispatch/call.ts'
import { specialize } from '../expr/program.ts'
import { type DType, isHalf } from '../tensor/dtype.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { COPY, copy, launch } from './elementwise.ts'

/** Is any of these of a dtype of 16 bits? */
export const anyHalf = (views: readonly View[]): boolean => views.some(({ dtype }) => isHalf(dtype))

/** Are there operands of 16 bits that a kernel has no code for? One that says nothing of dtypes takes all. */
export const isStoredOnly = <A>({ kernel: { dtypes }, inputs }: Call<A>): boolean =>
  dtypes !== undefined &&
  inputs.some(({ dtype }, i) => isHalf(dtype) && !dtypes[Math.min(i, dtypes.length - 1)].includes(dtype))

/** Runs a call of what computes in float32 on operands of which some have 16 bits. */
export function runWide<A>(call: Call<A>): void {
  const { backend, outputs, inputs } = call
  const made: Tensor[] = []
  const wide = (view: View, from: boolean): View => {
    if (!isHalf(view.dtype)) return view
    const t = allocate(backend, view.shape, 'float32')
    made.push(t)
    if (from) convert(backend, t, view)
    return t
  }
  try {
    const from = inputs.map((view) => wide(view, true))
    const to = outputs.map((view) => wide(view, false))
    run({ ...call, outputs: to, inputs: from })
    for (let i = 0; i < to.length; i++) if (to[i] !== outputs[i]) convert(backend, outputs[i], to[i])
  } finally {
    for (const t of made) t.dispose()
  }
}

const convert = (backend: Backend, to: View, from: View): void =>
  launch(backend, specialize(COPY, [from.dtype], [], [to.dtype]), [to], [from], [])

/** Converts tensors of 16 bits to float32 and leaves others as they are. */
export const widen = (inputs: readonly Tensor[]): Tensor[] =>
  inputs.map((t) => (isHalf(t.dtype) ? copy(t, 'float32') : t))

/** Rounds results of float32 to a dtype, if that has 16 bits. */
export const narrowed = (t: Tensor, dtype: DType): Tensor =>
  t.dtype === 'float32' && isHalf(dtype) ? copy(t, dtype) : t
