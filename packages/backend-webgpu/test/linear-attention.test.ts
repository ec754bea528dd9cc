/**
 * Fused linear attention on the GPU against the composition on the reference backend in float64, and for many rows
 * against the recurrence in float64: shapes, strides, gradients, at all and at default limits.
 */

import {
  linearAttention as call,
  type FeatureMap,
  grad,
  reference,
  type Tensor,
  type TypedArray,
  tensor,
} from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import { createWebGpuBackend, type WebGpuBackend } from '../src/index.ts'
import { linearAttention, linearAttentionBackward } from '../src/kernels/linear-attention/linear-attention.ts'
import { extent, mismatch } from './support/agree.ts'
import { type Case, evaluate, type Operand, operand, plain } from './support/fused.ts'
import { gpus } from './support/gpus.ts'
import { integer, pick, random, randomLayout } from './support/random.ts'

afterAll(() => {
  for (const { gpu } of gpus) gpu.close()
})

interface Sizes {
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

function make(
  rnd: () => number,
  { B = 1, H = 1, T, S = T, D = 8, Dv = D }: Sizes,
  place: Place = plain,
): Inputs {
  const one = (...shape: number[]): Operand => place(shape, () => 4 * rnd() - 2)
  return { q: one(B, H, T, D), k: one(B, H, S, D), v: one(B, H, S, Dv), dout: one(B, H, T, Dv) }
}

const all = [true, true, true]
const names = ['out', 'first gradient', 'second gradient', 'third gradient']

const caseOf = (
  { q, k, v, dout }: Inputs,
  isCausal: boolean,
  needs: readonly boolean[],
  featureMap: FeatureMap = 'elu',
): Case => ({
  inputs: [q, k, v],
  needs,
  dout,
  call: ([a, b, c]) => call(a, b, c, { isCausal, featureMap }),
})

/**
 * Outputs are means of values below 2 whose weights are sums of D positive products, without cancellation: 3·10⁻⁶.
 * States are sums over all rows before a chunk, and gradients differences of such sums: 10⁻⁵ of the largest of their
 * tensor. All results are the same bits a second time.
 */
async function compare(
  c: Case,
  want: readonly TypedArray[],
  backends: readonly { readonly name: string; readonly gpu: WebGpuBackend }[] = gpus,
): Promise<void> {
  for (const { name, gpu } of backends) {
    const { results, fused, composed } = await evaluate(gpu, c)
    const again = (await evaluate(gpu, c)).results
    const context = `${name}, ${JSON.stringify(c.inputs.map((t) => t.layout))}`
    expect(fused, context).toEqual(
      ['linear_attention', 'linear_attentionBackward'].slice(0, c.needs.some(Boolean) ? 2 : 1),
    )
    expect(composed, context).toEqual([])
    results.forEach((x, i) => {
      const largest = (want[i] as Float64Array).reduce((m, y) => Math.max(m, Math.abs(y)), 0)
      const most = i === 0 ? 3e-6 : 1e-6 + 1e-5 * largest
      expect(mismatch(x, want[i]!, most, 1e-6), `${names[i]}, ${context}`).toBeNull()
      expect(mismatch(again[i]!, x), `${names[i]}, again, ${context}`).toBeNull()
    })
  }
}

async function check(
  inputs: Inputs,
  isCausal: boolean,
  needs: readonly boolean[] = all,
  backends = gpus,
  featureMap: FeatureMap = 'elu',
): Promise<void> {
  const c = caseOf(inputs, isCausal, needs, featureMap)
  await compare(c, (await evaluate(reference, c)).results, backends)
}

// With one set of limits: kernels are the same on SwiftShader, which takes half a second to compile each of them.
describe('shapes', () => {
  const first = gpus.slice(0, 1)
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
  ])('causal, %o', (sizes) => check(make(random(sizes.T), sizes), true, all, first))

  test.each<Sizes>([
    { T: 1, S: 1 },
    { T: 70, S: 130, D: 20, Dv: 6 },
    { T: 300, S: 10, D: 5, H: 3 },
    { T: 10, S: 500, D: 17, Dv: 31 },
    { T: 127, D: 64, B: 2 },
    { T: 60, S: 1000, D: 80, Dv: 128 },
  ])('not causal, %o', (sizes) => check(make(random(sizes.T + 1), sizes), false, all, first))

  test('no queries; no keys: zeros', async () => {
    await check(make(random(1), { T: 0 }), true, all, first)
    await check(make(random(2), { T: 0, S: 4 }), false, all, first)
    await check(make(random(3), { T: 4, S: 0 }), false, all, first)
  })
})

