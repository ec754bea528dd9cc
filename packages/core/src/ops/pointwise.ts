import { isFloat } from '../dtype.ts'
import { ValueError } from '../errors.ts'
import * as e from '../expr.ts'
import { copy, elementwise } from '../primitives/elementwise.ts'
import { type Program, program } from '../program.ts'
import type { Tensor } from '../tensor.ts'
import { activations } from './activations.ts'

/**
 * Elementwise operators: each is one expression. Shapes broadcast by NumPy's rules; dtypes promote (see `promote`);
 * a plain number is as good as a tensor.
 */

/** What stands on the right of an operator. */
export type Operand = Tensor | number

const unary = (name: string, f: (x: e.Expr) => e.Expr): ((x: Tensor) => Tensor) => {
  const p = program(name, 1, ([x]) => f(x))
  return (x) => elementwise(p, [x])
}

const binary = (name: string, f: (a: e.Expr, b: e.Expr) => e.Expr): ((a: Operand, b: Operand) => Tensor) => {
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

/** −x */
export const neg = unary('neg', e.neg)
/** |x|; the gradient at 0 is 0 */
export const abs = unary('abs', e.abs)
/** −1, 0 or 1; 0 for NaN */
export const sign = unary('sign', e.sign)
export const floor = unary('floor', e.floor)
export const ceil = unary('ceil', e.ceil)
const ROUND = unary('round', e.round)
const scale10 = (up: boolean): Program =>
  program('round', 1, ([x], [s]) => (up ? e.div(e.round(e.mul(x, s)), s) : e.mul(e.round(e.div(x, s)), s)), 1)
const ROUND_UP = scale10(true)
const ROUND_DOWN = scale10(false)

export interface RoundOptions {
  /** How many decimals stay; negative counts tens, hundreds … Default: 0. */
  decimals?: number
}

/** Nearest whole number, half to even; or that of x · 10^decimals, over 10^decimals. Integers stay as they are. */
export const round = (x: Tensor, options: RoundOptions = {}): Tensor => {
  const { decimals = 0 } = options
  return decimals === 0 || !isFloat(x.dtype)
    ? ROUND(x)
    : elementwise(decimals > 0 ? ROUND_UP : ROUND_DOWN, [x], [10 ** Math.abs(decimals)])
}

const SQUARE = unary('square', e.square)
/** x²; of bools int32 */
export const square = (x: Tensor): Tensor => SQUARE(x.dtype === 'bool' ? copy(x, 'int32') : x)
export const sqrt = unary('sqrt', e.sqrt)
/** 1 / √x */
export const rsqrt = unary('rsqrt', (x) => e.div(1, e.sqrt(x)))
/** 1 / x */
export const reciprocal = unary('reciprocal', (x) => e.div(1, x))
export const exp = unary('exp', e.exp)
/** exp(x) − 1, accurate near 0 */
export const expm1 = unary('expm1', e.expm1)
/** Natural logarithm */
export const log = unary('log', e.log)
/** ln(1 + x), accurate near 0 */
export const log1p = unary('log1p', e.log1p)
export const sin = unary('sin', e.sin)
export const cos = unary('cos', e.cos)
export const tanh = unary('tanh', e.tanh)
/** 1 / (1 + exp(−x)) */
export const sigmoid = unary('sigmoid', e.sigmoid)
/** 2/√π ∫₀ˣ exp(−t²) dt */
export const erf = unary('erf', e.erf)
/** bool: is the element NaN? */
export const isnan = unary('isnan', e.isnan)
/** bool: is the element 0? */
export const logicalNot = unary('logical_not', e.not)
/** max(x, 0); NaN stays */
export const relu = unary('relu', activations.relu)
/** x · sigmoid(x) (Ramachandran et al. 2017) */
export const silu = unary('silu', activations.silu)

const ADD = binary('add', e.add)
const SUB = binary('sub', e.sub)
const scaled = (name: string, f: (a: e.Expr, b: e.Expr) => e.Expr): Program =>
  program(name, 2, ([a, b], [alpha]) => f(a, e.mul(alpha, b)), 1)
const ADD_SCALED = scaled('add', e.add)
const SUB_SCALED = scaled('sub', e.sub)

export interface AddOptions {
  /** What the second operand is multiplied by first. Default: 1. */
  alpha?: number
}

/** a + alpha · b */
export const add = (a: Operand, b: Operand, options: AddOptions = {}): Tensor => {
  const { alpha = 1 } = options
  return alpha === 1
    ? ADD(a, b)
    : typeof b === 'number'
      ? ADD(a, b * alpha)
      : typeof a === 'number'
        ? ADD(a, mul(b, alpha))
        : elementwise(ADD_SCALED, [a, b], [alpha])
}

/** a − alpha · b */
export const sub = (a: Operand, b: Operand, options: AddOptions = {}): Tensor => {
  const { alpha = 1 } = options
  return alpha === 1
    ? SUB(a, b)
    : typeof b === 'number'
      ? SUB(a, b * alpha)
      : typeof a === 'number'
        ? SUB(a, mul(b, alpha))
        : elementwise(SUB_SCALED, [a, b], [alpha])
}

/** a · b */
export const mul = binary('mul', e.mul)
const DIV = binary('div', e.div)
const FLOORED = binary('div', (a, b) => e.floor(e.div(a, b)))
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
const isWhole = (x: Operand): boolean => (typeof x === 'number' ? Number.isInteger(x) : !isFloat(x.dtype))

export interface DivOptions {
  /** Round the quotient down or towards 0; it then keeps integers as int32, and its gradient is 0. */
  roundingMode?: 'floor' | 'trunc' | null
}

/** a / b, always floating unless a rounding mode is given */
export function div(a: Operand, b: Operand, options: DivOptions = {}): Tensor {
  const { roundingMode = null } = options
  if (roundingMode === null) return DIV(a, b)
  const int = isWhole(a) && isWhole(b)
  if (roundingMode === 'floor') return int ? FLOORED_INT(a, b) : FLOORED(a, b)
  if (roundingMode === 'trunc') return int ? TRUNCATED_INT(a, b) : TRUNCATED(a, b)
  throw new ValueError(`div: roundingMode must be 'floor', 'trunc' or null, not '${String(roundingMode)}'`)
}
/** aᵇ; int32 wraps */
export const pow = binary('pow', e.pow)
/** Larger of two; NaN if either is NaN; ties share the gradient */
export const maximum = binary('maximum', e.max)
/** Smaller of two; NaN if either is NaN; ties share the gradient */
export const minimum = binary('minimum', e.min)
/** bool: a = b */
export const eq = binary('eq', e.eq)
/** bool: a ≠ b */
export const ne = binary('ne', e.ne)
/** bool: a < b */
export const lt = binary('lt', e.lt)
/** bool: a ≤ b */
export const le = binary('le', e.le)
/** bool: a > b */
export const gt = binary('gt', e.gt)
/** bool: a ≥ b */
export const ge = binary('ge', e.ge)
/** bool: both */
export const logicalAnd = binary('logical_and', (a, b) => e.and(e.cast('bool', a), e.cast('bool', b)))
/** bool: either */
export const logicalOr = binary('logical_or', (a, b) => e.or(e.cast('bool', a), e.cast('bool', b)))

// The gradient passes where lo ≤ x ≤ hi, ends included; where lo > hi the result is hi, as in PyTorch.
const above = (x: e.Expr, lo: e.Expr): e.Expr => e.select(e.lt(x, lo), lo, x)
const below = (x: e.Expr, hi: e.Expr): e.Expr => e.select(e.gt(x, hi), hi, x)
const MIN = binary('clamp', above)
const MAX = binary('clamp', below)
const CLAMP = program('clamp', 1, ([x], [lo, hi]) => below(above(x, lo), hi), 2)
const CLAMP_TENSORS = program('clamp', 3, ([x, lo, hi]) => below(above(x, lo), hi))

/** x limited to [min, max]; either may be missing (undefined or null). NaN stays. */
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

const WHERE = program('where', 3, ([c, a, b]) => e.select(e.cast('bool', c), a, b))
const WHERE_A = program('where', 2, ([c, a], [b]) => e.select(e.cast('bool', c), a, b), 1)
const WHERE_B = program('where', 2, ([c, b], [a]) => e.select(e.cast('bool', c), a, b), 1)
const WHERE_NONE = program('where', 1, ([c], [a, b]) => e.select(e.cast('bool', c), a, b), 2)

/** a where the condition holds (is not 0), b elsewhere; all three broadcast. */
export function where(condition: Tensor, a: Operand, b: Operand): Tensor {
  if (typeof a === 'number') {
    return typeof b === 'number'
      ? elementwise(WHERE_NONE, [condition], [a, b])
      : elementwise(WHERE_B, [condition, b], [a])
  }
  return typeof b === 'number'
    ? elementwise(WHERE_A, [condition, a], [b])
    : elementwise(WHERE, [condition, a, b])
}

const FILL = program('masked_fill', 2, ([x, mask], [v]) => e.select(mask, v, x), 1)
const FILL_TENSOR = program('masked_fill', 3, ([x, mask, v]) => e.select(mask, v, x))

/** x with `value` where the mask holds; keeps x's dtype. value: a number or a scalar tensor. */
export const maskedFill = (x: Tensor, mask: Tensor, value: Operand): Tensor =>
  typeof value === 'number'
    ? elementwise(FILL, [x, mask], [value], x.dtype)
    : elementwise(FILL_TENSOR, [x, mask, value], [], x.dtype)

const LEAKY = program('leaky_relu', 1, ([x], [slope]) => e.select(e.gt(x, 0), x, e.mul(slope, x)), 1)

export interface LeakyReluOptions {
  /** The slope below 0. Default: 0.01. */
  negativeSlope?: number
}

/** x for x > 0, else negativeSlope · x */
export const leakyRelu = (x: Tensor, options: LeakyReluOptions = {}): Tensor => {
  const { negativeSlope = 0.01 } = options
  return elementwise(LEAKY, [x], [negativeSlope])
}

// The branch not taken must stay finite: its gradient is 0 times what it has, and 0 · ∞ is NaN.
const ELU = program(
  'elu',
  1,
  ([x], [alpha]) => e.select(e.le(x, 0), e.mul(alpha, e.expm1(e.select(e.le(x, 0), x, 0))), x),
  1,
)

export interface EluOptions {
  /** What exp(x) − 1 is multiplied by below 0. Default: 1. */
  alpha?: number
}

/** x for x > 0, else alpha · (exp(x) − 1) (Clevert et al. 2016) */
export const elu = (x: Tensor, options: EluOptions = {}): Tensor => {
  const { alpha = 1 } = options
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

export interface SoftplusOptions {
  /** The larger, the nearer to relu. Default: 1. */
  beta?: number
  /** Where beta · x is larger than this, the result is x itself. Default: 20. */
  threshold?: number
}

/** ln(1 + exp(beta · x)) / beta; x itself where beta · x > threshold */
export const softplus = (x: Tensor, options: SoftplusOptions = {}): Tensor => {
  const { beta = 1, threshold = 20 } = options
  return elementwise(SOFTPLUS, [x], [beta, threshold])
}

const GELU = program('gelu', 1, ([x]) => activations.gelu(x))
const GELU_TANH = program('gelu', 1, ([x]) => activations.gelu_tanh(x))

export interface GeluOptions {
  /** 'none' computes Φ by erf; 'tanh' is the approximation that GPT-2 was trained with. Default: 'none'. */
  approximate?: 'none' | 'tanh'
}

/** x · Φ(x) (Hendrycks & Gimpel 2016), exact by erf or `{ approximate: 'tanh' }`. */
export function gelu(x: Tensor, options: GeluOptions = {}): Tensor {
  const { approximate = 'none' } = options
  if (approximate !== 'none' && approximate !== 'tanh')
    throw new ValueError(`gelu: approximate must be 'none' or 'tanh', not '${String(approximate)}'`)
  return elementwise(approximate === 'tanh' ? GELU_TANH : GELU, [x])
}
