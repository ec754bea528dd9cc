import { describe, expectFloat, expectOptions } from '../checks.ts'
import { live } from '../dispatch/capturing.ts'
import { DTypeError, ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { hostRandom, nextDraw, threefry, uniform01, uniformOpen } from '../random.ts'
import { checkFits, type DType, info } from '../tensor/dtype.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { generated, shapeAndOptions, TENSOR, type TensorOptions, tensor } from './create.ts'
import { argsort } from './reduction.ts'

// Parameters of every draw: key (2), draw number, then the distribution's own.
const word = (p: readonly e.Expr[]): readonly [e.Expr, e.Expr] => threefry(e.index, p[2], p[0], p[1])

const UNIFORM = program('rand', 0, (_, p) => e.add(p[3], e.mul(p[4], uniform01(word(p)[0]))), 5)
/** For 16 bits, to which numbers near the end are rounded: none is above p[5]. */
const UNIFORM_BELOW = program(
  'rand',
  0,
  (_, p) => e.min(e.add(p[3], e.mul(p[4], uniform01(word(p)[0]))), p[5]),
  6,
)
// Box & Muller 1958: the radius from one word, the angle from the other.
const NORMAL = program(
  'randn',
  0,
  (_, p) => {
    const [a, b] = word(p)
    const radius = e.sqrt(e.mul(-2, e.log(uniformOpen(a))))
    return e.add(p[3], e.mul(p[4], e.mul(radius, e.cos(e.mul(2 * Math.PI, uniform01(b))))))
  },
  5,
)
const BERNOULLI = program('bernoulli', 0, (_, p) => e.cast('float32', e.lt(uniform01(word(p)[0]), p[3])), 4)
const INTEGERS = program(
  'randint',
  0,
  (_, p) => e.add(p[3], e.min(e.cast('int32', e.mul(uniform01(word(p)[0]), p[4])), p[5])),
  6,
)

/** The numbers of a random program: those of the next draw, and the distribution's own. */
function drawn(numbers: (draw: readonly number[]) => readonly number[]): readonly number[] {
  const draw = nextDraw()
  return live(numbers(draw), () => numbers(draw))
}

/** Refuses dtypes that cut off fractions, in which rand would be 0 everywhere. */
function expectFractions(op: string, { dtype = 'float32' }: TensorOptions): void {
  if (dtype === 'int32' || dtype === 'bool')
    throw new DTypeError(`${op}: draws fractions, which ${dtype} cannot hold; use randint for whole numbers`)
}

/** Options of `rand`, beside those of every tensor. */
export interface RandOptions extends TensorOptions {
  /** The smallest number that is drawn. Default: 0. */
  low?: number
  /** The number that all numbers are below. Default: 1. */
  high?: number
}

/**
 * Draws numbers uniformly from [low, high), by default [0, 1), in the given shape; float32 unless said.
 * `manualSeed` makes them repeatable.
 *
 * @throws ShapeError for a shape that is none, ValueError unless low ≤ high and both are finite, DTypeError for a dtype
 * that holds no fractions.
 * @example
 * rand([2, 3]).shape // → [2, 3]
 */
export function rand(shape: readonly number[], options?: RandOptions): Tensor
export function rand(...sizes: number[]): Tensor
export function rand(...args: readonly unknown[]): Tensor {
  const { shape, options } = shapeAndOptions<RandOptions>('rand', args, { ...TENSOR, low: 1, high: 1 })
  const { low = 0, high = 1, ...rest } = options
  if (!(low <= high && Number.isFinite(high - low)))
    throw new ValueError(`rand: needs finite low ≤ high, got ${low} and ${high}`)
  expectFractions('rand', rest)
  const below = low < high ? largestBelow(high, rest.dtype) : null
  return generated(
    'rand',
    below === null ? UNIFORM : UNIFORM_BELOW,
    shape,
    rest,
    drawn((draw) => [...draw, low, high - low, ...(below === null ? [] : [below])]),
  )
}

/** The largest number of 16 bits below another one; null for a dtype that has more. */
function largestBelow(high: number, dtype: DType = 'float32'): number | null {
  const half = info[dtype]?.half
  if (!half) return null
  const bits = half.store(high)
  const nearest = half.load(bits)
  if (nearest < high) return nearest
  return half.load(nearest > 0 ? bits - 1 : nearest < 0 ? bits + 1 : 2 ** 15 + 1)
}

/** Options of `randn`, beside those of every tensor. */
export interface RandnOptions extends TensorOptions {
  /** The mean of the distribution. Default: 0. */
  mean?: number
  /** The standard deviation of the distribution. Default: 1. */
  std?: number
}

/**
 * Draws numbers from a normal distribution, by default of mean 0 and standard deviation 1, in the given shape;
 * float32 unless said. `manualSeed` makes them repeatable.
 *
 * @throws ShapeError for a shape that is none, ValueError unless both are finite and std ≥ 0, DTypeError for a dtype that
 * holds no fractions.
 * @example
 * randn([2, 3], { std: 0.02 }).shape // → [2, 3]
 */
export function randn(shape: readonly number[], options?: RandnOptions): Tensor
export function randn(...sizes: number[]): Tensor
export function randn(...args: readonly unknown[]): Tensor {
  const { shape, options } = shapeAndOptions<RandnOptions>('randn', args, { ...TENSOR, mean: 1, std: 1 })
  const { mean = 0, std = 1, ...rest } = options
  if (!(std >= 0 && Number.isFinite(std + mean)))
    throw new ValueError(`randn: needs a finite mean and std ≥ 0, got ${mean} and ${std}`)
  expectFractions('randn', rest)
  return generated(
    'randn',
    NORMAL,
    shape,
    rest,
    drawn((draw) => [...draw, mean, std]),
  )
}

/**
 * Draws 1 with probability p, else 0, in the given shape; float32 unless said.
 *
 * @throws ValueError unless p lies within 0 … 1.
 * @example
 * await bernoulli([2], 1).toArray() // → [1, 1]
 */
export function bernoulli(shape: readonly number[], p: number, options: TensorOptions = {}): Tensor {
  shapeAndOptions('bernoulli', [shape, options], TENSOR)
  if (!(p >= 0 && p <= 1)) throw new ValueError(`bernoulli: p must lie within 0 … 1, got ${p}`)
  return generated(
    'bernoulli',
    BERNOULLI,
    shape,
    options,
    drawn((draw) => [...draw, p]),
  )
}

/**
 * Draws whole numbers from [low, high), int32, in the given shape; there can be up to 2²⁴ different ones.
 *
 * @throws ValueError unless low and high are whole and low is below high.
 * @example
 * randint(0, 10, [2, 3]).dtype // → int32
 */
export function randint(
  low: number,
  high: number,
  shape: readonly number[],
  options: TensorOptions = {},
): Tensor {
  if (!Number.isInteger(low) || !Number.isInteger(high) || high <= low || high - low > 2 ** 24) {
    throw new ValueError(`randint: needs whole low < high at most 2^24 apart, got ${low} and ${high}`)
  }
  checkFits('randint', low, 'int32')
  checkFits('randint', high - 1, 'int32')
  const { shape: sizes } = shapeAndOptions('randint', [shape, options], TENSOR)
  return generated(
    'randint',
    INTEGERS,
    sizes,
    { dtype: 'int32', ...options },
    drawn((draw) => [...draw, low, high - low, high - low - 1]),
  )
}

/**
 * Draws a random order of 0 … n − 1, int32.
 *
 * @example
 * await randperm(5).sum().item() // → 10
 */
export function randperm(n: number, options: TensorOptions = {}): Tensor {
  expectOptions('randperm', options, TENSOR)
  const keys = rand([n], options.device === undefined ? {} : { device: options.device })
  const order = argsort(keys, 0)
  keys.dispose()
  return order
}

/** Draws indices by weights on the host: see multinomial.ts. */
export function multinomial(weights: ArrayLike<number>, numSamples = 1): Tensor {
  if (!(Number.isInteger(numSamples) && numSamples >= 0 && numSamples < 2 ** 31))
    throw new ValueError(
      `multinomial: numSamples must be a whole number ≥ 0 and below 2^31, got ${numSamples}`,
    )
  let total = 0
  for (let i = 0; i < weights.length; i++) {
    if (!(weights[i] >= 0))
      throw new ValueError(`multinomial: weight ${i} is ${weights[i]}; expected numbers ≥ 0`)
    total += weights[i]
  }
  if (!(total > 0) || !Number.isFinite(total))
    throw new ShapeError(
      `multinomial: the weights ${show([weights.length])} must have a positive, finite sum`,
    )
  const picks = new Int32Array(numSamples).map(() => {
    let left = hostRandom() * total
    let last = 0
    for (let i = 0; i < weights.length; i++) {
      if (weights[i] > 0) {
        last = i
        left -= weights[i]
        if (left < 0) return i
      }
    }
    return last
  })
  return tensor(picks)
}

const kept = (p: readonly e.Expr[]): e.Expr => e.ge(uniform01(word(p)[0]), p[3])
const DROPOUT = program('dropout', 1, ([x], p) => e.select(kept(p), e.mul(x, p[4]), 0), 5)

/**
 * What dropout multiplies element `index` by: 0 with probability p, else 1 / (1 − p). Fused kernels drop by it as they
 * go. @internal
 */
export const dropoutFactors = program('dropout.factors', 0, (_, p) => e.select(kept(p), p[4], 0), 5)

/** The params of `dropoutFactors`: the draw; p as float32, so that all dtypes compare with one number; 1 / (1 − p). @internal */
export const dropoutParams = (p: number, draw: readonly number[]): readonly number[] => [
  ...draw,
  Math.fround(p),
  p === 1 ? 0 : 1 / (1 - p),
]

/** The params of dropout for the next draw. @internal */
export const drawDropout = (p: number): readonly number[] => drawn((draw) => dropoutParams(p, draw))

/** Drops by given numbers: see `dropoutParams`. @internal */
export const dropWith = (x: Tensor, numbers: readonly number[]): Tensor =>
  elementwise(DROPOUT, [x], numbers, x.dtype)

/**
 * Makes each element 0 with probability p while training, and divides it by 1 − p otherwise, so that the
 * expectation stays (Srivastava et al. 2014). The mask is never stored: the backward pass draws the same numbers
 * again.
 *
 * @throws ValueError unless p lies within 0 … 1.
 * @example
 * await ones([2]).dropout(0.5, false).toArray() // → [1, 1]
 */
export function dropout(x: Tensor, p = 0.5, training = true): Tensor {
  x = asTensor('dropout', x)
  if (!(p >= 0 && p <= 1)) throw new ValueError(`dropout: p must lie within 0 … 1, got ${describe(p)}`)
  expectFloat('dropout', x.dtype)
  if (!training || p === 0) return x
  return dropWith(x, drawDropout(p))
}
