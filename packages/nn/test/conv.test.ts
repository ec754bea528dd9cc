import {
  autocast,
  batchNorm,
  checkpoint,
  compile,
  conv2d,
  manualSeed,
  memory,
  ones,
  pad,
  randn,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '@tilegrad/core'
import {
  AdaptiveAvgPool2d,
  AdaptiveMaxPool1d,
  AvgPool1d,
  AvgPool2d,
  BatchNorm1d,
  BatchNorm2d,
  Conv1d,
  Conv2d,
  ConvTranspose1d,
  ConvTranspose2d,
  Fold,
  type Layer,
  Linear,
  MaxPool1d,
  MaxPool2d,
  ReLU,
  Sequential,
  SGD,
  Unfold,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { gradcheckModule, values } from './helpers.ts'

beforeEach(() => manualSeed(12))

const check = (layer: Layer, x: Tensor): void => gradcheckModule(layer, [x], (m, x) => m.forward(x))
const names = (module: { stateDict(): object }): string[] => Object.keys(module.stateDict())

describe('convolutions', () => {
  it('have the parameters of PyTorch, and start as they do there', () => {
    const layer = new Conv2d(4, 64, [3, 5], { groups: 2 })
    expect(names(layer)).toEqual(['weight', 'bias'])
    expect(layer.weight.shape).toEqual([64, 2, 3, 5])
    // Uniform within ±1/√30: 1920 numbers come near the ends, and have a third of the square for variance.
    const bound = 1 / Math.sqrt(30)
    for (const p of layer.parameters()) {
      const list = values(p).map(Math.abs)
      expect(Math.max(...list)).toBeLessThanOrEqual(bound)
      expect(Math.max(...list)).toBeGreaterThan(0.9 * bound)
    }
    const square = values(layer.weight).reduce((s, v) => s + v * v, 0) / layer.weight.numel
    expect(square / (bound * bound)).toBeCloseTo(1 / 3, 1)
    expect(names(new Conv1d(2, 3, 3, { bias: false }))).toEqual(['weight'])
  })

  it('print as in PyTorch', () => {
    expect(String(new Conv1d(2, 4, 3))).toBe('Conv1d(2, 4, kernelSize=(3,), stride=(1,))')
    expect(
      String(
        new Conv2d(2, 4, 3, { padding: 'same', dilation: 2, groups: 2, bias: false, paddingMode: 'reflect' }),
      ),
    ).toBe(
      "Conv2d(2, 4, kernelSize=(3, 3), stride=(1, 1), padding='same', dilation=(2, 2), groups=2, bias=false, paddingMode='reflect')",
    )
  })

  it('are turned round with the parameters of PyTorch', () => {
    const layer = new ConvTranspose2d(4, 6, 3, { stride: 2, padding: 1, outputPadding: [1, 0], groups: 2 })
    expect(layer.weight.shape).toEqual([4, 3, 3, 3])
    expect(layer.forward(randn([2, 4, 5, 5])).shape).toEqual([2, 6, 10, 9])
    const bound = 1 / Math.sqrt(27)
    expect(Math.max(...layer.parameters().flatMap(values).map(Math.abs))).toBeLessThanOrEqual(bound)
    expect(String(layer)).toBe(
      'ConvTranspose2d(4, 6, kernelSize=(3, 3), stride=(2, 2), padding=(1, 1), outputPadding=(1, 0), groups=2)',
    )
    expect(String(new ConvTranspose1d(2, 2, 3, { bias: false }))).toBe(
      'ConvTranspose1d(2, 2, kernelSize=(3,), stride=(1,), bias=false)',
    )
    check(new ConvTranspose1d(2, 3, 3, { stride: 2 }), randn([2, 2, 3]))
    expect(() => new ConvTranspose1d(2, 3, 3, { groups: 2 })).toThrow(/groups 2 must divide/)
    expect(() => new ConvTranspose1d(2, 3, 3, { outputPadding: 1 }).forward(randn([2, 4]))).toThrow(
      /outputPadding 1 must be smaller/,
    )
  })

  it('pad by the mode that is asked for', () => {
    const x = randn([2, 2, 5, 4])
    const layer = new Conv2d(2, 3, [2, 3], { padding: [0, 1], paddingMode: 'circular' })
    const whole = pad(x, [1, 1, 0, 0], { mode: 'circular' })
    expect(values(layer.forward(x))).toEqual(values(conv2d(whole, layer.weight, layer.bias)))
    const same = new Conv2d(2, 3, [2, 3], { padding: 'same', paddingMode: 'replicate' })
    expect(same.forward(x).shape).toEqual([2, 3, 5, 4])
  })

  it('have right gradients', () => {
    check(new Conv1d(2, 3, 3, { padding: 1, stride: 2 }), randn([2, 2, 6]))
    check(new Conv2d(2, 2, 2, { paddingMode: 'reflect', padding: 1 }), randn([1, 2, 3, 3]))
  })

  it.each([
    [() => new Conv2d(3, 4, 3, { groups: 2 }), /groups 2 must divide inChannels 3 and outChannels 4/],
    [() => new Conv2d(3, 4, 0), /kernelSize must be a whole number ≥ 1/],
    [() => new Conv2d(3, 4, 3, { padding: 'same', stride: 2 }), /needs a stride of 1/],
    [() => new Conv2d(3, 4, 3, { paddingMode: 'mirror' as 'reflect' }), /paddingMode must be .*got 'mirror'/],
    [() => new Conv2d(3, 4, 3, { kernel: 3 } as object), /there is no option 'kernel'/],
    [() => new Conv2d(3, -4, 3), /outChannels must be a positive integer/],
  ])('refuse with words: %s', (make, message) => {
    expect(make).toThrow(message)
  })
})

describe('pools', () => {
  it('print as in PyTorch, and are as large', () => {
    const layers = [
      new MaxPool1d(3, { stride: 2, padding: 1 }),
      new MaxPool2d(2),
      new AvgPool1d(2),
      new AvgPool2d([2, 1], { countIncludePad: false }),
      new AdaptiveAvgPool2d([1, null]),
      new AdaptiveMaxPool1d(2),
    ]
    expect(layers.map(String)).toEqual([
      'MaxPool1d(kernelSize=3, stride=2, padding=1, dilation=1, ceilMode=false)',
      'MaxPool2d(kernelSize=2, stride=2, padding=0, dilation=1, ceilMode=false)',
      'AvgPool1d(kernelSize=2, stride=2, padding=0)',
      'AvgPool2d(kernelSize=(2, 1), stride=(2, 1), padding=0)',
      'AdaptiveAvgPool2d(outputSize=(1, null))',
      'AdaptiveMaxPool1d(outputSize=2)',
    ])
    const shapes = layers.map(
      (layer, i) => layer.forward(randn([2, 3, 8, 8].slice(0, [3, 4, 3, 4, 4, 3][i]))).shape,
    )
    expect(shapes).toEqual([
      [2, 3, 4],
      [2, 3, 4, 4],
      [2, 3, 4],
      [2, 3, 4, 8],
      [2, 3, 1, 8],
      [2, 3, 2],
    ])
    expect(layers.flatMap(names)).toEqual([])
  })
})

describe('windows', () => {
  it('are laid out and added up again', () => {
    const x = randn([2, 3, 4, 6])
    const [unfold, fold] = [
      new Unfold([2, 3], { stride: [2, 3] }),
      new Fold([4, 6], [2, 3], { stride: [2, 3] }),
    ]
    expect(unfold.forward(x).shape).toEqual([2, 18, 4])
    expect(values(fold.forward(unfold.forward(x)))).toEqual(values(x))
    expect(String(unfold)).toBe('Unfold(kernelSize=(2, 3), dilation=1, padding=0, stride=(2, 3))')
    expect(String(new Fold(4, 2))).toBe('Fold(outputSize=4, kernelSize=2, dilation=1, padding=0, stride=1)')
    expect(() => new Fold(4, 2).forward(randn([2, 4, 8]))).toThrow(/must be \(N, C · 4, 9\)/)
  })
})

describe('batch normalisation', () => {
  it('keeps running statistics by the names of PyTorch', async () => {
    const layer = new BatchNorm2d(2, { momentum: 0.2 })
    expect(names(layer)).toEqual(['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'])
    expect(layer.num_batches_tracked?.dtype).toBe('int32')
    expect(String(layer)).toBe(
      'BatchNorm2d(2, eps=0.00001, momentum=0.2, affine=true, trackRunningStats=true)',
    )
    const x = randn([4, 2, 3, 3], { mean: 3 })
    const [mean, variance] = [zeros([2]), ones([2])]
    const y = layer.forward(x)
    const options = { training: true, momentum: 0.2 }
    expect(values(y)).toEqual(values(batchNorm(x, mean, variance, layer.weight, layer.bias, options)))
    expect(values(layer.running_mean as Tensor)).toEqual(values(mean))
    expect(values(layer.running_var as Tensor)).toEqual(values(variance))
    layer.eval()
    expect(values(layer.forward(x))).toEqual(values(batchNorm(x, mean, variance, layer.weight, layer.bias)))
    expect(values(layer.running_mean as Tensor)).toEqual(values(mean))
    expect(await layer.num_batches_tracked?.item()).toBe(1)
    const other = new BatchNorm2d(2)
    other.loadStateDict(layer.stateDict())
    expect(values(other.eval().forward(x))).toEqual(values(layer.forward(x)))
    layer.resetRunningStats()
    expect(values(layer.running_var as Tensor)).toEqual([1, 1])
  })

  it('takes the mean of all batches without momentum', () => {
    const layer = new BatchNorm1d(1, { momentum: null, affine: false })
    for (const [a, b] of [
      [1, 3],
      [2, 8],
      [0, 10],
    ])
      layer.forward(tensor([[a], [b]]))
    // Means 2, 5, 5 and variances 2, 18, 50: running means of three numbers in float32.
    expect(values(layer.running_mean as Tensor)[0]).toBeCloseTo(4, 5)
    expect(values(layer.running_var as Tensor)[0]).toBeCloseTo(70 / 3, 4)
    expect(names(layer)).toEqual(['running_mean', 'running_var', 'num_batches_tracked'])
  })

  it('normalises by the batch where it keeps no statistics, also in evaluation', () => {
    const layer = new BatchNorm1d(3, { trackRunningStats: false }).eval()
    expect(names(layer)).toEqual(['weight', 'bias'])
    const y = layer.forward(randn([16, 3], { mean: 5 }))
    // Sums of 16 numbers of order 1.
    expect(Math.max(...values(y.mean(0)).map(Math.abs))).toBeLessThan(1e-5)
  })

  it('has right gradients', () => {
    check(new BatchNorm1d(2), randn([4, 2]))
    check(new BatchNorm1d(2).eval(), randn([2, 2, 3]))
  })

  it('counts a batch once, in a checkpoint, in compile and in mixed precision', async () => {
    for (const momentum of [0.1, null]) {
      const results: number[][] = []
      for (const way of ['plain', 'checkpoint', 'compile', 'autocast']) {
        manualSeed(3)
        const layer = new BatchNorm2d(2, { momentum })
        const model = new Sequential(new Conv2d(1, 2, 3), layer, new ReLU())
        const optimizer = new SGD(model.parameters(), { lr: 0.01 })
        const forward = (x: Tensor): Tensor => model.forward(x)
        const step = (x: Tensor): void => {
          const y =
            way === 'checkpoint'
              ? checkpoint(forward, x)
              : way === 'autocast'
                ? autocast('bfloat16', () => forward(x))
                : forward(x)
          y.square().mean().backward()
          optimizer.step()
          optimizer.zeroGrad()
        }
        const run = way === 'compile' ? compile(step) : step
        for (let i = 0; i < 4; i++) scope(() => run(randn([2, 1, 6, 6])))
        expect(await layer.num_batches_tracked?.item(), way).toBe(4)
        expect(layer.running_mean?.dtype).toBe('float32')
        results.push([layer.running_mean, layer.running_var].flatMap((t) => values(t as Tensor)))
      }
      const [plain, ...others] = results
      // Fused code rounds elsewhere; products of 16 bits miss by some 2⁻⁹.
      for (const [i, list] of others.entries())
        for (const [j, v] of list.entries())
          expect(Math.abs(v - plain[j])).toBeLessThan(i === 2 ? 0.02 : 1e-5)
    }
  })

  it('moves with its module', () => {
    const layer = new BatchNorm1d(2).to('float64')
    expect(layer.running_mean?.dtype).toBe('float64')
    expect(layer.num_batches_tracked?.dtype).toBe('int32')
    layer.forward(randn([4, 2], { dtype: 'float64' }))
    expect(values(layer.running_mean as Tensor).some((v) => v !== 0)).toBe(true)
  })

  it('trains in a scope without growing', () => {
    const model = new Sequential(
      new Conv2d(1, 4, 3, { padding: 1 }),
      new BatchNorm2d(4, { momentum: null }),
      new MaxPool2d(2),
    )
    const head = new Linear(4 * 9, 2)
    const optimizer = new SGD([...model.parameters(), ...head.parameters()], { lr: 0.01 })
    const step = (): void =>
      scope(() => {
        head
          .forward(model.forward(randn([2, 1, 6, 6])).flatten(1))
          .square()
          .mean()
          .backward()
        optimizer.step()
        optimizer.zeroGrad()
      })
    step()
    const { tensors, bytes } = memory()
    for (let i = 0; i < 5; i++) step()
    expect(memory()).toMatchObject({ tensors, bytes })
  })

  it('refuses with words', () => {
    expect(() => new BatchNorm2d(3).forward(randn([2, 3]))).toThrow(/BatchNorm2d: .* must be \(N, C, H, W\)/)
    expect(() => new BatchNorm1d(3).forward(randn([2, 3, 4, 4]))).toThrow(/must be \(N, C\) or \(N, C, L\)/)
    expect(() => new BatchNorm1d(3).forward(randn([2, 4]))).toThrow(/must have 3 channels in dim 1/)
    expect(() => new BatchNorm1d(3, { momentum: '0.1' as unknown as number })).toThrow(/momentum is a number/)
    expect(() => new BatchNorm1d(0)).toThrow(/numFeatures must be a positive integer/)
  })
})
