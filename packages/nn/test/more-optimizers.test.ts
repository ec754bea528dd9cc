/** Optimisers beside Adam and SGD, held to plain loops in float64 and to what must not change; PyTorch's own steps are in test/conformance. */
import {
  checkLeaks,
  compile,
  manualSeed,
  ones,
  randn,
  ShapeError,
  scope,
  type Tensor,
  tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import {
  Adafactor,
  Adagrad,
  AdamW,
  EMA,
  Embedding,
  GPT,
  GradScaler,
  Linear,
  Lion,
  Muon,
  muonGroups,
  type Optimizer,
  parameter,
  RMSprop,
  Sequential,
  Tanh,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, it } from 'vitest'
import { values } from './helpers.ts'

beforeEach(() => manualSeed(7))

type Matrix = number[][]
const product = (a: Matrix, b: Matrix): Matrix =>
  a.map((row) => b[0].map((_, j) => row.reduce((sum, x, k) => sum + x * b[k][j], 0)))
const turned = (a: Matrix): Matrix => a[0].map((_, j) => a.map((row) => row[j]))
const combine = (a: Matrix, x: number, b: Matrix, y: number): Matrix =>
  a.map((row, i) => row.map((v, j) => x * v + y * b[i][j]))

/** The Newton–Schulz iteration as it is written down, of one matrix. */
function orthogonal(x: Matrix): Matrix {
  if (x.length > x[0].length) return turned(orthogonal(turned(x)))
  const norm = Math.hypot(...x.flat())
  let y = x.map((row) => row.map((v) => v / norm))
  for (let i = 0; i < 5; i++) {
    const gram = product(y, turned(y))
    y = combine(y, 3.4445, product(combine(gram, -4.775, product(gram, gram), 2.0315), y), 1)
  }
  return y
}

const rows = (t: Tensor): Promise<Matrix> => t.detach().toArray() as Promise<Matrix>

describe('Muon', () => {
  it.each([
    [3, 5],
    [6, 4],
    [4, 4],
    [1, 7],
  ])('goes by orthogonal matrices, of %i × %i', async (a, b) => {
    const p = parameter(randn([a, b], { dtype: 'float64' }))
    const optimizer = new Muon([p], { lr: 0.1, weightDecay: 0.2, momentum: 0.9 })
    let mean: Matrix = Array.from({ length: a }, () => new Array<number>(b).fill(0))
    let want = await rows(p)
    for (let step = 0; step < 3; step++) {
      p.grad = randn([a, b], { dtype: 'float64' }).keep()
      const g = await rows(p.grad)
      mean = combine(mean, 0.9, g, 0.1)
      const by = orthogonal(combine(g, 0.1, mean, 0.9))
      want = combine(want, 1 - 0.1 * 0.2, by, -0.1 * Math.sqrt(Math.max(1, a / b)))
      optimizer.step()
      const got = await rows(p)
      for (const [i, row] of got.entries())
        for (const [j, v] of row.entries()) expect(v).toBeCloseTo(want[i][j], 10)
    }
  })

  it('moves matrices of one shape together as it would alone', async () => {
    const shapes = [
      [3, 4],
      [4, 3],
      [3, 4],
      [3, 4],
    ] as const
    const start = shapes.map((shape) => randn(shape))
    const grads = shapes.map((shape) => randn(shape))
    const train = async (groups: (ps: Tensor[]) => Tensor[][]): Promise<number[][]> => {
      const ps = start.map((t) => parameter(t.clone()))
      for (const [i, p] of ps.entries()) p.grad = grads[i].clone().keep()
      for (const group of groups(ps)) new Muon(group, { lr: 0.1 }).step()
      return Promise.all(ps.map(values))
    }
    const together = await train((ps) => [ps])
    const alone = await train((ps) => ps.map((p) => [p]))
    for (const [i, all] of together.entries())
      for (const [j, v] of all.entries()) expect(v).toBeCloseTo(alone[i][j], 5)
  })

  it('is for matrices, and says what is for others', () => {
    expect(() => new Muon([parameter(ones([3]))])).toThrow(/parameter is \[3\], no matrix; muonGroups/)
    for (const options of [
      { momentum: 1 },
      { nsSteps: 1.5 },
      { nsCoefficients: [1, 2] },
      { adjustLrFn: 'x' },
    ])
      expect(() => new Muon([parameter(ones([2, 2]))], options as never)).toThrow(ValueError)
  })

  it('parts a model: embeddings, the head and vectors go to others', () => {
    const model = new Sequential(new Embedding(9, 4), new Linear(4, 5), new Tanh(), new Linear(5, 9))
    const { matrices, others } = muonGroups(model)
    expect(matrices.map((p) => p.shape.join())).toEqual(['5,4'])
    expect(others.map((p) => p.shape.join())).toEqual(['9,4', '5', '9,5', '9'])
    expect(muonGroups(model, { others: (name) => name !== '3.weight' }).matrices).toHaveLength(1)
    // A head that is tied to an embedding takes no other matrix's place.
    const gpt = new GPT({ vocabSize: 9, blockSize: 4, numLayers: 2, numHeads: 1, embedDim: 8 })
    expect(muonGroups(gpt).matrices).toHaveLength(8)
  })
})

describe('Lion', () => {
  it.each([false, true])('moves by the sign of a mix, cautious: %s', async (cautious) => {
    const p = parameter(randn([50], { dtype: 'float64' }))
    const optimizer = new Lion([p], { lr: 0.1, betas: [0.8, 0.9], weightDecay: 0.5, cautious })
    let want = await values(p)
    let m = want.map(() => 0)
    for (let step = 0; step < 4; step++) {
      p.grad = randn([50], { dtype: 'float64' }).keep()
      const g = await values(p.grad)
      const by = g.map((x, i) => Math.sign(0.8 * m[i] + (1 - 0.8) * x))
      want = want.map((x, i) => (cautious && x * by[i] < 0 ? x : x * (1 - 0.1 * 0.5)) - 0.1 * by[i])
      m = m.map((x, i) => 0.9 * x + (1 - 0.9) * g[i])
      optimizer.step()
      for (const [i, v] of (await values(p)).entries()) expect(v).toBeCloseTo(want[i], 12)
    }
  })
})

it('AdamW’s cautious decay leaves alone what a step takes away from 0', async () => {
  // The step is lr long, against the gradient.
  const p = parameter(tensor([2, -2, 2, -2], { dtype: 'float64' }))
  p.grad = tensor([1, 1, -1, -1], { dtype: 'float64' }).keep()
  new AdamW([p], { lr: 0.1, weightDecay: 1, eps: 0, cautious: true }).step()
  const got = await values(p)
  for (const [i, v] of [1.7, -2.1, 2.1, -1.7].entries()) expect(got[i]).toBeCloseTo(v, 10)
})

const makers: Record<string, (params: Tensor[]) => Optimizer<{ lr: number }>> = {
  RMSprop: (ps) => new RMSprop(ps, { lr: 0.02, momentum: 0.5, centered: true }),
  Adagrad: (ps) => new Adagrad(ps, { lr: 0.1, initialAccumulatorValue: 0.1 }),
  Lion: (ps) => new Lion(ps, { lr: 0.01 }),
  Muon: (ps) => new Muon(ps, { lr: 0.05 }),
  Adafactor: (ps) => new Adafactor(ps, { lr: 0.05 }),
  'AdamW with the largest squares': (ps) => new AdamW(ps, { lr: 0.02, amsgrad: true }),
}
/** Matrices alone, for Muon takes no others. */
const net = (): Sequential =>
  new Sequential(new Linear(3, 8, { bias: false }), new Tanh(), new Linear(8, 2, { bias: false }))

describe.each(Object.entries(makers))('%s', (name, make) => {
  const loss = (model: Sequential, x: Tensor): Tensor =>
    (model.forward(x) as Tensor)
      .sub(x.narrow(1, 0, 2).mul(0.5))
      .square()
      .mean()

  it('learns, and leaves nothing but its state behind', async () => {
    const model = net()
    const optimizer = make(model.parameters())
    const x = randn([16, 3]).keep()
    const step = (): Tensor =>
      scope(() => {
        const l = loss(model, x)
        l.backward()
        optimizer.step()
        optimizer.zeroGrad()
        return l.detach()
      })
    const first = await step().item()
    await checkLeaks(() => {
      for (let i = 0; i < 3; i++) step().dispose()
    })
    for (let i = 0; i < 60; i++) step().dispose()
    expect(await step().item()).toBeLessThan(0.3 * first)
  })

  it('goes on from what it saved as if it had not stopped', async () => {
    const grads = Array.from({ length: 4 }, () => [randn([8, 3]), randn([2, 8])])
    const run = (model: Sequential, optimizer: Optimizer<{ lr: number }>, from: number, to: number): void => {
      for (let i = from; i < to; i++) {
        for (const [k, p] of model.parameters().entries()) p.grad = grads[i][k].clone().keep()
        optimizer.step()
      }
    }
    const model = net()
    const other = net()
    other.loadStateDict(model.stateDict())
    const optimizer = make(model.parameters())
    run(model, optimizer, 0, 4)
    const halfway = make(other.parameters())
    run(other, halfway, 0, 2)
    const resumed = make(other.parameters())
    resumed.loadStateDict(halfway.stateDict())
    run(other, resumed, 2, 4)
    expect(await Promise.all(other.parameters().map(values))).toEqual(
      await Promise.all(model.parameters().map(values)),
    )
    const dict = halfway.stateDict()
    const [[slot]] = Object.entries(dict.state[0].tensors)
    dict.state[0].tensors[slot] = ones([7, 7])
    expect(() => resumed.loadStateDict(dict)).toThrow(ShapeError)
  })

  it('takes the same steps compiled', async () => {
    const models = [net(), net()]
    models[1].loadStateDict(models[0].stateDict())
    // More than the runs that are recorded anew where numbers change.
    const xs = Array.from({ length: 8 }, () => randn([4, 3]).keep())
    for (const [k, model] of models.entries()) {
      const optimizer = make(model.parameters())
      const step = (x: Tensor): Tensor => {
        const l = loss(model, x)
        l.backward()
        optimizer.step()
        optimizer.zeroGrad()
        return l
      }
      const run = k === 1 ? compile(step) : step
      for (const [i, x] of xs.entries()) {
        optimizer.lr = 0.01 * (i + 1)
        for (const group of optimizer.paramGroups) if ('momentum' in group) group.momentum = 0.5 + 0.05 * i
        scope(() => void run(x))
      }
    }
    const [eager, compiled] = await Promise.all(
      models.flatMap((m) => Promise.all(m.parameters().map(values))),
    )
    for (const [i, all] of eager.entries())
      for (const [j, v] of all.entries()) expect(compiled[i][j]).toBeCloseTo(v, 5)
  })

  it('takes empty parameters, and NaN where a gradient has it', async () => {
    const [empty, whole, poisoned] = [zeros([0, 3]), ones([2, 3]), ones([2, 3])].map((t) => parameter(t))
    const optimizer = make([empty, whole, poisoned])
    empty.grad = zeros([0, 3]).keep()
    whole.grad = ones([2, 3]).keep()
    poisoned.grad = tensor([1, Number.NaN, 1, 1, 1, 1], [2, 3]).keep()
    optimizer.step()
    expect(await values(empty)).toEqual([])
    // Beside it all is well.
    expect((await values(whole)).every((v) => v < 1)).toBe(true)
    // The sign of NaN is 0, in PyTorch too: Lion's mean alone has it.
    const tainted = name === 'Lion' ? optimizer.stateDict().state[2].tensors.expAvg : poisoned
    expect(Number.isNaN((await values(tainted))[1])).toBe(true)
  })

  it('skips a step that overflowed, as if it had not been', async () => {
    const models = [net(), net()]
    models[1].loadStateDict(models[0].stateDict())
    const grads = [randn([8, 3]), randn([2, 8])]
    for (const [k, model] of models.entries()) {
      const optimizer = make(model.parameters())
      const scaler = new GradScaler({ initScale: 4 })
      for (let i = 0; i < 3; i++) {
        // One of the two overflows first.
        if (i === 0 && k === 0) continue
        scaler.scale(ones([]))
        for (const [n, p] of model.parameters().entries())
          p.grad = (i === 0 ? grads[n].mul(Number.POSITIVE_INFINITY) : grads[n].mul(4)).keep()
        // Its scale was halved by the overflow.
        if (k === 1 && i > 0) for (const p of model.parameters()) p.grad = (p.grad as Tensor).mul(0.5).keep()
        // With or without a call of its own.
        if (k === 0) scaler.unscale(optimizer)
        scaler.step(optimizer)
        scaler.update()
      }
    }
    const [clean, skipped] = await Promise.all(models.map((m) => Promise.all(m.parameters().map(values))))
    for (const [i, all] of clean.entries())
      for (const [j, v] of all.entries()) expect(skipped[i][j]).toBeCloseTo(v, 5)
  })
})

describe('EMA', () => {
  it('averages as PyTorch does: the first weights, and then a share of the next ones', async () => {
    const model = new Linear(1, 1, { bias: false })
    const ema = new EMA(model, { decay: 0.9 })
    const seen: number[] = []
    for (let i = 0; i < 5; i++) {
      model.weight.detach().fill_(i)
      ema.update()
      seen.push(await ema.weights.weight.item())
    }
    for (const [i, v] of [0, 0.1, 0.29, 0.561, 0.9049].entries()) expect(seen[i]).toBeCloseTo(v, 5)
  })

  it('lends the averages to the model, and takes them back when the function throws or is async', async () => {
    const model = new Linear(1, 1, { bias: false })
    const ema = new EMA(model, { decay: 0.5 })
    const weight = (): Promise<number> => model.weight.detach().item()
    model.weight.detach().fill_(1)
    ema.update()
    model.weight.detach().fill_(3)
    ema.update()
    expect(await ema.average(weight)).toBe(2)
    expect(await weight()).toBe(3)
    expect(() =>
      ema.average(() => {
        throw new Error('no')
      }),
    ).toThrow('no')
    expect(await weight()).toBe(3)
    const within = ema.average(async () => {
      expect(() => ema.update()).toThrow(/averages are in the model/)
      await Promise.resolve()
      return weight()
    })
    expect(await within).toBe(2)
    expect([await weight(), await ema.weights.weight.item()]).toEqual([3, 2])
    ema.copyToModel()
    expect(await weight()).toBe(2)
  })

  it('saves and loads its averages with their number', async () => {
    const model = new Linear(2, 1)
    const [a, b] = [new EMA(model), new EMA(model)]
    a.update()
    b.loadStateDict(a.stateDict())
    expect(await b.numAveraged.item()).toBe(1)
    expect(Object.keys(a.stateDict())).toEqual(['weights.weight', 'weights.bias', 'numAveraged'])
    expect(() => new EMA(model, { decay: 2 })).toThrow(ValueError)
  })
})
