import { apply, type Op } from '../dispatch/op.ts'
import type { ArrayOperand } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'

/**
 * Runs a composition as one operator, so that what it makes on the way is freed with it. `moves`: elements are only moved, so
 * that nothing is gained by computing those of 16 bits as float32.
 */
export const composed = (
  name: string,
  inputs: readonly (Tensor | ArrayOperand)[],
  compose: (inputs: readonly Tensor[]) => readonly Tensor[],
  moves = false,
): readonly Tensor[] => apply({ name, compose, roundsOnce: moves } satisfies Op<object>, inputs, {})
