/** Attention whose scores are huge, and whose hidden keys are not finite: on GPUs of several kinds, with all gradients. */

import { afterAll, describe, expect, test } from 'vitest'
import { type Case, compute, type Data, dense, make } from '../../../test/kernels/attention.ts'
import { gpus as all, closeGpus } from './support/attention.ts'

/** Between them they run every kernel but the one for few keys: what is loaded, what is read in place, dQ of stored dS. */
const gpus = all.filter(([name]) => name === 'in place' || name === 'stored')

afterAll(closeGpus)

const filled = (value: number, ...shape: number[]): Data => {
  const x = dense(...shape)
  x.data.fill(value)
  return x
}

/** Results on every GPU, and for messages which. */
async function each(c: Case, look: (results: Float32Array[], name: string) => void): Promise<void> {
  for (const [name, gpu] of gpus) look((await compute(gpu, c)) as Float32Array[], name)
}

describe('scores far from 0', () => {
  const sizes = { T: 20, S: 24, D: 8, H: 2, Hk: 1 }
  const mean = (v: Data): number[] =>
    Array.from({ length: 8 }, (_, c) => {
      let sum = 0
      for (let j = 0; j < 24; j++) sum += (v.data[8 * j + c] as number) / 24
      return sum
    })
  /** Every weight is 1/24. */
  const expectMeans = async (c: Case): Promise<void> => {
    const want = mean(c.v)
    await each(c, ([out, dq, dk, dv], name) => {
      out!.forEach((x, i) => expect(x, `${name}: out`).toBeCloseTo(want[i % 8] as number, 5))
      const sums = new Float64Array(8)
      c.dout.data.forEach((x, i) => {
        sums[i % 8]! += x / 24
      })
      dv!.forEach((x, i) => expect(x, `${name}: dv`).toBeCloseTo(sums[i % 8] as number, 5))
      for (const x of [...dq!, ...dk!]) expect(Number.isFinite(x)).toBe(true)
    })
  }

  test.each([1e4, -1e9, 1e30, -3.4028234663852886e38])('a mask of %d', async (offset) => {
    const c = make(sizes)
    c.q.data.fill(0)
    await expectMeans({ ...c, mask: filled(offset, 20, 24) })
  })

  test.each([1e5, 1e8, -1e8])('scores of %d, a scale that is no power of 2', async (score) => {
    const c = make(sizes, { scale: 0.3 })
    c.q.data.fill(score / 8 / 0.3 / 0.7)
    c.k.data.fill(0.7)
    await expectMeans(c)
  })

  test('rows of a few large scores: weights are those of the differences', async () => {
    // Scores 10⁶ · (1 + j/2²⁰): differences of whole parts of ulps.
    const c = make({ T: 3, S: 20, D: 8, H: 1 }, { scale: 1 })
    c.q.data.fill(0)
    c.k.data.fill(0)
    for (let i = 0; i < 3; i++) c.q.data[8 * i] = 2 ** 20
    for (let j = 0; j < 20; j++) c.k.data[8 * j] = 1 + j / 2 ** 20
    const parts = Array.from({ length: 20 }, (_, j) => Math.exp(j - 19))
    const total = parts.reduce((a, b) => a + b)
    await each(c, ([out, , , dv], name) => {
      for (let column = 0; column < 8; column++) {
        const want = parts.reduce((sum, p, j) => sum + (p / total) * (c.v.data[8 * j + column] as number), 0)
        expect(out![column], `${name}: out`).toBeCloseTo(want, 5)
        const grads = [0, 1, 2].reduce((sum, i) => sum + (c.dout.data[8 * i + column] as number), 0)
        parts.forEach((p, j) =>
          expect(dv![8 * j + column], `${name}: dv`).toBeCloseTo((p / total) * grads, 5),
        )
      }
    })
  })
})

describe('what is hidden may be NaN or infinite', () => {
  const sizes = { T: 21, S: 40, D: 8, H: 2, Hk: 1 }
  const bad = [NaN, Infinity, -Infinity]
  /** Puts them into the rows of keys and values that `hidden` names. */
  const spoil = (c: Case, hidden: (key: number) => boolean): Case => {
    const spoilt = (x: Data): Data => {
      const data = (x.data as Float32Array).slice()
      for (let j = 0; j < 40; j++)
        if (hidden(j)) for (let e = 0; e < 3; e++) data[8 * j + ((j + 2 * e) % 8)] = bad[e] as number
      return { ...x, data }
    }
    return { ...c, k: spoilt(c.k), v: spoilt(c.v) }
  }
  const mask = (value: (key: number) => boolean): Data => ({
    data: Uint8Array.from({ length: 21 * 40 }, (_, i) => Number(value(i % 40))),
    shape: [21, 40],
  })
  const hidden = (key: number): boolean => key % 7 === 3 || key > 36
  const keep = mask((key) => !hidden(key))
  const add: Data = { ...keep, data: Float32Array.from(keep.data, (x) => (x ? 0.5 : -Infinity)) }

  const unchanged = async (
    c: Case,
    which: (key: number) => boolean,
    on = gpus,
    needs = [true, true, true],
  ): Promise<void> => {
    const spoilt = spoil(c, which)
    for (const [name, gpu] of on) {
      const want = await compute(gpu, c, needs)
      const got = await compute(gpu, spoilt, needs)
      want.forEach((x, i) => expect(got[i], `${name}: result ${i}`).toEqual(x))
    }
  }
  const [first] = gpus

  test('by −∞ in a mask to add', () => unchanged({ ...make(sizes), mask: add }, hidden))
  test('by a mask to keep by', () =>
    unchanged({ ...make(sizes), mask: keep }, hidden, [first!], [false, false, false]))
  test('as the future', () => unchanged(make(sizes, { isCausal: true }), (key) => key > 20))
  test('as beyond the window', () =>
    unchanged(make(sizes, { isCausal: 'bottom-right', window: 4 }), (key) => key < 15, [first!]))

  test('what is visible shows: in its column of the output, and in the rows that see it', async () => {
    const c = make(sizes, { isCausal: true })
    c.v.data[8 * 5 + 2] = NaN
    c.v.data[8 * 5 + 3] = Infinity
    await each(c, ([out], name) => {
      for (let i = 0; i < 21; i++) {
        const row = out!.slice(8 * i, 8 * i + 8)
        const seen = i >= 5
        expect(Number.isNaN(row[2]), `${name}: row ${i}`).toBe(seen)
        expect(row[3] === Infinity, `${name}: row ${i}`).toBe(seen)
        for (const e of [0, 1, 4, 7]) expect(Number.isFinite(row[e])).toBe(true)
      }
    })
    // A weight of e⁻³⁰⁰ is 0, and 0 · NaN still NaN.
    const far = make(sizes, { isCausal: true, scale: 1 })
    far.q.data.fill(1)
    far.k.data.fill(0)
    far.k.data.fill(-300 / 8, 8 * 5, 8 * 6)
    far.v.data[8 * 5 + 2] = NaN
    await each(far, ([out], name) => {
      for (let i = 0; i < 21; i++) expect(Number.isNaN(out![8 * i + 2]), `${name}: row ${i}`).toBe(i >= 5)
    })
    c.v.data[8 * 5 + 2] = c.v.data[8 * 5 + 3] = 0
    c.k.data[8 * 5] = NaN
    await each(c, ([out, dq], name) => {
      for (const x of [out!, dq!])
        for (let i = 0; i < 21 * 8; i++) expect(Number.isNaN(x[i]), name).toBe(i >= 5 * 8)
    })
  })
})