test('views: parts of a packed projection, backwards, permuted, expanded, with gaps', async () => {
  const rnd = random(4)
  const [B, T, H, D] = [2, 90, 3, 12]
  const packed = plain([B, T, 3, H, D], () => 4 * rnd() - 2).data
  const part = (i: number): Operand => ({
    data: packed,
    layout: { shape: [B, H, T, D], strides: [T * 3 * H * D, D, 3 * H * D, 1], offset: i * H * D },
  })
  const { dout } = make(rnd, { B, H, T, D })
  await check({ q: part(0), k: part(1), v: part(2), dout }, true)
  for (let i = 0; i < 12; i++) {
    // Half of them with rows that are contiguous, which vectors of four can read.
    const place: Place = (shape, value) => {
      if (i % 2 === 0) return operand(rnd, shape.slice(0, 3), shape.slice(3), value)
      const l = randomLayout(rnd, shape)
      return { layout: l, data: Float32Array.from({ length: extent(l) }, value) }
    }
    const sizes = {
      B: integer(rnd, 1, 2),
      H: integer(rnd, 1, 3),
      T: integer(rnd, 1, 150),
      D: pick(rnd, [4, 8, 13, 32]),
      Dv: pick(rnd, [4, 8, 13, 32]),
    }
    const isCausal = rnd() < 0.5
    const S = isCausal ? sizes.T : integer(rnd, 1, 150)
    await check(make(rnd, { ...sizes, S }, place), isCausal, all, gpus.slice(0, 1))
  }
})

describe('feature maps', () => {
  // The identity's products may cancel: its numbers are of one sign.
  test.each(['relu', 'exp', 'identity'] as const)('%s', async (featureMap) => {
    const place: Place = (shape, value) =>
      plain(shape, featureMap === 'identity' ? () => 1.5 + value() / 2 : value)
    const inputs = make(random(9), { T: 150, D: 20, Dv: 12 }, place)
    await check(inputs, true, all, gpus.slice(0, 1), featureMap)
  })

  test.each(['elu', 'relu', 'exp', 'identity'] as const)('%s of 0, and of NaN', async (featureMap) => {
    const inputs = make(random(10), { T: 3, D: 4 }, (shape, value) => plain(shape, () => 2.5 + value()))
    inputs.q.data.set([0, 1, 2, 3])
    inputs.k.data.set([1, 0, 2, 3])
    await check(inputs, true, all, gpus.slice(0, 1), featureMap)
    inputs.q.data.set([1, NaN])
    const { results } = await evaluate(gpus[0]!.gpu, caseOf(inputs, true, [], featureMap))
    expect([...results[0]!].map(Number.isNaN)).toEqual(Array.from({ length: 12 }, (_, i) => i < 4))
  })
})

test.each([0, 1, 2, 3, 4, 5, 6].map((bits) => [[4, 2, 1].map((b) => (bits & b) > 0)]))(
  'only some gradients: %o',
  async (needs) => {
    for (const isCausal of [true, false])
      await check(make(random(5), { T: 70, D: 24, Dv: 32 }), isCausal, needs)
  },
)

