import type { Interval } from './arrange.ts'
import type { Step } from './capture.ts'

/** What is smaller stays in memory: it would free little. */
const least = 2 ** 14

/** What a step touches. */
const refsOf = (step: Step): readonly { readonly slot: number }[] =>
  step.kind === 'call' ? [...step.outputs, ...step.inputs] : [step.to]

/**
 * Says when each slot is in memory, of which there are so many bytes: where they do not suffice, that leaves which is
 * needed again last (Belady 1966), from its last use until its next.
 *
 * @returns a list of stays; or, if some step needs more, how many bytes it takes.
 */
export function stays(
  steps: readonly Step[],
  used: readonly Interval[],
  limit: number,
): readonly Interval[] | { readonly needs: number; readonly step: Step } {
  const uses = new Map<number, number[]>()
  steps.forEach((step, i) => {
    for (const { slot } of refsOf(step)) {
      const known = uses.get(slot)
      if (!known) uses.set(slot, [i])
      else if (known.at(-1) !== i) known.push(i)
    }
  })
  const usesOf = (slot: number): readonly number[] => uses.get(slot) ?? []
  /** The last use before a step, and the first from it on. */
  const lastUse = (slot: number, i: number): number => usesOf(slot).findLast((at) => at < i) as number
  const nextUse = (slot: number, i: number): number =>
    usesOf(slot).find((at) => at >= i) ?? Number.POSITIVE_INFINITY
  /** What may leave: what is only needed within a run. */
  const moving = new Map(
    used
      .filter(({ from, to, bytes }) => from >= 0 && to < steps.length && bytes >= least)
      .map((part) => [part.slot, part]),
  )
  const all: Interval[] = used.filter(({ slot }) => !moving.has(slot))
  const staying = all.slice()
  /** What is in memory: since when, whether it came from outside, and whether outside is the same. */
  const here = new Map<number, { from: number; brought: boolean; changed: boolean }>()
  const end = (slot: number, to: number, saved: boolean): void => {
    const { from, brought } = here.get(slot) as { from: number; brought: boolean }
    const { bytes } = moving.get(slot) as Interval
    all.push({ slot, bytes, from, to, brought, saved })
    here.delete(slot)
  }
  const gone = new Set<number>()
  for (const [i, step] of steps.entries()) {
    for (const slot of [...here.keys()]) {
      const { to } = moving.get(slot) as Interval
      if (to < i) end(slot, to, false)
    }
    const needed = new Set(refsOf(step).map(({ slot }) => slot))
    for (const slot of needed)
      if (moving.has(slot) && !here.has(slot)) {
        const brought = gone.has(slot)
        here.set(slot, { from: i, brought, changed: !brought })
      }
    const fixed = staying.reduce((n, { from, to, bytes }) => (from <= i && i <= to ? n + bytes : n), 0)
    let bytes = [...here.keys()].reduce((n, slot) => n + (moving.get(slot) as Interval).bytes, fixed)
    while (bytes > limit) {
      let last = -1
      for (const slot of here.keys())
        if (!needed.has(slot) && (last < 0 || nextUse(slot, i) > nextUse(last, i))) last = slot
      if (last < 0) return { needs: bytes, step }
      bytes -= (moving.get(last) as Interval).bytes
      end(last, lastUse(last, i), here.get(last)?.changed === true || !gone.has(last))
      gone.add(last)
    }
    const outputs = step.kind === 'call' ? step.outputs : [step.to]
    for (const { slot } of outputs) {
      const stay = here.get(slot)
      if (stay) stay.changed = true
    }
  }
  for (const slot of [...here.keys()]) end(slot, (moving.get(slot) as Interval).to, false)
  return all
}
