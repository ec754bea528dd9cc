import { arange, manualSeed, ones, randn, type Tensor, tensor } from '@tilegrad/core'
import {
  Dropout,
  Embedding,
  GELU,
  GroupNorm,
  init,
  type Layer,
  LayerNorm,
  type LayerNormOptions,
  Linear,
  MLP,
  type Module,
  ReLU,
  RMSNorm,
  Sequential,
  Sigmoid,
  SiLU,
  Tanh,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectClose, expectNumbers, gradcheckModule, values } from './helpers.ts'

// float32 against the same formula in another order of operations: a few roundings of 6e-8.
const CLOSE = { atol: 1e-6, rtol: 1e-5 }

const forward = (module: Layer, x: Tensor): Tensor => module.forward(x)
const scrambled = <M extends Module>(module: M): M => {
  // Ones and zeros would hide a weight that is not used.
  for (const p of module.parameters()) init.normal_(p, 0.5)
  return module
}

beforeEach(() => manualSeed(11))

describe('forward is the composition written out', () => {
  it('Linear', () => {
    const layer = new Linear(4, 3)
    const x = randn([2, 5, 4])
    const bias = layer.bias as Tensor
    expectClose(layer.forward(x), x.matmul(layer.weight.transpose(0, 1)).add(bias), CLOSE)
    const plain = new Linear(4, 3, { bias: false })
    expect(plain.bias).toBeNull()
    expectClose(plain.forward(x), x.matmul(plain.weight.transpose(0, 1)), CLOSE)
    expect(plain.namedParameters().map(([name]) => name)).toEqual(['weight'])
  })

  it('Embedding', () => {
    const table = new Embedding(6, 3)
    const index = tensor(
      [
        [5, 0],
        [2, 2],
      ],
      { dtype: 'int32' },
    )
    const rows = values(table.weight)
    const expected = [5, 0, 2, 2].flatMap((i) => rows.slice(3 * i, 3 * i + 3))
    expect(table.forward(index).shape).toEqual([2, 2, 3])
    // A lookup copies: no tolerance.
    expect(values(table.forward(index))).toEqual(expected)
  })

  it('Embedding with a padding row: read, but without gradient', () => {
    const table = new Embedding(4, 2, { paddingIdx: -3 })
    expect(table.paddingIdx).toBe(1)
    expect(values(table.weight).slice(2, 4)).toEqual([0, 0])
    table
      .forward(tensor([0, 1, 1, 3, 3], { dtype: 'int32' }))
      .sum()
      .backward()
    expect(values(table.weight.grad)).toEqual([1, 1, 0, 0, 0, 0, 2, 2])
  })

  const norms: [string, number[], LayerNormOptions][] = [
    ['one dim', [6], {}],
    ['two dims', [3, 2], {}],
    ['no bias', [6], { bias: false }],
    ['no weight', [6], { elementwiseAffine: false }],
    ['large eps', [6], { eps: 0.5 }],
  ]
  it.each(norms)('LayerNorm, %s', (_, shape, options) => {
    const x = shape.length === 1 ? randn([4, 6]) : randn([4, 3, 2])
    const layer = scrambled(new LayerNorm(shape, options))
    const flat = x.reshape([4, 6])
    const centred = flat.sub(flat.mean(1, { keepdim: true }))
    const variance = centred.square().mean(1, { keepdim: true })
    let expected = centred.div(variance.add(layer.eps).sqrt()).reshape(x.shape)
    if (layer.weight) expected = expected.mul(layer.weight)
    if (layer.bias) expected = expected.add(layer.bias)
    expectClose(layer.forward(x), expected, CLOSE)
    expect([layer.weight !== null, layer.bias !== null]).toEqual([
      options.elementwiseAffine !== false,
      options.elementwiseAffine !== false && options.bias !== false,
    ])
  })

  it('RMSNorm', () => {
    const x = randn([4, 6])
    const layer = scrambled(new RMSNorm(6, { eps: 0.1 }))
    const expected = x.div(x.square().mean(1, { keepdim: true }).add(0.1).sqrt()).mul(layer.weight as Tensor)
    expectClose(layer.forward(x), expected, CLOSE)
    expect(new RMSNorm(6, { elementwiseAffine: false }).parameters()).toEqual([])
    // The default eps is the dtype's smallest step: not noticeable here, but no division by zero.
    expectClose(new RMSNorm(6).forward(x.mul(0)), x.mul(0), CLOSE)
  })

  it('GroupNorm', () => {
    const x = randn([2, 6, 4])
    const layer = scrambled(new GroupNorm(3, 6))
    const groups = x.reshape([6, 8])
    const centred = groups.sub(groups.mean(1, { keepdim: true }))
    const normed = centred
      .div(centred.square().mean(1, { keepdim: true }).add(1e-5).sqrt())
      .reshape([2, 6, 4])
    const column = (t: Tensor | null): Tensor => (t as Tensor).reshape([6, 1])
    expectClose(layer.forward(x), normed.mul(column(layer.weight)).add(column(layer.bias)), CLOSE)
    expect(new GroupNorm(3, 6, { affine: false }).parameters()).toEqual([])
  })

  it('activations', () => {
    const x = tensor([-2, -0.5, 0, 0.5, 2])
    const each = (f: (v: number) => number): number[] => values(x).map(f)
    const sigmoid = (v: number): number => 1 / (1 + Math.exp(-v))
    const tanhGelu = (v: number): number =>
      0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)))
    expectNumbers(
      values(new ReLU().forward(x)),
      each((v) => Math.max(v, 0)),
      CLOSE,
    )
    expectNumbers(values(new Tanh().forward(x)), each(Math.tanh), CLOSE)
    expectNumbers(values(new Sigmoid().forward(x)), each(sigmoid), CLOSE)
    expectNumbers(
      values(new SiLU().forward(x)),
      each((v) => v * sigmoid(v)),
      CLOSE,
    )
    expectNumbers(values(new GELU({ approximate: 'tanh' }).forward(x)), each(tanhGelu), CLOSE)
    // x Φ(x) from tables of the normal distribution, to seven digits.
    const exact = [-0.0455003, -0.1542688, 0, 0.3457312, 1.9544997]
    expectNumbers(values(new GELU().forward(x)), exact, { atol: 1e-6, rtol: 1e-6 })
  })

  it('MLP', () => {
    const mlp = new MLP(3, { hiddenDim: 5, activation: 'gelu_tanh' })
    const x = randn([2, 3])
    const hidden = x
      .matmul(mlp.c_fc.weight.T)
      .add(mlp.c_fc.bias as Tensor)
      .gelu({ approximate: 'tanh' })
    expectClose(mlp.forward(x), hidden.matmul(mlp.c_proj.weight.T).add(mlp.c_proj.bias as Tensor), CLOSE)
    expect(new MLP(3, { bias: false }).c_fc.weight.shape).toEqual([12, 3])
  })

  it('Sequential', () => {
    const [a, b] = [new Linear(3, 4), new Linear(4, 2)]
    const net = new Sequential(a, new Tanh(), b)
    const x = randn([2, 3])
    expectClose(net.forward(x), b.forward(a.forward(x).tanh()), CLOSE)
    expect([net.length, net[0], [...net].length]).toEqual([3, a, 3])
    expect(new Sequential().forward(x)).toBe(x)
  })
})

