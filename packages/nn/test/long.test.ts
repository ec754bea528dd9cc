/** What makes long sequences fit: gradient checkpointing, accumulation. */

import { manualSeed, memory, randint, resetPeakMemory, scope } from '@tilegrad/core'
import { clipGradNorm, GPT, type GPTConfig } from '@tilegrad/nn'
import { describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { expectNumbers, values } from './helpers.ts'

const tiny: GPTConfig = { vocabSize: 7, blockSize: 16, numLayers: 3, numHeads: 2, embedDim: 8 }

describe('GPT with gradientCheckpointing', () => {
  /** The loss, all gradients, and the peak of a step in bytes above what was there. */
  const step = (config: Partial<GPTConfig>, batch = 2): { numbers: number[][]; peak: number } => {
    manualSeed(9)
    const model = new GPT({ ...tiny, ...config })
    const tokens = randint(0, 7, [batch, 17])
    resetPeakMemory()
    const before = memory().bytes
    const loss = scope(() => {
      const { loss } = model.forward(tokens.narrow(1, 0, 16), tokens.narrow(1, 1, 16))
      loss.backward()
      return loss
    })
    return {
      numbers: [values(loss), ...model.parameters().map((p) => values(p.grad))],
      peak: memory().peakBytes - before,
    }
  }

  it.each([{}, { dropout: 0.2 }, { attention: 'linear' }] as const)('gives the same bits: %o', (config) => {
    expect(step({ ...config, gradientCheckpointing: true }).numbers).toEqual(step(config).numbers)
  })

  it('needs less memory, the less the deeper it is', async () => {
    await collected()
    const deep = { numLayers: 12 }
    // 18 activations a block fall to one, and some 20 of the block at work; the reference stores T × T scores besides.
    expect(step({ ...deep, gradientCheckpointing: true }, 4).peak).toBeLessThan(step(deep, 4).peak / 4)
  })

  it('keeps nothing back in evaluation', () => {
    const model = new GPT({ ...tiny, gradientCheckpointing: true })
    model.eval()
    const tokens = randint(0, 7, [1, 4])
    expect(model.forward(tokens).logits.gradFn?.inputs[0]?.disposed).toBe(false)
  })
})

describe('gradient accumulation', () => {
  it('k micro-batches give the gradients, and the norm, of one batch', () => {
    manualSeed(4)
    const model = new GPT(tiny)
    const tokens = randint(0, 7, [6, 17])
    const backward = (from: number, count: number, parts: number): void =>
      scope(() => {
        const rows = tokens.narrow(0, from, count)
        const { loss } = model.forward(rows.narrow(1, 0, 16), rows.narrow(1, 1, 16))
        loss.div(parts).backward()
      })
    const gradients = (): number[] => [
      ...values(clipGradNorm(model.parameters(), 0.5)),
      ...model.parameters().flatMap((p) => values(p.grad)),
    ]
    backward(0, 6, 1)
    const want = gradients()
    for (const parts of [2, 3, 6]) {
      model.zeroGrad()
      for (let i = 0; i < parts; i++) backward((i * 6) / parts, 6 / parts, parts)
      // The same float32 sums in another order: some 100 terms of at most 0.1.
      expectNumbers(gradients(), want, { atol: 1e-6, rtol: 1e-5 })
    }
  })
})
