/** Reductions against the reference backend in float64, for any layout, dtype, thread count and instruction set. */

import { layout, type TypedArray } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { dense, type Operand, output } from '../../../test/kernels/operand.ts'
import { agree, runKernel } from '../../../test/kernels/primitive.ts'
import { random } from '../../../test/kernels/random.ts'
import { keep, testArgReduce, testReduce } from '../../../test/kernels/reduce.cases.ts'
import { backends, engineBy } from './support/engine.ts'

// All agree bit by bit.
const engine = engineBy(() => 'any')

testReduce(engine, {
  random: 480,
  prod: { rtol: 3e-6, atol: 0 },
  large: [
    [[100_003], [0]],
    [[3, 70_001], [1]],
    [
      [3, 70_001],
      [0, 1],
    ],
    [[257, 1031], [1]],
    [[1025, 515], [0]],
    [[40_000, 3], [0]],
    [[3, 1000, 70], [1]],
    [
      [70, 9, 130],
      [0, 2],
    ],
    [
      [66, 65, 64],
      [0, 1],
    ],
  ],
})
testArgReduce(engine, { random: 400 })

const { backend } = backends[1]
const sum = async (x: Operand, dims: readonly number[]): Promise<TypedArray> => {
  const out = output(keep(x.layout.shape, dims), x.dtype)
  return (await runKernel(backend, 'reduce', [out], [x], { kind: 'sum', dims }))[0]
}

test('float64 of one sign', async () => {
  const rnd = random(1)
  for (const dims of [[0], [1]]) {
    const out = output(keep([300, 70], dims), 'float64')
    const x = dense([300, 70], () => rnd() + 0.5, 'float64')
    await agree(engine, 'reduce', [out], [x], { kind: 'sum', dims }, { rtol: 1e-14 })
  }
})

test('no elements give the neutral element, no outputs nothing', async () => {
  for (const kind of ['sum', 'prod', 'max', 'min'] as const)
    for (const [shape, dim, dtype] of [
      [[3, 0], 1, 'float32'],
      [[0], 0, 'float64'],
      [[3, 0], 0, 'float32'],
      [[3, 0], 1, 'int32'],
    ] as const) {
      if (dtype === 'int32' && kind !== 'prod') continue
      const out = output(keep(shape, [dim]), dtype)
      await agree(engine, 'reduce', [out], [dense(shape, () => 0, dtype)], { kind, dims: [dim] })
    }
})

test('ten million ones plus noise', async () => {
  const n = 1e7
  const rnd = random(3)
  const { data } = dense([n], () => 1 + 1e-3 * rnd())
  let exact = 0
  for (let i = 0; i < n; i++) exact += data[i]
  const given = (shape: readonly number[], dims: readonly number[]) =>
    sum({ layout: layout.contiguous(shape), dtype: 'float32', data }, dims)
  // At most 128 float32 additions per lane, then float64: the lanes' errors average out far below 1e-6.
  for (const shape of [[n], [10, n / 10], [n / 10, 10]])
    expect(Math.abs((await given(shape, [...shape.keys()]))[0] / exact - 1)).toBeLessThan(2e-7)
  // Columns collect up to 64 groups of 8 rows before float64.
  for (const c of await given([n / 10, 10], [0])) expect(Math.abs(c / (exact / 10) - 1)).toBeLessThan(1e-5)
})

test('expanded dims count as often as they repeat', async () => {
  const l = { shape: [1000, 1000, 1000, 3], strides: [0, 0, 0, 1], offset: 0 }
  const floats = { layout: l, dtype: 'float32' as const, data: Float32Array.of(1.5, -2, 3) }
  expect([...(await sum(floats, [0, 1, 2]))]).toEqual([1.5e9, -2e9, 3e9])
  const ints = { layout: l, dtype: 'int32' as const, data: Int32Array.of(1, 2, 5) }
  expect([...(await sum(ints, [0, 1, 2, 3]))]).toEqual([Number(BigInt.asIntN(32, 8_000_000_000n))])
})

test('frees its temporaries', async () => {
  const x = dense([1000, 200], (i) => i)
  const blocks = (): number => backend.engine.memory.stats().liveBlocks
  for (const dims of [[0], [1], [0, 1]]) {
    await sum(x, dims)
    const before = blocks()
    await sum(x, dims)
    expect(blocks()).toBe(before)
  }
})
