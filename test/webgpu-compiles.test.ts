/**
 * Every kernel in the form that real GPUs get, compiled without one: Dawn's backend 'null' offers all limits, features
 * and subgroups, checks everything and computes nothing.
 */
import {
  AdamW,
  type AttentionOptions,
  backward,
  clipGradNorm,
  createBlockMask,
  createWebGpuBackend,
  decayGroups,
  GPT,
  gatedLinearAttention,
  grad,
  isFloat,
  layerNorm,
  linear,
  linearAttention,
  randint,
  randn,
  rmsNorm,
  scaledDotProductAttention,
  scope,
  softmax,
  sum,
  type Tensor,
  type WebGpuBackend,
  withBackend,
} from 'tilegrad'
import { afterAll, describe, expect, test } from 'vitest'
import { table } from './op-table.ts'
import { type LayoutKind, make } from './samples.ts'

const errors: string[] = []
const onError = (message: string) => errors.push(message)
const backends: [string, WebGpuBackend][] = [
  ['all limits', await createWebGpuBackend({ backend: 'null', onError })],
  [
    'default limits',
    await createWebGpuBackend({ backend: 'null', limits: 'default', features: 'default', onError }),
  ],
]
afterAll(() => {
  for (const [, backend] of backends) backend.close()
})

/** Sums what is differentiable of the outputs and differentiates it; rejects with what a kernel is invalid by. */
function trained(fn: () => Tensor | readonly Tensor[]): void {
  scope(() => {
    const made = fn()
    const outputs = (Array.isArray(made) ? made : [made]) as Tensor[]
    for (const y of outputs.filter((t) => t.requiresGrad && isFloat(t.dtype)))
      backward(sum(y), { retainGraph: true })
  })
}

const param = (shape: readonly number[]): Tensor => {
  const t = randn(shape)
  t.requiresGrad = true
  return t
}

