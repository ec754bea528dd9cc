import { beforeEach, describe, expect, test } from 'vitest'
import {
  crossEntropy,
  dataSync,
  grad,
  type LinearCrossEntropyOptions,
  linear,
  linearCrossEntropy,
  manualSeed,
  memory,
  noGrad,
  randint,
  randn,
  reclaim,
  resetPeakMemory,
  scope,
  type Tensor,
  tensor,
} from '../src/index.ts'
import { collected } from './support/collected.ts'

const values = (t: Tensor): number[] => [...dataSync(t)]

/** Largest |a − b| relative to the largest |b|. */
function apart(a: Tensor, b: Tensor): number {
  expect(a.shape).toEqual(b.shape)
  const [x, y] = [values(a), values(b)]
  const top = y.reduce((m, n) => Math.max(m, Math.abs(n)), 1e-30)
  return x.reduce((m, n, i) => Math.max(m, Math.abs(n - (y[i] as number))), 0) / top
}

const written = (x: Tensor, w: Tensor, t: Tensor, o: LinearCrossEntropyOptions = {}): Tensor =>
  crossEntropy(linear(x, w, o.bias).reshape([t.numel, w.shape[0]]), t.reshape([t.numel]), {
    ...(o.ignoreIndex !== undefined && { ignoreIndex: o.ignoreIndex }),
    ...(o.reduction && { reduction: o.reduction }),
  })

describe('linearCrossEntropy is linear and crossEntropy', () => {
  const [n, k, v] = [23, 6, 50]
  for (const reduction of ['mean', 'sum', 'none'] as const)
    for (const chunkSize of [1, 7, 23, 100])
      test(`${reduction}, ${chunkSize} rows at a time`, () =>
        scope(() => {
          manualSeed(chunkSize)
          const options = { dtype: 'float64', requiresGrad: true } as const
          const [x, w, bias] = [randn([n, k], options), randn([v, k], options), randn([v], options)]
          const t = randint(0, v, [n])
          const both = [linearCrossEntropy, written].map((f) => {
            const loss = f(x, w, t, { bias, reduction, chunkSize, ignoreIndex: dataSync(t)[3] as number })
            const d = randn([n], { dtype: 'float64' }).mul(0).add(1.7)
            const given = reduction === 'none' ? d : tensor(1.7, { dtype: 'float64' })
            return [loss, ...grad(loss, [x, w, bias], { gradOutputs: [given] })]
          })
          // float64; sums of 23 rows in another order.
          both[0].forEach((t, i) => {
            expect(apart(t, (both[1] as Tensor[])[i] as Tensor)).toBeLessThan(1e-13)
          })
        }))

  test('gradients of some inputs only; none under noGrad', () => {
    scope(() => {
      const [x, w, t] = [randn([4, 3]), randn([5, 3], { requiresGrad: true }), randint(0, 5, [4])]
      const loss = linearCrossEntropy(x, w, t, { chunkSize: 3 })
      const [g] = grad(loss, [w])
      expect(apart(g, grad(written(x, w, t), [w])[0])).toBeLessThan(1e-6)
      expect(noGrad(() => linearCrossEntropy(x, w, t)).requiresGrad).toBe(false)
      expect(linearCrossEntropy(x, w.detach(), t).requiresGrad).toBe(false)
    })
  })

  test('twice through a retained graph, each time with another gradient', () => {
    scope(() => {
      const [x, w, t] = [randn([4, 3]), randn([5, 3], { requiresGrad: true }), randint(0, 5, [4])]
      const loss = linearCrossEntropy(x, w, t, { chunkSize: 3 })
      const [once] = grad(loss.mul(2), [w], { retainGraph: true })
      const [again] = grad(loss, [w])
      expect(apart(once, again.mul(2))).toBeLessThan(1e-6)
    })
  })

  test('a weight that made the input, too (tied embeddings)', () => {
    scope(() => {
      const w = randn([5, 3], { dtype: 'float64', requiresGrad: true })
      const t = tensor([1, 4, 0, 2], { dtype: 'int32' })
      const run = (f: typeof linearCrossEntropy): Tensor => {
        const loss = f(w.indexSelect(0, t.flip([0])).tanh(), w, t, { chunkSize: 2 })
        const [g] = grad(loss, [w], { createGraph: true })
        return grad(g.square().sum(), [w])[0]
      }
      expect(apart(run(linearCrossEntropy), run(written))).toBeLessThan(1e-12)
    })
  })

  test('no rows: as without chunks', () => {
    const [x, w, t] = [randn([0, 3]), randn([5, 3]), randint(0, 5, [0])]
    expect(values(linearCrossEntropy(x, w, t, { reduction: 'sum' }))).toEqual([0])
    expect(linearCrossEntropy(x, w, t, { reduction: 'none' }).shape).toEqual([0])
    expect(values(linearCrossEntropy(x, w, t))).toEqual(values(written(x, w, t)))
  })
})

