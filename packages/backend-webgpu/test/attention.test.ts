/**
 * Fused softmax attention on the GPU against core's reference: shapes, strides, masks, gradients, at all and at default
 * limits, where tiles are smaller.
 */

import { grad, scaledDotProductAttention, type Tensor } from '@tilegrad/core'
import { afterAll, expect, test } from 'vitest'
import { testAttention } from '../../../test/kernels/attention.cases.ts'
import { make, place } from '../../../test/kernels/attention.ts'
import { createWebGpuBackend } from '../src/index.ts'
import { check, closeGpus, gpus } from './support/attention.ts'

afterAll(closeGpus)

testAttention(
  gpus.map(([, gpu]) => gpu),
  (c, needs) => check(c, needs),
)

test('memory grows with T, not with T²', async () => {
  // One of its own: no other test's memory counts.
  const gpu = await createWebGpuBackend()
  const T = 1024
  const c = make({ H: 1, T, D: 8 })
  const inputs = [c.q, c.k, c.v, c.dout].map((x) => place(gpu, x)) as [Tensor, Tensor, Tensor, Tensor]
  for (const x of inputs.slice(0, 3)) x.requiresGrad = true
  const before = gpu.stats()
  const out = scaledDotProductAttention(inputs[0], inputs[1], inputs[2], { isCausal: true })
  const grads = grad([out], inputs.slice(0, 3), { gradOutputs: [inputs[3]] })
  await grads[0]?.data()
  expect(gpu.stats().peakBytes - before.usedBytes).toBeLessThan(T * T)
  gpu.close()
})
