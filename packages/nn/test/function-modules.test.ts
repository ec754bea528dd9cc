import * as core from '@tilegrad/core'
import { manualSeed, noGrad, rand, randn, type Tensor, TilegradError, tensor, zeros } from '@tilegrad/core'
import * as nn from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { expectNumbers, gradcheckModule, values } from './helpers.ts'

beforeEach(() => manualSeed(3))

const away = (): Tensor => tensor([-7, -2.5, -0.7, -0.2, 0.3, 0.6, 2.2, 21])

const activations: [string, nn.Layer, (x: Tensor) => Tensor][] = [
  ['ReLU()', new nn.ReLU(), core.relu],
  ['ReLU6()', new nn.ReLU6(), core.relu6],
  ['SiLU()', new nn.SiLU(), core.silu],
  ['Tanh()', new nn.Tanh(), core.tanh],
  ['Sigmoid()', new nn.Sigmoid(), core.sigmoid],
  ['LogSigmoid()', new nn.LogSigmoid(), core.logsigmoid],
  ['Hardsigmoid()', new nn.Hardsigmoid(), core.hardsigmoid],
  ['Hardswish()', new nn.Hardswish(), core.hardswish],
  ['Mish()', new nn.Mish(), core.mish],
  ['SELU()', new nn.SELU(), core.selu],
  ['Softsign()', new nn.Softsign(), core.softsign],
  ['Tanhshrink()', new nn.Tanhshrink(), core.tanhshrink],
  ["GELU(approximate='none')", new nn.GELU(), core.gelu],
  [
    "GELU(approximate='tanh')",
    new nn.GELU({ approximate: 'tanh' }),
    (x) => core.gelu(x, { approximate: 'tanh' }),
  ],
  ['ELU(alpha=1)', new nn.ELU(), core.elu],
  ['ELU(alpha=0.5)', new nn.ELU({ alpha: 0.5 }), (x) => core.elu(x, { alpha: 0.5 })],
  ['CELU(alpha=2)', new nn.CELU({ alpha: 2 }), (x) => core.celu(x, { alpha: 2 })],
  ['LeakyReLU(negativeSlope=0.01)', new nn.LeakyReLU(), core.leakyRelu],
  [
    'LeakyReLU(negativeSlope=0.2)',
    new nn.LeakyReLU({ negativeSlope: 0.2 }),
    (x) => core.leakyRelu(x, { negativeSlope: 0.2 }),
  ],
  ['Hardtanh(minVal=-1, maxVal=1)', new nn.Hardtanh(), core.hardtanh],
  [
    'Hardtanh(minVal=-0.5, maxVal=2)',
    new nn.Hardtanh({ minVal: -0.5, maxVal: 2 }),
    (x) => core.hardtanh(x, { minVal: -0.5, maxVal: 2 }),
  ],
  ['Softplus(beta=1, threshold=20)', new nn.Softplus(), core.softplus],
  ['Softplus(beta=2, threshold=3)', new nn.Softplus({ beta: 2, threshold: 3 }), softplus3],
  ['Softshrink(lambd=0.5)', new nn.Softshrink(), core.softshrink],
  ['Softmax(dim=0)', new nn.Softmax(0), (x) => x.softmax(0)],
  ['LogSoftmax(dim=-1)', new nn.LogSoftmax(-1), (x) => x.logSoftmax(-1)],
  ['Softmin(dim=-1)', new nn.Softmin(-1), (x) => x.softmin(-1)],
  ['GLU(dim=-1)', new nn.GLU(), core.glu],
  ['Threshold(threshold=0.1, value=-3)', new nn.Threshold(0.1, -3), (x) => x.threshold(0.1, -3)],
  ['PReLU(numParameters=1)', new nn.PReLU(), (x) => x.prelu(tensor([0.25]))],
]

function softplus3(x: Tensor): Tensor {
  return core.softplus(x, { beta: 2, threshold: 3 })
}

