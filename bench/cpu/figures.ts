/** Figures that are no time of one workload. Each gives null where what it needs was not run. */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { createCpuBackend } from '@tilegrad/backend-cpu'
import { compile, type ProfileRow, profile, reclaim, scope, tensor, withBackend } from '@tilegrad/core'
import {
  AdamW,
  type AnyOptimizer,
  clipGradNorm,
  GPT,
  generate,
  Muon,
  muonGroups,
  quantize,
} from '@tilegrad/nn'
import { gptBatch, gpts, type RecurrentName, recurrences } from '../peers/inputs.ts'
import { type Figure, median, ms } from './harness.ts'
import { attention, compiledStep, gemm, gptStep } from './workloads.ts'

const speedUp: Figure = {
  name: 'gemm 1024, times faster than 1 thread',
  async measure({ backend, runs }) {
    if (backend.threads === 1) return null
    const alone = createCpuBackend({ threads: 1, level: backend.level })
    const ratios = scope(() => {
      const [many, one] = [backend, alone].map((device) => withBackend(device, () => gemm(1024, 1024, 1024)))
      // One after the other, so that both see the same noise.
      return Array.from({ length: runs + 1 }, () => {
        const slow = ms(() => withBackend(alone, one.run))
        return slow / ms(many.run)
      }).slice(1)
    })
    await alone.close()
    const value = median(ratios)
    const least = backend.threads === 2 ? 1.85 : null
    return { value, unit: '×', target: least ? `≥ ${least}×` : '', met: least ? value >= least : null }
  },
}

const lengths = [1024, 4096, 16384]
const peaks: number[] = []
/** Most bytes of attention, forward and backward, beyond its inputs. */
const memory = (t: number, i: number): Figure => ({
  name: `attention memory T=${t}`,
  measure({ backend }) {
    const { memory: heap } = backend.engine
    const bytes = scope(() => {
      const { run } = attention(t, true, false)
      heap.resetPeak()
      const before = heap.stats().liveBytes
      run()
      return heap.stats().peakBytes - before
    })
    peaks[i] = bytes
    const growth = bytes / (peaks[i - 1] ?? Number.NaN)
    const met = i === 0 ? null : growth < 4.4
    return { value: bytes / 2 ** 20, unit: 'MiB', target: i === 0 ? '' : '≤ 4.4× of a quarter of T', met }
  },
})

/** The most bytes in use in a training step: parameters, optimiser state, gradients and activations. */
const stepMemory = (name: 'training step A' | 'training step B'): Figure => ({
  name: `${name}, memory`,
  measure({ backend }) {
    reclaim()
    const before = backend.stats().liveBytes
    const bytes = scope(() => {
      const step = gptStep(gpts[name])
      // The first one makes the optimiser's state.
      for (let i = 0; i < 2; i++) {
        backend.resetPeak()
        step().dispose()
      }
      return backend.stats().peakBytes - before
    })
    return { value: bytes / 2 ** 20, unit: 'MiB', target: '', met: null }
  },
})

/** The same for a compiled step: what it holds besides parameters, state and its own input. */
const compiledMemory = (name: 'training step A' | 'training step B'): Figure => ({
  name: `${name}, compiled, memory`,
  measure({ backend }) {
    reclaim()
    const before = backend.stats().liveBytes
    const bytes = scope(() => {
      const step = compiledStep(gpts[name])
      for (let i = 0; i < 3; i++) step().dispose()
      backend.resetPeak()
      step().dispose()
      return backend.stats().peakBytes - before
    })
    return { value: bytes / 2 ** 20, unit: 'MiB', target: '', met: null }
  },
})

