import { addMethods } from '../add-methods.ts'
import { apply, type Op } from '../dispatch/op.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { add, div, mul, reciprocal, rsqrt, square, sub } from './pointwise.ts'
import { type Function1, floating, polynomial, smooth } from './smooth.ts'

/** Angles and hyperbolic functions, each one expression. */

/** The fraction that atan is near 0, as Cephes has it (Moshier 1989): x + x³ · P(x²) / Q(x²), |x| ≤ 0.66. */
const ATAN_P = [
  -0.8750608600031904, -16.157537187333652, -75.00855792314705, -122.88666844901361, -64.85021904942025,
]
const ATAN_Q = [
  1, 24.858464901423062, 165.02700983169885, 432.88106049129027, 485.3903996359137, 194.5506571482614,
]

function arctangent(x: e.Expr): e.Expr {
  const size = e.abs(x)
  const [far, mid] = [e.gt(size, 2.414213562373095), e.gt(size, 0.66)]
  const inner = e.select(far, e.div(-1, size), e.select(mid, e.div(e.sub(size, 1), e.add(size, 1)), size))
  const z = e.square(inner)
  const near = e.add(inner, e.mul(e.mul(inner, z), e.div(polynomial(z, ATAN_P), polynomial(z, ATAN_Q))))
  const from = e.select(far, Math.PI / 2, e.select(mid, Math.PI / 4, 0))
  return e.select(e.lt(x, 0), e.neg(e.add(from, near)), e.select(e.eq(x, 0), x, e.add(from, near)))
}

/**
 * Takes the tangent of angles in radians; integers become float32.
 *
 * @example
 * await tensor([0, Math.PI / 4]).tan().round({ decimals: 4 }).toArray() // → [0, 1]
 */
export const tan: Function1 = smooth(
  'tan',
  (x) => e.div(e.sin(x), e.cos(x)),
  (_, y) => add(square(y), 1),
)

/**
 * Takes the angle in radians, −π/2 … π/2, whose tangent is x; integers become float32.
 *
 * @example
 * await tensor([0, 1]).atan().mul(1e4).round().toArray() // → [0, 7854]
 */
export const atan: Function1 = smooth('atan', arctangent, (x) => reciprocal(add(square(x), 1)))

/**
 * Takes the angle in radians, −π/2 … π/2, whose sine is x; NaN outside −1 … 1. Integers become float32.
 *
 * @example
 * await tensor([0, 1]).asin().mul(1e4).round().toArray() // → [0, 15708]
 */
export const asin: Function1 = smooth(
  'asin',
  (x) => arctangent(e.div(x, e.sqrt(e.mul(e.sub(1, x), e.add(1, x))))),
  (x) => rsqrt(sub(1, square(x))),
)

/**
 * Takes the angle in radians, 0 … π, whose cosine is x; NaN outside −1 … 1. Integers become float32.
 *
 * @example
 * await tensor([1, 0]).acos().mul(1e4).round().toArray() // → [0, 15708]
 */
export const acos: Function1 = smooth(
  'acos',
  (x) => e.mul(2, arctangent(e.sqrt(e.div(e.sub(1, x), e.add(1, x))))),
  (x) => mul(rsqrt(sub(1, square(x))), -1),
)

/** e^(x/2), of which the square would overflow before half of it does. */
const halfExp = (x: e.Expr): e.Expr => e.exp(e.mul(0.5, x))

function hyperbolicSine(x: e.Expr): e.Expr {
  const size = e.abs(x)
  const small = e.lt(size, 1)
  const t = e.expm1(e.select(small, size, 0))
  const near = e.mul(0.5, e.add(t, e.div(t, e.add(t, 1))))
  const h = halfExp(size)
  const far = e.sub(e.mul(e.mul(0.5, h), h), e.div(e.div(0.5, h), h))
  const y = e.select(small, near, far)
  return e.select(e.lt(x, 0), e.neg(y), e.select(e.eq(x, 0), x, y))
}

function hyperbolicCosine(x: e.Expr): e.Expr {
  const h = halfExp(e.abs(x))
  return e.add(e.mul(e.mul(0.5, h), h), e.div(e.div(0.5, h), h))
}

/**
 * Takes the hyperbolic sine, (eˣ − e⁻ˣ) / 2; integers become float32.
 *
 * @example
 * await tensor([0, 1]).sinh().mul(1e4).round().toArray() // → [0, 11752]
 */
export const sinh: Function1 = smooth('sinh', hyperbolicSine, (x) => cosh(x))

