import { expectFunction } from '../checks.ts'
import { info } from '../tensor/dtype.ts'
import { shownAs } from '../tensor/printing.ts'
import { refuseAsync } from '../tensor/scope.ts'
import type { Backend, DeviceSpan, DeviceTimer, View } from './backend.ts'
import { type Call, type Listener, listen } from './call.ts'

/**
 * How an operator was computed: by a fused kernel, a primitive, a composition of other operators, or in plain
 * JavaScript where a backend has no kernel for the dtype.
 */
export type Path = 'fused' | 'primitive' | 'composed' | 'javascript'

/** The calls of one operator that took one path. */
export interface ProfileRow {
  /** The operator's name. */
  readonly op: string
  /** How it was computed. */
  readonly path: Path
  /** The device. */
  readonly backend: string
  /** Whose clock `ms` is by: the calling thread's, or the device's own (see `profileAsync`). */
  readonly clock: 'host' | 'device'
  /** How often it was called. */
  calls: number
  /** Time of the calls in milliseconds; of composed operators, that of their parts included. */
  ms: number
  /** Arithmetic operations, where they are known: products, fused attention, elementwise expressions (a function counts as one). */
  flops: number
  /** Bytes of distinct elements read and written, as if nothing stayed in a cache. */
  bytes: number
}

/** One call: when it began, in milliseconds from the profile's start, and how long it took on the calling thread. */
interface Span {
  readonly row: ProfileRow
  readonly start: number
  readonly ms: number
  /** Its launches, among those that the device has timed. */
  readonly first: number
  readonly end: number
  readonly timer: DeviceTimer | null
}

/** When a call begins. */
interface Start {
  readonly at: number
  readonly first: number
}

/** What `profile` tells. */
export interface Profile<T> {
  /** What the function returned. */
  readonly result: T
  /** The most expensive first. */
  readonly rows: ProfileRow[]
  /** The rows as text, with GFLOP/s (TFLOP/s by a device's clock) and GB/s. */
  table(): string
  /**
   * The calls in Chrome's trace format: save as .json and open in a trace viewer. What a device has timed is a row of
   * its own, launch by launch.
   */
  chromeTrace(): string
}

class Recorder implements Listener {
  readonly rows = new Map<string, ProfileRow>()
  readonly spans: Span[] = []
  readonly began = performance.now()
  /** Backends by name with their timers, where device times are wanted. */
  readonly timers = new Map<Backend, DeviceTimer | null>()
  readonly #byDevice: boolean

  constructor(byDevice: boolean) {
    this.#byDevice = byDevice
  }

  #timer(backend: Backend): DeviceTimer | null {
    if (!this.#byDevice) return null
    let timer = this.timers.get(backend)
    if (timer === undefined) {
      timer = backend.timer?.start() ? backend.timer : null
      this.timers.set(backend, timer)
    }
    return timer
  }

  begin(backend: Backend): Start {
    return { first: this.#timer(backend)?.count() ?? 0, at: performance.now() }
  }

  composed(op: string, backend: Backend, begun: Start): void {
    this.#add(op, 'composed', backend, begun, 0, 0)
  }

  call({ op, path, backend, outputs, inputs, attrs, flops }: Call, go: () => void): void {
    taken = null
    const start = this.begin(backend)
    go()
    let bytes = 0
    for (const v of outputs) bytes += distinctBytes(v)
    for (const v of inputs) bytes += distinctBytes(v)
    this.#add(op, taken ?? path, backend, start, flops?.(inputs, attrs, outputs) ?? 0, bytes)
  }

  #add(op: string, path: Path, backend: Backend, { at, first }: Start, flops: number, bytes: number): void {
    const ms = performance.now() - at
    const timer = this.#timer(backend)
    const clock = timer ? 'device' : 'host'
    const key = `${op}|${path}|${backend.name}|${clock}`
    let row = this.rows.get(key)
    if (!row) {
      row = { op, path, backend: backend.name, clock, calls: 0, ms: 0, flops: 0, bytes: 0 }
      this.rows.set(key, row)
    }
    row.calls++
    if (!timer) row.ms += ms
    row.flops += flops
    row.bytes += bytes
    this.spans.push({ row, start: at - this.began, ms, first, end: timer?.count() ?? 0, timer })
  }

  /** Ends the timers and books what they measured. */
  async collect(): Promise<DeviceSpan[]> {
    const all: DeviceSpan[] = []
    for (const timer of this.timers.values()) {
      if (!timer) continue
      const times = await timer.stop()
      all.push(...times)
      for (const { row, first, end, timer: by } of this.spans)
        if (by === timer) for (let i = first; i < end; i++) row.ms += times[i].ms
    }
    return all
  }

