import { expectNumber } from '../checks.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { copyInto, elementwiseInto } from '../primitives/elementwise.ts'
import type { ArrayOperand } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
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

/**
 * Adds `value` to x in place, x += value, for use outside the tape; a tensor broadcasts to x's shape.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`; ShapeError if value does not broadcast to x,
 * DTypeError if x's dtype cannot hold the result.
 * @example
 * await tensor([1, 2]).add_(10).toArray() // → [11, 12]
 */
export const add_ = inPlace('add_', e.add)

/**
 * Subtracts `value` from x in place, x −= value, for use outside the tape; a tensor broadcasts to x's shape.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`; ShapeError if value does not broadcast to x,
 * DTypeError if x's dtype cannot hold the result.
 * @example
 * await tensor([1, 2]).sub_(1).toArray() // → [0, 1]
 */
export const sub_ = inPlace('sub_', e.sub)

/**
 * Multiplies x by `value` in place, x *= value, for use outside the tape; a tensor broadcasts to x's shape.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`; ShapeError if value does not broadcast to x,
 * DTypeError if x's dtype cannot hold the result.
 * @example
 * await tensor([1, 2]).mul_(2).toArray() // → [2, 4]
 */
export const mul_ = inPlace('mul_', e.mul)

/**
 * Divides x by `value` in place, x /= value, for use outside the tape; a tensor broadcasts to x's shape.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`; ShapeError if value does not broadcast to x,
 * DTypeError if x's dtype cannot hold the result.
 * @example
 * await tensor([1, 2]).div_(2).toArray() // → [0.5, 1]
 */
export const div_ = inPlace('div_', e.div)

/**
 * Makes every element `value`, in place, for use outside the tape.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`; DTypeError if x's dtype cannot hold the value.
 * @example
 * await zeros([2]).fill_(3).toArray() // → [3, 3]
 */
export function fill_(x: Tensor, value: number): Tensor {
  expectNumber('fill_', value)
  elementwiseInto([x], FILL, [], [value])
  return x
}

/**
 * Makes every element 0, in place, for use outside the tape.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`.
 * @example
 * await ones([2]).zero_().toArray() // → [0, 0]
 */
export const zero_ = (x: Tensor): Tensor => fill_(x, 0)

/**
 * Puts the elements of `source`, broadcast and converted, in place of x's, for use outside the tape.
 *
 * @returns x.
 * @throws GradError if x requires a gradient, outside `noGrad`; ShapeError if source does not broadcast to x,
 * DTypeError if x's dtype cannot hold it.
 * @example
 * await zeros([2]).copy_(tensor([1, 2])).toArray() // → [1, 2]
 */
export function copy_(x: Tensor, source: Tensor | ArrayOperand): Tensor {
  copyInto(x, source)
  return x
}
