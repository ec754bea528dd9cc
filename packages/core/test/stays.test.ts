import { describe, expect, it } from 'vitest'
import type { Interval } from '../src/compile/arrange.ts'
import type { Ref, Step } from '../src/compile/capture.ts'
import { stays } from '../src/compile/stays.ts'

const KiB = 1024

const ref = (slot: number): Ref => ({ slot, dtype: 'float32', shape: [], strides: [], offset: 0 })
const step = (outputs: readonly number[], inputs: readonly number[]): Step =>
  ({
    kind: 'call',
    call: { op: 'test' },
    outputs: outputs.map(ref),
    inputs: inputs.map(ref),
  }) as unknown as Step

function random(seed: number): (most: number) => number {
  let state = seed
  return (most) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * most)
  }
}

/** A forward and a backward pass of made up operators: each step reads the one before and an older one. */
function program(seed: number): { steps: Step[]; used: Interval[] } {
  const pick = random(seed)
  const length = 4 + pick(30)
  const steps: Step[] = [step([0], [])]
  for (let i = 1; i < length; i++) steps.push(step([i], pick(3) === 0 ? [i - 1, pick(i)] : [i - 1]))
  for (let i = length - 1; i > 0; i--) {
    const to = pick(4) === 0 ? i - 1 : length + i
    steps.push(step([to], to < length ? [i, to] : [i, i - 1]))
  }
  const used = new Map<number, { slot: number; bytes: number; from: number; to: number }>()
  steps.forEach((s, i) => {
    if (s.kind !== 'call') return
    for (const { slot } of [...s.outputs, ...s.inputs]) {
      const known = used.get(slot)
      if (known) known.to = i
      else used.set(slot, { slot, bytes: KiB * (1 + pick(100)), from: i, to: i })
    }
  })
  // One is there all the time, as gradients that last are.
  used.set(999, { slot: 999, bytes: 5 * KiB, from: -1, to: steps.length })
  return { steps, used: [...used.values()] }
}

/** Runs a plan on numbers: every step writes a new one and must find those that were written last. */
function replay(steps: readonly Step[], parts: readonly Interval[]): void {
  const memory = new Map<number, number>()
  const outside = new Map<number, number>()
  const truth = new Map<number, number>()
  const wrong: number[][] = []
  steps.forEach((s, i) => {
    if (s.kind !== 'call') return
    for (const { slot, from, brought } of parts) {
      if (from !== i) continue
      memory.delete(slot)
      if (brought) memory.set(slot, outside.get(slot) ?? Number.NaN)
    }
    for (const { slot } of s.inputs) if (memory.get(slot) !== truth.get(slot)) wrong.push([i, slot])
    for (const { slot } of s.outputs) {
      memory.set(slot, i)
      truth.set(slot, i)
    }
    for (const { slot, to, saved } of parts) {
      if (to !== i) continue
      if (saved) outside.set(slot, memory.get(slot) as number)
      memory.delete(slot)
    }
  })
  expect(wrong).toEqual([])
}

describe('stays', () => {
  it('keeps what each step needs, within the limit, with the values that were written last', () => {
    let moved = 0
    for (let seed = 1; seed <= 80; seed++) {
      const { steps, used } = program(seed)
      const at = (list: readonly Interval[], i: number): number =>
        list.reduce((n, { from, to, bytes }) => (from <= i && i <= to ? n + bytes : n), 0)
      const peak = Math.max(...steps.map((_, i) => at(used, i)))
      for (const share of [1, 0.8, 0.6, 0.4]) {
        const limit = peak * share
        const parts = stays(steps, used, limit)
        if ('needs' in parts) {
          expect(parts.needs).toBeGreaterThan(limit)
          continue
        }
        moved += parts.filter(({ saved }) => saved).length
        expect(Math.max(...steps.map((_, i) => at(parts, i)))).toBeLessThanOrEqual(limit)
        const wrong = steps.flatMap((s, i) =>
          s.kind === 'call'
            ? [...s.outputs, ...s.inputs].filter(
                ({ slot }) => parts.filter((p) => p.slot === slot && p.from <= i && i <= p.to).length !== 1,
              )
            : [],
        )
        expect(wrong).toEqual([])
        replay(steps, parts)
        if (share === 1) expect(parts.some(({ saved }) => saved)).toBe(false)
      }
    }
    expect(moved).toBeGreaterThan(250)
  })

  it('sends that away which is needed last, and does not save again what is unchanged', () => {
    const steps = [
      step([0], []),
      step([1], []),
      step([2], []),
      step([3], [2]),
      step([4], [1]),
      step([5], [0]),
      step([6], [1, 0]),
    ]
    const used = [0, 1, 2, 3, 4, 5, 6].map((slot) => ({
      slot,
      bytes: 32 * KiB,
      from: steps.findIndex((s) => s.kind === 'call' && s.outputs[0]?.slot === slot),
      to: steps.findLastIndex(
        (s) => s.kind === 'call' && [...s.outputs, ...s.inputs].some((r) => r.slot === slot),
      ),
    }))
    const parts = stays(steps, used, 3 * 32 * KiB)
    if ('needs' in parts) throw new Error('too little')
    expect(parts.filter(({ saved }) => saved).map(({ slot }) => slot)).toEqual([0])
    expect(stays(steps, used, 2 * 32 * KiB)).toMatchObject({ needs: 3 * 32 * KiB, step: steps[6] })
  })
})
