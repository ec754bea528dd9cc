import {
  type Backend,
  compile,
  createCpuBackend,
  createWebGpuBackend,
  GRU,
  LSTM,
  Module,
  manualSeed,
  RNN,
  randn,
  reference,
  SGD,
  scope,
  type Tensor,
  withBackend,
} from 'tilegrad'
import { afterAll, expect, test } from 'vitest'

// Recurrent layers on every engine, plain and compiled: the same training as on the reference backend.

const cpu = createCpuBackend({ threads: 2 })
const gpu = await createWebGpuBackend()
afterAll(async () => {
  await cpu.close()
  gpu.close()
})

class Tagger extends Module {
  forwards = new LSTM(5, 7, { numLayers: 2, bidirectional: true, batchFirst: true })
  gated = new GRU(14, 6, { batchFirst: true })
  plain = new RNN(6, 3, { batchFirst: true, bias: false })

  forward(x: Tensor): Tensor {
    const [y, [, cn]] = this.forwards.forward(x)
    const [z] = this.gated.forward(y)
    return this.plain.forward(z)[0].square().mean().add(cn.square().mean())
  }
}

/** The losses of some steps of training, and the sums of the weights' squares at its end. */
async function train(device: Backend, compiled: boolean): Promise<number[]> {
  const { step, model } = withBackend(device, () => {
    manualSeed(3)
    const model = new Tagger()
    const optimizer = new SGD(model.parameters(), { lr: 0.1 })
    const plain = (x: Tensor): Tensor => {
      const loss = model.forward(x)
      loss.backward()
      optimizer.step()
      optimizer.zeroGrad()
      return loss
    }
    return { model, step: compiled ? compile(plain) : plain }
  })
  const losses: number[] = []
  for (let i = 0; i < 4; i++) {
    const loss = withBackend(device, () => scope(() => step(randn([3, 4, 5]))))
    losses.push(await loss.item())
    loss.dispose()
  }
  const sums: number[] = []
  for (const p of model.parameters()) sums.push(await scope(() => p.detach().square().sum()).item())
  return [...losses, ...sums]
}

const expected = await train(reference, false)

for (const [name, device] of [
  ['cpu', cpu],
  ['webgpu', gpu],
] as const)
  for (const compiled of [false, true])
    test(`training on ${name}${compiled ? ', compiled' : ''}, is that of the reference`, async () => {
      const actual = await train(device, compiled)
      expect(actual.length).toBe(expected.length)
      // Sums of float32 in other orders, over 4 steps of up to 4 states: some 1e-6 of values of order 1.
      actual.forEach((v, i) => expect(Math.abs(v - (expected[i] as number))).toBeLessThan(2e-5))
    })
