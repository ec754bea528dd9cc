/**
 * Fused linear attention with a decay per head and step, forward and backward, on every engine against the composition in
 * float64; on CPUs bit by bit the same on any number of threads.
 */
import {
  type Backend,
  createCpuBackend,
  gatedLinearAttention,
  grad,
  profile,
  reference,
  retention,
  type Tensor,
  tensor,
} from 'tilegrad'
import { afterAll, describe, expect, test } from 'vitest'
import { gpus } from '../packages/backend-webgpu/test/support/gpus.ts'
import { random } from './kernels/random.ts'

async function cpu(options: Parameters<typeof createCpuBackend>[0]) {
  const backend = createCpuBackend(options)
  await backend.ready()
  return backend
}
const cpus = [
  await cpu({ level: 'simd', threads: 1 }),
  await cpu({ level: 'relaxed', threads: 2 }),
  await cpu({ threads: 3 }),
]
// None on a second Node.
const [all = [], defaults = []] = gpus.map(({ gpu }): Backend[] => [gpu])
afterAll(async () => {
  for (const backend of cpus) await backend.close()
  for (const { gpu } of gpus) gpu.close()
})

interface Sizes {
  B?: number
  H?: number
  T: number
  D?: number
  Dv?: number
}
type Kind = 'gates' | 'strong gates' | 'none' | 'retention'

interface Case extends Sizes {
  kind: Kind
  /** Which of q, k, v and the decay get gradients; default all. */
  needs?: readonly boolean[]
}

/** Output and gradients, and which operators ran fused. */
async function compute(backend: Backend, { B = 1, H = 2, T, D = 16, Dv = D, kind, needs }: Case) {
  const rnd = random(T + D)
  const numbers = (count: number): Float32Array => Float32Array.from({ length: count }, () => 2 * rnd() - 1)
  const place = (data: Float32Array, shape: readonly number[]): Tensor =>
    tensor(backend === reference ? Float64Array.from(data) : data, shape, { device: backend })
  // Heads of a packed projection, and a decay whose heads are innermost: nothing is contiguous.
  const heads = (width: number) => place(numbers(B * T * H * width), [B, T, H, width]).transpose(1, 2)
  const [q, k, v, dout] = [heads(D), heads(D), heads(Dv), heads(Dv)]
  const strength = kind === 'strong gates' ? 60 : 0.5
  const logs = numbers(B * H * T).map((x) => -strength * Math.abs(x))
  const log = place(logs, [T, B, H]).permute([1, 2, 0])
  const leaves = [q, k, v, log].map((t) => t.detach())
  const wanted = leaves.filter((_, i) => (needs ? needs[i] : i < 3 || kind.endsWith('gates')))
  for (const t of wanted) t.requiresGrad = true
  const [a, b, c, g] = leaves as [Tensor, Tensor, Tensor, Tensor]
  const { result, rows } = profile(() => {
    const y =
      kind === 'retention'
        ? retention(a, b, c, { scale: 0.5 })
        : gatedLinearAttention(a, b, c, kind === 'none' ? null : g)
    return [y, ...grad([y], wanted, { gradOutputs: [dout] })]
  })
  const fused = rows.filter((r) => r.path === 'fused').map((r) => r.op)
  return { values: await Promise.all(result.map((t) => t.data())), fused: [...new Set(fused)].sort() }
}

async function check(c: Case, backends: readonly Backend[] = [...cpus, ...all]): Promise<void> {
  const { values: want } = await compute(reference, c)
  for (const backend of backends) {
    const { values: got, fused } = await compute(backend, c)
    expect(fused).toEqual(['gated_linear_attention', 'gated_linear_attentionBackward'])
    got.forEach((x, i) => {
      const exact = want[i] as Float64Array
      const largest = exact.reduce((m, y) => Math.max(m, Math.abs(y)), 0)
      expect(x.length).toBe(exact.length)
      // The largest, NaN if there is one.
      let worst = 0
      for (let j = 0; j < x.length; j++)
        worst = Math.max(worst, Math.abs((x[j] as number) - (exact[j] as number)))
      // Sums of up to T · D products in float32, and log α's of T of those, relative to the largest; GPUs' exponentials are rougher.
      const most = i === 4 ? 2e-5 : (cpus as Backend[]).includes(backend) ? 4e-6 : 6e-6
      const about = `${backend.name}, ${JSON.stringify(c)}, result ${i}`
      expect(worst, about).toBeLessThanOrEqual(1e-6 + most * largest)
    })
  }
}

describe.each<Kind>(['gates', 'strong gates', 'none', 'retention'])('%s', (kind) => {
  test.each<Sizes>([
    { T: 1 },
    { T: 63, D: 32, Dv: 20 },
    { T: 64 },
    { T: 200, D: 17, H: 3, B: 2 },
    // On GPUs segments of several chunks.
    { T: 1000, H: 6 },
  ])('%o', (sizes) => check({ ...sizes, kind }))

  test.each<Sizes>([
    { T: 31, D: 5, Dv: 3 },
    { T: 63, D: 60, Dv: 20 },
    { T: 127, D: 64, H: 1 },
    { T: 500, D: 17, Dv: 128, H: 1 },
    { T: 40, D: 128, H: 7 },
  ])('%o, on CPUs', (sizes) => check({ ...sizes, kind }, cpus))
})

test.each(all)('wider heads on a GPU', async (gpu) => {
  await check({ T: 130, D: 64, H: 1, kind: 'gates' }, [gpu])
  await check({ T: 130, D: 20, Dv: 80, H: 1, kind: 'gates' }, [gpu])
})

test('only some gradients, at default limits too', async () => {
  await check({ T: 70, kind: 'gates' }, defaults)
  await check({ T: 70, kind: 'gates', needs: [false, true, false, false] })
  await check({ T: 70, kind: 'gates', needs: [true, false, true, false] })
})

test('nothing to compute: no steps, no heads', async () => {
  await check({ T: 0, kind: 'gates' })
  await check({ T: 5, B: 0, kind: 'gates' })
})

test('bit by bit the same on any number of threads', async () => {
  const backends = await Promise.all([1, 2, 4].map((threads) => cpu({ threads, level: 'relaxed' })))
  for (const sizes of [
    { T: 300, H: 1 },
    { T: 70, H: 8 },
  ]) {
    const results = await Promise.all(backends.map((b) => compute(b, { ...sizes, kind: 'gates' })))
    for (const { values } of results.slice(1)) expect(values).toEqual(results[0]?.values)
  }
  for (const backend of backends) await backend.close()
})

test('what kernels do not take is composed: a state, a form, a decay per row of the state', () => {
  const backend = cpus[0] as Backend
  const rnd = random(1)
  const make = (...shape: number[]) =>
    tensor(
      Float32Array.from({ length: shape.reduce((n, s) => n * s, 1) }, () => -rnd()),
      shape,
      { device: backend },
    )
  const [q, k, v] = [make(1, 2, 9, 4), make(1, 2, 9, 4), make(1, 2, 9, 3)]
  const log = make(1, 2, 9)
  const fused = (fn: () => unknown): boolean =>
    profile(fn).rows.some((r) => r.op === 'gated_linear_attention' && r.path === 'fused')
  expect(fused(() => gatedLinearAttention(q, k, v, log))).toBe(true)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { normalize: true }))).toBe(true)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { form: 'chunked' }))).toBe(false)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { returnState: true }))).toBe(false)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { initialState: make(1, 2, 4, 3) }))).toBe(false)
  expect(fused(() => gatedLinearAttention(q, k, v, make(1, 2, 9, 4)))).toBe(false)
})
