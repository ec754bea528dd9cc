import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  checkpoint,
  dataSync,
  dropout,
  grad,
  layerNorm,
  manualSeed,
  memory,
  noGrad,
  rand,
  randn,
  resetPeakMemory,
  scope,
  softmax,
  type Tensor,
  tensor,
} from '../src/index.ts'
import { collected } from './support/collected.ts'

const values = (t: Tensor | null): number[] => [...dataSync(t as Tensor)]

/** A leaf's gradient, which no scope frees. */
function taken({ grad }: Tensor): number[] {
  const numbers = values(grad)
  grad?.dispose()
  return numbers
}

/** What runs a function: with its intermediates kept, or in a checkpoint. */
type Run = <I extends readonly Tensor[], T>(fn: (...inputs: I) => T, ...inputs: I) => T
const plain: Run = (fn, ...inputs) => fn(...inputs)

interface Layer {
  w: Tensor
  v: Tensor
}
const layers = (n: number, width = 6): Layer[] =>
  Array.from({ length: n }, () => ({
    w: randn([width, width], { requiresGrad: true }),
    v: randn([width, width], { requiresGrad: true }),
  }))
const parameters = (stack: readonly Layer[]): Tensor[] => stack.flatMap(({ w, v }) => [w, v])

/** A residual layer with dropout twice, a composed operator, and its input used in two places. */
const forward = ({ w, v }: Layer, x: Tensor): Tensor => {
  const h = dropout(layerNorm(x, [x.shape[1]]).matmul(w).gelu(), 0.3)
  return x.add(dropout(softmax(h, 1).matmul(v), 0.2))
}

/** Outputs and gradients of a stack, whose last layer is its first one again. */
function train(run: Run, options: { retainGraph?: boolean } = {}): number[][] {
  return scope(() => {
    manualSeed(7)
    const stack = layers(3)
    const x = randn([5, 6], { requiresGrad: true })
    let y = x
    for (const layer of [...stack, stack[0]]) y = run((x) => forward(layer, x), y)
    // Random numbers after a checkpoint go on as without.
    const loss = dropout(y, 0.5).square().mean()
    const out = values(y)
    loss.backward(options)
    if (options.retainGraph) loss.backward()
    const after = values(rand([3]))
    return [values(loss), out, after, ...[x, ...parameters(stack)].map(taken)]
  })
}

