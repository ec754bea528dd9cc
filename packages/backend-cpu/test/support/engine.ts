/** The CPU engine for the cases that all engines have in common: thread counts, instruction sets, memory that is not shared. */

import { afterAll } from 'vitest'
import type { Engine } from '../../../../test/kernels/fused.ts'
import { type CpuBackend, type CpuOptions, createCpuBackend } from '../../src/backend.ts'

const made: CpuBackend[] = []
afterAll(() => Promise.all(made.map((backend) => backend.close())))

/** A backend that is ready, and closed after the tests. */
export async function makeBackend(options: CpuOptions): Promise<CpuBackend> {
  const backend = createCpuBackend({ ...options, maxBytes: 2 ** 30 })
  made.push(backend)
  await backend.ready()
  return backend
}

/** What there is to agree: `best` is the highest set of instructions that the machine has. */
const setups: Record<string, CpuOptions> = {
  'best, 1 thread': { threads: 1 },
  'best, 2 threads': { threads: 2 },
  'best, 4 threads': { threads: 4 },
  'best, unshared': { shared: false },
  'relaxed, 2 threads': { level: 'relaxed', threads: 2 },
  'simd, 3 threads': { level: 'simd', threads: 3 },
  'simd, unshared': { level: 'simd', shared: false },
}

export const backends = await Promise.all(
  Object.entries(setups).map(async ([name, options]) => ({ name, backend: await makeBackend(options) })),
)
/** What compiles and runs the backends' kernels. */
export const engines = backends.map(({ name, backend }) => ({ name, engine: backend.engine }))

/** The engine with what makes results of two backends the same bits. */
export const engineBy = (kind: (backend: CpuBackend) => string): Engine => ({
  backends: backends.map(({ name, backend }) => ({ name, backend, kind: kind(backend) })),
  share: 1,
  dtypes: ['float32', 'int32', 'float64'],
})

/** Fused multiply-add rounds differently, and tiles differ: bits are the same where instructions are. */
export const engine = engineBy((backend) => backend.level)
