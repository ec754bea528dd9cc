import { createCpuBackend } from '@tilegrad/backend-cpu'
import {
  type Backend,
  manualSeed,
  ones,
  profile,
  randn,
  reference,
  scope,
  type Tensor,
  withBackend,
} from '@tilegrad/core'
import {
  Adagrad,
  Adam,
  AdamW,
  clipGradNorm,
  clipGradValue,
  Lion,
  type Optimizer,
  parameter,
  RMSprop,
  SGD,
} from '@tilegrad/nn'
import { afterAll, expect, test } from 'vitest'

const cpu = createCpuBackend({ threads: 2 })
afterAll(() => cpu.close())

const SHAPES = [[40, 30], [30], [], [1], [0], [7, 3, 5], [5000]]
const makers: Record<
  string,
  (groups: { params: Tensor[]; weightDecay: number }[]) => Optimizer<{ lr: number }>
> = {
  adam: (groups) => new Adam(groups, { lr: 0.01 }),
  adamw: (groups) => new AdamW(groups, { lr: 0.01, betas: [0.9, 0.95] }),
  'adam upwards, with the largest squares': (groups) =>
    new Adam(groups, { lr: 0.01, amsgrad: true, maximize: true }),
  'adamw with the largest squares': (groups) => new AdamW(groups, { lr: 0.01, amsgrad: true }),
  sgd: (groups) => new SGD(groups, { lr: 0.01 }),
  'sgd with momentum': (groups) => new SGD(groups, { lr: 0.01, momentum: 0.9 }),
  rmsprop: (groups) => new RMSprop(groups, { lr: 0.01 }),
  'rmsprop centred, with momentum': (groups) =>
    new RMSprop(groups, { lr: 0.01, momentum: 0.9, centered: true, alpha: 0.5 }),
  adagrad: (groups) => new Adagrad(groups, { lr: 0.01, lrDecay: 0.1, initialAccumulatorValue: 0.1 }),
  lion: (groups) => new Lion(groups, { lr: 0.01 }),
  'lion with cautious decay': (groups) => new Lion(groups, { lr: 0.01, cautious: true }),
  'adamw with cautious decay': (groups) => new AdamW(groups, { lr: 0.01, cautious: true }),
  'sgd with Nesterov’s momentum': (groups) => new SGD(groups, { lr: 0.01, momentum: 0.9, nesterov: true }),
}

/** Four steps with clipping, one parameter joining late; the parameters then, and what ran in the last step. */
async function train(backend: Backend, make: (typeof makers)[string]) {
  const { params, launches } = withBackend(backend, () => {
    manualSeed(3)
    const params = SHAPES.map((shape) => parameter(randn(shape)))
    // Groups with and without decay: 1 − lr · 0 is a whole number, which must not need code of its own.
    const optimizer = make([
      { params: params.slice(0, 3), weightDecay: 0.1 },
      { params: params.slice(3), weightDecay: 0 },
    ])
    const step = (t: number): void => {
      for (const [i, p] of params.entries()) if (i !== 1 || t > 1) p.grad = randn(p.shape).keep()
      scope(() => clipGradNorm(params, 1))
      clipGradValue(params, 0.02)
      optimizer.step()
      optimizer.zeroGrad()
    }
    for (let t = 0; t < 3; t++) step(t)
    const { rows } = profile(() => step(3))
    return {
      params,
      launches: rows.filter((r) => !r.op.startsWith('rand')).map((r) => `${r.op} ${r.path} ${r.calls}`),
    }
  })
  return { values: await Promise.all(params.map(async (p) => [...(await p.data())])), launches }
}

for (const [name, make] of Object.entries(makers)) {
  test(`${name}: one launch for all parameters, and the reference’s result`, async () => {
    const got = await train(cpu, make)
    const want = await train(reference, make)
    expect(got.launches.sort()).toEqual(
      [
        `${name.split(' ')[0]} fused 1`,
        'clip_grad_norm fused 1',
        'clip_grad_value fused 1',
        'total_norm fused 1',
      ].sort(),
    )
    got.values.forEach((values, i) => {
      values.forEach((v, j) => {
        // Four updates of 0.01 and roundings to float32 of values up to 4; Adam's early steps divide by small numbers.
        expect(Math.abs(v - (want.values[i][j] as number)), `parameter ${i}, element ${j}`).toBeLessThan(1e-5)
      })
    })
  })
}

test('gradients that are one tensor are scaled as often as they are named', async () => {
  for (const backend of [cpu, reference]) {
    const [a, b] = withBackend(backend, () => [parameter(ones([2])), parameter(ones([2]))])
    a.grad = withBackend(backend, () => ones([2])).keep()
    b.grad = a.grad
    const norm = clipGradNorm([a, b], 1)
    expect(await norm.item()).toBe(2)
    // Both times by half.
    for (const v of await a.grad.data()) expect(v).toBeCloseTo(0.25, 5)
  }
})
