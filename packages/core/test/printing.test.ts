import assert from 'node:assert'
import { format, inspect, stripVTControlCharacters } from 'node:util'
import { describe, expect, test } from 'vitest'
import {
  arange,
  type Backend,
  createBlockMask,
  data,
  full,
  memory,
  ones,
  profile,
  RandomGenerator,
  randn,
  reference,
  setPrintOptions,
  tensor,
  toArray,
  withBackend,
  zeros,
} from '../src/index.ts'
import { collected } from './support/collected.ts'

/** The elements as printed, without what is said of the tensor besides. */
const body = (x: object): string => String(x).replace(/,\s+shape=.*$/s, ')')

describe('a tensor as text', () => {
  // What PyTorch 2.11 prints of the same numbers; words for dtypes and flags are ours.
  test.each([
    [[1, 2], 'tensor([1., 2.])'],
    [[1, 2.5], 'tensor([1.0000, 2.5000])'],
    [0, 'tensor(0.)'],
    [Math.PI, 'tensor(3.1416)'],
    [[0, 0], 'tensor([0., 0.])'],
    [[-1, 20], 'tensor([-1., 20.])'],
    [[1e-5, 1, 1000], 'tensor([1.0000e-05, 1.0000e+00, 1.0000e+03])'],
    [[1e10, 1], 'tensor([1.0000e+10, 1.0000e+00])'],
    [[1, 1000], 'tensor([   1., 1000.])'],
    [[1, 1001], 'tensor([1.0000e+00, 1.0010e+03])'],
    [[0.00001], 'tensor([1.0000e-05])'],
    [[NaN, Infinity, -Infinity, 1.5], 'tensor([   nan,    inf,   -inf, 1.5000])'],
    [[NaN], 'tensor([nan])'],
    // Halfway: the even digit.
    [[0.03125, 0.09375], 'tensor([0.0312, 0.0938])'],
    [
      [
        [1, 2],
        [3, 4],
      ],
      'tensor([[1., 2.],\n        [3., 4.]])',
    ],
  ])('%j', (values, text) => {
    expect(body(tensor(values as number[]))).toBe(text)
  })

  test('of integers and bools', () => {
    expect(body(tensor([1, -200, 3], { dtype: 'int32' }))).toBe('tensor([   1, -200,    3])')
    expect(body(tensor([true, false]))).toBe('tensor([ true, false])')
    expect(body(tensor(true))).toBe('tensor(true)')
  })

  test('with its lines broken and its matrices apart', () => {
    expect(body(arange(0, 30))).toBe(
      'tensor([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17,\n' +
        '        18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29])',
    )
    expect(body(arange(0, 8).reshape([2, 2, 2]))).toBe(
      'tensor([[[0, 1],\n         [2, 3]],\n\n        [[4, 5],\n         [6, 7]]])',
    )
  })

  test('of which only the edges are read where it is large', async () => {
    expect(body(arange(0, 2000))).toBe('tensor([   0,    1,    2,  ..., 1997, 1998, 1999])')
    expect(body(arange(0, 10000).reshape([100, 100]).T)).toBe(
      `tensor([[   0,  100,  200,  ..., 9700, 9800, 9900],
        [   1,  101,  201,  ..., 9701, 9801, 9901],
        [   2,  102,  202,  ..., 9702, 9802, 9902],
        ...,
        [  97,  197,  297,  ..., 9797, 9897, 9997],
        [  98,  198,  298,  ..., 9798, 9898, 9998],
        [  99,  199,  299,  ..., 9799, 9899, 9999]])`,
    )
    let read = 0
    const counting: Backend = {
      ...reference,
      readSync(view) {
        read += view.shape.reduce((p, n) => p * n, 1)
        return (reference.readSync as NonNullable<Backend['readSync']>)(view)
      },
    }
    const before = withBackend(counting, () => ones([2000, 500]))
    const turned = before.T
    await collected()
    const { tensors, bytes } = memory()
    String(before)
    String(turned)
    expect(read).toBe(2 * 36)
    expect(memory()).toMatchObject({ tensors, bytes })
    // Of many dims even the edges are too many.
    expect(String(withBackend(counting, () => zeros(new Array<number>(7).fill(7)))).length).toBeLessThan(
      20_000,
    )
  })

  test('says shape, dtype, device, and what gradients do', () => {
    const x = ones([2], { requiresGrad: true })
    expect(String(x)).toBe('tensor([1., 1.], shape=[2], dtype=float32, requiresGrad=true)')
    expect(String(x.mul(2))).toBe('tensor([2., 2.], shape=[2], dtype=float32, gradFn=<mul>)')
    expect(String(zeros([0, 3]))).toBe('tensor([], shape=[0, 3], dtype=float32)')
    const other = { ...reference, name: 'other' }
    expect(String(ones([1], { device: other }))).toBe('tensor([1.], shape=[1], dtype=float32, device=other)')
  })

  test('is known without waiting on a device that cannot answer at once, and whole with text()', async () => {
    const { readSync: _, ...slow } = reference
    const x = tensor([1, 2], { device: { ...slow, name: 'slow' } })
    expect(String(x)).toBe('tensor(<await x.text()>, shape=[2], dtype=float32, device=slow)')
    expect(await x.text()).toBe('tensor([1., 2.], shape=[2], dtype=float32, device=slow)')
    const y = randn([50, 60])
    const part = y.T.slice(3)
    await collected()
    const { tensors } = memory()
    expect(await y.text()).toBe(String(y))
    expect(await part.text()).toBe(String(part))
    expect(memory().tensors).toBe(tensors)
  })

  test('never throws', () => {
    const x = ones([2])
    x.dispose()
    expect(String(x)).toBe('tensor(<freed by dispose()>, shape=[2], dtype=float32)')
    const broken = {
      ...reference,
      readSync: () => {
        throw new Error('lost')
      },
    }
    expect(String(ones([1], { device: broken }))).toContain('cannot be read: lost')
  })

  test('in console.log, inside of objects, in one line, by depth and in colours', () => {
    const x = tensor([
      [1, 2],
      [3, 4],
    ])
    expect(format('%s|%o', x, 1)).toContain(String(x))
    expect(inspect({ x })).toBe(
      '{\n  x: tensor([[1., 2.],\n          [3., 4.]], shape=[2, 2], dtype=float32)\n}',
    )
    expect(inspect(x, { breakLength: Infinity })).toBe(
      'tensor([[1., 2.], [3., 4.]], shape=[2, 2], dtype=float32)',
    )
    expect(inspect({ x }, { depth: 0 })).toContain('[tensor [2, 2] float32]')
    const coloured = inspect(x, { colors: true })
    expect(coloured).toContain('\u001b[33m1')
    expect(stripVTControlCharacters(coloured)).toBe(inspect(x)) // lines break where they do without
    expect(`${x}`).toBe(String(x))
  })

  test('with other settings', () => {
    const before = { ...setPrintOptions({}) }
    try {
      setPrintOptions({ precision: 2, threshold: 5, edgeitems: 1 })
      expect(body(full([6], Math.PI))).toBe('tensor([3.14,  ..., 3.14])')
      setPrintOptions({ sciMode: true })
      expect(body(tensor([12]))).toBe('tensor([1.20e+01])')
    } finally {
      setPrintOptions(before)
    }
  })
})

