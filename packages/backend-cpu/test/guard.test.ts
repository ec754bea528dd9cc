/** Checking V8's pairs of instructions: what is checked, that a fault is found, and how it goes on after one. */
import { type KernelOf, type KernelTable, softmax } from '@tilegrad/core'
import { describe, expect, it, vi } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { guard, isGuarded } from '../src/guard.ts'
import { kernelTable } from '../src/kernels/table.ts'
import { make, rows, spoil } from './guard-rig.ts'

const cpu = make({ level: 'simd' })
const plain = kernelTable(cpu.engine)
const names = Object.keys(plain) as (keyof KernelTable)[]

describe('guard', () => {
  it('knows every kernel but those that only move data', () => {
    expect(names.filter((name) => !isGuarded(name))).toEqual(['sort'])
  })

  // What a test of one family runs first is the check of that family; its own call is on tensors of no size.
  const call = (table: KernelTable, name: keyof KernelTable): void => {
    const kernel = table[name] as KernelOf<object>
    kernel.run([], [], { kernel: { inputs: [], exprs: [], params: [] } }, [])
  }
  const spent = new Error('the call itself')
  /** A check of one family, with the outcome of `fallback`; the kernel's own call ends in `spent`. */
  function check(name: keyof KernelTable, real: KernelTable): string | null {
    let failed: string | null = null
    const stop: KernelOf<object> = {
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
          return { ...real, [name]: stop }
        },
      },
    )
    const before = table[name]
    try {
      call(table, name)
    } catch {
      // No kernel takes such a call; the check came before it.
    }
    expect(table[name]).not.toBe(before)
    return failed
  }

  it.each(names.filter(isGuarded))('%s: passes as it is, and is found out with one wrong bit', (name) => {
    expect(check(name, plain)).toBeNull()
    expect(check(name, spoil(plain, name, cpu.engine))).toBe(name)
  })

  it('a trap is a fault', () => {
    const trap = { ...plain.reduce, run: () => expect.unreachable() }
    expect(check('reduce', { ...plain, reduce: trap })).toBe('reduce')
  })

  it('checks once, leaves nothing behind, and then costs nothing', async () => {
    await collected()
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
