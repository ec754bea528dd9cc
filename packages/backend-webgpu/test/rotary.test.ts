/** Rotary position embedding and its gradient against the composition on the reference backend, in float64. */

import { profile, rotaryEmbedding, tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { mismatch } from './support/agree.ts'
import { backends, check, operand } from './support/fused.ts'
import { integer, pick, random } from './support/random.ts'

// Angles are off by at most 5e-7 and elements are below 2 in size; then a few roundings of values up to 3.
const tolerances = [[3e-6, 0]] as const

test('views, forward and backward', async () => {
  const rnd = random(4)
  for (let round = 0; round < 40; round++) {
    const [t, d] = [pick(rnd, [1, 2, 5, 32, 48]), pick(rnd, [2, 5, 8, 16, 30, 64])]
    const lead = [integer(rnd, 1, 3), integer(rnd, 1, 3), t]
    const options = {
      offset: integer(rnd, 0, 50),
      interleaved: rnd() < 0.5,
      rotaryDim: pick(rnd, [2 * (d >> 1), 2 * integer(rnd, 1, d >> 1)]),
    }
    const value = () => 4 * rnd() - 2
    const c = {
      inputs: [operand(rnd, lead, [d], value)],
      needs: [true],
      dout: operand(rnd, lead, [d], value),
      call: ([x]: readonly Parameters<typeof rotaryEmbedding>[0][]) => rotaryEmbedding(x, options),
    }
    await check(backends, c, ['rotary_embedding'], tolerances)
  }
})

test('positions as a tensor', async () => {
  const rnd = random(3)
  const data = Float32Array.from({ length: 96 }, () => 4 * rnd() - 2)
  const at = [0, 100_000, 7, -3, 12345, 1]
  for (const { backend: device } of backends) {
    const positions = tensor(at, [2, 1, 3], { device, dtype: 'int32' })
    const x = tensor(data, [2, 2, 3, 8], { device })
    const want = Float64Array.from(data)
    for (let row = 0; row < 12; row++)
      for (let i = 0; i < 4; i++) {
        const angle = at[3 * Math.floor(row / 6) + (row % 3)] * 10000 ** (-i / 4)
        const [p, q] = [8 * row + i, 8 * row + i + 4]
        want[p] = data[p] * Math.cos(angle) - data[q] * Math.sin(angle)
        want[q] = data[q] * Math.cos(angle) + data[p] * Math.sin(angle)
      }
    const { result, rows } = profile(() => rotaryEmbedding(x, { positions }))
    expect(rows.find((r) => r.op === 'rotary_embedding')?.path).toBe('fused')
    expect(mismatch(await result.data(), want, 3e-6, 0)).toBeNull()
  }
})

test('strided rows are composed', async () => {
  const { backend: device } = backends[0]
  const x = tensor(
    Float32Array.from({ length: 24 }, (_, i) => i),
    [4, 6],
    { device },
  )
  const { result, rows } = profile(() => rotaryEmbedding(x.transpose(0, 1)))
  expect(rows.find((r) => r.op === 'rotary_embedding')?.path).toBe('composed')
  const dense = rotaryEmbedding(x.transpose(0, 1).clone())
  expect(mismatch(await result.data(), await dense.data(), 3e-5, 0)).toBeNull()
})
