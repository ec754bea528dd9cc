/** Training on a GPU leaves its memory as it was. */
import {
  AdamW,
  clipGradNorm,
  createWebGpuBackend,
  decayGroups,
  GPT,
  manualSeed,
  memory,
  randint,
  scope,
  type Tensor,
  withBackend,
} from 'tilegrad'
import { expect, test } from 'vitest'
import { collected } from '../packages/core/test/support/collected.ts'

test('300 steps leave tensors, buffers, bytes and bind groups flat', async () => {
  const gpu = await createWebGpuBackend()
  const step = withBackend(gpu, () => {
    manualSeed(1)
    const config = { vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16, dropout: 0.1 }
    const model = new GPT(config)
    const optimizer = new AdamW(decayGroups(model, 0.01), { lr: 1e-2 })
    return (): Tensor =>
      scope(() => {
        const tokens = randint(0, 11, [4, 9])
        const { loss } = model.forward(tokens.narrow(1, 0, 8), tokens.narrow(1, 1, 8))
        loss.backward()
        clipGradNorm(model.parameters(), 1)
        optimizer.step()
        optimizer.zeroGrad()
        return loss
      })
  })
  const train = async (steps: number) => {
    for (let i = 0; i < steps; i++) {
      const loss = withBackend(gpu, step)
      if (i % 10 === 9) expect(await loss.item()).toBeLessThan(4)
      loss.dispose()
    }
    return { ...memory(), ...gpu.stats(), bindGroups: gpu.engine.bindGroups }
  }
  // Buffers come back in an order that takes some steps to repeat itself.
  await train(30)
  await collected()
  const before = await train(0)
  expect(await train(300)).toEqual(before)
  gpu.close()
})
