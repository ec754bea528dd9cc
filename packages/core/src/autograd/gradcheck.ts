import { describe, expectFunction, expectOptions } from '../checks.ts'
import { paging } from '../dispatch/paging.ts'
import { GradError, show, ValueError } from '../errors.ts'
import { dataSync, tensor } from '../ops/create.ts'
import { add, mul } from '../ops/pointwise.ts'
import { sum } from '../ops/reduction.ts'
import { reference } from '../reference/backend.ts'
import { isFloat, type TypedArray } from '../tensor/dtype.ts'
import { scope } from '../tensor/memory.ts'
import { expectTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { grad } from './backward.ts'
import { enableGrad } from './tape.ts'

/** Options of `gradcheck`. */
export interface GradcheckOptions {
  /** Step of the central difference. Default 1e-6, right for float64. */
  eps?: number
  /** The absolute tolerance. Default 1e-5: central differences of float64 are good to about eps² + 1e-16 / eps. */
  atol?: number
  /** The relative tolerance. Default 1e-4. */
  rtol?: number
}

/**
 * Compares the gradients of `fn` with central finite differences, in float64 on the reference backend.
 *
 * @param fn from tensors to a tensor or several; must be deterministic and must not read its inputs' device.
 * @param inputs values to check at, floating or not; copied to float64 on the reference backend. Gradients are checked
 * of the floating ones.
 * @returns true
 * @throws GradError naming the first element that disagrees.
 * @example
 * gradcheck((x) => x.tanh().sum(), [randn([3, 4])])
 */
export function gradcheck(
  fn: (...inputs: Tensor[]) => Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  options: GradcheckOptions = {},
): true {
  expectFunction('gradcheck', fn)
  if (!Array.isArray(inputs))
    throw new ValueError(`gradcheck: inputs are an array of tensors, got ${describe(inputs)}`)
  for (const x of inputs) expectTensor('gradcheck', x)
  expectOptions('gradcheck', options, { eps: 1, atol: 1, rtol: 1 })
  return enableGrad(() => scope(() => check(fn, inputs, options)))
}

function check(
  fn: (...inputs: Tensor[]) => Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  { eps = 1e-6, atol = 1e-5, rtol = 1e-4 }: GradcheckOptions,
): true {
  const xs = inputs.map((t) => {
    const float = isFloat(t.dtype)
    const x = tensor(dataSync(t), t.shape, { dtype: float ? 'float64' : t.dtype, device: reference })
    if (float) x.requiresGrad = true
    return x
  })
  const checked = xs.filter((x) => x.requiresGrad)
  if (checked.length === 0) throw new GradError('gradcheck: no floating input to check')
  const outputs = (): Tensor[] => {
    const out = fn(...xs)
    return Array.isArray(out) ? [...(out as readonly Tensor[])] : [out as Tensor]
  }
  // Every output element counts, each with another weight, so that errors cannot cancel.
  const weights = new Map<number, Tensor>()
  const total = (): Tensor =>
    outputs()
      .filter((y) => y.dtype === 'float64')
      .map((y, i) => {
        let w = weights.get(i)
        if (!w) {
          w = tensor(
            Float64Array.from({ length: y.numel }, (_, j) => Math.sin(j + 1 + i) + 1.5),
            y.shape,
            { device: reference },
          )
          weights.set(i, w)
        }
        return sum(mul(y, w))
      })
      .reduce((a, b) => add(a, b))
  const analytic = grad(total(), checked, { allowUnused: true })
  checked.forEach((x, which) => {
    const g = analytic[which]
    const got = g ? dataSync(g) : new Float64Array(x.numel)
    const values = dataSync(x)
    for (let i = 0; i < values.length; i++) {
      // Taped like the analytic pass, for functions that themselves take gradients.
      const at = (delta: number): number =>
        scope(() => {
          const moved = Float64Array.from(values)
          moved[i] += delta
          fill(x, moved)
          return dataSync(total())[0]
        })
      const numeric = (at(eps) - at(-eps)) / (2 * eps)
      fill(x, values)
      if (!(Math.abs(got[i] - numeric) <= atol + rtol * Math.abs(numeric))) {
        throw new GradError(
          `gradcheck: input ${which} ${show(x.shape)}, element ${i}: the gradient is ${got[i]}, finite differences say ${numeric}`,
        )
      }
    }
  })
  return true
}

function fill(x: Tensor, values: TypedArray): void {
  paging()?.bring(x.backend, x)
  x.backend.write(x, values)
}
