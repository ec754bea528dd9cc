import { type Call, takes } from '../dispatch/call.ts'
import type { NormLinearAttrs } from '../ops/linear.ts'
import type { LayerNormAttrs } from '../ops/norm.ts'
import { isContiguous, numel } from '../tensor/layout.ts'
import type { Step } from './capture.ts'
import { asLinear, asViews, type CallStep, type Context, type Uses, usesOf, workOf } from './fuse.ts'

/**
 * Norms of few rows become part of the products that read them, where a backend has a kernel for that: decoding waits for
 * launches. A norm that is needed otherwise, as for gradients, stays.
 */
export function intoProducts(
  context: Context,
  steps: readonly Step[],
  wanted: ReadonlySet<number>,
): { steps: Step[]; fused: number } {
  const list: (Step | null)[] = [...steps]
  let fused = 0
  const { kernels } = context.backend
  if (kernels.norm_linear) {
    const uses = usesOf(list)
    const norms: readonly unknown[] = [kernels.layer_norm, kernels.rms_norm].filter(Boolean)
    for (const [i, step] of steps.entries()) {
      if (step.kind !== 'call' || !norms.includes(step.call.kernel)) continue
      const readers = readersOf(context, step, i, uses, wanted)
      const products = readers.map((at) => product(context, step, list[at]))
      if (products.length === 0 || !products.every((p) => p !== null)) continue
      for (const [r, at] of readers.entries()) list[at] = products[r]
      list[i] = null
      fused++
    }
  }
  return { steps: list.filter((step) => step !== null), fused }
}

/** The later steps that read a norm, where nobody needs its statistics and nothing that it reads changes until then. */
function readersOf(
  { capture }: Context,
  { outputs, inputs }: CallStep,
  i: number,
  { reads, writes }: Uses,
  wanted: ReadonlySet<number>,
): readonly number[] {
  const after = (of: ReadonlyMap<number, readonly number[]>, slot: number): number[] =>
    (of.get(slot) ?? []).filter((at) => at > i)
  const [y, ...stats] = outputs
  if (outputs.some(({ slot }) => capture.slots[slot].outer !== null || wanted.has(slot))) return []
  if (stats.some(({ slot }) => after(reads, slot).length > 0)) return []
  if ((writes.get(y.slot) ?? []).length > 1) return []
  const readers = after(reads, y.slot)
  const end = readers.at(-1) ?? i
  return inputs.some(({ slot }) => after(writes, slot).some((at) => at <= end)) ? [] : readers
}

/** A norm and a product of what it gives as one call; null where they do not go together. */
function product(context: Context, norm: CallStep, step: Step | null): CallStep | null {
  const { kernels } = context.backend
  if (step?.kind !== 'call' || !kernels.norm_linear) return null
  const own = asLinear(step, context)
  const [x, ...params] = norm.inputs
  const [y] = norm.outputs
  const [a, b, ...extras] = step.inputs
  const { size, eps, affine } = norm.call.attrs as LayerNormAttrs
  const whole = a.slot === y.slot && a.offset === y.offset && numel(a.shape) === numel(y.shape)
  if (
    !own ||
    !whole ||
    !isContiguous(a) ||
    !isContiguous(x) ||
    x.dtype !== y.dtype ||
    a.shape.at(-1) !== size
  )
    return null
  if ([b, ...extras].some(({ slot }) => slot === y.slot)) return null
  // What a product reads, others write while it runs.
  const slots = new Set([...norm.inputs, ...step.inputs].map(({ slot }) => slot))
  if (step.outputs.some(({ slot }) => slots.has(slot))) return null
  const kind = norm.call.kernel === (kernels.layer_norm as unknown) ? 'layer' : 'rms'
  const attrs: NormLinearAttrs = { ...own.attrs, norm: { kind, eps, affine } }
  const inputs = [{ ...x, shape: a.shape, strides: a.strides }, own.weight, ...extras, ...params]
  if (!takes(kernels.norm_linear, asViews(context.capture, inputs), attrs)) return null
  const call: Call = {
    ...step.call,
    op: `${norm.call.op}+${step.call.op}`,
    path: 'fused',
    kernel: kernels.norm_linear as Call['kernel'],
    attrs,
    flops: workOf(context, step),
  }
  return { kind: 'call', call, outputs: step.outputs, inputs }
}
