/** How tensors on a GPU, and the GPU itself, are shown: what is known at once, and the rest when asked for. */
import { inspect } from 'node:util'
import { arange, reference, tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { createWebGpuBackend } from '../src/index.ts'

const gpu = await createWebGpuBackend()

test('a tensor shows what is known without waiting, and its elements with text()', async () => {
  const x = tensor(
    [
      [1.5, 2],
      [3, 4],
    ],
    { device: gpu },
  )
  expect(inspect(x)).toBe('tensor(<await x.text()>, shape=[2, 2], dtype=float32, device=webgpu)')
  expect(await x.T.text()).toBe(
    'tensor([[1.5000, 3.0000],\n        [2.0000, 4.0000]], shape=[2, 2], dtype=float32, device=webgpu)',
  )
  const large = arange(0, 2400, 1, { device: gpu }).reshape(40, 60)
  const there = arange(0, 2400, 1, { device: reference }).reshape(40, 60)
  const body = (text: string): string => text.slice(0, text.indexOf(']]'))
  expect(body(await large.text())).toBe(body(String(there)))
  expect(await tensor([true, false], { device: gpu }).text()).toContain('[ true, false]')
  expect(() => JSON.stringify(x)).toThrow(
    /webgpu cannot be read at once; write what await x.toArray\(\) gives/,
  )
})

test('the device says what it is', () => {
  expect(inspect(gpu)).toMatch(/^webgpu\(.+, bytes in use=[\d,]+\)$/)
  expect(JSON.parse(JSON.stringify(gpu))).toMatchObject({ name: 'webgpu' })
})