describe('activations', () => {
  it.each(activations)('%s is the function, and prints itself', (shown, module, fn) => {
    expect(String(module)).toBe(shown)
    // The same operator: no tolerance.
    expect(values(module.forward(away()))).toEqual(values(fn(away())))
    gradcheckModule(module, [away()], (m, x) => m.forward(x))
  })

  it('run in a Sequential, and have no state', () => {
    const net = new nn.Sequential(new nn.Mish(), new nn.GLU(1), new nn.Softmax(-1))
    expect(net.forward(randn([3, 8])).shape).toEqual([3, 4])
    expect(net.stateDict()).toEqual({})
    expect(String(net)).toBe('Sequential(\n  (0): Mish()\n  (1): GLU(dim=1)\n  (2): Softmax(dim=-1)\n)')
  })

  it('PReLU learns a slope for each channel, under the name of PyTorch', () => {
    const layer = new nn.PReLU({ numParameters: 3, init: 0.5 })
    expect(Object.keys(layer.stateDict())).toEqual(['weight'])
    noGrad(() => layer.weight.copy_(tensor([0, 0.5, 2])))
    expect(values(layer.forward(tensor([[-1, -1, -1]])))).toEqual([-0, -0.5, -2])
    layer.resetParameters()
    expect(values(layer.weight)).toEqual([0.5, 0.5, 0.5])
    expect(String(layer)).toBe('PReLU(numParameters=3)')
    gradcheckModule(layer, [randn([2, 3, 4])], (m, x) => m.forward(x))
  })

  it('of a half have results of that half', () => {
    for (const [, module] of activations) {
      const half = module instanceof nn.PReLU ? new nn.PReLU().to('float16') : module
      expect(half.forward(randn([4]).to('float16')).dtype).toBe('float16')
    }
  })
})

const x = (): Tensor => randn([4, 3])
const p = (): Tensor => rand([4, 3], { low: 0.1, high: 0.9 })
const classes = (): Tensor => tensor([2, 0, 1, 2], { dtype: 'int32' })
const signs = (): Tensor => tensor([1, -1, 1, 1])
const w = (): Tensor => tensor([1, 2, 0.5])

type Loss = nn.Module & { forward(...inputs: Tensor[]): Tensor }
type Case = [string, nn.Module, readonly Tensor[], (...inputs: never[]) => Tensor]
const loss = (shown: string, module: nn.Module, inputs: readonly Tensor[], fn: Case[3]): Case => [
  shown,
  module,
  inputs,
  fn,
]
const sum = { reduction: 'sum' } as const
const losses: Case[] = [
  loss('CrossEntropyLoss()', new nn.CrossEntropyLoss(), [x(), classes()], core.crossEntropy),
  loss(
    'CrossEntropyLoss(weight=[3], ignoreIndex=1, labelSmoothing=0.1)',
    new nn.CrossEntropyLoss({ weight: w(), ignoreIndex: 1, labelSmoothing: 0.1 }),
    [x(), classes()],
    (a, b) => core.crossEntropy(a, b, { weight: w(), ignoreIndex: 1, labelSmoothing: 0.1 }),
  ),
  loss(
    "NLLLoss(weight=[3], reduction='sum')",
    new nn.NLLLoss({ weight: w(), ...sum }),
    [x(), classes()],
    (a, b) => core.nllLoss(a, b, { weight: w(), ...sum }),
  ),
  loss('MSELoss()', new nn.MSELoss(), [x(), x()], core.mseLoss),
  loss(
    "MSELoss(reduction='none')",
    new nn.MSELoss({ reduction: 'none' }),
    [x(), x()],
    (a: Tensor, b: Tensor) => a.sub(b).square(),
  ),
  loss('L1Loss()', new nn.L1Loss(), [x(), x()], core.l1Loss),
  loss('SmoothL1Loss(beta=0.5)', new nn.SmoothL1Loss({ beta: 0.5 }), [x(), x()], (a, b) =>
    core.smoothL1Loss(a, b, { beta: 0.5 }),
  ),
  loss('HuberLoss(delta=0.3)', new nn.HuberLoss({ delta: 0.3 }), [x(), x()], (a, b) =>
    core.huberLoss(a, b, { delta: 0.3 }),
  ),
  loss("BCELoss(weight=[3], reduction='sum')", new nn.BCELoss({ weight: w(), ...sum }), [p(), p()], (a, b) =>
    core.binaryCrossEntropy(a, b, { weight: w(), ...sum }),
  ),
  loss('BCEWithLogitsLoss(posWeight=[3])', new nn.BCEWithLogitsLoss({ posWeight: w() }), [x(), p()], (a, b) =>
    core.binaryCrossEntropyWithLogits(a, b, { posWeight: w() }),
  ),
  loss(
    "KLDivLoss(reduction='batchmean')",
    new nn.KLDivLoss({ reduction: 'batchmean' }),
    [p().log(), p()],
    (a, b) => core.klDiv(a, b, { reduction: 'batchmean' }),
  ),
  loss(
    'CosineEmbeddingLoss(margin=0.1)',
    new nn.CosineEmbeddingLoss({ margin: 0.1 }),
    [x(), x(), signs()],
    (a, b, c) => core.cosineEmbeddingLoss(a, b, c, { margin: 0.1 }),
  ),
  loss(
    'MarginRankingLoss(margin=0.2)',
    new nn.MarginRankingLoss({ margin: 0.2 }),
    [randn([4]), randn([4]), signs()],
    (a, b, c) => core.marginRankingLoss(a, b, c, { margin: 0.2 }),
  ),
  loss(
    'TripletMarginLoss(p=1, swap=true)',
    new nn.TripletMarginLoss({ p: 1, swap: true }),
    [x(), x(), x()],
    (a, b, c) => core.tripletMarginLoss(a, b, c, { p: 1, swap: true }),
  ),
  loss('CosineSimilarity(dim=0)', new nn.CosineSimilarity({ dim: 0 }), [x(), x()], (a, b) =>
    core.cosineSimilarity(a, b, { dim: 0 }),
  ),
  loss('PairwiseDistance(keepdim=true)', new nn.PairwiseDistance({ keepdim: true }), [x(), x()], (a, b) =>
    core.pairwiseDistance(a, b, { keepdim: true }),
  ),
]