  profile<T>(result: T, device: readonly DeviceSpan[]): Profile<T> {
    const rows = [...this.rows.values()].sort((a, b) => b.ms - a.ms)
    const text = (): string => table(rows)
    return shownAs({ result, rows, table: text, chromeTrace: () => trace(this.spans, device) }, text)
  }
}

let taken: Path | null = null

/** For backends: says, from within a kernel's `run`, that it went another way than its place in the table tells. */
export function reportPath(path: Path): void {
  taken = path
}

/** Expanded dims are read again and again, but are only there once. */
const distinctBytes = ({ shape, strides, dtype }: View): number =>
  shape.reduce((n, size, d) => (strides[d] === 0 && size > 0 ? n : n * size), info[dtype].bytes)

/**
 * Runs `fn` and says which operators ran, how often, for how long, by which path, and how fast in GFLOP/s and GB/s.
 * Times are those of the calling thread: on a GPU, which computes later, they are what it took to tell it, and
 * `profileAsync` gives those of the GPU. Profiles do not nest: an inner one takes over until it ends.
 *
 * @throws GradError for an asynchronous function.
 * @example
 * const { table } = profile(() => randn([64, 64]).matmul(randn([64, 64])))
 * console.log(table())
 */
export function profile<T>(fn: () => T): Profile<T> {
  expectFunction('profile', fn)
  const mine = new Recorder(false)
  const outer = listen(mine)
  try {
    const result = fn()
    refuseAsync('profile', result, 'what it does later is not counted. Use profileAsync')
    return mine.profile(result, [])
  } finally {
    listen(outer)
  }
}

/**
 * Profiles an asynchronous function, or a device, with times by the device's own clock where it has one: on GPUs
 * with timestamp queries. Launches do not overlap while they are timed, so that the sum is more than a step takes
 * otherwise. Browsers round such times, to 100 µs as a rule. Whatever else runs meanwhile is counted, too.
 *
 * @example
 * const { rows } = await profileAsync(async () => randn([8, 8]).matmul(randn([8, 8])).data())
 * rows.some((row) => row.op === 'matmul') // → true
 */
export async function profileAsync<T>(fn: () => T | Promise<T>): Promise<Profile<T>> {
  expectFunction('profileAsync', fn)
  const mine = new Recorder(true)
  const outer = listen(mine)
  let result: T
  try {
    result = await fn()
  } catch (error) {
    await mine.collect()
    throw error
  } finally {
    listen(outer)
  }
  return mine.profile(result, await mine.collect())
}

function table(rows: readonly ProfileRow[]): string {
  const total = rows.reduce((s, r) => s + (r.path === 'composed' ? 0 : r.ms), 0)
  const byDevice = rows.some((r) => r.clock === 'device')
  const rate = (amount: number, ms: number, digits = 1): string =>
    amount > 0 && ms > 0 ? (amount / ms / 1e6).toFixed(digits) : ''
  const lines = rows.map((r) => [
    r.op,
    r.path,
    r.backend,
    ...(byDevice ? [r.clock] : []),
    String(r.calls),
    r.ms.toFixed(3),
    r.path === 'composed' ? '' : `${((100 * r.ms) / total).toFixed(1)}%`,
    byDevice ? rate(r.flops / 1000, r.ms, 3) : rate(r.flops, r.ms),
    rate(r.bytes, r.ms),
  ])
  const names = ['operator', 'path', 'device', ...(byDevice ? ['clock'] : [])]
  const all = [[...names, 'calls', 'ms', 'share', byDevice ? 'TFLOP/s' : 'GFLOP/s', 'GB/s'], ...lines]
  const widths = all[0].map((_, c) => Math.max(...all.map((row) => row[c].length)))
  return all
    .map((row) =>
      row.map((cell, c) => (c < names.length ? cell.padEnd(widths[c]) : cell.padStart(widths[c]))).join('  '),
    )
    .join('\n')
}

function trace(spans: readonly Span[], device: readonly DeviceSpan[]): string {
  const event = (name: string, cat: string, start: number, ms: number, tid: number) => ({
    name,
    cat,
    ph: 'X',
    ts: start * 1000,
    dur: ms * 1000,
    pid: 1,
    tid,
  })
  const events = [
    ...spans.map((s) => event(s.row.op, s.row.path, s.start, s.ms, 1)),
    ...device.map((s) => event(s.label, 'device', s.start, s.ms, 2)),
  ]
  return JSON.stringify({ traceEvents: events })
}
