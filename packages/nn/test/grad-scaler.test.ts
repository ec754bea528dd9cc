/** Loss scaling: what is scaled, unscaled and skipped, by every optimiser, and what a scaler refuses. */
import {
  autocast,
  checkLeaks,
  compile,
  expr,
  manualSeed,
  memory,
  namedProgram,
  noGrad,
  ones,
  randn,
  scope,
  type Tensor,
  tensor,
} from '@tilegrad/core'
import {
  Adam,
  AdamW,
  clipGradNorm,
  GradScaler,
  Linear,
  Optimizer,
  type ParamState,
  parameter,
  SGD,
  stateTensor,
  type Update,
} from '@tilegrad/nn'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import { values } from './helpers.ts'

beforeEach(() => manualSeed(23))

type Any = Optimizer<{ lr: number }>

const LAST = namedProgram('last', ['p', 'g'], ['lr'], ({ p, g }, { lr }) => [
  expr.sub(p, expr.mul(lr, expr.sign(g))),
  g,
])
/** An optimiser of a user's own, which writes a state that it does not read. */
class SignSGD extends Optimizer<{ lr: number }> {
  protected validate(): void {}
  protected update(p: Tensor, g: Tensor, { lr }: { lr: number }, state: ParamState): Update {
    const last = stateTensor(state, p, 'last')
    return { program: LAST, outputs: [p, last], inputs: [p, g], params: LAST.numbers({ lr }) }
  }
}

const optimizers: Record<string, (params: Tensor[]) => Any> = {
  SGD: (p) => new SGD(p, { lr: 0.1, weightDecay: 0.01 }),
  'SGD with momentum': (p) => new SGD(p, { lr: 0.1, momentum: 0.9 }),
  'SGD with dampening': (p) => new SGD(p, { lr: 0.1, momentum: 0.9, dampening: 0.5 }),
  'SGD with Nesterov': (p) => new SGD(p, { lr: 0.1, momentum: 0.9, nesterov: true }),
  Adam: (p) => new Adam(p, { lr: 0.1, weightDecay: 0.01 }),
  'Adam without a first moment': (p) => new Adam(p, { lr: 0.1, betas: [0, 0.99] }),
  AdamW: (p) => new AdamW(p, { lr: 0.1, betas: [0.9, 0.95] }),
  'one of a user': (p) => new SignSGD(p, { lr: 0.1 }),
}

/** Two parameters, their optimiser, and a step for a given factor of the loss; overflow with Infinity. */
function setup(make: (params: Tensor[]) => Any) {
  manualSeed(4)
  const params = [parameter(randn([3, 2])), parameter(randn([5]))]
  const optimizer = make(params)
  const backward = (scale: (loss: Tensor) => Tensor, factor: number): void => {
    const loss = (params[0] as Tensor)
      .square()
      .sum()
      .add((params[1] as Tensor).exp().sum())
      .mul(factor)
    scale(loss).backward()
  }
  const state = (): number[] =>
    Object.values(optimizer.stateDict().state).flatMap((s) => Object.values(s.tensors).flatMap(values))
  return { params, optimizer, backward, state, all: () => [...params.flatMap(values), ...state()] }
}

const same = (x: Tensor): Tensor => x

