import { ValueError } from '../errors.ts'
import type * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import type { ArrayOperand } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'

/** How scalar expressions become operators. */

/**
 * What may stand beside an operator: a tensor, a plain number, which takes the dtype of the tensor beside it, or an
 * array of numbers, which becomes a tensor.
 */
export type Operand = Tensor | number | ArrayOperand

/** An operator of one tensor. */
/* @__NO_SIDE_EFFECTS__ */
export const unary = (name: string, f: (x: e.Expr) => e.Expr): ((x: Tensor) => Tensor) => {
  const p = program(name, 1, ([x]) => f(x))
  return (x) => elementwise(p, [x])
}

/** An operator of two, of which one may be a number. */
/* @__NO_SIDE_EFFECTS__ */
export const binary = (
  name: string,
  f: (a: e.Expr, b: e.Expr) => e.Expr,
): ((a: Operand, b: Operand) => Tensor) => {
  const both = program(name, 2, ([a, b]) => f(a, b))
  const right = program(name, 1, ([a], [b]) => f(a, b), 1)
  const left = program(name, 1, ([b], [a]) => f(a, b), 1)
  return (a, b) => {
    if (typeof b === 'number') {
      if (typeof a === 'number') throw new ValueError(`${name}: at least one operand must be a tensor`)
      return elementwise(right, [a], [b])
    }
    return typeof a === 'number' ? elementwise(left, [b], [a]) : elementwise(both, [a, b])
  }
}
