import { addMethods } from '../add-methods.ts'
import { noGrad } from '../autograd/tape.ts'
import { ValueError } from '../errors.ts'
import { copyInto } from '../primitives/elementwise.ts'
import { scope } from '../tensor/memory.ts'
import type { ArrayOperand } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { addcdiv, addcmul, lerp, remainder, trunc } from './functions.ts'
import * as of from './pointwise.ts'
import { bernoulli, rand, randint, randn } from './random.ts'
import { tril, triu } from './shape.ts'

/**
 * Operators that put their result in the place of their tensor, for use outside the tape: a tensor that requires a gradient
 * takes them only inside `noGrad`. They return the tensor, and take what the operator without the `_` takes.
 */

/** An operator, made to overwrite its first argument. */
/* @__NO_SIDE_EFFECTS__ */
const inPlace =
  <A extends readonly unknown[]>(fn: (x: Tensor, ...rest: A) => Tensor) =>
  (x: Tensor, ...rest: A): Tensor => {
    scope(() =>
      copyInto(
        x,
        noGrad(() => fn(x, ...rest)),
      ),
    )
    return x
  }

/**
 * Limits x to [min, max] in place: see `clamp`.
 *
 * @example
 * await tensor([-2, 3]).clamp_(0, 1).toArray() // → [0, 1]
 */
export const clamp_: (x: Tensor, min?: of.Operand | null, max?: of.Operand | null) => Tensor = inPlace(
  of.clamp,
)
/**
 * Takes the absolute value in place: see `abs`.
 *
 * @example
 * await tensor([-2]).abs_().toArray() // → [2]
 */
export const abs_: (x: Tensor) => Tensor = inPlace(of.abs)
/**
 * Negates in place: see `neg`.
 *
 * @example
 * await tensor([-2]).neg_().toArray() // → [2]
 */
export const neg_: (x: Tensor) => Tensor = inPlace(of.neg)
/**
 * Takes the exponential in place: see `exp`.
 *
 * @example
 * await tensor([0]).exp_().toArray() // → [1]
 */
export const exp_: (x: Tensor) => Tensor = inPlace(of.exp)
/**
 * Takes the natural logarithm in place: see `log`.
 *
 * @example
 * await tensor([1]).log_().toArray() // → [0]
 */
export const log_: (x: Tensor) => Tensor = inPlace(of.log)
/**
 * Takes the square root in place: see `sqrt`.
 *
 * @example
 * await tensor([9]).sqrt_().toArray() // → [3]
 */
export const sqrt_: (x: Tensor) => Tensor = inPlace(of.sqrt)
/**
 * Takes 1 / √x in place: see `rsqrt`.
 *
 * @example
 * await tensor([4]).rsqrt_().toArray() // → [0.5]
 */
export const rsqrt_: (x: Tensor) => Tensor = inPlace(of.rsqrt)
/**
 * Takes 1 / x in place: see `reciprocal`.
 *
 * @example
 * await tensor([4]).reciprocal_().toArray() // → [0.25]
 */
export const reciprocal_: (x: Tensor) => Tensor = inPlace(of.reciprocal)
/**
 * Squares in place: see `square`.
 *
 * @example
 * await tensor([3]).square_().toArray() // → [9]
 */
export const square_: (x: Tensor) => Tensor = inPlace(of.square)
/**
 * Raises to a power in place: see `pow`.
 *
 * @example
 * await tensor([3]).pow_(2).toArray() // → [9]
 */
export const pow_: (x: Tensor, exponent: of.Operand) => Tensor = inPlace((x: Tensor, exponent: of.Operand) =>
  of.pow(x, exponent),
)
/**
 * Rounds down in place: see `floor`.
 *
 * @example
 * await tensor([1.5]).floor_().toArray() // → [1]
 */
export const floor_: (x: Tensor) => Tensor = inPlace(of.floor)
/**
 * Rounds up in place: see `ceil`.
 *
 * @example
 * await tensor([1.5]).ceil_().toArray() // → [2]
 */
export const ceil_: (x: Tensor) => Tensor = inPlace(of.ceil)
/**
 * Rounds in place, half to even: see `round`.
 *
 * @example
 * await tensor([1.6]).round_().toArray() // → [2]
 */
export const round_: (x: Tensor, options?: of.RoundOptions) => Tensor = inPlace(of.round)
/**
 * Cuts fractions off in place: see `trunc`.
 *
 * @example
 * await tensor([-1.6]).trunc_().toArray() // → [-1]
 */
export const trunc_: (x: Tensor) => Tensor = inPlace(trunc)
/**
 * Takes what division leaves in place: see `remainder`.
 *
 * @example
 * await tensor([5]).remainder_(3).toArray() // → [2]
 */
export const remainder_: (x: Tensor, by: of.Operand) => Tensor = inPlace((x: Tensor, by: of.Operand) =>
  remainder(x, by),
)
/**
 * Takes the sine in place: see `sin`.
 *
 * @example
 * await tensor([0]).sin_().toArray() // → [0]
 */
export const sin_: (x: Tensor) => Tensor = inPlace(of.sin)
/**
 * Takes the cosine in place: see `cos`.
 *
 * @example
 * await tensor([0]).cos_().toArray() // → [1]
 */
export const cos_: (x: Tensor) => Tensor = inPlace(of.cos)
/**
 * Takes the hyperbolic tangent in place: see `tanh`.
 *
 * @example
 * await tensor([0]).tanh_().toArray() // → [0]
 */