describe('Dropout', () => {
  it('drops with probability p and keeps the expectation', () => {
    const n = 10_000
    const y = values(new Dropout(0.25).forward(ones([n])))
    expect(new Set(y.map((v) => v.toFixed(4)))).toEqual(new Set(['0.0000', '1.3333']))
    const dropped = y.filter((v) => v === 0).length / n
    // A proportion of 10,000 has a deviation of 0.0043; four of them.
    expect(Math.abs(dropped - 0.25)).toBeLessThan(0.018)
  })

  it('backward uses the same mask', () => {
    const x = ones([100]).keep()
    x.requiresGrad = true
    const y = new Dropout(0.5).forward(x)
    const seen = values(y)
    y.sum().backward()
    expect(values(x.grad)).toEqual(seen)
  })

  it('does nothing in evaluation mode or for p = 0, and everything for p = 1', () => {
    const x = randn([9])
    expect(new Dropout(0.5).eval().forward(x)).toBe(x)
    expect(new Dropout(0).forward(x)).toBe(x)
    expect(values(new Dropout(1).forward(ones([9])))).toEqual(Array(9).fill(0))
  })
})

describe('gradients agree with finite differences, parameters included', () => {
  const cases: [string, () => Layer, Tensor | (() => Tensor)][] = [
    ['Linear', () => new Linear(4, 3), () => randn([2, 3, 4])],
    ['Linear without bias', () => new Linear(4, 3, { bias: false }), () => randn([2, 4])],
    ['LayerNorm', () => scrambled(new LayerNorm(5)), () => randn([3, 5])],
    [
      'LayerNorm without bias',
      () => scrambled(new LayerNorm([2, 3], { bias: false })),
      () => randn([2, 2, 3]),
    ],
    ['LayerNorm without weight', () => new LayerNorm(4, { elementwiseAffine: false }), () => randn([3, 4])],
    ['RMSNorm', () => scrambled(new RMSNorm(5)), () => randn([3, 5])],
    ['GroupNorm', () => scrambled(new GroupNorm(2, 4)), () => randn([2, 4, 3])],
    ['GELU', () => new GELU(), () => randn([7])],
    ['GELU by tanh', () => new GELU({ approximate: 'tanh' }), () => randn([7])],
    // Away from the kink at 0.
    ['ReLU', () => new ReLU(), () => tensor([-2, -0.5, 0.5, 2])],
    ['SiLU', () => new SiLU(), () => randn([7])],
    ['Tanh', () => new Tanh(), () => randn([7])],
    ['Sigmoid', () => new Sigmoid(), () => randn([7])],
    ['MLP', () => new MLP(3, { hiddenDim: 4 }), () => randn([2, 3])],
    ['Sequential', () => new Sequential(new Linear(3, 4), new Tanh(), new Linear(4, 2)), () => randn([2, 3])],
  ]
  it.each(cases)('%s', (_, make, input) => {
    gradcheckModule(make(), [typeof input === 'function' ? input() : input], forward)
  })

  it('Embedding', () => {
    const index = tensor(
      [
        [1, 0],
        [1, 3],
      ],
      { dtype: 'int32' },
    )
    gradcheckModule(new Embedding(4, 3), [], (table) => table.forward(index))
  })

  it('Dropout', () => {
    gradcheckModule(new Dropout(0.4), [randn([20])], (layer, x) => {
      // The same mask at every call.
      manualSeed(5)
      return layer.forward(x)
    })
  })
})

