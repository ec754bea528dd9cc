/** Checking V8's pairs of instructions: what is checked, that a fault is found, and how it goes on after one. */
import {
  type Backend,
  type KernelOf,
  type KernelTable,
  layerNorm,
  softmax,
  tensor,
  type View,
} from '@tilegrad/core'
import { afterAll, describe, expect, it, vi } from 'vitest'
import { type CpuBackend, createCpuBackend } from '../src/backend.ts'
import type { Engine } from '../src/engine.ts'
import { detectFeatures } from '../src/features.ts'
import { guard, guarded } from '../src/guard.ts'
import { kernelTable } from '../src/kernels/table.ts'

const made: CpuBackend[] = []
afterAll(() => Promise.all(made.map((b) => b.close())))
const make = (...args: Parameters<typeof createCpuBackend>): CpuBackend => {
  const backend = createCpuBackend({ threads: 2, maxBytes: 2 ** 26, ...args[0] }, args[1])
  made.push(backend)
  return backend
}
const cpu = make({ level: 'simd' })
const plain = kernelTable(cpu.engine)

/** A table in which one kernel changes one lane of its first output. */
function spoil(table: KernelTable, name: string, engine: Engine): KernelTable {
  const kernel = table[name] as KernelOf<unknown>
  const run = (outputs: readonly View[], inputs: readonly View[], attrs: unknown): void => {
    kernel.run(outputs, inputs, attrs)
    engine.memory.u8[engine.address(outputs[0] as View)] ^= 1
  }
  return { ...table, [name]: { ...kernel, run } } as KernelTable
}

const rows = (device: Backend) =>
  tensor(
    Float32Array.from({ length: 40 }, (_, i) => i % 7),
    [4, 10],
    { device },
  )

describe('guard', () => {
  it('knows every kernel but those that only move data', () => {
    expect(Object.keys(plain).filter((name) => !guarded.includes(name))).toEqual(['sort'])
    expect(guarded.filter((name) => plain[name] === undefined)).toEqual([])
  })

  // What a test of one family runs first is the check of that family; its own call is on tensors of no size.
  const call = (table: KernelTable, name: string) => (table[name] as KernelOf<unknown>).run.bind(table[name])
  const spent = new Error('the call itself')
  /** A check of one family, with the outcome of `fallback`; the kernel's own call ends in `spent`. */
  function check(name: string, real: KernelTable): string | null {
    let failed: string | null = null
    const stop: KernelOf<never> = {
      run: () => {
        throw spent
      },
    }
    const table = guard(
      { ...real },
      {
        backend: cpu,
        plain: () => plain,
        fallback: (kernel) => {
          failed = kernel
          return { ...real, [name]: stop } as KernelTable
        },
      },
    )
    const before = table[name]
    try {
      call(table, name)([], [], { kernel: { inputs: [], exprs: [], params: [] }, params: [] })
    } catch {
      // No kernel takes such a call; the check came before it.
    }
    expect(table[name]).not.toBe(before)
    return failed
  }

  it.each(guarded)('%s: passes as it is, and is found out with one wrong bit', (name) => {
    expect(check(name, plain)).toBeNull()
    expect(check(name, spoil(plain, name, cpu.engine))).toBe(name)
  })

  it('a trap is a fault', () => {
    const trap = { ...plain.reduce, run: () => expect.unreachable() }
    expect(check('reduce', { ...plain, reduce: trap })).toBe('reduce')
  })

  it('checks once, leaves nothing behind, and then costs nothing', () => {
    const { liveBlocks } = cpu.stats()
    const reference = vi.fn(() => plain)
    const table = guard(plain, { backend: cpu, plain: reference, fallback: () => expect.unreachable() })
    const backend = { ...cpu, kernels: table }
    const x = rows(backend)
    const once = softmax(x, -1)
    expect(reference).toHaveBeenCalledTimes(1)
    expect(table.softmax).toBe(plain.softmax)
    softmax(x, -1).dispose()
    once.dispose()
    x.dispose()
    // The kernels' own scratch memory and modules may stay.
    expect(cpu.stats().liveBlocks - liveBlocks).toBeLessThan(20)
  })
})

describe.skipIf(!detectFeatures().revectorized)('a backend whose pairs are wrong', () => {
  it('goes on with 128 bits, right, with one warning, and later ones begin so', () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
    const want = softmax(rows(cpu), -1).dataSync()
    const backend = make(
      {},
      {
        kernelTable: (engine) => {
          const table = kernelTable(engine)
          return engine.features.revectorized ? spoil(table, 'softmax', engine) : table
        },
      },
    )
    const x = rows(backend)
    const [w, b] = [1, 2].map((v) => tensor(new Float32Array(10).fill(v), [10], { device: backend }))
    expect(backend.level).toBe('revectorized')
    const before = layerNorm(x, [10], w, b).dataSync()
    expect(warn).not.toHaveBeenCalled()
    const got = softmax(x, -1).dataSync()
    expect(warn).toHaveBeenCalledTimes(1)
    expect(warn.mock.calls[0]?.[0]).toMatch(
      /256 bits computes wrongly here \(softmax, V8 .*going on with 128 bits/,
    )
    expect(backend.level).toBe('relaxed')
    expect(backend.engine.features.revectorized).toBe(false)
    // Their instructions differ, but not by more than rounding.
    got.forEach((value, i) => {
      expect(value).toBeCloseTo(want[i] as number, 6)
    })
    expect(layerNorm(x, [10], w, b).dataSync()).toEqual(before)
    softmax(x, -1).dispose()
    expect(make().level).toBe('relaxed')
    expect(make({ level: 'revectorized' }).level).toBe('relaxed')
    expect(warn).toHaveBeenCalledTimes(1)
  })
})
