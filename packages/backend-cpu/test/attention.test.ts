/**
 * Fused softmax attention, forward and backward, against the plain formulas in float64, for all kinds of
 * shapes, strides and masks; bit by bit the same on any number of threads; and never T×S numbers in memory.
 */

import {
  type AttentionAttrs,
  backward,
  type Layout,
  layout,
  profile,
  scaledDotProductAttention,
  tensor,
  type View,
} from '@tilegrad/core'
import { takes } from '@tilegrad/core/kernel'
import { afterAll, describe, expect, test } from 'vitest'
import { testAttention } from '../../../test/kernels/attention.cases.ts'
import { checkAttention, type Sizes } from '../../../test/kernels/attention.ts'
import { elements, extent, mismatch, type Operand, operand } from '../../../test/kernels/operand.ts'
import { integer, pick, random } from '../../../test/kernels/random.ts'
import { collected } from '../../core/test/support/collected.ts'
import { createCpuBackend } from '../src/backend.ts'
import type { Engine } from '../src/engine.ts'
import { attention, attentionBackward } from '../src/kernels/attention/attention.ts'
import { backends, engineBy, engines } from './support/engine.ts'
import { get, output, put, release } from './support/memory.ts'

const dense = (...shape: number[]): Layout => ({ shape, strides: layout.contiguousStrides(shape), offset: 0 })
const floats = (rnd: () => number, l: Layout, range = 1): Operand =>
  operand(l, 'float32', () => range * (2 * rnd() - 1))

interface Case {
  readonly q: Operand
  readonly k: Operand
  readonly v: Operand
  readonly mask: Operand | null
  readonly dout: Operand
  readonly attrs: AttentionAttrs
}

/** out, stats (the maxima of rows, then their sums), dq, dk, dv by the formulas, in float64. */
function plain({ q, k, v, mask, dout, attrs }: Case): Float64Array[] {
  const [B, H, T, D] = q.layout.shape as [number, number, number, number]
  const [, Hk, S] = k.layout.shape as [number, number, number]
  const Dv = v.layout.shape[3] as number
  const results = [B * H * T * Dv, 2 * B * H * T, B * H * T * D, B * Hk * S * D, B * Hk * S * Dv].map(
    (n) => new Float64Array(n),
  )
  const [out, stats, dq, dk, dv] = results as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
  ]
  const offset = attrs.causal === 'bottom-right' ? S - T : 0
  const [Q, K, V, G] = [elements(q), elements(k), elements(v), elements(dout)] as const
  const added = mask && elements(mask)
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      const hk = Math.floor(h / (H / Hk))
      for (let i = 0; i < T; i++) {
        const row = (b * H + h) * T + i
        const scores = new Float64Array(S)
        let top = -Infinity
        for (let j = 0; j < S; j++) {
          const ahead = j - i - offset
          const key = ((b * Hk + hk) * S + j) * D
          let s = 0
          for (let d = 0; d < D; d++) s += Q[row * D + d]! * K[key + d]!
          s *= attrs.scale
          if (added) {
            const m = added[row * S + j]!
            s = mask.dtype === 'bool' ? (m ? s : -Infinity) : s + m
          }
          if ((attrs.causal !== 'none' && ahead > 0) || (attrs.window > 0 && ahead <= -attrs.window))
            s = -Infinity
          scores[j] = s
          top = Math.max(top, s)
        }
        stats[row] = top
        if (top === -Infinity) continue
        const p = scores.map((s) => Math.exp(s - top))
        const sum = p.reduce((x, y) => x + y, 0)
        stats[B * H * T + row] = sum
        let delta = 0
        const dp = new Float64Array(S)
        for (let j = 0; j < S; j++) {
          p[j]! /= sum
          const weight = p[j]!
          const value = ((b * Hk + hk) * S + j) * Dv
          let product = 0
          for (let d = 0; d < Dv; d++) {
            const g = G[row * Dv + d]!
            out[row * Dv + d]! += weight * V[value + d]!
            product += g * V[value + d]!
            dv[value + d]! += weight * g
          }
          dp[j] = product
          delta += weight * product
        }
        for (let j = 0; j < S; j++) {
          const ds = attrs.scale * p[j]! * (dp[j]! - delta)
          const key = ((b * Hk + hk) * S + j) * D
          for (let d = 0; d < D; d++) {
            dq[row * D + d]! += ds * K[key + d]!
            dk[key + d]! += ds * Q[row * D + d]!
          }
        }
      }
    }
  }
  return results
}