/** Step B, compiled, in half of its memory with the rest in the host's: its time by that in all of it. */
const swapped: Figure = {
  name: 'training step B, compiled, half of its memory outside',
  measure({ backend }) {
    const size = gpts['training step B']
    // What earlier figures left is not this one's.
    reclaim()
    const { liveBytes } = backend.stats()
    const whole = compiledStep(size)
    // Two recordings, and a run of the plan.
    for (let i = 0; i < 2; i++) whole().dispose()
    backend.resetPeak()
    whole().dispose()
    const bytes = backend.stats().peakBytes - liveBytes
    // Beside the other one, which stays.
    const limit = { offload: 'host', maxBytes: backend.stats().liveBytes + bytes / 2 }
    const half = gptStep(size, 'float32', (fn) => compile(fn, limit) as unknown as typeof fn)
    backend.resetPeak()
    for (let i = 0; i < 3; i++) half().dispose()
    if (backend.stats().peakBytes > limit.maxBytes) throw new Error('it took more memory than it was given')
    const times = Array.from({ length: 5 }, () => [whole, half].map((step) => ms(() => step().dispose())))
    const value = median(times.map(([whole, half]) => half / whole))
    return { value, unit: '×', target: '≤ 1.3×', met: value <= 1.3 }
  },
}

/** Tokens per second of a model of 4 layers of width 128, one after another. */
const decoding: Figure = {
  name: 'decoding 4 × 128, batch 1',
  async measure({ runs }) {
    const model = new GPT({ vocabSize: 65, blockSize: 256, numLayers: 4, numHeads: 4, embedDim: 128 })
    const start = tensor([[1, 2, 3, 4]], { dtype: 'int32' })
    const rates: number[] = []
    for (let i = 0; i <= runs; i++) {
      const begin = performance.now()
      const tokens = await generate(model, start, { maxNewTokens: 240 }).tensor()
      rates.push(240000 / (performance.now() - begin))
      tokens.dispose()
    }
    start.dispose()
    return { value: median(rates.slice(1)), unit: 'tokens/s', target: '', met: null }
  },
}

/** GPT-2 124M in 32 bits and packed, in turns: what the second one's tokens per second are to the first one's. */
const packedDecoding = (kind: string, target: number, pack: (model: GPT) => GPT): Figure => ({
  name: `decoding GPT-2 124M, ${kind} to float32`,
  async measure() {
    const sizes = { vocabSize: 50257, blockSize: 1024, numLayers: 12, numHeads: 12, embedDim: 768 }
    const models = [new GPT(sizes), pack(new GPT(sizes))]
    // Few tokens come of few rows: a longer prompt would count as much as they do.
    const start = tensor([[1]], { dtype: 'int32' })
    const ratios: number[] = []
    for (let i = 0; i <= 3; i++) {
      const times: number[] = []
      for (const model of models) {
        const begin = performance.now()
        const tokens = await generate(model, start, { maxNewTokens: 24, temperature: 0 }).tensor()
        times.push(performance.now() - begin)
        tokens.dispose()
      }
      ratios.push(times[0] / times[1])
    }
    for (const model of models) model.dispose()
    start.dispose()
    const value = median(ratios.slice(1))
    return { value, unit: '×', target: `≥ ${target}×`, met: value >= target }
  },
})

/** What of a training step is not spent in kernels: tape, shapes, memory, and JavaScript at large. */
const overhead: Figure = {
  name: 'training step A, outside of kernels',
  measure() {
    const step = gptStep(gpts['training step A'])
    for (let i = 0; i < 10; i++) step().dispose()
    const shares = Array.from({ length: 9 }, () => {
      let rows: readonly ProfileRow[] = []
      const wall = ms(() => {
        ;({ rows } = profile(() => step().dispose()))
      })
      const kernels = rows.reduce((sum, row) => sum + (row.path === 'composed' ? 0 : row.ms), 0)
      return 100 * (1 - kernels / wall)
    })
    return { value: median(shares), unit: '%', target: '', met: null }
  },
}

