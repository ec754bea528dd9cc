/** Attention in its surroundings: its share of a block, batches and heads, projections, threads. */
import { createCpuBackend } from '@tilegrad/backend-cpu'
import {
  grad,
  linearAttention,
  rand,
  randint,
  scaledDotProductAttention,
  scope,
  type Tensor,
  withBackend,
} from '@tilegrad/core'
import {
  AdamW,
  type AttentionKind,
  attentionKinds,
  clipGradNorm,
  decayGroups,
  fixedBlocks,
  GPT,
  type GPTConfig,
  type Module,
  MultiHeadAttention,
  TransformerBlock,
} from '@tilegrad/nn'
import { median, ms } from '../cpu/harness.ts'
import type { First, Meter } from './meter.ts'

/** A line of a table: what was measured, and numbers by name. */
export interface Part {
  readonly table: string
  readonly name: string
  readonly values: Readonly<Record<string, number>>
}

const signed = (shape: readonly number[]): Tensor => scope(() => rand(shape).mul(2).sub(1))
const MiB = 2 ** 20

interface Layer extends Module {
  forward(x: Tensor): Tensor
}

/** Forward and backward of a layer, all gradients. */
async function train(meter: Meter, layer: Layer, x: Tensor): Promise<First> {
  x.requiresGrad = true
  const wanted = [x, ...layer.parameters()]
  const g = signed(x.shape)
  const run = (): void =>
    scope(() => {
      grad(layer.forward(x), wanted, { gradOutputs: [g] })
    })
  await meter.first(run)
  const { bytes } = await meter.first(run)
  const { ms } = await meter.time(run)
  g.dispose()
  return { ms, bytes }
}

/** Attention with its projections, and the feed-forward part, of a block: each alone, forward and backward. */
export async function* shares(meter: Meter, lengths: readonly number[]): AsyncGenerator<Part> {
  for (const attention of ['softmax', 'linear'] satisfies AttentionKind[]) {
    const block = new TransformerBlock(512, 8, { isCausal: true, attention })
    for (const t of lengths) {
      const x = signed([1, t, 512])
      const attn = await train(meter, block.attn, x)
      const mlp = await train(meter, block.mlp, x)
      const all = await train(meter, block, x)
      x.dispose()
      yield {
        table: 'share of attention in a block of width 512, 8 heads: forward + backward',
        name: `${attention} T=${t}`,
        values: {
          'attention ms': attn.ms,
          'feed-forward ms': mlp.ms,
          'block ms': all.ms,
          'attention % of time': (100 * attn.ms) / (attn.ms + mlp.ms),
          'attention MiB': attn.bytes / MiB,
          'feed-forward MiB': mlp.bytes / MiB,
          'block MiB': all.bytes / MiB,
          'attention % of memory': (100 * attn.bytes) / (attn.bytes + mlp.bytes),
        },
      }
    }
  }
}

type Attend = (q: Tensor, k: Tensor, v: Tensor) => Tensor
const isCausal = true
const core: Readonly<Record<string, Attend>> = {
  softmax: (q, k, v) => scaledDotProductAttention(q, k, v, { isCausal }),
  linear: (q, k, v) => linearAttention(q, k, v, { isCausal }),
}

/** Forward and backward of attention alone on (B, H, T, D). */
function attending(attend: Attend, shape: readonly number[]): { run: () => void; dispose(): void } {
  const [g, ...xs] = [1, 2, 3, 4].map(() => signed(shape)) as [Tensor, Tensor, Tensor, Tensor]
  for (const x of xs) x.requiresGrad = true
  const run = (): void =>
    scope(() => {
      grad(attend(...xs), xs, { gradOutputs: [g] })
    })
  return {
    run,
    dispose() {
      for (const x of [g, ...xs]) x.dispose()
    },
  }
}

