import {
  gradcheck,
  profile,
  type RotaryOptions,
  reference,
  rotaryEmbedding,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import { beforeAll, describe, expect, test } from 'vitest'
import type { CpuBackend } from '../src/backend.ts'
import { type Case, evaluate, makeBackends } from './fused-rig.ts'
import { integer, mismatch, pick, random, randomLayout, twin } from './row-rig.ts'

let backends: { name: string; backend: CpuBackend }[]
beforeAll(async () => {
  backends = await makeBackends()
})

const values = (t: Tensor): Float32Array => (t.isContiguous ? t : t.clone()).dataSync() as Float32Array

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

describe('agrees with the definition in float64', () => {
  // Angles are off by at most 5e-7 and elements are below 2 in size; then a few roundings of values up to 3.
  const TOLERANCE = 3e-6

  test('any shape, offset and pairing, at positions up to 10⁵ and beyond', () => {
    const rnd = random(2)
    for (const { name, backend: device } of [...backends, { name: 'reference', backend: reference }]) {
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
        const got = values(rotaryEmbedding(tensor(data, shape, { device }), options))
        expect(mismatch(got, want, TOLERANCE, 0), `${name} ${shape} ${JSON.stringify(options)}`).toBeNull()
      }
    }
  })

  test('positions as a tensor, and those in a row as an offset', () => {
    const rnd = random(3)
    for (const { backend: device } of backends) {
      const shape = [2, 2, 3, 8]
      const data = Float32Array.from({ length: 96 }, () => 4 * rnd() - 2)
      const x = tensor(data, shape, { device })
      const at = [0, 100_000, 7, -3, 12345, 1]
      const positions = tensor(at, [2, 1, 3], { device, dtype: 'int32' })
      const want = defined(data, shape, {}, (row) => at[3 * Math.floor(row / 6) + (row % 3)])
      expect(mismatch(values(rotaryEmbedding(x, { positions })), want, TOLERANCE, 0)).toBeNull()
      const row = tensor([5, 6, 7], { device, dtype: 'int32' })
      expect(values(rotaryEmbedding(x, { positions: row }))).toEqual(
        values(rotaryEmbedding(x, { offset: 5 })),
      )
    }
  })
})

test('views, forward and backward: every backend as the composition in float64', () => {
  const rnd = random(4)
  for (let round = 0; round < 30; round++) {
    const [t, d] = [pick(rnd, [1, 2, 5, 32, 48]), pick(rnd, [2, 5, 8, 30, 64])]
    const shape = [integer(rnd, 1, 3), integer(rnd, 1, 3), t, d]
    const options = {
      offset: integer(rnd, 0, 50),
      interleaved: rnd() < 0.5,
      rotaryDim: 2 * integer(rnd, 1, d >> 1),
    }
    const random32 = (): number => 4 * rnd() - 2
    const c: Case = {
      inputs: [twin(randomLayout(rnd, shape, { lastDense: true }), 'float32', random32)],
      needs: [true],
      dout: twin(randomLayout(rnd, shape, { lastDense: true }), 'float32', random32),
      call: ([x]) => rotaryEmbedding(x, options),
    }
    const want = evaluate(reference, c).results
    for (const { name, backend } of backends) {
      const { results, fused } = evaluate(backend, c)
      expect(fused, name).toEqual(['rotary_embedding'])
      results.forEach((got, i) => {
        expect(
          mismatch(got, want[i], 3e-6, 0),
          `${name} result ${i}, ${shape} ${JSON.stringify(options)}`,
        ).toBeNull()
      })
    }
  }
})

test('what the kernel does not take is composed', () => {
  const { backend: device } = backends[0]
  const x = tensor(
    Float32Array.from({ length: 24 }, (_, i) => i),
    [4, 6],
    { device },
  ).transpose(0, 1)
  const { result, rows } = profile(() => rotaryEmbedding(x))
  expect(rows.find((r) => r.op === 'rotary_embedding')?.path).toBe('composed')
  const want = defined(values(x), [6, 4], {}, (row) => row)
  expect(mismatch(values(result), want, 3e-5, 0)).toBeNull()
  for (const shape of [
    [0, 4],
    [2, 0, 4],
    [3, 0],
  ])
    expect(rotaryEmbedding(tensor(new Float32Array(0), shape, { device })).shape).toEqual(shape)
})

