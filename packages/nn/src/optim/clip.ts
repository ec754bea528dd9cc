import {
  applyProgram,
  applyProgramInto,
  type Expr,
  expr as e,
  noGrad,
  program,
  scope,
  square,
  sum,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'

/** min(1, max / (norm + 1e-6)), PyTorch's factor; NaN stays NaN. */
const FACTOR = program(
  'clip_grad_norm',
  1,
  (inputs, params) => e.min(1, e.div(params[0] as Expr, e.add(inputs[0] as Expr, 1e-6))),
  1,
)
const LIMIT = program(
  'clip_grad_value',
  1,
  (inputs, params) => {
    const [g, max] = [inputs[0] as Expr, params[0] as Expr]
    // Comparisons with NaN are false: it stays, to be noticed.
    return e.select(e.gt(g, max), max, e.select(e.lt(g, e.neg(max)), e.neg(max), g))
  },
  1,
)

const gradients = (params: readonly Tensor[]): Tensor[] => params.flatMap((p) => p.grad ?? [])

/**
 * Scales all gradients by min(1, maxNorm / (norm + 1e-6)), norm being the Euclidean norm of all of them together
 * (Pascanu et al. 2013). Everything happens on the device: nothing is read back.
 *
 * @returns the norm before clipping, a scalar tensor that belongs to the caller's scope.
 * @throws ValueError unless maxNorm ≥ 0.
 * @example
 * const x = parameter(tensor([3, 4]))
 * x.square().sum().backward() // the gradient is [6, 8]
 * const norm = clipGradNorm([x], 1)
 * await norm.item() // → 10
 * const clipped = await x.grad?.toArray() // 0.6 and 0.8
 */
export function clipGradNorm(params: readonly Tensor[], maxNorm: number): Tensor {
  if (!(maxNorm >= 0)) throw new ValueError(`clipGradNorm: maxNorm must be ≥ 0, got ${maxNorm}`)
  const grads = gradients(params)
  return noGrad(() =>
    scope(() => {
      const [first, ...rest] = grads
      if (!first) return zeros([], params[0] ? { device: params[0].backend } : {})
      const total = sum(square(first))
      for (const g of rest) total.add_(sum(square(g)))
      const norm = total.sqrt()
      const factor = applyProgram(FACTOR, [norm], [maxNorm])
      for (const g of grads) g.mul_(factor)
      return norm
    }),
  )
}

/**
 * Limits every element of the gradients to ±maxValue, in place.
 *
 * @throws ValueError unless maxValue ≥ 0.
 * @example
 * const x = parameter(tensor([3, -4]))
 * x.square().sum().backward()
 * clipGradValue([x], 7)
 * await x.grad?.toArray() // → 6,-7
 */
export function clipGradValue(params: readonly Tensor[], maxValue: number): void {
  if (!(maxValue >= 0)) throw new ValueError(`clipGradValue: maxValue must be ≥ 0, got ${maxValue}`)
  noGrad(() => {
    for (const g of gradients(params)) applyProgramInto([g], LIMIT, [g], [maxValue])
  })
}
