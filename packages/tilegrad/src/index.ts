/**
 * Tensors, autograd and transformers in pure TypeScript.
 *
 * Everything of core and nn, with the CPU engine as the default device and GPUs after `await setDevice('webgpu')`.
 *
 * @packageDocumentation
 */
import { createCpuBackend } from '@tilegrad/backend-cpu'
import { createWebGpuBackend } from '@tilegrad/backend-webgpu'
import { registerAsyncBackend, registerBackend, setDefaultBackend } from '@tilegrad/core'

// Made at first use, so that importing costs nothing.
registerBackend('cpu', () => createCpuBackend())
registerAsyncBackend('webgpu', () => createWebGpuBackend())
setDefaultBackend('cpu')

export * from '@tilegrad/backend-cpu'
export * from '@tilegrad/backend-webgpu'
export * from '@tilegrad/core'
export * from '@tilegrad/nn'
