import type { CpuBackend, Peaks } from '@tilegrad/backend-cpu'

/** Where everything runs: one engine for all workloads of a session. */
export interface Context {
  readonly backend: CpuBackend
  readonly peaks: Peaks
  /** Timed runs per workload, three where one takes over a second; the median counts. */
  readonly runs: number
}

/** What a workload cannot do without, for its floor: the larger of the two times. */
export interface Work {
  /** Floating-point operations; an instruction that is no multiply-add counts as one. */
  readonly flops?: number
  /** Bytes that have to be read and written; 'read' if (nearly) all are only read, over and over. */
  readonly bytes?: number
  readonly traffic?: 'copy' | 'read'
}

/** Ready to be timed, after its results have been checked against float64. */
export interface Prepared {
  /** One execution; it is over when this returns. */
  run(): void
  /** What it computes, at the positions of peers/inputs.ts. */
  values(): number[]
  readonly work?: Work
  /** Operators per execution, where one is too short to time; default 1. */
  readonly count?: number
}

/** All that is given must hold. */
export interface Target {
  /** At most so many milliseconds. */
  readonly ms?: number
  /** The floor divided by the time: at least. */
  readonly share?: number
  /** Times a peer's time of the same session: at most. */
  readonly peers?: Readonly<Record<string, number>>
}

/** `wide`: 256-bit arithmetic, as on Node ≥ 24. */
export type Workload = readonly [name: string, target: (wide: boolean) => Target, prepare: () => Prepared]

export interface Result {
  readonly value: number
  readonly unit: string
  readonly target: string
  readonly met: boolean | null
}

/** A figure that is no time of one workload, such as bytes or a speed-up; null where what it needs was not run. */
export interface Figure {
  readonly name: string
  measure(context: Context, times: ReadonlyMap<string, number>): Result | null | Promise<Result | null>
}

export const median = (list: readonly number[]): number => [...list].sort((a, b) => a - b)[list.length >> 1]

/** Wall time in milliseconds. */
export function ms(run: () => void): number {
  const begin = performance.now()
  run()
  return performance.now() - begin
}

/** The largest difference, relative to the largest expected number. */
export function deviation(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (got.length !== expected.length) return Number.NaN
  let [size, off] = [0, 0]
  for (let i = 0; i < got.length; i++) {
    size = Math.max(size, Math.abs(expected[i]))
    off = Math.max(off, Math.abs(got[i] - expected[i]))
  }
  return off / size
}

/** Throws where results are off. float32 adds in another order: for sums of up to 4,096 terms 10⁻⁴ is generous. */
export function agree(got: ArrayLike<number>, expected: ArrayLike<number>, most = 1e-4): void {
  const off = deviation(got, expected)
  if (!(off < most)) throw new Error(`wrong by ${off} of the largest value`)
}

/** Milliseconds that the work takes at the peaks of this moment. */
function floorNow({ flops = 0, bytes = 0, traffic = 'copy' }: Work, peaks: Peaks): number {
  const arithmetic = flops === 0 ? 0 : flops / peaks.flops() / 1e6
  const memory = bytes === 0 ? 0 : bytes / peaks[traffic](bytes) / 1e6
  return Math.max(arithmetic, memory)
}

/** Medians, and the shortest of the runs: what the machine does when nobody else wants it. */
export interface Timing {
  readonly ms: number
  readonly floorMs: number | null
  readonly best: { readonly ms: number; readonly floorMs: number | null }
}

/** Median time of one execution, and of its floor, measured in turns: both see the same noise. */
export function timed({ run, work, count = 1 }: Prepared, { runs, peaks }: Context): Timing {
  const once = (repeat: number): number =>
    ms(() => {
      for (let r = 0; r < repeat; r++) run()
    }) / repeat
  // Warm-up: kernels are compiled and JavaScript is optimised.
  const until = performance.now() + 200
  let last = once(1)
  for (let n = 1; n < 2 || performance.now() < until; n++) last = Math.min(last, once(1))
  const repeat = Math.max(1, Math.ceil(20 / last))
  const times: number[] = []
  const floors: number[] = []
  for (let i = 0; i < (last > 1000 ? 3 : runs); i++) {
    if (work) floors.push(floorNow(work, peaks) / count)
    // The floor has emptied the caches.
    if (repeat > 1) once(1)
    times.push(once(repeat) / count)
  }
  const by = (f: (list: readonly number[]) => number) => ({ ms: f(times), floorMs: work ? f(floors) : null })
  return { ...by(median), best: by((list) => Math.min(...list)) }
}