/** How much of a training step goes to optimisers: Newton–Schulz iterations are products, which AdamW has none of. */
const optimizerShare = (name: string, make: (model: GPT) => readonly AnyOptimizer[]): Figure => ({
  name: `training step A, share of ${name}`,
  measure({ runs }) {
    const size = gpts['training step A']
    const { layers: numLayers, heads: numHeads, width: embedDim, block: blockSize, vocab: vocabSize } = size
    const model = new GPT({ vocabSize, blockSize, numLayers, numHeads, embedDim, bias: false })
    const optimizers = make(model)
    const data = gptBatch(size)
    const [x, y] = [data.tokens, data.targets].map((ids) => tensor(ids, [size.batch, blockSize]))
    const shares = Array.from({ length: runs + 10 }, () => {
      let own = 0
      const all = ms(() =>
        scope(() => {
          model.forward(x, y).loss.backward()
          clipGradNorm(model.parameters(), 1)
          own = ms(() => {
            for (const optimizer of optimizers) optimizer.step()
          })
          for (const optimizer of optimizers) optimizer.zeroGrad()
        }),
      )
      return (100 * own) / all
    }).slice(10)
    for (const one of [...optimizers, model, x, y]) one.dispose()
    return { value: median(shares), unit: '%', target: '', met: null }
  },
})

const withMuon = (model: GPT): readonly AnyOptimizer[] => {
  const { matrices, others } = muonGroups(model)
  return [new Muon(matrices), new AdamW(others)]
}

const linearTime: Figure = {
  name: 'linear attention, time per token at T=65536 to T=4096',
  measure(_, times) {
    const [long, short] = [65536, 4096].map((t) => (times.get(`linear attention T=${t}`) ?? Number.NaN) / t)
    const value = long / short
    return Number.isNaN(value) ? null : { value, unit: '×', target: '≤ 1.2×', met: value <= 1.2 }
  },
}

const tokens = (name: RecurrentName): Figure => ({
  name: `${name}, tokens/s`,
  measure(_, times) {
    const { batch, steps } = recurrences[name]
    const time = times.get(name)
    return time ? { value: (batch * steps) / time, unit: 'thousand', target: '', met: null } : null
  },
})

/** nanoGPT's recipe on a text of one's own, 2,000 steps: minutes. Only with --only nanogpt --data FILE. */
export const nanogpt = (file: string): Figure => ({
  name: 'nanogpt',
  measure({ backend }) {
    const program = fileURLToPath(new URL('../../examples/tiny-transformer/dist/nanogpt.js', import.meta.url))
    const { stdout, stderr } = spawnSync(process.execPath, [program, '--data', file], { encoding: 'utf8' })
    const seconds = /steps in ([\d.]+) s/.exec(stdout)?.[1]
    if (!seconds) throw new Error(stderr.trim() || stdout.trim())
    const loss = /validation loss.*: ([\d.]+)/.exec(stdout)?.[1]
    // PyTorch's three seeds: 1.884 to 1.899, ± 0.004 each.
    const learnt = Number(loss) <= 1.905
    const [value, unit] = [Number(seconds), `s, validation loss ${loss}`]
    if (backend.level !== 'revectorized') return { value, unit, target: 'loss ≤ 1.905', met: learnt }
    return { value, unit, target: '≤ 80 s, loss ≤ 1.905', met: learnt && value <= 80 }
  },
})

export const figures: readonly Figure[] = [
  speedUp,
  ...lengths.map(memory),
  linearTime,
  stepMemory('training step A'),
  stepMemory('training step B'),
  compiledMemory('training step A'),
  compiledMemory('training step B'),
  swapped,
  decoding,
  packedDecoding('8 bits', 1.5, (model) => quantize(model)),
  packedDecoding('bfloat16', 1.5, (model) => model.to('bfloat16')),
  packedDecoding('float16', 1.5, (model) => model.to('float16')),
  overhead,
  optimizerShare('AdamW', (model) => [new AdamW(model.parameters())]),
  optimizerShare('Muon and AdamW', withMuon),
  ...(Object.keys(recurrences) as RecurrentName[]).map(tokens),
]
