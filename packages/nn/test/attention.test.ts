import { manualSeed, matmul, ones, profile, randn, softmax, type Tensor } from '@tilegrad/core'
import {
  type Linear,
  LinearAttention,
  MultiHeadAttention,
  type SelfAttention,
  TransformerBlock,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, gradcheckModule, values } from './helpers.ts'

// float32 with sums of up to 20 products in another order.
const CLOSE = { atol: 2e-6, rtol: 1e-5 }

beforeEach(() => manualSeed(13))

/** q, k or v of one head, from the packed projection: rows `from` … of c_attn. */
function head(attention: SelfAttention, x: Tensor, from: number): Tensor {
  const { weight, bias } = attention.c_attn as Linear
  const d = attention.headDim
  const y = matmul(x, weight.narrow(0, from, d).T)
  return bias ? y.add(bias.narrow(0, from, d)) : y
}

/** Attention head by head with separate slices of the packed weight: slow and plain. */
function written(
  attention: SelfAttention,
  x: Tensor,
  weigh: (scores: { q: Tensor; k: Tensor }) => Tensor,
): Tensor {
  const { embedDim, numHeads, numKvHeads, headDim: d } = attention
  const { weight, bias } = attention.outProj
  let out = bias ? x.mul(0).add(bias) : x.mul(0)
  for (let h = 0; h < numHeads; h++) {
    const kv = Math.floor((h * numKvHeads) / numHeads)
    const q = head(attention, x, h * d)
    const k = head(attention, x, embedDim + kv * d)
    const v = head(attention, x, embedDim + (numKvHeads + kv) * d)
    const y = matmul(weigh({ q, k }), v)
    out = out.add(matmul(y, weight.narrow(1, h * d, d).T))
  }
  return out
}

/** 1 on and below the diagonal of (T, T). */
const causalMask = (t: number): Tensor => ones([t, t]).tril()

const softmaxWeights =
  (causal: boolean) =>
  ({ q, k }: { q: Tensor; k: Tensor }): Tensor => {
    const s = matmul(q, k.transpose(-2, -1)).div(Math.sqrt(q.shape[2]))
    return softmax(causal ? s.maskedFill(causalMask(q.shape[1]).eq(0), -Infinity) : s, -1)
  }

const linearWeights =
  (causal: boolean) =>
  ({ q, k }: { q: Tensor; k: Tensor }): Tensor => {
    const phi = (x: Tensor): Tensor => x.elu().add(1)
    const s = matmul(phi(q), phi(k).transpose(-2, -1))
    const seen = causal ? s.mul(causalMask(q.shape[1])) : s
    return seen.div(seen.sum(-1, { keepdim: true }).add(1e-6))
  }

describe.each([
  ['full', { isCausal: false }],
  ['causal', { isCausal: true }],
  ['causal, grouped heads, no bias', { isCausal: true, numKvHeads: 2, bias: false }],
  ['one key-value head', { isCausal: false, numKvHeads: 1 }],
])('%s', (_, options) => {
  it('MultiHeadAttention is softmax attention written out per head', () => {
    const attention = new MultiHeadAttention(12, 4, options)
    const x = randn([2, 5, 12])
    expectClose(attention.forward(x), written(attention, x, softmaxWeights(options.isCausal)), CLOSE)
  })

  it('LinearAttention is linear attention written out per head', () => {
    const attention = new LinearAttention(12, 4, options)
    const x = randn([2, 5, 12])
    expectClose(attention.forward(x), written(attention, x, linearWeights(options.isCausal)), CLOSE)
  })

  it('gradients of input and parameters agree with finite differences', () => {
    const run = (attention: SelfAttention, x: Tensor): Tensor => attention.forward(x)
    gradcheckModule(new MultiHeadAttention(8, 4, options), [randn([2, 3, 8])], run)
    gradcheckModule(new LinearAttention(8, 4, options), [randn([2, 3, 8])], run)
  })
})

it('causal: a later token changes no earlier output', () => {
  const x = randn([1, 6, 8])
  const changed = x.clone()
  changed.narrow(1, 4, 1).fill_(9)
  for (const attention of [
    new MultiHeadAttention(8, 2, { isCausal: true }),
    new LinearAttention(8, 2, { isCausal: true }),
  ]) {
    const [a, b] = [attention.forward(x), attention.forward(changed)]
    // The same sums over the same numbers: equal.
    expect(values(a.narrow(1, 0, 4))).toEqual(values(b.narrow(1, 0, 4)))
    expect(values(a.narrow(1, 4, 1))).not.toEqual(values(b.narrow(1, 4, 1)))
  }
})

