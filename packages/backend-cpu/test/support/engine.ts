/** The CPU engine for the cases that all engines have in common: thread counts, instruction sets, memory that is not shared. */

import { afterAll } from 'vitest'
import type { Engine } from '../../../../test/kernels/fused.ts'
import { type CpuOptions, createCpuBackend } from '../../src/backend.ts'

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
  Object.entries(setups).map(async ([name, options]) => {
    const backend = createCpuBackend({ ...options, maxBytes: 2 ** 30 })
    await backend.ready()
    return { name, backend }
  }),
)
afterAll(() => Promise.all(backends.map(({ backend }) => backend.close())))

/** Fused multiply-add rounds differently, and tiles differ: bits are the same where instructions are. */
export const engine: Engine = {
  backends: backends.map(({ name, backend }) => ({ name, backend, kind: backend.level })),
  share: 1,
}
