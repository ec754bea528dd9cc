import { createWebGpuBackend } from '@tilegrad/backend-webgpu'
import {
  AdamW,
  clipGradNorm,
  compile,
  decayGroups,
  GPT,
  type GPTConfig,
  manualSeed,
  randint,
  schedule,
  type Tensor,
  withBackend,
} from 'tilegrad'
import { afterAll, expect, it } from 'vitest'

// Compiled training on a GPU, whose calls are made ready to run again, beside the same training without.

const gpu = await createWebGpuBackend()
afterAll(() => gpu.close())

type Wrap = <A extends readonly unknown[], R>(fn: (...args: A) => R) => (...args: A) => R

async function losses(steps: number, wrap: Wrap, config: Partial<GPTConfig> = {}): Promise<number[]> {
  manualSeed(5)
  const { step, optimizer, batch } = withBackend(gpu, () => {
    const model = new GPT({
      vocabSize: 13,
      blockSize: 12,
      numLayers: 2,
      numHeads: 2,
      embedDim: 16,
      dropout: 0.1,
      ...config,
    })
    const optimizer = new AdamW(decayGroups(model, 0.1), { lr: 1e-2 })
    const step = wrap((x: Tensor, y: Tensor) => {
      const { loss } = model.forward(x, y)
      loss.backward()
      clipGradNorm(model.parameters(), 1)
      optimizer.step()
      optimizer.zeroGrad()
      return loss
    })
    return { step, optimizer, batch: () => randint(0, 13, [4, model.config.blockSize]) }
  })
  const rate = schedule.warmupCosine({ lr: 1e-2, warmupSteps: 3, decaySteps: steps })
  const out: number[] = []
  for (let i = 0; i < steps; i++) {
    optimizer.lr = rate(i)
    const loss = withBackend(gpu, () => step(batch(), batch()))
    out.push(await loss.item())
    loss.dispose()
  }
  return out
}

it('gives the bits of eager training', async () => {
  const eager = await losses(12, (fn) => fn)
  let launches = 0
  const compiled = await losses(12, (fn) => {
    const made = compile(fn, { fuse: false })
    return (...args) => {
      const result = made(...args)
      launches = made.plans[0]?.launches ?? 0
      return result
    }
  })
  expect(launches).toBeGreaterThan(20)
  expect(compiled).toEqual(eager)
  const fused = await losses(12, compile)
  fused.forEach((loss, i) => expect(loss).toBeCloseTo(eager[i] as number, 4))
})

it('computes activations again beside their gradients', async () => {
  const config = { blockSize: 32, embedDim: 64, numLayers: 3 }
  const eager = await losses(6, (fn) => fn, config)
  let text = ''
  const compiled = await losses(
    6,
    (fn) => {
      const made = compile(fn)
      return (...args) => {
        const result = made(...args)
        text = String(made)
        return result
      }
    },
    config,
  )
  expect(text).toContain('linear+linear.grad+linear again(')
  compiled.forEach((loss, i) => expect(loss).toBeCloseTo(eager[i] as number, 4))
})
