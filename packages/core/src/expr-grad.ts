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
    else if (node.kind === 'unary') unaryRule(node.op, node.a, node, d, give)
    else if (node.kind === 'binary') binaryRule(node.op, node.a, node.b, node, d, give)
    else if (node.kind === 'select') {
      give(node.a, e.select(node.cond, d, 0))
      give(node.b, e.select(node.cond, 0, d))
    } else if (node.kind === 'cast' && node.to === 'float32') give(node.a, d)
  }
  return out
}

type Give = (to: Expr, d: Expr) => void

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

function unaryRule(op: e.Unary, x: Expr, y: Expr, d: Expr, give: Give): void {
  switch (op) {
    case 'neg':
      return give(x, e.neg(d))
    case 'abs':
      return give(x, times(d, e.sign(x)))
    case 'sqrt':
      return give(x, e.div(d, e.mul(2, y)))
    case 'exp':
      return give(x, times(d, y))
    case 'log':
      return give(x, e.div(d, x))
    case 'log1p':
      return give(x, e.div(d, e.add(x, 1)))
    case 'expm1':
      return give(x, times(d, e.add(y, 1)))
    case 'sin':
      return give(x, times(d, e.cos(x)))
    case 'cos':
      return give(x, e.neg(times(d, e.sin(x))))
    case 'tanh':
      return give(x, times(d, e.sub(1, e.square(y))))
    case 'sigmoid':
      return give(x, times(d, e.mul(y, e.sub(1, y))))
    case 'erf':
      return give(x, times(d, e.mul(e.exp(e.neg(e.square(x))), TWO_OVER_SQRT_PI)))
    // Piecewise constant: a zero gradient, not a missing one, as in PyTorch.
    case 'sign':
    case 'floor':
    case 'ceil':
    case 'round':
      return give(x, NOTHING)
    case 'isnan':
    case 'not':
      return
  }
}

function binaryRule(op: e.Binary, a: Expr, b: Expr, y: Expr, d: Expr, give: Give): void {
  switch (op) {
    case 'add':
      give(a, d)
      return give(b, d)
    case 'sub':
      give(a, d)
      return give(b, e.neg(d))
    case 'mul':
      give(a, times(d, b))
      return give(b, times(d, a))
    case 'div':
      give(a, e.div(d, b))
      return give(b, e.neg(times(d, e.div(y, b))))
    case 'pow':
      // b·a^(b−1) is 0 · ∞ at b = 0, and ln a is −∞ at a = 0: both limits are 0.
      give(a, e.select(e.eq(b, 0), 0, times(d, e.mul(b, e.pow(a, e.sub(b, 1))))))
      return give(b, e.select(e.and(e.eq(a, 0), e.ge(b, 0)), 0, times(d, e.mul(y, e.log(a)))))
    case 'max':
    case 'min': {
      // Asked by who loses, so that both sides of a NaN receive the gradient, as in PyTorch.
      const loses = op === 'max' ? e.lt : e.gt
      const share = e.select(e.eq(a, b), e.mul(d, 0.5), d)
      give(a, e.select(loses(a, b), 0, share))
      return give(b, e.select(loses(b, a), 0, share))
    }
    default:
      return
  }
}
