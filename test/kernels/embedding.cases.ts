/** Embedding and its gradient. */

import { embedding } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { type Case, check, type Engine, evaluate } from './fused.ts'
import { dense, type Operand, rows } from './operand.ts'
import { integer, pick, random } from './random.ts'

const both = ['embedding', 'embeddingBackward']
const exact = [[0, 0]] as const

/** Gradients are small integers, so that their sums are exact in any order and precision. */
const make = (
  rnd: () => number,
  v: number,
  d: number,
  index: Operand,
  options: { paddingIdx?: number } = {},
): Case => ({
  inputs: [rows(rnd, [v], [d], () => rnd() - 0.5), index],
  needs: [true, false],
  dout: rows(rnd, [...index.layout.shape], [d], () => integer(rnd, -9, 9)),
  call: ([w, i]) => embedding(i, w, options),
})

/** `adds`: whether the gradient's kernel adds what the weight has received already as it stores. */
export function testEmbedding(engine: Engine, { adds }: { adds: boolean }): void {
  test('any rows, indices of any shape, with and without padding', async () => {
    const rnd = random(1)
    for (let round = 0; round < 40; round++) {
      const v = pick(rnd, [1, 2, 7, 65, 255, 256, 300])
      const d = pick(rnd, [1, 3, 4, 8, 31, 64, 130, 260])
      const few = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 5, 9]))
      // Beyond 2048 indices a GPU sorts them.
      const lead = round % (engine.share === 1 ? 20 : 4) === 0 ? [pick(rnd, [1, 2]), 9, 231] : few
      const index = rows(rnd, lead, [], () => integer(rnd, 0, v - 1), 'int32')
      const options = rnd() < 0.3 ? { paddingIdx: integer(rnd, -v, v - 1) } : {}
      await check(engine, make(rnd, v, d, index, options), both, exact)
    }
  })

  test('many indices: runs within, across and beyond spans, several blocks of keys', async () => {
    const rnd = random(2)
    const given = (v: number, d: number, n: number, value: (i: number) => number, options = {}) =>
      check(engine, make(rnd, v, d, dense([n], value, 'int32'), options), both, exact)
    await given(65, 5, 3000, () => integer(rnd, 0, 64))
    // One row takes nearly all.
    for (const n of [2000, 3000]) await given(65, 4, n, () => (rnd() < 0.95 ? 7 : integer(rnd, 0, 64)))
    await given(3, 8, 3000, () => 1)
    // Runs that end with a span.
    await given(80, 4, 32 * 80, (i) => i >> 5)
    await given(80, 4, 32 * 80, (i) => i % 80)
    // Two and three digits.
    await given(50_257, 4, 1500, () => pick(rnd, [0, 255, 256, 50_256, integer(rnd, 0, 50_256)]))
    await given(70_000, 1, 700, () => pick(rnd, [65_535, 65_536, 69_999, 3]))
    await given(65, 384, 768, () => integer(rnd, 0, 64))
    await given(65, 4, 12_000, () => integer(rnd, 0, 64), { paddingIdx: 3 })
    // More than blocks of one key per thread.
    await given(1000, 1, 40_000, () => integer(rnd, 0, 999))
  })

  test('adds what the weight has received already, few indices and many', async () => {
    const rnd = random(5)
    // The sum of the forward pass, and none of gradients.
    const sums = async (c: Case): Promise<void> => {
      for (const { backend } of engine.backends)
        expect((await evaluate(backend, c)).calls.add).toBe(adds ? 1 : 2)
    }
    for (const [v, d, count] of [
      [65, 8, 40],
      [7, 3, 40],
      [65, 8, 2100],
      [7, 3, 2100],
    ]) {
      const index = (): Operand => dense([count], () => integer(rnd, 0, v - 1), 'int32')
      const twice: Case = {
        inputs: [rows(rnd, [v], [d], () => rnd() - 0.5), index(), index()],
        needs: [true, false, false],
        dout: rows(rnd, [count], [d], () => rnd() - 0.5),
        call: ([w, i, j]) => embedding(i, w).add(embedding(j, w)),
      }
      // Sums of some hundreds of terms below 1, added one after the other.
      await check(engine, twice, both, [[2e-5, 1e-5]])
      await sums(twice)
    }
    // Both gradients are the same tensor, which does not begin with a vector.
    for (const offset of [0, 1, 4]) {
      const n = 1100
      const data = Float32Array.from({ length: offset + 4 * n }, () => rnd() - 0.5)
      const same: Case = {
        inputs: [dense([n, 4], () => rnd()), dense([n], (i) => n - 1 - i, 'int32')],
        needs: [true, false],
        dout: { layout: { shape: [n, 4], strides: [4, 1], offset }, dtype: 'float32', data },
        call: ([w, i]) => embedding(i, w).add(w),
      }
      await check(engine, same, both, [[1e-6, 1e-6]])
      await sums(same)
    }
  })
}
