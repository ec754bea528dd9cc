import {
  allclose,
  diag,
  diff,
  glu,
  isclose,
  lerp,
  logaddexp,
  logsigmoid,
  max,
  min,
  norm,
  relu6,
  ShapeError,
  tensor,
  trace,
  trunc,
  zeros,
} from '@tilegrad/core'
import { describe, expect, test } from 'vitest'

/** Values as PyTorch's documentation defines them, worked out by hand; exact where no tolerance is told. */

describe('max and min', () => {
  test('give values and the first of equal places along a dim', async () => {
    const [values, at] = max(
      tensor([
        [2, 7, 7],
        [5, 5, 1],
      ]),
      1,
    )
    expect(await values.toArray()).toEqual([7, 5])
    expect(await at.toArray()).toEqual([1, 0])
    expect(at.dtype).toBe('int32')
    const [least, places] = min(
      tensor([
        [2, 7, 7],
        [5, 5, 1],
      ]),
      -1,
      { keepdim: true },
    )
    expect(await least.toArray()).toEqual([[2], [1]])
    expect(await places.toArray()).toEqual([[0], [2]])
  })

  test('send the gradient to one place along a dim, and share it over all of the tensor', async () => {
    const x = tensor([4, 4, 1], undefined, { requiresGrad: true })
    max(x, 0)[0].backward()
    expect(await x.grad?.toArray()).toEqual([1, 0, 0])
    const y = tensor([4, 4, 1], undefined, { requiresGrad: true })
    max(y).backward()
    expect(await y.grad?.toArray()).toEqual([0.5, 0.5, 0])
  })

  test('let NaN win, and refuse a dim of no elements', async () => {
    const x = tensor([1, Number.NaN, 3])
    for (const extreme of [max, min]) {
      expect(await extreme(x).item()).toBeNaN()
      expect(await extreme(x, 0)[1].item()).toBe(1)
      expect(() => extreme(zeros([2, 0]), 1)).toThrow(ShapeError)
    }
  })
})

test('isclose takes equal infinities, and NaN only if asked', async () => {
  const a = tensor([Infinity, Infinity, 1, Number.NaN])
  const b = tensor([Infinity, -Infinity, Infinity, Number.NaN])
  expect(await isclose(a, b).toArray()).toEqual([true, false, false, false])
  expect(await isclose(a, b, { equalNan: true }).toArray()).toEqual([true, false, false, true])
  expect(await allclose(a, b)).toBe(false)
  expect(await allclose(tensor([1, 2]), tensor([1, 2]))).toBe(true)
  expect(await allclose(tensor([1, 2]), tensor([1, 2.2]))).toBe(false)
})

test('diag puts a vector on any diagonal, and trace adds the main one', async () => {
  expect(await diag(tensor([1, 2]), 1).toArray()).toEqual([
    [0, 1, 0],
    [0, 0, 2],
    [0, 0, 0],
  ])
  expect(await diag(tensor([1, 2]), -1).toArray()).toEqual([
    [0, 0, 0],
    [1, 0, 0],
    [0, 2, 0],
  ])
  expect(await diag(tensor([Infinity, 2])).toArray()).toEqual([
    [Infinity, 0],
    [0, 2],
  ])
  expect(
    await trace(
      tensor([
        [1, 2, 3],
        [4, 5, 6],
      ]),
    ).item(),
  ).toBe(6)
  expect(() => diag(zeros([1, 1, 1]))).toThrow(ShapeError)
  expect(() => trace(zeros([3]))).toThrow(ShapeError)
})

test('trunc keeps infinities and NaN', async () => {
  expect(await trunc(tensor([-1.9, 1.9, Infinity, Number.NaN])).toArray()).toEqual([
    -1,
    1,
    Infinity,
    Number.NaN,
  ])
})

test('activations hold at their ends', async () => {
  const x = tensor([0, 6, 3], undefined, { requiresGrad: true })
  relu6(x).sum().backward()
  expect(await x.grad?.toArray()).toEqual([0, 0, 1])
  expect(await logsigmoid(tensor([-100, 100])).toArray()).toEqual([-100, expect.closeTo(0, 30)])
  expect(() => glu(zeros([3]))).toThrow(ShapeError)
})

test('norm of nothing but zeros has the gradient 0, for every order', async () => {
  for (const p of [2, 1, 3, Infinity]) {
    const x = tensor([0, 0], undefined, { requiresGrad: true })
    norm(x, p).backward()
    expect(await x.grad?.toArray()).toEqual([0, 0])
  }
  expect(await norm(tensor([0, 2, -3]), 0).item()).toBe(2)
  expect(
    await norm(
      tensor([
        [3, -4],
        [0, 1],
      ]),
      -Infinity,
      1,
    ).toArray(),
  ).toEqual([3, 0])
})

test('diff of a dim that is too short is empty', () => {
  expect(diff(zeros([2, 3]), { dim: 0, n: 4 }).shape).toEqual([0, 3])
  expect(() => diff(zeros([]))).toThrow(ShapeError)
})

test('lerp meets both ends exactly, and logaddexp infinities', async () => {
  const [a, b] = [tensor([0.1, 1e8]), tensor([0.7, 1])]
  expect(await lerp(a, b, 0).toArray()).toEqual(await a.toArray())
  expect(await lerp(a, b, 1).toArray()).toEqual(await b.toArray())
  const x = tensor([Infinity, -Infinity, -Infinity, 2])
  expect(await logaddexp(x, tensor([Infinity, -Infinity, 3, -Infinity])).toArray()).toEqual([
    Infinity,
    -Infinity,
    3,
    2,
  ])
})
