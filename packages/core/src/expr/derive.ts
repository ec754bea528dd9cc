import type { Expr } from './expr.ts'
import * as e from './expr.ts'

const TWO_OVER_SQRT_PI = 2 / Math.sqrt(Math.PI)
const NOTHING = e.constant(0)

/**
 * Reverse-mode differentiation of a scalar expression, symbolically: what each input receives when the output
 * receives `adjoint`. Inputs the expression does not depend on smoothly are missing from the result.
 *
 * Conventions at kinks are PyTorch's: sign(0) for abs, one half each for max and min at ties, 0 for roundings.
 */
export function derive(root: Expr, adjoint: Expr): Map<number, Expr> {
  const order = e.postOrder([root])
  const adjoints = new Map<Expr, Expr>([[root, adjoint]])
  let passed = false
  const give = (to: Expr, d: Expr): void => {
    const have = adjoints.get(to)
    const next = passed ? NOTHING : d
    adjoints.set(to, have ? e.add(have, next) : next)
  }
  const out = new Map<number, Expr>()
  for (let i = order.length - 1; i >= 0; i--) {
    const node = order[i]
    const d = adjoints.get(node)
    if (!d) continue
    // Behind a rounding everything receives 0, also where 0 times a derivative would be NaN.
    passed = d === NOTHING
    if (node.kind === 'input') out.set(node.index, d)
    else if (node.kind === 'unary') {
      const rule = unaryRules[node.op]
      if (rule) give(node.a, rule(d, node.a, node))
    } else if (node.kind === 'binary') {
      const to = binaryRules[node.op]?.(d, node.a, node.b, node)
      if (to) {
        give(node.a, to[0])
        give(node.b, to[1])
      }
    } else if (node.kind === 'select') {
      give(node.a, e.select(node.cond, d, 0))
      give(node.b, e.select(node.cond, 0, d))
    } else if (node.kind === 'cast' && node.to === 'float32') give(node.a, d)
  }
  return out
}

/** The constant factor of an expression, and the rest; null where there is none. */
function factors(x: Expr): [number, Expr | null] {
  if (x.kind === 'const') return [x.value, null]
  if (x.kind !== 'binary' || x.op !== 'mul') return [1, x]
  if (x.b.kind === 'const') return [x.b.value, x.a]
  return x.a.kind === 'const' ? [x.a.value, x.b] : [1, x]
}

/** a · b with the constants of both as one factor behind it: a chain of rules would multiply by each. */
function times(a: Expr, b: Expr): Expr {
  const [[c, x], [d, y]] = [factors(a), factors(b)]
  const rest = x && y ? e.mul(x, y) : (x ?? y ?? e.constant(1))
  return e.mul(rest, c * d)
}

/** What x receives when y = f(x) receives d. */
type UnaryRule = (d: Expr, x: Expr, y: Expr) => Expr

/** The rule of a piecewise constant function: a zero gradient, not a missing one, as in PyTorch. */
const flat: UnaryRule = () => NOTHING

/** The rules of functions; null where the result is a bool, through which no gradient passes. */
const unaryRules: Readonly<Record<e.Unary, UnaryRule | null>> = {
  neg: (d) => e.neg(d),
  abs: (d, x) => times(d, e.sign(x)),
  sign: flat,
  floor: flat,
  ceil: flat,
  round: flat,
  sqrt: (d, _, y) => e.div(d, e.mul(2, y)),
  exp: (d, _, y) => times(d, y),
  log: (d, x) => e.div(d, x),
  log1p: (d, x) => e.div(d, e.add(x, 1)),
  expm1: (d, _, y) => times(d, e.add(y, 1)),
  sin: (d, x) => times(d, e.cos(x)),
  cos: (d, x) => e.neg(times(d, e.sin(x))),
  tanh: (d, _, y) => times(d, e.sub(1, e.square(y))),
  sigmoid: (d, _, y) => times(d, e.mul(y, e.sub(1, y))),
  erf: (d, x) => times(d, e.mul(e.exp(e.neg(e.square(x))), TWO_OVER_SQRT_PI)),
  isnan: null,
  not: null,
}

/** What a and b receive when y = f(a, b) receives d. */
type BinaryRule = (d: Expr, a: Expr, b: Expr, y: Expr) => readonly [a: Expr, b: Expr]

/** The rule of max and min. It asks which side loses, so that both sides of a NaN receive the gradient, as in PyTorch. */
const extremum =
  (loses: typeof e.lt): BinaryRule =>
  (d, a, b) => {
    const share = e.select(e.eq(a, b), e.mul(d, 0.5), d)
    return [e.select(loses(a, b), 0, share), e.select(loses(b, a), 0, share)]
  }

/** The rules of operators; null where the result is a bool or of bits, through which no gradient passes. */
const binaryRules: Readonly<Record<e.Binary, BinaryRule | null>> = {
  add: (d) => [d, d],
  sub: (d) => [d, e.neg(d)],
  mul: (d, a, b) => [times(d, b), times(d, a)],
  div: (d, _, b, y) => [e.div(d, b), e.neg(times(d, e.div(y, b)))],
  // b·a^(b−1) is 0 · ∞ at b = 0, and ln a is −∞ at a = 0: both limits are 0.
  pow: (d, a, b, y) => [
    e.select(e.eq(b, 0), 0, times(d, e.mul(b, e.pow(a, e.sub(b, 1))))),
    e.select(e.and(e.eq(a, 0), e.ge(b, 0)), 0, times(d, e.mul(y, e.log(a)))),
  ],
  max: extremum(e.lt),
  min: extremum(e.gt),
  lt: null,
  le: null,
  gt: null,
  ge: null,
  eq: null,
  ne: null,
  and: null,
  or: null,
  xor: null,
  shl: null,
  shr: null,
}
