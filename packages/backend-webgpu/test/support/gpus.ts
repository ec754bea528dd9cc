/**
 * The GPUs that tests run on: one with all that the adapter offers, one with what every WebGPU device has. Without an
 * adapter the tests that import this fail, and say why.
 */

import { createWebGpuBackend, type WebGpuBackend } from '../../src/index.ts'

export const gpus: readonly { readonly name: string; readonly gpu: WebGpuBackend }[] = [
  { name: 'all limits', gpu: await createWebGpuBackend() },
  { name: 'default limits', gpu: await createWebGpuBackend({ limits: 'default', features: 'default' }) },
]
