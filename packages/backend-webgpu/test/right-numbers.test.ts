/** Corners in which results are easily wrong, on the GPU: what operators of core are made of must hold there as well. */

import {
  arange,
  full,
  grad,
  groupNorm,
  layerNorm,
  manualSeed,
  ones,
  randn,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import { createWebGpuBackend } from '../src/index.ts'

const gpu = await createWebGpuBackend()
afterAll(() => gpu.close())

const numbers = async (make: () => Tensor): Promise<number[]> =>
  Array.from((await withBackend(gpu, make).data()) as Float32Array)

describe('division that rounds down', () => {
  const floor = (a: number[], b: number[]) =>
    numbers(() => tensor(a).div(tensor(b), { roundingMode: 'floor' }))

  test('is of the exact quotient', async () => {
    expect(await floor([1, 6, 10, 8, 7, -7], [0.1, 0.1, 0.1, 0.2, 2, 2])).toEqual([9, 59, 99, 39, 3, -4])
    expect(await floor([-1, 1, 16777215], [Infinity, -Infinity, 1])).toEqual([-1, -1, 16777215])
    expect(await floor([NaN, 1, 0, Infinity], [1, 0, 0, 2])).toEqual([NaN, Infinity, NaN, NaN])
  })

  test('leaves a remainder smaller than the divisor', async () => {
    // Of whole numbers and quarters all of it is exact.
    manualSeed(4)
    const rest = await numbers(() => {
      const [a, b] = [randn([1000]).mul(1000).round(), randn([1000]).mul(8).round().add(0.25)]
      const r = a.sub(a.div(b, { roundingMode: 'floor' }).mul(b))
      return r.div(b)
    })
    for (const r of rest) expect(r >= 0 && r < 1, `${r}`).toBe(true)
  })
})

test('a bound that is NaN gives NaN', async () => {
  for (const clamped of [
    (x: Tensor) => x.clamp(NaN, 3),
    (x: Tensor) => x.clamp(undefined, NaN),
    (x: Tensor) => x.clamp(tensor([NaN, NaN]), tensor([3, 3])),
  ])
    expect(await numbers(() => clamped(tensor([1, 2])))).toEqual([NaN, NaN])
})

test.each([
  [100.1, 1000],
  [100000.3, 1000],
  [-1e10, 1000],
])('what is %d everywhere has no variance', async (value, n) => {
  expect(await numbers(() => full([n], value).var())).toEqual([0])
  const deviation = await numbers(() => {
    const x = full([n], value, { requiresGrad: true })
    return grad([x.std()], [x])[0] as Tensor
  })
  expect(deviation).toEqual(new Array(n).fill(0))
  // Columns are composed, as are groups of channels.
  expect(
    await numbers(() =>
      layerNorm(full([n, 2], value).T, [n])
        .abs()
        .amax(),
    ),
  ).toEqual([0])
  expect(
    await numbers(() =>
      groupNorm(full([2, 4, n], value), 2)
        .abs()
        .amax(),
    ),
  ).toEqual([0])
})

test('in place, as if the inputs had been read before', async () => {
  expect(
    await numbers(() => {
      const x = tensor([1, 2, 3, 4])
      return x.add_(x.flip([0]))
    }),
  ).toEqual([5, 5, 5, 5])
  const n = 300
  const whole = await numbers(() => {
    const x = arange(n * n)
      .to('float32')
      .reshape([n, n])
    const want = x.add(x.T)
    return x.add_(x.T).sub(want).abs().amax()
  })
  expect(whole).toEqual([0])
  const shifted = await numbers(() => {
    const x = arange(100_000).to('float32')
    x.narrow(0, 0, 99_999).copy_(x.narrow(0, 1, 99_999))
    return x
  })
  expect(shifted).toEqual(Array.from({ length: 100_000 }, (_, i) => Math.min(i + 1, 99_999)))
})

test('more elements than 32 bits count', async () => {
  const n = 2 ** 32 + 8
  const row = (): Tensor => ones([1]).expand([1, n])
  expect(await numbers(() => row().matmul(row().T))).toEqual([Math.fround(n)])
  expect(await numbers(() => row().sum())).toEqual([Math.fround(n)])
  expect(await numbers(() => row().mean())).toEqual([1])
  expect(await numbers(() => row().amax())).toEqual([1])
})
