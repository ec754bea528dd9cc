/**
 * The kernel of dK and dV in which queries and dO take turns in workgroup memory: what large GPUs run for heads up to 64
 * wide, here with one row per thread, since SwiftShader compiles more for minutes.
 */
import { afterAll, expect, test } from 'vitest'
import { make } from '../../../test/kernels/attention.ts'
import { createWebGpuBackend } from '../src/index.ts'
import { attentionBackward } from '../src/kernels/attention/attention.ts'
import { check, closeGpus } from './support/attention.ts'

const gpu = await createWebGpuBackend()
const keys: string[] = []
const kernel = gpu.engine.kernel.bind(gpu.engine)
gpu.engine.kernel = (key, ...rest) => {
  keys.push(key)
  return kernel(key, ...rest)
}
const tile = { ty: 8, rm: 1, tx: 8, kn: 8, inPlace: 'rows', inTurn: true } as const
Object.assign(gpu.kernels, {
  scaled_dot_product_attentionBackward: attentionBackward(
    gpu.engine,
    [tile, { ty: 16, rm: 1, tx: 4, kn: 4 }],
    { bytes: 2 ** 18, leastGroups: 1 },
  ),
})
afterAll(() => {
  gpu.close()
  closeGpus()
})

test.each([
  [
    'dS stored, loops that end with the queries',
    make({ T: 168, D: 32, H: 4, Hk: 2 }, { isCausal: true }),
    [true, true, true],
  ],
  [
    'a window, and queries that end within a block',
    make({ T: 100, S: 75, D: 16 }, { window: 20 }),
    [true, true, true],
  ],
  ['dK alone', make({ T: 90, D: 8 }, { isCausal: true }), [false, true, false]],
  ['dV alone', make({ T: 90, D: 8 }, { isCausal: true }), [false, false, true]],
])(
  '%s',
  async (_, c, needs) => {
    keys.length = 0
    await check(c, needs, [], [['in turn', gpu]])
    expect(keys.some((key) => /attentionBackward:(kv|k|v):8x1,8x8t/.test(key))).toBe(true)
  },
  120_000,
)
