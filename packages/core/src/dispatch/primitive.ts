/** Primitives as operators: each names its kernel, its work and its gradient once; `perform` of primitives/perform.ts does the rest. */

import { type Backward, record, shouldRecord } from '../autograd/tape.ts'
import type { Tensor } from '../tensor/tensor.ts'
import type { Work } from './call.ts'
import type { KernelOf, Primitives } from './kernels.ts'

/** A primitive operator. */
export interface Primitive<A> {
  /** Picks its kernel. */
  readonly kernel: (kernels: Primitives) => KernelOf<A>
  /** Counts arithmetic operations, for profiles. */
  readonly flops?: Work<A>
  /** Runs also where there is nothing to fill: its kernel looks at what the inputs hold. */
  readonly checks?: boolean
  /** The rule of its gradient, from what the tape knows of the call; null where nothing is differentiable. */
  readonly backward: Backward<A> | null
}

/** Puts a call on the tape, where something is to be differentiated. */
export function tape<A>(
  { backward }: Primitive<A>,
  op: string,
  outputs: readonly Tensor[],
  inputs: readonly Tensor[],
  attrs: A,
  numbers?: readonly number[],
): void {
  if (backward !== null && shouldRecord(inputs)) record(op, inputs, outputs, attrs, backward, numbers)
}
