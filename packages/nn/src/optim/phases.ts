import type { Schedule } from './schedule.ts'

/** A part of a schedule, from the end of the one before to a step. */
export interface Phase {
  /** The step at which it ends. */
  readonly end: number
  /** The value that it begins with. */
  readonly from: number
  /** The value that it ends with. */
  readonly to: number
}

/** Goes through phases one after the other, in half cosines or straight lines, and stays where the last one ends. */
export function inPhases(phases: readonly Phase[], cosine: boolean): Schedule {
  return (step) => {
    const found = phases.findIndex(({ end }) => step <= end)
    const i = found < 0 ? phases.length - 1 : found
    const { end, from, to } = phases[i]
    const start = i === 0 ? 0 : phases[i - 1].end
    const ratio = end === start ? 1 : Math.min(1, (step - start) / (end - start))
    return cosine ? to + ((from - to) / 2) * (1 + Math.cos(Math.PI * ratio)) : from + (to - from) * ratio
  }
}