/** out, dq, dk, dv of one head in float64, row by row from the states: in time linear in T. */
function recurrent({ q, k, v, dout }: Inputs): Float64Array[] {
  const [, , T, D] = q.layout.shape as [number, number, number, number]
  const Dv = v.layout.shape[3] as number
  const [a, b, c, g] = [q, k, v, dout].map((x) => Float64Array.from(x.data as Float32Array)) as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
  ]
  const phi = (x: number): number => (x > 0 ? x + 1 : Math.exp(x))
  const slope = (x: number): number => (x > 0 ? 1 : Math.exp(x))
  const [out, dq, dk, dv] = [T * Dv, T * D, T * D, T * Dv].map((n) => new Float64Array(n)) as [
    Float64Array,
    Float64Array,
    Float64Array,
    Float64Array,
  ]
  /** Σ φ(k)ᵀ [v, 1], then Σ φ(q)ᵀ [dO, −δ] / n. */
  let s = new Float64Array(D * (Dv + 1))
  const dn = new Float64Array(T * (Dv + 1))
  for (let t = 0; t < T; t++) {
    const y = new Float64Array(Dv + 1)
    for (let d = 0; d < D; d++) {
      for (let e = 0; e <= Dv; e++) {
        s[d * (Dv + 1) + e]! += phi(b[t * D + d]!) * (e < Dv ? c[t * Dv + e]! : 1)
        y[e]! += phi(a[t * D + d]!) * s[d * (Dv + 1) + e]!
      }
    }
    const n = y[Dv]! + 1e-6
    let delta = 0
    for (let e = 0; e < Dv; e++) {
      out[t * Dv + e] = y[e]! / n
      dn[t * (Dv + 1) + e] = g[t * Dv + e]! / n
      delta += g[t * Dv + e]! * out[t * Dv + e]!
    }
    dn[t * (Dv + 1) + Dv] = -delta / n
    for (let d = 0; d < D; d++) {
      let sum = 0
      for (let e = 0; e <= Dv; e++) sum += dn[t * (Dv + 1) + e]! * s[d * (Dv + 1) + e]!
      dq[t * D + d] = sum * slope(a[t * D + d]!)
    }
  }
  s = new Float64Array(D * (Dv + 1))
  for (let t = T - 1; t >= 0; t--) {
    for (let d = 0; d < D; d++) {
      let sum = 0
      for (let e = 0; e <= Dv; e++) {
        s[d * (Dv + 1) + e]! += phi(a[t * D + d]!) * dn[t * (Dv + 1) + e]!
        sum += (e < Dv ? c[t * Dv + e]! : 1) * s[d * (Dv + 1) + e]!
        if (e < Dv) dv[t * Dv + e]! += phi(b[t * D + d]!) * s[d * (Dv + 1) + e]!
      }
      dk[t * D + d] = sum * slope(b[t * D + d]!)
    }
  }
  return [out, dq, dk, dv]
}

test('5,000 rows: segments of many chunks', async () => {
  const inputs = make(random(6), { T: 5000, D: 8, Dv: 12 })
  await compare(caseOf(inputs, true, all), recurrent(inputs), gpus.slice(0, 1))
})

describe('tiles for GPUs', () => {
  /** The backend with kernels of a tile that it would not choose. */
  const withTile = (gpu: WebGpuBackend, tile: Parameters<typeof linearAttention>[1]): WebGpuBackend => ({
    ...gpu,
    kernels: {
      ...gpu.kernels,
      linear_attention: linearAttention(gpu.engine, tile),
      linear_attentionBackward: linearAttentionBackward(gpu.engine, tile),
    },
  })

  test.each([
    [
      { tm: 8, tc: 8, unroll: 4 },
      { T: 150, D: 64 },
    ],
    [
      { tm: 8, tc: 4, unroll: 4 },
      { T: 130, D: 18, Dv: 7, H: 2 },
    ],
  ] as const)('%o runs', async (tile, sizes) => {
    const { gpu } = gpus[tile.tc === 8 ? 0 : 1]!
    const c = caseOf(make(random(7), sizes), true, all)
    await compare(c, (await evaluate(reference, c)).results, [{ name: 'tile', gpu: withTile(gpu, tile) }])
  })

  test.each(['all', 'default'] as const)('all variants compile, with %s limits', async (limits) => {
    const errors: string[] = []
    const gpu = await createWebGpuBackend({
      backend: 'null',
      limits,
      onError: (message) => errors.push(message),
    })
    const before = gpu.engine.counts.dispatches
    for (const isCausal of [true, false])
      for (const [D, Dv] of [
        [17, 31],
        [33, 65],
        [32, 32],
        [64, 64],
        [32, 128],
        [128, 32],
      ] as const)
        for (const T of [64, 40_000]) {
          const rows = (width: number): Tensor =>
            tensor(new Float32Array(width), { device: gpu }).expand([1, 1, T, width]).detach()
          const inputs = [rows(D), rows(D), rows(Dv)] as const
          for (const t of inputs) t.requiresGrad = true
          const out = call(...inputs, { isCausal })
          grad([out], [...inputs], { gradOutputs: [rows(Dv)] })
        }
    expect(gpu.engine.counts.dispatches - before).toBe(2 * 6 * 2 * 13)
    await gpu.finished()
    expect(errors).toEqual([])
    gpu.close()
  })
})

test('memory grows with T, not with T²', async () => {
  // One of its own: no other test's memory counts.
  const gpu = await createWebGpuBackend()
  const T = 4096
  const c = caseOf(make(random(8), { T, D: 8 }), true, all)
  const before = gpu.stats()
  await evaluate(gpu, c)
  expect(gpu.stats().peakBytes - before.usedBytes).toBeLessThan(T * T)
  gpu.close()
})
