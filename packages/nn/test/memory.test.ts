import { manualSeed, memory, randint, resetPeakMemory, scope } from '@tilegrad/core'
import { AdamW, clipGradNorm, decayGroups, GPT, SGD } from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'

beforeEach(collected)

describe('a training step in a scope leaves memory flat', () => {
  it.each([
    ['softmax', 'AdamW'],
    ['linear', 'AdamW'],
    ['softmax', 'SGD'],
  ] as const)('%s attention, %s, 300 steps', (attention, which) => {
    manualSeed(23)
    const model = new GPT({
      vocabSize: 5,
      blockSize: 4,
      numLayers: 1,
      numHeads: 2,
      embedDim: 4,
      dropout: 0.1,
      attention,
    })
    const optimizer =
      which === 'AdamW'
        ? new AdamW(decayGroups(model, 0.1))
        : new SGD(model.parameters(), { lr: 0.1, momentum: 0.9 })
    const step = (): void => {
      const { loss, norm } = scope(() => {
        const tokens = randint(0, 5, [2, 5])
        const { loss } = model.forward(tokens.narrow(1, 0, 4), tokens.narrow(1, 1, 4))
        loss.backward()
        const norm = clipGradNorm(model.parameters(), 1)
        optimizer.step()
        optimizer.zeroGrad()
        return { loss, norm }
      })
      loss.dispose()
      norm.dispose()
    }
    // The first step makes the optimiser's state.
    step()
    resetPeakMemory()
    step()
    const before = memory()
    for (let i = 0; i < 300; i++) step()
    // Exactly: no tensor more, no byte more, no step with a higher peak.
    expect(memory()).toEqual(before)
    const states = which === 'AdamW' ? 2 : 1
    const parameters = model.parameters()
    // State tensors lie side by side, each from a cache line on.
    const line = (n: number): number => 16 * Math.ceil(n / 16)
    const kept = parameters.reduce((n, p) => n + 4 * (p.numel + states * line(p.numel)), 0)
    model.dispose()
    optimizer.dispose()
    expect([before.tensors - memory().tensors, before.bytes - memory().bytes]).toEqual([
      (1 + states) * parameters.length,
      kept,
    ])
  })

  it('gradients accumulate over micro-batches without growth', () => {
    manualSeed(29)
    const model = new GPT({ vocabSize: 5, blockSize: 4, numLayers: 1, numHeads: 2, embedDim: 4 })
    const micro = (): void =>
      scope(() => {
        const tokens = randint(0, 5, [2, 5])
        model.forward(tokens.narrow(1, 0, 4), tokens.narrow(1, 1, 4)).loss.backward()
      })
    const empty = memory()
    micro()
    const before = memory()
    expect(before.tensors - empty.tensors).toBe(model.parameters().length)
    for (let i = 0; i < 20; i++) micro()
    expect([memory().tensors, memory().bytes]).toEqual([before.tensors, before.bytes])
    model.zeroGrad()
    expect([memory().tensors, memory().bytes]).toEqual([empty.tensors, empty.bytes])
  })
})