it('queries, keys and values are views of the packed projection: the only copy joins the heads', () => {
  const attention = new MultiHeadAttention(8, 2)
  const x = randn([2, 3, 8])
  const { rows } = profile(() => attention.forward(x))
  const copies = rows.filter((row) => row.op === 'copy').reduce((n, row) => n + row.calls, 0)
  expect(copies).toBe(1)
})

it('dropout of attention weights: only while training, with the expectation kept', () => {
  const attention = new MultiHeadAttention(8, 2, { dropout: 0.5 })
  const x = randn([1, 4, 8])
  expect(values(attention.forward(x))).not.toEqual(values(attention.forward(x)))
  attention.eval()
  const plain = attention.forward(x)
  expectClose(plain, written(attention, x, softmaxWeights(false)), CLOSE)
  attention.train()
  let mean = plain.mul(0)
  const n = 1000
  for (let i = 0; i < n; i++) mean = mean.add(attention.forward(x).detach().div(n))
  // Each output varies by less than 1; the mean of 1000 by less than 0.032, three deviations 0.1.
  expectClose(mean, plain, { atol: 0.1, rtol: 0 })
})

it('shows its sizes and names its parameters as GPT-2 does', () => {
  const attention = new MultiHeadAttention(8, 4, { numKvHeads: 2, isCausal: true })
  expect(attention.extraRepr()).toBe('embedDim=8, numHeads=4, numKvHeads=2, isCausal=true')
  expect(attention.namedParameters().map(([name, p]) => `${name} ${p.shape}`)).toEqual([
    'c_attn.weight 16,8',
    'c_attn.bias 16',
    'c_proj.weight 8,8',
    'c_proj.bias 8',
  ])
})

describe('errors', () => {
  const bad: [string, () => unknown, RegExp][] = [
    ['heads', () => new MultiHeadAttention(10, 4), /embedDim 10 must be a multiple of numHeads 4/],
    [
      'key-value heads',
      () => new LinearAttention(8, 4, { numKvHeads: 3 }),
      /numHeads 4 must be a multiple of numKvHeads 3/,
    ],
    ['dropout', () => new MultiHeadAttention(8, 4, { dropout: 2 }), /must lie within 0 … 1, got 2/],
    ['input', () => new MultiHeadAttention(8, 4).forward(ones([2, 3, 6])), /linear: input \[2, 3, 6\]/],
  ]
  it.each(bad)('%s', (_, run, message) => expect(run).toThrow(message))
})

describe('TransformerBlock', () => {
  it('is pre-norm, with both residuals', () => {
    const block = new TransformerBlock(8, 2, { isCausal: true, hiddenDim: 12 })
    const x = randn([2, 3, 8])
    const y = x.add(block.attn.forward(block.ln_1.forward(x)))
    expectClose(block.forward(x), y.add(block.mlp.forward(block.ln_2.forward(y))), CLOSE)
    expect(block.mlp.c_fc.weight.shape).toEqual([12, 8])
  })

  it('passes its options on', () => {
    const block = new TransformerBlock(8, 4, {
      attention: 'linear',
      numKvHeads: 2,
      bias: false,
      dropout: 0.3,
      activation: 'gelu_tanh',
    })
    expect(block.attn).toBeInstanceOf(LinearAttention)
    expect([block.attn.numKvHeads, block.attn.isCausal, block.drop.p, block.mlp.activation]).toEqual([
      2,
      false,
      0.3,
      'gelu_tanh',
    ])
    expect(block.namedParameters().filter(([name]) => name.endsWith('bias'))).toEqual([])
    const softmaxed = new TransformerBlock(8, 4, { dropout: 0.3 }).attn as MultiHeadAttention
    expect(softmaxed.dropout).toBe(0.3)
  })

  it.each(['softmax', 'linear'] as const)(
    'gradients with %s attention agree with finite differences',
    (attention) => {
      gradcheckModule(
        new TransformerBlock(4, 2, { attention, isCausal: true, hiddenDim: 5 }),
        [randn([1, 3, 4])],
        (block, x) => block.forward(x),
      )
    },
  )
})
