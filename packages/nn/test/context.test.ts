import { manualSeed, noGrad, randn, type Tensor, tensor } from '@tilegrad/core'
import { type MLP, type MultiHeadAttention, TransformerBlock } from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, gradcheckModule, values } from './helpers.ts'

// float32 with sums of up to 20 products in another order.
const CLOSE = { atol: 2e-6, rtol: 1e-5 }

beforeEach(() => manualSeed(31))

describe('a block with a context', () => {
  it.each([
    ['of its own size', { contextDim: 8 }],
    ['of another', { contextDim: 5, bias: false, isCausal: true }],
  ])('%s adds its three parts', (_, options) => {
    const block = new TransformerBlock(8, 2, options)
    const [x, context] = [randn([2, 3, 8]), randn([2, 4, options.contextDim])]
    const contextMask = tensor([
      [true, true, true, false],
      [true, true, true, true],
    ])
    const [norm, cross] = [block.ln_cross, block.cross_attn] as [
      { forward(x: Tensor): Tensor },
      MultiHeadAttention,
    ]
    const y = x.add(block.attn.forward(block.ln_1.forward(x)))
    const z = y.add(cross.forward(norm.forward(y), { context, keyMask: contextMask }))
    expectClose(
      block.forward(x, { context, contextMask }),
      z.add((block.mlp as MLP).forward(block.ln_2.forward(z))),
      CLOSE,
    )
    const names = Object.keys(block.stateDict())
    expect(names.indexOf('ln_cross.weight')).toBeGreaterThan(names.indexOf('attn.c_attn.weight'))
    gradcheckModule(block, [x, context], (m, a, b) => m.forward(a, { context: b }).square().sum())
  })

  it('decodes from a cache what it computes at once', () => {
    const block = new TransformerBlock(8, 2, { contextDim: 8, isCausal: true, rope: true }).eval()
    const [x, context] = [randn([2, 4, 8]), randn([2, 3, 8])]
    const cache = block.newCache(2, 4)
    const steps = noGrad(() => [0, 1, 2, 3].map((i) => block.forward(x.narrow(1, i, 1), { cache, context })))
    const whole = block.forward(x, { context })
    steps.forEach((y, i) => {
      expectClose(y, whole.narrow(1, i, 1), CLOSE)
    })
  })

  it('drops what its parts add while training', () => {
    const block = new TransformerBlock(8, 2, { contextDim: 8, dropout: { residual: 1 } })
    const x = randn([2, 3, 8])
    expect(values(block.forward(x, { context: randn([2, 4, 8]) }))).toEqual(values(x))
  })

  it('says when there is one too few or too many', () => {
    const [x, context] = [randn([1, 2, 8]), randn([1, 2, 8])]
    expect(() => new TransformerBlock(8, 2).forward(x, { context })).toThrow('make it with { contextDim }')
    const block = new TransformerBlock(8, 2, { contextDim: 8 })
    expect(() => block.forward(x)).toThrow('give it a context')
    expect(() => new TransformerBlock(8, 2, { contextDim: 0 })).toThrow(
      'TransformerBlock: contextDim must be a positive integer',
    )
  })
})