describe.each(backends)('%s', (_, backend) => {
  const check = async (): Promise<void> => {
    await backend.finished()
    // Errors of validation arrive with the work, and are thrown at the next check.
    await new Promise((resolve) => setTimeout(resolve, 5))
    await backend.finished()
    expect(errors.splice(0)).toEqual([])
  }

  test('every operator of the table, forward and backward, in two layouts', async () => {
    const failures: string[] = []
    for (const row of table)
      for (const kind of ['dense', 'strided'] as LayoutKind[]) {
        if (row.dense && kind !== 'dense') continue
        for (const sample of row.samples) {
          try {
            withBackend(backend, () =>
              trained(() => {
                const how = {
                  backend,
                  float: 'float32',
                  layout: kind,
                  seed: 1,
                  requiresGrad: row.order > 0,
                } as const
                return (row.run as (...a: unknown[]) => Tensor)(...make(sample, how))
              }),
            )
            await backend.finished()
          } catch (error) {
            failures.push(`${row.name} ${kind} ${JSON.stringify(sample)}: ${(error as Error).message}`)
          }
        }
      }
    expect(failures).toEqual([])
    await check()
  })

  test('products of every size class, plain, transposed, batched and with epilogues', async () => {
    for (const n of [1, 8, 33, 64, 128, 200, 256, 512, 1024, 2048])
      withBackend(backend, () => {
        trained(() => param([n, n]).matmul(param([n, n])))
        trained(() => param([n, n]).T.matmul(param([n, n]).T))
        trained(() => param([n, 65]).matmul(param([65, 16])))
        trained(() => param([16, n]).matmul(param([n, 16])))
        trained(() => param([2, 3, Math.min(n, 256), 64]).matmul(param([2, 3, 64, 48])))
        for (const activation of ['none', 'relu', 'gelu', 'gelu_tanh', 'silu'] as const)
          trained(() =>
            linear(
              param([n, 128]),
              param([384, 128]),
              param([384]),
              activation === 'none' ? {} : { activation },
            ),
          )
      })
    await check()
  })

  test('attention of every head size, causal and not, grouped, short and long', async () => {
    for (const [t, d] of [
      [1, 32],
      [7, 8],
      [64, 16],
      [64, 32],
      [64, 64],
      [64, 128],
      [96, 40],
      [256, 64],
      [512, 80],
      [300, 96],
      [1024, 128],
    ] as const)
      for (const isCausal of [false, true])
        withBackend(backend, () => {
          const heads = (h: number) => param([2, h, t, d])
          trained(() => scaledDotProductAttention(heads(4), heads(2), heads(2), { isCausal }))
          trained(() => linearAttention(heads(2), heads(2), heads(2), { isCausal }))
          if (isCausal) trained(() => gatedLinearAttention(heads(2), heads(2), heads(2), param([2, 2, t])))
        })
    await check()
  })

  test('attention with every option, in tiles of every size', async () => {
    for (const [t, d] of [32, 64, 128].flatMap((d) => [[200, d] as const, [50, d] as const]))
      withBackend(backend, () => {
        const heads = (h: number) => param([2, h, t, d])
        const options: AttentionOptions[] = [
          { window: 32, globalTokens: 8, isCausal: true },
          { alibi: randn([4]) },
          { alibi: randn([4]), attnMask: randn([t, t]) },
          { dropoutP: 0.1, isCausal: true },
        ]
        for (const blockSize of [16, 32, 64, 96, 128]) {
          const length = { qLen: t, kvLen: t }
          const blockMask = createBlockMask((i, j) => j <= i && (i + j) % 2 === 0, { blockSize, ...length })
          options.push({ blockMask })
          options.push({ blockMask, dropoutP: 0.1, window: 64, globalTokens: 8, alibi: randn([4]) })
        }
        for (const option of options)
          trained(() => scaledDotProductAttention(heads(4), heads(2), heads(2), option))
      })
    await check()
  })

  test('rows of every length', async () => {
    for (const n of [1, 5, 64, 100, 384, 1000, 4096, 50257])
      withBackend(backend, () => {
        trained(() => softmax(param([12, n]), 1))
        trained(() => layerNorm(param([12, n]), [n], param([n]), param([n])))
        trained(() => rmsNorm(param([12, n]), [n], param([n])))
        trained(() => param([n, 12]).sum(0))
        trained(() => param([12, n]).cumsum(1))
        trained(() => param([12, n]).sort(1))
      })
    await check()
  })

  test.each(['softmax', 'linear'] as const)(
    'a training step of a GPT with %s attention',
    async (attention) => {
      withBackend(backend, () => {
        const config = {
          vocabSize: 65,
          blockSize: 64,
          numLayers: 2,
          numHeads: 4,
          embedDim: 128,
          dropout: 0.1,
          attention,
        }
        const model = new GPT(config)
        const optimizer = new AdamW(decayGroups(model, 0.1))
        for (let i = 0; i < 2; i++)
          scope(() => {
            const tokens = randint(0, 65, [12, 65])
            model.forward(tokens.narrow(1, 0, 64), tokens.narrow(1, 1, 64)).loss.backward()
            clipGradNorm(model.parameters(), 1)
            optimizer.step()
            optimizer.zeroGrad()
          })
      })
      await check()
    },
  )
})

test('attention with so many heads that dS is stored', async () => {
  // One of its own: the null device has 512 MiB for all tests.
  const backend = await createWebGpuBackend({ backend: 'null', onError })
  const heads = (h: number, d: number) => param([64, h, 65, d])
  const options: AttentionOptions[] = [
    ...([false, 'top-left', 'bottom-right'] as const).map((isCausal) => ({ isCausal })),
    { attnMask: randn([65, 65], { device: backend }), dropoutP: 0.1 },
    { alibi: randn([8], { device: backend }), isCausal: true },
  ]
  for (const d of [32, 60, 128])
    for (const option of options) {
      withBackend(backend, () =>
        scope(() => {
          const [q, k, v] = [heads(8, d), heads(4, d), heads(4, d)]
          grad([sum(scaledDotProductAttention(q, k, v, option))], [q, k, v])
        }),
      )
      await backend.finished()
    }
  backend.close()
  expect(errors.splice(0)).toEqual([])
})