describe('checkpoint', () => {
  let before = memory()
  beforeEach(async () => {
    await collected()
    before = memory()
  })
  afterEach(() => {
    expect([memory().tensors, memory().bytes]).toEqual([before.tensors, before.bytes])
  })

  test('gives the same bits: inputs, captured parameters, dropout, a layer used twice', () => {
    const got = train(checkpoint)
    expect(got).toEqual(train(plain))
    expect(got.flat().every(Number.isFinite)).toBe(true)
  })

  test('nested, to any depth', () => {
    const twice: Run = (fn, ...inputs) =>
      checkpoint((...again) => checkpoint((...deep) => checkpoint(fn, ...deep), ...again), ...inputs)
    expect(train(twice)).toEqual(train(plain))
  })

  test('a checkpoint of checkpoints', () => {
    const run = (outer: Run, inner: Run): number[][] =>
      scope(() => {
        manualSeed(3)
        const stack = layers(4)
        const x = randn([5, 6], { requiresGrad: true })
        const half = (from: number, x: Tensor): Tensor =>
          stack.slice(from, from + 2).reduce((y, layer) => inner((y) => forward(layer, y), y), x)
        const y = [0, 2].reduce((y, from) => outer((y) => half(from, y).tanh(), y), x)
        y.square().sum().backward()
        return [x, ...parameters(stack)].map(taken)
      })
    expect(run(checkpoint, checkpoint)).toEqual(run(plain, plain))
  })

  test('twice through a retained graph', () => {
    expect(train(checkpoint, { retainGraph: true })).toEqual(train(plain, { retainGraph: true }))
  })

  test('several outputs, in objects, of which some are inputs, views or unused', () => {
    const run = (run: Run): number[][] =>
      scope(() => {
        manualSeed(5)
        const [x, w] = [randn([4, 3], { requiresGrad: true }), randn([3, 3], { requiresGrad: true })]
        const { a, list, same } = run((x) => {
          const h = x.matmul(w).tanh()
          return { a: h.square(), list: [h.narrow(0, 1, 2), h.exp()], same: x }
        }, x)
        expect(same).toBe(x)
        const out = values(a)
        a.sum().add(list[0].mul(3).sum()).backward()
        return [out, taken(x), taken(w)]
      })
    expect(run(checkpoint)).toEqual(run(plain))
  })

  test('grad() of inputs, of parameters, and of what lies before', () => {
    const run = (run: Run): number[][] =>
      scope(() => {
        manualSeed(2)
        const [x, w] = [randn([4, 3], { requiresGrad: true }), randn([3, 3], { requiresGrad: true })]
        const h = x.exp()
        const y = run((h) => h.matmul(w).tanh().matmul(w), h)
        return grad(y.sum(), [h, x, w]).map(values)
      })
    expect(run(checkpoint)).toEqual(run(plain))
  })

  test('second derivatives', () => {
    const run = (run: Run): number[] =>
      scope(() => {
        manualSeed(2)
        const [x, w] = [randn([4, 3], { requiresGrad: true }), randn([3, 3], { requiresGrad: true })]
        const y = run((x) => x.matmul(w).tanh().square(), x)
        const [gx, gw] = grad(y.sum(), [x, w], { createGraph: true })
        gx.square().sum().add(gw.square().sum()).backward()
        return [...taken(x), ...taken(w)]
      })
    const [got, want] = [run(checkpoint), run(plain)]
    // Sums meet in another order, as the second pass goes through two graphs: float32 rounding.
    got.forEach((g, i) => {
      expect(Math.abs(g - want[i])).toBeLessThan(1e-5 * (1 + Math.abs(want[i])))
    })
  })

  test('hooks and retained gradients of intermediates', () => {
    const run = (run: Run): number[][] =>
      scope(() => {
        const x = tensor([1, 2], { requiresGrad: true })
        let inner: Tensor | null = null
        const y = run((x) => {
          const h = x.square()
          if (!inner) {
            inner = h.retainGrad()
            h.registerHook((g) => g.mul(10))
          }
          return h.mul(3)
        }, x)
        y.sum().backward()
        return [taken(x), taken(inner as unknown as Tensor)]
      })
    expect(run(checkpoint)).toEqual(run(plain))
    expect(run(checkpoint)).toEqual([
      [60, 120],
      [30, 30],
    ])
  })

  test('backward after the scope that ran it, with inputs that have no gradient', () => {
    const w = tensor([1, 2], { requiresGrad: true })
    const y = scope(() => {
      const constant = tensor([3, 4])
      return checkpoint((c) => w.mul(c.reshape([2, 1]).reshape([2])).square(), constant)
    })
    y.sum().backward()
    expect(taken(w)).toEqual([2 * 9, 2 * 2 * 16])
    for (const t of [w, y]) t.dispose()
    // The constant outlived its scope with the graph, and is nobody's now.
    before = { ...before, tensors: memory().tensors, bytes: memory().bytes }
  })

  test('records nothing under noGrad, and frees intermediates where nothing needs a gradient', () => {
    scope(() => {
      const w = randn([2, 2], { requiresGrad: true })
      expect(noGrad(() => checkpoint((x) => x.matmul(w), randn([2, 2]))).requiresGrad).toBe(false)
      const x = randn([2, 2])
      const tensors = memory().tensors
      const y = checkpoint((x) => x.exp().log().exp(), x)
      expect([y.requiresGrad, memory().tensors - tensors]).toEqual([false, 1])
    })
  })

  test('leaves no tensor behind without a scope either', () => {
    const x = randn([8, 8], { requiresGrad: true })
    const loss = checkpoint((x) => x.matmul(x).gelu().sum(), x)
    loss.backward()
    for (const t of [loss, x.grad as Tensor, x]) t.dispose()
  })

  test('keeps one layer instead of all: the peak of a deep stack falls', () => {
    const [depth, width, rows] = [20, 8, 60]
    const bytes = 4 * rows * width
    const peak = (run: Run): number =>
      scope(() => {
        manualSeed(1)
        const stack = layers(depth, width)
        const x = randn([rows, width])
        resetPeakMemory()
        const start = memory().bytes
        let y = x
        for (const layer of stack) y = run((x) => forward(layer, x), y)
        y.sum().backward()
        for (const p of parameters(stack)) p.grad?.dispose()
        return (memory().peakBytes - start) / bytes
      })
    const [without, withIt] = [peak(plain), peak(checkpoint)]
    // Without: at least 7 activations a layer. With: one a layer, and about 20 of the layer at work.
    expect(without).toBeGreaterThan(7 * depth)
    expect(withIt).toBeLessThan(depth + 24)
  })

  test('with retainGraph nothing that was restored stays', () => {
    scope(() => {
      const x = randn([50, 4], { requiresGrad: true })
      const loss = checkpoint((x) => x.exp().square().tanh(), x).sum()
      loss.backward({ retainGraph: true })
      const bytes = memory().bytes
      for (let i = 0; i < 3; i++) loss.backward({ retainGraph: true })
      expect(memory().bytes).toBe(bytes)
      x.grad?.dispose()
    })
  })
})

describe('checkpoint says', () => {
  beforeEach(collected)

  test('that the function must be synchronous', () => {
    expect(() => checkpoint(async (x) => x.exp(), tensor([1]))).toThrow(
      'checkpoint: the function returned a promise',
    )
  })

  test('that an input was modified in place', () => {
    scope(() => {
      const [x, w] = [tensor([1, 2], { requiresGrad: true }), tensor([3, 4], { requiresGrad: true })]
      const y = checkpoint((x) => x.mul(w), x)
      noGrad(() => w.add_(1))
      expect(() => y.sum().backward()).toThrow('a tensor [2] that its function reads was modified in place')
    })
  })

  test('that the function did something else the second time', () => {
    scope(() => {
      const before = memory().tensors
      const x = tensor([1, 2], { requiresGrad: true })
      let calls = 0
      const y = checkpoint((x) => (calls++ === 0 ? x.exp() : x.sin()), x)
      const more = checkpoint((x) => (calls++ === 1 ? x.exp() : x.exp().exp()), x)
      expect(() => y.sum().backward()).toThrow('exp [2], then sin [2]')
      expect(() => more.sum().backward()).toThrow('nothing, then exp [2]')
      // x and both sums: the graphs were freed in part, so that the rest is of no use.
      expect(memory().tensors - before).toBe(3)
    })
  })

  test('who freed an intermediate that escaped', () => {
    scope(() => {
      let inner: Tensor | null = null
      checkpoint(
        (x) => {
          inner = x.exp()
          return inner.sum()
        },
        tensor([1, 2], { requiresGrad: true }),
      )
      expect(() => dataSync(inner as unknown as Tensor)).toThrow('was freed by checkpoint()')
    })
  })

  test('what was thrown inside, and frees what was made', () => {
    const before = memory().tensors
    const x = tensor([1, 2], { requiresGrad: true })
    expect(() =>
      checkpoint((x) => {
        x.exp()
        throw new Error('stop')
      }, x),
    ).toThrow('stop')
    x.dispose()
    expect(memory().tensors).toBe(before)
  })
})