describe.each(Object.entries(optimizers))('%s', (_, make) => {
  test('takes the same steps with a scale that is a power of two, bit by bit', () => {
    const [plain, scaled] = [setup(make), setup(make)]
    const scaler = new GradScaler({ growthInterval: 3 })
    for (let i = 0; i < 7; i++) {
      scope(() => {
        plain.backward(same, 1 + i)
        plain.optimizer.step()
        plain.optimizer.zeroGrad()
        scaled.backward((loss) => scaler.scale(loss), 1 + i)
        scaler.step(scaled.optimizer)
        scaler.update()
        scaled.optimizer.zeroGrad()
      })
      expect(scaled.all()).toEqual(plain.all())
    }
  })

  test('skips a step with an overflow: nothing changes, the scale is halved, and training goes on as if it had not been', async () => {
    const [plain, scaled] = [setup(make), setup(make)]
    const scaler = new GradScaler({ initScale: 2 ** 10 })
    // The first one, one in the middle, and two in a row.
    const factors = [Infinity, 1, 2, Number.NaN, 3, Infinity, Infinity, 1, 2]
    let scale = 2 ** 10
    for (const factor of factors) {
      const before = scaled.params.flatMap(values)
      scope(() => {
        scaled.backward((loss) => scaler.scale(loss), factor)
        scaler.step(scaled.optimizer)
        scaler.update()
        scaled.optimizer.zeroGrad()
        if (!Number.isFinite(factor)) return
        plain.backward(same, factor)
        plain.optimizer.step()
        plain.optimizer.zeroGrad()
      })
      if (!Number.isFinite(factor)) {
        scale /= 2
        expect(scaled.params.flatMap(values)).toEqual(before)
      }
      expect(await scaler.getScale()).toBe(scale)
      const [got, want] = [scaled.all(), plain.all()]
      // Corrections of bias are worked out in float32 on the device: some 10⁻⁷ of a step.
      if (want.length === got.length)
        for (const [i, x] of got.entries()) expect(Math.abs(x - (want[i] as number))).toBeLessThan(2e-6)
    }
    expect(plain.all().length).toBe(scaled.all().length)
  })

  test('continues from saved states, and without a scaler', () => {
    const [a, b] = [setup(make), setup(make)]
    const step = (s: ReturnType<typeof setup>, scaler: GradScaler | null, factor: number): void =>
      scope(() => {
        s.backward((loss) => scaler?.scale(loss) ?? loss, factor)
        if (scaler) {
          scaler.step(s.optimizer)
          scaler.update()
        } else s.optimizer.step()
        s.optimizer.zeroGrad()
      })
    const first = new GradScaler({ initScale: 256, growthInterval: 2 })
    for (const factor of [1, Infinity, 2]) step(a, first, factor)
    const second = new GradScaler()
    second.loadStateDict(first.stateDict())
    noGrad(() => b.params.forEach((p, i) => p.copy_(a.params[i] as Tensor)))
    b.optimizer.loadStateDict(a.optimizer.stateDict())
    for (const factor of [3, Number.NaN, 1]) {
      step(a, first, factor)
      step(b, second, factor)
    }
    expect(b.all()).toEqual(a.all())
    step(a, null, 2)
    step(b, second, 2)
    expect(b.all()).toEqual(a.all())
  })
})

describe('parameters of which only some have a gradient', () => {
  test('count their own steps', () => {
    const make = (): { x: Tensor; y: Tensor; o: Adam } => {
      const [x, y] = [parameter(tensor([1, 2])), parameter(tensor([3]))]
      return { x, y, o: new Adam([x, y], { lr: 0.1 }) }
    }
    const [plain, scaled] = [make(), make()]
    const scaler = new GradScaler({ initScale: 4 })
    const steps = [
      ['x', 1],
      ['xy', Infinity],
      ['y', 1],
      ['x', Infinity],
      ['xy', 2],
      ['y', Infinity],
      ['xy', 1],
    ] as const
    for (const [which, factor] of steps) {
      const loss = ({ x, y }: typeof plain): Tensor => {
        const parts = [
          which.includes('x') ? x.square().sum() : null,
          which.includes('y') ? y.exp().sum() : null,
        ]
        return (parts.filter(Boolean) as Tensor[]).reduce((a, b) => a.add(b)).mul(factor)
      }
      scaler.scale(loss(scaled)).backward()
      scaler.step(scaled.o)
      scaler.update()
      scaled.o.zeroGrad()
      if (factor === Infinity) continue
      loss(plain).backward()
      plain.o.step()
      plain.o.zeroGrad()
    }
    for (const name of ['x', 'y'] as const)
      for (const [i, v] of values(scaled[name]).entries())
        expect(v).toBeCloseTo(values(plain[name])[i] as number, 6)
    const { state } = scaled.o.stateDict()
    expect([state[0]?.step, values(state[0]?.skipped)]).toEqual([5, [2]])
    expect([state[1]?.step, values(state[1]?.skipped)]).toEqual([5, [2]])
  })
})

