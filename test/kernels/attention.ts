/** Softmax attention by the way of the public operator, against core's composition in float64. */

import {
  type AttentionOptions,
  type Backend,
  grad,
  profile,
  reference,
  scaledDotProductAttention,
  type Tensor,
  type TypedArray,
  tensor,
} from '@tilegrad/core'
import { beforeEach, expect } from 'vitest'
import type { Engine } from './fused.ts'
import { largest, mismatch } from './operand.ts'
import { random } from './random.ts'

/** Options, or what makes them on a device: a seed set there makes every device drop the same weights. */
type Options = AttentionOptions | ((device: Backend) => AttentionOptions)

let rnd = random(1)
// A test's numbers are the same whichever ran before it.
beforeEach(() => {
  rnd = random(1)
})
/** Numbers from −1 to 1. */
export const numbers = (...shape: number[]): Float32Array =>
  Float32Array.from({ length: shape.reduce((n, s) => n * s, 1) }, () => 2 * rnd() - 1)

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
  device: Backend,
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
  device: Backend,
  { q, k, v, dout, mask, options, packed }: Case,
  needs: readonly boolean[] = [true, true, true],
): Promise<(Float32Array | Float64Array)[]> {
  const placed = new Map<unknown, Tensor>()
  const inputs = [q, k, v].map((x) => place(device, x, placed).detach())
  inputs.forEach((t, i) => {
    if (needs[i]) t.requiresGrad = true
  })
  const [a, b, c] = inputs
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

/** By how much a result may differ, the output or a gradient, whose largest element is given. */
export type Within = (which: number, largest: number) => readonly [atol: number, rtol: number]

/** All backends within the tolerances of the reference, and bit by bit alike where they are of one kind. */
export async function checkAttention(
  { backends }: Pick<Engine, 'backends'>,
  c: Case,
  needs: readonly boolean[],
  within: Within,
): Promise<void> {
  const want = await compute(reference, c, needs)
  const first = new Map<string, readonly TypedArray[]>()
  for (const { name, backend, kind } of backends) {
    const got = await compute(backend, c, needs)
    const same = first.get(kind) ?? got
    first.set(kind, same)
    got.forEach((x, which) => {
      const shapes = [c.q, c.k, c.v].map((o) => o.shape.join('×')).join(', ')
      const context = `${name}: ${names[which]} of ${shapes}, ${c.about ?? JSON.stringify(c.options)}`
      const [atol, rtol] = within(which, largest(want[which]))
      expect(mismatch(x, want[which], atol, rtol), context).toBeNull()
      expect(mismatch(x, same[which]), `${context}, bits`).toBeNull()
    })
  }
}
