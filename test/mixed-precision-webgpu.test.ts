/** Mixed precision on GPUs: the losses are the CPU's, an overflow is skipped there as well, and nothing is read in between. */
import {
  AdamW,
  autocast,
  type Backend,
  createCpuBackend,
  GPT,
  GradScaler,
  manualSeed,
  randint,
  scope,
  type Tensor,
  withBackend,
} from 'tilegrad'
import { afterAll, expect, test, vi } from 'vitest'
import { sharedGpu } from '../packages/backend-webgpu/test/support/shared-gpu.ts'

const shared = await sharedGpu()
const gpus = [shared.full(), shared.plain()]
const cpu = createCpuBackend({ threads: 1 })
afterAll(async () => {
  for (const gpu of gpus) gpu.close()
  await cpu.close()
})

/** Losses of steps of which the third overflows, and the scale after them. */
async function train(device: Backend, mode: 'bfloat16' | 'float16'): Promise<number[]> {
  const read = vi.spyOn(device, 'read')
  const kept = withBackend(device, () => {
    manualSeed(3)
    const model = new GPT({ vocabSize: 32, blockSize: 8, embedDim: 16, numLayers: 1, numHeads: 2 })
    const optimizer = new AdamW(model.parameters(), { lr: 0.01 })
    const scaler = new GradScaler({ growthInterval: 2 })
    const losses = [1, 1, Infinity, 1, 1, 1].map((factor) =>
      scope(() => {
        const [x, y] = [randint(0, 32, [4, 8]), randint(0, 32, [4, 8])]
        const loss = autocast(mode, () => model.forward(x, y).loss as Tensor)
        scaler.scale(loss.mul(factor)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zeroGrad()
        return loss
      }),
    )
    return { losses, scaler }
  })
  expect(read).not.toHaveBeenCalled()
  read.mockRestore()
  const scale = await kept.scaler.getScale()
  return [scale, ...(await Promise.all(kept.losses.map((loss) => loss.item())))]
}

test.each(['bfloat16', 'float16'] as const)('%s', async (mode) => {
  const [wantScale, ...want] = await train(cpu, mode)
  for (const gpu of gpus) {
    const [scale, ...got] = await train(gpu, mode)
    expect(scale).toBe(wantScale)
    for (const [i, loss] of got.entries()) expect(Math.abs(loss - (want[i] as number))).toBeLessThan(0.02)
  }
})