test('the gradient turns back, and can be differentiated again', () => {
  const x = tensor(
    Float64Array.from({ length: 18 }, (_, i) => Math.sin(i)),
    [3, 6],
    { device: reference },
  )
  expect(gradcheck((t) => rotaryEmbedding(t, { offset: 3, rotaryDim: 4 }), [x])).toBe(true)
  const { backend: device } = backends[1]
  const y = tensor(
    Float32Array.from({ length: 12 }, (_, i) => i),
    [2, 6],
    { device, requiresGrad: true },
  )
  const { rows } = profile(() => {
    const turned = rotaryEmbedding(y, { offset: 40 })
    // Turning there and back is the identity.
    turned.backward({ gradient: turned.detach() })
  })
  expect(rows.flatMap((r) => (r.op === 'rotary_embedding' ? [[r.path, r.calls]] : []))).toEqual([
    ['fused', 2],
  ])
  expect(mismatch(values(y.grad as Tensor), values(y), 1e-5, 0)).toBeNull()
})

test('q · k depends on the distance only', () => {
  for (const { backend: device } of backends) {
    const [q, k] = [1, 2].map((s) =>
      tensor(
        Float32Array.from({ length: 64 }, (_, i) => Math.sin(s * i)),
        [1, 64],
        { device },
      ),
    )
    const score = (m: number, n: number): number =>
      rotaryEmbedding(q, { offset: m })
        .mul(rotaryEmbedding(k, { offset: n }))
        .sum()
        .itemSync() as number
    // Sixty-four products of numbers below 1, with angles off by 5e-7.
    expect(Math.abs(score(9, 2) - score(100_009, 100_002))).toBeLessThan(3e-5)
  }
})

test('a graph outlives the table it was made with', () => {
  const { backend: device } = backends[0]
  const x = tensor([1, 2], [1, 2], { device, requiresGrad: true })
  const y = rotaryEmbedding(x, { offset: 1 })
  for (let offset = 2; offset < 12; offset++) rotaryEmbedding(x, { offset })
  y.sum().backward()
  const [c, s] = [Math.cos(1), Math.sin(1)]
  expect(mismatch(values(x.grad as Tensor), Float64Array.of(c + s, c - s), 1e-6, 0)).toBeNull()
})

test('refuses what makes no sense', () => {
  const x = tensor(new Float32Array(12), [3, 4], { device: reference })
  const bad = (options: RotaryOptions, message: RegExp, t = x): void =>
    expect(() => rotaryEmbedding(t, options)).toThrow(message)
  bad({ rotaryDim: 3 }, /rotaryDim 3 must be even/)
  bad({ frequencies: [1] }, /1 frequencies for rotaryDim 4; expected 2/)
  bad({ rotaryDim: 6 }, /from 0 to D = 4/)
  bad({ base: 0 }, /base must be > 0, got 0/)
  bad({ offset: 0.5 }, /offset 0.5 must be whole/)
  bad({ offset: 2 ** 24 }, /at most 2\^24/)
  bad({}, /takes \(…, T, D\), got \[2\]/, tensor([1, 2], { device: reference }))
  bad({}, /takes floating tensors, not int32/, x.to('int32'))
  const positions = tensor([1, 2], { device: reference, dtype: 'int32' })
  bad({ positions }, /shapes \[2\] and \[3\] do not broadcast/)
  const many = tensor([[1, 2, 3]], { device: reference, dtype: 'int32' })
  bad({ positions: many }, /positions \[1, 3\] do not broadcast to \[3\], x's shape without D/)
  bad({ positions: tensor([1, 2, 3], { device: reference }) }, /positions must be int32, not float32/)
  bad({ positions, offset: 1 }, /not both/)
})
