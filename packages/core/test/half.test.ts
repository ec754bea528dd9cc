/** The dtypes of 16 bits: how numbers are rounded to them, and that whatever is computed of them is right. */
import { describe, expect, test } from 'vitest'
import {
  cumsum,
  type DType,
  dtypeInfo,
  gather,
  grad,
  gradcheck,
  layerNorm,
  memory,
  promote,
  randn,
  reference,
  rmsNorm,
  softmax,
  softshrink,
  sort,
  type Tensor,
  tensor,
  withBackend,
  zeros,
} from '../src/index.ts'
import { pack, unpack } from '../src/kernel.ts'

const formats = [
  { dtype: 'float16', infinity: 0x7c00, smallest: 2 ** -24, largest: 65504, step: 2 ** -10 },
  {
    dtype: 'bfloat16',
    infinity: 0x7f80,
    smallest: 2 ** -133,
    largest: (2 - 2 ** -7) * 2 ** 127,
    step: 2 ** -7,
  },
] as const

const store = (dtype: DType, value: number): number => pack(dtype, Float64Array.of(value))[0]
const load = (dtype: DType, bits: number): number => unpack(dtype, Uint16Array.of(bits))[0]

describe.each(formats)('$dtype', ({ dtype, infinity, smallest, largest, step }) => {
  test('every number comes back as its bits', () => {
    for (let bits = 0; bits < 2 ** 16; bits++) {
      const value = load(dtype, bits)
      if ((bits & 0x7fff) > infinity) expect(value).toBeNaN()
      else if (store(dtype, value) !== bits) expect.fail(`${value}: ${store(dtype, value)}, not ${bits}`)
    }
    expect(load(dtype, store(dtype, Number.NaN))).toBeNaN()
  })

  test('has the range and the steps of its format', () => {
    expect(load(dtype, 1)).toBe(smallest)
    expect(load(dtype, infinity - 1)).toBe(largest)
    expect(load(dtype, infinity)).toBe(Infinity)
    expect(load(dtype, store(dtype, 1) + 1)).toBe(1 + step)
    expect(load(dtype, 0x8000)).toBe(-0)
    expect(load(dtype, 0x8000 + infinity)).toBe(-Infinity)
  })

  test('the nearest number is stored, of two that are equally near the even one', () => {
    for (let bits = 0; bits < infinity; bits++) {
      const low = load(dtype, bits)
      // The next one after the largest, if there were one.
      const high = bits + 1 === infinity ? 2 * low - load(dtype, bits - 1) : load(dtype, bits + 1)
      const middle = (low + high) / 2
      const got = [middle * (1 - 2 ** -50), middle, middle * (1 + 2 ** -50), -middle].map((x) =>
        store(dtype, x),
      )
      const even = bits + (bits & 1)
      expect(got).toEqual([bits, even, bits + 1, 0x8000 + even])
    }
    expect(store(dtype, 1e300)).toBe(infinity)
    expect(store(dtype, 1e-300)).toBe(0)
  })

  test('tensors of it are read, printed, converted and viewed', async () => {
    const x = tensor([1, -2.5, 0.1, 1e6], { dtype })
    const tenth = load(dtype, store(dtype, 0.1))
    const million = load(dtype, store(dtype, 1e6))
    expect(await x.data()).toEqual(Float32Array.of(1, -2.5, tenth, million))
    expect(await x.narrow(0, 2, 1).item()).toBe(tenth)
    expect(x.to('float32').dataSync()).toEqual(Float32Array.of(1, -2.5, tenth, million))
    expect(x.to('int32').dataSync().subarray(0, 2)).toEqual(Int32Array.of(1, -2))
    expect(x.to('bool').to(dtype).dataSync()).toEqual(Float32Array.of(1, 1, 1, 1))
    expect(x.reshape([2, 2]).transpose(0, 1).dataSync()).toEqual(Float32Array.of(1, tenth, -2.5, million))
    expect(String(tensor([1, -2.5], { dtype }))).toBe(`tensor([ 1.0000, -2.5000], shape=[2], dtype=${dtype})`)
    expect(zeros([3], { dtype }).storage.bytes).toBe(6)
  })

  test('results are those of float32, rounded', () => {
    const values = [0.1, -3.3, 7.7, 1.9, -0.6, 2.2]
    const x = tensor(values, [2, 3], { dtype })
    const wide = x.to('float32')
    const index = tensor([[2], [0]], { dtype: 'int32' })
    const all: ((t: Tensor) => Tensor)[] = [
      (t) => t.mul(t),
      (t) => t.add(1),
      (t) => t.sum(1),
      (t) => t.amax(0),
      (t) => t.matmul(t.transpose(0, 1)),
      (t) => cumsum(t, 1),
      (t) => gather(t, 1, index),
      (t) => t.scatterAdd(1, index, t.narrow(1, 0, 1)),
      (t) => sort(t, 1)[0],
    ]
    for (const f of all) {
      const [got, want] = [f(x), f(wide)]
      expect(got.dtype).toBe(dtype)
      expect(got.shape).toEqual(want.shape)
      expect(got.dataSync()).toEqual(want.to(dtype).dataSync())
    }
    expect(x.argmax(1).dataSync()).toEqual(wide.argmax(1).dataSync())
    // eps is that of float32: with a step of 16 bits the result would be half as large, or less. It takes some roundings.
    const small = tensor([0.01, 0.02], { dtype })
    const [got, want] = [rmsNorm(small, 2), rmsNorm(small.to('float32'), 2)].map((t) => t.dataSync())
    got.forEach((v, i) => expect(Math.abs(v / want[i] - 1)).toBeLessThan(4 * step))
  })

  test('changes in place, and has gradients of its own dtype', () => {
    const x = tensor([1, 2, 3], { dtype, requiresGrad: true })
    const [g] = grad(x.mul(x).sum(), [x])
    expect(g.dtype).toBe(dtype)
    expect(g.dataSync()).toEqual(Float32Array.of(2, 4, 6))
    const y = tensor([1, 2], { dtype })
    y.add_(tensor([step / 2, step]))
    expect(y.dataSync()).toEqual(Float32Array.of(1, 2))
    expect(gradcheck((t: Tensor) => t.mul(t), [x])).toBe(true)
  })

  test('promotes as in PyTorch', () => {
    const other = dtype === 'float16' ? 'bfloat16' : 'float16'
    const all = ['bool', 'int32', dtype, other, 'float32', 'float64'] as const
    expect(all.map((d) => promote(dtype, d))).toEqual([dtype, dtype, dtype, 'float32', 'float32', 'float64'])
    expect(all.map((d) => promote(d, dtype))).toEqual([dtype, dtype, dtype, 'float32', 'float32', 'float64'])
    expect(tensor([1], { dtype }).add(0.5).dtype).toBe(dtype)
    expect(tensor([1], { dtype }).add(tensor([1], { dtype: other })).dtype).toBe('float32')
  })
})

