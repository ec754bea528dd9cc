import { describe, expect, test } from 'vitest'
import { checkLeaks, LeakError, memory, noGrad, ones, scope, type Tensor, tensor } from '../src/index.ts'
import { collected } from './support/collected.ts'

const errorOf = (fn: () => unknown): LeakError => {
  try {
    fn()
  } catch (error) {
    if (error instanceof LeakError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

describe('checkLeaks', () => {
  test('names what was left behind: operator, shape, dtype, device, bytes, origin', () => {
    const w = ones([2, 3], { requiresGrad: true })
    const error = errorOf(() =>
      checkLeaks(function leaky() {
        const y = w.mul(2)
        y.dispose()
        w.mul(2)
        noGrad(() => w.gt(1))
        tensor([1, 2, 3], { dtype: 'int32' })
        ones([4]).dispose()
      }),
    )
    expect(error.leaks.map(({ name, shape, dtype, bytes }) => [name, shape, dtype, bytes])).toEqual([
      ['mul', [2, 3], 'float32', 24],
      ['gt', [2, 3], 'bool', 6],
      ['tensor', [3], 'int32', 12],
    ])
    for (const { origin, device, tensor: t } of error.leaks) {
      expect(device).toBe('reference')
      expect(origin.split('\n')[0]).toMatch(/check-leaks\.test\.ts:\d+/)
      expect(origin).toContain('leaky')
      expect(t.disposed).toBe(false)
      t.dispose()
    }
    expect(error.message).toMatch(
      /^checkLeaks: 3 tensors were left behind, 42 bytes; free .*:\n {2}float32 \[2, 3\] from mul, reference, 24 bytes, at .*check-leaks\.test/,
    )
  })

  test('lets pass what was freed, is returned, belongs to a graph that is returned, or is kept', () => {
    const w = ones([2, 3], { requiresGrad: true })
    const loss = checkLeaks(() => ({ deep: [w.mul(2).exp().sum()] })).deep[0]
    loss.backward()
    expect(w.grad?.shape).toEqual([2, 3])
    const keep = (): void => void scope(() => ones([3]).keep())
    checkLeaks(keep)
    expect(errorOf(() => checkLeaks(keep, { kept: true })).leaks[0].shape).toEqual([3])
    checkLeaks(() => scope(() => w.square().mean().backward()))
    expect(checkLeaks(() => 7)).toBe(7)
  })

  test('lists 20 and counts the rest', () => {
    const { message } = errorOf(() => checkLeaks(() => void Array.from({ length: 33 }, (_, i) => ones([i]))))
    expect(message.split('\n').length).toBe(22)
    expect(message).toMatch(/and 13 more$/)
  })

  test('asynchronous functions: a promise of the result', async () => {
    const x = ones([3])
    expect(await checkLeaks(async () => (await scope(() => x.add(1).sum().keep()).item()) * 2)).toBe(12)
    const later = checkLeaks(async () => {
      await null
      x.add(1)
    })
    await expect(later).rejects.toThrow(/1 tensor was left behind, 12 bytes; .*\n {2}float32 \[3\] from add/)
    await expect(checkLeaks(async () => Promise.reject(new Error('mine')))).rejects.toThrow('mine')
  })

  test('nests, and lets errors of the function through', async () => {
    let inner: LeakError | null = null
    const outer = errorOf(() =>
      checkLeaks(() => {
        inner = errorOf(() => checkLeaks(() => void ones([1])))
        ones([2])
      }),
    )
    expect((inner as LeakError | null)?.leaks.map((l) => l.shape)).toEqual([[1]])
    expect(outer.leaks.map((l) => l.shape)).toEqual([[1], [2]])
    await collected()
    const { tensors } = memory()
    expect(() =>
      checkLeaks(() => {
        throw new Error('mine')
      }),
    ).toThrow('mine')
    const t: Tensor = ones([1])
    t.dispose()
    expect(memory().tensors).toBe(tensors)
  })
})