describe('memory', () => {
  beforeEach(collected)

  const [n, k, v] = [512, 4, 1000]
  const logits = 4 * n * v
  const peak = (f: typeof linearCrossEntropy, options: LinearCrossEntropyOptions, train = true): number =>
    scope(() => {
      const [x, w] = [randn([n, k], { requiresGrad: train }), randn([v, k], { requiresGrad: train })]
      const t = randint(0, v, [n])
      resetPeakMemory()
      const before = memory().bytes
      const loss = f(x, w, t, options)
      if (train) grad(options.reduction === 'none' ? loss.sum() : loss, [x, w])
      return (memory().peakBytes - before) / logits
    })

  test.each(['mean', 'none'] as const)('%s: a chunk of logits, not all of them', (reduction) => {
    expect(peak(written, { reduction })).toBeGreaterThan(2)
    // 16 of 512 rows, some 6 times where nothing is fused; and 2 to 3 gradients of the weight, 1/128 each.
    expect(peak(linearCrossEntropy, { reduction, chunkSize: 16 })).toBeLessThan(0.25)
    expect(peak(linearCrossEntropy, { reduction, chunkSize: 16 }, false)).toBeLessThan(0.25)
  })

  test('leaves nothing behind', () => {
    const [x, w, t] = [randn([8, 3]), randn([5, 3], { requiresGrad: true }), randint(0, 5, [8])]
    const step = (reduction: 'mean' | 'none'): void => {
      const [loss, total] = scope(() => {
        const loss = linearCrossEntropy(x, w, t, { chunkSize: 3, reduction })
        return [loss, loss.sum()] as const
      })
      total.backward()
      loss.dispose()
      total.dispose()
      w.grad?.dispose()
      w.grad = null
    }
    for (const reduction of ['mean', 'none'] as const) {
      step(reduction)
      const before = memory()
      step(reduction)
      // Without a scope around backward(), what it spares is left to the collector, and a number or two to this test.
      reclaim()
      expect(memory().bytes - before.bytes).toBeLessThanOrEqual(4)
    }
  })
})

test('says what does not fit', () => {
  const [x, w, t] = [randn([4, 3]), randn([5, 3]), randint(0, 5, [4])]
  expect(() => linearCrossEntropy(x, randn([5, 2]), t)).toThrow('input [4, 3] and weight [5, 2] do not fit')
  expect(() => linearCrossEntropy(x, w, randint(0, 5, [3]))).toThrow('targets [3] do not fit input [4, 3]')
  expect(() => linearCrossEntropy(x, w, randn([4]))).toThrow('class targets must be int32')
  expect(() => linearCrossEntropy(t, w, t)).toThrow('takes floating tensors')
  expect(() => linearCrossEntropy(x, w, t, { bias: randn([3]) })).toThrow(
    'bias [3] does not fit weight [5, 3]',
  )
  expect(() => linearCrossEntropy(x, w, t, { chunkSize: 0 })).toThrow(
    'chunkSize must be a positive whole number',
  )
  expect(() => linearCrossEntropy(x, w, t, { reduction: 'max' as 'sum' })).toThrow("reduction must be 'mean'")
  expect(() => linearCrossEntropy(x, w, tensor([0, 1, 5, 2], { dtype: 'int32' }))).toThrow('5')
})
