/**
 * Fused linear attention on the GPU against its quadratic form in float64, and for many rows against the recurrence:
 * shapes, strides, gradients, at all and at default limits.
 */

import { linearAttention as call, grad, type Tensor, tensor } from '@tilegrad/core'
import { afterAll, describe, expect, test } from 'vitest'
import { type Engine, evaluate } from '../../../test/kernels/fused.ts'
import {
  caseOf,
  checkLinear,
  make,
  testLinearAttention,
} from '../../../test/kernels/linear-attention.cases.ts'
import { random } from '../../../test/kernels/random.ts'
import { createWebGpuBackend, type WebGpuBackend } from '../src/index.ts'
import { linearAttention, linearAttentionBackward } from '../src/kernels/linear-attention/linear-attention.ts'
import { engine } from './support/engine.ts'
import { gpus } from './support/gpus.ts'

afterAll(() => {
  for (const { gpu } of gpus) gpu.close()
})

testLinearAttention(engine)

describe('tiles for GPUs', () => {
  /** The backend with kernels of a tile that it would not choose. */
  const withTile = (gpu: WebGpuBackend, tile: Parameters<typeof linearAttention>[1]): WebGpuBackend => ({
    ...gpu,
    kernels: {
      ...gpu.kernels,
      linear_attention: linearAttention(gpu.engine, tile),
      linear_attentionBackward: linearAttentionBackward(gpu.engine, tile),
    },
  })

  test.each([
    [
      { tm: 8, tc: 8, unroll: 4 },
      { T: 150, D: 64 },
    ],
    [
      { tm: 8, tc: 4, unroll: 4 },
      { T: 130, D: 18, Dv: 7, H: 2 },
    ],
  ] as const)('%o runs', async (tile, sizes) => {
    const { gpu } = gpus[tile.tc === 8 ? 0 : 1]!
    const tiled: Engine = {
      ...engine,
      backends: [{ name: 'tile', backend: withTile(gpu, tile), kind: 'tile' }],
    }
    await checkLinear(tiled, make(random(7), sizes), true)
  })

  test.each(['all', 'default'] as const)('all variants compile, with %s limits', async (limits) => {
    const errors: string[] = []
    const gpu = await createWebGpuBackend({
      backend: 'null',
      limits,
      onError: (message) => errors.push(message),
    })
    const before = gpu.engine.counts.dispatches
    for (const isCausal of [true, false])
      for (const [D, Dv] of [
        [17, 31],
        [33, 65],
        [32, 32],
        [64, 64],
        [32, 128],
        [128, 32],
      ] as const)
        for (const T of [64, 40_000]) {
          const rows = (width: number): Tensor =>
            tensor(new Float32Array(width), { device: gpu }).expand([1, 1, T, width]).detach()
          const inputs = [rows(D), rows(D), rows(Dv)] as const
          for (const t of inputs) t.requiresGrad = true
          const out = call(...inputs, { isCausal })
          grad([out], [...inputs], { gradOutputs: [rows(Dv)] })
        }
    expect(gpu.engine.counts.dispatches - before).toBe(2 * 6 * 2 * 13)
    await gpu.finished()
    expect(errors).toEqual([])
    gpu.close()
  })
})

test('memory grows with T, not with T²', async () => {
  // One of its own: no other test's memory counts.
  const gpu = await createWebGpuBackend()
  const T = 4096
  const c = caseOf(make(random(8), { T, D: 8 }), true)
  const before = gpu.stats()
  await evaluate(gpu, c)
  expect(gpu.stats().peakBytes - before.usedBytes).toBeLessThan(T * T)
  gpu.close()
})
