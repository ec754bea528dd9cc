import { describe } from '../checks.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import { alias } from '../primitives/views.ts'
import { isFloat } from '../tensor/dtype.ts'
import { broadcastShapes, sameShape } from '../tensor/layout.ts'
import { expectTensor } from '../tensor/operands.ts'
import { collect, settled, track } from '../tensor/scope.ts'
import { Tensor } from '../tensor/tensor.ts'
import { noGrad, record, shouldRecord } from './tape.ts'

/** What a custom function hands from its forward to its backward. */
export interface FunctionContext {
  /** Keeps tensors for backward; they live as long as the graph. */
  save(...tensors: Tensor[]): void
  /** What was saved, in order. */
  readonly saved: readonly Tensor[]
  /** Which inputs need a gradient. */
  readonly needsInputGrad: readonly boolean[]
}

/** Refuses what a user's backward returned unless it can be the gradients of its inputs: they would be lost unseen. */
function checked(
  name: string,
  gradients: readonly (Tensor | null)[],
  inputs: readonly Tensor[],
): readonly (Tensor | null)[] {
  if (!Array.isArray(gradients) || gradients.length !== inputs.length)
    throw new ValueError(
      `${name}: backward must return an array of ${inputs.length}, a gradient or null per input, got ${describe(gradients)}`,
    )
  for (const [i, d] of gradients.entries()) {
    if (d === null || d === undefined) continue
    if (!(d instanceof Tensor))
      throw new ValueError(`${name}: backward: gradient ${i} must be a tensor or null, got ${describe(d)}`)
    // What broadcasting has made larger is summed.
    if (!sameShape(broadcastShapes(`${name}: backward`, [d.shape, inputs[i].shape]), d.shape))
      throw new ShapeError(
        `${name}: backward: gradient ${i} is ${show(d.shape)}, its input ${show(inputs[i].shape)}; expected the same shape`,
      )
  }
  return gradients
}

/**
 * An operator with a backward rule of your own. `forward` runs untaped; `backward` maps the gradient of the output to
 * those of the inputs (null for none), in tensor operators, so that it can be differentiated again.
 *
 * @throws ValueError where forward returns no tensor or backward no array of a gradient or null per input; ShapeError
 * for a gradient that neither has its input's shape nor sums to it.
 * @example
 * const cube = customFunction({
 *   forward: (ctx, x) => { ctx.save(x); return x.mul(x).mul(x) },
 *   backward: (ctx, dy) => [dy.mul(ctx.saved[0].square()).mul(3)],
 * })
 */
export function customFunction(rule: {
  name?: string
  forward(ctx: FunctionContext, ...inputs: Tensor[]): Tensor
  backward(ctx: FunctionContext, dout: Tensor): readonly (Tensor | null)[]
}): (...inputs: Tensor[]) => Tensor {
  const { name = 'custom' } = rule
  return (...inputs) => {
    const saved: Tensor[] = []
    const ctx: FunctionContext = {
      save: (...tensors) => void saved.push(...tensors),
      saved,
      needsInputGrad: inputs.map((t) => t.requiresGrad && isFloat(t.dtype)),
    }
    const { result, made } = collect(() => noGrad(() => rule.forward(ctx, ...inputs)))
    const recording = shouldRecord(inputs)
    const out = settled(made, () => {
      expectTensor(`${name}: forward`, result)
      const out = inputs.includes(result) ? noGrad(() => alias(result)) : result
      if (recording)
        record(name, inputs, [out], null, (_, [d]) =>
          d ? checked(name, rule.backward(ctx, d), inputs) : inputs.map(() => null),
        )
      return out
    })
    const own: Tensor[] = []
    for (const t of made as Tensor[]) {
      if (t === out) continue
      if (t.kept) track(t)
      else if (recording && saved.includes(t)) own.push(t)
      else t.dispose()
    }
    if (out.gradFn) out.gradFn.owned = own
    track(out)
    for (const t of own) track(t)
    return out
  }
}
