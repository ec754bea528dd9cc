import { addMethods } from '../add-methods.ts'
import { expectFloat, expectOptions } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { copy } from '../primitives/elementwise.ts'
import { reshapeView } from '../primitives/views.ts'
import { isHalf } from '../tensor/dtype.ts'
import { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import { multinomial as onHost, rand } from './random.ts'
import { argmax, cumsum, sum, topk } from './reduction.ts'
import { narrow } from './shape.ts'

/** Options of `multinomial` with a tensor. */
export interface MultinomialOptions {
  /** Whether an index may be drawn again. Default: false, as in PyTorch. */
  replacement?: boolean
}

/**
 * Draws indices with the given weights, which need not add up to 1: of a tensor (N) or (B, N) for each row by itself, on its
 * device and without reading it: (numSamples) or (B, numSamples), int32. An array of numbers is drawn from on the host, with
 * replacement. `manualSeed` makes draws repeatable, and they are the same on every engine but for rounding.
 *
 * @throws ShapeError for a tensor of more than two dims, ValueError for more draws without replacement than there are weights,
 * DTypeError for integers. Weights below 0, and rows without a positive one, are not looked for.
 * @example
 * await multinomial(tensor([[0, 1], [1, 0]])).toArray() // → [[1], [0]]
 * await multinomial([0, 1, 0], 2).toArray() // → [1, 1]
 */
export function multinomial(
  weights: Tensor | ArrayLike<number>,
  numSamples = 1,
  options: MultinomialOptions = {},
): Tensor {
  const op = 'multinomial'
  const { replacement = false } = expectOptions(op, options, { replacement: 1 })
  if (!(weights instanceof Tensor)) return onHost(weights, numSamples)
  const [n] = weights.shape.slice(-1)
  if (weights.rank < 1 || weights.rank > 2 || !n)
    throw new ShapeError(`${op}: takes weights (N) or (B, N), got ${show(weights.shape)}`)
  if (!Number.isInteger(numSamples) || numSamples < 1)
    throw new ValueError(`${op}: numSamples must be a whole number ≥ 1, got ${String(numSamples)}`)
  if (!replacement && numSamples > n)
    throw new ValueError(
      `${op}: cannot draw ${numSamples} of ${n} without replacement; pass { replacement: true }`,
    )
  expectFloat(op, weights.dtype)
  const device = weights.backend
  const rows = weights.shape.slice(0, -1)
  const alone = !replacement || numSamples === 1
  const draws = rand([...rows, alone ? n : numSamples], { device })
  return composed(op, [weights.detach(), draws], ([w, u]) => {
    const p = isHalf(w.dtype) ? copy(w, 'float32') : w
    // The first of exponential variables with rates p is i with a chance of pᵢ, the next ones as without i (Efraimidis & Spirakis
    // 2006); 1 − u is never 0.
    if (alone) {
      const race = u.neg().log1p().neg().div(p)
      const waiting = p.gt(0)
      const times = race.maskedFill(waiting.logicalNot(), Number.POSITIVE_INFINITY)
      return numSamples === 1
        ? [argmax(times.neg(), -1, { keepdim: true })]
        : [topk(times, numSamples, -1, { largest: false })[1]]
    }
    const totals = cumsum(p, -1)
    const all = narrow(totals, -1, n - 1, 1)
    const wanted = reshapeView(u.mul(all), [...rows, numSamples, 1])
    const passed = copy(reshapeView(totals, [...rows, 1, n]).le(wanted), 'int32')
    // Rounding may reach the total: the last that has a chance is where it is reached.
    const last = argmax(totals, -1, { keepdim: true })
    return [sum(passed, -1).minimum(last)]
  })[0]
}

addMethods({ multinomial })