describe('the scale', () => {
  const run = (scaler: GradScaler, x: Tensor, o: Any, factor: number): void => {
    scaler.scale(x.square().sum().mul(factor)).backward()
    scaler.step(o)
    scaler.update()
    o.zeroGrad()
  }

  test('grows after so many steps in a row, and no further than float32', async () => {
    const x = parameter(ones([2]))
    const o = new SGD([x], { lr: 0 })
    const scaler = new GradScaler({ initScale: 2, growthInterval: 3, growthFactor: 4, backoffFactor: 0.25 })
    const seen: number[] = []
    for (const factor of [1, 1, Infinity, 1, 1, 1, 1, 1, 1]) {
      run(scaler, x, o, factor)
      seen.push(await scaler.getScale())
    }
    expect(seen).toEqual([2, 2, 0.5, 0.5, 0.5, 2, 2, 2, 8])
    const largest = new GradScaler({ initScale: 2 ** 127, growthInterval: 1 })
    run(largest, x, o, 1e-38)
    expect(await largest.getScale()).toBe(2 ** 127)
  })

  test('can be set, saved and loaded', async () => {
    const x = parameter(ones([2]))
    const o = new SGD([x], { lr: 0 })
    const scaler = new GradScaler({ growthInterval: 2 })
    expect(scaler.stateDict().scale).toBe(65536)
    scaler.scale(x.sum()).backward()
    scaler.step(o)
    scaler.update(8)
    expect(await scaler.getScale()).toBe(8)
    run(scaler, x, o, 1)
    const dict = scaler.stateDict()
    const plain = JSON.parse(
      JSON.stringify({
        ...dict,
        scale: values(dict.scale as Tensor)[0],
        growthTracker: values(dict.growthTracker as Tensor)[0],
      }),
    )
    expect(plain).toEqual({
      scale: 8,
      growthTracker: 1,
      growthFactor: 2,
      backoffFactor: 0.5,
      growthInterval: 2,
    })
    const other = new GradScaler()
    other.loadStateDict(plain)
    run(other, x, o, 1)
    expect(await other.getScale()).toBe(16)
    other.loadStateDict(plain)
    expect(await other.getScale()).toBe(8)
    expect(String(other)).toContain('GradScaler (')
  })

  test('multiplies each of several losses', () => {
    const x = parameter(ones([2]))
    const scaler = new GradScaler({ initScale: 8 })
    const [a, b] = scaler.scale([x.sum(), x.square().sum()]) as [Tensor, Tensor]
    expect([values(a), values(b)]).toEqual([[16], [16]])
    expect(scaler.scale(x.sum().to('float16')).dtype).toBe('float32')
  })
})

describe('unscaling', () => {
  test('comes before clipping, once, and then no more', () => {
    const make = (): { model: Linear; o: AdamW } => {
      manualSeed(6)
      const model = new Linear(3, 2)
      return { model, o: new AdamW(model.parameters(), { lr: 0.1 }) }
    }
    const [plain, scaled] = [make(), make()]
    const scaler = new GradScaler()
    const x = randn([4, 3])
    for (const factor of [1, Infinity, 10, 1]) {
      scaler.scale(scaled.model.forward(x).square().sum().mul(factor)).backward()
      scaler.unscale(scaled.o)
      const norm = clipGradNorm(scaled.model.parameters(), 0.5)
      scaler.step(scaled.o)
      scaler.update()
      scaled.o.zeroGrad()
      if (factor === Infinity) continue
      plain.model.forward(x).square().sum().mul(factor).backward()
      const want = clipGradNorm(plain.model.parameters(), 0.5)
      plain.o.step()
      plain.o.zeroGrad()
      expect(values(norm)).toEqual(values(want))
    }
    for (const [i, p] of scaled.model.parameters().entries())
      for (const [k, v] of values(p).entries())
        expect(v).toBeCloseTo(values(plain.model.parameters()[i])[k] as number, 6)
  })

  test('gradients add up over several losses at one scale', () => {
    const x = parameter(tensor([1, 2]))
    const o = new SGD([x], { lr: 1 })
    const scaler = new GradScaler()
    for (let i = 0; i < 4; i++) scaler.scale(x.square().sum().div(4)).backward()
    scaler.step(o)
    scaler.update()
    expect(values(x)).toEqual([-1, -2])
  })
})

