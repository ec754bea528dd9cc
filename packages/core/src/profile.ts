import type { Backend, KernelOf, View } from './backend.ts'
import { info } from './dtype.ts'
import { numel } from './layout.ts'
import { type Kernel, typedPostOrder } from './program.ts'

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
  /** Arithmetic operations, where they are known: products, fused attention, elementwise expressions (a function counts as one). */
  flops: number
  /** Bytes of distinct elements read and written, as if nothing stayed in a cache. */
  bytes: number
}

/** One call: when it began, in milliseconds from the profile's start, and how long it took. */
interface Span {
  readonly name: string
  readonly path: Path
  readonly start: number
  readonly ms: number
}

export interface Profile<T> {
  readonly result: T
  /** The most expensive first. */
  readonly rows: ProfileRow[]
  /** The rows as text, with GFLOP/s and GB/s. */
  table(): string
  /** The calls in Chrome's trace format: save as .json and open in a trace viewer. */
  chromeTrace(): string
}

class Recorder {
  readonly rows = new Map<string, ProfileRow>()
  readonly spans: Span[] = []
  readonly began = performance.now()

  add(op: string, path: Path, backend: string, start: number, flops: number, bytes: number): void {
    const ms = performance.now() - start
    this.spans.push({ name: op, path, start: start - this.began, ms })
    const key = `${op}|${path}|${backend}`
    let row = this.rows.get(key)
    if (!row) {
      row = { op, path, backend, calls: 0, ms: 0, flops: 0, bytes: 0 }
      this.rows.set(key, row)
    }
    row.calls++
    row.ms += ms
    row.flops += flops
    row.bytes += bytes
  }
}

let recorder: Recorder | null = null
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
  flops?: (inputs: readonly View[], attrs: A) => number,
): void {
  if (recorder === null) return kernel.run(outputs, inputs, attrs)
  taken = null
  const start = performance.now()
  kernel.run(outputs, inputs, attrs)
  let work = 0
  if (flops) work = flops(inputs, attrs)
  else if ((kernel as unknown) === backend.kernels.matmul)
    work = 2 * numel(outputs[0].shape) * (inputs[0].shape.at(-1) ?? 0)
  else if ((kernel as unknown) === backend.kernels.elementwise)
    work = expressionWork((attrs as { kernel: Kernel }).kernel) * numel(outputs[0].shape)
  let bytes = 0
  for (const v of outputs) bytes += distinctBytes(v)
  for (const v of inputs) bytes += distinctBytes(v)
  recorder.add(op, taken ?? path, backend.name, start, work, bytes)
}

/** @internal Arithmetic nodes of an expression, per element. */
export const expressionWork = (kernel: Kernel): number =>
  typedPostOrder(kernel.exprs).filter((t) => t.kind === 'unary' || t.kind === 'binary').length

/** Expanded dims are read again and again, but are only there once. */
const distinctBytes = ({ shape, strides, dtype }: View): number =>
  shape.reduce((n, size, d) => (strides[d] === 0 && size > 0 ? n : n * size), info[dtype].bytes)

/** @internal When a composed operator began, or NaN where nobody is profiling. */
export const startSpan = (): number => (recorder === null ? Number.NaN : performance.now())

/** @internal Counts a composed operator. */
export function endSpan(op: string, backend: Backend, start: number): void {
  if (recorder !== null && !Number.isNaN(start)) recorder.add(op, 'composed', backend.name, start, 0, 0)
}

/**
 * Runs `fn` and says which operators ran, how often, for how long, by which path, and how fast in GFLOP/s and GB/s.
 * Profiles do not nest: an inner one takes over until it ends.
 *
 * @example
 * const { table } = profile(() => randn([64, 64]).matmul(randn([64, 64])))
 * console.log(table())
 */
export function profile<T>(fn: () => T): Profile<T> {
  const outer = recorder
  const mine = new Recorder()
  recorder = mine
  try {
    const result = fn()
    const rows = [...mine.rows.values()].sort((a, b) => b.ms - a.ms)
    return { result, rows, table: () => table(rows), chromeTrace: () => trace(mine.spans) }
  } finally {
    recorder = outer
  }
}

function table(rows: readonly ProfileRow[]): string {
  const total = rows.reduce((s, r) => s + (r.path === 'composed' ? 0 : r.ms), 0)
  const rate = (amount: number, ms: number): string => (amount > 0 ? (amount / ms / 1e6).toFixed(1) : '')
  const lines = rows.map((r) => [
    r.op,
    r.path,
    r.backend,
    String(r.calls),
    r.ms.toFixed(3),
    r.path === 'composed' ? '' : `${((100 * r.ms) / total).toFixed(1)}%`,
    rate(r.flops, r.ms),
    rate(r.bytes, r.ms),
  ])
  const all = [['operator', 'path', 'device', 'calls', 'ms', 'share', 'GFLOP/s', 'GB/s'], ...lines]
  const widths = all[0].map((_, c) => Math.max(...all.map((row) => row[c].length)))
  return all
    .map((row) =>
      row.map((cell, c) => (c < 3 ? cell.padEnd(widths[c]) : cell.padStart(widths[c]))).join('  '),
    )
    .join('\n')
}

function trace(spans: readonly Span[]): string {
  const events = spans.map((s) => ({
    name: s.name,
    cat: s.path,
    ph: 'X',
    ts: s.start * 1000,
    dur: s.ms * 1000,
    pid: 1,
    tid: 1,
  }))
  return JSON.stringify({ traceEvents: events })
}
