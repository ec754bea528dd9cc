/** Convolutions by products whose one operand is packed from windows, and the gradients of their filters. */

import { type ConvOptions, conv1d, conv2d, layout, profile, randn, type Tensor, tensor } from '@tilegrad/core'
import { describe, expect, test } from 'vitest'
import { check, evaluate } from '../../../test/kernels/fused.ts'
import { dense, operand } from '../../../test/kernels/operand.ts'
import { random } from '../../../test/kernels/random.ts'
import { backends, engine } from './support/engine.ts'

/** Sums of float32 in order, of at most 1300 terms of order 1 in y and dx, of 20 thousand in dw: random roundings of 6e-8. */
const WITHIN = [
  [1e-4, 1e-4],
  [1e-4, 1e-4],
  [2e-3, 1e-4],
] as const

type Case = readonly [x: readonly number[], w: readonly number[], options: ConvOptions]

const cases: readonly Case[] = [
  // Windows side by side that make whole vectors; those that do not; steps of 2; single windows.
  [[2, 9, 8, 8], [7, 9, 3, 3], { padding: 1 }],
  [[3, 8, 7, 9], [5, 8, 3, 2], { padding: [1, 0] }],
  [[2, 9, 12, 11], [17, 9, 3, 3], { stride: 2, padding: 1 }],
  [[5, 4, 3, 3], [33, 4, 3, 3], {}],
  [[2, 3, 16, 16], [20, 3, 4, 4], { stride: 4 }],
  [[2, 8, 9, 9], [6, 8, 1, 1], { stride: 3 }],
  // Dilation, groups, one channel to a group.
  [[2, 16, 11, 10], [12, 8, 3, 2], { groups: 2, dilation: [2, 3], padding: 'same' }],
  [[2, 6, 9, 9], [12, 1, 3, 3], { groups: 6, padding: 1 }],
  // Several blocks of inner steps, of rows and of windows.
  [[1, 130, 9, 9], [100, 130, 3, 3], { padding: 1 }],
  [[2, 3, 21, 30], [9, 3, 5, 5], { padding: 2 }],
  // A gradient of filters in parts of samples, and samples that no part divides.
  [[16, 3, 20, 20], [8, 3, 3, 3], { padding: 1 }],
  [[11, 3, 20, 20], [8, 3, 3, 3], { padding: 1 }],
  // One dim.
  [[3, 10, 37], [11, 10, 5], { padding: 4 }],
  [[2, 4, 50], [6, 2, 3], { groups: 2, stride: 2, dilation: 2 }],
]

describe('convolution', () => {
  test.each(cases)('%j by %j, %j', async (x, w, options) => {
    const rnd = random(x.length + w[0])
    const call = x.length === 3 ? conv1d : conv2d
    const inputs = [dense(x, () => 2 * rnd() - 1), dense(w, () => 2 * rnd() - 1)]
    const y = call(randn(x), randn(w), null, options)
    const c = {
      inputs,
      needs: [true, true],
      dout: dense(y.shape, () => 2 * rnd() - 1),
      call: ([x, w]: readonly Tensor[]) => call(x, w, null, options),
    }
    const few = layout.numel(y.shape.slice(2)) < 8
    await check(engine, c, few ? ['convBackward'] : ['conv', 'convBackward'], WITHIN)
  })

  test('inputs of any strides', async () => {
    const rnd = random(5)
    // Channels last, and every second column of twice as many, backwards.
    for (const strides of [
      [9 * 8 * 5, 1, 8 * 5, 5],
      [1080, 216, 24, 2],
      [900, 180, 20, -2],
    ]) {
      const offset = strides[3] < 0 ? 14 : 3
      const x = operand({ shape: [2, 5, 9, 8], strides, offset }, 'float32', () => 2 * rnd() - 1)
      const c = {
        inputs: [x, dense([6, 5, 3, 3], () => 2 * rnd() - 1)],
        needs: [false, true],
        dout: dense([2, 6, 7, 6], () => 2 * rnd() - 1),
        call: ([x, w]: readonly Tensor[]) => conv2d(x, w),
      }
      await check(engine, c, ['conv', 'convBackward'], WITHIN)
    }
  })

  test('NaN and infinity reach the windows that have them, and no others', async () => {
    const x = dense([1, 2, 6, 9], (i) => (i === 54 + 2 * 9 + 7 ? NaN : i === 3 ? Infinity : 1))
    const c = {
      inputs: [x, dense([3, 2, 3, 3], (i) => 1 + (i % 3))],
      needs: [false],
      dout: null,
      call: ([x, w]: readonly Tensor[]) => conv2d(x, w, null, { padding: 1 }),
    }
    await check(engine, c, ['conv'], [[1e-5, 1e-5]])
    const { results } = await evaluate(backends[0].backend, c)
    const bad = Array.from(results[0].subarray(0, 54)).flatMap((v, i) => (Number.isFinite(v) ? [] : [i]))
    const around = (row: number, column: number): number[] =>
      [-1, 0, 1].flatMap((i) => [-1, 0, 1].flatMap((j) => (row + i < 0 ? [] : [9 * (row + i) + column + j])))
    expect(bad.sort((a, b) => a - b)).toEqual([...around(0, 3), ...around(2, 7)].sort((a, b) => a - b))
  })

  test('other dtypes, and nothing, take the composition', async () => {
    const device = backends[0].backend
    const ran = (shape: readonly number[], dtype: 'float32' | 'float64'): (string | undefined)[] => {
      const x = tensor(new Float64Array(layout.numel(shape)).fill(1), shape, { dtype, device })
      const w = tensor(new Float64Array(18).fill(1), [1, 2, 3, 3], { dtype, device })
      return profile(() => conv2d(x, w)).rows.flatMap((r) => (r.path === 'fused' ? [r.op] : []))
    }
    expect(ran([1, 2, 6, 6], 'float32')).toEqual(['conv'])
    expect(ran([1, 2, 6, 6], 'float64')).toEqual([])
    expect(ran([0, 2, 6, 6], 'float32')).toEqual([])
  })
})
