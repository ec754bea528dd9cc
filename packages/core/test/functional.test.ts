import {
  checkLeaks,
  compile,
  dropout,
  grad,
  hessian,
  jacobian,
  manualSeed,
  noGrad,
  ones,
  randn,
  scope,
  type Tensor,
  tensor,
  vmap,
  zeros,
} from '@tilegrad/core'
import { beforeEach, describe, expect, it } from 'vitest'

beforeEach(() => manualSeed(41))

/** Shapes are equal, and numbers to float32's last digits (sums of three products at most). */
function close(t: Tensor, shape: readonly number[], want: readonly number[]): void {
  expect(t.shape).toEqual(shape)
  const got = [...t.dataSync()]
  expect(got.length).toBe(want.length)
  got.forEach((x, i) => {
    // Written so that NaN fails.
    if (!(Math.abs(x - want[i]) <= 2e-6 + 2e-6 * Math.abs(want[i])))
      throw new Error(`element ${i} is ${x}, expected ${want[i]}`)
  })
}

const a = tensor([
  [1, 2, 3],
  [4, 5, 6],
])
const b = tensor([0.5, -1, 2])

/** Numbers on the diagonal of (n, n). */
const diagonal = (values: readonly number[]): number[] =>
  values.flatMap((v, i) => values.map((_, j) => (i === j ? v : 0)))

describe('jacobian', () => {
  it('gives what PyTorch gives, a block for each output and input', () => {
    const [[da, db], [ea, eb]] = jacobian(
      (a, b) => [a.mul(b).sin(), a.matmul(b).exp().div(100)] as const,
      [a, b],
    )
    // torch.autograd.functional.jacobian of PyTorch 1.13.
    close(da, [2, 3, 2, 3], diagonal([0.438791, 0.416147, 1.920341, -0.208073, -0.283662, 1.687708]))
    close(
      db,
      [2, 3, 3],
      [
        [0.877583, 0, 0, 0, -0.832294, 0, 0, 0, 2.880511],
        [-1.664587, 0, 0, 0, 1.418311, 0, 0, 0, 5.063124],
      ].flat(),
    )
    close(ea, [2, 2, 3], [0.450086, -0.900171, 1.800343, 0, 0, 0, 0, 0, 0, 40.515419, -81.030838, 162.061676])
    close(eb, [2, 3], [0.900171, 1.800343, 2.700514, 324.123352, 405.154175, 486.185028])
  })

  it('is a tensor, or an array by outputs or by inputs, as the function is', () => {
    const one = jacobian((x) => x.square(), b)
    close(one, [3, 3], diagonal([1, -2, 4]))
    const outputs = jacobian((x) => [x.sum(), x.mul(2)], b)
    expect(outputs.map((t) => t.shape)).toEqual([[3], [3, 3]])
    const [only] = jacobian((x) => x.sum(), [b])
    close(only, [3], [1, 1, 1])
    const [[row]] = jacobian((x) => [x.sum()] as const, [b])
    close(row, [3], [1, 1, 1])
  })

  it('has zeros where nothing depends, and the identity for what does nothing', () => {
    const w = ones([2], { requiresGrad: true })
    close(
      jacobian(() => w.mul(2), b),
      [2, 3],
      Array(6).fill(0),
    )
    close(
      jacobian(() => zeros([2]), b),
      [2, 3],
      Array(6).fill(0),
    )
    close(
      jacobian((x) => x, b),
      [3, 3],
      diagonal([1, 1, 1]),
    )
    const [left, right] = jacobian((x, _) => x.mul(3), [b, b])
    close(left, [3, 3], diagonal([3, 3, 3]))
    close(right, [3, 3], Array(9).fill(0))
    expect(w.grad).toBe(null)
  })

  it('takes scalars, nothing, views, other dtypes, and runs in noGrad', () => {
    close(
      jacobian((x) => x.square(), tensor(3)),
      [],
      [6],
    )
    expect(jacobian((x) => x.narrow(0, 0, 0), b).shape).toEqual([0, 3])
    close(
      noGrad(() => jacobian((x) => x.sum(0), a.T)),
      [2, 3, 2],
      [1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1],
    )
    expect(jacobian((x) => x.mul(2), b.to('float64')).dtype).toBe('float64')
  })

  it('can be differentiated itself, where asked', () => {
    const x = tensor([1, 2], { requiresGrad: true })
    expect(jacobian((x) => x.pow(3), x).requiresGrad).toBe(false)
    jacobian((x) => x.pow(3), x, { createGraph: true })
      .sum()
      .backward()
    expect([...(x.grad as Tensor).dataSync()]).toEqual([6, 12])
  })

  it('leaves nothing behind', () => {
    const x = randn([3], { requiresGrad: true })
    checkLeaks(() => scope(() => void jacobian((x) => [x.sin(), x.matmul(x)], x)))
    checkLeaks(() => jacobian((x) => x.exp().cumsum(0), x))
    checkLeaks(() => hessian((x) => x.exp().prod(), x))
    checkLeaks(() => vmap((x: Tensor) => x.exp().mul(x).sum())(a))
  })

  it('says what it does not take', () => {
    expect(() => jacobian(3 as never, b)).toThrow('jacobian')
    expect(() => jacobian((x: Tensor) => x, 3 as never)).toThrow(
      'inputs must be a tensor or an array of tensors',
    )
    expect(() => jacobian((async (x: Tensor) => x) as never, b)).toThrow('it must be synchronous')
    expect(() => jacobian((x) => x, b, { vectorize: true } as never)).toThrow("no option 'vectorize'")
    expect(() => jacobian((x) => x, tensor([1], { dtype: 'int32' }))).toThrow('int32')
  })
})