test('several optimisers share a scale: each skips by itself, and any overflow shrinks it', async () => {
  const [x, y] = [parameter(tensor([1])), parameter(tensor([1]))]
  const [a, b] = [new SGD([x], { lr: 0.5 }), new SGD([y], { lr: 0.5 })]
  const scaler = new GradScaler({ initScale: 16, growthInterval: 1 })
  const step = (factor: number): void => {
    scaler.scale(x.sum().add(y.mul(factor).sum())).backward()
    scaler.step(a)
    scaler.step(b)
    scaler.update()
    a.zeroGrad()
    b.zeroGrad()
  }
  step(Infinity)
  expect([values(x), values(y), await scaler.getScale()]).toEqual([[0.5], [1], 8])
  step(1)
  expect([values(x), values(y), await scaler.getScale()]).toEqual([[0], [0.5], 16])
})

test('a scaler that is not enabled does nothing', async () => {
  const x = parameter(tensor([3]))
  const o = new SGD([x], { lr: 1 })
  const scaler = new GradScaler({ enabled: false })
  const loss = x.square().sum()
  expect(scaler.scale(loss)).toBe(loss)
  loss.backward()
  scaler.unscale(o)
  scaler.step(o)
  scaler.update()
  expect(values(x)).toEqual([-3])
  expect(await scaler.getScale()).toBe(1)
})

describe('is compiled', () => {
  test.each(['with clipping', 'without'])(
    '%s: a whole step, whose scale changes between replays',
    async (how) => {
      const make = (): {
        params: Tensor[]
        scaler: GradScaler
        step: (x: Tensor, factor: Tensor) => Tensor
      } => {
        manualSeed(8)
        const model = new Linear(4, 4)
        const o = new AdamW(model.parameters(), { lr: 0.05 })
        const scaler = new GradScaler({ initScale: 2 ** 14, growthInterval: 3 })
        const step = (x: Tensor, factor: Tensor): Tensor => {
          const loss = autocast('float16', () => model.forward(x).square().mean()).mul(factor)
          scaler.scale(loss).backward()
          if (how === 'with clipping') {
            scaler.unscale(o)
            clipGradNorm(model.parameters(), 1)
          }
          scaler.step(o)
          scaler.update()
          o.zeroGrad()
          return loss.detach()
        }
        return { params: model.parameters(), scaler, step }
      }
      const [eager, replayed] = [make(), make()]
      const compiled = compile(replayed.step, { fuse: false })
      const factors = [1, 1, 1, 1, Infinity, 1, 1, 1, Number.NaN, 1, 1, 1, 1, 1]
      for (const f of factors) {
        const [x, factor] = [randn([3, 4]), tensor(f)]
        const [want, got] = [scope(() => eager.step(x, factor)), compiled(x, factor)]
        expect(values(got)).toEqual(values(want))
        expect(await replayed.scaler.getScale()).toBe(await eager.scaler.getScale())
        expect(replayed.params.map(values)).toEqual(eager.params.map(values))
      }
      expect(await eager.scaler.getScale()).not.toBe(2 ** 14)
      expect(compiled.plans.length).toBe(1)
      compiled.dispose()
    },
  )
})

test('memory stays flat, and nothing is left behind', () => {
  const model = new Linear(4, 4)
  const o = new AdamW(model.parameters(), { lr: 0.01 })
  const scaler = new GradScaler({ growthInterval: 2 })
  const x = randn([3, 4])
  const step = (i: number): void =>
    scope(() => {
      const loss = autocast('float16', () => model.forward(x).square().mean())
      scaler.scale(i % 5 === 0 ? loss.mul(Infinity) : loss).backward()
      scaler.step(o)
      scaler.update()
      o.zeroGrad()
    })
  step(0)
  step(1)
  const { bytes, tensors } = memory()
  checkLeaks(() => {
    for (let i = 0; i < 30; i++) step(i)
  })
  expect(memory()).toMatchObject({ bytes, tensors })
  o.dispose()
  scaler.dispose()
})