/** Rows of all heads one after the other, with gaps between rows and before them. */
function gaps(shape: readonly number[], gap: number): Layout {
  const [, H, T, D] = shape as [number, number, number, number]
  const row = D + gap
  return { shape, strides: [T * (H + 1) * row, row, (H + 1) * row, 1], offset: gap }
}

/** What was written to the elements of a layout; all others must be as `put` left them. */
function written(engine: Engine, view: View): Float32Array {
  if (layout.numel(view.shape) === 0) return new Float32Array(0)
  const n = extent(view)
  const all = get(engine, { ...view, shape: [n], strides: [1], offset: 0 }) as Float32Array
  const got = new Float32Array(layout.numel(view.shape))
  layout.forEachOffset(view, (at, i) => {
    got[i] = all[at] as number
    all[at] = -77
  })
  expect(all.every((x) => x === -77)).toBe(true)
  return got
}

/** The same by the kernels; gradients that are not needed are null. With `gap`, results lie apart: see `gaps`. */
function run(engine: Engine, c: Case, needs: readonly boolean[], gap = -1): (Float32Array | null)[] {
  const { q, k, v, mask, dout, attrs } = c
  const [B, H, T] = q.layout.shape as [number, number, number]
  const shapes = [q, k, v].map((x) => x.layout.shape)
  const inputs = [q, k, v, ...(mask ? [mask] : [])].map((x) => put(engine, x))
  const result = (shape: readonly number[]): View => {
    if (gap < 0) return output(engine, shape, 'float32')
    const l = gaps(shape, gap)
    return put(engine, { layout: l, dtype: 'float32', data: new Float32Array(extent(l)).fill(-77) })
  }
  const out = result([B, H, T, v.layout.shape[3] as number])
  const stats = output(engine, [2, B, H, T], 'float32')
  const fused = attention(engine)
  expect(takes(fused, inputs, attrs)).toBe(true)
  fused.run([out, stats], inputs, attrs, [])
  const gradient = put(engine, dout)
  const back = attentionBackward(engine)
  const all = [...inputs, out, stats, gradient]
  const backAttrs = { ...attrs, needs: [...needs, ...(mask ? [false] : [])] }
  expect(takes(back, all, backAttrs)).toBe(true)
  const grads = shapes.filter((_, i) => needs[i]).map(result)
  if (grads.length > 0) back.run(grads, all, backAttrs, [])
  const got = [out, stats, ...grads].map((x) => written(engine, x))
  release(engine, [...all, ...grads])
  let next = 2
  return [
    got[0] as Float32Array,
    got[1] as Float32Array,
    ...needs.map((n) => (n ? (got[next++] as Float32Array) : null)),
  ]
}

/**
 * Scores are sums of D ≤ 256 products below 1: their errors, some 10⁻⁷ to 10⁻⁶, become relative errors of the
 * weights, so outputs, which are means of values below 1, get 2·10⁻⁶ and gradients, sums of such terms of
 * either sign, 4·10⁻⁶ of the largest gradient of their tensor.
 */
function agree(got: ArrayLike<number>, want: Float64Array, which: number, context: string): void {
  const largest = want.reduce((x, y) => Math.max(x, Math.abs(y)), 0)
  const atol = which < 2 ? 2e-6 : 1e-6 + 4e-6 * largest
  expect(mismatch(got as Float32Array, want, atol, 1e-5), context).toBeNull()
}