describe('errors', () => {
  const bad: [string, () => unknown, RegExp][] = [
    ['Linear size', () => new Linear(0, 3), /Linear: inFeatures must be a positive integer, got 0/],
    [
      'Linear input',
      () => new Linear(4, 3).forward(ones([2, 5])),
      /linear: input \[2, 5\] and weight \[3, 4\]/,
    ],
    ['Embedding size', () => new Embedding(2.5, 3), /numEmbeddings must be a positive integer, got 2.5/],
    ['padding row', () => new Embedding(4, 3, { paddingIdx: 4 }), /paddingIdx 4 must lie within −4 … 3/],
    ['Embedding input', () => new Embedding(4, 3).forward(ones([2])), /must be int32/],
    ['Embedding index', () => new Embedding(4, 3).forward(arange(5)), /index 4 is out of range/],
    ['LayerNorm shape', () => new LayerNorm([]), /at least one dim/],
    [
      'LayerNorm input',
      () => new LayerNorm(4).forward(ones([2, 5])),
      /\[4\] must be the last dims of the input \[2, 5\]/,
    ],
    ['RMSNorm size', () => new RMSNorm(-1), /normalizedShape\[0\] must be a positive integer, got -1/],
    ['GroupNorm groups', () => new GroupNorm(4, 6), /numChannels 6 must be a multiple of numGroups 4/],
    ['GroupNorm input', () => new GroupNorm(3, 6).forward(ones([2, 4])), /multiple of numGroups = 3/],
    ['Dropout', () => new Dropout(1.5), /must lie within 0 … 1, got 1.5/],
  ]
  it.each(bad)('%s', (_, run, message) => expect(run).toThrow(message))
})

it('moves to float64 and computes there', () => {
  const net = new Sequential(new Linear(3, 3), new LayerNorm(3)).to('float64')
  expect(net.forward(randn([2, 3], { dtype: 'float64' })).dtype).toBe('float64')
})
