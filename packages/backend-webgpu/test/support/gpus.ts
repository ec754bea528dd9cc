/**
 * The GPUs that tests run on: one with all that the adapter offers, one with what every WebGPU device has. Without an
 * adapter the tests that import this fail, and say why.
 */
import type { WebGpuBackend } from '../../src/index.ts'
import { sharedGpu } from './shared-gpu.ts'

/** In the run of the CPU engine's tests on a second Node there is none: a GPU computes there what it does on the first. */
export const shared = process.env.TILEGRAD_TESTS === 'cpu' ? null : await sharedGpu()

export const gpus: readonly { readonly name: string; readonly gpu: WebGpuBackend }[] = shared
  ? [
      { name: 'all limits', gpu: shared.full() },
      { name: 'default limits', gpu: shared.plain() },
    ]
  : []