const names = ['out', 'stats', 'dq', 'dk', 'dv']

function check(c: Case, needs: readonly boolean[] = [true, true, true], gap = -1): void {
  const want = plain(c)
  const first = new Map<boolean, (Float32Array | null)[]>()
  for (const { name, engine } of engines) {
    const got = run(engine, c, needs, gap)
    const { relaxed } = engine.features
    got.forEach((x, i) => {
      if (x === null) return
      const shapes = [c.q, c.k, c.v].map((o) => o.layout.shape.join('×')).join(', ')
      const context = `${name}: ${names[i]} of ${shapes}, ${JSON.stringify(c.attrs)}`
      agree(x, want[i] as Float64Array, i, context)
      expect(mismatch(x, first.get(relaxed)?.[i] ?? x, 0, 0), `${context}, bits`).toBeNull()
    })
    if (!first.has(relaxed)) first.set(relaxed, got)
  }
}

function make(
  rnd: () => number,
  sizes: Sizes,
  attrs: Partial<AttentionAttrs> = {},
  mask: Operand | null = null,
): Case {
  const { B = 1, H = 2, Hk = H, T, S = T, D = 16, Dv = D } = sizes
  return {
    q: floats(rnd, dense(B, H, T, D)),
    k: floats(rnd, dense(B, Hk, S, D)),
    v: floats(rnd, dense(B, Hk, S, Dv)),
    mask,
    dout: floats(rnd, dense(B, H, T, Dv)),
    attrs: {
      causal: 'none',
      window: 0,
      globalTokens: 0,
      scale: 1 / Math.sqrt(D),
      hasMask: mask !== null,
      blockSize: 0,
      density: 1,
      hasAlibi: false,
      dropout: 0,
      ...attrs,
    },
  }
}

describe('shapes', () => {
  test.each<Sizes>([
    { T: 1 },
    { T: 1, S: 300, D: 64 },
    { T: 5, S: 3, D: 1, Dv: 1 },
    { T: 17, S: 16, D: 3, Dv: 7 },
    { T: 64, D: 64 },
    { T: 65, S: 129, D: 65, Dv: 33 },
    { T: 130, S: 257, D: 40, Dv: 12 },
    { T: 300, S: 70, D: 20, Dv: 21 },
    { T: 9, S: 40, D: 256, Dv: 256, H: 1 },
    { T: 40, D: 8, H: 6, Hk: 2, B: 2 },
    { T: 33, D: 5, H: 4, Hk: 1, B: 3 },
    { T: 2, S: 9, D: 9, H: 1, B: 5 },
    { T: 63, D: 60 },
    { T: 127, D: 128 },
    { T: 500, D: 16 },
  ])('%o, all alignments', (sizes) => {
    const rnd = random(sizes.T * 100 + (sizes.D ?? 0))
    for (const causal of ['none', 'top-left', 'bottom-right'] as const) check(make(rnd, sizes, { causal }))
  })

  test('1000 queries', () => {
    check(make(random(1), { T: 1000, S: 999, D: 64, H: 1 }, { causal: 'top-left' }))
  })

  test('no queries; no keys: zeros', () => {
    const rnd = random(1)
    check(make(rnd, { T: 0, S: 5 }))
    for (const causal of ['none', 'top-left', 'bottom-right'] as const)
      check(make(rnd, { T: 5, S: 0 }, { causal }))
  })
})

test.each([1, 3, 16, 50, 127, 128, 129, 500])('a window of %i', (window) => {
  const rnd = random(window)
  check(make(rnd, { T: 200, S: 200, D: 8 }, { causal: 'top-left', window }))
  check(make(rnd, { T: 30, S: 290, D: 8 }, { causal: 'bottom-right', window }))
  check(make(rnd, { T: 290, S: 30, D: 8 }, { causal: 'bottom-right', window }))
  // Without causality only the past is cut off; queries far beyond the keys see nothing.
  check(make(rnd, { T: 150, S: 140, D: 8 }, { window }))
  check(make(rnd, { T: 290, S: 30, D: 8 }, { window }))
})

