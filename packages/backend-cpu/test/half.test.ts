/** float16 and bfloat16 on the CPU: converted four at a time, computed in float32, rounded to the nearest. */
import { apply, softmax, type Tensor, tensor, withBackend } from '@tilegrad/core'
import { afterAll, describe, expect, it } from 'vitest'
import { testHalf } from '../../../test/kernels/half.cases.ts'
import { createCpuBackend } from '../src/index.ts'
import { engine } from './support/engine.ts'

testHalf(engine, true)

const cpu = createCpuBackend({ threads: 2 })
afterAll(() => cpu.close())
const on = <T>(fn: () => T): T => withBackend(cpu, fn)

describe.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
  it('sums what is beyond its range, and saves half of the memory', () => {
    on(() => {
      const x = tensor(new Float32Array(4096).fill(100), { dtype, requiresGrad: true })
      expect(x.mean().itemSync()).toBe(100)
      expect(x.storage.bytes).toBe(8192)
      // The first time code is compiled and kept.
      softmax(x.reshape([64, 64]), -1).dispose()
      const { liveBytes } = cpu.stats()
      const y = softmax(x.reshape([64, 64]), -1)
      // The result alone; what was computed in float32 is gone.
      expect(cpu.stats().liveBytes - liveBytes).toBe(8192)
      y.sum().backward()
      expect(x.grad?.dtype).toBe(dtype)
    })
  })
})

it('operators of the user compute in float32 as well', () => {
  const CUBE = { name: 'cube', compose: ([x]: readonly Tensor[]) => [x.mul(x).mul(x).div(10)] }
  const x = tensor([50], { dtype: 'float16', requiresGrad: true })
  const [y] = apply(CUBE, [x], {})
  expect(y.dtype).toBe('float16')
  // x · x · x is beyond 65504.
  expect(y.itemSync()).toBe(12496)
  y.backward()
  expect(x.grad?.itemSync()).toBe(750)
})
