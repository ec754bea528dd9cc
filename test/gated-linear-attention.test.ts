/** Fused linear attention with a decay per head and step, forward and backward, against the composition in float64. */
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
import { createCpuBackend } from '../src/backend.ts'
import { random } from './row-rig.ts'

const backends = await Promise.all([
  createCpuBackend({ level: 'simd', threads: 1 }),
  createCpuBackend({ level: 'relaxed', threads: 2 }),
  createCpuBackend({ threads: 3 }),
])
for (const backend of backends) await backend.ready?.()
afterAll(() => Promise.all(backends.map((b) => b.close())))

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
  /** The decay's dims in memory: a view, if not in order. */
  transposed?: boolean
}

const numbers = (rnd: () => number, count: number): Float32Array =>
  Float32Array.from({ length: count }, () => 2 * rnd() - 1)

/** Output and gradients of all inputs, and which operators ran fused. */
function compute(backend: Backend, { B = 2, H = 3, T, D = 16, Dv = D, kind, transposed }: Case) {
  const rnd = random(T + D)
  const place = (data: Float32Array, shape: readonly number[]): Tensor =>
    tensor(backend === reference ? Float64Array.from(data) : data, shape, { device: backend })
  // Heads of a packed projection: rows are not contiguous.
  const heads = (width: number) => place(numbers(rnd, B * T * H * width), [B, T, H, width]).transpose(1, 2)
  const [q, k, v, dout] = [heads(D), heads(D), heads(Dv), heads(Dv)]
  const strength = kind === 'strong gates' ? 60 : 0.5
  const logs = numbers(rnd, B * H * T).map((x) => -strength * Math.abs(x))
  const log = transposed ? place(logs, [T, B, H]).permute([1, 2, 0]) : place(logs, [B, H, T])
  const leaves = [q, k, v, log].map((t) => t.detach())
  const used = kind === 'none' || kind === 'retention' ? leaves.slice(0, 3) : leaves
  for (const t of used) t.requiresGrad = true
  const [a, b, c, g] = leaves as [Tensor, Tensor, Tensor, Tensor]
  const { result, rows } = profile(() => {
    const y =
      kind === 'retention'
        ? retention(a, b, c, { scale: 0.5 })
        : gatedLinearAttention(a, b, c, kind === 'none' ? null : g)
    return [y, ...grad([y], used, { gradOutputs: [dout] })]
  })
  const fused = rows.filter((r) => r.path === 'fused').map((r) => r.op)
  return { values: result.map((t) => t.dataSync() as Float64Array), fused: [...new Set(fused)].sort() }
}

function check(c: Case): void {
  const { values: want } = compute(reference, c)
  for (const backend of backends) {
    const { values: got, fused } = compute(backend, c)
    expect(fused).toEqual(['gated_linear_attention', 'gated_linear_attentionBackward'])
    got.forEach((x, i) => {
      const exact = want[i] as Float64Array
      const largest = exact.reduce((m, y) => Math.max(m, Math.abs(y)), 0)
      expect(x.length).toBe(exact.length)
      let worst = 0
      for (let j = 0; j < x.length; j++)
        worst = Math.max(worst, Math.abs((x[j] as number) - (exact[j] as number)))
      // Sums of up to T · D products in float32, and log α's of T of those, relative to the largest.
      const about = `${backend.level}, ${JSON.stringify(c)}, ${['out', 'dq', 'dk', 'dv', 'dlog'][i]}`
      expect(worst, about).toBeLessThanOrEqual(1e-6 + (i === 4 ? 2e-5 : 4e-6) * largest)
    })
  }
}

describe.each<Kind>(['gates', 'strong gates', 'none', 'retention'])('%s', (kind) => {
  test.each<Sizes>([
    { T: 1 },
    { T: 31, D: 5, Dv: 3 },
    { T: 32, D: 32 },
    { T: 63, D: 60, Dv: 20 },
    { T: 127, D: 64, H: 1, B: 1 },
    { T: 500, D: 17, Dv: 128, H: 1, B: 1 },
    { T: 1000, D: 24, H: 1, B: 1 },
    { T: 40, D: 128, H: 7, B: 1 },
  ])('%o', (sizes) => check({ ...sizes, kind }))
})

test('a decay of any strides', () => check({ T: 70, kind: 'gates', transposed: true }))

test('nothing to compute: no steps, no heads', () => {
  check({ T: 0, kind: 'gates' })
  check({ T: 5, B: 0, kind: 'gates' })
})

test('bit by bit the same on any number of threads', async () => {
  const all = await Promise.all([1, 2, 4].map((threads) => createCpuBackend({ threads, level: 'relaxed' })))
  for (const b of all) await b.ready?.()
  for (const c of [
    { T: 300, H: 1, B: 1 },
    { T: 70, H: 8 },
  ]) {
    const [one, ...more] = all.map((b) => compute(b, { ...c, kind: 'gates' }).values)
    for (const other of more) expect(other).toEqual(one)
  }
  await Promise.all(all.map((b) => b.close()))
})

test('what the kernel does not take is composed: a state, a form, a decay per row of the state', () => {
  const backend = backends[0] as (typeof backends)[0]
  const make = (...shape: number[]) =>
    tensor(
      numbers(
        random(1),
        shape.reduce((n, s) => n * s, 1),
      ),
      shape,
      { device: backend },
    )
  const [q, k, v] = [make(1, 2, 9, 4), make(1, 2, 9, 4), make(1, 2, 9, 3)]
  const log = make(1, 2, 9).abs().neg()
  const fused = (fn: () => unknown): boolean =>
    profile(fn).rows.some((r) => r.op === 'gated_linear_attention' && r.path === 'fused')
  expect(fused(() => gatedLinearAttention(q, k, v, log))).toBe(true)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { normalize: true }))).toBe(true)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { form: 'chunked' }))).toBe(false)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { returnState: true }))).toBe(false)
  expect(fused(() => gatedLinearAttention(q, k, v, log, { initialState: make(1, 2, 4, 3) }))).toBe(false)
  expect(fused(() => gatedLinearAttention(q, k, v, make(1, 2, 9, 4).abs().neg()))).toBe(false)
})