// Against the composition, where `check` is against the formulas.
testAttention(
  backends.map(({ backend }) => backend),
  (c, needs = [true, true, true]) =>
    checkAttention(
      engineBy((b) => `relaxed: ${b.engine.features.relaxed}`),
      c,
      needs,
      (which, largest) => [which === 0 ? 2e-6 : 1e-6 + 4e-6 * largest, 1e-5],
    ),
)

test('rows that are masked whole have the statistics of none', () => {
  const rnd = random(12)
  const l = dense(1, 1, 40, 50)
  const data = Uint8Array.from({ length: 2000 }, (_, i) => Number(i >= 20 * 50 || i < 50))
  const c = make(rnd, { H: 1, T: 40, S: 50, D: 8 }, {}, { layout: l, dtype: 'bool', data })
  check(c)
  const [, stats] = run(engines[0].engine, c, [true, true, true]) as Float32Array[]
  expect([stats[5], stats[40 + 5]]).toEqual([-Infinity, 0])
})

test.each<Sizes & { gap: number }>([
  { T: 70, D: 12, gap: 0 },
  { T: 33, D: 16, H: 4, Hk: 2, B: 2, gap: 4 },
  { T: 65, S: 129, D: 17, Dv: 31, gap: 3 },
  { T: 100, D: 1, Dv: 5, gap: 1 },
  { T: 5, S: 0, D: 8, gap: 2 },
])('output and gradients with the heads of a row side by side: %o', ({ gap, ...sizes }) => {
  for (const causal of ['none', 'top-left', 'bottom-right'] as const) {
    const c = make(random(71), sizes, { causal })
    check(c, [true, true, true], gap)
    // Gradients of keys and values without those of queries, and the other way round, are other kernels' work.
    check(c, [true, false, false], gap)
    check(c, [false, true, true], gap)
  }
})

test.each(Array.from({ length: 12 }, (_, i) => i))('random, seed %i', (seed) => {
  const rnd = random(500 + seed)
  const Hk = integer(rnd, 1, 3)
  const sizes = {
    B: integer(rnd, 1, 2),
    Hk,
    H: Hk * integer(rnd, 1, 3),
    T: integer(rnd, 1, 150),
    S: integer(rnd, 1, 150),
    D: integer(rnd, 1, 40),
    Dv: integer(rnd, 1, 40),
  }
  const needs = pick(rnd, [
    [true, true, true],
    [true, false, false],
    [false, true, false],
    [false, false, true],
    [true, false, true],
    [false, true, true],
  ])
  const causal = pick(rnd, ['none', 'top-left', 'bottom-right'] as const)
  check(make(rnd, sizes, { causal, window: rnd() < 0.3 ? integer(rnd, 1, 60) : 0, scale: 0.3 }), needs)
})

test.each(Array.from({ length: 12 }, (_, i) => i))('short and packed, as in training, seed %i', (seed) => {
  const rnd = random(900 + seed)
  const [B, H] = [integer(rnd, 1, 2), integer(rnd, 2, 3)]
  const D = pick(rnd, [16, 32, 60, 64, 128])
  // Around multiples of the strips of 12 keys, the panels of 16 queries and the blocks of 64 and 96.
  const T = Math.max(1, pick(rnd, [12, 16, 24, 48, 64, 72, 96, 112]) + integer(rnd, -1, 1))
  const whole = floats(rnd, dense(B, T, 3, H, D))
  const part = (index: number): Operand => {
    const l = layout.selectLayout('test', whole.layout, 2, index)
    return { ...whole, layout: layout.permuteLayout(l, [0, 2, 1, 3]) }
  }
  const window = rnd() < 0.4 ? pick(rnd, [1, 5, 12, 13, 40]) : 0
  const c = make(rnd, { B, H, T, D }, { causal: 'top-left', window })
  const dout = floats(rnd, layout.permuteLayout(dense(B, T, H, D), [0, 2, 1, 3]))
  check({ ...c, q: part(0), k: part(1), v: part(2), dout })
})

