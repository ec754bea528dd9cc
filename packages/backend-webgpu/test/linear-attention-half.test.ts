/**
 * Linear attention in float16 on subgroup matrices, emulated where the GPU has none, against float64 of the very numbers
 * that the operands hold.
 */

import {
  type FeatureMap,
  grad,
  linearAttention,
  profile,
  reference,
  type Tensor,
  tensor,
  withBackend,
  zeros,
} from '@tilegrad/core'
import { afterAll, describe, expect, it } from 'vitest'
import { backendOn } from '../src/backend.ts'
import { openGpu } from '../src/index.ts'
import { shaderCode } from '../src/wgsl/shader.ts'
import { emulating } from './support/emulated-matrices.ts'

const gpu = await openGpu()
const backend = backendOn(gpu.matrices ? gpu : emulating(gpu))
afterAll(() => gpu.close())

type Call = { isCausal: boolean; featureMap: FeatureMap }
type Numbers = (i: number, which: number) => number

function numbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return (state >>> 8) / 2 ** 23 - 1
  }
}

interface Sizes {
  readonly h?: number
  readonly t: number
  readonly s?: number
  readonly d: number
  readonly dv?: number
}

/** Output and gradients, and those in float64. */
async function both(
  { h = 1, t, s = t, d, dv = d }: Sizes,
  options: Call,
  value: Numbers,
  needGradients = true,
) {
  const shapes = [
    [1, h, t, d],
    [1, h, s, d],
    [1, h, s, dv],
    [1, h, t, dv],
  ]
  const all = shapes.map((shape, which) =>
    withBackend(backend, () =>
      tensor(Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => value(i, which)))
        .reshape(shape)
        .to('float16'),
    ),
  )
  const of = (xs: readonly Tensor[]): Tensor[] => {
    const [q, k, v] = xs.slice(0, 3).map((x) => {
      const leaf = x.detach()
      leaf.requiresGrad = needGradients
      return leaf
    })
    const y = linearAttention(q, k, v, options)
    return needGradients ? [y, ...grad([y], [q, k, v], { gradOutputs: [xs[3]] })] : [y]
  }
  const held = await Promise.all(all.map(async (x) => Float64Array.from(await x.data())))
  const exact = withBackend(reference, () => of(held.map((x, i) => tensor(x, shapes[i]))))
  const { result, rows } = profile(() => of(all))
  expect(
    rows
      .filter(({ path }) => path === 'fused')
      .map(({ op }) => op)
      .sort(),
  ).toEqual(['linear_attention', 'linear_attentionBackward'].slice(0, needGradients ? 2 : 1))
  // Nothing is widened.
  expect(rows.some(({ op }) => op === 'copy')).toBe(false)
  const got = await Promise.all(result.map(async (x) => (await x.data()) as Float32Array))
  return { result, got, want: await Promise.all(exact.map(async (x) => (await x.data()) as Float64Array)) }
}

/** By how many roundings of float16 of the largest result the worst one is off; infinite where one is not finite. */
function roundings(got: Float32Array, want: Float64Array): number {
  let [most, largest] = [0, 0]
  for (const [i, w] of want.entries()) {
    const error = Math.abs(got[i] - w)
    most = Number.isNaN(error) ? Infinity : Math.max(most, error)
    largest = Math.max(largest, Math.abs(w))
  }
  return most / (2 ** -11 * largest + 1e-30)
}

/** Features, scores and what is stored are rounded once each, and O once more in δ: four roundings of the largest result. */
async function agrees(sizes: Sizes, options: Call, value: Numbers, most = [4, 4, 4, 4]): Promise<void> {
  const { result, got, want } = await both(sizes, options, value)
  for (const [i, y] of got.entries()) {
    expect(result[i].dtype).toBe('float16')
    expect(roundings(y, want[i]), ['o', 'dq', 'dk', 'dv'][i]).toBeLessThan(most[i])
  }
}

it('compiles in all forms', async () => {
  // The null device has neither the matrices nor the memory: kernels are made and not run.
  const device = await openGpu({ backend: 'null' })
  Object.defineProperties(device, {
    matrices: {
      value: { enables: ['f16', 'subgroups', 'chromium_experimental_subgroup_matrix'], subgroup: 32 },
    },
    limits: { value: { ...device.limits, maxComputeWorkgroupStorageSize: 49152 } },
  })
  const none = backendOn(device)
  const { engine } = none
  const codes = new Map<string, string>()
  const [kernel, run] = [engine.kernel.bind(engine), engine.run.bind(engine)]
  const apart = new Set<unknown>()
  engine.kernel = (key, label, build) => {
    const made = kernel(key, label, build)
    if (key.startsWith('linearAttentionMatrix')) {
      codes.set(key, shaderCode(build()))
      apart.add(made)
    }
    return made
  }
  engine.run = (which, ...rest) => {
    if (!apart.has(which)) run(which, ...rest)
  }
  withBackend(none, () => {
    for (const featureMap of ['elu', 'relu', 'exp', 'identity'] as const)
      for (const isCausal of [true, false])
        for (const [d, dv, t] of [
          [64, 64, 128],
          [32, 128, 20_000],
          [96, 24, 70],
        ] as const) {
          const of = (width: number): Tensor => zeros([1, 2, t, width], { dtype: 'float16' })
          const [q, k, v] = [of(d), of(d), of(dv)]
          for (const x of [q, k, v]) x.requiresGrad = true
          grad([linearAttention(q, k, v, { isCausal, featureMap })], [q, k, v], { gradOutputs: [of(dv)] })
        }
  })
  expect(codes.size).toBeGreaterThan(100)
  for (const [key, code] of codes) {
    const { messages } = await none.gpu.device.createShaderModule({ code }).getCompilationInfo()
    expect(
      messages.filter(({ type }) => type === 'error').map(({ message }) => message),
      key,
    ).toEqual([])
  }
  none.close()
}, 120_000)

describe('linear attention in float16', () => {
  // Few forms: SwiftShader takes long to compile each kernel.
  it('agrees with float64, forward and backward', async () => {
    const next = numbers(5)
    await agrees({ t: 64, d: 16 }, { isCausal: true, featureMap: 'elu' }, () => 2 * next())
  }, 600_000)

  it('takes sums beyond 65,504: values up to 300, positive features, 4,096 rows', async () => {
    const next = numbers(4)
    const value: Numbers = () => 150 * (1 + next())
    const { got, want } = await both({ t: 4096, d: 16 }, { isCausal: true, featureMap: 'elu' }, value, false)
    expect(roundings(got[0], want[0])).toBeLessThan(4)
  }, 600_000)
})
