import { describe, expect, test } from 'vitest'
import { add, dataSync, mul, noGrad, type Tensor, tensor, zeros } from '../src/index.ts'

const leaf = (values: readonly number[]): Tensor => tensor([...values], { requiresGrad: true })
const values = (t: Tensor | null): number[] | null => t && [...dataSync(t)]

describe('writing in place', () => {
  test('is refused for tensors that require a gradient, with the way out', () => {
    const x = leaf([1, 2])
    expect(() => x.mul_(2)).toThrow(
      'mul_: a tensor that requires a gradient cannot be modified in place; do it inside noGrad(), or use the operator that returns a new tensor',
    )
    expect(() => zeros([2]).add_(x)).toThrow(/^add_: writing in place is not recorded/)
    noGrad(() => x.mul_(2))
    expect(values(x)).toEqual([2, 4])
  })

  test('after an operator that needs the old value makes its gradient fail, naming it', () => {
    const x = leaf([1, 2])
    const y = x.square().sum()
    noGrad(() => x.add_(1))
    expect(() => y.backward()).toThrow(
      /^square: its input 0, a tensor \[2\], was modified in place after the operator ran \(version 0, now 1\)/,
    )
    const [a, b] = [tensor([1, 2]), leaf([3, 4])]
    const z = mul(a, b).sum()
    a.fill_(0)
    expect(() => z.backward()).toThrow(/^mul: its input 0/)
  })

  test('also through another view of the memory', () => {
    const base = zeros([4])
    const x = leaf([1, 2, 3, 4])
    const y = x.mul(base).sum()
    base.narrow(0, 0, 2).fill_(5)
    expect(() => y.backward()).toThrow(/modified in place/)
  })

  test('is fine where the gradient does not need the value', () => {
    const x = leaf([1, 2])
    const y = add(x, tensor([1, 1]))
    noGrad(() => x.fill_(9))
    y.sum().backward()
    expect(values(x.grad)).toEqual([1, 1])
  })

  test('of an output that the gradient reads', () => {
    const x = leaf([0, 1])
    const y = x.exp()
    noGrad(() => y.zero_())
    expect(() => y.sum().backward()).toThrow(/^exp: its output 0/)
  })

  test('does what it says', () => {
    const x = tensor([1, 2, 3])
    expect(x.add_(1)).toBe(x)
    expect(
      values(
        x
          .mul_(tensor([2, 2, 10]))
          .sub_(1)
          .div_(2),
      ),
    ).toEqual([1.5, 2.5, 19.5])
    expect(values(x.copy_(tensor([7], { dtype: 'int32' })))).toEqual([7, 7, 7])
    const counts = tensor([1, 2], { dtype: 'int32' })
    expect([values(counts.add_(2)), counts.dtype]).toEqual([[3, 4], 'int32'])
    expect(() => tensor([1]).expand([3]).add_(1)).toThrow('an expanded tensor cannot be modified in place')
    expect(() => x.add_(zeros([2, 3]))).toThrow(
      "inputs [3], [2, 3] do not broadcast to the output's shape [3]",
    )
  })
})
