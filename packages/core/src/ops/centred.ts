import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { elementwise } from '../primitives/elementwise.ts'
import { reduce } from '../primitives/reduce.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { div, sub } from './pointwise.ts'

const mean = (x: Tensor, dims: readonly number[]): Tensor =>
  div(
    reduce('sum', x, dims, true),
    dims.reduce((p, d) => p * x.shape[d], 1),
  )

/**
 * x minus about its mean over `dims`, and what that is off by. The mean, rounded, misses by up to an ulp, which is all
 * there is where the elements are equal and a lot where they are large and close; what it misses by is small and exact.
 * The gradient of the difference is that of x − mean, whatever number the first step takes off.
 */
function aboutMean(x: Tensor, dims: readonly number[]): readonly [near: Tensor, rest: Tensor] {
  const near = sub(x, mean(x.detach(), dims))
  return [near, mean(near, dims)]
}

/** x minus its mean over `dims`. */
export const centred = (x: Tensor, dims: readonly number[]): Tensor => sub(...aboutMean(x, dims))

const SQUARED_DISTANCE = program('squared_distance', 2, ([x, m]) => e.square(e.sub(x, m)))

/** (x − mean)² over `dims`. */
export const squaredDeviations = (x: Tensor, dims: readonly number[]): Tensor =>
  elementwise(SQUARED_DISTANCE, aboutMean(x, dims))

const ROOT = program('root', 1, ([x]) => {
  const positive = e.gt(x, 0)
  return e.select(positive, e.sqrt(e.select(positive, x, 1)), x)
})

/** √x of a sum of squares: where that is 0 the norm has a kink, and passes on 0 instead of ∞ · 0. */
export const rootOfSquares = (x: Tensor): Tensor => elementwise(ROOT, [x])
