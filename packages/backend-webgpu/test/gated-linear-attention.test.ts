/** Fused linear attention with a decay per head and step on the GPU, forward and backward, against the composition in float64. */
import {
  type Backend,
  gatedLinearAttention,
  grad,
  profile,
  reference,
  retention,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import { gpus } from './support/gpus.ts'
import { random } from './support/random.ts'

afterAll(() => {
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
  /** Which of q, k, v and the decay get gradients. */
  needs?: readonly boolean[]
}

/** Output and gradients, and which operators ran fused. */
async function compute(backend: Backend, { B = 1, H = 2, T, D = 16, Dv = D, kind, needs }: Case) {
  const rnd = random(T + D)
  const numbers = (count: number): Float32Array => Float32Array.from({ length: count }, () => 2 * rnd() - 1)
  const place = (data: Float32Array, shape: readonly number[]): Tensor =>
    tensor(backend === reference ? Float64Array.from(data) : data, shape, { device: backend })
  // Heads of a packed projection: rows are not contiguous.
  const heads = (width: number) => place(numbers(B * T * H * width), [B, T, H, width]).transpose(1, 2)
  const [q, k, v, dout] = [heads(D), heads(D), heads(Dv), heads(Dv)]
  const strength = kind === 'strong gates' ? 60 : 0.5
  const log = place(
    numbers(B * H * T).map((x) => -strength * Math.abs(x)),
    [T, B, H],
  ).permute([1, 2, 0])
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

async function check(c: Case, backends: typeof gpus = gpus.slice(0, 1)): Promise<void> {
  const { values: want } = await compute(reference, c)
  for (const { name, gpu } of backends) {
    const { values: got, fused } = await compute(gpu, c)
    expect(fused).toEqual(['gated_linear_attention', 'gated_linear_attentionBackward'])
    got.forEach((x, i) => {
      const exact = want[i] as Float64Array
      const largest = exact.reduce((m, y) => Math.max(m, Math.abs(y)), 0)
      expect(x.length).toBe(exact.length)
      let worst = 0
      for (let j = 0; j < x.length; j++)
        worst = Math.max(worst, Math.abs((x[j] as number) - (exact[j] as number)))
      // Sums of up to T · D products in float32, and log α's of T of those, relative to the largest.
      const about = `${name}, ${JSON.stringify(c)}, result ${i}`
      expect(worst, about).toBeLessThanOrEqual(1e-6 + (i === 4 ? 2e-5 : 6e-6) * largest)
    })
  }
}

describe.each<Kind>(['gates', 'strong gates', 'none', 'retention'])('%s', (kind) => {
  test.each<Sizes>([
    { T: 1 },
    { T: 63, D: 32, Dv: 20 },
    { T: 64, D: 16 },
    { T: 200, D: 17, H: 3 },
    // Segments of several chunks.
    { T: 1000, D: 16, H: 6 },
  ])('%o', (sizes) => check({ ...sizes, kind }))
})

test('wider heads', async () => {
  await check({ T: 130, D: 64, H: 1, kind: 'gates' })
  await check({ T: 130, D: 20, Dv: 80, H: 1, kind: 'gates' })
})

test('only some gradients, at default limits too', async () => {
  await check({ T: 70, D: 16, kind: 'gates' }, gpus)
  await check({ T: 70, D: 16, kind: 'gates', needs: [false, true, false, false] })
  await check({ T: 70, D: 16, kind: 'gates', needs: [true, false, true, false] })
})

test('nothing to compute: no steps', () => check({ T: 0, kind: 'gates' }))
