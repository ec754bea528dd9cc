/**
 * Fused linear attention, forward and backward, against the quadratic form in float64, for all kinds of
 * shapes and strides; bit by bit the same on any number of threads; in memory linear in T.
 */

import {
  backward,
  deltaRule,
  type FeatureMap,
  gatedLinearAttention,
  type Layout,
  type LinearAttentionAttrs,
  layout,
  linearAttention as linearAttentionOp,
  profile,
  retention,
  scope,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { takes } from '@tilegrad/core/kernel'
import { afterAll, describe, expect, test } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { createCpuBackend } from '../src/backend.ts'
import type { Engine } from '../src/engine.ts'
import { linearAttention, linearAttentionBackward } from '../src/kernels/linear-attention/linear-attention.ts'
import { extent, get, integer, makeEngines, mismatch, output, pick, put, random, release } from './row-rig.ts'

interface Operand {
  readonly layout: Layout
  readonly dtype: 'float32'
  readonly data: Float32Array
}

const dense = (...shape: number[]): Layout => ({ shape, strides: layout.contiguousStrides(shape), offset: 0 })
const floats = (rnd: () => number, l: Layout): Operand => ({
  layout: l,
  dtype: 'float32',
  data: Float32Array.from({ length: extent(l) }, () => 4 * rnd() - 2),
})

interface Case {
  readonly q: Operand
  readonly k: Operand
  readonly v: Operand
  readonly dout: Operand
  readonly attrs: LinearAttentionAttrs
}

const element = ({ layout: l, data }: Operand, b: number, h: number, t: number, d: number): number => {
  const [sb, sh, st, sd] = l.strides as [number, number, number, number]
  return data[l.offset + b * sb + h * sh + t * st + d * sd] as number
}
const phis: Record<FeatureMap, (x: number) => number> = {
  elu: (x) => (x > 0 ? x + 1 : Math.exp(x)),
  relu: (x) => Math.max(x, 0),
  exp: Math.exp,
  identity: (x) => x,
}
const slopes: Record<FeatureMap, (x: number) => number> = {
  elu: (x) => (x > 0 ? 1 : Math.exp(x)),
  relu: (x) => (x > 0 ? 1 : 0),
  exp: Math.exp,
  identity: () => 1,
}

/** out, sum + eps, dq, dk, dv from the quadratic form, in float64. */
function plain({ q, k, v, dout, attrs }: Case): Float64Array[] {
  const [phi, slope] = [phis[attrs.featureMap], slopes[attrs.featureMap]]
  const [B, H, T, D] = q.layout.shape as [number, number, number, number]
  const S = k.layout.shape[2] as number
  const Dv = v.layout.shape[3] as number
  const results = [T * Dv, T, T * D, S * D, S * Dv].map((n) => new Float64Array(B * H * n))
  const [out, norm, dq, dk, dv] = results as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
  ]
  for (let bh = 0; bh < B * H; bh++) {
    const [b, h] = [Math.floor(bh / H), bh % H]
    for (let i = 0; i < T; i++) {
      const row = bh * T + i
      const seen = attrs.causal ? i + 1 : S
      const a = new Float64Array(seen)
      let sum = attrs.eps
      for (let j = 0; j < seen; j++) {
        let s = 0
        for (let d = 0; d < D; d++) s += phi(element(q, b, h, i, d)) * phi(element(k, b, h, j, d))
        a[j] = s
        sum += s
      }
      norm[row] = sum
      for (let j = 0; j < seen; j++) {
        for (let d = 0; d < Dv; d++) out[row * Dv + d]! += ((a[j] as number) / sum) * element(v, b, h, j, d)
      }
      let delta = 0
      for (let d = 0; d < Dv; d++) delta += element(dout, b, h, i, d) * (out[row * Dv + d] as number)
      for (let j = 0; j < seen; j++) {
        let da = -delta
        for (let d = 0; d < Dv; d++) {
          da += element(dout, b, h, i, d) * element(v, b, h, j, d)
          dv[(bh * S + j) * Dv + d]! += ((a[j] as number) / sum) * element(dout, b, h, i, d)
        }
        da /= sum
        for (let d = 0; d < D; d++) {
          dq[row * D + d]! += da * phi(element(k, b, h, j, d)) * slope(element(q, b, h, i, d))
          dk[(bh * S + j) * D + d]! += da * phi(element(q, b, h, i, d)) * slope(element(k, b, h, j, d))
        }
      }
    }
  }
  return results
}