export const tanh_: (x: Tensor) => Tensor = inPlace(of.tanh)
/**
 * Takes 1 / (1 + e⁻ˣ) in place: see `sigmoid`.
 *
 * @example
 * await tensor([0]).sigmoid_().toArray() // → [0.5]
 */
export const sigmoid_: (x: Tensor) => Tensor = inPlace(of.sigmoid)
/**
 * Makes what is below 0 to 0 in place: see `relu`.
 *
 * @example
 * await tensor([-1, 2]).relu_().toArray() // → [0, 2]
 */
export const relu_: (x: Tensor) => Tensor = inPlace(of.relu)
/**
 * Puts a value where a mask is true, in place: see `maskedFill`.
 *
 * @example
 * await tensor([1, 2]).maskedFill_([true, false], 0).toArray() // → [0, 2]
 */
export const maskedFill_: (x: Tensor, mask: Tensor | ArrayOperand, value: of.Operand) => Tensor = inPlace(
  of.maskedFill,
)
/**
 * Goes towards another tensor in place: see `lerp`.
 *
 * @example
 * await tensor([0]).lerp_(tensor([10]), 0.1).toArray() // → [1]
 */
export const lerp_: (x: Tensor, b: Tensor | ArrayOperand, weight: of.Operand) => Tensor = inPlace(lerp)
/**
 * Adds value · a · b in place: see `addcmul`.
 *
 * @example
 * await tensor([1]).addcmul_(tensor([2]), tensor([3])).toArray() // → [7]
 */
export const addcmul_: (x: Tensor, a: Tensor, b: Tensor, options?: { value?: number }) => Tensor =
  inPlace(addcmul)
/**
 * Adds value · a / b in place: see `addcdiv`.
 *
 * @example
 * await tensor([1]).addcdiv_(tensor([6]), tensor([3])).toArray() // → [3]
 */
export const addcdiv_: (x: Tensor, a: Tensor, b: Tensor, options?: { value?: number }) => Tensor =
  inPlace(addcdiv)
/**
 * Keeps the lower triangle in place: see `tril`.
 *
 * @example
 * await ones([2, 2]).tril_().toArray() // → [[1, 0], [1, 1]]
 */
export const tril_: (x: Tensor, diagonal?: number) => Tensor = inPlace(tril)
/**
 * Keeps the upper triangle in place: see `triu`.
 *
 * @example
 * await ones([2, 2]).triu_().toArray() // → [[1, 1], [0, 1]]
 */
export const triu_: (x: Tensor, diagonal?: number) => Tensor = inPlace(triu)

const like = (x: Tensor) => ({ device: x.backend, dtype: x.dtype })

/**
 * Fills x with numbers drawn uniformly from [low, high), in place.
 *
 * @throws ValueError unless low ≤ high, GradError if x requires a gradient, outside `noGrad`.
 * @example
 * zeros([2]).uniform_(-1, 1).shape // → [2]
 */
export const uniform_: (x: Tensor, low?: number, high?: number) => Tensor = inPlace((x, low = 0, high = 1) =>
  rand(x.shape, { low, high, ...like(x) }),
)

/**
 * Fills x with numbers drawn from a normal distribution, in place.
 *
 * @throws ValueError unless std ≥ 0, GradError if x requires a gradient, outside `noGrad`.
 * @example
 * zeros([2]).normal_(0, 0.02).shape // → [2]
 */
export const normal_: (x: Tensor, mean?: number, std?: number) => Tensor = inPlace((x, mean = 0, std = 1) =>
  randn(x.shape, { mean, std, ...like(x) }),
)

/**
 * Fills x with 1 with probability p, else 0, in place.
 *
 * @throws ValueError unless p lies within 0 … 1, GradError if x requires a gradient, outside `noGrad`.
 * @example
 * await zeros([2]).bernoulli_(1).toArray() // → [1, 1]
 */
export const bernoulli_: (x: Tensor, p?: number) => Tensor = inPlace((x, p = 0.5) =>
  bernoulli(x.shape, p, { device: x.backend }),
)

/**
 * Fills x with numbers drawn from an exponential distribution of mean 1 / rate, in place.
 *
 * @throws ValueError unless the rate is above 0, GradError if x requires a gradient, outside `noGrad`.
 * @example
 * zeros([2]).exponential_().shape // → [2]
 */
export const exponential_: (x: Tensor, rate?: number) => Tensor = inPlace((x, rate = 1) => {
  if (!(rate > 0)) throw new ValueError(`exponential_: the rate must be above 0, got ${rate}`)
  // 1 − u is never 0.
  return of.mul(of.log1p(of.neg(rand(x.shape, { device: x.backend }))), -1 / rate)
})

/**
 * Fills x with whole numbers drawn from [low, high), in place.
 *
 * @throws ValueError unless low < high are whole, GradError if x requires a gradient, outside `noGrad`.
 * @example
 * await zeros([2]).random_(3, 4).toArray() // → [3, 3]
 */
export const random_: (x: Tensor, low: number, high: number) => Tensor = inPlace((x, low, high) =>
  randint(low, high, x.shape, { device: x.backend }),
)

addMethods({
  clamp_,
  abs_,
  neg_,
  exp_,
  log_,
  sqrt_,
  rsqrt_,
  reciprocal_,
  square_,
  pow_,
  floor_,
  ceil_,
  round_,
  trunc_,
  remainder_,
  sin_,
  cos_,
  tanh_,
  sigmoid_,
  relu_,
  maskedFill_,
  lerp_,
  addcmul_,
  addcdiv_,
  tril_,
  triu_,
  uniform_,
  normal_,
  bernoulli_,
  exponential_,
  random_,
})