describe('hessian', () => {
  it('gives what PyTorch gives, a block for each pair of inputs', () => {
    const [[aa, ab], [ba, bb]] = hessian((a, b) => a.matmul(b).square().sum().add(b.pow(3).sum()), [a, b])
    // torch.autograd.functional.hessian of PyTorch 1.13.
    const block = [0.5, -1, 2, -1, 2, -4, 2, -4, 8]
    const want = Array.from({ length: 36 }, (_, n) => {
      const [i, j] = [Math.floor(n / 6), n % 6]
      return Math.floor(i / 3) === Math.floor(j / 3) ? (block[(i % 3) * 3 + (j % 3)] as number) : 0
    })
    close(aa, [2, 3, 2, 3], want)
    close(ab, [2, 3, 3], [10, 2, 3, -2, 5, -6, 4, 8, 21, 22, 5, 6, -8, 8, -12, 16, 20, 42])
    close(ba, [3, 2, 3], [10, -2, 4, 22, -8, 16, 2, 5, 8, 5, 8, 20, 3, -6, 21, 6, -12, 42])
    close(bb, [3, 3], [37, 44, 54, 44, 52, 72, 54, 72, 102])
  })

  it('is zeros of what is linear, and can be differentiated itself', () => {
    close(
      hessian((x) => x.sum().mul(2), b),
      [3, 3],
      Array(9).fill(0),
    )
    close(
      hessian(() => tensor(1), b),
      [3, 3],
      Array(9).fill(0),
    )
    const x = tensor([1, 2], { requiresGrad: true })
    hessian((x) => x.pow(4).sum(), x, { createGraph: true })
      .sum()
      .backward()
    expect([...(x.grad as Tensor).dataSync()]).toEqual([24, 48])
    expect(() => hessian((x) => x, b)).toThrow('hessian: the function must give one element, got [3]')
  })
})

describe('vmap', () => {
  it('runs over any dims, and puts them anywhere', () => {
    const [x, y] = [randn([4, 2, 3]), randn([3, 5, 4])]
    const products = vmap((a: Tensor, b: Tensor) => a.matmul(b), { inDims: [0, -1], outDims: 1 })(x, y)
    expect(products.shape).toEqual([2, 4, 5])
    for (let i = 0; i < 4; i++) {
      close(products.select(1, i), [2, 5], [...x.select(0, i).matmul(y.select(2, i)).dataSync()])
    }
    const [sums, doubles] = vmap((row: Tensor) => [row.sum(), row.mul(2)] as const, { outDims: [0, -1] })(a)
    close(sums, [2], [6, 15])
    close(doubles, [3, 2], [2, 8, 4, 10, 6, 12])
  })

  it('hands on whole what has no dim, and nests', () => {
    const scaled = vmap((x: Tensor, w: Tensor, n: number) => x.mul(w).mul(n), { inDims: [0, null, null] })
    close(scaled(a, b, 2), [2, 3], [1, -4, 12, 4, -10, 24])
    const outer = vmap((x: Tensor) => vmap((y: Tensor) => x.mul(y), { inDims: 0 })(b))
    close(outer(b), [3, 3], [0.25, -0.5, 1, -0.5, 1, -2, 1, -2, 4])
  })

  it('lets gradients through, of all slices and of each', () => {
    const w = tensor([1, 2, 3], { requiresGrad: true })
    vmap((x: Tensor) => x.mul(w).sum().square())(a)
      .sum()
      .backward()
    const whole = a.matmul(w).square().sum()
    const [want] = grad(whole, [w]) as [Tensor]
    close(w.grad as Tensor, [3], [...want.dataSync()])
    const each = vmap((x: Tensor) => grad(x.mul(w).sum().square(), [w])[0] as Tensor)(a)
    close(each.sum(0), [3], [...want.dataSync()])
    const diagonals = vmap((x: Tensor) => jacobian((x) => x.square(), x))(a)
    close(diagonals.select(0, 1), [3, 3], diagonal([8, 10, 12]))
  })

  it('draws other numbers for each slice, and runs compiled', () => {
    const dropped = vmap((x: Tensor) => dropout(x, 0.5))(ones([2, 64]))
    expect([...dropped.select(0, 0).dataSync()]).not.toEqual([...dropped.select(0, 1).dataSync()])
    const compiled = compile((x: Tensor) => vmap((row: Tensor) => row.exp().sum())(x))
    for (const x of [a, a.add(1), a.sub(2)]) close(compiled(x), [2], [...x.exp().sum(1).dataSync()])
  })

  it('says what it does not take', () => {
    const sum = (...xs: Tensor[]) => xs.reduce((a, b) => a.add(b))
    expect(() => vmap(sum)(a, b)).toThrow('equally many slices, got 2, 3')
    expect(() => vmap(sum, { inDims: [0] })(a, a)).toThrow('inDims has 1 entries for 2 arguments')
    expect(() => vmap(sum, { inDims: 2 })(a)).toThrow('vmap')
    expect(() => vmap(sum, { inDims: [null] })(a)).toThrow('all of inDims are null')
    expect(() => vmap(sum)(zeros([0, 2]))).toThrow('there is not one slice')
    expect(() => vmap(sum as never)(3 as never)).toThrow('give it null in inDims')
    expect(() => vmap(sum, { outDims: 3 })(a)).toThrow('vmap')
    expect(() => vmap((async (x: Tensor) => x) as never)(a as never)).toThrow('promise')
    expect(() => vmap((_: Tensor) => 3 as never)(a)).toThrow('vmap: the result must be a tensor')
  })
})
