import type { Backend } from '../dispatch/backend.ts'
import { info } from '../tensor/dtype.ts'
import { isContiguous, numel, sameLayout } from '../tensor/layout.ts'
import type { Capture, Ref, Step } from './capture.ts'

/** When a piece of memory is in use, in steps, both included. */
export interface Interval {
  readonly slot: number
  readonly bytes: number
  readonly from: number
  readonly to: number
  /** It comes from outside of memory, before the first of these steps. */
  readonly brought?: boolean
  /** It goes outside, after the last of them. */
  readonly saved?: boolean
}

/** A piece of memory for what is never in use at the same time. */
export interface Place {
  readonly bytes: number
  readonly dtype: string
  readonly taken: Interval[]
}

/** Where a slot lies: in which place, and at which of its elements it begins. */
export interface Spot {
  readonly place: Place
  readonly first: number
}

/** What parts of one piece of memory are aligned to, as GPUs want it of vectors and bindings. */
const unit = 256
/** Bytes of parts that are put into one piece of memory: what every GPU binds. */
const mostPacked = 2 ** 27

/**
 * Says where each slot lies. Memory that is never in use at the same time is shared: the largest are placed first, each in
 * the smallest place that is free for it (Pisarchyk & Lee 2020, greedy by size).
 *
 * Where calls are prepared, they may overlap in time, and binding memory costs. So a call writes nothing where the one
 * before it reads, unless it waits for it anyway; and with `packs` what one call takes in many parts, such as all
 * gradients, lies in one piece. It is then taken by fewer launches, which may add in another order.
 */
export function arrange(
  backend: Backend,
  capture: Capture,
  steps: readonly Step[],
  used: readonly Interval[],
  packs: boolean,
): Map<Interval, Spot> {
  const overlaps = backend.prepare !== undefined
  const groups = overlaps && packs ? packed(backend, capture, steps, used) : used.map((part) => [part])
  const places: Place[] = []
  const spots = new Map<Interval, Spot>()
  const size = (group: readonly Interval[]): number =>
    group.length === 1 ? group[0].bytes : group.reduce((n, { bytes }) => n + aligned(bytes), 0)
  for (const group of [...groups].sort((a, b) => size(b) - size(a) || a[0].from - b[0].from)) {
    const { slot } = group[0]
    const whole: Interval =
      group.length === 1
        ? group[0]
        : {
            slot: -1,
            bytes: size(group),
            from: Math.min(...group.map(({ from }) => from)),
            to: Math.max(...group.map(({ to }) => to)),
          }
    const { dtype } = capture.slots[slot]
    let best: Place | null = null
    for (const place of places) {
      if (place.dtype !== dtype || place.bytes < whole.bytes || (best && best.bytes <= place.bytes)) continue
      if (place.taken.every((other) => apart(backend, steps, whole, other, overlaps))) best = place
    }
    if (best === null) {
      best = { bytes: whole.bytes, dtype, taken: [] }
      places.push(best)
    }
    best.taken.push(whole)
    let first = 0
    for (const part of group) {
      spots.set(part, { place: best, first })
      first += aligned(part.bytes) / info[dtype].bytes
    }
  }
  return spots
}

const aligned = (bytes: number): number => Math.ceil(bytes / unit) * unit

/** Intervals in groups that lie together: those of all inputs of calls that take many. */
function packed(
  { kernels }: Backend,
  { slots }: Capture,
  steps: readonly Step[],
  used: readonly Interval[],
): readonly Interval[][] {
  // These bind memory once, however many operands lie in it.
  const many: readonly unknown[] = [kernels.foreach, kernels.total_norm, kernels.elementwise]
  /** Which slots other calls bind at the same time as a slot. */
  const beside = new Map<number, Set<number>>()
  for (const step of steps) {
    if (step.kind !== 'call' || many.includes(step.call.kernel)) continue
    const all = new Set([...step.outputs, ...step.inputs].map(({ slot }) => slot))
    for (const slot of all) {
      const known = beside.get(slot)
      beside.set(slot, known ? new Set([...known, ...all]) : all)
    }
  }
  // Others begin to write where a piece of memory begins, as what they fill was allocated for them.
  const anywhere: readonly unknown[] = [...many, kernels.matmul, kernels.linear]
  const fixed = new Set<number>()
  for (const step of steps)
    if (
      step.kind === 'call' &&
      (step.call.kernel === (kernels.total_norm as unknown) || !anywhere.includes(step.call.kernel))
    )
      for (const { slot } of step.outputs) fixed.add(slot)
  const groupOf = new Map<number, Interval[]>(used.map((part) => [part.slot, [part]]))
  for (const step of steps) {
    if (step.kind !== 'call' || !many.slice(0, 2).includes(step.call.kernel)) continue
    const groups: { readonly parts: Interval[]; bytes: number }[] = []
    for (const slot of new Set(step.inputs.map((r) => r.slot))) {
      const own = groupOf.get(slot)
      if (!own || fixed.has(slot) || slots[slot].dtype !== 'float32') continue
      const [part] = own
      // Results and what was computed once stay apart, as does what is in a group already.
      if (own.length > 1 || part.from < 0 || part.to >= steps.length || part.bytes === 0) continue
      const more = aligned(part.bytes)
      const group = groups.find(
        ({ parts, bytes }) =>
          bytes + more <= mostPacked && !parts.some((other) => beside.get(slot)?.has(other.slot)),
      )
      if (group) {
        group.parts.push(part)
        group.bytes += more
        groupOf.set(slot, group.parts)
      } else groups.push({ parts: own, bytes: more })
    }
  }
  return [...new Set(groupOf.values())]
}

/** Can two share memory? An elementwise call may write its result over an input of the same layout. */
function apart(
  { kernels }: Backend,
  steps: readonly Step[],
  a: Interval,
  b: Interval,
  overlaps: boolean,
): boolean {
  const [first, second] = a.from < b.from ? [a, b] : [b, a]
  if (first.to < second.from)
    return !overlaps || first.to + 1 < second.from || waits(steps[second.from], steps[first.to])
  if (first.to !== second.from || first.from === second.from) return false
  // Many in one piece begin and end at different steps.
  if (first.slot < 0 || second.slot < 0 || first.saved || second.brought) return false
  const step = steps[first.to]
  if (step?.kind !== 'call') return false
  const { call, outputs, inputs } = step
  if (call.kernel !== (kernels.elementwise as unknown) || outputs.length !== 1) return false
  const whole = (r: Ref, { bytes }: Interval): boolean =>
    r.offset === 0 && isContiguous(r) && numel(r.shape) * info[r.dtype].bytes === bytes
  return (
    first.bytes === second.bytes &&
    outputs.every((r) => r.slot !== second.slot || whole(r, second)) &&
    inputs.every(
      (r) =>
        r.slot !== first.slot ||
        (whole(r, first) && sameLayout(r, outputs[0]) && r.dtype === outputs[0].dtype),
    )
  )
}

/** Does a step read or write what the one before it writes? */
function waits(step: Step | undefined, before: Step | undefined): boolean {
  if (step?.kind !== 'call' || before?.kind !== 'call') return true
  const written = new Set(before.outputs.map(({ slot }) => slot))
  return [...step.inputs, ...step.outputs].some(({ slot }) => written.has(slot))
}
