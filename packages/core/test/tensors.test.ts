import { describe, expect, test } from 'vitest'
import {
  arange,
  type Backend,
  dataSync,
  defaultBackend,
  equal,
  eye,
  full,
  fullLike,
  getBackend,
  linspace,
  reference,
  registerBackend,
  setDefaultBackend,
  type Tensor,
  tensor,
  withBackend,
  zeros,
  zerosLike,
} from '../src/index.ts'

const values = (t: Tensor): number[] => [...dataSync(t)]

describe('tensor', () => {
  test('takes numbers, booleans and typed arrays', () => {
    const made = [
      tensor(3),
      tensor([
        [1, 2],
        [3, 4],
      ]),
      tensor([true, false]),
      tensor([true, 2]),
      tensor(new Int32Array([1, 2])),
      tensor(new Float64Array(6), [2, 3]),
      tensor(new Uint8Array([0, 7])),
      tensor([]),
      tensor([[], []]),
    ]
    expect(made.map((t) => [t.dtype, t.shape])).toEqual([
      ['float32', []],
      ['float32', [2, 2]],
      ['bool', [2]],
      ['float32', [2]],
      ['int32', [2]],
      ['float64', [2, 3]],
      ['int32', [2]],
      ['float32', [0]],
      ['float32', [2, 0]],
    ])
    expect(values(made[6])).toEqual([0, 7])
  })

  test('copies what it is given', () => {
    const data = new Float32Array([1, 2])
    const t = tensor(data)
    data[0] = 9
    expect(values(t)).toEqual([1, 2])
  })

  test('gives back nested arrays and single values', async () => {
    expect(
      await tensor([
        [1, 2],
        [3, 4],
      ]).T.toArray(),
    ).toEqual([
      [1, 3],
      [2, 4],
    ])
    expect(await tensor([[true], [false]]).toArray()).toEqual([[true], [false]])
    expect(await tensor(2.5).toArray()).toBe(2.5)
    expect(await tensor([2.5]).item()).toBe(2.5)
    expect(await tensor([1, 2, 3]).slice(undefined, undefined, { step: -1 }).data()).toEqual(
      new Float32Array([3, 2, 1]),
    )
  })

  test('is equal to another of the same shape, dtype and elements', async () => {
    const x = tensor([1, 2])
    expect(await equal(x, tensor([1, 2]))).toBe(true)
    expect(await equal(x, tensor([[1, 2]]))).toBe(false)
    expect(await equal(x, tensor([1, 2], { dtype: 'int32' }))).toBe(false)
    expect(await x.equal(tensor([1, 3]))).toBe(false)
  })
})

describe('factories', () => {
  test('full, zeros, ones and the like', () => {
    expect(values(full([2, 2], 1.5))).toEqual([1.5, 1.5, 1.5, 1.5])
    expect(values(full([2], 2.9, { dtype: 'int32' }))).toEqual([2, 2])
    const x = tensor([1, 2], { dtype: 'float64' })
    expect([zerosLike(x).dtype, values(zerosLike(x)), values(fullLike(x, 3))]).toEqual([
      'float64',
      [0, 0],
      [3, 3],
    ])
    expect(zeros([]).numel).toBe(1)
  })

  test('arange counts, by steps of either sign', () => {
    expect([values(arange(3)), arange(3).dtype]).toEqual([[0, 1, 2], 'int32'])
    expect(values(arange(2, 7, 2))).toEqual([2, 4, 6])
    expect(values(arange(3, 0, -1))).toEqual([3, 2, 1])
    expect([values(arange(0, 1, 0.25)), arange(0, 1, 0.25).dtype]).toEqual([[0, 0.25, 0.5, 0.75], 'float32'])
    expect(values(arange(5, 1))).toEqual([])
    expect(() => arange(0, 1, 0)).toThrow('arange: cannot step from 0 to 1 by 0')
  })

  test('linspace has both ends, eye its diagonal', () => {
    expect(values(linspace(-1, 1, 5))).toEqual([-1, -0.5, 0, 0.5, 1])
    expect(values(linspace(3, 9, 1))).toEqual([3])
    expect(values(eye(2, 3))).toEqual([1, 0, 0, 0, 1, 0])
  })
})

describe('conversions', () => {
  test('truncate towards zero, saturate, and ask for not being 0', () => {
    const x = tensor([-1.9, 0.4, 1e20, -1e20, Number.NaN])
    expect(values(x.to('int32'))).toEqual([-1, 0, 2147483647, -2147483648, 0])
    expect(values(x.to('bool'))).toEqual([1, 1, 1, 1, 1])
    expect(values(tensor([0, -0, 3]).to('bool'))).toEqual([0, 0, 1])
    expect(values(tensor([0.1]).to('float64'))).toEqual([Math.fround(0.1)])
  })

  test('to the same dtype is the tensor itself', () => {
    const x = tensor([1])
    expect(x.to('float32')).toBe(x)
  })

  test('integers wrap', () => {
    const big = tensor(new Int32Array([2147483647, -2147483648]))
    expect(values(big.add(1))).toEqual([-2147483648, -2147483647])
    expect(values(big.mul(3))).toEqual([2147483645, -2147483648])
    expect(values(tensor(new Int32Array([65536])).square())).toEqual([0])
    expect(values(tensor(new Int32Array(3).fill(2000000000)).sum())).toEqual([6000000000 - 2 ** 32])
  })
})

describe('devices', () => {
  const second: Backend = { ...reference, name: 'second' }

  test('are known by name and made when first used', () => {
    let made = 0
    registerBackend('second', () => {
      made++
      return second
    })
    expect(made).toBe(0)
    expect(getBackend('second')).toBe(second)
    getBackend('second')
    expect(made).toBe(1)
    expect(zeros([1], { device: 'second' }).device).toBe('second')
  })

  test('the default one can be set, and changed for a while', () => {
    const before = defaultBackend()
    expect(withBackend(second, () => zeros([1]).device)).toBe('second')
    expect(() =>
      withBackend(second, () => {
        throw new Error('stop')
      }),
    ).toThrow('stop')
    expect(defaultBackend()).toBe(before)
    setDefaultBackend(second)
    expect(zeros([1]).backend).toBe(second)
    setDefaultBackend(before)
  })

  test('tensors move between them, with their gradients', () => {
    const x = tensor([1, 2], { requiresGrad: true })
    const y = x.to({ device: second })
    expect(y.device).toBe('second')
    y.mul(3).sum().backward()
    expect([x.grad?.device, values(x.grad as Tensor)]).toEqual(['reference', [3, 3]])
    expect(x.to(reference)).toBe(x)
    expect(x.to({ device: second, dtype: 'int32' }).dtype).toBe('int32')
  })
})
