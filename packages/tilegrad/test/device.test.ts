/** Choosing a device by name, as users do it. */
import { afterEach, expect, test } from 'vitest'
import {
  DeviceError,
  defaultBackend,
  getBackend,
  Linear,
  openDevice,
  registerAsyncBackend,
  setDefaultBackend,
  setDevice,
  tensor,
  type WebGpuBackend,
  withBackend,
  zeros,
} from '../src/index.ts'

// Each test begins as a process does: with the default device, and no GPU open.
afterEach(() => {
  setDefaultBackend('cpu')
  try {
    ;(getBackend('webgpu') as WebGpuBackend).close()
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error
  }
})

test('a GPU is opened before it is used, once, and named by what it lacks', async () => {
  expect(defaultBackend().name).toBe('cpu')
  for (const use of [
    () => zeros([1], { device: 'webgpu' }),
    () => tensor([1]).to('webgpu'),
    () => setDefaultBackend('webgpu'),
    () => withBackend('webgpu', () => 0),
  ])
    expect(use).toThrow("device 'webgpu' is not open; open it first with await setDevice('webgpu')")
  const [a, b] = await Promise.all([openDevice('webgpu'), openDevice('webgpu')])
  expect(b).toBe(a)
  expect(await openDevice('webgpu')).toBe(a)
  expect(defaultBackend().name).toBe('cpu')
  expect(await setDevice('webgpu')).toBe(a)
  expect(zeros([1]).device).toBe('webgpu')
  expect(await setDevice('cpu')).toBe(defaultBackend())
  expect(zeros([1]).device).toBe('cpu')
})

test('tensors and modules move there by name', async () => {
  await openDevice('webgpu')
  const x = tensor([[1, 2]]).to('webgpu')
  expect([x.device, x.dtype]).toEqual(['webgpu', 'float32'])
  const layer = new Linear(2, 3)
  const weight = layer.weight.dataSync()
  layer.to('webgpu')
  expect([layer.weight.device, layer.weight.requiresGrad]).toEqual(['webgpu', true])
  expect(await layer.weight.data()).toEqual(weight)
  layer.forward(x).sum().backward()
  // d sum / d weight = x for every output.
  expect([...(await (layer.weight.grad as typeof x).data())]).toEqual([1, 2, 1, 2, 1, 2])
  expect(() => x.to('cpu')).toThrow('webgpu cannot read at once; use await x.data()')
  expect(() => x.to('abacus')).toThrow("to: 'abacus' is no dtype and no dev")
})

test('a device that is gone is opened anew', async () => {
  const first = (await openDevice('webgpu')) as WebGpuBackend
  const x = zeros([2], { device: 'webgpu' })
  const pending = x.add(1).data()
  first.close()
  await expect(pending).rejects.toThrow("Open another one (await setDevice('webgpu'))")
  expect(() => x.add(1)).toThrow(DeviceError)
  expect(() => zeros([1], { device: 'webgpu' })).toThrow('is not open')
  const second = await openDevice('webgpu')
  expect(second).not.toBe(first)
  expect([...(await zeros([2], { device: 'webgpu' }).add(1).data())]).toEqual([1, 1])
})

test('a device that does not open says why, and can be tried again', async () => {
  let tries = 0
  registerAsyncBackend('shy', async () => {
    if (tries++ === 0) throw new DeviceError('shy: not today')
    return { ...defaultBackend(), name: 'shy' }
  })
  await expect(setDevice('shy')).rejects.toThrow('shy: not today')
  expect(defaultBackend().name).toBe('cpu')
  expect((await openDevice('shy')).name).toBe('shy')
  await expect(openDevice('abacus')).rejects.toThrow("device 'abacus' is not known here; known:")
})
