import {
  type Backend,
  compile,
  manualSeed,
  ones,
  profile,
  randn,
  reference,
  scope,
  type Tensor,
  tensor,
  withBackend,
  zeros,
} from '@tilegrad/core'
import {
  Adam,
  AdamW,
  clipGradNorm,
  clipGradValue,
  decayGroups,
  GPT,
  Linear,
  type Optimizer,
  parameter,
  SGD,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import { expectNumbers, values } from './helpers.ts'

// In float64 the formulas agree up to rounding, some 1e-16 per operation over a few steps.
const EXACT = { atol: 1e-14, rtol: 1e-13 }

beforeEach(() => manualSeed(19))

const start = [0.5, -1.25, 2, 1e-3]
/** The gradient of step t, made up; one of them is zero. */
const gradient = (t: number): number[] => [Math.sin(t + 1), 0.1 * t - 0.2, t === 1 ? 0 : -3, 1e-4 * (t + 1)]

/** Runs an optimiser over the made-up gradients in float64. */
function run(
  make: (params: Tensor[]) => Optimizer<{ lr: number }>,
  steps = 6,
  before?: (o: Optimizer<{ lr: number }>, t: number) => void,
): number[] {
  const p = parameter(tensor(new Float64Array(start)))
  const optimizer = make([p])
  for (let t = 0; t < steps; t++) {
    before?.(optimizer, t)
    p.grad = tensor(new Float64Array(gradient(t))).keep()
    optimizer.step()
    optimizer.zeroGrad()
  }
  return values(p)
}

/** The same over plain numbers; `rule` gets p, g, state and the step from 1. */
function plain(
  rule: (p: number, g: number, s: Record<string, number>, t: number) => number,
  steps = 6,
): number[] {
  return start.map((initial, i) => {
    const state: Record<string, number> = {}
    let p = initial
    for (let t = 0; t < steps; t++) p = rule(p, gradient(t)[i], state, t + 1)
    return p
  })
}

describe('SGD is PyTorch’s formula', () => {
  it.each([
    [{ lr: 0.1 }],
    [{ lr: 0.1, weightDecay: 0.3 }],
    [{ lr: 0.1, momentum: 0.9 }],
    [{ lr: 0.1, momentum: 0.9, dampening: 0.4, weightDecay: 0.3 }],
    [{ lr: 0.1, momentum: 0.9, nesterov: true, weightDecay: 0.3 }],
  ])('%o', (options) => {
    const {
      lr,
      weightDecay = 0,
      momentum = 0,
      dampening = 0,
      nesterov = false,
    } = options as Record<string, number> & { nesterov?: boolean }
    const expected = plain((p, g0, s) => {
      let g = g0 + weightDecay * p
      if (momentum !== 0) {
        s.buffer = 'buffer' in s ? momentum * s.buffer + (1 - dampening) * g : g
        g = nesterov ? g + momentum * s.buffer : s.buffer
      }
      return p - lr * g
    })
    expectNumbers(
      run((ps) => new SGD(ps, options)),
      expected,
      EXACT,
    )
  })
})

const adamRule =
  ({ lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0, decoupled = false }) =>
  (p0: number, g0: number, s: Record<string, number>, t: number): number => {
    const p = decoupled ? p0 * (1 - lr * weightDecay) : p0
    const g = decoupled ? g0 : g0 + weightDecay * p0
    s.m = beta1 * (s.m ?? 0) + (1 - beta1) * g
    s.v = beta2 * (s.v ?? 0) + (1 - beta2) * g * g
    const mHat = s.m / (1 - beta1 ** t)
    const vHat = s.v / (1 - beta2 ** t)
    return p - (lr * mHat) / (Math.sqrt(vHat) + eps)
  }

describe('Adam and AdamW are PyTorch’s formulas', () => {
  it('Adam', () => {
    expectNumbers(
      run((ps) => new Adam(ps)),
      plain(adamRule({})),
      EXACT,
    )
    const rule = adamRule({ lr: 0.1, beta1: 0.8, beta2: 0.9, eps: 1e-3, weightDecay: 0.2 })
    expectNumbers(
      run((ps) => new Adam(ps, { lr: 0.1, betas: [0.8, 0.9], eps: 1e-3, weightDecay: 0.2 })),
      plain(rule),
      EXACT,
    )
  })

  it('AdamW, which decays by 0.01 unless told', () => {
    expectNumbers(
      run((ps) => new AdamW(ps)),
      plain(adamRule({ weightDecay: 0.01, decoupled: true })),
      EXACT,
    )
    const rule = adamRule({ lr: 0.1, beta1: 0.8, beta2: 0.9, weightDecay: 0.5, decoupled: true })
    expectNumbers(
      run((ps) => new AdamW(ps, { lr: 0.1, betas: [0.8, 0.9], weightDecay: 0.5 })),
      plain(rule),
      EXACT,
    )
  })

  it('the two differ only in the decay', () => {
    expect(run((ps) => new AdamW(ps, { weightDecay: 0 }))).toEqual(run((ps) => new Adam(ps)))
    expect(run((ps) => new AdamW(ps, { weightDecay: 0.5 }))).not.toEqual(
      run((ps) => new Adam(ps, { weightDecay: 0.5 })),
    )
  })

  it('in float32, over 50 steps', () => {
    const p = parameter(tensor(start))
    const optimizer = new AdamW([p], { lr: 0.01, weightDecay: 0.1 })
    for (let t = 0; t < 50; t++) {
      p.grad = tensor(gradient(t % 6)).keep()
      optimizer.step()
      optimizer.zeroGrad()
    }
    const rule = adamRule({ lr: 0.01, weightDecay: 0.1, decoupled: true })
    const expected = start.map((initial, i) => {
      const s = {}
      let at = initial
      for (let t = 0; t < 50; t++) at = rule(at, gradient(t % 6)[i], s, t + 1)
      return at
    })
    // Fifty updates of 0.01, each rounded to float32 (6e-8 of values near 1).
    expectNumbers(values(p), expected, { atol: 2e-6, rtol: 1e-5 })
  })

  it('follow a learning rate that changes, 0 and whole numbers included', () => {
    const rates = [0, 1, 0.5, 0.25, 1, 0]
    const got = run(
      (ps) => new AdamW(ps),
      6,
      (optimizer, t) => {
        optimizer.lr = rates[t]
      },
    )
    const expected = plain((p, g, s, t) =>
      adamRule({ lr: rates[t - 1], weightDecay: 0.01, decoupled: true })(p, g, s, t),
    )
    expectNumbers(got, expected, EXACT)
  })
})

describe('Optimizer', () => {
  const withGrads = (...ps: Tensor[]): void => {
    for (const p of ps) p.grad = ones(p.shape).keep()
  }

  it('one kernel per parameter where a backend cannot join them, and nothing else', () => {
    const ps = [parameter(randn([3, 4])), parameter(randn([5])), parameter(randn([2]))]
    const optimizer = new AdamW(ps)
    withGrads(...ps)
    optimizer.step()
    const { rows } = profile(() => optimizer.step())
    expect(rows.map(({ op, path, calls }) => [op, path, calls])).toEqual([['adamw', 'primitive', 3]])
  })

  it('skips parameters without a gradient, and counts their steps apart', () => {
    const [a, b] = [parameter(ones([2])), parameter(ones([2]))]
    const optimizer = new Adam([a, b], { lr: 0.5 })
    withGrads(a)
    optimizer.step()
    expect(values(b)).toEqual([1, 1])
    expect(Object.keys(optimizer.stateDict().state)).toEqual(['0'])
    withGrads(a, b)
    optimizer.step()
    const { state } = optimizer.stateDict()
    expect([state[0].step, state[1].step]).toEqual([2, 1])
    // The first step of Adam is lr long, whatever came before elsewhere.
    expectNumbers(values(b), [0.5, 0.5], { atol: 1e-6, rtol: 0 })
  })

  it('groups have options of their own; lr sets them all', () => {
    const [a, b] = [parameter(ones([1])), parameter(ones([1]))]
    const optimizer = new SGD([{ params: [a], lr: 0.5 }, { params: [b] }], { lr: 0.25 })
    withGrads(a, b)
    optimizer.step()
    expect([...values(a), ...values(b)]).toEqual([0.5, 0.75])
    expect(optimizer.lr).toBe(0.5)
    optimizer.lr = 1
    expect(optimizer.paramGroups.map((g) => g.lr)).toEqual([1, 1])
    optimizer.paramGroups[1].lr = 2
    optimizer.step()
    expect([...values(a), ...values(b)]).toEqual([-0.5, -1.25])
  })

  it('zeroGrad frees gradients', () => {
    const p = parameter(ones([2]))
    withGrads(p)
    const grad = p.grad as Tensor
    new SGD([p]).zeroGrad()
    expect([p.grad, grad.disposed]).toEqual([null, true])
  })

  it('zeroGrad can keep gradients, as zeros', () => {
    const [a, b] = [parameter(ones([2])), parameter(ones([2]))]
    withGrads(a)
    const grad = a.grad as Tensor
    new SGD([a, b]).zeroGrad({ setToNull: false })
    expect([a.grad === grad, values(a.grad), b.grad]).toEqual([true, [0, 0], null])
  })

  it('state survives scopes and is freed with the optimiser', () => {
    const p = parameter(ones([2]))
    const optimizer = new AdamW([p])
    scope(() => {
      withGrads(p)
      optimizer.step()
    })
    const { expAvg, expAvgSq } = optimizer.stateDict().state[0].tensors
    expect([expAvg.disposed, expAvgSq.disposed]).toEqual([false, false])
    optimizer.dispose()
    expect([expAvg.disposed, expAvgSq.disposed]).toEqual([true, true])
    optimizer.step()
    expect(optimizer.stateDict().state[0].step).toBe(1)
  })

  it('continues from a saved state exactly', () => {
    const resume = <O extends { lr: number }>(make: (p: Tensor) => Optimizer<O>): void => {
      const steps = (optimizer: Optimizer<O>, p: Tensor, from: number, to: number): void => {
        for (let t = from; t < to; t++) {
          p.grad = tensor(gradient(t)).keep()
          optimizer.step()
          optimizer.zeroGrad()
        }
      }
      const p = parameter(tensor(start))
      const first = make(p)
      steps(first, p, 0, 3)
      const q = parameter(p.detach().clone())
      const second = make(q)
      second.lr = 7
      second.loadStateDict(first.stateDict())
      expect(second.lr).toBe(0.1)
      steps(first, p, 3, 6)
      steps(second, q, 3, 6)
      expect(values(q)).toEqual(values(p))
    }
    resume((p) => new AdamW([p], { lr: 0.1, betas: [0.8, 0.9] }))
    resume((p) => new SGD([p], { lr: 0.1, momentum: 0.9, dampening: 0.1 }))
  })

  it('loading refuses what does not fit and changes nothing', () => {
    const make = (...shapes: number[][]) => new Adam(shapes.map((s) => parameter(ones(s))))
    const trained = make([2], [3])
    withGrads(...trained.paramGroups[0].params)
    trained.step()
    const dict = trained.stateDict()
    expect(() => make([2]).loadStateDict(dict)).toThrow(/groups hold \[2\] parameters, here \[1\]/)
    const swapped = make([3], [2])
    swapped.lr = 5
    expect(() => swapped.loadStateDict(dict)).toThrow(/expAvg of parameter 0 is \[2\], the parameter \[3\]/)
    expect([swapped.lr, Object.keys(swapped.stateDict().state)]).toEqual([5, []])
  })

  it('decayGroups: matrices decay, vectors and frozen parameters do not', () => {
    const model = new GPT({ vocabSize: 5, blockSize: 4, numLayers: 1, numHeads: 1, embedDim: 4 })
    model.wte.weight.requiresGrad = false
    const [matrices, vectors] = decayGroups(model, 0.1)
    expect([matrices.weightDecay, vectors.weightDecay]).toEqual([0.1, 0])
    expect(matrices.params.every((p) => p.rank === 2) && vectors.params.every((p) => p.rank === 1)).toBe(true)
    expect(matrices.params.length + vectors.params.length).toBe(model.parameters().length - 1)
    expect(decayGroups(new Linear(2, 2, { bias: false }), 0.1).length).toBe(1)
    const optimizer = new AdamW([matrices, vectors], { weightDecay: 9 })
    expect(optimizer.paramGroups.map((g) => [g.weightDecay, g.betas])).toEqual([
      [0.1, [0.9, 0.999]],
      [0, [0.9, 0.999]],
    ])
  })

  const p = () => parameter(ones([2]))
  const bad: [string, () => unknown, RegExp][] = [
    ['no parameters', () => new SGD([]), /SGD: got no parameters/],
    ['twice', () => ((x) => new Adam([x, x]))(p()), /Adam: a parameter appears twice/],
    ['no leaf', () => new Adam([p().mul(2)]), /\[2\] is the result of an operator/],
    ['lr', () => new SGD([p()], { lr: -1 }), /lr must be ≥ 0, got -1/],
    ['lr of a group', () => new SGD([{ params: [p()], lr: Number.NaN }]), /lr must be ≥ 0, got NaN/],
    [
      'betas',
      () => new AdamW([p()], { betas: [0.9, 1] }),
      /AdamW: betas must lie within 0 ≤ β < 1, got \[0.9, 1\]/,
    ],
    ['nesterov', () => new SGD([p()], { nesterov: true }), /needs momentum > 0/],
  ]
  it.each(bad)('refuses: %s', (_, make, message) => expect(make).toThrow(message))
})

describe('clipping', () => {
  const withGrad = (grad: number[]): Tensor => {
    const p = parameter(zeros([grad.length]))
    p.grad = tensor(grad).keep()
    return p
  }
  // One float32 square root and a product.
  const CLOSE = { atol: 0, rtol: 1e-6 }

  it('clipGradNorm returns the norm of all gradients and scales them together', () => {
    const ps = [withGrad([3, 0]), withGrad([4]), parameter(ones([3]))]
    const norm = clipGradNorm(ps, 1)
    expect(norm.shape).toEqual([])
    expectNumbers(values(norm), [5], CLOSE)
    const factor = 1 / (5 + 1e-6)
    expectNumbers([...values(ps[0].grad), ...values(ps[1].grad)], [3 * factor, 0, 4 * factor], CLOSE)
    expect(ps[2].grad).toBeNull()
  })

  it('clipGradNorm leaves small gradients as they are', () => {
    const p = withGrad([0.3, 0.4])
    expectNumbers(values(clipGradNorm([p], 1)), [0.5], CLOSE)
    expect(values(p.grad)).toEqual([0.3, 0.4].map(Math.fround))
  })

  it('clipGradNorm of nothing is 0; NaN shows', () => {
    expect(values(clipGradNorm([parameter(ones([2]))], 1))).toEqual([0])
    const p = withGrad([Number.NaN, 1])
    expect(values(clipGradNorm([p], 1))).toEqual([Number.NaN])
    expect(values(p.grad)).toEqual([Number.NaN, Number.NaN])
    expect(() => clipGradNorm([p], -1)).toThrow(/maxNorm must be ≥ 0, got -1/)
  })

  it('clipGradValue limits each element', () => {
    const p = withGrad([-3, -0.5, 0.5, 3, Number.NaN])
    clipGradValue([p, parameter(ones([1]))], 1)
    expect(values(p.grad)).toEqual([-1, -0.5, 0.5, 1, Number.NaN])
    expect(() => clipGradValue([p], Number.NaN)).toThrow(/maxValue must be ≥ 0, got NaN/)
  })
})

it('a training step reads nothing from the device, generation the tokens once they are all there', async () => {
  const reads: (readonly number[])[] = []
  const blind: Backend = {
    name: 'blind',
    alloc: (bytes, dtype) => reference.alloc(bytes, dtype),
    free: (buffer) => reference.free(buffer),
    write: (view, data) => reference.write(view, data),
    read: (view) => {
      reads.push(view.shape)
      return reference.read(view)
    },
    kernels: reference.kernels,
  }
  const { norm, model, start } = withBackend(blind, () => {
    const model = new GPT({
      vocabSize: 5,
      blockSize: 4,
      numLayers: 1,
      numHeads: 2,
      embedDim: 4,
      dropout: 0.1,
    })
    const optimizers = [new AdamW(decayGroups(model, 0.1)), new SGD(model.parameters(), { momentum: 0.9 })]
    const { loss } = model.forward(
      tensor([[0, 1, 2]], { dtype: 'int32' }),
      tensor([[1, 2, 3]], { dtype: 'int32' }),
    )
    loss.backward()
    const total = clipGradNorm(model.parameters(), 1)
    clipGradValue(model.parameters(), 0.5)
    for (const optimizer of optimizers) optimizer.step()
    return { norm: total, model, start: tensor([[0, 1]], { dtype: 'int32' }) }
  })
  const tokens = await model.generate(start, { maxNewTokens: 3, topK: 3, topP: 0.9, minP: 0.1 }).tensor()
  expect([norm.device, tokens.device]).toEqual(['blind', 'blind'])
  expect(reads).toEqual([[1, 3]])
  expect(() => norm.itemSync()).toThrow('cannot read at once')
})

it('a compiled step is recorded also beside a parameter that nobody lists', () => {
  const warned = vi.spyOn(console, 'warn').mockImplementation(() => {})
  const x = parameter(ones([2]))
  const optimizer = new SGD([x], { lr: 0.1 })
  const step = compile(() => {
    x.square().sum().backward()
    optimizer.step()
    optimizer.zeroGrad()
  })
  // Each time another one, that has its gradient from elsewhere.
  for (let i = 0; i < 4; i++) {
    parameter(ones([1]))
      .sum()
      .backward()
    step()
  }
  expect(step.plans.length).toBe(1)
  step.dispose()
  warned.mockRestore()
})
