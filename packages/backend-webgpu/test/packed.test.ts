/** Products of packed weights in few rows against float64, with what follows; and that it is their kernel that runs. */

import {
  type DType,
  dequantize,
  linear,
  noGrad,
  quantizedLinear,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { integer, random } from '../../../test/kernels/random.ts'
import { gpus } from './support/gpus.ts'

const product = (shape: readonly number[]): number => shape.reduce((p, n) => p * n, 1)
const numbers = async (t: Tensor): Promise<number[]> => [...(await t.to('float32').data())]

/** Rounding of results in each dtype, of the sum of magnitudes; float32 adds up to 2048 terms. */
const rounding = { float32: 2e-6, float16: 2 ** -11 + 2e-6, bfloat16: 2 ** -8 + 2e-6 } as const
type Float = keyof typeof rounding

const gelu = (x: number): number => {
  // Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most.
  const z = Math.abs(x) / Math.SQRT2
  const t = 1 / (1 + 0.3275911 * z)
  const p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
  const erf = Math.sign(x) * (1 - p * Math.exp(-z * z))
  return 0.5 * x * (1 + erf)
}

interface Parts {
  readonly x: readonly number[]
  readonly w: readonly number[]
  readonly bias?: readonly number[]
  readonly residual?: readonly number[]
}

function expectProduct(
  got: readonly number[],
  { x, w, bias, residual }: Parts,
  k: number,
  dtype: Float,
): void {
  const n = w.length / k
  got.forEach((value, i) => {
    const [row, column] = [Math.floor(i / n), i % n]
    let [sum, size] = [bias?.[column] ?? 0, Math.abs(bias?.[column] ?? 0)]
    for (let t = 0; t < k; t++) {
      const term = (x[row * k + t] as number) * (w[column * k + t] as number)
      sum += term
      size += Math.abs(term)
    }
    const want = residual ? gelu(sum) + (residual[i] as number) : sum
    const off = Math.abs(value - want)
    const most = rounding[dtype] * (size + Math.abs(residual?.[i] ?? 0)) + 1e-6
    // Written so that NaN fails.
    if (!(off <= most)) throw new Error(`element ${i}: got ${value}, expected ${want} within ${most}`)
  })
}

describe.each(gpus)('with $name', ({ gpu }) => {
  const keys: string[] = []
  const { engine } = gpu
  const kernel = engine.kernel.bind(engine)
  engine.kernel = (key, ...rest) => {
    keys.push(key)
    return kernel(key, ...rest)
  }
  beforeEach(() => {
    keys.length = 0
  })
  afterAll(() => {
    engine.kernel = kernel
  })
  const ran = (): boolean => keys.some((key) => key.startsWith('mp'))

  test.each<[number[], number, number, Float, Float]>([
    [[1, 64], 7, 64, 'float32', 'float32'],
    [[768], 50, 32, 'float32', 'float32'],
    [[1, 1040], 33, 16, 'float32', 'bfloat16'],
    [[2, 3, 128], 21, 64, 'float32', 'float16'],
    [[8, 96], 5, 96, 'float32', 'float32'],
    [[1, 64], 7, 64, 'float16', 'float16'],
    [[64], 9, 32, 'bfloat16', 'bfloat16'],
    [[5, 128], 20, 64, 'bfloat16', 'bfloat16'],
    [[3, 64], 10, 64, 'float16', 'float32'],
  ])(
    '8 bits, %j by %i rows in blocks of %i, %s and scales of %s',
    async (shape, n, size, dtype, scaleType) => {
      const rnd = random(7 * n + size)
      const draw = (count: number): Float32Array => Float32Array.from({ length: count }, () => 2 * rnd() - 1)
      const k = shape.at(-1) as number
      const m = product(shape) / k
      const bytes = Int8Array.from({ length: n * k }, () => integer(rnd, -128, 127))
      const [x, w, s, bias, residual, y, z, part] = withBackend(gpu, () =>
        noGrad(() => {
          const x = tensor(draw(m * k), shape).to(dtype)
          const w = tensor(new Int32Array(bytes.buffer), [n, k / 4])
          const s = tensor(
            Float32Array.from({ length: (n * k) / size }, () => 0.01 * rnd()),
            [n, k / size],
          ).to(scaleType)
          const bias = tensor(draw(n)).to(dtype)
          const residual = tensor(draw(m * n), [...shape.slice(0, -1), n]).to(dtype)
          const y = quantizedLinear(x, w, s)
          const z = quantizedLinear(x, w, s, bias, { activation: 'gelu', residual })
          return [
            x,
            w,
            s,
            bias,
            residual,
            y,
            z,
            quantizedLinear(x, w.narrow(0, 2, 2), s.narrow(0, 2, 2)),
          ] as const
        }),
      )
      expect(ran()).toBe(true)
      expect([y.dtype, ...y.shape]).toEqual([dtype, ...shape.slice(0, -1), n])
      const scales = await numbers(s)
      const wide = Array.from(bytes, (byte, i) => byte * (scales[Math.floor(i / size)] as number))
      expect(await numbers(dequantize(w, s.to('float32')))).toEqual(wide.map(Math.fround))
      const parts = { x: await numbers(x), w: wide }
      expectProduct(await numbers(y), parts, k, dtype)
      const follows = { ...parts, bias: await numbers(bias), residual: await numbers(residual) }
      expectProduct(await numbers(z), follows, k, dtype)
      const two = { ...parts, w: wide.slice(2 * k, 4 * k) }
      expectProduct(await numbers(part), two, k, dtype)
    },
  )

  test.each<[DType & Float, number[], number, Float]>([
    ['bfloat16', [1, 64], 7, 'bfloat16'],
    ['float16', [768], 51, 'float16'],
    ['bfloat16', [4, 100], 22, 'float32'],
    ['float16', [2, 2, 36], 6, 'float32'],
    ['float16', [1, 2048], 5, 'float16'],
    ['bfloat16', [8, 40], 30, 'bfloat16'],
    ['bfloat16', [5, 40], 31, 'bfloat16'],
    ['float16', [2, 3, 64], 9, 'float32'],
    ['float16', [3, 64], 7, 'float16'],
  ])('%s, %j by %i rows, beside a residual of %s', async (dtype, shape, n, residualType) => {
    const rnd = random(5 * n)
    const draw = (count: number): Float32Array => Float32Array.from({ length: count }, () => 2 * rnd() - 1)
    const k = shape.at(-1) as number
    const m = product(shape) / k
    const { x, w, bias, residual, y, z, v } = withBackend(gpu, () =>
      noGrad(() => {
        const x = tensor(draw(m * k), shape).to(dtype)
        const all = tensor(draw(n * (k + 8)), [n, k + 8]).to(dtype)
        const w = all.narrow(1, 4, k)
        const bias = tensor(draw(n)).to(dtype)
        const residual = tensor(draw(m * n), [...shape.slice(0, -1), n]).to(residualType)
        const y = linear(x, w)
        const z = linear(x, w, bias, { activation: 'gelu', residual })
        // A place in a larger matrix, whose neighbours stay.
        const v = linear(x, all.narrow(1, 0, k), bias)
        return { x, w, bias, residual, y, z, v }
      }),
    )
    expect(ran()).toBe(true)
    expect([y.dtype, z.dtype, v.dtype]).toEqual([dtype, residualType, dtype])
    const parts = { x: await numbers(x), w: await numbers(w.contiguous()) }
    expectProduct(await numbers(y), parts, k, dtype)
    const follows = { ...parts, bias: await numbers(bias), residual: await numbers(residual) }
    expectProduct(await numbers(z), follows, k, residualType)
  })

  test('NaN and infinity spread as in sums', async () => {
    const y = withBackend(gpu, () =>
      noGrad(() => {
        const w = tensor(
          new Int32Array(Int8Array.from({ length: 128 }, (_, i) => (i % 7) + 1).buffer),
          [2, 16],
        )
        const x = tensor(
          Float32Array.from({ length: 128 }, (_, i) => (i === 3 ? Infinity : i === 70 ? Number.NaN : 1)),
          [2, 64],
        )
        return quantizedLinear(x, w, tensor([[1], [1]]))
      }),
    )
    expect(await numbers(y)).toEqual([Infinity, Infinity, Number.NaN, Number.NaN])
  })

  test('many rows, and sizes that end within a block, are composed', async () => {
    const [many, odd] = withBackend(gpu, () =>
      scope(() =>
        noGrad(() => {
          const w = tensor(new Int32Array(32).fill(0x01010101), [4, 8])
          const s = tensor(new Float32Array(4).fill(0.5), [4, 1])
          return [
            quantizedLinear(tensor(new Float32Array(9 * 32).fill(1), [9, 32]), w, s),
            quantizedLinear(tensor(new Float32Array(30).fill(1), [1, 30]), w, s),
          ] as const
        }),
      ),
    )
    expect(ran()).toBe(false)
    expect(await numbers(many)).toEqual(Array(36).fill(16))
    expect(await numbers(odd)).toEqual(Array(4).fill(15))
  })
})
