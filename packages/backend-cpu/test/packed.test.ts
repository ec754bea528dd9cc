/**
 * Products of packed weights: the bits of the product with the widened weight, wherever that is computed by inner products,
 * and float64's numbers; on every instruction set and number of threads.
 */

import {
  dequantize,
  linear,
  noGrad,
  profile,
  quantizedLinear,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { integer, random } from '../../../test/kernels/random.ts'
import { backends, makeBackend } from './support/engine.ts'

const all = [
  ...backends,
  { name: 'revectorized', backend: await makeBackend({ level: 'revectorized', threads: 2 }) },
]
function fused(fn: () => Tensor, op = 'quantized_linear'): Tensor {
  const { result, rows } = profile(fn)
  expect(rows.map((row) => `${row.op} ${row.path}`)).toEqual([`${op} fused`])
  return result
}
const floats = (rnd: () => number, n: number): Float32Array =>
  Float32Array.from({ length: n }, () => 2 * rnd() - 1)
const product = (shape: readonly number[]): number => shape.reduce((p, n) => p * n, 1)
const data = (t: Tensor): number[] => [...(t.contiguous().dataSync() as Float32Array)]

/** Σₖ x · byte · scale in float64, and the sum of magnitudes. */
function plain(
  x: readonly number[],
  bytes: Int8Array,
  scales: Float32Array,
  [m, n, k, blockSize]: readonly number[],
) {
  const sums: number[] = []
  const sizes: number[] = []
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let [sum, size] = [0, 0]
      for (let t = 0; t < k; t++) {
        const at = Math.floor((j * k + t) / blockSize)
        const term = x[i * k + t] * bytes[j * k + t] * scales[at]
        sum += term
        size += Math.abs(term)
      }
      sums.push(sum)
      sizes.push(size)
    }
  return { sums, sizes }
}

