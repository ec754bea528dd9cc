/**
 * Tensors, autograd and transformers in pure TypeScript.
 *
 * Everything of core and nn, with the CPU engine as the default device and GPUs after `await setDevice('webgpu')`.
 *
 * @module tilegrad
 */
import { createCpuBackend } from '@tilegrad/backend-cpu'
import type { Gpu, GpuOptions, WebGpuBackend, WebGpuOptions } from '@tilegrad/backend-webgpu'
import { registerAsyncBackend, registerBackend, setDefaultBackend } from '@tilegrad/core'

// Made at first use, so that importing costs nothing. The GPU's engine is loaded only where it is asked for.
registerBackend('cpu', () => createCpuBackend())
registerAsyncBackend('webgpu', () => createWebGpuBackend())
setDefaultBackend('cpu')

/**
 * Loads the WebGPU engine and opens a GPU as a backend, which is not registered as a device: `setDevice('webgpu')` does
 * both. The first time on a machine it takes up to two seconds to measure which kernels suit the GPU.
 *
 * @throws DeviceError when there is no GPU, saying what to do; ValueError for a feature the adapter lacks.
 * @example
 * const gpu = await createWebGpuBackend()
 * withBackend(gpu, () => randn([2, 3]).matmul(randn([3, 4])).shape) // → [2, 4]
 * gpu.close()
 */
export async function createWebGpuBackend(options?: WebGpuOptions): Promise<WebGpuBackend> {
  return (await import('@tilegrad/backend-webgpu')).createWebGpuBackend(options)
}

/**
 * Loads the WebGPU engine and opens a GPU without making it a backend, to look at what it offers.
 *
 * @throws DeviceError when there is no GPU, saying what to do; ValueError for a feature the adapter lacks.
 * @example
 * const gpu = await openGpu()
 * typeof gpu.adapterName // → string
 * gpu.close()
 */
export async function openGpu(options?: GpuOptions): Promise<Gpu> {
  return (await import('@tilegrad/backend-webgpu')).openGpu(options)
}

export * from '@tilegrad/backend-cpu'
export type * from '@tilegrad/backend-webgpu'
export * from '@tilegrad/core'
export * from '@tilegrad/nn'
// In place of nn's.
export { quantize } from './quantize.ts'
