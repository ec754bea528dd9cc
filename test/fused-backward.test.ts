/** What backward passes of whole blocks leave out: passes over memory that kernels do along with their own work. */
import {
  backward,
  createCpuBackend,
  data,
  Llama,
  manualSeed,
  profile,
  randn,
  reference,
  type Tensor,
  TransformerBlock,
  withBackend,
} from 'tilegrad'
import { afterAll, expect, test } from 'vitest'
import { gpus } from '../packages/backend-webgpu/test/support/gpus.ts'
import { difference, LOOSE } from './conformance/compare.ts'

const cpu = createCpuBackend({ threads: 2 })
const devices = [
  { name: 'cpu', device: cpu },
  ...gpus.map(({ name, gpu }) => ({ name: `webgpu, ${name}`, device: gpu })),
]
afterAll(async () => {
  await cpu.close()
  for (const { gpu } of gpus) gpu.close()
})

const sizes = { vocabSize: 1, blockSize: 9, numLayers: 2, numHeads: 2, embedDim: 16 }
const kinds: Readonly<
  Record<'gpt' | 'llama', () => { forward(x: Tensor): Tensor; parameters(): Tensor[] }[]>
> = {
  gpt: () => [0, 1].map(() => new TransformerBlock(16, 2, { isCausal: true })),
  // Queries, keys and values are made by layers of their own, and so are gates: five layers read two tensors.
  llama: () => new Llama({ ...sizes, attentionBias: true }).model.layers,
}
type Kind = keyof typeof kinds

/** Gradients of the input and of all parameters of two blocks in a row, and how often backward() ran what. */
async function gradients(kind: Kind, device: (typeof devices)[number]['device'] | typeof reference) {
  const { x, blocks, calls } = withBackend(device, () => {
    manualSeed(3)
    const blocks = kinds[kind]()
    const x = randn([2, 9, 16], { requiresGrad: true })
    const y = blocks.reduce((h, block) => block.forward(h), x)
    const { rows } = profile(() => backward(y, { gradient: randn([2, 9, 16]) }))
    return { x, blocks, calls: new Map(rows.map((r) => [r.op, r.calls])) }
  })
  const leaves = [x, ...blocks.flatMap((b) => b.parameters())]
  const values = await Promise.all(leaves.map((t) => data(t.grad as Tensor)))
  return { values, shapes: leaves.map((t) => t.shape), calls }
}

const cases = [
  ...devices.map((d) => ({ ...d, kind: 'gpt' as const })),
  ...devices.slice(0, 2).map((d) => ({ ...d, kind: 'llama' as const })),
]
test.each(cases)('$name, $kind: sums of gradients are made by other kernels', async ({ device, kind }) => {
  const want = await gradients(kind, reference)
  const got = await gradients(kind, device)
  got.values.forEach((g, i) => expect(difference(g, want.values[i], got.shapes[i], LOOSE)).toBeNull())
  expect(got.calls.get(kind === 'gpt' ? 'layer_normBackward' : 'rms_normBackward')).toBe(4)
  // Not even of the first block's input, a leaf.
  expect(got.calls.get('add')).toBeUndefined()
})