export async function* throughput(meter: Meter): AsyncGenerator<Part> {
  const rate = async (attend: Attend, shape: readonly [number, number, number, number]): Promise<number> => {
    const { run, dispose } = attending(attend, shape)
    const { ms } = await meter.time(run)
    dispose()
    return (shape[0] * shape[2]) / ms
  }
  const both = async (shape: readonly [number, number, number, number]): Promise<Record<string, number>> => ({
    'softmax, tokens / ms': await rate(core.softmax, shape),
    'linear, tokens / ms': await rate(core.linear, shape),
  })
  for (const b of [1, 2, 4, 8, 16])
    yield {
      table: 'batch size: H 8, T 512, D 64, forward + backward',
      name: `B=${b}`,
      values: await both([b, 8, 512, 64]),
    }
  for (const h of [1, 2, 4, 8, 16, 32])
    yield {
      table: 'heads of a width of 512: B 1, T 1024, D 512 / H, forward + backward',
      name: `H=${h} D=${512 / h}`,
      values: await both([1, h, 1024, 512 / h]),
    }
}

export async function* projections(meter: Meter): AsyncGenerator<Part> {
  for (const t of [64, 256, 1024, 4096]) {
    const values: Record<string, number> = {}
    for (const packed of [true, false]) {
      const layer = new MultiHeadAttention(512, 8, { isCausal, packed })
      const x = signed([1, t, 512])
      const name = packed ? 'packed' : 'separate'
      const { ms, bytes } = await train(meter, layer, x)
      values[`${name} ms`] = ms
      values[`${name} MiB`] = bytes / MiB
      x.dispose()
    }
    yield {
      table: 'packed and separate QKV: a layer of width 512, 8 heads, forward + backward',
      name: `T=${t}`,
      values,
    }
  }
}

/** A training step of the example's GPT with each way to attend, in turns, so that all see the same noise. */
export async function* steps(meter: Meter, runs: number): AsyncGenerator<Part> {
  const [vocabSize, blockSize, batch] = [80, 256, 4]
  const blocks = { blockSize: 16, visible: fixedBlocks(4) }
  const told: Partial<Record<AttentionKind, Partial<GPTConfig>>> = {
    window: { window: 64 },
    blocks: { blocks },
    dynamic: { blocks: { blockSize: 16, keep: 5 } },
  }
  const tokens = randint(0, vocabSize, [batch, blockSize])
  const size = { vocabSize, blockSize, numLayers: 4, numHeads: 4, embedDim: 128, bias: false }
  const all = attentionKinds.map((attention) => {
    const model = new GPT({ ...size, attention, ...told[attention] })
    const optimizer = new AdamW(decayGroups(model, 0.1), { lr: 1e-3 })
    const run = (): void =>
      scope(() => {
        model.forward(tokens, tokens).loss.backward()
        clipGradNorm(model.parameters(), 1)
        optimizer.step()
        optimizer.zeroGrad()
      })
    return { attention, run, times: [] as number[], bytes: 0 }
  })
  for (let i = 0; i < runs + 3; i++) {
    for (const side of all) {
      const { ms, bytes } = await meter.first(side.run)
      side.bytes = bytes
      if (i >= 3) side.times.push(ms)
    }
  }
  for (const { attention, times, bytes } of all)
    yield {
      table: 'a training step of a GPT: 4 layers, width 128, 4 heads, 4 × 256 tokens',
      name: attention,
      values: { ms: median(times), 'MiB beyond weights and moments': bytes / MiB },
    }
}

/** One thread against all, in turns, so that both see the same noise; on the CPU. */
export async function* threads(runs: number, many: number): AsyncGenerator<Part> {
  if (many === 1) return
  const backends = [createCpuBackend({ threads: 1 }), createCpuBackend({ threads: many })]
  for (const backend of backends) await backend.ready()
  for (const [name, attend] of Object.entries(core)) {
    for (const t of [1024, 4096]) {
      const sides = backends.map((backend) => withBackend(backend, () => attending(attend, [1, 8, t, 64])))
      const times = sides.map((): number[] => [])
      for (let i = 0; i <= runs; i++)
        sides.forEach(({ run }, side) => {
          const time = withBackend(backends[side], () => ms(run))
          if (i > 0) times[side].push(time)
        })
      const [one, all] = times.map(median)
      for (const side of sides) side.dispose()
      yield {
        table: `threads: H 8, D 64, forward + backward`,
        name: `${name} T=${t}`,
        values: { '1 thread ms': one, [`${many} threads ms`]: all, 'times faster': one / all },
      }
    }
  }
  for (const backend of backends) await backend.close()
}