/**
 * Takes the hyperbolic cosine, (eˣ + e⁻ˣ) / 2; integers become float32.
 *
 * @example
 * await tensor([0, 1]).cosh().mul(1e4).round().toArray() // → [10000, 15431]
 */
export const cosh: Function1 = smooth('cosh', hyperbolicCosine, (x) => sinh(x))

/** Where x² is beyond what a float holds, its logarithm is enough. */
const huge = 1e9

/**
 * Takes the inverse of `sinh`; integers become float32.
 *
 * @example
 * await tensor([0, 1]).asinh().mul(1e4).round().toArray() // → [0, 8814]
 */
export const asinh: Function1 = smooth(
  'asinh',
  (x) => {
    const size = e.abs(x)
    const far = e.gt(size, huge)
    const s = e.select(far, 1, size)
    const near = e.log1p(e.add(s, e.div(e.square(s), e.add(1, e.sqrt(e.add(1, e.square(s)))))))
    const y = e.select(far, e.add(e.log(size), Math.LN2), near)
    return e.select(e.lt(x, 0), e.neg(y), e.select(e.eq(x, 0), x, y))
  },
  (x) => rsqrt(add(square(x), 1)),
)

/**
 * Takes the inverse of `cosh`; NaN below 1. Integers become float32.
 *
 * @example
 * await tensor([1, 2]).acosh().mul(1e4).round().toArray() // → [0, 13170]
 */
export const acosh: Function1 = smooth(
  'acosh',
  (x) => {
    const far = e.gt(x, huge)
    const t = e.select(far, 1, e.sub(x, 1))
    const near = e.log1p(e.add(t, e.sqrt(e.add(e.mul(2, t), e.square(t)))))
    const y = e.select(far, e.add(e.log(x), Math.LN2), near)
    // Below 1 the root of a negative number.
    return e.select(e.lt(x, 1), e.sqrt(e.sub(x, 1)), y)
  },
  (x) => rsqrt(sub(square(x), 1)),
)

/**
 * Takes the inverse of `tanh`; NaN outside −1 … 1. Integers become float32.
 *
 * @example
 * await tensor([0, 0.5]).atanh().mul(1e4).round().toArray() // → [0, 5493]
 */
export const atanh: Function1 = smooth(
  'atanh',
  (x) => e.mul(0.5, e.log1p(e.div(e.mul(2, x), e.sub(1, x)))),
  (x) => reciprocal(sub(1, square(x))),
)

const ANGLE = program('atan2', 2, ([y, x]) => {
  const [a, b] = [e.abs(y), e.abs(x)]
  const steep = e.gt(a, b)
  // Two that are equally large, also ∞ and 0, lie on a diagonal or nowhere.
  const ratio = e.select(
    e.eq(a, b),
    e.select(e.eq(a, 0), 0, 1),
    e.div(e.select(steep, b, a), e.select(steep, a, b)),
  )
  const first = arctangent(ratio)
  const right = e.select(steep, e.sub(Math.PI / 2, first), first)
  const behind = e.lt(e.div(1, x), 0)
  const size = e.select(e.or(e.lt(x, 0), e.and(e.eq(x, 0), behind)), e.sub(Math.PI, right), right)
  const below = e.or(e.lt(y, 0), e.and(e.eq(y, 0), e.lt(e.div(1, y), 0)))
  const angle = e.select(below, e.neg(size), size)
  return e.select(e.isnan(x), x, e.select(e.isnan(y), y, angle))
})

const ATAN2: Op<object> = {
  name: 'atan2',
  compose: (inputs) => [elementwise(ANGLE, inputs)],
  backward: (node, [d]) => {
    const [y, x] = [node.input(0), node.input(1)]
    const by = d && div(d, add(square(x), square(y)))
    return [by && mul(by, x), by && mul(mul(by, y), -1)]
  },
}

/**
 * Takes the angle in radians, −π … π, of the points (x, y): atan(y / x), in the quadrant that the signs tell. Shapes broadcast;
 * integers become float32.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 0]).atan2(tensor([0, -1])).mul(1e4).round().toArray() // → [15708, 31416]
 */
export const atan2 = (y: Tensor, x: Tensor | ArrayOperand): Tensor =>
  apply(ATAN2, [floating('atan2', y), floating('atan2', asTensor('atan2', x, y))], {})[0]

addMethods({ tan, atan, asin, acos, sinh, cosh, asinh, acosh, atanh, atan2 })
