/** What the measured rows say: how fast time and memory grow, where curves cross, and whether it is what must hold. */
import type { Mode, Row } from './sweep.ts'

export interface Fit {
  readonly variant: string
  readonly mode: Mode
  readonly of: 'ms' | 'bytes'
  /** value ∝ T^exponent, by least squares on logarithms over the lengths from `from` to `to`. */
  readonly exponent: number
  readonly from: number
  readonly to: number
}

export interface Crossing {
  readonly variant: string
  readonly than: string
  readonly mode: Mode
  /** From this length on the variant takes less time, between measured lengths along straight lines of a log-log chart. */
  readonly t: number | null
}

export interface Requirement {
  readonly what: string
  readonly value: number | null
  readonly target: string
  readonly met: boolean | null
}

/** Shorter ones are ruled by what does not depend on the length. */
const SHORTEST = 2048

const series = (rows: readonly Row[], variant: string, mode: Mode): Row[] =>
  rows
    .filter((row) => row.variant === variant && row.mode === mode && row.ms !== null)
    .sort((a, b) => a.t - b.t)

export function fits(rows: readonly Row[]): Fit[] {
  const names = [...new Set(rows.map((row) => row.variant))]
  return names.flatMap((variant) =>
    (['forward', 'training'] as const).flatMap((mode) => {
      const points = series(rows, variant, mode).filter((row) => row.t >= SHORTEST)
      const [from, to] = [points[0]?.t, points.at(-1)?.t]
      if (points.length < 3 || from === undefined || to === undefined) return []
      return (['ms', 'bytes'] as const).map((of) => ({
        variant,
        mode,
        of,
        exponent: slope(points.map((row) => [Math.log(row.t), Math.log(row[of] ?? 0)])),
        from,
        to,
      }))
    }),
  )
}

function slope(points: readonly (readonly [number, number])[]): number {
  const mean = (i: 0 | 1): number => points.reduce((sum, p) => sum + p[i], 0) / points.length
  const [x, y] = [mean(0), mean(1)]
  const [num, den] = points.reduce(([n, d], p) => [n + (p[0] - x) * (p[1] - y), d + (p[0] - x) ** 2], [0, 0])
  return num / den
}

export function crossings(rows: readonly Row[], than = 'softmax'): Crossing[] {
  const names = [...new Set(rows.map((row) => row.variant))].filter((name) => name !== than)
  return names.flatMap((variant) =>
    (['forward', 'training'] as const).flatMap((mode): Crossing[] => {
      const slow = new Map(series(rows, than, mode).map((row) => [row.t, row.ms ?? 0]))
      const ratios = series(rows, variant, mode)
        .filter((row) => slow.has(row.t))
        .map((row) => ({ t: row.t, log: Math.log((row.ms ?? 0) / (slow.get(row.t) ?? 0)) }))
      if (ratios.length < 2) return []
      // The last length at which it is slower: from there on it wins.
      const last = ratios.findLastIndex(({ log }) => log > 0)
      if (last === -1) return [{ variant, than, mode, t: ratios[0]?.t ?? null }]
      const [a, b] = [ratios[last], ratios[last + 1]]
      if (!a || !b) return [{ variant, than, mode, t: null }]
      const along = a.log / (a.log - b.log)
      return [{ variant, than, mode, t: Math.round(a.t * (b.t / a.t) ** along) }]
    }),
  )
}

/** What must hold; on the CPU. */
export function requirements(rows: readonly Row[]): Requirement[] {
  const all = fits(rows)
  const exponent = (variant: string, mode: Mode, of: Fit['of']): number | null =>
    all.find((fit) => fit.variant === variant && fit.mode === mode && fit.of === of)?.exponent ?? null
  const ratio = (variant: string, mode: Mode, t: number): number | null => {
    const [a, b] = [variant, 'softmax'].map((name) => series(rows, name, mode).find((row) => row.t === t)?.ms)
    return a && b ? b / a : null
  }
  const T = 16384
  return (['forward', 'training'] as const).flatMap((mode) => {
    const linear = (what: string, value: number | null): Requirement => ({
      what: `${what}, ${mode}: exponent`,
      value,
      target: '≤ 1.1',
      met: value === null ? null : value <= 1.1,
    })
    const faster = (variant: string, times: number): Requirement => {
      const value = ratio(variant, mode, T)
      return {
        what: `${variant} at T = ${T}, ${mode}: times faster than softmax`,
        value,
        target: `≥ ${times}`,
        met: value === null ? null : value >= times,
      }
    }
    return [
      linear('memory of softmax', exponent('softmax', mode, 'bytes')),
      linear('time of linear attention', exponent('linear', mode, 'ms')),
      faster('window', 15),
      faster('blocks', 6),
    ]
  })
}
