import { describe, expect, test } from 'vitest'
import {
  add,
  backward,
  customFunction,
  dataSync,
  div,
  embedding,
  enableGrad,
  GradError,
  grad,
  gradcheck,
  gradEnabled,
  linear,
  matmul,
  mul,
  noGrad,
  ones,
  randn,
  softmax,
  type Tensor,
  tensor,
} from '../src/index.ts'

const leaf = (values: readonly number[]): Tensor => tensor([...values], { requiresGrad: true })
const values = (t: Tensor | null): number[] | null => t && [...dataSync(t)]

describe('backward', () => {
  test('adds up gradients over uses and over calls', () => {
    const x = leaf([2, 3])
    mul(x, x).sum().backward()
    expect(values(x.grad)).toEqual([4, 6])
    add(x, x).sum().backward()
    expect(values(x.grad)).toEqual([6, 8])
  })

  test('adds up what several layers make of one input', () => {
    const [x, v, w] = [
      [2, 3, 4],
      [5, 4],
      [5, 4],
    ].map((shape) => randn(shape))
    const parts = (x: Tensor, v: Tensor, w: Tensor): Tensor => {
      const h = x.mul(2)
      return linear(h, v)
        .add(linear(h.narrow(0, 0, 2), w, null, { activation: 'tanh' }))
        .add(linear(h, w))
    }
    gradcheck(parts, [x, v, w])
    // The second derivative: a recorded pass adds by itself.
    gradcheck((x, v, w) => grad(parts(x, v, w).square().sum(), [x], { createGraph: true })[0], [x, v, w])
  })

  test('reaches every leaf, and only those that ask for it', () => {
    const [a, b, c] = [leaf([1, 2]), tensor([3, 4]), leaf([5, 6])]
    a.mul(b).add(c).sum().backward()
    expect([values(a.grad), b.grad, values(c.grad)]).toEqual([[3, 4], null, [1, 1]])
  })

  test('starts from a given gradient', () => {
    const x = leaf([1, 2])
    x.mul(3).backward({ gradient: tensor([10, 100]) })
    expect(values(x.grad)).toEqual([30, 300])
  })

  test('wants a scalar, or a gradient of the shape of its root', () => {
    const y = leaf([1, 2]).mul(3)
    expect(() => y.backward()).toThrow(/^backward: the output \[2\] is no scalar; reduce it/)
    expect(() => y.backward({ gradient: ones([3]) })).toThrow(
      "backward: gradient [3] must have the output's shape [2]",
    )
    expect(() => tensor(1).backward()).toThrow(/^backward: the tensor \[\] does not require a gradient/)
  })

  test('frees its graph: a second pass says how to keep it', () => {
    const x = leaf([2])
    const y = x.mul(x).sum()
    y.backward()
    expect(() => y.backward()).toThrow(
      /the graph through .* was freed by an earlier backward\(\); pass \{ retainGraph: true \}/,
    )
    const z = x.mul(x).sum()
    z.backward({ retainGraph: true })
    z.backward()
    expect(values(x.grad)).toEqual([12])
  })

  test('frees intermediates but keeps scalars and kept tensors readable', () => {
    const x = leaf([1, 2, 3])
    // More than the 8 MiB that stay in any case.
    const middle = x
      .reshape([3, 1])
      .expand([3, 2 ** 20])
      .neg()
    const kept = middle.mul(2).keep()
    const scalar = kept.sum()
    const loss = scalar.mul(2)
    loss.backward()
    expect(() => dataSync(middle)).toThrow(
      /tensor \[3, 1048576\] was freed by backward\(\); .* call \.keep\(\) on what you still need/,
    )
    expect(kept.disposed).toBe(false)
    expect([scalar.itemSync(), loss.itemSync()]).toEqual([-12 * 2 ** 20, -24 * 2 ** 20])
    kept.dispose()
  })

  test('goes through a diamond once per node, however deep', () => {
    const x = leaf([1])
    let y = x
    for (let i = 0; i < 60; i++) y = y.add(y)
    y.sum().backward()
    expect(values(x.grad)).toEqual([2 ** 60])
  })

  test('goes through long chains without running out of stack', () => {
    const x = leaf([0.5])
    let y = x
    for (let i = 0; i < 20_000; i++) y = y.add(1)
    y.sum().backward()
    expect(values(x.grad)).toEqual([1])
  })

  test('ignores integer paths', () => {
    const x = leaf([1.5, 2.5])
    const y = x.to('int32')
    expect(y.requiresGrad).toBe(false)
    expect(x.gt(2).requiresGrad).toBe(false)
    expect(x.argmax().requiresGrad).toBe(false)
  })

  test('converts gradients between dtypes', () => {
    const x = leaf([1, 2])
    const y = x.to('float64').mul(3)
    expect(y.dtype).toBe('float64')
    y.sum().backward()
    expect([x.grad?.dtype, values(x.grad)]).toEqual(['float32', [3, 3]])
  })
})

