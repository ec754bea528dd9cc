import {
  arange,
  crossEntropy,
  manualSeed,
  matmul,
  memory,
  ones,
  randint,
  scope,
  softmax,
  type Tensor,
  tensor,
  zeros,
} from '@tilegrad/core'
import {
  AdamW,
  clipGradNorm,
  decayGroups,
  type Embedding,
  GPT,
  type GPTConfig,
  type Linear,
  LinearAttention,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { expectClose, expectNumbers, gradcheckModule, values } from './helpers.ts'

const tiny: GPTConfig = { vocabSize: 7, blockSize: 6, numLayers: 2, numHeads: 2, embedDim: 8 }
const int = { dtype: 'int32' } as const
const deviation = (t: Tensor): number => Math.sqrt(t.square().mean().itemSync())

beforeEach(() => manualSeed(17))

describe('GPT', () => {
  it('names its parameters as GPT-2 does', () => {
    const names = new GPT({ ...tiny, numLayers: 1, tieWeights: false })
      .namedParameters()
      .map(([name]) => name)
    const both = (name: string): string[] => [`${name}.weight`, `${name}.bias`]
    expect(names).toEqual([
      'wte.weight',
      'wpe.weight',
      ...[
        'h.0.ln_1',
        'h.0.attn.c_attn',
        'h.0.attn.c_proj',
        'h.0.ln_2',
        'h.0.mlp.c_fc',
        'h.0.mlp.c_proj',
        'ln_f',
      ].flatMap(both),
      'lm_head.weight',
    ])
  })

  it('forward and loss are the composition written out', () => {
    const model = new GPT({ ...tiny, tieWeights: false })
    const idx = randint(0, 7, [2, 5])
    const targets = randint(0, 7, [2, 5])
    let x = model.wte.forward(idx).add((model.wpe as Embedding).forward(arange(5)))
    for (const block of model.h) x = block.forward(x)
    const logits = matmul(model.ln_f.forward(x), model.lm_head.weight.T)
    const out = model.forward(idx, targets)
    // float32, sums of at most 32 products, two blocks deep.
    expectClose(out.logits, logits, { atol: 1e-6, rtol: 1e-5 })
    const picked = softmax(logits, -1)
      .log()
      .reshape([10, 7])
      .gather(1, targets.reshape([10, 1]))
    expectClose(out.loss, picked.mean().neg(), { atol: 1e-6, rtol: 1e-5 })
    expect(out.loss.shape).toEqual([])
    const without = model.forward(idx)
    expect(without.loss).toBeNull()
    expect(values(without.logits)).toEqual(values(out.logits))
  })

  it('does not count targets of −100', () => {
    const model = new GPT(tiny)
    const idx = randint(0, 7, [1, 4])
    const { logits } = model.forward(idx)
    const { loss } = model.forward(idx, tensor([[3, -100, -100, 2]], int))
    const two = crossEntropy(
      logits.reshape([4, 7]).gather(
        0,
        tensor(
          [
            [0, 0, 0, 0, 0, 0, 0],
            [3, 3, 3, 3, 3, 3, 3],
          ],
          int,
        ),
      ),
      tensor([3, 2], int),
    )
    expectClose(loss, two, { atol: 1e-6, rtol: 1e-6 })
  })

  it('is initialised as GPT-2, so that the first loss is near ln V', () => {
    const model = new GPT({ ...tiny, embedDim: 64, vocabSize: 50, numLayers: 3 })
    // 0.02 from thousands of draws: good to 4 %.
    const close = { atol: 0, rtol: 0.06 }
    const [{ attn, mlp, ln_1: norm }] = model.h
    const packed = attn.c_attn as Linear
    expectNumbers(
      [model.wte.weight, packed.weight, mlp.c_fc.weight].map(deviation),
      [0.02, 0.02, 0.02],
      close,
    )
    const residual = 0.02 / Math.sqrt(6)
    expectNumbers([attn.outProj.weight, mlp.c_proj.weight].map(deviation), [residual, residual], close)
    expect(values(packed.bias).every((v) => v === 0)).toBe(true)
    expect(values(norm.weight).every((v) => v === 1)).toBe(true)
    const { loss } = model.forward(randint(0, 50, [2, 6]), randint(0, 50, [2, 6]))
    expect(Math.abs(loss.itemSync() - Math.log(50))).toBeLessThan(0.2)
  })

  it('ties the head to the token embedding by default', async () => {
    await collected()
    const before = memory().tensors
    const model = new GPT(tiny)
    // No orphan of the untied head is left behind.
    expect(memory().tensors - before).toBe(model.parameters().length)
    expect(model.lm_head.weight).toBe(model.wte.weight)
    const untied = new GPT({ ...tiny, tieWeights: false })
    expect(untied.numParameters() - model.numParameters()).toBe(7 * 8)
    // A checkpoint without the head's name loads.
    const { 'lm_head.weight': head, ...rest } = model.stateDict()
    expect(head).toBe(model.wte.weight)
    expect(new GPT(tiny).loadStateDict(rest).missing).toEqual([])
  })

  it.each(['softmax', 'linear'] as const)(
    'gradients with %s attention agree with finite differences',
    (attention) => {
      const model = new GPT({ vocabSize: 4, blockSize: 3, numLayers: 1, numHeads: 2, embedDim: 4, attention })
      const idx = tensor([[0, 2, 3]], int)
      const targets = tensor([[2, 3, 1]], int)
      gradcheckModule(model, [], (m) => m.forward(idx, targets).loss)
    },
  )

  it('takes linear attention, grouped heads, no biases and dropout', () => {
    const model = new GPT({
      ...tiny,
      attention: 'linear',
      numKvHeads: 1,
      bias: false,
      dropout: 0.1,
      activation: 'gelu_tanh',
    })
    expect(model.h[0].attn).toBeInstanceOf(LinearAttention)
    expect(model.namedParameters().some(([name]) => name.endsWith('bias'))).toBe(false)
    const idx = randint(0, 7, [2, 6])
    const a = values(model.forward(idx).logits)
    expect(values(model.forward(idx).logits)).not.toEqual(a)
    model.eval()
    expect(values(model.forward(idx).logits)).toEqual(values(model.forward(idx).logits))
  })

  it('says what does not fit', () => {
    const model = new GPT(tiny)
    expect(() => model.forward(zeros([1, 7], int))).toThrow(/T ≤ blockSize = 6, got \[1, 7\]/)
    expect(() => model.forward(zeros([3], int))).toThrow(/idx must be \(B, T\).*got \[3\]/)
    expect(() => model.forward(zeros([1, 3], int), zeros([1, 2], int))).toThrow(/targets \[1, 2\].*\[1, 3\]/)
    expect(() => model.forward(ones([1, 3]))).toThrow(/int32/)
    expect(() => new GPT({ ...tiny, numLayers: 0 })).toThrow(/numLayers must be a positive integer, got 0/)
  })
})

describe('training', () => {
  it.each(['softmax', 'linear'] as const)('overfits one batch with %s attention', (attention) => {
    const model = new GPT({ ...tiny, attention })
    const optimizer = new AdamW(decayGroups(model, 0.01), { lr: 1e-2 })
    const tokens = randint(0, 7, [3, 7])
    const losses: number[] = []
    for (let step = 0; step < 80; step++) {
      const loss = scope(() => {
        const { loss } = model.forward(tokens.narrow(1, 0, 6), tokens.narrow(1, 1, 6))
        loss.backward()
        clipGradNorm(model.parameters(), 1)
        optimizer.step()
        optimizer.zeroGrad()
        return loss
      })
      losses.push(loss.itemSync())
      loss.dispose()
    }
    expect(losses[0]).toBeGreaterThan(1.5)
    // Eighteen tokens are learned by heart, up to what the first positions cannot know.
    expect(losses[79]).toBeLessThan(0.3)
  })
})
