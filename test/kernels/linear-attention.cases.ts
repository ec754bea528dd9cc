/** Linear attention, forward and backward, against its quadratic form and its recurrence in float64. */

import { type FeatureMap, layout, linearAttention } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { type Case, check, type Engine, evaluate } from './fused.ts'
import { dense, elements, largest, type Operand, operand, rows } from './operand.ts'
import { integer, pick, random, randomLayout } from './random.ts'

export interface Sizes {
  readonly B?: number
  readonly H?: number
  readonly T: number
  readonly S?: number
  readonly D?: number
  readonly Dv?: number
}

interface Inputs {
  readonly q: Operand
  readonly k: Operand
  readonly v: Operand
  readonly dout: Operand
}

type Place = (shape: readonly number[], value: () => number) => Operand

export function make(
  rnd: () => number,
  { B = 1, H = 1, T, S = T, D = 8, Dv = D }: Sizes,
  place: Place = dense,
): Inputs {
  const one = (...shape: number[]): Operand => place(shape, () => 4 * rnd() - 2)
  return { q: one(B, H, T, D), k: one(B, H, S, D), v: one(B, H, S, Dv), dout: one(B, H, T, Dv) }
}

const EPS = 1e-6
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

/** out, dq, dk, dv from the quadratic form, in float64. */
function quadratic({ q, k, v, dout }: Inputs, causal: boolean, featureMap: FeatureMap): Float64Array[] {
  const [B, H, T, D] = q.layout.shape
  const [S, Dv] = v.layout.shape.slice(2)
  const [Q, K, V, G] = [q, k, v, dout].map(elements)
  const [fq, fk] = [Q.map(phis[featureMap]), K.map(phis[featureMap])]
  const results = [T * Dv, T * D, S * D, S * Dv].map((n) => new Float64Array(B * H * n))
  const [out, dfq, dfk, dv] = results
  for (let row = 0; row < B * H * T; row++) {
    const keys = Math.floor(row / T) * S
    const seen = causal ? (row % T) + 1 : S
    const a = new Float64Array(seen)
    let sum = EPS
    for (let j = 0; j < seen; j++) {
      for (let d = 0; d < D; d++) a[j] += fq[row * D + d] * fk[(keys + j) * D + d]
      sum += a[j]
    }
    for (let j = 0; j < seen; j++)
      for (let d = 0; d < Dv; d++) out[row * Dv + d] += (a[j] / sum) * V[(keys + j) * Dv + d]
    let delta = 0
    for (let d = 0; d < Dv; d++) delta += G[row * Dv + d] * out[row * Dv + d]
    for (let j = 0; j < seen; j++) {
      let da = -delta
      for (let d = 0; d < Dv; d++) {
        da += G[row * Dv + d] * V[(keys + j) * Dv + d]
        dv[(keys + j) * Dv + d] += (a[j] / sum) * G[row * Dv + d]
      }
      for (let d = 0; d < D; d++) {
        dfq[row * D + d] += (da / sum) * fk[(keys + j) * D + d]
        dfk[(keys + j) * D + d] += (da / sum) * fq[row * D + d]
      }
    }
  }
  const slope = slopes[featureMap]
  return [out, dfq.map((x, i) => x * slope(Q[i])), dfk.map((x, i) => x * slope(K[i])), dv]
}

