/** Gradients where functions have kinks, ends and zeros, as PyTorch 1.13 and 2.11 give them. */
import { beforeEach, expect, test } from 'vitest'
import * as tg from '../src/index.ts'

beforeEach(() => tg.setDefaultBackend('reference'))

/** The gradient of a sum of results. */
function slopes(f: (x: tg.Tensor) => tg.Tensor, at: readonly number[]): number[] {
  const x = tg.tensor(at, { requiresGrad: true })
  f(x).sum().backward()
  return [...(x.grad as tg.Tensor).dataSync()]
}

const none = Number.NaN
const inf = Number.POSITIVE_INFINITY
const target = (...v: number[]): tg.Tensor => tg.tensor(v)

test.each<[string, (x: tg.Tensor) => tg.Tensor, number[], number[]]>([
  ['asin', (x) => x.asin(), [1, -1, 2], [inf, inf, none]],
  ['acos', (x) => x.acos(), [1, -1], [-inf, -inf]],
  ['acosh', (x) => x.acosh(), [1, 0.5], [inf, none]],
  ['atanh', (x) => x.atanh(), [1, -1], [inf, inf]],
  ['erfinv', (x) => x.erfinv(), [1, -1, 0], [inf, inf, Math.fround(Math.sqrt(Math.PI) / 2)]],
  ['atan2', (x) => x.atan2(target(0, -1)), [1, 0], [0, -1]],
  ['sinh', (x) => x.sinh(), [0], [1]],
  ['logaddexp', (x) => x.logaddexp(target(-inf, 5)), [1, 5], [1, 0.5]],
  ['logsigmoid', (x) => x.logsigmoid(), [-1000, 0, 1000], [1, 0.5, 0]],
  ['selu', (x) => x.selu(), [-1000, 0], [0, Math.fround(1.0507009873554805 * 1.6732632423543772)]],
  ['celu', (x) => x.celu(), [-1000, 0, 3], [0, 1, 1]],
  ['relu6', (x) => x.relu6(), [0, 3, 6], [0, 1, 0]],
  ['hardtanh', (x) => x.hardtanh(), [-1, 0, 1], [0, 1, 0]],
  ['norm', (x) => x.norm(), [0, 0], [0, 0]],
  ['norm of order 3', (x) => x.norm(3), [0, 0], [0, 0]],
  ['norm of order 1/2', (x) => x.norm(0.5), [0, 1], [0, 1]],
  ['norm of order 1', (x) => x.norm(1), [0, 1], [0, 1]],
  ['cdist', (x) => tg.cdist(x.reshape([1, 2]), tg.ones([1, 2])), [1, 1], [0, 0]],
  [
    'binaryCrossEntropyWithLogits',
    (x) => tg.binaryCrossEntropyWithLogits(x, target(1, 0, 0.5), { reduction: 'none' }),
    [0, 0, 0],
    [-0.5, 0.5, 0],
  ],
  [
    'binaryCrossEntropyWithLogits, positives weighted',
    (x) => tg.binaryCrossEntropyWithLogits(x, target(1, 0), { posWeight: target(3, 3), reduction: 'none' }),
    [0, 0],
    [-1.5, 0.5],
  ],
])('%s', (_, f, at, want) => {
  expect(slopes(f, at)).toEqual(want)
})

test('binaryCrossEntropy of probabilities 0 and 1', () => {
  const loss = (x: tg.Tensor) => tg.binaryCrossEntropy(x, target(1, 0, 0, 1), { reduction: 'none' })
  expect([
    ...loss(target(0, 1, 0, 1))
      .add(0)
      .dataSync(),
  ]).toEqual([100, 100, 0, 0])
  const most = Math.fround(1 / 1e-12)
  const [a, b, c, d] = slopes(loss, [0, 1, 0, 1]) as [number, number, number, number]
  // 1e-12 has the digits of float32.
  expect(Math.abs(a / most + 1)).toBeLessThan(1e-6)
  expect(Math.abs(b / most - 1)).toBeLessThan(1e-6)
  expect([c, d]).toEqual([0, 0])
})
