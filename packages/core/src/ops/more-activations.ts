import { addMethods } from '../add-methods.ts'
import { expectFloat, expectOptions } from '../checks.ts'
import { ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { reshapeView } from '../primitives/views.ts'
import { wrapDim } from '../tensor/layout.ts'
import { asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import { zerosLike } from './create.ts'
import { log, mul, neg, sigmoid } from './pointwise.ts'
import { rand } from './random.ts'
import { argmax, softmax } from './reduction.ts'
import { scatter } from './scatter.ts'
import { chunk } from './shape.ts'

/** Activations that fewer models have. Each is one expression, of every element, in x's shape. */

/* @__NO_SIDE_EFFECTS__ */
function activation(name: string, f: (x: e.Expr) => e.Expr): (x: Tensor) => Tensor {
  const p = program(name, 1, ([x]) => f(x))
  return (x) => elementwise(p, [asTensor(name, x)])
}

const limited = (x: e.Expr, low: e.Arg, high: e.Arg): e.Expr =>
  e.select(e.le(x, low), low, e.select(e.ge(x, high), high, x))

/** α · (e^(x / α) − 1) below 0, whose branch that is not taken stays finite. */
const exponential = (x: e.Expr, alpha: e.Arg): e.Expr => {
  const below = e.lt(x, 0)
  return e.select(below, e.mul(alpha, e.expm1(e.div(e.select(below, x, 0), alpha))), x)
}

const SELU = { scale: 1.0507009873554805, alpha: 1.6732632423543772 }

/**
 * Takes scale · x above 0, else scale · α · (eˣ − 1), with the two numbers that keep mean 0 and variance 1 (Klambauer et al.
 * 2017).
 * @example
 * await tensor([0, 1]).selu().mul(1e4).round().toArray() // → [0, 10507]
 */
export const selu = activation('selu', (x) => {
  const below = e.le(x, 0)
  const curve = e.mul(SELU.scale * SELU.alpha, e.expm1(e.select(below, x, 0)))
  return e.select(below, curve, e.mul(SELU.scale, x))
})

const CELU = program('celu', 1, ([x], [alpha]) => exponential(x, alpha), 1)

/** Options of `celu`. */
export interface CeluOptions {
  /** What e^(x / alpha) − 1 is multiplied by below 0. Default: 1. */
  alpha?: number
}

/**
 * Takes x above 0, else alpha · (e^(x / alpha) − 1) (Barron 2017), of every element.
 *
 * @example
 * await tensor([-50, 1]).celu({ alpha: 2 }).toArray() // → [-2, 1]
 */
export const celu = (x: Tensor, options: CeluOptions = {}): Tensor => {
  const { alpha = 1 } = expectOptions('celu', options, { alpha: 1 })
  return elementwise(CELU, [asTensor('celu', x)], [alpha])
}

/**
 * Takes x · tanh(ln(1 + eˣ)) (Misra 2019) of every element.
 * @example
 * await tensor([0, 30]).mish().toArray() // → [0, 30]
 */
export const mish = activation('mish', (x) => {
  const large = e.gt(x, 20)
  return e.select(large, x, e.mul(x, e.tanh(e.log1p(e.exp(e.select(large, 0, x))))))
})

/**
 * Limits (x + 3) / 6 to [0, 1]: a sigmoid of straight lines.
 * @example
 * await tensor([-9, 0, 9]).hardsigmoid().toArray() // → [0, 0.5, 1]
 */
export const hardsigmoid = activation('hardsigmoid', (x) => e.div(limited(e.add(x, 3), 0, 6), 6))

/**
 * Takes x · hardsigmoid(x) (Howard et al. 2019) of every element.
 * @example
 * await tensor([-9, 0, 9]).hardswish().toArray() // → [0, 0, 9]
 */
export const hardswish = activation('hardswish', (x) => e.div(e.mul(x, limited(e.add(x, 3), 0, 6)), 6))

/**
 * Limits every element to [0, 6].
 * @example
 * await tensor([-1, 5, 9]).relu6().toArray() // → [0, 5, 6]
 */
export const relu6 = activation('relu6', (x) => limited(x, 0, 6))

/**
 * Takes ln σ(x), the logarithm of the sigmoid, without overflow.
 * @example
 * await tensor([-200, 200]).logsigmoid().toArray() // → [-200, 0]
 */
export const logsigmoid = activation('logsigmoid', (x) =>
  // At 0, where |x| has a kink, half of the slope comes from min, and is that of the sum.
  e.sub(e.min(x, 0), e.log1p(e.exp(e.neg(e.abs(x))))),
)

/**
 * Takes x / (1 + |x|) of every element.
 * @example
 * await tensor([-1, 3]).softsign().toArray() // → [-0.5, 0.75]
 */
export const softsign = activation('softsign', (x) => e.div(x, e.add(1, e.abs(x))))

/**
 * Takes x − tanh(x) of every element.
 * @example
 * await tensor([0]).tanhshrink().toArray() // → [0]
 */
export const tanhshrink = activation('tanhshrink', (x) => e.sub(x, e.tanh(x)))

const HARDTANH = program('hardtanh', 1, ([x], [low, high]) => limited(x, low, high), 2)

/** Options of `hardtanh`. */
export interface HardtanhOptions {
  /** The lower limit. Default: −1. */
  minVal?: number
  /** The upper limit. Default: 1. */
  maxVal?: number
}

/**
 * Limits every element to [minVal, maxVal], by default [−1, 1]; at the limits and beyond no gradient passes.
 *
 * @example
 * await tensor([-2, 0.5, 2]).hardtanh().toArray() // → [-1, 0.5, 1]
 */
export const hardtanh = (x: Tensor, options: HardtanhOptions = {}): Tensor => {
  const { minVal = -1, maxVal = 1 } = expectOptions('hardtanh', options, { minVal: 1, maxVal: 1 })
  const t = asTensor('hardtanh', x)
  if (t.dtype !== 'int32') return elementwise(HARDTANH, [t], [minVal, maxVal])
  return elementwise(HARDTANH, [t], [Math.trunc(minVal), Math.trunc(maxVal)], 'int32')
}

const SOFTSHRINK = program(
  'softshrink',
  1,
  ([x], [l]) =>
    e.select(e.gt(x, l), e.sub(x, l), e.select(e.lt(x, e.neg(l)), e.add(x, l), e.select(e.isnan(x), x, 0))),
  1,
)

/** Options of `softshrink` and `hardshrink`. */
export interface SoftshrinkOptions {
  /** The distance from 0 up to which elements become 0. Default: 0.5. */
  lambd?: number
}

/**
 * Brings every element nearer to 0 by lambd, and those nearer than that to 0.
 *
 * @example
 * await tensor([-2, 0.2, 2]).softshrink().toArray() // → [-1.5, 0, 1.5]
 */
export function softshrink(x: Tensor, options: SoftshrinkOptions = {}): Tensor {
  const { lambd = 0.5 } = expectOptions('softshrink', options, { lambd: 1 })
  return composed('softshrink', [x], ([t]) => [elementwise(SOFTSHRINK, [t], [lambd])])[0]
}

const HARDSHRINK = program('hardshrink', 1, ([x], [l]) => e.select(e.le(e.abs(x), l), 0, x), 1)

/**
 * Takes x where it is farther than lambd from 0, else 0.
 *
 * @example
 * await tensor([-2, 0.2, 2]).hardshrink().toArray() // → [-2, 0, 2]
 */
export const hardshrink = (x: Tensor, options: SoftshrinkOptions = {}): Tensor => {
  const { lambd = 0.5 } = expectOptions('hardshrink', options, { lambd: 1 })
  return elementwise(HARDSHRINK, [asTensor('hardshrink', x)], [lambd])
}

const THRESHOLD = program('threshold', 1, ([x], [at, v]) => e.select(e.gt(x, at), x, v), 2)

/**
 * Takes x where it is above a threshold, else a value.
 *
 * @example
 * await tensor([1, 3]).threshold(2, 9).toArray() // → [9, 3]
 */
export const threshold = (x: Tensor, above: number, value: number): Tensor =>
  elementwise(THRESHOLD, [asTensor('threshold', x)], [above, value], x.dtype)

const PRELU = program('prelu', 2, ([x, w]) => e.select(e.gt(x, 0), x, e.mul(w, x)))

/**
 * Takes x above 0, else weight · x with a slope that learns: one, or one for each channel (dim 1).
 *
 * @throws ShapeError unless there are one or as many slopes as channels.
 * @example
 * await tensor([-2, 2]).prelu(tensor([0.5])).toArray() // → [-1, 2]
 */
export function prelu(x: Tensor, weight: Tensor): Tensor {
  x = asTensor('prelu', x)
  const w = asTensor('prelu', weight)
  const channels = x.rank < 2 ? 1 : x.shape[1]
  if (w.numel !== 1 && (w.rank !== 1 || w.numel !== channels))
    throw new ShapeError(
      `prelu: expected one slope or ${channels}, for dim 1 of ${show(x.shape)}, got ${show(w.shape)}`,
    )
  const along = w.numel === 1 ? [] : x.shape.map((n, d) => (d === 1 ? n : 1))
  return elementwise(PRELU, [x, reshapeView(w, along)])
}

/**
 * Takes the first half of x along dim, times the sigmoid of the second (Dauphin et al. 2017): (…, 2N, …) → (…, N, …).
 *
 * @throws ShapeError for a dim whose size is odd.
 * @example
 * await tensor([3, 0]).glu().toArray() // → [1.5]
 */
export function glu(x: Tensor, dim = -1): Tensor {
  x = asTensor('glu', x)
  const d = wrapDim('glu', dim, x.rank)
  if (x.rank === 0 || x.shape[d] % 2 !== 0)
    throw new ShapeError(`glu: dim ${dim} of ${show(x.shape)} must be even, to be cut in halves`)
  return composed('glu', [x], ([t]) => {
    const [a, b] = chunk(t, 2, d)
    return [mul(a, sigmoid(b))]
  })[0]
}

/** Options of `gumbelSoftmax`. */
export interface GumbelOptions {
  /** The temperature: the lower, the nearer to a choice of one. Default: 1. */
  tau?: number
  /** Give a 1 and zeros, with the gradient of the softmax. Default: false. */
  hard?: boolean
  /** The dim that is chosen along. Default: the last. */
  dim?: number
}

/**
 * Draws from the distributions that logits stand for, so that gradients pass (Jang et al. 2017; Maddison et al. 2017):
 * softmax((logits + Gumbel noise) / tau) along dim.
 *
 * @throws DTypeError for integers: convert first.
 * @example
 * await gumbelSoftmax(tensor([[0, 100]]), { hard: true }).toArray() // → [[0, 1]]
 */
export function gumbelSoftmax(logits: Tensor, options: GumbelOptions = {}): Tensor {
  const {
    tau = 1,
    hard = false,
    dim = -1,
  } = expectOptions('gumbel_softmax', options, { tau: 1, hard: 1, dim: 1 })
  const x = asTensor('gumbel_softmax', logits)
  expectFloat('gumbel_softmax', x.dtype)
  const noise = neg(log(neg(log(rand(x.shape, { device: x.backend, dtype: x.dtype })))))
  return composed('gumbel_softmax', [x, noise], ([t, g]) => {
    const soft = softmax(t.add(g).div(tau), dim)
    if (!hard) return [soft]
    const chosen = scatter(zerosLike(soft), dim, argmax(soft.detach(), dim, { keepdim: true }), 1)
    return [chosen.sub(soft.detach()).add(soft)]
  })[0]
}

addMethods({
  gumbelSoftmax,
  selu,
  celu,
  mish,
  hardsigmoid,
  hardswish,
  relu6,
  logsigmoid,
  softsign,
  tanhshrink,
  hardtanh,
  softshrink,
  hardshrink,
  threshold,
  prelu,
  glu,
})