describe('losses and distances', () => {
  it.each(losses)('%s is the function, and prints what is not usual', (shown, module, inputs, fn) => {
    expect(String(module)).toBe(shown)
    const out = (module as Loss).forward(...inputs)
    const expected = (fn as Loss['forward'])(...inputs)
    expect(out.shape).toEqual(expected.shape)
    // The same operators but where a case is written out: a rounding.
    expectNumbers(values(out), values(expected), { atol: 1e-7, rtol: 1e-6 })
    expect(Number.isNaN(values(out)[0])).toBe(false)
  })

  it('have their options as properties', () => {
    const made = new nn.CrossEntropyLoss({ reduction: 'none' })
    const smoothing: number = made.labelSmoothing
    expect([made.reduction, smoothing, made.weight, made.ignoreIndex]).toEqual(['none', 0, null, -100])
    expect(made.forward(x(), classes()).shape).toEqual([4])
    // What is undefined is not given.
    expect(new nn.ELU({ alpha: undefined } as never).alpha).toBe(1)
  })

  it('keep a weight as a buffer, which moves with the module', () => {
    const made = new nn.CrossEntropyLoss({ weight: w() })
    expect(Object.keys(made.stateDict())).toEqual(['weight'])
    expect(made.parameters()).toEqual([])
    made.to('float64')
    expect(made.weight?.dtype).toBe('float64')
    expect(made.forward(x().to('float64'), classes()).dtype).toBe('float64')
    expect(new nn.CrossEntropyLoss().stateDict()).toEqual({})
  })

  it('take rows of numbers for classes, as the functions do', () => {
    expect(new nn.CrossEntropyLoss().forward(zeros([2, 3]), [0, 2]).shape).toEqual([])
  })
})

it.each([
  ['alpha by place', () => new nn.ELU(2 as never), 'ELU: options are an object such as { alpha: … }, got 2'],
  ['negative_slope', () => new nn.LeakyReLU({ negative_slope: 1 } as never), "did you mean 'negativeSlope'?"],
  ['label_smoothing', () => new nn.CrossEntropyLoss({ label_smoothing: 1 } as never), "'labelSmoothing'?"],
  ['a class for options', () => new nn.MSELoss('sum' as never), 'MSELoss: options are an object such as'],
  [
    'dim by name',
    () => new nn.Softmax({ dim: 1 } as never),
    'Softmax: dim must be an integer, got an object with dim; expected new Softmax(-1)',
  ],
  ['no dim', () => new (nn.LogSoftmax as new () => nn.LogSoftmax)(), 'LogSoftmax: dim must be an integer'],
  ['a name of a GELU', () => new nn.GELU('tanh' as never), 'GELU: options are an object'],
  ['no value', () => new nn.Threshold(1, undefined as never), 'Threshold: value must be a number'],
  ['slopes by place', () => new nn.PReLU(3 as never), 'PReLU: options are an object'],
  ['no slope', () => new nn.PReLU({ numParameters: 0 }), 'numParameters must be a positive integer, got 0'],
])('refuses %s', (_, f, message) => {
  expect(f).toThrow(message)
  expect(f).toThrow(TilegradError)
})
