/**
 * The GPUs that tests run on: one with all that the adapter offers, one with what every WebGPU device has. Without an
 * adapter the tests that import this fail, and say why.
 */

import { createWebGpuBackend, type WebGpuBackend } from '../../src/index.ts'

/** In the run of the CPU engine's tests on a second Node there is none: a GPU computes there what it does on the first. */
const wanted = process.env.TILEGRAD_TESTS !== 'cpu'

export const gpus: readonly { readonly name: string; readonly gpu: WebGpuBackend }[] = wanted
  ? [
      { name: 'all limits', gpu: await createWebGpuBackend() },
      { name: 'default limits', gpu: await createWebGpuBackend({ limits: 'default', features: 'default' }) },
    ]
  : []
