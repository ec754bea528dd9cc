/** Trains a tiny transformer for some steps and returns its losses: the same program in Node and in a page. */
import {
  AdamW,
  clipGradNorm,
  decayGroups,
  defaultBackend,
  GPT,
  manualSeed,
  memory,
  randint,
  scope,
  setDevice,
  stack,
  type WebGpuBackend,
} from 'tilegrad'

export interface Training {
  readonly device: 'cpu' | 'webgpu'
  readonly steps: number
}

export async function run({ device, steps }: Training) {
  await setDevice(device)
  manualSeed(3)
  const model = new GPT({
    vocabSize: 13,
    blockSize: 8,
    numLayers: 1,
    numHeads: 2,
    embedDim: 16,
    dropout: 0.1,
  })
  const optimizer = new AdamW(decayGroups(model, 0.1), { lr: 1e-2 })
  const losses = []
  let tensors = 0
  for (let step = 0; step < steps; step++) {
    losses.push(
      scope(() => {
        const tokens = randint(0, 13, [4, 9])
        const { loss } = model.forward(tokens.narrow(1, 0, 8), tokens.narrow(1, 1, 8))
        loss.backward()
        clipGradNorm(model.parameters(), 1)
        optimizer.step()
        optimizer.zeroGrad()
        return loss
      }),
    )
    // The optimiser's state is made in the first step; every step leaves its loss.
    if (step === 0) tensors = memory().tensors
  }
  const grown = memory().tensors - tensors - (steps - 1)
  const values = [...(await stack(losses).data())]
  const backend = defaultBackend()
  const adapter = backend.name === 'webgpu' ? (backend as WebGpuBackend).gpu.adapterName : ''
  return { losses: values, device: backend.name, adapter, grown }
}
