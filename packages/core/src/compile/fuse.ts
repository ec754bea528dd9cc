import type { Backend } from '../dispatch/backend.ts'
import type { Call } from '../dispatch/call.ts'
import type { ElementwiseAttrs } from '../dispatch/kernels.ts'
import { expressionWork, type Kernel, partOf, rebuild, typedPostOrder } from '../expr/program.ts'
import { isContiguous, numel, sameShape } from '../tensor/layout.ts'
import type { Capture, Ref, Step } from './capture.ts'

type CallStep = Step & { kind: 'call' }

/** Longer expressions than this gain nothing any more, and take registers. */
const mostNodes = 64

/**
 * Elementwise calls whose result only the next elementwise call needs become part of it: its expression takes the place of
 * the input. What is between them in memory is neither written nor read, and there is one launch less.
 */
export function fuse(
  backend: Backend,
  steps: readonly Step[],
  capture: Capture,
  wanted: ReadonlySet<number>,
): { steps: Step[]; fused: number } {
  const list: (Step | null)[] = [...steps]
  const { slots } = capture
  /** The only step that reads each slot; null where there are more. */
  const readers = new Map<number, number | null>()
  const writes = new Map<number, number[]>()
  steps.forEach((step, i) => {
    const outputs = step.kind === 'call' ? step.outputs : [step.to]
    if (step.kind === 'call')
      for (const slot of new Set(step.inputs.map((r) => r.slot)))
        readers.set(slot, readers.has(slot) ? null : i)
    for (const { slot } of outputs) writes.set(slot, [...(writes.get(slot) ?? []), i])
  })
  let fused = 0
  for (let i = 0; i < list.length; i++) {
    const first = list[i]
    if (!first || !isElementwise(backend, first) || first.outputs.length !== 1) continue
    const [out] = first.outputs
    const at = readers.get(out.slot)
    if (at === undefined || at === null || at <= i || wanted.has(out.slot) || slots[out.slot].outer) continue
    if ((writes.get(out.slot) as number[]).length !== 1) continue
    const second = list[at]
    if (!second || !isElementwise(backend, second) || !sameShape(out.shape, second.outputs[0].shape)) continue
    if (!second.inputs.every((r) => r.slot !== out.slot || isSame(r, out))) continue
    // What the first reads must be the same when the second runs.
    if (first.inputs.some(({ slot }) => (writes.get(slot) ?? []).some((w) => w > i && w < at))) continue
    const whole = join(backend, first, second, out, capture)
    if (!whole) continue
    list[at] = whole
    list[i] = null
    fused++
    for (const { slot } of first.inputs) if (readers.get(slot) === i) readers.set(slot, at)
    // An input that both read has one reader now: the joined call.
    for (const { slot } of whole.inputs)
      if (readers.get(slot) === null && !readsElsewhere(list, slot, at)) readers.set(slot, at)
  }
  return { steps: list.filter((step) => step !== null), fused }
}

const readsElsewhere = (list: readonly (Step | null)[], slot: number, at: number): boolean =>
  list.some((step, i) => i !== at && step?.kind === 'call' && step.inputs.some((r) => r.slot === slot))

const isElementwise = (backend: Backend, step: Step): step is CallStep =>
  step.kind === 'call' && step.call.kernel === (backend.kernels.elementwise as unknown)

/** Is it all of what was written, element by element? */
const isSame = (r: Ref, out: Ref): boolean =>
  r.dtype === out.dtype &&
  r.offset === out.offset &&
  sameShape(r.shape, out.shape) &&
  sameShape(r.strides, out.strides)

function join(
  backend: Backend,
  first: CallStep,
  second: CallStep,
  out: Ref,
  capture: Capture,
): CallStep | null {
  if (!isContiguous(out)) return null
  const [a, b] = [first.call.attrs as ElementwiseAttrs, second.call.attrs as ElementwiseAttrs]
  const place = second.inputs.map((r) => r.slot === out.slot)
  const inputs = [...second.inputs.filter((_, i) => !place[i]), ...first.inputs]
  const most = backend.operands?.most ?? Number.POSITIVE_INFINITY
  if (new Set([...inputs, ...second.outputs].map(({ slot }) => slot)).size > most) return null
  if (typedPostOrder(a.kernel.exprs).length + typedPostOrder(b.kernel.exprs).length > mostNodes) return null
  // Written over an input, it would be read as it was only where each element is read before it is written.
  if (second.outputs.some((o) => first.inputs.some((r) => r.slot === o.slot && !isSame(r, o)))) return null
  const kernel = joined(a.kernel, b.kernel, place, second.call.numbers.length)
  const attrs: ElementwiseAttrs = { kernel }
  const numbers = [...second.call.numbers, ...first.call.numbers]
  const [n, m] = [second.call.numbers, first.call.numbers]
  if (capture.isLive(n) || capture.isLive(m)) capture.live(numbers, () => [...n, ...m])
  const call: Call = {
    ...second.call,
    op: `${first.call.op}+${second.call.op}`,
    attrs,
    numbers,
    flops: () => expressionWork(kernel) * numel(second.outputs[0].shape),
  }
  return { kind: 'call', call, outputs: second.outputs, inputs }
}

const known = new Map<string, Kernel>()

/** The second expression with the first in the place of some of its inputs; then come the inputs of the first. */
function joined(first: Kernel, second: Kernel, place: readonly boolean[], numbers: number): Kernel {
  const key = `${first.id} ${second.id} ${place.join()}`
  let kernel = known.get(key)
  if (kernel) return kernel
  let kept = 0
  const index = place.map((placed) => (placed ? -1 : kept++))
  const slots = second.params.length
  const [root] = rebuild(first.exprs, (t) =>
    t.kind === 'input'
      ? { ...t, index: kept + t.index }
      : t.kind === 'param'
        ? { ...t, slot: slots + t.slot }
        : t,
  )
  const exprs = rebuild(second.exprs, (t) =>
    t.kind !== 'input' ? t : place[t.index] ? root : { ...t, index: index[t.index] },
  )
  const inputs = [...second.inputs.filter((_, i) => !place[i]), ...first.inputs]
  kernel = {
    // Once more, so that numbers of nodes are unique.
    ...partOf(
      second,
      rebuild(exprs, (t) => t),
      inputs,
    ),
    name: `${first.name}+${second.name}`,
    params: [
      ...second.params,
      ...first.params.map(({ source, dtype }) => ({ source: numbers + source, dtype })),
    ],
    whole: first.whole || second.whole,
  }
  known.set(key, kernel)
  return kernel
}