function run(engine: Engine, c: Case, needs: readonly boolean[]): (Float32Array | null)[] {
  const [B, H, T] = c.q.layout.shape as [number, number, number]
  const inputs = [c.q, c.k, c.v].map((x) => put(engine, x))
  const out = output(engine, [B, H, T, c.v.layout.shape[3] as number], 'float32')
  const norm = output(engine, [B, H, T], 'float32')
  const fused = linearAttention(engine)
  expect(takes(fused, inputs, c.attrs)).toBe(true)
  fused.run([out, norm], inputs, c.attrs, [])
  const all = [...inputs, out, norm, put(engine, c.dout)]
  const grads = [c.q, c.k, c.v]
    .filter((_, i) => needs[i])
    .map((x) => output(engine, x.layout.shape, 'float32'))
  if (grads.length > 0) linearAttentionBackward(engine).run(grads, all, { ...c.attrs, needs }, [])
  const got = [out, norm, ...grads].map((x) => get(engine, x) as Float32Array)
  release(engine, [...all, ...grads])
  let next = 2
  return [
    got[0] as Float32Array,
    got[1] as Float32Array,
    ...needs.map((n) => (n ? (got[next++] as Float32Array) : null)),
  ]
}

const names = ['out', 'norm', 'dq', 'dk', 'dv']
const engines = await makeEngines()

/**
 * Outputs are means of values below 2 with weights that are sums of D positive products (no cancellation):
 * 3·10⁻⁶. The state sums up to T rows before a chunk reads it, and gradients are differences of such sums, of
 * either sign: errors of 10⁻⁵ of the largest element of their tensor.
 */
function check(c: Case, needs: readonly boolean[] = [true, true, true]): void {
  const want = plain(c)
  const first = new Map<boolean, (Float32Array | null)[]>()
  for (const { name, engine } of engines) {
    const got = run(engine, c, needs)
    const { relaxed } = engine.features
    got.forEach((x, i) => {
      if (x === null) return
      const exact = want[i] as Float64Array
      const shapes = [c.q, c.k, c.v].map((o) => o.layout.shape.join('×')).join(', ')
      const context = `${name}: ${names[i]} of ${shapes}, ${JSON.stringify(c.attrs)}`
      const largest = exact.reduce((m, y) => Math.max(m, Math.abs(y)), 0)
      expect(mismatch(x, exact, i < 2 ? 3e-6 : 1e-6 + 1e-5 * largest, 1e-5), context).toBeNull()
      expect(mismatch(x, first.get(relaxed)?.[i] ?? x, 0, 0), `${context}, bits`).toBeNull()
    })
    if (!first.has(relaxed)) first.set(relaxed, got)
  }
}

interface Sizes {
  B?: number
  H?: number
  T: number
  S?: number
  D?: number
  Dv?: number
}

function make(
  rnd: () => number,
  { B = 1, H = 1, T, S = T, D = 8, Dv = D }: Sizes,
  causal: boolean,
  featureMap: FeatureMap = 'elu',
): Case {
  return {
    q: floats(rnd, dense(B, H, T, D)),
    k: floats(rnd, dense(B, H, S, D)),
    v: floats(rnd, dense(B, H, S, Dv)),
    dout: floats(rnd, dense(B, H, T, Dv)),
    attrs: { causal, eps: 1e-6, featureMap },
  }
}

