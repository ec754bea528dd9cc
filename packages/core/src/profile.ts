import type { Backend, KernelOf, View } from './backend.ts'

/**
 * How an operator was computed: by a backend's fused kernel, by a primitive kernel, composed of other operators, or by
 * the plain-JavaScript kernels that a backend falls back on.
 */
export type Path = 'fused' | 'primitive' | 'composed' | 'javascript'

export interface ProfileRow {
  readonly op: string
  readonly path: Path
  readonly backend: string
  calls: number
  /** Wall time of the calls on the calling thread, in milliseconds; of composed operators, that of their parts included. */
  ms: number
}

let rows: Map<string, ProfileRow> | null = null
let taken: Path | null = null

/** For backends: says, from within a kernel's `run`, that it went another way than its place in the table tells. */
export function reportPath(path: Path): void {
  taken = path
}

/** @internal Runs a kernel; counted where a profile is being taken. */
export function launch<A>(
  op: string,
  path: Path,
  backend: Backend,
  kernel: KernelOf<A>,
  outputs: readonly View[],
  inputs: readonly View[],
  attrs: A,
): void {
  if (rows === null) return kernel.run(outputs, inputs, attrs)
  taken = null
  const start = performance.now()
  kernel.run(outputs, inputs, attrs)
  count(op, taken ?? path, backend.name, performance.now() - start)
}

/** @internal */
export function count(op: string, path: Path, backend: string, ms: number): void {
  if (rows === null) return
  const key = `${op}|${path}|${backend}`
  const row = rows.get(key)
  if (row) {
    row.calls++
    row.ms += ms
  } else rows.set(key, { op, path, backend, calls: 1, ms })
}

/** @internal */
export const profiling = (): boolean => rows !== null

/**
 * Runs `fn` and says which operators ran, how often, for how long and by which path; the most expensive first.
 * Profiles do not nest: an inner one takes over until it ends.
 */
export function profile<T>(fn: () => T): { result: T; rows: ProfileRow[] } {
  const outer = rows
  const mine = new Map<string, ProfileRow>()
  rows = mine
  try {
    const result = fn()
    return { result, rows: [...mine.values()].sort((a, b) => b.ms - a.ms) }
  } finally {
    rows = outer
  }
}
