/** Every variant against the length. */
import {
  grad,
  OutOfMemoryError,
  type ProfileRow,
  profile,
  rand,
  reference,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { agree } from '../cpu/harness.ts'
import { LONG, type Meter } from './meter.ts'
import type { Attend, Variant } from './variants.ts'

export type Mode = 'forward' | 'training'

export interface Row {
  readonly variant: string
  readonly mode: Mode
  readonly t: number
  /** Milliseconds; null where it was not run. */
  readonly ms: number | null
  readonly runs: number
  /** Most bytes in use beyond the inputs. */
  readonly bytes: number | null
  /** How the variant's operator was computed. */
  readonly path: ProfileRow['path'] | 'written out' | null
  readonly note?: string
}

export interface Limits {
  /** Seconds that one execution may take. */
  readonly seconds: number
  /** Bytes that one execution may take. */
  readonly bytes: number
}

export const [B, H, D] = [1, 8, 64]
const signed = (shape: readonly number[]): Tensor => scope(() => rand(shape).mul(2).sub(1))

/** q, k, v and what else a variant takes, and the gradient of its output. */
function inputsOf(variant: Variant, h: number, t: number): { xs: Tensor[]; g: Tensor } {
  const shape = [B, h, t, D]
  const xs = [signed(shape), signed(shape), signed(shape), ...(variant.more?.(B, h, t, D) ?? [])]
  return { xs, g: signed(shape) }
}

function both(attend: Attend, xs: readonly Tensor[], g: Tensor): Tensor[] {
  for (const x of xs) x.requiresGrad = true
  const y = attend(...(xs as [Tensor, Tensor, Tensor]))
  return [y, ...grad(y, xs, { gradOutputs: [g] })]
}

/** Throws unless output and gradients are those of the definition in float64. */
export async function check(variant: Variant): Promise<void> {
  // Long enough for windows and blocks to hide something; recurrences for several chunks and a part of one.
  const [h, t] = [2, variant.op === 'scaled_dot_product_attention' ? 577 : 150]
  const { xs, g } = inputsOf(variant, h, t)
  const data = await Promise.all([...xs, g].map(async (x) => ({ data: await x.data(), shape: x.shape })))
  const { attend, held } = variant.prepare(h, t)
  const got = scope(() => both(attend, xs, g))
  const expected = withBackend(reference, () =>
    scope(() => {
      const wide = data.map(({ data, shape }) => tensor(Float64Array.from(data), shape))
      return both(variant.defined, wide.slice(0, -1), wide.at(-1) as Tensor).map((y) => y.dataSync())
    }),
  )
  for (const [i, y] of got.entries()) agree(await y.data(), expected[i])
  for (const x of [...xs, ...got, g]) x.dispose()
  held?.dispose()
}

async function measure(variant: Variant, mode: Mode, t: number, meter: Meter): Promise<Row> {
  const made: { dispose(): void }[] = []
  try {
    const { xs, g } = inputsOf(variant, H, t)
    made.push(...xs, g)
    const { attend, held } = variant.prepare(H, t)
    if (held) made.push(held)
    for (const x of xs) x.requiresGrad = mode === 'training'
    const run = (): void =>
      scope(() => {
        const y = attend(...(xs as [Tensor, Tensor, Tensor]))
        if (mode === 'training') grad(y, xs, { gradOutputs: [g] })
      })
    let path: Row['path'] = 'written out'
    const first = await meter.first(() => {
      const { rows } = profile(run)
      if (variant.op) path = rows.find((row) => row.op === variant.op)?.path ?? null
    })
    const { ms, runs } = first.ms > LONG ? { ms: first.ms, runs: 1 } : await meter.time(run)
    return { variant: variant.name, mode, t, ms, runs, bytes: first.bytes, path }
  } finally {
    for (const x of made) x.dispose()
  }
}

/** From the shortest to the longest that time and memory allow, told by how they grew so far. */
export async function* sweep(
  variant: Variant,
  mode: Mode,
  lengths: readonly number[],
  meter: Meter,
  limits: Limits,
): AsyncGenerator<Row> {
  const done: Row[] = []
  const next = (of: 'ms' | 'bytes'): number => {
    const [before, last] = [done.at(-2)?.[of], done.at(-1)?.[of]]
    return last ? last * Math.min(4.5, Math.max(2, before ? last / before : 4)) : 0
  }
  for (const t of lengths) {
    const none = { variant: variant.name, mode, t, ms: null, runs: 0, bytes: null, path: null }
    const [seconds, bytes] = [next('ms') / 1000, next('bytes')]
    if (seconds > limits.seconds) {
      yield { ...none, note: `would take about ${seconds.toFixed(0)} s` }
      return
    }
    if (bytes > limits.bytes) {
      yield { ...none, note: `would take about ${(bytes / 2 ** 30).toFixed(1)} GiB` }
      return
    }
    try {
      const row = await measure(variant, mode, t, meter)
      done.push(row)
      yield row
    } catch (error) {
      if (!(error instanceof OutOfMemoryError)) throw error
      yield { ...none, note: 'out of memory' }
      return
    }
  }
}
