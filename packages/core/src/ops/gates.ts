import { ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { wrapDim } from '../tensor/layout.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { mul, sigmoid } from './pointwise.ts'
import { unary } from './scalar.ts'
import { narrow } from './shape.ts'

/** Activations beyond those that transformers use most. */

const below = (x: e.Expr, top: number): e.Expr => e.select(e.ge(x, top), top, x)
const within = (x: e.Expr, top: number): e.Expr => below(e.select(e.le(x, 0), 0, x), top)

/**
 * Limits x to [0, 6], in x's shape and dtype (Krizhevsky 2010). The gradient at the ends is 0.
 *
 * @example
 * await relu6(tensor([-1, 2, 9])).toArray() // → [0, 2, 6]
 */
export const relu6 = unary('relu6', (x) => within(x, 6))

/**
 * Takes x / (1 + |x|) of every element, in x's shape; integers become float32.
 *
 * @example
 * await softsign(tensor([-1, 3])).toArray() // → [-0.5, 0.75]
 */
export const softsign = unary('softsign', (x) => e.div(x, e.add(1, e.abs(x))))

/**
 * Takes ln(1 / (1 + e⁻ˣ)) of every element without overflow, in x's shape; integers become float32.
 *
 * @example
 * await logsigmoid(tensor([-100])).toArray() // → [-100]
 */
export const logsigmoid = unary('logsigmoid', (x) =>
  e.sub(e.select(e.lt(x, 0), x, 0), e.log1p(e.exp(e.neg(e.abs(x))))),
)

/**
 * Halves x along dim into a and b and takes a · sigmoid(b): a gated linear unit (Dauphin et al. 2017).
 *
 * @throws ShapeError if the size of dim is odd, or x does not have it.
 * @example
 * await glu(tensor([4, 0])).toArray() // → [2]
 */
export function glu(x: Tensor, dim = -1): Tensor {
  const from = asTensor('glu', x)
  const d = wrapDim('glu', dim, from.rank)
  const half = (from.shape[d] ?? 1) / 2
  if (!Number.isInteger(half))
    throw new ShapeError(`glu: halves dim ${dim}, which must be of even size, got ${show(from.shape)}`)
  return mul(narrow(from, d, 0, half), sigmoid(narrow(from, d, half, half)))
}