/** out, dq, dk, dv of one head in float64, row by row from the states: in time linear in T. */
function recurrent({ q, k, v, dout }: Inputs): Float64Array[] {
  const [, , T, D] = q.layout.shape
  const Dv = v.layout.shape[3]
  const [a, b, c, g] = [q, k, v, dout].map((x) => Float64Array.from(x.data))
  const [phi, slope] = [phis.elu, slopes.elu]
  const [out, dq, dk, dv] = [T * Dv, T * D, T * D, T * Dv].map((n) => new Float64Array(n))
  /** Σ φ(k)ᵀ [v, 1], then Σ φ(q)ᵀ [dO, −δ] / n. */
  let s = new Float64Array(D * (Dv + 1))
  const dn = new Float64Array(T * (Dv + 1))
  for (let t = 0; t < T; t++) {
    const y = new Float64Array(Dv + 1)
    for (let d = 0; d < D; d++) {
      for (let e = 0; e <= Dv; e++) {
        s[d * (Dv + 1) + e] += phi(b[t * D + d]) * (e < Dv ? c[t * Dv + e] : 1)
        y[e] += phi(a[t * D + d]) * s[d * (Dv + 1) + e]
      }
    }
    const n = y[Dv] + EPS
    let delta = 0
    for (let e = 0; e < Dv; e++) {
      out[t * Dv + e] = y[e] / n
      dn[t * (Dv + 1) + e] = g[t * Dv + e] / n
      delta += g[t * Dv + e] * out[t * Dv + e]
    }
    dn[t * (Dv + 1) + Dv] = -delta / n
    for (let d = 0; d < D; d++) {
      let sum = 0
      for (let e = 0; e <= Dv; e++) sum += dn[t * (Dv + 1) + e] * s[d * (Dv + 1) + e]
      dq[t * D + d] = sum * slope(a[t * D + d])
    }
  }
  s = new Float64Array(D * (Dv + 1))
  for (let t = T - 1; t >= 0; t--) {
    for (let d = 0; d < D; d++) {
      let sum = 0
      for (let e = 0; e <= Dv; e++) {
        s[d * (Dv + 1) + e] += phi(a[t * D + d]) * dn[t * (Dv + 1) + e]
        sum += (e < Dv ? c[t * Dv + e] : 1) * s[d * (Dv + 1) + e]
        if (e < Dv) dv[t * Dv + e] += phi(b[t * D + d]) * s[d * (Dv + 1) + e]
      }
      dk[t * D + d] = sum * slope(b[t * D + d])
    }
  }
  return [out, dq, dk, dv]
}

export const all = [true, true, true]

export const caseOf = (
  { q, k, v, dout }: Inputs,
  isCausal: boolean,
  needs: readonly boolean[] = all,
  featureMap: FeatureMap = 'elu',
): Case => ({
  inputs: [q, k, v],
  needs,
  dout,
  call: ([a, b, c]) => linearAttention(a, b, c, { isCausal, featureMap }),
})

/**
 * Outputs are means of values below 2 whose weights are sums of D positive products, without cancellation: 3·10⁻⁶.
 * States are sums over all rows before a chunk, and gradients differences of such sums: 10⁻⁵ of the largest of their
 * tensor.
 */
export function checkLinear(
  engine: Engine,
  inputs: Inputs,
  isCausal: boolean,
  { needs = all, featureMap = 'elu' as FeatureMap, want = quadratic(inputs, isCausal, featureMap) } = {},
): Promise<void> {
  const wanted = want.filter((_, i) => i === 0 || needs[i - 1])
  return check(
    engine,
    caseOf(inputs, isCausal, needs, featureMap),
    ['linear_attention', 'linear_attentionBackward'].slice(0, needs.some(Boolean) ? 2 : 1),
    (i, exact) => [i === 0 ? 3e-6 : 1e-6 + 1e-5 * largest(exact), 1e-6],
    wanted,
  )
}