describe('shapes', () => {
  test.each<Sizes>([
    { T: 1 },
    { T: 15, D: 1, Dv: 1 },
    { T: 63, D: 3, Dv: 5 },
    { T: 64, D: 16 },
    { T: 65, D: 33, Dv: 15 },
    { T: 150, D: 64, H: 2 },
    { T: 300, D: 7, Dv: 20, B: 2, H: 2 },
    { T: 400, D: 9, Dv: 17 },
    { T: 40, D: 256, Dv: 256 },
  ])('causal, %o', (sizes) => check(make(random(sizes.T), sizes, true)))

  test.each<Sizes>([
    { T: 1, S: 1 },
    { T: 70, S: 130, D: 20, Dv: 6 },
    { T: 300, S: 10, D: 5, H: 3 },
    { T: 10, S: 500, D: 17, Dv: 33 },
    { T: 350, S: 350, D: 16, B: 2 },
  ])('not causal, %o', (sizes) => check(make(random(sizes.T + 1), sizes, false)))

  test('no queries; no keys: zeros', () => {
    check(make(random(1), { T: 0 }, true))
    check(make(random(2), { T: 0, S: 4 }, false))
    check(make(random(3), { T: 4, S: 0 }, false))
  })
})

describe('other feature maps', () => {
  // The identity's weights have either sign; positive operands keep the normaliser away from zero.
  const positive = (x: Operand): Operand => ({ ...x, data: x.data.map((y) => Math.abs(y) + 0.1) })
  for (const map of ['relu', 'exp', 'identity'] as const) {
    test.each<[Sizes, boolean]>([
      [{ T: 150, D: 16, H: 2 }, true],
      [{ T: 65, D: 33, Dv: 15 }, true],
      [{ T: 400, D: 9, Dv: 17 }, true],
      [{ T: 70, S: 130, D: 20, Dv: 6 }, false],
    ])(`${map}, %o, causal: %s`, (sizes, causal) => {
      const c = make(random(sizes.T + 2), sizes, causal, map)
      check(map === 'identity' ? { ...c, q: positive(c.q), k: positive(c.k) } : c)
    })
  }
})

test('views of a packed projection, transposed, backwards, expanded', () => {
  const rnd = random(21)
  const [B, T, H, D] = [2, 90, 3, 12]
  const whole = floats(rnd, dense(B, T, 3, H, D))
  const part = (index: number): Operand => {
    const l = layout.selectLayout('test', whole.layout, 2, index)
    return { ...whole, layout: layout.permuteLayout(l, [0, 2, 1, 3]) }
  }
  const c = make(rnd, { B, H, T, D }, true)
  check({ ...c, q: part(0), k: part(1), v: part(2) })
  const turned = (x: Operand): Operand => {
    const [b, h, t, d] = x.layout.shape as [number, number, number, number]
    return { ...x, layout: layout.permuteLayout(dense(d, t, h, b), [3, 2, 1, 0]) }
  }
  const flipped = (x: Operand): Operand => ({ ...x, layout: layout.flipLayout(x.layout, [0, 2, 3]) })
  const shared = (x: Operand): Operand => ({ ...x, layout: { ...x.layout, strides: [0, 0, D, 1] } })
  for (const change of [turned, flipped, shared]) {
    check({ ...c, q: change(c.q), k: change(c.k), v: change(c.v), dout: change(c.dout) })
  }
})

test.each(Array.from({ length: 10 }, (_, i) => i))('random, seed %i', (seed) => {
  const rnd = random(700 + seed)
  const causal = rnd() < 0.6
  const T = integer(rnd, 1, 200)
  const sizes = {
    B: integer(rnd, 1, 2),
    H: integer(rnd, 1, 3),
    T,
    S: causal ? T : integer(rnd, 1, 300),
    D: integer(rnd, 1, 40),
    Dv: integer(rnd, 1, 40),
  }
  const needs = pick(rnd, [
    [true, true, true],
    [true, false, false],
    [false, true, false],
    [false, false, true],
  ])
  check(make(rnd, sizes, causal), needs)
})

test('a NaN stays in the rows that see it', () => {
  const { engine } = engines[0] as { engine: Engine }
  const c = make(random(31), { T: 100, D: 8 }, true)
  c.k.data[40 * 8 + 3] = NaN
  const [out] = run(engine, c, [false, false, false]) as [Float32Array]
  for (let i = 0; i < 100; i++) {
    for (let d = 0; d < 8; d++) expect(Number.isNaN(out[i * 8 + d]), `row ${i}`).toBe(i >= 40)
  }
})