describe('refuses', () => {
  const x = parameter(ones([2]))
  const o = new SGD([x], { lr: 0.1 })
  const ready = (): GradScaler => {
    const scaler = new GradScaler()
    o.zeroGrad()
    scaler.scale(x.sum()).backward()
    return scaler
  }
  class Own extends SGD {
    override step(): void {}
  }
  const half = parameter(ones([2]).to('float16'))
  const cases: [string, () => void, string][] = [
    ['a step before anything was scaled', () => new GradScaler().step(o), 'nothing was scaled yet'],
    ['unscaling before anything was scaled', () => new GradScaler().unscale(o), 'nothing was scaled yet'],
    [
      'a step without gradients',
      () => {
        const scaler = ready()
        o.zeroGrad()
        scaler.step(o)
      },
      'have no gradients; call scaler.scale(loss).backward() before',
    ],
    [
      'unscaling twice',
      () => {
        const scaler = ready()
        scaler.unscale(o)
        scaler.unscale(o)
      },
      'unscale once',
    ],
    [
      'unscaling after the step',
      () => {
        const scaler = ready()
        scaler.step(o)
        scaler.unscale(o)
      },
      'call scaler.update() after each step',
    ],
    [
      'a second step',
      () => {
        const scaler = ready()
        scaler.step(o)
        scaler.step(o)
      },
      'call scaler.update() after each step',
    ],
    ['an update before a step', () => ready().update(), 'call scaler.step(optimizer) before'],
    [
      'a number for a loss',
      () => new GradScaler().scale(3 as never),
      'GradScaler.scale: takes a loss, got 3',
    ],
    ['what is no optimiser', () => ready().step(x as never), 'takes an optimiser, got'],
    [
      'a step() that does not call super.step()',
      () => {
        const scaler = ready()
        scaler.step(new Own([x]))
      },
      'has a step() of its own',
    ],
    [
      'gradients of float16',
      () => {
        const scaler = ready()
        scaler.scale(half.sum()).backward()
        scaler.step(new SGD([half]))
      },
      'keep parameters in float32',
    ],
    [
      'options out of range',
      () => new GradScaler({ growthFactor: 1 }),
      'growthFactor must be a number > 1, got 1',
    ],
    [
      'options that there are not',
      () => new GradScaler({ init_scale: 4 } as never),
      "did you mean 'initScale'",
    ],
    ['a scale that is none', () => new GradScaler({ initScale: 0 }), 'initScale must be a finite number > 0'],
    [
      'a new scale that is none',
      () => {
        const scaler = ready()
        scaler.step(o)
        scaler.update(Number.NaN)
      },
      'the scale must be a finite number > 0, got NaN',
    ],
    [
      'a state that is none',
      () => new GradScaler().loadStateDict(null as never),
      'takes what stateDict() gave',
    ],
  ]
  test.each(cases)('%s', (_, call, message) => {
    expect(call).toThrow(message)
  })

  test('nothing that works afterwards: a step that throws can be taken again', () => {
    const scaler = ready()
    const adam = new AdamW([x], { lr: 0.1 })
    adam.lr = Number.NaN
    expect(() => scaler.step(adam)).toThrow('lr')
    adam.lr = 0.1
    scaler.step(adam)
    scaler.update()
  })
})

test('nothing is read in a step', () => {
  const x = parameter(ones([2]))
  const o = new AdamW([x])
  const scaler = new GradScaler()
  const read = vi.spyOn(x.backend, 'read')
  const readSync = vi.spyOn(x.backend as Required<Pick<typeof x.backend, 'readSync'>>, 'readSync')
  for (const factor of [1, Infinity, 1]) {
    scaler.scale(x.sum().mul(factor)).backward()
    scaler.unscale(o)
    clipGradNorm([x], 1)
    scaler.step(o)
    scaler.update()
    o.zeroGrad()
  }
  expect([read.mock.calls.length, readSync.mock.calls.length]).toEqual([0, 0])
  vi.restoreAllMocks()
})
