import {
  AdamW,
  type Backend,
  clipGradNorm,
  createCpuBackend,
  decayGroups,
  GPT,
  type GPTConfig,
  manualSeed,
  memory,
  randint,
  reference,
  scope,
  type Tensor,
  withBackend,
} from 'tilegrad'
import { afterAll, describe, expect, it } from 'vitest'
import { collected } from '../packages/core/test/support/collected.ts'

const cpu = createCpuBackend({ threads: 2 })
afterAll(() => cpu.close())

const tiny: GPTConfig = { vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16, dropout: 0.1 }

interface Trainer {
  step(): number
}

function trainer(config: GPTConfig, batch: number, lr: number, seed = 1): Trainer {
  manualSeed(seed)
  const model = new GPT(config)
  const optimizer = new AdamW(decayGroups(model, 0.01), { lr })
  const [x, y] = [0, 0].map(() => randint(0, config.vocabSize, [batch, config.blockSize])) as [Tensor, Tensor]
  return {
    step() {
      const loss = scope(() => {
        const { loss } = model.forward(x, y)
        loss.backward()
        clipGradNorm(model.parameters(), 1)
        optimizer.step()
        optimizer.zeroGrad()
        return loss
      })
      const value = loss.itemSync()
      loss.dispose()
      return value
    },
  }
}

describe('training end to end on the CPU engine', () => {
  it.each(['softmax', 'linear'] as const)('overfits one batch with %s attention', (attention) => {
    withBackend(cpu, () => {
      const t = trainer({ ...tiny, vocabSize: 97, embedDim: 32, dropout: 0, attention }, 4, 1e-2)
      const first = t.step()
      let last = first
      for (let i = 0; i < 200; i++) last = t.step()
      // Random targets cannot be predicted, only memorised: from about ln 97 to almost nothing. (All four rows begin
      // with different tokens; equal ones with different targets could not be told apart.)
      expect(first).toBeGreaterThan(4)
      expect(last).toBeLessThan(0.02)
    })
  })

  it('2,000 steps leave memory flat', async () => {
    await collected()
    withBackend(cpu, () => {
      const t = trainer(tiny, 2, 1e-3)
      for (let i = 0; i < 20; i++) t.step()
      const before = { ...memory(), heap: cpu.stats().liveBytes, held: cpu.stats().heapBytes }
      for (let i = 0; i < 2000; i++) t.step()
      expect({ ...memory(), heap: cpu.stats().liveBytes, held: cpu.stats().heapBytes }).toEqual(before)
    })
  })

  const losses = (backend: Backend, steps: number): number[] =>
    withBackend(backend, () => {
      const t = trainer(tiny, 3, 1e-2, 5)
      return Array.from({ length: steps }, () => t.step())
    })

  it('the same seed gives the same run, bit by bit, on any number of threads', () => {
    const once = losses(cpu, 20)
    expect(losses(cpu, 20)).toEqual(once)
    for (const threads of [1, 3]) {
      const other = createCpuBackend({ threads })
      expect(losses(other, 20)).toEqual(once)
      other.close()
    }
  })

  it('agrees with the reference backend, dropout included', () => {
    const [a, b] = [losses(cpu, 5), losses(reference, 5)]
    // float32 against float32 with double-precision kernels: rounding, amplified by five optimiser steps.
    a.forEach((loss, i) => expect(Math.abs(loss - (b[i] as number))).toBeLessThan(1e-4 * loss))
  })
})