describe('other things as text', () => {
  test('a profile is its table', () => {
    const taken = profile(() => ones([2]).add(1))
    expect(inspect(taken)).toBe(taken.table())
    expect(JSON.parse(JSON.stringify(taken)).rows[0].calls).toBe(1)
  })

  test('block masks, generators and nodes of a graph say what they are', () => {
    const mask = createBlockMask((q, k) => k <= q, { blockSize: 16, qLen: 64, kvLen: 64 })
    expect(inspect(mask)).toBe('BlockMask(blockSize=16, visible=[4, 4], density=0.625)')
    const generator = new RandomGenerator(7)
    generator.run(() => randn([2]))
    expect(`${generator}`).toMatch(/^RandomGenerator\(key=\[-?\d+, -?\d+\], draws=1\)$/)
    const y = ones([2, 1], { requiresGrad: true }).add(ones([3]))
    expect(inspect(y.gradFn)).toBe('GradNode(add: [2, 1], [3] → [2, 3])')
    expect(JSON.stringify({ node: y.gradFn })).toBe('{"node":"add"}')
  })
})

describe('what walks objects', () => {
  const different = [tensor([1, 2]), tensor([1, 2]), tensor([3, 4]), ones([300, 300]), ones([300, 300])]

  test('never takes two tensors for one', () => {
    for (const a of different) {
      for (const b of different) {
        if (a === b) {
          expect(a).toEqual(b)
          expect({ a }).toStrictEqual({ a: b })
          assert.deepStrictEqual(a, b)
          continue
        }
        expect(() => expect(a).toEqual(b)).toThrow()
        expect(() => expect([a]).toStrictEqual([b])).toThrow()
        expect(() => assert.deepStrictEqual({ a }, { a: b })).toThrow()
        expect(() => assert.deepEqual(a, b)).toThrow()
      }
    }
  })

  test('finds no memory in a tensor, nor a graph', () => {
    const y = ones([2], { requiresGrad: true }).mul(2)
    expect(Object.keys(y)).toEqual(['id', 'dtype', 'shape', 'strides', 'offset', 'numel'])
    expect(structuredClone(y)).toEqual({
      id: y.id,
      dtype: 'float32',
      shape: [2],
      strides: [1],
      offset: 0,
      numel: 2,
    })
  })

  test('JSON has the elements, and tensor() takes them back', async () => {
    const x = tensor([[true, false]])
    expect(JSON.stringify({ x })).toBe('{"x":{"dtype":"bool","shape":[1,2],"data":[true,false]}}')
    const y = randn([30, 50])
    const { data: read, shape, dtype } = JSON.parse(JSON.stringify(y.T))
    expect(await tensor(read, shape, { dtype }).toArray()).toEqual(await toArray(y.T))
    // As a test runner asks.
    expect(y.toJSON().data).toBe(String(y))
    expect(() => JSON.stringify(zeros([1]).expand([2 ** 20 + 1]))).toThrow(
      /JSON: .*too large.*saveSafetensors/,
    )
    const { readSync: _, ...slow } = reference
    expect(() => JSON.stringify(tensor([1], { device: slow }))).toThrow(/await x.toArray\(\)/)
  })
})

describe('a tensor as a number', () => {
  const a = tensor([1]) as unknown as number

  test.each([
    ['<', () => a < 2],
    ['+a', () => +a],
    ['+', () => a + 1],
    ['-', () => a - 1],
    // biome-ignore lint/suspicious/noDoubleEquals: what it is about
    ['==', () => a == 1],
    ['Math.max', () => Math.max(a, 1)],
    ['text +', () => ['loss '].join() + a],
  ])('%s names what to use', (_, f) => {
    expect(f).toThrow(/a tensor is no number: use a\.add\(b\).*await a\.item\(\)/)
  })

  test('so does a promise of its value', async () => {
    const item = tensor(1).item()
    expect(() => `${item}`).toThrow('item: gives a promise, which is no value yet; use await x.item()')
    expect(() => (item as unknown as number) < 2).toThrow(/await x\.item/)
    expect(() => `${tensor([1]).equal(tensor([1]))}`).toThrow(/await x\.equal/)
    expect(() => `${tensor([1]).toArray()}`).toThrow(/await x\.toArray/)
    expect(await item).toBe(1)
    await expect(tensor([1, 2]).item()).rejects.toThrow(/one element/)
    expect(await data(tensor(1))).toEqual(new Float32Array([1]))
  })
})