describe('grad', () => {
  test('returns gradients without touching .grad', () => {
    const [x, y] = [leaf([2]), leaf([5])]
    const [gx, gy] = grad(mul(x, y).sum(), [x, y])
    expect([values(gx), values(gy), x.grad, y.grad]).toEqual([[5], [2], null, null])
  })

  test('of an intermediate, with several outputs and their gradients', () => {
    const x = leaf([1, 2])
    const m = x.mul(3)
    const [gm, gx] = grad([m.mul(m), m], [m, x], { gradOutputs: [ones([2]), tensor([10, 10])] })
    expect(values(gm)).toEqual([2 * 3 + 10, 2 * 6 + 10])
    expect(values(gx)).toEqual([48, 66])
  })

  test('says which input is not reached', () => {
    const [x, y] = [leaf([1]), leaf([1, 2])]
    expect(() => grad(x.sum(), [x, y])).toThrow(
      /grad: the outputs do not depend on input 1, a tensor \[2\]; pass \{ allowUnused: true \}/,
    )
    expect(grad(x.sum(), [x, y], { allowUnused: true })[1]).toBeNull()
    expect(() => grad(x.sum(), [tensor([1])])).toThrow(
      /grad: input 0, a tensor \[1\], does not require a gradient/,
    )
  })

  test('computes only what leads to the wanted inputs', () => {
    const [x, w] = [leaf([1]), leaf([2])]
    let called = 0
    const watched = customFunction({
      forward: (_, t) => t.mul(2),
      backward: (_, d) => {
        called++
        return [d.mul(2)]
      },
    })
    const y = add(watched(x), w).sum()
    expect(values(grad(y, [w], { retainGraph: true })[0])).toEqual([1])
    expect(called).toBe(0)
    expect(values(grad(y, [x])[0])).toEqual([2])
    expect(called).toBe(1)
  })
})

describe('higher derivatives', () => {
  test('of x⁴', () => {
    const x = leaf([2])
    let y = x.pow(4).sum()
    const found: number[] = []
    for (let n = 0; n < 4; n++) {
      const [g] = grad(y, [x], { createGraph: true })
      found.push(dataSync(g)[0])
      y = g.sum()
    }
    expect(found).toEqual([32, 48, 48, 24])
  })

  test('a gradient penalty through matmul and softmax', () => {
    gradcheck(
      (x, w) => {
        const y = softmax(matmul(x, w), 1).square().sum()
        const [g] = grad(y, [x], { createGraph: true })
        return g.square().sum()
      },
      [
        tensor([
          [0.3, -1.2],
          [0.8, 0.1],
          [1.5, -0.4],
        ]),
        tensor([
          [0.2, 1.1, -0.7],
          [-0.5, 0.4, 0.9],
        ]),
      ],
    )
  })

  test('backward with createGraph leaves .grad differentiable', () => {
    const x = leaf([3])
    x.pow(3).sum().backward({ createGraph: true })
    const g = x.grad as Tensor
    expect(values(g)).toEqual([27])
    expect(values(grad(g.sum(), [x])[0])).toEqual([18])
  })

  test('without createGraph a gradient has no graph', () => {
    const x = leaf([3])
    const [g] = grad(x.pow(3).sum(), [x])
    expect(g.requiresGrad).toBe(false)
  })
})

