import {
  applyProgramIntoEach,
  describeValue,
  expr as e,
  namedProgram,
  noGrad,
  type Tensor,
  totalNorm,
  ValueError,
  zeros,
} from '@tilegrad/core'

/** g · min(1, max / (norm + 1e-6)), PyTorch's factor, which is computed once for all of g; NaN stays NaN. */
const SCALE = namedProgram('clip_grad_norm', ['g', 'norm'], ['max'], ({ g, norm }, { max }) =>
  e.mul(g, e.min(1, e.div(max, e.add(norm, 1e-6)))),
)
// Comparisons with NaN are false: it stays, to be noticed.
const LIMIT = namedProgram('clip_grad_value', ['g'], ['max'], ({ g }, { max }) =>
  e.select(e.gt(g, max), max, e.select(e.lt(g, e.neg(max)), e.neg(max), g)),
)

function gradients(op: string, params: readonly Tensor[]): Tensor[] {
  if (!Array.isArray(params)) {
    const fix = 'parameters' in Object(params) ? '; pass model.parameters()' : ''
    throw new ValueError(`${op}: takes an array of parameters, got ${describeValue(params)}${fix}`)
  }
  const grads: Tensor[] = []
  for (const { grad } of params) if (grad) grads.push(grad)
  return grads
}

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
  const grads = gradients('clipGradNorm', params)
  if (grads.length === 0) return zeros([], params[0] ? { device: params[0].backend } : {})
  return noGrad(() => {
    const norm = totalNorm(grads)
    applyProgramIntoEach(
      SCALE,
      grads.map((g) => ({ outputs: [g], inputs: [g, norm], params: SCALE.numbers({ max: maxNorm }) })),
    )
    return norm
  })
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
  noGrad(() =>
    applyProgramIntoEach(
      LIMIT,
      gradients('clipGradValue', params).map((g) => ({
        outputs: [g],
        inputs: [g],
        params: LIMIT.numbers({ max: maxValue }),
      })),
    ),
  )
}
