/**
 * Attention in float16: on subgroup matrices where the GPU has them, elsewhere by way of float32. What the kernels of
 * matrices compile to is checked on Dawn's null device, which needs no such units.
 */

import {
  createBlockMask,
  data,
  grad,
  manualSeed,
  mul,
  randn,
  scaledDotProductAttention,
  type Tensor,
  tensor,
  withBackend,
} from '@tilegrad/core'
import { expect, test } from 'vitest'
import { mismatch } from '../../../test/kernels/operand.ts'
import { backendOn } from '../src/backend.ts'
import { openGpu, type WebGpuBackend } from '../src/index.ts'
import { shaderCode } from '../src/wgsl/shader.ts'
import { gpus } from './support/gpus.ts'

type Options = NonNullable<Parameters<typeof scaledDotProductAttention>[3]>
type Sizes = readonly [b: number, h: number, keyHeads: number, t: number, s: number, d: number, dv: number]

const options: Readonly<Record<string, (sizes: Sizes) => Options>> = {
  causal: () => ({ isCausal: true }),
  all: () => ({}),
  'large scores': () => ({ scale: 3 }),
  'from the bottom right': () => ({ isCausal: 'bottom-right' }),
  'a window and global tokens': () => ({ isCausal: true, window: 40, globalTokens: 3 }),
  dropout: () => ({ dropoutP: 0.3 }),
  'a mask': ([, , , t, s]) => ({ attnMask: randn([t, s]).gt(-0.3) }),
  'a mask to add': ([b, , , t, s]) => ({ attnMask: randn([b, 1, t, s]) }),
  ALiBi: ([, h]) => ({
    isCausal: true,
    alibi: tensor(Float32Array.from({ length: h }, (_, i) => 0.1 * (i + 1))),
  }),
  'a mask of blocks': ([, , , t, s]) => ({
    blockMask: createBlockMask((i, j) => j <= i && (i + j) % 3 !== 1, { qLen: t, kvLen: s, blockSize: 64 }),
  }),
}

const half = (shape: readonly number[], factor = 1): Tensor => randn(shape).mul(factor).to('float16')
const needing = (t: Tensor): Tensor => {
  t.requiresGrad = true
  return t
}

/** Output and gradients of attention, and of the same numbers in float32. */
function both([b, h, keyHeads, t, s, d, dv]: Sizes, o: Options, hidden: boolean): [Tensor, Tensor][] {
  const inputs = [half([b, h, t, d], 1.5), half([b, keyHeads, s, d], 1.5), half([b, keyHeads, s, dv])]
  // The last key is hidden from all but the last query by causality.
  if (hidden) for (const x of inputs.slice(1)) x.narrow(2, s - 1, 1).fill_(Number.NaN)
  const weights = half([b, h, t, dv])
  const seen = hidden ? t - 1 : t
  const of = (dtype: 'float16' | 'float32'): Tensor[] => {
    const [q, k, v] = inputs.map((x) => needing(x.detach().to(dtype)))
    manualSeed(9)
    const y = scaledDotProductAttention(q, k, v, o).narrow(2, 0, seen)
    return [
      y,
      ...grad(
        mul(y, weights.to(dtype).narrow(2, 0, seen))
          .to('float32')
          .sum(),
        [q, k, v],
      ),
    ]
  }
  const [got, want] = [of('float16'), of('float32')]
  return got.map((x, i) => [x, want[i]])
}

const sizes: readonly Sizes[] = [
  [1, 4, 2, 72, 72, 64, 64],
  [1, 2, 1, 33, 90, 32, 16],
]

async function agree(
  gpu: WebGpuBackend,
  at: Sizes,
  o: (sizes: Sizes) => Options,
  hidden = false,
): Promise<void> {
  const pairs = withBackend(gpu, () => {
    manualSeed(7)
    return both(at, o(at), hidden)
  })
  for (const [i, [x, y]] of pairs.entries()) {
    expect(x.dtype).toBe('float16')
    const want = await data(y)
    const scale = Math.max(1e-3, ...Array.from(want, (w) => Math.abs(w) || 0))
    expect(
      mismatch(await data(x), want, 6e-3 * scale, 0),
      `${'o dq dk dv'.split(' ')[i]} of ${at}`,
    ).toBeNull()
  }
}

test.each(gpus)(
  'agrees with float32 on a GPU with $name',
  async ({ gpu }) => {
    for (const [name, o] of Object.entries(options))
      for (const at of name === 'a mask of blocks' ? [[1, 2, 2, 192, 192, 64, 64] as const] : sizes)
        await agree(gpu, at, o)
    await agree(gpu, [1, 2, 2, 72, 72, 64, 64], () => ({ isCausal: true }), true)
  },
  600_000,
)

test('kernels for subgroup matrices compile', async () => {
  // The null device has memory for a workgroup of the smallest GPU, and no matrices: kernels are made and not run.
  const device = await openGpu({ backend: 'null' })
  Object.defineProperties(device, {
    matrices: {
      value: { enables: ['f16', 'subgroups', 'chromium_experimental_subgroup_matrix'], subgroup: 32 },
    },
    limits: { value: { ...device.limits, maxComputeWorkgroupStorageSize: 49152 } },
  })
  const gpu = backendOn(device)
  const { engine } = gpu
  const codes = new Map<string, string>()
  const [kernel, run] = [engine.kernel.bind(engine), engine.run.bind(engine)]
  const apart = new Set<unknown>()
  engine.kernel = (key, label, build) => {
    if (!key.startsWith('attentionMatrix')) return kernel(key, label, build)
    codes.set(key, shaderCode(build()))
    const none = kernel(`none for ${key}`, label, build)
    apart.add(none)
    return none
  }
  engine.run = (which, ...rest) => {
    if (!apart.has(which)) run(which, ...rest)
  }
  withBackend(gpu, () => {
    for (const [d, dv] of [
      [64, 64],
      [128, 128],
      [32, 16],
      [24, 40],
    ] as const)
      for (const o of Object.values(options)) {
        const at: Sizes = [1, 4, 2, 128, 128, d, dv]
        both(at, o(at), false)
      }
  })
  // Forward, δ, dQ, and dK with dV or each by itself.
  expect(codes.size).toBeGreaterThan(90)
  for (const [key, code] of codes) {
    const { messages } = await gpu.gpu.device.createShaderModule({ code }).getCompilationInfo()
    expect(
      messages.filter(({ type }) => type === 'error').map(({ message }) => message),
      key,
    ).toEqual([])
  }
  gpu.close()
}, 120_000)
