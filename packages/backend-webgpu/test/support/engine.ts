/** The WebGPU engine for the cases that all engines have in common. */

import type { Engine } from '../../../../test/kernels/fused.ts'
import { gpus } from './gpus.ts'

/** GPUs of other limits tile otherwise: each agrees with itself only. Each new shape may be a kernel to compile. */
export const engine: Engine = {
  backends: gpus.map(({ name, gpu }) => ({ name, backend: gpu, kind: name })),
  share: 2 / 3,
  dtypes: ['float32', 'float32', 'int32'],
}
