import { apply, type Op } from '../dispatch/op.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { copy, elementwise } from '../primitives/elementwise.ts'
import { isFloat } from '../tensor/dtype.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { mul } from './pointwise.ts'

/** An operator's type, where it takes a tensor alone. */
export type Function1 = (x: Tensor) => Tensor

/** A tensor as it is, or of float32 where it has whole numbers. */
export const floating = (name: string, x: Tensor): Tensor => {
  const t = asTensor(name, x)
  return isFloat(t.dtype) ? t : copy(t, 'float32')
}

/** A function with a gradient of its own: what the derivative of its expression would lose digits over, or 0 · ∞. */
/* @__NO_SIDE_EFFECTS__ */
export function smooth(
  name: string,
  f: (x: e.Expr) => e.Expr,
  slope: (x: Tensor, y: Tensor) => Tensor,
): Function1 {
  const p = program(name, 1, ([x]) => f(x))
  const op: Op<object> = {
    name,
    compose: ([x]) => [elementwise(p, [x])],
    backward: (node, [d]) => [d && mul(d, slope(node.input(0), node.output(0)))],
  }
  return (x) => apply(op, [floating(name, x)], {})[0]
}

/** Σ factors · xⁿ, the highest power first. */
export const polynomial = (x: e.Expr, factors: readonly number[]): e.Expr =>
  factors.slice(1).reduce<e.Expr>((sum, c) => e.add(e.mul(sum, x), c), e.constant(factors[0] as number))
