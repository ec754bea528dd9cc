/** Attention on GPUs of several kinds against core's composition in float64. */

import {
  type AttentionOptions,
  type Backend,
  grad,
  profile,
  reference,
  scaledDotProductAttention,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { beforeEach, expect } from 'vitest'
import type { WebGpuBackend } from '../../src/index.ts'
import { attention, attentionBackward } from '../../src/kernels/attention/attention.ts'
import { sharedGpu } from './shared-gpu.ts'

/** Options, or what makes them on a device: a seed set there makes every device drop the same weights. */
type Options = AttentionOptions | ((device: Backend) => AttentionOptions)

export const shared = await sharedGpu()
export const gpus: [string, WebGpuBackend][] = [
  ['all limits', shared.full()],
  ['default limits', shared.plain()],
]
/** What larger GPUs do: rows and values are read where they lie. */
const inPlace = shared.full()
const small = { ty: 16, rm: 1, tx: 4, kn: 4 }
Object.assign(inPlace.kernels, {
  scaled_dot_product_attention: attention(inPlace.engine, [{ ...small, inPlace: 'rows and values' }], null),
  scaled_dot_product_attentionBackward: attentionBackward(inPlace.engine, [{ ...small, inPlace: 'rows' }]),
})
gpus.push(['in place', inPlace])

/** What they do as well, unless blocks are skipped: dQ is a product of the stored dS, here for a head or two at a time. */
const stored = shared.full()
Object.assign(stored.kernels, {
  scaled_dot_product_attentionBackward: attentionBackward(stored.engine, undefined, {
    bytes: 2 ** 18,
    leastGroups: 1,
  }),
})
gpus.push(['stored', stored])

export function closeGpus(): void {
  for (const [, gpu] of gpus) gpu.close()
}

let seed = 1
// A test's numbers are the same whichever ran before it.
beforeEach(() => {
  seed = 1
})
const random = (): number => {
  seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff
  return seed / 0x40000000 - 1
}
export const numbers = (...shape: number[]): Float32Array =>
  Float32Array.from({ length: shape.reduce((n, s) => n * s, 1) }, random)

export interface Sizes {
  B?: number
  H?: number
  Hk?: number
  T: number
  S?: number
  D?: number
  Dv?: number
}

export interface Data {
  readonly data: Float32Array | Uint8Array
  readonly shape: readonly number[]
  /** What makes the operand of a tensor with these data. */
  readonly view?: (t: Tensor) => Tensor
}

export interface Case {
  readonly q: Data
  readonly k: Data
  readonly v: Data
  readonly dout: Data
  readonly mask?: Data
  readonly options?: Options
  /** The gradients must be parts of one. */
  readonly packed?: boolean
  /** What it is about, in messages. */
  readonly about?: string
}

export const dense = (...shape: number[]): Data => ({ data: numbers(...shape), shape })

export function make({ B = 1, H = 2, Hk = H, T, S = T, D = 16, Dv = D }: Sizes, options: Options = {}): Case {
  return {
    q: dense(B, H, T, D),
    k: dense(B, Hk, S, D),
    v: dense(B, Hk, S, Dv),
    dout: dense(B, H, T, Dv),
    options,
  }
}

/** Heads of one projection: their gradients are parts of one tensor. */
export function ofProjection(sizes: Sizes, options: Options = {}): Case {
  const { B = 1, T, H = 1, Hk = H, D = 16 } = sizes
  const data = numbers(B, T, H + 2 * Hk, D)
  const heads = (from: number, count: number): Data => ({
    data,
    shape: [B, T, H + 2 * Hk, D],
    view: (t) => t.narrow(2, from, count).transpose(1, 2),
  })
  const [q, k, v] = [heads(0, H), heads(H, Hk), heads(H + Hk, Hk)]
  return { ...make(sizes, options), q, k, v, packed: true }
}

/** Data that were placed before, as `placed` tells, are views of the same memory. */
export const place = (
  device: typeof reference | WebGpuBackend,
  { data, shape, view }: Data,
  placed = new Map<unknown, Tensor>(),
): Tensor => {
  const numbers = device === reference && data instanceof Float32Array ? Float64Array.from(data) : data
  const t =
    placed.get(data) ?? tensor(numbers, { device, ...(data instanceof Uint8Array && { dtype: 'bool' }) })
  placed.set(data, t)
  const whole = t.reshape(shape)
  return view ? view(whole) : whole
}

/** Output and gradients of q, k, v. */
export async function compute(
  device: typeof reference | WebGpuBackend,
  { q, k, v, dout, mask, options, packed }: Case,
  needs: readonly boolean[] = [true, true, true],
): Promise<(Float32Array | Float64Array)[]> {
  const placed = new Map<unknown, Tensor>()
  const inputs = [q, k, v].map((x) => place(device, x, placed).detach())
  inputs.forEach((t, i) => {
    if (needs[i]) t.requiresGrad = true
  })
  const [a, b, c] = inputs as [Tensor, Tensor, Tensor]
  const attnMask = mask ? place(device, mask) : null
  const { result, rows } = profile(() => {
    const out = scaledDotProductAttention(a, b, c, {
      ...(typeof options === 'function' ? options(device) : options),
      attnMask,
    })
    const wanted = inputs.filter((_, i) => needs[i])
    const grads = wanted.length === 0 ? [] : grad([out], wanted, { gradOutputs: [place(device, dout)] })
    return [out, ...grads] as Tensor[]
  })
  if (device !== reference) {
    const fused = rows.filter((r) => r.path === 'fused' && r.op.startsWith('scaled')).map((r) => r.op)
    const want = ['scaled_dot_product_attention', 'scaled_dot_product_attentionBackward']
    expect(fused.sort()).toEqual(want.slice(0, needs.some(Boolean) ? 2 : 1))
    if (packed) expect(new Set(result.slice(1).map((g) => g.storage)).size).toBe(1)
  }
  return Promise.all(result.map(async (t) => (await t.data()) as Float32Array | Float64Array))
}

const names = ['out', 'first gradient', 'second gradient', 'third gradient']

/**
 * Scores are sums of D ≤ 128 products below 1: their errors, some 10⁻⁷ to 10⁻⁶, become relative errors of the weights, so
 * outputs, means of values below 1, get 3·10⁻⁶ and gradients, sums of terms of either sign, 6·10⁻⁶ of the
 * largest of their tensor. The reference computes in float64.
 */
export async function check(
  c: Case,
  needs: readonly boolean[] = [true, true, true],
  without: readonly string[] = [],
  on: readonly (readonly [string, WebGpuBackend])[] = gpus,
): Promise<void> {
  const want = await compute(reference, c, needs)
  const given = (typeof c.options === 'function' ? c.options(reference) : c.options) ?? {}
  const skipped = given.window || given.globalTokens || given.blockMask ? [...without, 'stored'] : without
  for (const [limits, gpu] of on.filter(([name]) => !skipped.includes(name))) {
    const got = await compute(gpu, c, needs)
    got.forEach((x, which) => {
      const exact = want[which] as Float64Array
      const largest = exact.reduce((m, y) => Math.max(m, Math.abs(y)), 0)
      // Outputs are weighted means of numbers of about 1, and round as those; gradients add up more.
      const most = which === 0 ? 3e-6 * Math.max(1, largest) : 1e-6 + 6e-6 * largest
      expect(x.length).toBe(exact.length)
      let worst = 0
      // The largest, NaN if there is one.
      for (let i = 0; i < x.length; i++)
        worst = Math.max(worst, Math.abs((x[i] as number) - (exact[i] as number)))
      const shapes = [c.q, c.k, c.v].map((o) => o.shape.join('×')).join(', ')
      expect(
        worst,
        `${limits}: ${names[which]} of ${shapes}, ${c.about ?? JSON.stringify(c.options)}`,
      ).toBeLessThan(most)
    })
  }
}
