import type { Backend, View } from '../dispatch/backend.ts'
import { type Call, NO_NUMBERS, run } from '../dispatch/call.ts'
import { type Primitive, tape } from '../dispatch/primitive.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { isStoredOnly, runWide } from './widen.ts'

/**
 * Runs a primitive, called `op` by profiles, errors and the tape. `outputs` are what the caller gets; the kernel fills
 * `views` of them, if it wants them in another shape.
 */
export function perform<A>(
  primitive: Primitive<A>,
  op: string,
  backend: Backend,
  outputs: readonly Tensor[],
  inputs: readonly Tensor[],
  attrs: A,
  views: readonly View[] = outputs,
): void {
  const { flops } = primitive
  const kernel = primitive.kernel(backend.kernels)
  if (outputs[0].numel > 0 || primitive.checks) {
    const call: Call<A> = {
      op,
      path: 'primitive',
      backend,
      kernel,
      outputs: views,
      inputs,
      attrs,
      numbers: NO_NUMBERS,
      flops,
    }
    if (isStoredOnly(call)) runWide(call)
    else run(call)
  }
  tape(primitive, op, outputs, inputs, attrs)
}