test('the bits of bfloat16 are the upper half of those of float32', () => {
  const single = new Float32Array(1)
  const word = new Uint32Array(single.buffer)
  for (let i = 0; i < 10_000; i++) {
    word[0] = Math.imul(i + 1, 2654435761) & 0xffff0000
    if (Number.isNaN(single[0])) continue
    expect(store('bfloat16', single[0])).toBe(word[0] >>> 16)
  }
})

test('arrays of 16 bits are whole numbers, whatever they are stored as', () => {
  expect(tensor(Uint16Array.of(1)).dtype).toBe('int32')
  expect(tensor(Uint16Array.of(3), { dtype: 'float16' }).dataSync()).toEqual(Float32Array.of(3))
  expect(dtypeInfo.float16.bytes).toBe(2)
})

test('numbers beside tensors of 16 bits are not rounded to 16 bits', () => {
  // −0.45, which lies nearer to −0.44921875 than what comes of 0.3 in bfloat16.
  expect(tensor([-1.5]).to('bfloat16').mul(0.3).dataSync()).toEqual(Float32Array.of(-0.44921875))
})

test('what is computed in float32 for 16 bits leaves no copies behind', () => {
  withBackend(reference, () => {
    const x = randn([4, 8]).to('float16')
    for (const fn of [() => softshrink(x), () => softmax(x, 1), () => layerNorm(x, [8])]) {
      const before = memory().tensors
      const y = fn()
      expect(memory().tensors - before).toBe(1)
      y.dispose()
    }
    x.requiresGrad = true
    const before = memory().tensors
    softshrink(x).sum().backward()
    const wide = memory().tensors - before
    const z = randn([4, 8], { requiresGrad: true })
    const now = memory().tensors
    softshrink(z).sum().backward()
    expect(wide).toBe(memory().tensors - now)
  })
})
