/** Optimisers on GPUs: the moments of all parameters lie in few buffers, and a step takes few dispatches. */

import { createWebGpuBackend, type WebGpuBackend } from '@tilegrad/backend-webgpu'
import {
  type Backend,
  manualSeed,
  randn,
  reference,
  scope,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import {
  Adam,
  AdamW,
  GradScaler,
  Linear,
  loadCheckpoint,
  Muon,
  type Optimizer,
  parameter,
  Sequential,
  SGD,
  saveCheckpoint,
} from '@tilegrad/nn'
import { afterAll, expect, test } from 'vitest'
import { sharedGpu } from '../packages/backend-webgpu/test/support/shared-gpu.ts'
import { collected } from '../packages/core/test/support/collected.ts'

const shared = await sharedGpu()
const gpus: readonly WebGpuBackend[] = [shared.full(), shared.plain()]
afterAll(() => {
  for (const gpu of gpus) gpu.close()
})

/** 27 of them, of odd sizes and even. */
const SHAPES = Array.from({ length: 27 }, (_, i) => [[7, 5], [64], [], [33, 31], [1], [16, 16]][i % 6])

interface Made {
  readonly params: Tensor[]
  readonly optimizer: Optimizer<{ lr: number }>
}
type Make = (params: Tensor[]) => Optimizer<{ lr: number }>

const setUp = (device: Backend, make: Make): Made => {
  manualSeed(4)
  const params = SHAPES.map((shape) => parameter(withBackend(device, () => randn(shape))))
  return { params, optimizer: make(params) }
}

/** A step with the gradients of step t; `skip`: parameters that have none. */
function step({ params, optimizer }: Made, t: number, skip: readonly number[] = []): void {
  manualSeed(100 + t)
  scope(() => {
    for (const [i, p] of params.entries()) {
      const grad = withBackend(p.backend, () => randn(p.shape))
      if (!skip.includes(i)) p.grad = grad.keep()
    }
    optimizer.step()
    optimizer.zeroGrad()
  })
}

const dispatchesOf = (gpu: WebGpuBackend, fn: () => void): number => {
  const before = gpu.engine.counts.dispatches
  fn()
  return gpu.engine.counts.dispatches - before
}
/** What a step takes beside making gradients. */
const stepDispatches = (gpu: WebGpuBackend, made: Made): number => {
  const gradients = (): void => scope(() => withBackend(gpu, () => void SHAPES.map((shape) => randn(shape))))
  return dispatchesOf(gpu, () => step(made, 0)) - dispatchesOf(gpu, gradients)
}

const all = (ts: readonly Tensor[]): Promise<number[][]> =>
  Promise.all(ts.map(async (t) => [...(await t.data())]))
const states = ({ optimizer }: Made): Tensor[] =>
  Object.values(optimizer.stateDict().state).flatMap(({ tensors }) => Object.values(tensors))

/** Makes every moment by itself. */
class Apart extends AdamW {
  protected override stateNames(): readonly string[] {
    return []
  }
}
const options = { lr: 0.01, betas: [0.9, 0.95], weightDecay: 0.1 } as const

test('a step takes as many parameters per dispatch as its buffers allow', () => {
  for (const gpu of gpus) {
    const most = gpu.gpu.limits.maxStorageBuffersPerShaderStage
    const cases: [Make, shared: number, own: number][] = [
      [(ps) => new AdamW(ps), 2, 2],
      [(ps) => new Adam(ps), 2, 2],
      [(ps) => new SGD(ps, { momentum: 0.9 }), 1, 2],
      [(ps) => new SGD(ps), 0, 2],
      [(ps) => new Apart(ps), 0, 4],
    ]
    for (const [make, shared, own] of cases) {
      const made = setUp(gpu, make)
      step(made, 0)
      const perDispatch = Math.min(15, Math.floor((most - shared) / own))
      expect(stepDispatches(gpu, made)).toBe(Math.ceil(27 / perDispatch))
      expect(new Set(states(made).map((t) => t.storage)).size).toBe(own === 4 ? 54 : shared)
    }
  }
})

test('the bits are those of moments apart, with parameters that join late', async () => {
  for (const gpu of gpus) {
    const [joint, apart] = [
      setUp(gpu, (ps) => new AdamW(ps, options)),
      setUp(gpu, (ps) => new Apart(ps, options)),
    ]
    for (const made of [joint, apart]) {
      step(made, 0, [0, 3, 26])
      step(made, 1, [3, 5])
      for (let t = 2; t < 5; t++) step(made, t)
    }
    expect(await all(joint.params)).toEqual(await all(apart.params))
    expect(await all(states(joint))).toEqual(await all(states(apart)))
    // Those of the first step, of parameters 0 and 26, and of parameter 3, times two.
    expect(new Set(states(joint).map((t) => t.storage)).size).toBe(6)
  }
})

test('states go from device to device, and on from there as if nothing had been', async () => {
  const [gpu] = gpus
  const first = setUp(gpu, (ps) => new AdamW(ps, options))
  for (let t = 0; t < 3; t++) step(first, t, [2])
  // From moments in a few buffers to the reference’s, and back to a few.
  const there = setUp(reference, (ps) => new AdamW(ps))
  const dict = first.optimizer.stateDict()
  const read = async (t: Tensor): Promise<Tensor> => tensor(await t.data(), t.shape, { device: reference })
  const state = Object.fromEntries(
    await Promise.all(
      Object.entries(dict.state).map(async ([i, { step, tensors }]) => {
        const entries = Object.entries(tensors).map(async ([name, t]) => [name, await read(t)] as const)
        return [i, { step, tensors: Object.fromEntries(await Promise.all(entries)) }] as const
      }),
    ),
  )
  there.optimizer.loadStateDict({ ...dict, state })
  const back = setUp(gpu, (ps) => new AdamW(ps))
  back.params.forEach((p, i) => {
    p.detach().copy_(first.params[i].detach())
  })
  back.optimizer.loadStateDict(there.optimizer.stateDict())
  expect(await all(states(back))).toEqual(await all(states(first)))
  expect(states(back).map((t) => [t.shape, t.device])).toEqual(states(first).map((t) => [t.shape, t.device]))
  expect(new Set(states(back).map((t) => t.storage)).size).toBe(2)
  for (let t = 3; t < 6; t++) {
    step(first, t)
    step(back, t)
  }
  expect(await all(back.params)).toEqual(await all(first.params))
})

test('steps of a scaler are those without the ones that it skips, in a dispatch or two more', async () => {
  for (const gpu of gpus) {
    const most = gpu.gpu.limits.maxStorageBuffersPerShaderStage
    const cases: [Make, count: number][] = [
      [(ps) => new AdamW(ps, options), Math.ceil(27 / Math.min(15, Math.floor((most - 3) / 2)))],
      [
        (ps) => new SGD(ps, { lr: 0.1, momentum: 0.9 }),
        Math.ceil(27 / Math.min(15, Math.floor((most - 2) / 2))),
      ],
    ]
    for (const [make, count] of cases) {
      const [plain, scaled] = [setUp(gpu, make), setUp(gpu, make)]
      const scaler = new GradScaler({ initScale: 8, growthInterval: 2 })
      /** As a step of `step`, with scaled gradients; `overflows`: the last parameter's is infinite. */
      const take = (t: number, overflows: boolean): number => {
        manualSeed(100 + t)
        return scope(() => {
          withBackend(gpu, () => scaler.scale(tensor(0)))
          const { scale } = scaler.stateDict()
          for (const [i, p] of scaled.params.entries()) {
            const grad = withBackend(gpu, () => randn(p.shape)).mul(scale as Tensor)
            p.grad = (overflows && i === 26 ? grad.div(0) : grad).keep()
          }
          const dispatches = dispatchesOf(gpu, () => scaler.step(scaled.optimizer))
          scaler.update()
          scaled.optimizer.zeroGrad()
          return dispatches
        })
      }
      const overflows = [true, false, false, true, false, false]
      const seen = new Set<number>()
      for (const [t, overflow] of overflows.entries()) {
        const dispatches = take(t, overflow)
        if (t > 0) seen.add(dispatches)
        if (!overflow) step(plain, t)
      }
      const norm = Math.ceil(27 / Math.min(15, most - 1)) + 1
      // The norm, the look at it, corrections of bias, and the count of what was skipped.
      expect(Math.max(...seen)).toBeLessThanOrEqual(count + norm + 3)
      expect(await scaler.getScale()).toBe(8)
      const [got, want] = [
        await all([...scaled.params, ...states(scaled)]),
        await all([...plain.params, ...states(plain)]),
      ]
      // Moments are the same; corrections of bias are worked out in float32 on the device, some 10⁻⁷ of steps of 0.01.
      for (const [i, list] of got.entries())
        for (const [k, x] of list.entries())
          expect(Math.abs(x - want[i][k])).toBeLessThan(2e-7 + 1e-6 * Math.abs(x))
    }
  }
})

test('memory and bind groups are flat in a loop, and all of it comes back', async () => {
  const gpu = await createWebGpuBackend()
  const made = setUp(gpu, (ps) => new AdamW(ps))
  const loop = async (from: number, to: number) => {
    for (let t = from; t < to; t++) {
      step(made, t)
      await gpu.finished()
    }
    return { ...gpu.stats(), bindGroups: gpu.engine.bindGroups }
  }
  await loop(0, 5)
  await collected()
  const before = await loop(0, 0)
  expect(await loop(5, 40)).toEqual(before)
  made.optimizer.dispose()
  for (const p of made.params) p.dispose()
  expect(gpu.stats().usedBuffers).toBe(0)
  gpu.close()
})

test('moments together take hardly more memory than apart', async () => {
  await collected()
  const [gpu] = gpus
  // Sizes that are buffers' own, of which sums are not: 64 KiB, 80 KiB, 1 MiB, 10 MiB.
  const sizes = [2 ** 14, 5 * 2 ** 12, 2 ** 18, 5 * 2 ** 19, 2 ** 14, 100, 5 * 2 ** 19, 5 * 2 ** 19]
  const used = (make: (ps: Tensor[]) => AdamW): [bytes: number, pieces: number] => {
    const params = sizes.map((n) => parameter(withBackend(gpu, () => randn([n]))))
    for (const p of params) p.grad = p.detach().clone().keep()
    const before = gpu.stats().usedBytes
    const optimizer = make(params)
    optimizer.step()
    const { usedBytes } = gpu.stats()
    const pieces = new Set(states({ params, optimizer }).map((t) => t.storage)).size
    optimizer.dispose()
    for (const p of params) {
      p.grad?.dispose()
      p.dispose()
    }
    return [usedBytes - before, pieces]
  }
  const [apart, each] = used((ps) => new Apart(ps))
  const [joint, pieces] = used((ps) => new AdamW(ps))
  expect(each).toBe(16)
  expect(pieces).toBeLessThanOrEqual(6)
  expect(joint).toBeLessThanOrEqual((17 / 16) * apart + pieces * 2 ** 20)
})

test('a training goes on from a checkpoint with the same bits, read while another device is the default', async () => {
  const gpu = shared.full()
  const make = () =>
    withBackend(gpu, () => {
      const model = new Sequential(new Linear(3, 4), new Linear(4, 1))
      const [matrices, vectors] = [2, 1].map((rank) => model.parameters().filter((p) => p.rank === rank))
      const muon = new Muon(matrices, { lr: 0.1 })
      return {
        model,
        muon,
        adam: new AdamW(vectors, { amsgrad: true }),
        scaler: new GradScaler({ initScale: 4 }),
      }
    })
  const x = withBackend(gpu, () => randn([5, 3]))
  const step = ({ model, muon, adam, scaler }: ReturnType<typeof make>): void =>
    scope(() => {
      scaler.scale(model.forward(x).square().mean()).backward()
      for (const optimizer of [muon, adam]) {
        scaler.step(optimizer)
        optimizer.zeroGrad()
      }
      scaler.update()
    })
  const [first, second] = [make(), make()]
  for (let i = 0; i < 2; i++) step(first)
  const bytes = await saveCheckpoint({ ...first, steps: 2 })
  step(first)
  expect(loadCheckpoint(bytes, second)).toEqual({ steps: 2 })
  step(second)
  const weights = ({ model }: typeof first) =>
    Promise.all(model.parameters().map(async (p) => [...(await p.data())]))
  expect(await weights(second)).toEqual(await weights(first))
  for (const { model, muon, adam, scaler } of [first, second])
    for (const one of [model, muon, adam, scaler]) one.dispose()
  x.dispose()
})
