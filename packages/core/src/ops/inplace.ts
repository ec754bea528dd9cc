import { expectNumber } from '../checks.ts'
import * as e from '../expr.ts'
import type { ArrayOperand } from '../operands.ts'
import { copyInto, elementwiseInto } from '../primitives/elementwise.ts'
import { program } from '../program.ts'
import type { Tensor } from '../tensor.ts'
import type { Operand } from './pointwise.ts'

/**
 * Operators that overwrite their tensor, for use outside the tape (optimisers, initialisers): a tensor that requires a
 * gradient takes them only inside `noGrad`. They return the tensor.
 */

const FILL = program('fill_', 0, (_, [v]) => v, 1)

const inPlace = (
  name: string,
  f: (a: e.Expr, b: e.Expr) => e.Expr,
): ((x: Tensor, value: Operand) => Tensor) => {
  const both = program(name, 2, ([a, b]) => f(a, b))
  const scalar = program(name, 1, ([a], [b]) => f(a, b), 1)
  return (x, value) => {
    if (typeof value === 'number') elementwiseInto([x], scalar, [x], [value])
    else elementwiseInto([x], both, [x, value])
    return x
  }
}

/** x += value */
export const add_ = inPlace('add_', e.add)
/** x −= value */
export const sub_ = inPlace('sub_', e.sub)
/** x *= value */
export const mul_ = inPlace('mul_', e.mul)
/** x /= value */
export const div_ = inPlace('div_', e.div)

/** Every element becomes `value`. */
export function fill_(x: Tensor, value: number): Tensor {
  expectNumber('fill_', value)
  elementwiseInto([x], FILL, [], [value])
  return x
}

/** Every element becomes 0. */
export const zero_ = (x: Tensor): Tensor => fill_(x, 0)

/** The elements of source, broadcast and converted, over x's. */
export function copy_(x: Tensor, source: Tensor | ArrayOperand): Tensor {
  copyInto(x, source)
  return x
}
