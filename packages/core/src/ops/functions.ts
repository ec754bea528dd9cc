import { addMethods } from '../add-methods.ts'
import { describe, expectOptions } from '../checks.ts'
import { DTypeError, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { type Program, program } from '../expr/program.ts'
import { copy, elementwise } from '../primitives/elementwise.ts'
import { isFloat } from '../tensor/dtype.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import { item } from './create.ts'
import { clamp, div, exp, mul, square, sub } from './pointwise.ts'
import { all } from './reduction.ts'
import { binary, type Operand, unary } from './scalar.ts'
import { type Function1, floating, polynomial, smooth } from './smooth.ts'

/** More scalar functions, each one expression: those that not every program needs. */

type Function2 = (a: Operand, b: Operand) => Tensor

/**
 * Takes the logarithm to base 2; integers become float32.
 *
 * @example
 * await tensor([1, 8]).log2().round({ decimals: 4 }).toArray() // → [0, 3]
 */
export const log2: Function1 = unary('log2', (x) => e.mul(e.log(x), Math.LOG2E))

/**
 * Takes the logarithm to base 10; integers become float32.
 *
 * @example
 * await tensor([1, 100]).log10().round({ decimals: 4 }).toArray() // → [0, 2]
 */
export const log10: Function1 = unary('log10', (x) => e.mul(e.log(x), Math.LOG10E))

/**
 * Raises 2 to the power of each element; integers become float32.
 *
 * @example
 * await tensor([0, 3]).exp2().toArray() // → [1, 8]
 */
export const exp2 = (x: Tensor): Tensor => elementwise(EXP2, [floating('exp2', x)])
const EXP2 = program('exp2', 1, ([x]) => e.pow(2, x))

const cut = (x: e.Expr): e.Expr => e.select(e.lt(x, 0), e.ceil(x), e.floor(x))

/**
 * Cuts fractions off, towards 0. Its gradient is 0.
 *
 * @example
 * await tensor([1.7, -1.7]).trunc().toArray() // → [1, -1]
 */
export const trunc: Function1 = unary('trunc', cut)

const FRACTION = program('frac', 1, ([x]) => e.sub(x, cut(x)))

/**
 * Takes what `trunc` cuts off, with the element's sign.
 *
 * @throws DTypeError for integers, which have no fraction.
 * @example
 * await tensor([1.5, -1.5]).frac().toArray() // → [0.5, -0.5]
 */
export function frac(x: Tensor): Tensor {
  const t = asTensor('frac', x)
  if (!isFloat(t.dtype))
    throw new DTypeError(`frac: ${t.dtype} has no fractions; convert with .to('float32')`)
  return elementwise(FRACTION, [t])
}

/**
 * Says which elements are infinite, as bools.
 *
 * @example
 * await tensor([1, -Infinity]).isinf().toArray() // → [false, true]
 */
export const isinf: Function1 = unary('isinf', (x) => e.eq(e.abs(x), Infinity))

/**
 * Says which elements are neither infinite nor NaN, as bools.
 *
 * @example
 * await tensor([1, Infinity, NaN]).isfinite().toArray() // → [true, false, false]
 */
export const isfinite: Function1 = unary('isfinite', (x) => e.lt(e.abs(x), Infinity))

/**
 * Says which elements are ∞, as bools.
 *
 * @example
 * await tensor([Infinity, -Infinity]).isposinf().toArray() // → [true, false]
 */
export const isposinf: Function1 = unary('isposinf', (x) => e.eq(x, Infinity))

/**
 * Says which elements are −∞, as bools.
 *
 * @example
 * await tensor([Infinity, -Infinity]).isneginf().toArray() // → [false, true]
 */
export const isneginf: Function1 = unary('isneginf', (x) => e.eq(x, -Infinity))

/**
 * Limits x to [min, max]: PyTorch's other name of `clamp`.
 *
 * @throws ValueError if both limits are missing, ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([-2, 0.5, 3]).clip(0, 1).toArray() // → [0, 0.5, 1]
 */
export const clip = (x: Tensor, min?: Operand | null, max?: Operand | null): Tensor => clamp(x, min, max)

/**
 * Takes 1 − erf(x), the share of a normal distribution that lies outside; integers become float32.
 *
 * @example
 * await tensor([0]).erfc().toArray() // → [1]
 */
export const erfc: Function1 = unary('erfc', (x) => e.sub(1, e.erf(x)))

// Giles 2010, "Approximating the erfinv function", in single precision: polynomials in w = −ln((1 − x)(1 + x)).
const INNER = [
  2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4, -1.25372503e-3, -4.17768164e-3,
  0.246640727, 1.50140941,
]
const OUTER = [
  -2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3, -7.6224613e-3, 9.43887047e-3,
  1.00167406, 2.83297682,
]

/**
 * Takes the inverse of `erf`; NaN outside −1 … 1. Integers become float32.
 *
 * @example
 * await tensor([0, 0.5]).erfinv().mul(1e4).round().toArray() // → [0, 4769]
 */
export const erfinv: Function1 = smooth(
  'erfinv',
  (x) => {
    const w = e.neg(e.log(e.mul(e.sub(1, x), e.add(1, x))))
    const inner = e.lt(w, 5)
    const rough = e.mul(
      e.select(
        inner,
        polynomial(e.sub(w, 2.5), INNER),
        polynomial(e.sub(e.sqrt(e.select(inner, 5, w)), 3), OUTER),
      ),
      x,
    )
    // One of Newton's steps where erf still tells numbers apart.
    const step = e.div(e.sub(e.erf(rough), x), e.mul(2 / Math.sqrt(Math.PI), e.exp(e.neg(e.square(rough)))))
    const y = e.select(inner, e.sub(rough, step), rough)
    return e.select(e.eq(e.abs(x), 1), e.div(x, e.sub(1, e.abs(x))), y)
  },
  (_, y) => mul(exp(square(y)), Math.sqrt(Math.PI) / 2),
)

/** Options of `nanToNum`. */
export interface NanToNumOptions {
  /** What stands for NaN. Default: 0. */
  nan?: number
  /** What stands for ∞. Default: the largest number of float32. */
  posinf?: number
  /** What stands for −∞. Default: the smallest number of float32. */
  neginf?: number
}

const NUMBERS = program(
  'nan_to_num',
  1,
  ([x], [nan, high, low]) =>
    e.select(e.isnan(x), nan, e.select(e.eq(x, Infinity), high, e.select(e.eq(x, -Infinity), low, x))),
  3,
)

/**
 * Puts numbers in the place of NaN and infinities, in x's dtype.
 *
 * @example
 * await tensor([NaN, Infinity, 2]).nanToNum({ posinf: 9 }).toArray() // → [0, 9, 2]
 */
export function nanToNum(x: Tensor, options: NanToNumOptions = {}): Tensor {
  const { nan = 0, posinf, neginf } = expectOptions('nan_to_num', options, { nan: 1, posinf: 1, neginf: 1 })
  const t = asTensor('nan_to_num', x)
  if (!isFloat(t.dtype)) return copy(t)
  const most =
    { float64: Number.MAX_VALUE, float16: 65504, bfloat16: 3.3895313892515355e38 }[t.dtype as string] ??
    3.4028234663852886e38
  return elementwise(NUMBERS, [t], [nan, posinf ?? most, neginf ?? -most], t.dtype)
}

const quotient = (a: Operand, b: Operand, roundingMode: 'floor' | 'trunc'): Tensor =>
  div(a, b, { roundingMode })

/** a − ⌊a / b⌋ · b, as one operator, which rounds once. */
function left(op: string, a: Operand, b: Operand, roundingMode: 'floor' | 'trunc'): Tensor {
  const tensors = [a, b].filter((x) => typeof x !== 'number')
  return composed(op, tensors, (given) => {
    const [x, y] = [typeof a === 'number' ? a : given[0], typeof b === 'number' ? b : given[given.length - 1]]
    return [sub(x, mul(quotient(x, y, roundingMode).detach(), y))]
  })[0]
}

/**
 * Takes what is left of a / b rounded down, with the sign of b, as Python's %: a − ⌊a / b⌋ · b. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([5, -5]).remainder(3).toArray() // → [2, 1]
 */
export const remainder: Function2 = (a, b) => left('remainder', a, b, 'floor')

/**
 * Takes what is left of a / b rounded towards 0, with the sign of a, as JavaScript's %: a − trunc(a / b) · b. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([5, -5]).fmod(3).toArray() // → [2, -2]
 */
export const fmod: Function2 = (a, b) => left('fmod', a, b, 'trunc')

/**
 * Divides and rounds down: ⌊a / b⌋. Shapes broadcast; integers stay integers.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([5, -5]).floorDivide(3).toArray() // → [1, -2]
 */
export const floorDivide: Function2 = (a, b) => quotient(a, b, 'floor')

const between = (a: e.Expr, b: e.Expr, w: e.Expr): e.Expr => {
  const d = e.sub(b, a)
  return e.select(e.lt(w, 0.5), e.add(a, e.mul(w, d)), e.sub(b, e.mul(d, e.sub(1, w))))
}
const LERP = program('lerp', 2, ([a, b], [w]) => between(a, b, w), 1)
const LERP_TENSOR = program('lerp', 3, ([a, b, w]) => between(a, b, w))

/**
 * Goes from a to b by a weight: a + weight · (b − a); weight 0 is a, 1 is b. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([0, 10]).lerp(tensor([10, 20]), 0.5).toArray() // → [5, 15]
 */
export function lerp(a: Tensor, b: Tensor | ArrayOperand, weight: Operand): Tensor {
  const by = typeof weight === 'number' ? [] : [weight]
  return composed('lerp', [a, b, ...by], (given) => [
    typeof weight === 'number' ? elementwise(LERP, given, [weight]) : elementwise(LERP_TENSOR, given),
  ])[0]
}

/**
 * Takes ln(eᵃ + eᵇ) without overflow. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1000]).logaddexp(tensor([0])).toArray() // → [1000]
 */
export const logaddexp: Function2 = binary('logaddexp', (a, b) => {
  // Two infinities of one sign have no difference.
  const same = e.eq(a, b)
  const apart = e.select(same, 0, e.neg(e.abs(e.sub(a, b))))
  return e.add(e.max(a, b), e.log1p(e.exp(apart)))
})

/**
 * Takes √(a² + b²) without overflow of the squares. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([3]).hypot(tensor([4])).toArray() // → [5]
 */
export const hypot: Function2 = binary('hypot', (a, b) => {
  const [x, y] = [e.abs(a), e.abs(b)]
  const large = e.max(x, y)
  const none = e.eq(large, 0)
  const [p, q] = [x, y].map((v) => e.div(v, e.select(none, 1, large))) as [e.Expr, e.Expr]
  const ends = e.or(e.eq(x, Infinity), e.eq(y, Infinity))
  return e.select(
    ends,
    Infinity,
    e.select(none, 0, e.mul(large, e.sqrt(e.select(none, 1, e.add(e.square(p), e.square(q)))))),
  )
})

/**
 * Says where exactly one of two is not 0, as bools. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 1, 0]).logicalXor(tensor([1, 0, 0])).toArray() // → [false, true, false]
 */
export const logicalXor: Function2 = binary('logical_xor', (a, b) =>
  e.xor(e.cast('bool', a), e.cast('bool', b)),
)

/** Options of `isclose` and `allclose`. */
export interface CloseOptions {
  /** What they may differ by, as a share of the second. Default: 1e-5. */
  rtol?: number
  /** What they may differ by besides. Default: 1e-8. */
  atol?: number
  /** Whether two NaN count as close. Default: false. */
  equalNan?: boolean
}

const CLOSE = program(
  'isclose',
  2,
  ([a, b], [rtol, atol, nan]) => {
    const off = e.abs(e.sub(a, b))
    const near = e.and(e.lt(e.abs(b), Infinity), e.le(off, e.add(atol, e.mul(rtol, e.abs(b)))))
    return e.or(e.or(e.eq(a, b), near), e.and(e.ne(nan, 0), e.and(e.isnan(a), e.isnan(b))))
  },
  3,
)

/**
 * Says which elements of two tensors are close, |a − b| ≤ atol + rtol · |b|, as bools. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2]).isclose(tensor([1.000001, 2.1])).toArray() // → [true, false]
 */
export function isclose(a: Tensor, b: Tensor | ArrayOperand, options: CloseOptions = {}): Tensor {
  const {
    rtol = 1e-5,
    atol = 1e-8,
    equalNan = false,
  } = expectOptions('isclose', options, {
    rtol: 1,
    atol: 1,
    equalNan: 1,
  })
  for (const t of [rtol, atol])
    if (!(t >= 0)) throw new ValueError(`isclose: rtol and atol must be ≥ 0, got ${describe(t)}`)
  const [x, y] = [floating('isclose', a), floating('isclose', asTensor('isclose', b, a))]
  return elementwise(CLOSE, [x, y], [rtol + 0, atol + 0, Number(equalNan)])
}

/**
 * Says whether all elements of two tensors are close, |a − b| ≤ atol + rtol · |b|. It reads the answer.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2]).allclose(tensor([1, 2.000001])) // → true
 */
export async function allclose(
  a: Tensor,
  b: Tensor | ArrayOperand,
  options: CloseOptions = {},
): Promise<boolean> {
  return (await item(all(isclose(a, b, options)))) !== 0
}

/**
 * Adds value · a · b to x element by element. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1]).addcmul(tensor([2]), tensor([3]), { value: 2 }).toArray() // → [13]
 */
export function addcmul(x: Tensor, a: Tensor, b: Tensor, options: { value?: number } = {}): Tensor {
  const { value = 1 } = expectOptions('addcmul', options, { value: 1 })
  return elementwise(ADDCMUL, [x, a, b], [value])
}
const ADDCMUL: Program = program('addcmul', 3, ([x, a, b], [v]) => e.add(x, e.mul(v, e.mul(a, b))), 1)

/**
 * Adds value · a / b to x element by element. Shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1]).addcdiv(tensor([6]), tensor([3]), { value: 2 }).toArray() // → [5]
 */
export function addcdiv(x: Tensor, a: Tensor, b: Tensor, options: { value?: number } = {}): Tensor {
  const { value = 1 } = expectOptions('addcdiv', options, { value: 1 })
  return elementwise(ADDCDIV, [x, a, b], [value])
}
const ADDCDIV: Program = program('addcdiv', 3, ([x, a, b], [v]) => e.add(x, e.mul(v, e.div(a, b))), 1)

addMethods({
  clip,
  isposinf,
  isneginf,
  log2,
  log10,
  exp2,
  trunc,
  frac,
  isinf,
  isfinite,
  erfc,
  erfinv,
  nanToNum,
  remainder,
  fmod,
  floorDivide,
  lerp,
  logaddexp,
  hypot,
  logicalXor,
  isclose,
  allclose,
  addcmul,
  addcdiv,
})
