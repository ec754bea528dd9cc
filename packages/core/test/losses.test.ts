/** What losses and indices say of arguments that PyTorch would not take in silence. */
import { afterEach, describe, expect, test, vi } from 'vitest'
import {
  crossEntropy,
  grad,
  huberLoss,
  indexFill,
  l1Loss,
  mseLoss,
  ones,
  ShapeError,
  smoothL1Loss,
  tensor,
  ValueError,
  zeros,
} from '../src/index.ts'

afterEach(() => {
  vi.restoreAllMocks()
})

describe.each([
  ['mse_loss', mseLoss],
  ['l1_loss', l1Loss],
  ['smooth_l1_loss', smoothL1Loss],
  ['huber_loss', huberLoss],
] as const)('%s', (name, loss) => {
  test('tells once of an input and a target that meet each with each', async () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
    // Four elements each, of which the mean would hide that there are sixteen.
    for (let i = 0; i < 2; i++) loss(zeros([4, 1]), ones([4]))
    expect(warn.mock.calls).toEqual([
      [
        `tilegrad: ${name}: input [4, 1] and target [4] differ and are compared each with each, as [4, 4]; give both one shape`,
      ],
    ])
  })

  test('says nothing of equal shapes and of a scalar', () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
    loss(zeros([4, 1]), ones([4, 1]))
    loss(zeros([4, 1]), tensor(1))
    loss(zeros([2]), [1, 2])
    expect(warn).not.toHaveBeenCalled()
  })
})

test('cross-entropy of logits with the classes last says how to write it', () => {
  expect(() => crossEntropy(zeros([2, 3, 5]), zeros([2, 3], { dtype: 'int32' }))).toThrow(
    /expected \[2, 5\]\. Classes are dim 1: with classes last, pass input\.flatten\(0, -2\), target\.flatten\(\)$/,
  )
  expect(() => crossEntropy(zeros([2, 3, 5]), zeros([4], { dtype: 'int32' }))).toThrow(/expected \[2, 5\]$/)
  expect(() => crossEntropy(zeros([2, 3]), zeros([4], { dtype: 'int32' }))).toThrow(ShapeError)
})

describe('indexFill', () => {
  const int = (values: number[]) => tensor(values, { dtype: 'int32' })

  test('refuses an index beyond the last, as its relatives do', () => {
    for (const i of [3, -4]) expect(() => indexFill(zeros([3, 2]), 0, int([0, i]), 1)).toThrow(ValueError)
  })

  test('takes repeated, negative and no places, and passes no gradient where it fills', async () => {
    const x = tensor([[1, 2, 3]], undefined, { requiresGrad: true })
    const y = indexFill(x, 1, int([-1, 0, 0]), 9)
    expect(await y.toArray()).toEqual([[9, 2, 9]])
    const [dx] = grad(y.sum(), [x])
    expect(await dx?.toArray()).toEqual([[0, 1, 0]])
    expect(await indexFill(x.detach(), 0, int([]), 9).toArray()).toEqual([[1, 2, 3]])
    expect(await indexFill(tensor([true, false]), 0, int([1]), 1).toArray()).toEqual([true, true])
  })
})
