import { type Call, takes } from '../dispatch/call.ts'
import type { ElementwiseAttrs } from '../dispatch/kernels.ts'
import { specialize } from '../expr/program.ts'
import { cacheRow } from '../ops/attention/cache-row.ts'
import type { Step } from './capture.ts'
import { asViews, type CallStep, type Context, isSame, usesOf, workOf } from './fuse.ts'

/**
 * What puts a row into caches becomes part of the attention to them that follows, where a backend has a kernel for that: it
 * would go through the whole caches otherwise.
 */
export function rowsIntoAttention(
  context: Context,
  steps: readonly Step[],
): { steps: Step[]; fused: number } {
  const list: (Step | null)[] = [...steps]
  let fused = 0
  const { kernels } = context.backend
  if (kernels.attention_row) {
    const { reads, writes } = usesOf(list)
    for (const [i, step] of steps.entries()) {
      if (step.kind !== 'call' || !putsRow(context, step)) continue
      const next = (slot: number): number | undefined =>
        [...(reads.get(slot) ?? []), ...(writes.get(slot) ?? [])]
          .filter((at) => at > i)
          .sort((a, b) => a - b)[0]
      const [at] = step.outputs.map(({ slot }) => next(slot))
      if (at === undefined || next(step.outputs[1].slot) !== at) continue
      const changes = step.inputs.some(({ slot }) => (writes.get(slot) ?? []).some((w) => w > i && w < at))
      const whole = changes ? null : joined(context, step, steps[at])
      if (!whole) continue
      list[at] = whole
      list[i] = null
      fused++
    }
  }
  return { steps: list.filter((step) => step !== null), fused }
}

/** Is it a row that is put into caches in place? */
function putsRow({ backend }: Context, { call, inputs, outputs }: CallStep): boolean {
  if (call.kernel !== (backend.kernels.elementwise as unknown) || outputs.length !== 2 || inputs.length !== 5)
    return false
  const asked = specialize(
    cacheRow,
    inputs.map(({ dtype }) => dtype),
    [],
    outputs.map(({ dtype }) => dtype),
  )
  const [keys, , values, , at] = inputs
  return (
    (call.attrs as ElementwiseAttrs).kernel === asked &&
    isSame(keys, outputs[0]) &&
    isSame(values, outputs[1]) &&
    at.dtype === 'int32' &&
    at.shape.every((n) => n === 1)
  )
}

/** The row and the attention as one call; null where they do not go together. */
function joined(context: Context, row: CallStep, step: Step): CallStep | null {
  const {
    backend: { kernels },
    capture,
  } = context
  const kernel = kernels.attention_row
  if (!kernel || step.kind !== 'call') return null
  if (step.call.kernel !== (kernels.scaled_dot_product_attention as unknown)) return null
  const [keys, values] = row.outputs
  const [, key, , value, place] = row.inputs
  const [, k, v] = step.inputs
  const caches = new Set([keys.slot, values.slot])
  const others = [...step.inputs.filter((r) => r !== k && r !== v), ...step.outputs, key, value, place]
  if (!isSame(k, keys) || !isSame(v, values) || caches.size < 2) return null
  if (others.some(({ slot }) => caches.has(slot))) return null
  const inputs = [...step.inputs, key, value, place]
  if (!takes(kernel, asViews(capture, inputs), step.call.attrs as never)) return null
  const call: Call = {
    ...step.call,
    op: `${row.call.op}+${step.call.op}`,
    kernel: kernel as Call['kernel'],
    flops: workOf(context, step),
  }
  return { kind: 'call', call, outputs: [...step.outputs, keys, values], inputs }
}
