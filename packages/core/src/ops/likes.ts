import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { type TensorOptions, zeros } from './create.ts'
import { type RandnOptions, type RandOptions, rand, randint, randn } from './random.ts'

/** Factories of tensors whose contents do not matter, and of random ones of another tensor's shape. */

const like = <O extends TensorOptions>(op: string, x: Tensor, options: O): O => {
  const { backend, dtype } = asTensor(op, x)
  return { device: backend, dtype, ...options }
}

/**
 * Makes a tensor whose contents will be overwritten; here they are zeros, as memory in JavaScript is.
 *
 * @throws ShapeError for a shape that is none.
 * @example
 * empty([2, 3]).shape // → [2, 3]
 */
export const empty = (shape: readonly number[], options: TensorOptions = {}): Tensor => zeros(shape, options)

/**
 * Makes a tensor of x's shape, dtype and device whose contents will be overwritten; here they are zeros.
 *
 * @example
 * emptyLike(ones([2])).shape // → [2]
 */
export const emptyLike = (x: Tensor, options: TensorOptions = {}): Tensor =>
  zeros(x.shape, like('empty_like', x, options))

/**
 * Draws numbers uniformly from [low, high), by default [0, 1), in x's shape, dtype and device.
 *
 * @throws DTypeError for a dtype that holds no fractions.
 * @example
 * randLike(zeros([2])).shape // → [2]
 */
export const randLike = (x: Tensor, options: RandOptions = {}): Tensor =>
  rand(x.shape, like('rand_like', x, options))

/**
 * Draws numbers from a normal distribution in x's shape, dtype and device.
 *
 * @throws DTypeError for a dtype that holds no fractions.
 * @example
 * randnLike(zeros([2])).shape // → [2]
 */
export const randnLike = (x: Tensor, options: RandnOptions = {}): Tensor =>
  randn(x.shape, like('randn_like', x, options))

/**
 * Draws whole numbers from [low, high) in x's shape, dtype and device.
 *
 * @throws ValueError unless low and high are whole and low is below high.
 * @example
 * await randintLike(zeros([2]), 3, 4).toArray() // → [3, 3]
 */
export const randintLike = (x: Tensor, low: number, high: number, options: TensorOptions = {}): Tensor =>
  randint(low, high, x.shape, like('randint_like', x, options))