export function testLinearAttention(engine: Engine): void {
  // On a GPU with one set of limits: kernels are the same on SwiftShader, which takes half a second to compile each of them.
  const first = engine.share === 1 ? engine : { ...engine, backends: engine.backends.slice(0, 1) }

  describe('shapes', () => {
    test.each<Sizes>([
      { T: 1 },
      { T: 15, D: 1, Dv: 1 },
      { T: 63, D: 3, Dv: 5 },
      { T: 64, D: 16, B: 2, H: 3 },
      { T: 65, D: 33, Dv: 15 },
      { T: 127, D: 64, H: 2 },
      { T: 300, D: 7, Dv: 20, B: 2, H: 2 },
      { T: 500, D: 12, Dv: 28 },
      { T: 1000, D: 20, Dv: 4 },
      { T: 200, D: 128 },
      { T: 90, D: 100, Dv: 70 },
    ])('causal, %o', (sizes) => checkLinear(first, make(random(sizes.T), sizes), true))

    test.each<Sizes>([
      { T: 1, S: 1 },
      { T: 70, S: 130, D: 20, Dv: 6 },
      { T: 300, S: 10, D: 5, H: 3 },
      { T: 10, S: 500, D: 17, Dv: 31 },
      { T: 127, D: 64, B: 2 },
      { T: 60, S: 1000, D: 80, Dv: 128 },
    ])('not causal, %o', (sizes) => checkLinear(first, make(random(sizes.T + 1), sizes), false))

    test('no queries; no keys: zeros', async () => {
      await checkLinear(first, make(random(1), { T: 0 }), true)
      await checkLinear(first, make(random(2), { T: 0, S: 4 }), false)
      await checkLinear(first, make(random(3), { T: 4, S: 0 }), false)
    })

    test('5,000 rows: segments of many chunks', async () => {
      const inputs = make(random(6), { T: 5000, D: 8, Dv: 12 })
      await checkLinear(first, inputs, true, { want: recurrent(inputs) })
    })
  })

  test('views: parts of a packed projection, backwards, permuted, expanded, with gaps', async () => {
    const rnd = random(4)
    const [B, T, H, D] = [2, 90, 3, 12]
    const whole = dense([B, T, 3, H, D], () => 4 * rnd() - 2)
    const part = (i: number): Operand => ({
      ...whole,
      layout: layout.permuteLayout(layout.selectLayout('test', whole.layout, 2, i), [0, 2, 1, 3]),
    })
    const { dout } = make(rnd, { B, H, T, D })
    await checkLinear(engine, { q: part(0), k: part(1), v: part(2), dout }, true)
    for (let i = 0; i < 12; i++) {
      // Half of them with rows that are contiguous, which vectors of four can read.
      const place: Place = (shape, value) =>
        i % 2 === 0
          ? rows(rnd, shape.slice(0, 3), shape.slice(3), value)
          : operand(randomLayout(rnd, shape), 'float32', value)
      const sizes = {
        B: integer(rnd, 1, 2),
        H: integer(rnd, 1, 3),
        T: integer(rnd, 1, 150),
        D: pick(rnd, [4, 8, 13, 32]),
        Dv: pick(rnd, [4, 8, 13, 32]),
      }
      const isCausal = rnd() < 0.5
      const S = isCausal ? sizes.T : integer(rnd, 1, 150)
      await checkLinear(first, make(rnd, { ...sizes, S }, place), isCausal)
    }
  })

  describe('feature maps', () => {
    // The identity's products may cancel: its numbers are of one sign.
    test.each(['relu', 'exp', 'identity'] as const)('%s', async (featureMap) => {
      const place: Place = (shape, value) =>
        dense(shape, featureMap === 'identity' ? () => 1.5 + value() / 2 : value)
      await checkLinear(first, make(random(9), { T: 150, D: 20, Dv: 12 }, place), true, { featureMap })
    })

    test.each(['elu', 'relu', 'exp', 'identity'] as const)('%s of 0, and of NaN', async (featureMap) => {
      const inputs = make(random(10), { T: 3, D: 4 }, (shape, value) => dense(shape, () => 2.5 + value()))
      inputs.q.data.set([0, 1, 2, 3])
      inputs.k.data.set([1, 0, 2, 3])
      await checkLinear(first, inputs, true, { featureMap })
      inputs.q.data.set([1, NaN])
      const { results } = await evaluate(engine.backends[0].backend, caseOf(inputs, true, [], featureMap))
      expect([...results[0]].map(Number.isNaN)).toEqual(Array.from({ length: 12 }, (_, i) => i < 4))
    })
  })

  test('a NaN stays in the rows that see it', async () => {
    const inputs = make(random(31), { T: 100, D: 8 })
    inputs.k.data[40 * 8 + 3] = NaN
    const [out] = (await evaluate(engine.backends[0].backend, caseOf(inputs, true, []))).results
    out.forEach((y, i) => expect(Number.isNaN(y), `row ${i >> 3}`).toBe(i >= 320))
  })

  test.each([0, 1, 2, 3, 4, 5, 6].map((bits) => [[4, 2, 1].map((b) => (bits & b) > 0)]))(
    'only some gradients: %o',
    async (needs) => {
      for (const isCausal of [true, false])
        await checkLinear(engine, make(random(5), { T: 70, D: 24, Dv: 32 }), isCausal, { needs })
    },
  )
}
