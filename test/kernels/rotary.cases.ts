/** Rotary position embedding and its gradient. */

import { profile, type RotaryOptions, reference, rotaryEmbedding, type Tensor, tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { type Case, check, type Engine, rounds } from './fused.ts'
import { mismatch, rows } from './operand.ts'
import { integer, pick, random } from './random.ts'

/** Straight from the definition, in float64. */
function defined(
  x: ArrayLike<number>,
  shape: readonly number[],
  options: RotaryOptions,
  at: (row: number) => number,
): Float64Array {
  const d = shape.at(-1) as number
  const { base = 10000, interleaved = false, rotaryDim: r = d } = options
  const y = Float64Array.from(x)
  for (let row = 0; row < x.length / d; row++) {
    for (let i = 0; i < r / 2; i++) {
      const angle = at(row) * base ** ((-2 * i) / r)
      const [p, q] = interleaved ? [2 * i, 2 * i + 1] : [i, i + r / 2]
      const [a, b] = [x[row * d + p], x[row * d + q]]
      y[row * d + p] = a * Math.cos(angle) - b * Math.sin(angle)
      y[row * d + q] = b * Math.cos(angle) + a * Math.sin(angle)
    }
  }
  return y
}

// Angles are off by at most 5e-7 and elements are below 2 in size; then a few roundings of values up to 3.
const TOLERANCE = 3e-6

const path = (fn: () => Tensor): { result: Tensor; path: string | undefined } => {
  const { result, rows } = profile(fn)
  return { result, path: rows.find((r) => r.op === 'rotary_embedding')?.path }
}

export function testRotary(engine: Engine): void {
  const devices = engine.backends.map((b) => b.backend)
  const [device] = devices

  test('the definition: any shape, offset and pairing, at positions up to 10⁵ and beyond', async () => {
    const rnd = random(2)
    for (const { name, backend: device } of [...engine.backends, { name: 'reference', backend: reference }]) {
      for (let round = 0; round < 12; round++) {
        const d = pick(rnd, [2, 6, 7, 8, 31, 64])
        const t = pick(rnd, [1, 3, 5, 33])
        const shape = pick(rnd, [
          [t, d],
          [3, t, d],
          [2, 3, t, d],
        ])
        const options = {
          base: pick(rnd, [10000, 500000, 10]),
          offset: pick(rnd, [0, 1, 99_990, -5, 2 ** 24 - 40]),
          interleaved: rnd() < 0.5,
          rotaryDim: 2 * integer(rnd, 0, d >> 1),
        }
        const data = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => 4 * rnd() - 2)
        const want = defined(data, shape, options, (row) => options.offset + (row % t))
        const got = await rotaryEmbedding(tensor(data, shape, { device }), options).data()
        expect(mismatch(got, want, TOLERANCE), `${name} ${shape} ${JSON.stringify(options)}`).toBeNull()
      }
    }
  })

  test('the definition: positions as a tensor, and those in a row as an offset', async () => {
    const rnd = random(3)
    const data = Float32Array.from({ length: 96 }, () => 4 * rnd() - 2)
    const at = [0, 100_000, 7, -3, 12345, 1]
    const want = defined(data, [2, 2, 3, 8], {}, (row) => at[3 * Math.floor(row / 6) + (row % 3)])
    for (const device of devices) {
      const x = tensor(data, [2, 2, 3, 8], { device })
      const positions = tensor(at, [2, 1, 3], { device, dtype: 'int32' })
      const { result, path: by } = path(() => rotaryEmbedding(x, { positions }))
      expect(by).toBe('fused')
      expect(mismatch(await result.data(), want, TOLERANCE)).toBeNull()
      const row = tensor([5, 6, 7], { device, dtype: 'int32' })
      const [inRow, offset] = [{ positions: row }, { offset: 5 }].map((o) => rotaryEmbedding(x, o).data())
      expect(await inRow).toEqual(await offset)
    }
  })

  test('views, forward and backward', async () => {
    const rnd = random(4)
    for (let round = 0; round < rounds(engine, 60); round++) {
      const [t, d] = [pick(rnd, [1, 2, 5, 32, 48]), pick(rnd, [2, 5, 8, 16, 30, 64])]
      const lead = [integer(rnd, 1, 3), integer(rnd, 1, 3), t]
      const options = {
        offset: integer(rnd, 0, 50),
        interleaved: rnd() < 0.5,
        rotaryDim: pick(rnd, [2 * (d >> 1), 2 * integer(rnd, 1, d >> 1)]),
      }
      const value = () => 4 * rnd() - 2
      const c: Case = {
        inputs: [rows(rnd, lead, [d], value)],
        needs: [true],
        dout: rows(rnd, lead, [d], value),
        call: ([x]) => rotaryEmbedding(x, options),
      }
      await check(engine, c, ['rotary_embedding'], [[TOLERANCE, 0]])
    }
  })

  test('strided rows are left to the composition, and no rows give none', async () => {
    const x = tensor(
      Float32Array.from({ length: 24 }, (_, i) => i),
      [4, 6],
      { device },
    ).transpose(0, 1)
    const { result, path: by } = path(() => rotaryEmbedding(x))
    expect(by).toBe('composed')
    const want = defined(await x.clone().data(), [6, 4], {}, (row) => row)
    expect(mismatch(await result.data(), want, 3e-5)).toBeNull()
    for (const shape of [
      [0, 4],
      [2, 0, 4],
      [3, 0],
    ])
      expect(rotaryEmbedding(tensor(new Float32Array(0), shape, { device })).shape).toEqual(shape)
  })

  test('turning there and back is the identity', async () => {
    const y = tensor(
      Float32Array.from({ length: 12 }, (_, i) => i),
      [2, 6],
      { device, requiresGrad: true },
    )
    const { rows } = profile(() => {
      const turned = rotaryEmbedding(y, { offset: 40 })
      turned.backward({ gradient: turned.detach() })
    })
    expect(rows.flatMap((r) => (r.op === 'rotary_embedding' ? [[r.path, r.calls]] : []))).toEqual([
      ['fused', 2],
    ])
    expect(mismatch(await (y.grad as Tensor).data(), await y.data(), 1e-5)).toBeNull()
  })

  test('q · k depends on the distance only', async () => {
    for (const device of devices) {
      const [q, k] = [1, 2].map((s) =>
        tensor(
          Float32Array.from({ length: 64 }, (_, i) => Math.sin(s * i)),
          [1, 64],
          { device },
        ),
      )
      const score = (m: number, n: number): Promise<number | boolean> =>
        rotaryEmbedding(q, { offset: m })
          .mul(rotaryEmbedding(k, { offset: n }))
          .sum()
          .item()
      const [near, far] = [await score(9, 2), await score(100_009, 100_002)].map(Number)
      // Sixty-four products of numbers below 1, with angles off by 5e-7.
      expect(Math.abs(near - far)).toBeLessThan(3e-5)
    }
  })

  test('a graph outlives the table it was made with', async () => {
    const x = tensor([1, 2], [1, 2], { device, requiresGrad: true })
    const y = rotaryEmbedding(x, { offset: 1 })
    for (let offset = 2; offset < 12; offset++) rotaryEmbedding(x, { offset })
    y.sum().backward()
    const [c, s] = [Math.cos(1), Math.sin(1)]
    expect(mismatch(await (x.grad as Tensor).data(), Float64Array.of(c + s, c - s), 1e-6)).toBeNull()
  })
}