describe('modes', () => {
  test('noGrad records nothing, enableGrad inside it does', () => {
    const x = leaf([1])
    expect(noGrad(() => x.mul(2)).requiresGrad).toBe(false)
    expect(noGrad(() => enableGrad(() => x.mul(2))).requiresGrad).toBe(true)
    expect(gradEnabled()).toBe(true)
    expect(() => noGrad(() => expect(gradEnabled()).toBe(true))).toThrow()
    expect(gradEnabled()).toBe(true)
  })

  test('noGrad refuses asynchronous functions', () => {
    expect(() => noGrad(async () => 1)).toThrow(GradError)
    expect(gradEnabled()).toBe(true)
  })

  test('detach cuts the tape and shares the memory', () => {
    const x = leaf([1, 2])
    const d = x.mul(3).detach()
    expect([d.requiresGrad, d.isLeaf, values(d)]).toEqual([false, true, [3, 6]])
    x.mul(x.detach()).sum().backward()
    expect(values(x.grad)).toEqual([1, 2])
  })

  test('requiresGrad is for floating leaves', () => {
    const x = leaf([1])
    expect(() => {
      x.mul(2).requiresGrad = false
    }).toThrow('requiresGrad: only leaf tensors can change it; use detach()')
    expect(() => tensor([1], { dtype: 'int32', requiresGrad: true })).toThrow(
      'requiresGrad: only floating tensors have gradients, this one is int32',
    )
    x.requiresGrad = false
    expect(x.mul(2).requiresGrad).toBe(false)
  })
})

describe('hooks', () => {
  test('see the complete gradient once, in order, and may replace it', () => {
    const x = leaf([1, 2])
    const seen: number[][] = []
    const m = x.mul(1)
    m.registerHook((g) => void seen.push(values(g) as number[]))
    m.registerHook((g) => g.mul(10))
    m.registerHook((g) => void seen.push(values(g) as number[]))
    add(m.sum(), m.mul(2).sum()).backward()
    expect(seen).toEqual([
      [3, 3],
      [30, 30],
    ])
    expect(values(x.grad)).toEqual([30, 30])
  })

  test('of leaves change what is stored, until removed', () => {
    const x = leaf([1])
    const remove = x.registerHook((g) => g.neg())
    x.mul(2).sum().backward()
    expect(values(x.grad)).toEqual([-2])
    remove()
    x.mul(2).sum().backward()
    expect(values(x.grad)).toEqual([0])
  })

  test('must keep the shape, and need a gradient', () => {
    const x = leaf([1, 2])
    x.registerHook((g) => g.sum())
    expect(() => x.sum().backward()).toThrow('hook: returned a gradient [] for a tensor [2]')
    const y = x.mul(2)
    y.registerHook((() => 5) as unknown as () => Tensor)
    expect(() => y.sum().backward()).toThrow('hook: takes a tensor, got 5')
    const z = leaf([1, 2])
    z.registerHook((g) => g.to('float64'))
    expect(() => z.sum().backward()).toThrow('hook: returned a gradient of float64 for a tensor of float32')
    expect(() => tensor([1]).registerHook(() => {})).toThrow('does not require a gradient')
  })

  test('retainGrad keeps the gradient of an intermediate', () => {
    const x = leaf([1, 2])
    const [m, other] = [x.mul(3).retainGrad(), x.mul(2)]
    add(m.square(), other).sum().backward()
    expect(values(m.grad)).toEqual([6, 12])
    expect(other.grad).toBeNull()
  })
})

describe('gradcheck', () => {
  const wrong = customFunction({ forward: (_, x) => x.square(), backward: (_, d) => [d] })

  test('names the element whose gradient is wrong', () => {
    expect(() => gradcheck(wrong, [tensor([0.5, 3])])).toThrow(
      /^gradcheck: input 0 \[2\], element 1: the gradient is \S+, finite differences say \S+/,
    )
  })

  test('notices a gradient that is missing', () => {
    expect(() => gradcheck((x) => add(x, x.detach()), [tensor([1])])).toThrow(GradError)
    expect(() => gradcheck((x) => x, [tensor([1], { dtype: 'int32' })])).toThrow('no floating input')
  })
})

describe('gradients that are 0 by rule', () => {
  test('the padding row of an embedding learns nothing', () => {
    const w = ones([3, 2], { requiresGrad: true })
    const index = tensor([0, 1, 1, 2], { dtype: 'int32' })
    for (const paddingIdx of [1, -2]) {
      w.grad = null
      embedding(index, w, { paddingIdx }).sum().backward()
      expect(values(w.grad)).toEqual([1, 1, 0, 0, 1, 1])
    }
  })

  test('behind a rounding, also where the quotient is infinite', () => {
    const [x, y] = [leaf([1, 7]), leaf([0, 2])]
    div(x, y, { roundingMode: 'floor' }).sum().backward()
    expect([values(x.grad), values(y.grad)]).toEqual([
      [0, 0],
      [0, 0],
    ])
  })

  test('of what was not used', () => {
    const x = leaf([1, 2, 3])
    backward(x.narrow(0, 1, 1).sum())
    expect(values(x.grad)).toEqual([0, 1, 0])
  })
})
