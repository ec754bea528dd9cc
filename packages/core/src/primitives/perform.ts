import type { Backend, View } from '../dispatch/backend.ts'
import { NO_NUMBERS, run } from '../dispatch/call.ts'
import { type Primitive, tape } from '../dispatch/primitive.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { isStoredOnly, widened } from './widen.ts'

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
    const go = (outputs: readonly View[], inputs: readonly View[]): void =>
      run({ op, path: 'primitive', backend, kernel, outputs, inputs, attrs, numbers: NO_NUMBERS, flops })
    if (isStoredOnly(kernel, inputs)) widened(backend, views, inputs, go)
    else go(views, inputs)
  }
  tape(primitive, op, outputs, inputs, attrs)
}