describe.each(all)('on $name', ({ backend }) => {
  test.each([
    [[1, 16], 5, 16],
    [[64], 1, 64],
    [[1, 768], 301, 64],
    [[2, 96], 33, 32],
    [[3, 48], 66, 48],
    [[4, 64], 17, 16],
    [[5, 128], 40, 64],
    [[2, 3, 64], 50, 32],
    [[12, 192], 31, 64],
    [[1, 2048], 700, 64],
  ] as const)('8 bits, %j by %i rows in blocks of %i', (shape, n, blockSize) => {
    withBackend(backend, () =>
      noGrad(() =>
        scope(() => {
          const rnd = random(7 * n + blockSize)
          const k = shape.at(-1) as number
          const m = product(shape) / k
          const bytes = Int8Array.from({ length: n * k }, () => integer(rnd, -128, 127))
          const scales = Float32Array.from({ length: (n * k) / blockSize }, () => 0.01 * rnd())
          const x = tensor(floats(rnd, m * k), shape)
          const w = tensor(new Int32Array(bytes.buffer), [n, k / 4])
          const s = tensor(scales, [n, k / blockSize])
          const y = fused(() => quantizedLinear(x, w, s))
          expect(y.shape).toEqual([...shape.slice(0, -1), n])
          const { sums, sizes } = plain(data(x), bytes, scales, [m, n, k, blockSize])
          const bad = data(y).findIndex((v, i) => !(Math.abs(v - sums[i]) <= 1e-6 * sizes[i] + 1e-30))
          expect(bad).toBe(-1)
          expect(data(linear(x, dequantize(w, s)))).toEqual(data(y))
          // Whatever follows, whatever views they are.
          const wide = tensor(floats(rnd, 2 * m * k), [...shape.slice(0, -1), 2 * k]).narrow(-1, k, k)
          const bias = tensor(floats(rnd, n))
          const residual = tensor(floats(rnd, m * n), y.shape)
          const more = { activation: 'gelu', residual } as const
          expect(data(quantizedLinear(wide, w, s, bias, more))).toEqual(
            data(linear(wide.contiguous(), dequantize(w, s), bias, more)),
          )
          if (n > 3)
            expect(data(quantizedLinear(x, w.narrow(0, 2, n - 3), s.narrow(0, 2, n - 3)))).toEqual(
              data(y.narrow(-1, 2, n - 3)),
            )
          // NaN and infinity spread as in sums.
          const odd = tensor([Infinity, ...data(x).slice(1)], shape)
          const special = quantizedLinear(odd, w, s)
          expect(data(special)).toEqual(data(linear(odd, dequantize(w, s))))
        }),
      ),
    )
  })

  test.each([
    ['float16', [1, 8], 5],
    ['bfloat16', [64], 9],
    ['float16', [1, 768], 301],
    ['bfloat16', [1, 768], 301],
    ['float16', [3, 104], 66],
    ['bfloat16', [5, 128], 40],
    ['float16', [2, 3, 40], 51],
    ['float16', [12, 192], 31],
    ['bfloat16', [2, 2048], 700],
  ] as const)('%s, %j by %i rows', (dtype, shape, n) => {
    withBackend(backend, () =>
      noGrad(() =>
        scope(() => {
          const rnd = random(3 * n)
          const k = shape.at(-1) as number
          const m = product(shape) / k
          const half = (t: Tensor): Tensor => t.to(dtype)
          const wide = (t: Tensor): Tensor => t.to('float32')
          const x = half(tensor(floats(rnd, m * k), shape))
          const w = half(tensor(floats(rnd, n * k), [n, k]))
          const y = fused(() => linear(x, w), 'linear')
          expect([y.dtype, ...y.shape]).toEqual([dtype, ...shape.slice(0, -1), n])
          expect(data(y)).toEqual(data(half(linear(wide(x), wide(w)))))
          const bias = half(tensor(floats(rnd, n)))
          for (const residual of [
            tensor(floats(rnd, m * n), y.shape),
            half(tensor(floats(rnd, m * n), y.shape)),
          ]) {
            const more = { activation: 'gelu', residual } as const
            const z = fused(() => linear(x, w, bias, more), 'linear')
            const want = linear(wide(x), wide(w), wide(bias), { ...more, residual: wide(residual) })
            expect(data(z)).toEqual(data(want.to(residual.dtype)))
          }
          // Other distances between rows, which may be odd.
          const all = half(tensor(floats(rnd, n * (k + 3)), [n, k + 3]))
          const part = all.narrow(1, 2, k)
          expect(data(fused(() => linear(x, part), 'linear'))).toEqual(
            data(half(linear(wide(x), wide(part)))),
          )
          const special = half(tensor([Infinity, Number.NaN, ...data(w).slice(2)], [n, k]))
          expect(data(linear(x, special))).toEqual(data(half(linear(wide(x), wide(special)))))
        }),
      ),
    )
  })

  test.each(['float16', 'bfloat16'] as const)('%s activations and scales with 8 bits', (dtype) => {
    withBackend(backend, () =>
      noGrad(() =>
        scope(() => {
          const rnd = random(11)
          const w = tensor(
            Int32Array.from({ length: 33 * 16 }, () => integer(rnd, -(2 ** 31), 2 ** 31 - 1)),
            [33, 16],
          )
          const s = tensor(
            Float32Array.from({ length: 66 }, () => 0.01 * rnd()),
            [33, 2],
          ).to(dtype)
          const bias = tensor(floats(rnd, 33)).to(dtype)
          for (const m of [1, 7]) {
            const x = tensor(floats(rnd, 64 * m), [m, 64]).to(dtype)
            const y = fused(() => quantizedLinear(x, w, s, bias))
            const wide = [x, dequantize(w, s.to('float32')), bias].map((t) => t.to('float32'))
            expect(y.dtype).toBe(dtype)
            expect(data(y)).toEqual(data(linear(wide[0], wide[1], wide[2]).to(dtype)))
          }
        }),
      ),
    )
  })
})

test('what the kernel does not take is composed', () => {
  const { backend } = backends[0]
  withBackend(backend, () =>
    noGrad(() =>
      scope(() => {
        const w = tensor(
          Int32Array.from({ length: 12 }, (_, i) => i * 12345),
          [3, 4],
        )
        const s = tensor([
          [1, 2],
          [3, 4],
          [5, 6],
        ])
        const x = tensor(
          Float32Array.from({ length: 14 }, (_, i) => i),
          [1, 14],
        )
        const { rows } = profile(() => quantizedLinear(x, w, s))
        expect(rows.filter(({ op, path }) => op === 'quantized_linear' && path === 'fused')).toEqual([])
        expect(data(quantizedLinear(x, w, s))).toEqual(data(linear(x, dequantize(w, s, 14))))
      }),
    ),
  )
})
