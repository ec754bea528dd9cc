import { expectOptions } from '../checks.ts'
import { DTypeError, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { type Program, program } from '../expr/program.ts'
import { copy, elementwise } from '../primitives/elementwise.ts'
import { checkFits, isFloat } from '../tensor/dtype.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import { Tensor } from '../tensor/tensor.ts'
import { activations } from './activations.ts'
import { dataSync } from './create.ts'
import { binary, type Operand, unary } from './scalar.ts'

export type { Operand }

/**
 * Elementwise operators: each is one expression. Shapes broadcast by NumPy's rules; dtypes promote (see `promote`);
 * a plain number is as good as a tensor.
 */

/**
 * Negates every element, −x, in x's shape and dtype; bools count as int32.
 *
 * @example
 * await tensor([1, -2]).neg().toArray() // → [-1, 2]
 */
export const neg = unary('neg', e.neg)

/**
 * Takes the absolute value |x| of every element, in x's shape and dtype. The gradient at 0 is 0.
 *
 * @example
 * await tensor([-1.5, 2]).abs().toArray() // → [1.5, 2]
 */
export const abs = unary('abs', e.abs)

/**
 * Gives the sign of every element, −1, 0 or 1, in x's shape; 0 for NaN. Its gradient is 0.
 *
 * @example
 * await tensor([-3, 0, 5]).sign().toArray() // → [-1, 0, 1]
 */
export const sign = unary('sign', e.sign)

/**
 * Rounds every element down to a whole number, in x's shape and dtype. Its gradient is 0.
 *
 * @example
 * await tensor([1.7, -1.2]).floor().toArray() // → [1, -2]
 */
export const floor = unary('floor', e.floor)

/**
 * Rounds every element up to a whole number, in x's shape and dtype. Its gradient is 0.
 *
 * @example
 * await tensor([1.2, -1.7]).ceil().toArray() // → [2, -1]
 */
export const ceil = unary('ceil', e.ceil)
const ROUND = unary('round', e.round)
const scale10 = (up: boolean): Program =>
  program('round', 1, ([x], [s]) => (up ? e.div(e.round(e.mul(x, s)), s) : e.mul(e.round(e.div(x, s)), s)), 1)
const ROUND_UP = scale10(true)
const ROUND_DOWN = scale10(false)

/** Options of `round`. */
export interface RoundOptions {
  /** How many decimals stay; negative counts tens, hundreds … Default: 0. */
  decimals?: number
}

/**
 * Rounds every element to the nearest whole number, half to even, or with `decimals` to so many places after the
 * point. Integers stay as they are; the gradient is 0.
 *
 * @example
 * await tensor([0.5, 1.5, 2.6]).round().toArray() // → [0, 2, 3]
 * await tensor([126, 3]).round({ decimals: -1 }).toArray() // → [130, 0]
 */
export const round = (x: Tensor, options: RoundOptions = {}): Tensor => {
  const { decimals = 0 } = expectOptions('round', options, { decimals: 1 })
  return decimals === 0 || !isFloat(x.dtype)
    ? ROUND(x)
    : elementwise(decimals > 0 ? ROUND_UP : ROUND_DOWN, [x], [10 ** Math.abs(decimals)])
}

const SQUARE = unary('square', e.square)

/**
 * Squares every element, x², in x's shape and dtype; bools give int32, and int32 wraps.
 *
 * @example
 * await tensor([-3, 2]).square().toArray() // → [9, 4]
 */
export const square = (x: Tensor): Tensor => {
  const from = asTensor('square', x)
  return SQUARE(from.dtype === 'bool' ? copy(from, 'int32') : from)
}

/**
 * Takes the square root √x of every element, in x's shape; integers become float32. NaN below 0.
 *
 * @example
 * await tensor([4, 9]).sqrt().toArray() // → [2, 3]
 */
export const sqrt = unary('sqrt', e.sqrt)

/**
 * Takes 1 / √x of every element, in x's shape; integers become float32. NaN below 0, ∞ at 0.
 *
 * @example
 * await tensor([4, 16]).rsqrt().toArray() // → [0.5, 0.25]
 */
export const rsqrt = unary('rsqrt', (x) => e.div(1, e.sqrt(x)))

/**
 * Takes 1 / x of every element, in x's shape; integers become float32.
 *
 * @example
 * await tensor([2, 4]).reciprocal().toArray() // → [0.5, 0.25]
 */
export const reciprocal = unary('reciprocal', (x) => e.div(1, x))

/**
 * Takes the exponential eˣ of every element, in x's shape; integers become float32.
 *
 * @example
 * await tensor([0, 1]).exp().round({ decimals: 2 }).text() // → tensor([1.0000, 2.7200], shape=[2], dtype=float32)
 */
export const exp = unary('exp', e.exp)

/**
 * Takes eˣ − 1 of every element, in x's shape, as exactly near 0 as elsewhere; integers become float32.
 *
 * @example
 * await tensor([0]).expm1().toArray() // → [0]
 */
export const expm1 = unary('expm1', e.expm1)

/**
 * Takes the natural logarithm ln x of every element, in x's shape; integers become float32. −∞ at 0, NaN below.
 *
 * @example
 * await tensor([1, 0]).log().toArray() // → [0, -Infinity]
 */
export const log = unary('log', e.log)

/**
 * Takes ln(1 + x) of every element, in x's shape, as exactly near 0 as elsewhere; integers become float32.
 *
 * @example
 * await tensor([0]).log1p().toArray() // → [0]
 */
export const log1p = unary('log1p', e.log1p)

/**
 * Takes the sine of every element, an angle in radians, in x's shape; integers become float32.
 *
 * @example
 * await tensor([0, Math.PI / 2]).sin().toArray() // → [0, 1]
 */
export const sin = unary('sin', e.sin)

/**
 * Takes the cosine of every element, an angle in radians, in x's shape; integers become float32.
 *
 * @example
 * await tensor([0, Math.PI]).cos().toArray() // → [1, -1]
 */
export const cos = unary('cos', e.cos)

/**
 * Takes the hyperbolic tangent of every element, in x's shape; integers become float32.
 *
 * @example
 * await tensor([0, 50]).tanh().toArray() // → [0, 1]
 */
export const tanh = unary('tanh', e.tanh)

/**
 * Takes 1 / (1 + exp(−x)) of every element, in x's shape; integers become float32.
 *
 * @example
 * await tensor([0, 50]).sigmoid().toArray() // → [0.5, 1]
 */
export const sigmoid = unary('sigmoid', e.sigmoid)

/**
 * Takes the error function 2/√π ∫₀ˣ exp(−t²) dt of every element, in x's shape; integers become float32.
 *
 * @example
 * await tensor([0, 5]).erf().toArray() // → [0, 1]
 */
export const erf = unary('erf', e.erf)

/**
 * Says of every element whether it is NaN: bools in x's shape.
 *
 * @example
 * await tensor([1, NaN]).isnan().toArray() // → [false, true]
 */
export const isnan = unary('isnan', e.isnan)

/**
 * Says of every element whether it is 0 (or false): bools in x's shape.
 *
 * @example
 * await tensor([true, false]).logicalNot().toArray() // → [false, true]
 */
export const logicalNot = unary('logical_not', e.not)

/**
 * Takes max(x, 0) of every element, in x's shape and dtype; NaN stays. The gradient at 0 is 0.
 *
 * @example
 * await tensor([-1, 2]).relu().toArray() // → [0, 2]
 */
export const relu = unary('relu', activations.relu)

/**
 * Takes x · sigmoid(x) of every element, also called swish (Ramachandran et al. 2017), in x's shape.
 *
 * @example
 * await tensor([0, 50]).silu().toArray() // → [0, 50]
 */
export const silu = unary('silu', activations.silu)

const ADD = binary('add', e.add)
const SUB = binary('sub', e.sub)
const scaled = (name: string, f: (a: e.Expr, b: e.Expr) => e.Expr): Program =>
  program(name, 2, ([a, b], [alpha]) => f(a, e.mul(alpha, b)), 1)
const ADD_SCALED = scaled('add', e.add)
const SUB_SCALED = scaled('sub', e.sub)

/** Options of `add` and `sub`. */
export interface AddOptions {
  /** What the second operand is multiplied by first. Default: 1. */
  alpha?: number
}

/**
 * Adds a + alpha · b; shapes broadcast and dtypes promote. Either may be a number, not both.
 *
 * @throws ShapeError if the shapes do not broadcast, DeviceError if the tensors are on different devices.
 * @example
 * await tensor([1, 2]).add(10).toArray() // → [11, 12]
 * await tensor([1, 2]).add(tensor([3, 4]), { alpha: 2 }).toArray() // → [7, 10]
 */
export const add = (a: Operand, b: Operand, options: AddOptions = {}): Tensor => {
  const { alpha = 1 } = expectOptions('add', options, { alpha: 1 })
  return alpha === 1
    ? ADD(a, b)
    : typeof b === 'number'
      ? ADD(a, b * alpha)
      : typeof a === 'number'
        ? ADD(a, mul(b, alpha))
        : elementwise(ADD_SCALED, [a, b], [alpha])
}

/**
 * Subtracts a − alpha · b; shapes broadcast and dtypes promote. Either may be a number, not both.
 *
 * @throws ShapeError if the shapes do not broadcast, DeviceError if the tensors are on different devices.
 * @example
 * await tensor([[1], [2]]).sub(tensor([1, 2])).toArray() // → [[0, -1], [1, 0]]
 * await sub(1, tensor([1, 2])).toArray() // → [0, -1]
 */
export const sub = (a: Operand, b: Operand, options: AddOptions = {}): Tensor => {
  const { alpha = 1 } = expectOptions('sub', options, { alpha: 1 })
  return alpha === 1
    ? SUB(a, b)
    : typeof b === 'number'
      ? SUB(a, b * alpha)
      : typeof a === 'number'
        ? SUB(a, mul(b, alpha))
        : elementwise(SUB_SCALED, [a, b], [alpha])
}

/**
 * Multiplies a · b element by element; shapes broadcast and dtypes promote. Either may be a number, not both. For
 * matrices see `matmul`.
 *
 * @throws ShapeError if the shapes do not broadcast, DeviceError if the tensors are on different devices.
 * @example
 * await tensor([1, 2]).mul(tensor([3, 4])).toArray() // → [3, 8]
 */
export const mul = binary('mul', e.mul)
const DIV = binary('div', e.div)
const TRUNCATED = binary('div', (a, b) => {
  const q = e.div(a, b)
  return e.select(e.lt(q, 0), e.ceil(q), e.floor(q))
})
// A float32 quotient of large integers is off by a little: the quotient of what is left mends that.
const whole = (a: e.Expr, b: e.Expr): { q: e.Expr; left: e.Expr } => {
  const first = e.cast('int32', e.div(a, b))
  const q = e.add(first, e.cast('int32', e.div(e.sub(a, e.mul(first, b)), b)))
  return { q, left: e.sub(a, e.mul(q, b)) }
}
const floorInt = (a: e.Expr, b: e.Expr): e.Expr => {
  const { q, left } = whole(a, b)
  const over = e.and(e.ne(left, 0), e.ne(e.lt(left, 0), e.lt(b, 0)))
  return e.sub(q, e.cast('int32', over))
}
const FLOORED_INT = binary('div', floorInt)
const TRUNCATED_INT = binary('div', (a, b) => {
  const q = floorInt(a, b)
  const under = e.and(e.ne(e.mul(q, b), a), e.ne(e.lt(a, 0), e.lt(b, 0)))
  return e.add(q, e.cast('int32', under))
})
const isWhole = (x: Operand): boolean =>
  typeof x === 'number' ? Number.isInteger(x) : !isFloat(asTensor('div', x).dtype)

/**
 * ⌊a / b⌋ of floats with `digits` binary digits, by long division: every step is exact, where a rounded quotient may
 * have reached the next whole number (1 / 0.1 in float32). Quotients of more digits have no fraction left to round by.
 */
const longDivision = (digits: number): ((a: Operand, b: Operand) => Tensor) =>
  binary('div', (a, b) => {
    const [x, y, rough] = [e.abs(a), e.abs(b), e.div(a, b)]
    const zero = e.mul(rough, 0)
    let [q, left]: [e.Expr, e.Expr] = [zero, x]
    for (let power = 2 ** (digits - 1); power >= 1; power /= 2) {
      const part = e.mul(y, power)
      const fits = e.ge(left, part)
      q = e.add(q, e.select(fits, power, 0))
      left = e.sub(left, e.select(fits, part, 0))
    }
    const opposite = e.ne(e.lt(a, 0), e.lt(b, 0))
    const whole = e.select(opposite, e.neg(e.add(q, e.select(e.gt(left, 0), 1, 0))), q)
    // Infinity over a number has no remainder to round by: NaN, as in Python. Spelled out: drivers take ∞ − ∞ for 0.
    const large = e.select(e.and(e.eq(x, Infinity), e.ne(b, 0)), Number.NaN, rough)
    const small = e.and(e.lt(e.abs(rough), 2 ** digits), e.lt(x, Infinity))
    // The rounding around it all says that the gradient is 0.
    return e.floor(e.select(small, e.select(e.eq(whole, 0), zero, whole), large))
  })
const lazily = <T>(make: () => T): (() => T) => {
  let made: T | undefined
  return () => {
    made ??= make()
    return made
  }
}
const FLOORED = lazily(() => longDivision(24))
const FLOORED_64 = lazily(() => longDivision(53))
const isDouble = (x: Tensor | number): boolean => typeof x !== 'number' && x.dtype === 'float64'

/** Integers have no infinity to answer with: PyTorch's ZeroDivisionError, where the engine can look. */
function refuseZero(b: Tensor | number): void {
  const zero = typeof b === 'number' ? b === 0 : b.backend.readSync && dataSync(b).includes(0)
  if (zero)
    throw new ValueError('div: integer division by zero; divide floats (.to("float32")) for ∞ and NaN')
}

/** Options of `div`. */
export interface DivOptions {
  /** Round the quotient down or towards 0; it then keeps integers as int32, and its gradient is 0. */
  roundingMode?: 'floor' | 'trunc' | null
}

/**
/**
 * Divides a / b element by element; shapes broadcast. The result is floating, unless a rounding mode is given: `'floor'` is
 * Python's `//`, the exact quotient rounded down (1 // 0.1 is 9; NaN of an infinite a), `'trunc'` cuts the rounded
 * quotient. Either may be a number, not both.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for an unknown rounding mode, and for integers divided by 0
 * with one. WebGPU cannot look into a divisor that is a tensor: its integers over 0 are unspecified.
 * @example
 * await tensor([1, 2]).div(2).toArray() // → [0.5, 1]
 * await tensor([-7, 7]).div(2, { roundingMode: 'floor' }).toArray() // → [-4, 3]
 */
export function div(a: Operand, b: Operand, options: DivOptions = {}): Tensor {
  const { roundingMode = null } = expectOptions('div', options, { roundingMode: 1 })
  if (roundingMode === null) return DIV(a, b)
  const like = a instanceof Tensor ? a : b instanceof Tensor ? b : undefined
  const [x, y] = [a, b].map((t) => (typeof t === 'number' ? t : asTensor('div', t, like)))
  const int = isWhole(x) && isWhole(y)
  if (int) refuseZero(y)
  if (roundingMode === 'floor')
    return int ? FLOORED_INT(x, y) : (isDouble(x) || isDouble(y) ? FLOORED_64() : FLOORED())(x, y)
  if (roundingMode === 'trunc') return int ? TRUNCATED_INT(x, y) : TRUNCATED(x, y)
  throw new ValueError(`div: roundingMode must be 'floor', 'trunc' or null, not '${String(roundingMode)}'`)
}
const POW = binary('pow', e.pow)

/**
 * Raises a to the power b, element by element; shapes broadcast, dtypes promote, int32 wraps. Either may be a
 * number, not both. Negative powers of integers in a tensor are cut to whole numbers, as in PyTorch.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for integers to a negative whole number.
 * @example
 * await tensor([2, 3]).pow(2).toArray() // → [4, 9]
 */
export function pow(a: Operand, b: Operand): Tensor {
  if (typeof b === 'number' && b < 0 && isWhole(a) && isWhole(b))
    throw new ValueError(`pow: integers to the power ${b} are no integers; convert with .to('float32')`)
  return POW(a, b)
}

/**
 * Takes the larger of two, element by element; shapes broadcast. NaN if either is NaN; where both are equal each
 * gets half of the gradient.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 5]).maximum(3).toArray() // → [3, 5]
 */
export const maximum = binary('maximum', e.max)

/**
 * Takes the smaller of two, element by element; shapes broadcast. NaN if either is NaN; where both are equal each
 * gets half of the gradient.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 5]).minimum(3).toArray() // → [1, 3]
 */
export const minimum = binary('minimum', e.min)

/**
 * Compares a = b, element by element: bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2]).eq(2).toArray() // → [false, true]
 */
export const eq = binary('eq', e.eq)

/**
 * Compares a ≠ b, element by element: bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2]).ne(2).toArray() // → [true, false]
 */
export const ne = binary('ne', e.ne)

/**
 * Compares a < b, element by element: bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2]).lt(2).toArray() // → [true, false]
 */
export const lt = binary('lt', e.lt)

/**
 * Compares a ≤ b, element by element: bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2, 3]).le(2).toArray() // → [true, true, false]
 */
export const le = binary('le', e.le)

/**
 * Compares a > b, element by element: bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2]).gt(1).toArray() // → [false, true]
 */
export const gt = binary('gt', e.gt)

/**
 * Compares a ≥ b, element by element: bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 2, 3]).ge(2).toArray() // → [false, true, true]
 */
export const ge = binary('ge', e.ge)

/**
 * Says whether both elements are not 0 (or true): bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 0]).logicalAnd(tensor([1, 1])).toArray() // → [true, false]
 */
export const logicalAnd = binary('logical_and', (a, b) => e.and(e.cast('bool', a), e.cast('bool', b)))

/**
 * Says whether at least one of two elements is not 0 (or true): bools; shapes broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([1, 0]).logicalOr(tensor([0, 0])).toArray() // → [true, false]
 */
export const logicalOr = binary('logical_or', (a, b) => e.or(e.cast('bool', a), e.cast('bool', b)))

// The gradient passes where lo ≤ x ≤ hi, ends included; where lo > hi the result is hi, as in PyTorch.
const above = (x: e.Expr, lo: e.Expr): e.Expr => e.select(e.or(e.lt(x, lo), e.isnan(lo)), lo, x)
const below = (x: e.Expr, hi: e.Expr): e.Expr => e.select(e.or(e.gt(x, hi), e.isnan(hi)), hi, x)
const MIN = binary('clamp', above)
const MAX = binary('clamp', below)
const CLAMP = program('clamp', 1, ([x], [lo, hi]) => below(above(x, lo), hi), 2)
const CLAMP_TENSORS = program('clamp', 3, ([x, lo, hi]) => below(above(x, lo), hi))

/**
 * Limits x to [min, max], each a number or a tensor that broadcasts; either may be missing (undefined or null).
 * NaN stays, and a limit that is NaN gives NaN. The gradient passes where x lies within the limits, ends included.
 *
 * @throws ValueError if both limits are missing, ShapeError if the shapes do not broadcast.
 * @example
 * await tensor([-2, 0.5, 3]).clamp(0, 1).toArray() // → [0, 0.5, 1]
 * await tensor([-2, 3]).clamp(null, 1).toArray() // → [-2, 1]
 */
export function clamp(x: Tensor, min?: Operand | null, max?: Operand | null): Tensor {
  const hasMin = min !== undefined && min !== null
  const hasMax = max !== undefined && max !== null
  if (hasMin && hasMax) {
    if (typeof min === 'number' && typeof max === 'number') return elementwise(CLAMP, [x], [min, max])
    if (typeof min !== 'number' && typeof max !== 'number') return elementwise(CLAMP_TENSORS, [x, min, max])
    return MAX(MIN(x, min), max)
  }
  if (hasMin) return MIN(x, min)
  if (hasMax) return MAX(x, max)
  throw new ValueError('clamp: needs min, max or both')
}

const WHERE = program('where', 3, ([c, a, b]) => e.select(c, a, b))
const WHERE_A = program('where', 2, ([c, a], [b]) => e.select(c, a, b), 1)
const WHERE_B = program('where', 2, ([c, b], [a]) => e.select(c, a, b), 1)
const WHERE_NONE = program('where', 1, ([c], [a, b]) => e.select(c, a, b), 2)

/** Makes a mask. 0 and 1 of another dtype are refused, as in PyTorch: they may be meant the other way, or to be added. */
function boolOf(op: string, what: string, x: Tensor | ArrayOperand, like?: Operand): Tensor {
  const mask = asTensor(op, x, like instanceof Tensor ? like : undefined, 'bool')
  if (mask.dtype !== 'bool')
    throw new DTypeError(`${op}: the ${what} must be bool, not ${mask.dtype}; convert it with .to('bool')`)
  return mask
}

/**
 * Takes the elements of a where the bool condition is true, those of b elsewhere; all three broadcast.
 *
 * @throws ShapeError if the shapes do not broadcast; DTypeError for a condition that is not bool.
 * @example
 * const x = tensor([-1, 2])
 * await where(x.gt(0), x, 0).toArray() // → [0, 2]
 */
export function where(condition: Tensor | ArrayOperand, a: Operand, b: Operand): Tensor {
  const c = boolOf('where', 'condition', condition, a instanceof Tensor ? a : b)
  if (typeof a === 'number') {
    return typeof b === 'number' ? elementwise(WHERE_NONE, [c], [a, b]) : elementwise(WHERE_B, [c, b], [a])
  }
  return typeof b === 'number' ? elementwise(WHERE_A, [c, a], [b]) : elementwise(WHERE, [c, a, b])
}

const FILL = program('masked_fill', 2, ([x, mask], [v]) => e.select(mask, v, x), 1)
const FILL_TENSOR = program('masked_fill', 3, ([x, mask, v]) => e.select(mask, v, x))

/**
 * Puts `value`, a number or a scalar tensor, where the mask (bool, broadcast to x) is true, and keeps x elsewhere,
 * in x's shape and dtype.
 *
 * @throws ShapeError if the shapes do not broadcast; DTypeError for a mask that is not bool, and for a value that x's dtype
 * cannot hold, as −∞ in int32.
 * @example
 * await tensor([1, 2]).maskedFill(tensor([true, false]), 0).toArray() // → [0, 2]
 */
export function maskedFill(x: Tensor, mask: Tensor | ArrayOperand, value: Operand): Tensor {
  const where = boolOf('masked_fill', 'mask', mask, x)
  if (typeof value === 'number') {
    checkFits('masked_fill', value, x.dtype)
    return elementwise(FILL, [x, where], [value], x.dtype)
  }
  const v = asTensor('masked_fill', value, x)
  if (isFloat(v.dtype) && !isFloat(x.dtype))
    throw new DTypeError(`masked_fill: a value of ${v.dtype} cannot be stored in ${x.dtype}`)
  return elementwise(FILL_TENSOR, [x, where, v], [], x.dtype)
}

const LEAKY = program('leaky_relu', 1, ([x], [slope]) => e.select(e.gt(x, 0), x, e.mul(slope, x)), 1)

/** Options of `leakyRelu`. */
export interface LeakyReluOptions {
  /** The slope below 0. Default: 0.01. */
  negativeSlope?: number
}

/**
 * Takes x for x > 0, else negativeSlope · x, of every element, in x's shape.
 *
 * @example
 * await tensor([-2, 2]).leakyRelu({ negativeSlope: 0.5 }).toArray() // → [-1, 2]
 */
export const leakyRelu = (x: Tensor, options: LeakyReluOptions = {}): Tensor => {
  const { negativeSlope = 0.01 } = expectOptions('leaky_relu', options, { negativeSlope: 1 })
  return elementwise(LEAKY, [x], [negativeSlope])
}

// The branch not taken must stay finite: its gradient is 0 times what it has, and 0 · ∞ is NaN.
const ELU = program(
  'elu',
  1,
  ([x], [alpha]) => e.select(e.le(x, 0), e.mul(alpha, e.expm1(e.select(e.le(x, 0), x, 0))), x),
  1,
)

/** Options of `elu`. */
export interface EluOptions {
  /** What exp(x) − 1 is multiplied by below 0. Default: 1. */
  alpha?: number
}

/**
 * Takes x for x > 0, else alpha · (exp(x) − 1), of every element (Clevert et al. 2016), in x's shape.
 *
 * @example
 * await tensor([-50, 2]).elu({ alpha: 0.5 }).toArray() // → [-0.5, 2]
 */
export const elu = (x: Tensor, options: EluOptions = {}): Tensor => {
  const { alpha = 1 } = expectOptions('elu', options, { alpha: 1 })
  return elementwise(ELU, [x], [alpha])
}

const SOFTPLUS = program(
  'softplus',
  1,
  ([x], [beta, threshold]) => {
    const z = e.mul(x, beta)
    const linear = e.gt(z, threshold)
    return e.select(linear, x, e.div(e.log1p(e.exp(e.select(linear, 0, z))), beta))
  },
  2,
)

/** Options of `softplus`. */
export interface SoftplusOptions {
  /** The larger, the nearer to relu. Default: 1. */
  beta?: number
  /** The value of beta · x above which the result is x itself. Default: 20. */
  threshold?: number
}

/**
 * Takes ln(1 + exp(beta · x)) / beta of every element, a smooth relu, in x's shape; x itself where beta · x >
 * threshold.
 *
 * @example
 * await tensor([-200, 30]).softplus().toArray() // → [0, 30]
 */
export const softplus = (x: Tensor, options: SoftplusOptions = {}): Tensor => {
  const { beta = 1, threshold = 20 } = expectOptions('softplus', options, { beta: 1, threshold: 1 })
  return elementwise(SOFTPLUS, [x], [beta, threshold])
}

const GELU = program('gelu', 1, ([x]) => activations.gelu(x))
const GELU_TANH = program('gelu', 1, ([x]) => activations.gelu_tanh(x))

/** Options of `gelu`. */
export interface GeluOptions {
  /** 'none' computes Φ by erf; 'tanh' is the approximation that GPT-2 was trained with. Default: 'none'. */
  approximate?: 'none' | 'tanh'
}

/**
 * Takes x · Φ(x) of every element (Hendrycks & Gimpel 2016), in x's shape, exactly or with `{ approximate: 'tanh'
 * }` as GPT-2 does.
 *
 * @throws ValueError for an unknown approximation.
 * @example
 * await tensor([-50, 0, 50]).gelu().toArray() // → [0, 0, 50]
 */
export function gelu(x: Tensor, options: GeluOptions = {}): Tensor {
  const { approximate = 'none' } = expectOptions('gelu', options, { approximate: 1 })
  if (approximate !== 'none' && approximate !== 'tanh')
    throw new ValueError(`gelu: approximate must be 'none' or 'tanh', not '${String(approximate)}'`)
  return elementwise(approximate === 'tanh' ? GELU_TANH : GELU, [x])
}
