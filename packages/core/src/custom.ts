import { isFloat } from './dtype.ts'
import { alias } from './primitives/views.ts'
import { collect, settled, track } from './scope.ts'
import { noGrad, record, shouldRecord } from './tape.ts'
import type { Tensor } from './tensor.ts'

/** What a custom function hands from its forward to its backward. */
export interface FunctionContext {
  /** Tensors to keep for backward; they live as long as the graph. */
  save(...tensors: Tensor[]): void
  /** What was saved, in order. */
  readonly saved: readonly Tensor[]
  /** Which inputs need a gradient. */
  readonly needsInputGrad: readonly boolean[]
}

/**
 * An operator with a backward rule of your own. `forward` runs untaped; `backward` maps the gradient of the output to
 * those of the inputs (null for none), in tensor operators, so that it can be differentiated again.
 *
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
      const out = inputs.includes(result) ? noGrad(() => alias(result)) : result
      if (recording)
        record(rule.name ?? 'custom', inputs, [out], null, (_, [d]) =>
          d ? rule.backward(ctx, d) : inputs.map(() => null),
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
