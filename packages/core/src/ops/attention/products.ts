/**
 * The two products of attention's composition, with what its masks hide left out of both: a hidden key has a weight of
 * 0, and 0 · NaN and 0 · ∞ are NaN. Hidden is what has a score of −∞.
 */

import { apply, type Op } from '../../dispatch/op.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { elementwise } from '../../primitives/elementwise.ts'
import { matmulPrimitive } from '../../primitives/matmul.ts'
import { reduce } from '../../primitives/reduce.ts'
import { transposeView } from '../../primitives/views.ts'
import type { Tensor } from '../../tensor/tensor.ts'

const NAME = 'scaled_dot_product_attention'
const product = (a: Tensor, b: Tensor): Tensor => matmulPrimitive(NAME, a, b)
const turned = (x: Tensor): Tensor => transposeView(x, 2, 3)

const bounded = (x: e.Expr): e.Expr => e.lt(e.abs(x), Infinity)
const number = (condition: e.Expr): e.Expr => e.cast('float32', condition)
const FINITE = program('attention.finite', 1, ([x]) => e.select(bounded(x), x, 0))
/** x with zeros for NaN and ±∞. */
export const finite = (x: Tensor): Tensor => elementwise(FINITE, [x])
/** 1 where x is NaN or the parameter, which is ∞ or −∞. */
const ENDLESS = program('attention.endless', 1, ([x], [end]) => number(e.or(e.isnan(x), e.eq(x, end))), 1)
const NOT_FINITE = program('attention.not_finite', 1, ([x]) => number(e.not(bounded(x))))
const SEEN = program('attention.seen', 1, ([s]) => number(e.not(e.eq(s, -Infinity))))
const ADD_ENDLESS = program('attention.add_endless', 3, ([x, up, down]) =>
  e.sub(e.add(x, e.select(e.gt(up, 0), Infinity, 0)), e.select(e.gt(down, 0), Infinity, 0)),
)
const NAN_WHERE = program('attention.nan_where', 3, ([x, s, bad]) =>
  e.select(e.and(e.gt(bad, 0), e.not(e.eq(s, -Infinity))), Number.NaN, x),
)

/** Inputs q and k; q kᵀ, whose gradient takes in no NaN of a key through a zero. */
const SCORES: Op<object> = {
  name: 'attention.scores',
  compose: ([q, k]) => [product(q, turned(k))],
  backward: (node, [d]) => [
    d && node.needs(0) ? product(d, finite(node.input(1))) : null,
    d && node.needs(1) ? product(turned(d), node.input(0)) : null,
  ],
}

/** Inputs: weights, values, scores; Σ of what is seen. */
const VALUES: Op<object> = {
  name: 'attention.values',
  compose: ([weights, v, s]) => {
    const seen = elementwise(SEEN, [s])
    const endless = (end: number): Tensor => product(seen, elementwise(ENDLESS, [v], [end]))
    return [elementwise(ADD_ENDLESS, [product(weights, finite(v)), endless(Infinity), endless(-Infinity)])]
  },
  backward: (node, [d]) => {
    if (!d) return [null, null, null]
    const v = node.input(1)
    const bad = (): Tensor => turned(reduce('max', elementwise(NOT_FINITE, [v]), [3], true))
    return [
      node.needs(0) ? elementwise(NAN_WHERE, [product(d, turned(finite(v))), node.input(2), bad()]) : null,
      node.needs(1) ? product(turned(node.input(0)), d) : null,
      null,
    ]
  },
}

/** q kᵀ, (B, H, T, D) and (B, H, S, D) → (B, H, T, S); `hides`: some keys will be hidden. */
export const scoresOf = (q: Tensor, k: Tensor, hides: boolean): Tensor =>
  hides ? apply(SCORES, [q, k], {})[0] : product(q, turned(k))

/** weights v, (B, H, T, S) and (B, H, S, Dv) → (B, H, T, Dv); `hides`: keys whose score in `s` is −∞ stay out of it. */
export const valuesOf = (weights: Tensor, v: Tensor, s: Tensor, hides: boolean): Tensor =>
  hides && v.numel > 0 ? apply(VALUES, [weights, v, s.detach()], {})[0] : product(weights, v)
