/** Fused kernels by the way of the public operators: on CPU backends that must agree, and on the reference in float64. */

import { backward, profile, reference, type Tensor, type TypedArray, tensor } from '@tilegrad/core'
import { afterAll, expect } from 'vitest'
import { type CpuBackend, type CpuOptions, createCpuBackend } from '../src/backend.ts'
import { mismatch, type Twin } from './row-rig.ts'

const made: CpuBackend[] = []
afterAll(() => Promise.all(made.map((b) => b.close())))

const setups: readonly [string, CpuOptions][] = [
  ['best, 1 thread', { threads: 1 }],
  ['best, 2 threads', { threads: 2 }],
  ['best, 4 threads', { threads: 4 }],
  ['best, unshared', { shared: false }],
  ['relaxed, 2 threads', { level: 'relaxed', threads: 2 }],
  ['simd, 3 threads', { level: 'simd', threads: 3 }],
  ['simd, unshared', { level: 'simd', shared: false }],
]

export async function makeBackends(): Promise<{ name: string; backend: CpuBackend }[]> {
  return Promise.all(
    setups.map(async ([name, options]) => {
      const backend = createCpuBackend({ ...options, maxBytes: 2 ** 30 })
      made.push(backend)
      await backend.ready()
      return { name, backend }
    }),
  )
}

/** An operator's inputs, which of them are differentiated, and the gradient of its output. */
export interface Case {
  readonly inputs: readonly Pick<Twin, 'layout' | 'dtype' | 'data'>[]
  readonly needs: readonly boolean[]
  readonly dout: Pick<Twin, 'layout' | 'dtype' | 'data'> | null
  readonly call: (inputs: readonly Tensor[]) => Tensor
}

const load = (device: CpuBackend | typeof reference, t: Case['inputs'][number]): Tensor => {
  const wide = device === reference && t.dtype === 'float32'
  return tensor(wide ? Float64Array.from(t.data) : t.data, { device }).viewAs(t.layout)
}

const values = (t: Tensor): TypedArray => {
  const dense = t.isContiguous ? t : t.clone()
  return dense.backend.readSync?.(dense) as TypedArray
}

/** The output and the wanted gradients, which kernels ran fused, and how often each operator did. */
export function evaluate(
  device: CpuBackend | typeof reference,
  c: Case,
): { results: TypedArray[]; fused: string[]; calls: Record<string, number> } {
  const inputs = c.inputs.map((t) => load(device, t))
  inputs.forEach((t, i) => {
    if (c.needs[i]) t.requiresGrad = true
  })
  const { result, rows } = profile(() => {
    const y = c.call(inputs)
    const results = [values(y)]
    if (c.needs.some(Boolean)) {
      backward(y, c.dout ? { gradient: load(device, c.dout) } : {})
      for (const [i, t] of inputs.entries()) if (c.needs[i]) results.push(values(t.grad as Tensor))
    }
    return results
  })
  const fused = rows.filter((r) => r.path === 'fused').map((r) => r.op)
  return { results: result, fused, calls: Object.fromEntries(rows.map((r) => [r.op, r.calls])) }
}

/**
 * All backends against the reference within the tolerances of each result (the output, then the gradients), and bit
 * by bit against each other, as far as they have the same instructions. The kernels named must have run.
 */
export function check(
  backends: readonly { name: string; backend: CpuBackend }[],
  c: Case,
  kernels: readonly string[],
  tolerances: readonly (readonly [atol: number, rtol: number])[],
): void {
  const want = evaluate(reference, c).results
  const first = new Map<string, TypedArray[]>()
  for (const { name, backend } of backends) {
    const { results, fused } = evaluate(backend, c)
    const context = (i: number) => `${name}: result ${i} of ${JSON.stringify(c.inputs.map((t) => t.layout))}`
    expect([...fused].sort(), context(0)).toEqual([...kernels].sort())
    const { level } = backend
    results.forEach((got, i) => {
      const [atol, rtol] = tolerances[Math.min(i, tolerances.length - 1)] as readonly [number, number]
      expect(mismatch(got, want[i] as TypedArray, atol, rtol), context(i)).toBeNull()
      // Fused multiply-add rounds differently, and tiles differ: bits are compared among engines of one kind.
      const same = first.get(level)?.[i] ?? got
      expect(mismatch(got, same, 0, 0), `${context(i)}, bits`).toBeNull()
    })
    if (!first.has(level)) first.set(level, results)
  }
}
