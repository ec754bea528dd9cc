import { describe, expect, test } from 'vitest'
import * as typed from '../src/index.ts'

/** The library as plain JavaScript sees it: nothing stops a wrong argument. */
// biome-ignore lint/suspicious/noExplicitAny: what it is about
type Untyped = any
const tg: Record<string, Untyped> = typed

const matrix = (): Untyped =>
  typed.tensor([
    [1, 2],
    [3, 4],
  ])
const list = (x: Untyped): unknown => Array.from((x as typed.Tensor).dataSync())

describe('what is plain is taken', () => {
  test.each<[string, () => Untyped, readonly number[], readonly (number | boolean)[]]>([
    ['zeros(2, 3)', () => tg.zeros(2, 3), [2, 3], [0, 0, 0, 0, 0, 0]],
    ['zeros(3)', () => tg.zeros(3), [3], [0, 0, 0]],
    ['ones(2, { dtype })', () => tg.ones(2, { dtype: 'int32' }), [2], [1, 1]],
    ['full(2, 7)', () => tg.full(2, 7), [2], [7, 7]],
    ['reshape(4, 1)', () => matrix().reshape(4, 1), [4, 1], [1, 2, 3, 4]],
    ['reshape(-1)', () => matrix().reshape(-1), [4], [1, 2, 3, 4]],
    ['view(1, 4)', () => matrix().view(1, 4), [1, 4], [1, 2, 3, 4]],
    ['permute(1, 0)', () => matrix().permute(1, 0), [2, 2], [1, 3, 2, 4]],
    ['expand(2, 2)', () => typed.tensor([1, 2]).expand(2, 2), [2, 2], [1, 2, 1, 2]],
    ['broadcastTo(2, 2)', () => typed.tensor([1, 2]).broadcastTo(2, 2), [2, 2], [1, 2, 1, 2]],
    ['squeeze(0, 1)', () => typed.ones(1, 1, 1).squeeze(0, 1), [1], [1]],
    ['flip(0, 1)', () => matrix().flip(0, 1), [2, 2], [4, 3, 2, 1]],
    ['repeat(1, 2)', () => matrix().repeat(1, 2), [2, 4], [1, 2, 1, 2, 3, 4, 3, 4]],
    ['tile(2)', () => typed.tensor([1, 2]).tile(2), [4], [1, 2, 1, 2]],
    ['x + array', () => matrix().add([10, 20]), [2, 2], [11, 22, 13, 24]],
    ['array − x', () => tg.sub([10, 20], matrix()), [2, 2], [9, 18, 7, 16]],
    ['x + typed array', () => matrix().add(new Float32Array([1, 2])), [2, 2], [2, 4, 4, 6]],
    ['matmul of an array', () => matrix().matmul([[0], [1]]), [2, 1], [2, 4]],
    ['where of arrays', () => tg.where([true, false], [1, 2], [3, 4]), [2], [1, 4]],
    ['cat with an array', () => tg.cat([typed.tensor([1]), [2, 3]]), [3], [1, 2, 3]],
    ['stack of arrays', () => tg.stack([[1], [2]]), [2, 1], [1, 2]],
    ['a mask as an array', () => typed.tensor([1, 2]).maskedFill([true, false], 0), [2], [0, 2]],
    ['an index as an array', () => matrix().gather(1, [[1], [0]]), [2, 1], [2, 3]],
    ['rows by an array', () => matrix().indexSelect(0, [1]), [1, 2], [3, 4]],
    ['an embedding of an array', () => tg.embedding([1, 0], matrix()), [2, 2], [3, 4, 1, 2]],
    ['in place, an array', () => matrix().add_([1, 2]), [2, 2], [2, 4, 4, 6]],
    ['a function of an array', () => tg.sum([1, 2, 3]), [], [6]],
    ['a mean of an array', () => tg.mean([1, 2, 3]), [], [2]],
    ['the largest of an array', () => tg.amax([1, 3, 2]), [], [3]],
    ['a sorted array', () => tg.sort([3, 1, 2])[0], [3], [1, 2, 3]],
    ['einsum of arrays', () => tg.einsum('i,i->', [1, 2], [3, 4]), [], [11]],
    ['layerNorm over a size', () => tg.layerNorm(typed.zeros(1, 2), 2), [1, 2], [0, 0]],
  ])('%s', (_, f, shape, expected) => {
    const y = f()
    expect(y.shape).toEqual(shape)
    expect(list(y)).toEqual(expected)
  })

  test('arrays take the dtype that numbers would', () => {
    const dtype = (name: typed.DType, array: Untyped): typed.DType =>
      typed.tensor([1, 2], { dtype: name }).mul(array).dtype
    expect(dtype('float64', [1, 2])).toBe('float64')
    expect(dtype('int32', [1, 2])).toBe('int32')
    expect(dtype('int32', [1.5, 2])).toBe('float32')
    expect(dtype('float32', [true, false])).toBe('float32')
    expect(dtype('float32', new Float64Array(2))).toBe('float64')
    expect(tg.crossEntropy(matrix(), [0, 1]).itemSync()).toBeCloseTo(0.8133, 4)
  })

  test('gradients reach the tensor beside an array', () => {
    const x = typed.ones([2], { requiresGrad: true })
    x.mul([2, 3]).sum().backward()
    expect(list(x.grad)).toEqual([2, 3])
  })
})

