import { beforeEach, describe, expect, test } from 'vitest'
import { manualSeed, multinomial, setDefaultBackend, tensor } from '../src/index.ts'

beforeEach(() => {
  setDefaultBackend('reference')
  manualSeed(5)
})

describe('multinomial of a tensor', () => {
  const weights = [1, 0, 3, 4, 2]
  const share = weights.map((w) => w / 10)

  /** Counts within five standard deviations of what they should be: wrong once in two million. */
  function expectShares(drawn: ArrayLike<number>, of: readonly number[]): void {
    const n = drawn.length
    for (const [i, p] of of.entries()) {
      const count = Array.from(drawn).filter((v) => v === i).length
      expect(Math.abs(count - n * p)).toBeLessThanOrEqual(5 * Math.sqrt(n * p * (1 - p)))
    }
  }

  test('follows its weights with replacement, and never takes weight 0', () => {
    const drawn = multinomial(tensor(weights), 20000, { replacement: true })
    expect([drawn.dtype, drawn.shape]).toEqual(['int32', [20000]])
    expectShares(drawn.dataSync(), share)
  })

  test('follows the weights of each row by itself', () => {
    const rows = Array.from({ length: 6000 }, (_, i) => (i % 2 === 0 ? weights : [...weights].reverse()))
    const drawn = tensor(rows).multinomial().dataSync()
    const even = drawn.filter((_, i) => i % 2 === 0)
    const odd = drawn.filter((_, i) => i % 2 === 1)
    expectShares(even, share)
    expectShares(odd, [...share].reverse())
  })

  test('draws each index once without replacement, the first of them by the weights', () => {
    const rows = tensor(Array.from({ length: 4000 }, () => weights))
    const drawn = rows.multinomial(3)
    expect(drawn.shape).toEqual([4000, 3])
    const all = drawn.dataSync()
    expectShares(
      all.filter((_, i) => i % 3 === 0),
      share,
    )
    // After 3 (index 2) has gone the next one is drawn of what is left.
    const second = Array.from(all).filter((_, i) => i % 3 === 1 && all[i - 1] === 2)
    expectShares(second, [1 / 7, 0, 0, 4 / 7, 2 / 7])
    for (let i = 0; i < 4000; i++) expect(new Set(all.slice(3 * i, 3 * i + 3)).size).toBe(3)
  })

  test('gives the same for the same seed, takes 16 bits, and refuses what it cannot draw', () => {
    const once = (): ArrayLike<number> => {
      manualSeed(9)
      return multinomial(tensor(weights), 50, { replacement: true }).dataSync()
    }
    expect(once()).toEqual(once())
    expect(tensor([0, 1, 0]).to('float16').multinomial().dataSync()).toEqual(Int32Array.of(1))
    expect(() => multinomial(tensor(weights), 6)).toThrow('cannot draw 6 of 5 without replacement')
    expect(() => multinomial(tensor([1, 2], { dtype: 'int32' }))).toThrow('multinomial')
    expect(() => multinomial(tensor([[[1]]]))).toThrow('takes weights (N) or (B, N)')
  })
})