test('declines float64 and heads that are too wide', () => {
  const { engine } = engines[0] as { engine: Engine }
  const c = make(random(41), { T: 4, D: 8 }, true)
  const inputs = [c.q, c.k, c.v].map((x) => put(engine, x))
  const kernel = linearAttention(engine)
  expect(takes(kernel, inputs, c.attrs)).toBe(true)
  expect(takes(kernel, [{ ...inputs[0]!, dtype: 'float64' }, inputs[1]!, inputs[2]!], c.attrs)).toBe(false)
  const wide = put(engine, floats(random(42), dense(1, 1, 2, 257)))
  expect(takes(kernel, [wide, wide, wide], c.attrs)).toBe(false)
  release(engine, [...inputs, wide])
})

describe('through the operator', () => {
  const backend = createCpuBackend({ threads: 2 })
  afterAll(() => backend.close())

  test('memory grows with T, not with T²', async () => {
    await collected()
    const rnd = random(51)
    const [H, T, D] = [2, 4096, 16]
    const some = () =>
      tensor(
        Float32Array.from({ length: H * T * D }, () => rnd() - 0.5),
        { device: backend },
      ).reshape([1, H, T, D])
    const [q, k, v, dout] = [some(), some(), some(), some()] as const
    for (const x of [q, k, v]) x.requiresGrad = true
    const bytes = 4 * H * T * D
    const before = backend.stats().liveBytes
    backend.engine.memory.resetPeak()
    const { rows } = profile(() =>
      backward(linearAttentionOp(q, k, v, { isCausal: true }), { gradient: dout }),
    )
    const fused = rows.filter((r) => r.path === 'fused').map((r) => r.op)
    expect(fused.sort()).toEqual(['linear_attention', 'linear_attentionBackward'])
    // The output, three gradients, the sums; then the scratch memory of two threads, and code.
    const taken = backend.stats().peakBytes - before
    expect(taken).toBeGreaterThan(4 * bytes)
    expect(taken).toBeLessThan(6 * bytes + 2 ** 20)
  })

  /** Bytes taken at the peak by a forward and a backward pass over T steps. */
  const peak = (T: number, run: (q: Tensor, k: Tensor, v: Tensor, gates: Tensor) => Tensor): number => {
    const rnd = random(T)
    const some = (low: number): Tensor => {
      const x = tensor(
        Float32Array.from({ length: 16 * T }, () => rnd() + low),
        { device: backend },
      ).reshape([1, 1, T, 16])
      x.requiresGrad = true
      return x
    }
    const [q, k, v, gates] = [some(-0.5), some(-0.5), some(-0.5), some(-1)] as const
    const before = backend.stats().liveBytes
    backend.engine.memory.resetPeak()
    scope(() => backward(run(q, k, v, gates).sum()))
    const taken = backend.stats().peakBytes - before
    for (const x of [q, k, v, gates]) x.dispose()
    return taken
  }

  test.each<[string, (q: Tensor, k: Tensor, v: Tensor, gates: Tensor) => Tensor]>([
    ['chunks', (q, k, v) => linearAttentionOp(q, k, v, { isCausal: true, form: 'chunked' })],
    ['retention', (q, k, v) => retention(q, k, v)],
    ['gates', (q, k, v, gates) => gatedLinearAttention(q, k, v, gates)],
    ['the delta rule', (q, k, v, gates) => deltaRule(q, k, v, gates.select(3, 0).neg())],
  ])('so does that of %s', async (_, run) => {
    await collected()
    peak(2048, run)
    const [short, long] = [peak(2048, run), peak(8192, run)]
    // Four times the steps: 4 where linear, 16 where quadratic. 1 MiB: pages of scratch memory.
    expect(long).toBeGreaterThan(3 * short)
    expect(long).toBeLessThan(4.5 * short + 2 ** 20)
  })
})
