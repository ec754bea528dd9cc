import { describe, expect, it } from 'vitest'
import {
  adaptiveAvgPool2d,
  arange,
  autocast,
  avgPool1d,
  avgPool2d,
  batchNorm,
  checkLeaks,
  checkpoint,
  compile,
  conv1d,
  conv2d,
  full,
  grad,
  manualSeed,
  maxPool1d,
  maxPool2d,
  memory,
  noGrad,
  ones,
  randn,
  resetPeakMemory,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../src/index.ts'

const values = (t: Tensor): number[] => Array.from(t.dataSync())
/** Largest difference of two tensors. */
const apart = (a: Tensor, b: Tensor): number => a.sub(b).abs().max().itemSync()

describe('convolution', () => {
  it('counts as the formula says: PyTorch 2.11', () => {
    const x = arange(16).reshape(1, 1, 4, 4).to('float32')
    const w = tensor([
      [
        [
          [1, 2],
          [3, 4],
        ],
      ],
    ])
    expect(values(conv2d(x, w))).toEqual([34, 44, 54, 74, 84, 94, 114, 124, 134])
    expect(values(conv2d(x, w, tensor([100]), { stride: 2 }))).toEqual([134, 154, 214, 234])
    // An even window puts the odd zero behind.
    expect(values(conv1d(tensor([[1, 2, 3]]), tensor([[[1, 10]]]), null, { padding: 'same' }))).toEqual([
      21, 32, 3,
    ])
    expect(values(conv1d(tensor([[1, 2, 3, 4, 5]]), tensor([[[1, 10]]]), null, { dilation: 3 }))).toEqual([
      41, 52,
    ])
  })

  it('gives samples that are computed in turns what they get alone, and their sums to the weight', () => {
    manualSeed(1)
    // 1.3 million elements of windows in each sample: more than are laid out at a time.
    const x = randn([3, 13, 64, 64], { requiresGrad: true })
    const w = randn([2, 13, 5, 5], { requiresGrad: true })
    const b = randn([2], { requiresGrad: true })
    const options = { padding: 2 }
    const y = conv2d(x, w, b, options)
    const g = randn(y.shape)
    const [dx, dw, db] = grad(y, [x, w, b], { gradOutputs: [g] })
    let [sumW, sumB] = [zeros(w.shape), zeros(b.shape)]
    for (let i = 0; i < 3; i++) {
      const one = x.detach().narrow(0, i, 1).contiguous()
      one.requiresGrad = true
      const alone = conv2d(one, w, b, options)
      const [di, wi, bi] = grad(alone, [one, w, b], { gradOutputs: [g.narrow(0, i, 1)] })
      // The same products in the same order.
      expect(apart(y.narrow(0, i, 1), alone)).toBe(0)
      expect(apart(dx.narrow(0, i, 1), di)).toBe(0)
      sumW = sumW.add(wi)
      sumB = sumB.add(bi)
    }
    // Sums of 4096 terms of order 1 three times, in float32: some 1e-6 of √12288 · 5.
    expect(apart(dw, sumW)).toBeLessThan(2e-3)
    expect(apart(db, sumB)).toBeLessThan(2e-3)
  })

  it('lays windows out for a few samples at a time', () => {
    const x = randn([64, 16, 32, 32])
    const w = randn([4, 16, 3, 3])
    resetPeakMemory()
    const before = memory().bytes
    const y = scope(() => conv2d(x, w, null, { padding: 1 }))
    const own = memory().peakBytes - before - 4 * y.numel
    // All windows would be 37.7 MB.
    expect(own).toBeLessThan(10e6)
    for (const t of [x, w, y]) t.dispose()
  })

  it('takes one element at a time as a product, without windows', () => {
    const x = randn([2, 4, 3, 3])
    const w = randn([5, 4, 1, 1])
    const expected = w
      .reshape(5, 4)
      .matmul(x.reshape(2, 4, 9))
      .reshape(2, 5, 3, 3)
    expect(apart(conv2d(x, w), expected)).toBe(0)
  })

  it('computes in 16 bits in autocast, whose weights get their gradient in float32', () => {
    const x = randn([2, 3, 5, 5])
    const w = randn([4, 3, 3, 3], { requiresGrad: true })
    const b = ones([4], { requiresGrad: true })
    const y = autocast('bfloat16', () => conv2d(x, w, b, { padding: 1 }))
    expect(y.dtype).toBe('bfloat16')
    // 27 products of order 1 of operands that miss by 2⁻⁹, rounded to 8 bits.
    expect(apart(y.to('float32'), conv2d(x, w, b, { padding: 1 }))).toBeLessThan(0.2)
    const [dw, db] = grad(y.to('float32').sum(), [w, b])
    expect([dw.dtype, db.dtype]).toEqual(['float32', 'float32'])
    expect(values(db)).toEqual([50, 50, 50, 50])
  })

  it('leaves nothing behind', () => {
    const x = randn([2, 4, 6, 6], { requiresGrad: true })
    const w = randn([4, 2, 3, 3], { requiresGrad: true })
    const b = zeros([4], { requiresGrad: true })
    checkLeaks(() =>
      scope(() => {
        const y = conv2d(x, w, b, { groups: 2, padding: 1 })
        const z = batchNorm(maxPool2d(y, 3, { stride: 2, padding: 1 }), null, null, null, null, {
          training: true,
        })
        for (const t of grad(avgPool2d(z, 2).sum(), [x, w, b])) t.dispose()
      }),
    )
  })

  it.each([
    [
      () => conv2d(randn([2, 3, 5]), randn([4, 3, 3, 3])),
      /conv2d: weight \[4, 3, 3, 3\] does not fit the input \[1, 2, 3, 5\]/,
    ],
    [
      () => conv2d(randn([5, 5]), randn([4, 3, 3, 3])),
      /conv2d: the input \[5, 5\] must be \(N, C, H, W\) or/,
    ],
    [
      () => conv2d(randn([1, 4, 5, 5]), randn([4, 3, 3, 3])),
      /weight \[4, 3, 3, 3\].*expected \[outChannels, 4, /,
    ],
    [
      () => conv2d(randn([1, 3, 5, 5]), randn([4, 3, 7, 7])),
      /a window over 7 elements is larger than dim -2/,
    ],
    [() => conv2d(randn([1, 3, 5, 5]), randn([4, 3, 3, 3]), randn([3])), /bias \[3\].*expected \[4\]/],
    [
      () => conv2d(randn([1, 3, 5, 5]), randn([4, 1, 3, 3]), null, { groups: 2 }),
      /groups must be .* divides the 3/,
    ],
    [
      () => conv2d(randn([1, 3, 5, 5]), randn([4, 3, 3, 3]), null, { padding: 'same', stride: 2 }),
      /needs a stride of 1/,
    ],
    [
      () => conv2d(randn([1, 3, 5, 5]), randn([4, 3, 3, 3]), null, { padding: 'full' as 'same' }),
      /'same' or 'valid', got 'full'/,
    ],
    [
      () => conv2d(randn([1, 3, 5, 5]), randn([4, 3, 3, 3]), null, { stride: 0 }),
      /stride must be a whole number ≥ 1.*got 0/,
    ],
    [
      () => conv2d(randn([1, 3, 5, 5]), randn([4, 3, 3, 3]), null, { strides: 2 } as object),
      /did you mean 'stride'/,
    ],
    [() => conv1d(arange(6).reshape(2, 3), randn([4, 2, 3])), /takes floating tensors, not int32/],
    [() => maxPool2d(randn([1, 4, 4]), 2, { padding: 2 }), /padding 2 must be at most half/],
    [
      () => maxPool2d(randn([1, 4, 4]), [2, 2, 2]),
      /kernelSize must be .* or 2 of them, got an array \[2, 2, 2\]/,
    ],
    [() => adaptiveAvgPool2d(randn([1, 4, 4]), 0), /outputSize must be a whole number ≥ 1/],
  ])('refuses with words: %s', (call, message) => {
    expect(call).toThrow(message)
  })
})

describe('pools', () => {
  it('give the gradient to the first of equal elements, row by row', () => {
    const x = tensor(
      [
        [
          [1, 5, 2, 2],
          [5, 0, 2, 2],
        ],
      ],
      { requiresGrad: true },
    )
    const y = maxPool2d(x, 2)
    expect(values(y)).toEqual([5, 2])
    expect(values(grad(y.sum(), [x])[0])).toEqual([0, 1, 1, 0, 0, 0, 0, 0])
  })

  it('add the gradients of windows that overlap', () => {
    const x = tensor([[0, 3, 1, 2]], { requiresGrad: true })
    expect(values(grad(maxPool1d(x, 3, { stride: 1 }).sum(), [x])[0])).toEqual([0, 2, 0, 0])
    expect(values(grad(avgPool1d(x, 2, { stride: 1 }).sum(), [x])[0])).toEqual([0.5, 1, 1, 0.5])
  })

  it('take NaN for the largest, and nothing of the padding', () => {
    expect(values(maxPool1d(tensor([[1, NaN, 3, -4]]), 2))).toEqual([NaN, 3])
    expect(values(maxPool1d(tensor([[-1, -2, -3]]), 3, { padding: 1 }))).toEqual([-1])
  })

  it('divide by the elements that there are, with or without padding, never by what ceilMode adds', () => {
    const x = tensor([[1, 2, 3, 4, 5]])
    const options = { stride: 2, padding: 1, ceilMode: true }
    expect(values(avgPool1d(x, 2, options))).toEqual([0.5, 2.5, 4.5])
    expect(values(avgPool1d(x, 2, { ...options, countIncludePad: false }))).toEqual([1, 2.5, 4.5])
    expect(values(avgPool1d(x, 2, { stride: 2, ceilMode: true }))).toEqual([1.5, 3.5, 5])
  })

  it('do not mix what lies outside of a window into it', () => {
    const x = tensor([[1, Infinity, 3, 4, NaN]])
    expect(values(avgPool1d(x, 1))).toEqual([1, Infinity, 3, 4, NaN])
    expect(values(adaptiveAvgPool2d(x.reshape(1, 1, 5), [1, 3]))).toEqual([Infinity, Infinity, NaN])
  })
})

describe('batch normalisation', () => {
  it('moves running statistics in place, the variance that of a sample', () => {
    const [mean, variance] = [zeros([2]), ones([2])]
    const x = tensor([
      [1, 10],
      [3, 10],
    ])
    const y = batchNorm(x, mean, variance, null, null, { training: true, momentum: 0.5, eps: 1e-12 })
    expect(values(y)).toEqual([-1, 0, 1, 0])
    expect(values(mean)).toEqual([1, 5])
    // Half of 1 and half of 2, and of 0.
    expect(values(variance)).toEqual([1.5, 0.5])
    const z = batchNorm(x, mean, variance, full([2], 2), ones([2]), { eps: 0 })
    expect(values(z).map((v) => Number(v.toFixed(4)))).toEqual([1, 15.1421, 4.266, 15.1421])
    expect(values(mean)).toEqual([1, 5])
  })

  it('is not moved a second time by a checkpoint that runs again', () => {
    const run = (through: (fn: (x: Tensor) => Tensor, x: Tensor) => Tensor): number[][] => {
      manualSeed(4)
      const [mean, variance] = [zeros([3]), ones([3])]
      const x = randn([8, 3], { requiresGrad: true })
      const y = through((x) => batchNorm(x, mean, variance, null, null, { training: true }).exp(), x)
      return [values(grad(y.sum(), [x])[0]), values(mean), values(variance)]
    }
    expect(run((fn, x) => checkpoint(fn, x))).toEqual(run((fn, x) => fn(x)))
  })

  it('moves in each run of a compiled step', () => {
    const run = (wrap: <F extends (x: Tensor) => Tensor>(fn: F) => (x: Tensor) => Tensor): number[][] => {
      manualSeed(5)
      const [mean, variance, w] = [zeros([3]), ones([3]), ones([3], { requiresGrad: true })]
      const step = wrap((x) => {
        const y = batchNorm(x, mean, variance, w, null, { training: true })
        y.square().mul(x).sum().backward()
        noGrad(() => {
          w.sub_(w.grad!.mul(0.01))
        })
        w.grad?.dispose()
        w.grad = null
        return y
      })
      const last = [0, 1, 2, 3, 4].map(() => scope(() => values(step(randn([6, 3, 2]))))).at(-1)!
      return [last, values(mean), values(variance), values(w.detach())]
    }
    const [eager, compiled] = [run((fn) => fn), run((fn) => compile(fn) as never)]
    // The same operations, some fused: a few roundings of float32.
    for (const [i, list] of eager.entries())
      for (const [j, v] of list.entries()) expect(compiled[i][j]).toBeCloseTo(v, 4)
  })

  it('computes statistics of 16 bits in float32, and gives what it gets', () => {
    // 4096 ones and twos: a sum of 16 bits would end at 256.
    const x = tensor(
      Float32Array.from({ length: 8192 }, (_, i) => 1 + (i % 2)),
      [4096, 2, 1],
    ).reshape(4096 * 2, 1)
    const [mean, variance] = [zeros([1]), ones([1])]
    const options = { training: true, momentum: 1 }
    const y = batchNorm(x.to('bfloat16'), mean, variance, ones([1]), null, options)
    expect(y.dtype).toBe('bfloat16')
    expect(values(mean)).toEqual([1.5])
    expect(variance.itemSync()).toBeCloseTo((0.25 * 8192) / 8191, 6)
    expect(new Set(values(y.to('float32')))).toEqual(new Set([-1, 1]))
  })

  it('refuses with words', () => {
    expect(() => batchNorm(randn([4, 3]), null, null)).toThrow(/running.* needed unless { training: true }/)
    expect(() => batchNorm(randn([1, 3]), null, null, null, null, { training: true })).toThrow(
      /one value per channel in \[1, 3\]/,
    )
    expect(() => batchNorm(randn([4, 3]), zeros([2]), ones([3]))).toThrow(/runningMean is \[2\].* need \[3\]/)
    expect(() => batchNorm(randn([4]), zeros([2]), ones([3]))).toThrow(/must be \(N, C\) or/)
  })
})
