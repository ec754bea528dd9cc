/** GPUs cannot be read at once: where a gradient became NaN is told in the end. */

import { detectAnomaly, detectAnomalyAsync, scope, type Tensor, tensor } from '@tilegrad/core'
import { afterAll, expect, test } from 'vitest'
import { sharedGpu } from '../packages/backend-webgpu/test/support/shared-gpu.ts'

const gpu = (await sharedGpu()).full()
afterAll(() => gpu.close())

const rootsOf = (x: Tensor): Tensor => x.sqrt()

test('a gradient on a GPU that becomes NaN is found', async () => {
  const x = tensor([[1, 0, 4]], { requiresGrad: true, device: gpu })
  const step = (): void =>
    scope(() =>
      rootsOf(x)
        .mul(tensor([1, 0, 1], { device: gpu }))
        .sum()
        .backward(),
    )
  expect(() => detectAnomaly(step)).toThrow('cannot be read at once; use await detectAnomalyAsync(fn)')
  const error = (await detectAnomalyAsync(step).catch((e: unknown) => e)) as Error
  expect(error.message).toMatch(
    /^sqrt: in the backward pass the gradient of its input 0 became NaN \(\[1, 3\] → \[1, 3\]\)/,
  )
  expect(error.message).toContain('rootsOf')
  await detectAnomalyAsync(() => scope(() => rootsOf(x.add(1)).sum().backward()))
})
