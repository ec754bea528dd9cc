/** Embedding and its gradient against the composition on the reference backend, in float64. */

import { embedding, type Tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { backends, type Case, check, evaluate, type Operand, operand, plain } from './support/fused.ts'
import { integer, pick, random } from './support/random.ts'

const both = ['embedding', 'embeddingBackward']
// Rows are copied; sums of up to some thousands of terms below 1, added one after the other.
const tolerances = [
  [0, 1e-7],
  [2e-5, 1e-5],
] as const

const make = (
  rnd: () => number,
  v: number,
  d: number,
  index: Operand,
  options: { paddingIdx?: number } = {},
): Case => ({
  inputs: [operand(rnd, [v], [d], () => rnd() - 0.5), index],
  needs: [true, false],
  dout: operand(rnd, [...index.layout.shape], [d], () => rnd() - 0.5),
  call: ([w, i]) => embedding(i as Tensor, w as Tensor, options),
})

test('any rows, indices of any shape, with and without padding', async () => {
  const rnd = random(1)
  for (let round = 0; round < 40; round++) {
    const v = pick(rnd, [1, 2, 7, 65, 255, 256, 300])
    const d = pick(rnd, [1, 3, 4, 8, 31, 64, 260])
    const few = Array.from({ length: integer(rnd, 0, 3) }, () => pick(rnd, [1, 2, 5, 9]))
    // Beyond 2048 indices they are sorted.
    const lead = round % 4 === 0 ? [pick(rnd, [1, 2]), 9, 231] : few
    const index = operand(rnd, lead, [], () => integer(rnd, 0, v - 1), 'int32')
    const options = rnd() < 0.3 ? { paddingIdx: integer(rnd, -v, v - 1) } : {}
    await check(backends, make(rnd, v, d, index, options), both, tolerances)
  }
})

test('many indices: runs within, across and beyond spans, several blocks of keys', async () => {
  const rnd = random(2)
  const given = (v: number, d: number, n: number, value: (i: number) => number) =>
    check(backends, make(rnd, v, d, plain([n], value, 'int32')), both, tolerances)
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
})

test('more indices than blocks of one key per thread', async () => {
  const rnd = random(3)
  const index = plain([40_000], () => integer(rnd, 0, 999), 'int32')
  await check(backends, make(rnd, 1000, 1, index), both, tolerances)
})

test('an index out of range reads as 0 and has no gradient', async () => {
  const index = [2, -1, 3, 0x7fffffff, -(2 ** 31), 0]
  // Many are sorted.
  for (const n of [6, 2049])
    for (const { backend } of backends) {
      const { results } = await evaluate(backend, {
        inputs: [plain([3, 2], (i) => i + 1), plain([n], (i) => index[i] ?? -7, 'int32')],
        needs: [true, false],
        dout: plain([n, 2], (i) => i + 1),
        call: ([w, i]) => embedding(i as Tensor, w as Tensor),
      })
      expect([...results[0].slice(0, 12)]).toEqual([5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2])
      expect(results[0].slice(12).every((y) => y === 0)).toBe(true)
      expect([...results[1]]).toEqual([11, 12, 0, 0, 1, 2])
    }
})

test('adds what the weight has received already, few indices and many', async () => {
  const rnd = random(5)
  for (const [v, d, count] of [
    [65, 8, 40],
    [7, 3, 40],
    [65, 8, 2100],
    [7, 3, 2100],
  ]) {
    const index = (): Operand => plain([count], () => integer(rnd, 0, v - 1), 'int32')
    const twice: Case = {
      inputs: [operand(rnd, [v], [d], () => rnd() - 0.5), index(), index()],
      needs: [true, false, false],
      dout: operand(rnd, [count], [d], () => rnd() - 0.5),
      call: ([w, i, j]) => embedding(i as Tensor, w as Tensor).add(embedding(j as Tensor, w as Tensor)),
    }
    await check(backends, twice, both, [[2e-5, 1e-5]])
    // The sum of the forward pass alone.
    for (const { backend } of backends) expect((await evaluate(backend, twice)).calls.add).toBe(1)
  }
  // Both gradients are the same tensor, which does not begin with a vector.
  for (const offset of [0, 1, 4]) {
    const n = 1100
    const data = Float32Array.from({ length: offset + 4 * n }, () => rnd() - 0.5)
    const same: Case = {
      inputs: [plain([n, 4], () => rnd()), plain([n], (i) => n - 1 - i, 'int32')],
      needs: [true, false],
      dout: { layout: { shape: [n, 4], strides: [4, 1], offset }, data },
      call: ([w, i]) => embedding(i as Tensor, w as Tensor).add(w as Tensor),
    }
    await check(backends, same, both, [[1e-6, 1e-6]])
    for (const { backend } of backends) expect((await evaluate(backend, same)).calls.add).toBe(1)
  }
})