describe('wrong guesses get words', () => {
  const x = matrix()
  const gone = typed.ones([1])
  gone.dispose()
  class Net {
    forward(): void {}
  }
  const foreign = {
    Tensor: class Tensor {
      shape = [2]
      dtype = 'float32'
    },
  }
  const takes = /add: takes a tensor, got /
  test.each<[string, () => unknown, string | RegExp]>([
    ['a text', () => x.add('2'), "add: takes a tensor, got '2'"],
    ['nothing', () => x.add(), 'add: takes a tensor, got undefined'],
    ['null', () => x.add(null), takes],
    ['a truth value', () => x.add(true), 'got true'],
    ['a bigint', () => x.add(2n), 'got 2n'],
    ['an object', () => x.add({ a: 1 }), 'got an object with a'],
    ['a promise', () => x.add(Promise.resolve(x)), 'a promise; did you forget await?'],
    ['a promise for data', () => tg.tensor(x.data()), 'did you forget await?'],
    ['a module', () => x.add(new Net()), /a module Net; call its forward/],
    ['a function', () => x.add(tg.full), 'got the function full'],
    ['an array of tensors', () => x.add([x, x]), 'join tensors with stack or cat'],
    ['tensors of tensors', () => tg.tensor([x, x]), 'join tensors with stack or cat'],
    ['a ragged array', () => x.add([[1], [1, 2]]), /add: ragged nesting/],
    ['an endless array', () => tg.tensor(endless()), 'more than 64 deep'],
    ['a number to a function of tensors', () => tg.exp(1), /exp: takes a tensor, got 1; make it one/],
    ['nothing to a function of tensors', () => tg.sum(undefined), 'sum: takes a tensor, got undefined'],
    ['tensors one by one', () => tg.cat(x, x), 'as cat([a, b]), got a tensor [2, 2]'],
    ['classes with fractions', () => tg.crossEntropy(x, [0.5, 1]), /int32 cannot hold 0.5/],
    ['a freed tensor', () => gone.add(1), /was freed by dispose\(\)/],
    ['backward of a number', () => tg.backward(3), 'backward: takes a tensor, got 3'],
    [
      'attention without queries',
      () => tg.scaledDotProductAttention(undefined, x, x),
      'takes a tensor, got undefined',
    ],
    ['a shape as a text', () => tg.zeros('3'), "zeros([2, 3]) or zeros(2, 3), got '3'"],
    ['no shape', () => tg.zeros(), 'got undefined'],
    ['a size as a text', () => tg.zeros(['3']), "not '3'"],
    ['a negative size', () => tg.zeros(-1), '[-1] is no shape'],
    ['a size of no number', () => tg.randn([Number.NaN]), '[NaN] is no shape'],
    ['half a size', () => tg.ones([1.5]), '[1.5] is no shape'],
    ['reshape to a text', () => x.reshape('4'), /reshape\(2, 3\), got '4'/],
    [
      'an unknown dtype',
      () => tg.zeros([1], { dtype: 'float' }),
      "'float' is no dtype; did you mean 'float32'?",
    ],
    ['int64', () => tg.tensor([1], { dtype: 'int64' }), "did you mean 'int32'?"],
    ['double', () => x.to('double'), "did you mean 'float64'?"],
    ['a dtype of a sum', () => x.sum(0, { dtype: 'long' }), /sum: 'long' is no dtype; did you mean 'int32'/],
    ['an unknown device', () => tg.zeros([1], { device: 'cuda' }), /device 'cuda' is not known/],
    ['a device that is none', () => tg.zeros([1], { device: 5 }), 'takes a name or a backend, got 5'],
    ['to nothing', () => x.to(undefined), 'to: takes a dtype, a device'],
    ['a dim as a text', () => x.softmax('1'), "softmax: dim must be a whole number, got '1'"],
    ['no dim', () => x.softmax(), 'dim must be a whole number, got undefined'],
    [
      'options for a dim',
      () => x.sum({ keepdim: true }),
      /null for all, and options after that; got an object with keepdim/,
    ],
    ['dims one by one', () => x.sum(0, 1), 'several dims go into an array'],
    ['keepdim by place', () => x.sum(0, true), 'options are an object such as { keepdim: … }, got true'],
    [
      'keepDim',
      () => x.sum(0, { keepDim: true }),
      "sum: there is no option 'keepDim'; did you mean 'keepdim'? known: keepdim, dtype",
    ],
    ['requires_grad', () => tg.zeros([1], { requires_grad: true }), "did you mean 'requiresGrad'?"],
    ['device_', () => tg.arange(3, undefined, 1, { device_: 'x' }), "did you mean 'device'?"],
    ['dytpe', () => tg.tensor([1], { dytpe: 'int32' }), "did you mean 'dtype'?"],
    [
      'label_smoothing',
      () => tg.crossEntropy(x, [0, 1], { label_smoothing: 0.1 }),
      "did you mean 'labelSmoothing'?",
    ],
    ['rounding_mode', () => x.div(2, { rounding_mode: 'floor' }), "did you mean 'roundingMode'?"],
    ['causal', () => tg.scaledDotProductAttention(x, x, x, { causal: true }), "did you mean 'isCausal'?"],
    ['retain_graph', () => x.backward({ retain_graph: true }), "did you mean 'retainGraph'?"],
    [
      'an option of nothing near',
      () => x.topk(1, 0, { zzzzzzz: 1 }),
      "topk: there is no option 'zzzzzzz'; known: largest, sorted",
    ],
    [
      'a dtype for options',
      () => tg.tensor([1], 'int32'),
      "options are an object such as { dtype: … }, got 'int32'",
    ],
    ['a tensor for options', () => tg.mseLoss(x, x, x), 'got a tensor [2, 2]'],
    ['a slice at a fraction', () => x.slice(0, 1.5), 'start and end must be whole numbers, got 1.5'],
    ['a slice at a text', () => x.slice(0, '1'), "got '1'"],
    ['split by a text', () => x.split('1'), 'split: takes a size or an array of sizes'],
    ['padding by a number', () => x.pad(1), /pad: takes an array, as pad\(\[1, 1\]\)/],
    ['fill_ with a text', () => x.fill_('1'), "fill_: takes a number, got '1'"],
    ['a scope of no function', () => tg.scope(3), 'scope: takes a function, got 3'],
    ['noGrad of no function', () => tg.noGrad(x), 'noGrad: takes a function, got a tensor [2, 2]'],
    ['gradients by one tensor', () => tg.grad(x, x), 'grad: inputs are an array of tensors'],
    ['an option by its name in NumPy', () => x.std(0, { ddof: 0 }), "did you mean 'correction'?"],
    [
      'a tensor through JSON',
      () => x.add(JSON.parse(JSON.stringify(x))),
      'got a plain copy of a tensor [2, 2]; tensor(data, shape',
    ],
    [
      'a tensor of another copy',
      () => x.add(new foreign.Tensor()),
      'got a tensor [2]; it is of another copy of tilegrad',
    ],
    [
      'no length',
      () => x.narrow(0, 1),
      'narrow: start and length must be whole numbers, got 1 and undefined',
    ],
    ['an option of checkLeaks', () => tg.checkLeaks(() => 1, { keep: true }), "did you mean 'kept'?"],
    ['unbiased', () => x.var(0, { unbiased: false }), "did you mean 'correction'?"],
    ['reduce', () => tg.mseLoss(x, x, { reduce: 'sum' }), "did you mean 'reduction'?"],
    [
      'an object of a class for options',
      () => x.sum(0, Object.assign(new Net(), { rate: 1 })),
      'got a module Net',
    ],
    ['bounds by name', () => x.clamp({ min: 0 }), /got an object with min; arguments before/],
    [
      'classes as floats',
      () => tg.crossEntropy(x, typed.tensor([0, 1])),
      /must have the input's shape \[2, 2\]; classes are int32: convert them with \.to\('int32'\)/,
    ],
    [
      'an unknown activation',
      () => tg.linear(x, x, null, { activation: 'swish' }),
      "linear: there is no activation 'swish'; did you mean 'silu'? known: relu",
    ],
    ['gradcheck of no inputs', () => tg.gradcheck((a: Untyped) => a), 'inputs are an array of tensors'],
    ['gradcheck of one tensor', () => tg.gradcheck((a: Untyped) => a, x), 'got a tensor [2, 2]'],
    ['gradcheck of numbers', () => tg.gradcheck((a: Untyped) => a, [1]), 'gradcheck: takes a tensor, got 1'],
    ['gradcheck of no function', () => tg.gradcheck(x, [x]), 'gradcheck: takes a function'],
    ['a profile of nothing', () => tg.profile(), 'profile: takes a function, got undefined'],
    ['no seed', () => tg.manualSeed(), 'seed: takes a number or a text, got undefined'],
    ['digits of a promise', () => x.sum().item().toFixed(3), 'item: gives a promise, which is no value yet'],
    ['arange of options', () => tg.arange(5, { dtype: 'float32' }), 'arange: takes start, end and step'],
  ])('%s', (_, f, message) => {
    expect(f).toThrow(message)
    expect(f).toThrow(typed.TilegradError)
  })

  test('and for what is promised', async () => {
    await expect(tg.item(3)).rejects.toThrow('item: takes a tensor, got 3')
    await expect(tg.data(undefined)).rejects.toThrow('data: takes a tensor, got undefined')
    await expect(tg.equal(matrix(), 'x')).rejects.toThrow("equal: takes a tensor, got 'x'")
  })

  test('in bounded length, whatever the value', () => {
    expect(() => x.add('a'.repeat(10 ** 6))).toThrow(/.{20,100}/)
    try {
      x.add('a'.repeat(10 ** 6))
    } catch (error) {
      expect(String(error).length).toBeLessThan(200)
    }
    try {
      x.sum(0, { ['k'.repeat(10 ** 6)]: 1 })
    } catch (error) {
      expect(String(error).length).toBeLessThan(300)
    }
  })
})

function endless(): unknown {
  const a: unknown[] = []
  a.push(a)
  return a
}
