/** Many calls at once against one each: the same bits. */

import { tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { groups, paths, testForeach } from '../../../test/kernels/foreach.cases.ts'
import { engine } from './support/engine.ts'
import { gpus } from './support/gpus.ts'

testForeach(engine)

test('dispatches are few', () => {
  for (const { gpu: device } of gpus) {
    const before = device.engine.counts.dispatches
    paths(groups(device, 3, [10, 20, 1, 5000]))
    const atOnce = Math.floor((device.gpu.limits.maxStorageBuffersPerShaderStage - 1) / 3)
    expect(device.engine.counts.dispatches - before).toBe(Math.ceil(4 / atOnce))
    // A vector of an output may hold elements of another tensor: that call runs alone.
    const [a, b, { tensors, params }] = groups(device, 3, [10, 10, 10])
    const odd = tensor(new Float32Array(12), { device }).narrow(0, 1, 10)
    expect(paths([a, b, { tensors: [odd, ...tensors.slice(1)], params }])).toEqual(
      expect.arrayContaining([
        ['step', 'fused', 1],
        ['step', 'primitive', 1],
      ]),
    )
  }
})
