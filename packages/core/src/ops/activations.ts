import { amongKnown, describe } from '../checks.ts'
import { ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'

/** Activations as expressions: for operators of their own, and for fusing into others. */
export const activations = {
  relu: (x: e.Expr): e.Expr => e.select(e.le(x, 0), 0, x),
  tanh: (x: e.Expr): e.Expr => e.tanh(x),
  silu: (x: e.Expr): e.Expr => e.mul(x, e.sigmoid(x)),
  /** x · Φ(x), Φ the normal distribution function. */
  gelu: (x: e.Expr): e.Expr => e.mul(e.mul(x, 0.5), e.add(1, e.erf(e.mul(x, Math.SQRT1_2)))),
  /** GELU with Φ approximated by tanh: ½ x · (1 + tanh(√(2/π) (x + 0.044715 x³))). */
  gelu_tanh: (x: e.Expr): e.Expr => {
    const inner = e.mul(Math.sqrt(2 / Math.PI), e.add(x, e.mul(0.044715, e.mul(x, e.square(x)))))
    return e.mul(e.mul(x, 0.5), e.add(1, e.tanh(inner)))
  },
}

/** The name of an activation that `linear` can apply. */
export type Activation = keyof typeof activations

/**
 * Makes sure that there is an activation of this name, and gives it back. For authors of layers.
 *
 * @throws ValueError naming the nearest activation that there is.
 * @example
 * expectActivation('MyLayer', 'relu') // → relu
 */
export function expectActivation(op: string, name: Activation): Activation {
  if (Object.hasOwn(activations, name)) return name
  const known = amongKnown(String(name), Object.keys(activations))
  throw new ValueError(`${op}: there is no activation ${describe(name)}${known}`)
}
