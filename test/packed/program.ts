// What a user's program may look like: it is checked by several compilers, and runs. It knows no library but ES2022.
import { type CpuBackend, createCpuBackend } from '@tilegrad/backend-cpu'
import type { WebGpuBackend, WebGpuOptions } from '@tilegrad/backend-webgpu'
import { registerBackend, setDefaultBackend, softmax, type Tensor, tensor } from '@tilegrad/core'
import { AdamW, CrossEntropyLoss, LeakyReLU, Linear, type Module, ModuleDict, Sequential } from '@tilegrad/nn'
import * as everything from 'tilegrad'
import { DataLoader, TensorDataset, TokenWindows } from 'tilegrad/data'
import type { RunWorkersOptions } from 'tilegrad/workers'

const cpu: CpuBackend = createCpuBackend({ threads: 1 })
registerBackend('cpu', () => cpu)
setDefaultBackend('cpu')

const x: Tensor = tensor([
  [1, 2],
  [3, 4],
]).softmax(1, { dtype: 'float32' })
const [values, indices]: [Tensor, Tensor] = x.sort(0)
const parts: Tensor[] = x.split(1)
const first: Tensor | undefined = parts[0]
const same: Promise<boolean> = softmax(x, 1).equal(x.softmax(1))
// @ts-expect-error a result is a Tensor, not just anything
const wrong: string = x.add(1)
// @ts-expect-error a dim is a number
const bad = (): Tensor => x.softmax('rows')
// @ts-expect-error this option does not exist
const unknown = (): AdamW => new AdamW([], { learningRate: 1 })

const slope: number = new LeakyReLU({ negativeSlope: 0.2 }).negativeSlope
// @ts-expect-error there is no such option of a loss
const misspelt = (): CrossEntropyLoss => new CrossEntropyLoss({ label_smoothing: 0.1 })
const width: number = new ModuleDict({ head: new Linear(2, 3) }).get('head').outFeatures
new Linear(2, 3).registerForwardHook((layer, [input], output) => output.mul(layer.inFeatures + input.rank))

const model: Module & { forward(x: Tensor): Tensor } = new Sequential(new Linear(2, 3), new Linear(3, 1))
const optimizer = new AdamW(model.parameters(), { lr: 0.1 })
{
  using loss = model.forward(x).square().mean()
  loss.backward()
  optimizer.step()
}
const options: WebGpuOptions = { features: 'default' }
const device = (gpu: WebGpuBackend): object => gpu.gpu.device
const workers: RunWorkersOptions = {}
const loader = new DataLoader(new TensorDataset(x, tensor([0, 1])), { batchSize: 2, shuffle: true })
for await (const [inputs, labels] of loader) {
  const both: readonly [Tensor, Tensor] = [inputs, labels]
  // @ts-expect-error a sample of two tensors is a batch of two
  both[2]
}
for (const [inputs] of new DataLoader(new TokenWindows(new Uint8Array(9), { blockSize: 4 }))) {
  const tokens: Tensor = inputs
  tokens.dispose()
}
const text: string = await values.text()

export {
  bad,
  device,
  everything,
  first,
  indices,
  misspelt,
  options,
  same,
  slope,
  text,
  unknown,
  width,
  workers,
  wrong,
}