test('a NaN in dO reaches dQ of its row, and dK and dV of the keys that its query sees', () => {
  const rnd = random(32)
  const [T, D] = [100, 8]
  const c = make(rnd, { H: 1, T, D }, { causal: 'top-left' })
  c.dout.data[70 * D + 3] = NaN
  for (const { name, engine } of engines) {
    const [, , dq, dk, dv] = run(engine, c, [true, true, true]) as Float32Array[]
    const bad = (x: Float32Array, row: number) => x.subarray(row * D, (row + 1) * D).some(Number.isNaN)
    for (let i = 0; i < T; i++) {
      expect(bad(dq as Float32Array, i), `${name}: dq ${i}`).toBe(i === 70)
      if (i > 70 && i < 84) continue // Keys that share a strip with key 70.
      expect(bad(dk as Float32Array, i), `${name}: dk ${i}`).toBe(i <= 70)
      expect(bad(dv as Float32Array, i), `${name}: dv ${i}`).toBe(i <= 70)
    }
  }
})

test('declines what the kernels do not do', () => {
  const rnd = random(41)
  const { engine } = engines[0] as { engine: Engine }
  const c = make(rnd, { T: 4, D: 8 })
  const inputs = [c.q, c.k, c.v].map((x) => put(engine, x))
  const kernel = attention(engine)
  expect(takes(kernel, [{ ...inputs[0]!, dtype: 'float64' }, inputs[1]!, inputs[2]!], c.attrs)).toBe(false)
  const wide = put(engine, floats(rnd, dense(1, 1, 2, 257)))
  expect(takes(kernel, [wide, wide, wide], c.attrs)).toBe(false)
  const attrs = { ...c.attrs, hasMask: true, needs: [false, false, false, true] }
  const mask = put(engine, floats(rnd, dense(1, 2, 4, 4)))
  expect(takes(attentionBackward(engine), [...inputs, mask], attrs)).toBe(false)
  release(engine, [...inputs, wide, mask])
})

describe('through the operator', () => {
  const backend = createCpuBackend({ threads: 2 })
  afterAll(() => backend.close())

  test('memory grows with T, not with T²', async () => {
    await collected()
    const rnd = random(51)
    const [H, T, D] = [2, 4096, 16]
    const shape = [1, H, T, D]
    const make1 = () =>
      tensor(
        Float32Array.from({ length: H * T * D }, () => rnd() - 0.5),
        { device: backend },
      ).reshape(shape)
    const [q, k, v, dout] = [make1(), make1(), make1(), make1()] as const
    for (const x of [q, k, v]) x.requiresGrad = true
    const bytes = 4 * H * T * D
    const before = backend.stats().liveBytes
    backend.engine.memory.resetPeak()
    const { rows } = profile(() =>
      backward(scaledDotProductAttention(q, k, v, { isCausal: true }), { gradient: dout }),
    )
    expect(
      rows
        .filter((r) => r.path === 'fused')
        .map((r) => r.op)
        .sort(),
    ).toEqual(['scaled_dot_product_attention', 'scaled_dot_product_attentionBackward'])
    // The output, three gradients, maxima and sums; then the scratch memory of two threads, and code.
    const taken = backend.stats().peakBytes - before
    expect(taken).toBeGreaterThan(4 * bytes)
    expect(taken).toBeLessThan(6 * bytes + 2 ** 20)
    expect(taken).toBeLessThan((4 * T * T) / 8)
  })
})
