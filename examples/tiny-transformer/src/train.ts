import { setImmediate } from 'node:timers/promises'
import {
  AdamW,
  clipGradNorm,
  decayGroups,
  defaultBackend,
  fixedBlocks,
  GPT,
  type GPTConfig,
  manualSeed,
  memory,
  noGrad,
  resetPeakMemory,
  schedule,
  scope,
  stack,
  type Tensor,
  tensor,
} from 'tilegrad'
import { bigramEntropy, type Corpus, randomBatch, spacedBatches } from './corpus.ts'
import type { Options } from './options.ts'

export interface Point {
  readonly step: number
  /** Nats per character. */
  readonly loss: number
}

export interface Run {
  readonly model: GPT
  readonly training: readonly Point[]
  readonly validation: readonly Point[]
  readonly bigramEntropy: number
  /** Steps done; fewer than asked if the run was stopped. */
  readonly steps: number
  /** Time in training steps alone. */
  readonly trainSeconds: number
  /** The most bytes of tensors alive at once: parameters, optimiser, activations, gradients. */
  readonly peakBytes: number
}

/** What a run tells while it goes on; of steps on a GPU, some steps later. */
export interface Listener {
  step?(done: number, loss: number, tokensPerSecond: number): void
  validated?(point: Point): void
}

/** How far the kinds of attention that do not look at everything see, in a context as short as the example's. */
function sight({ attention, block, window = Math.ceil(block / 4) }: Options): Partial<GPTConfig> {
  const blockSize = 16
  if (attention === 'window') return { window }
  if (attention === 'blocks') return { blocks: { blockSize, visible: fixedBlocks(4) } }
  if (attention === 'dynamic') return { blocks: { blockSize, keep: 1 + Math.ceil(window / blockSize) } }
  return {}
}

/**
 * Trains a GPT on a corpus: AdamW on cross-entropy, warm-up and cosine decay, gradients clipped. A function of the
 * options and the text alone: the same seed gives the same run.
 *
 * @param stopped asked after every step; true ends the run early with what was learned.
 */
export async function train(
  corpus: Corpus,
  options: Options,
  listener: Listener = {},
  stopped = (): boolean => false,
): Promise<Run> {
  manualSeed(options.seed)
  resetPeakMemory()
  const { batch, block, accumulate } = options
  const model = new GPT({
    vocabSize: corpus.alphabet.length,
    blockSize: block,
    numLayers: options.layers,
    numHeads: options.heads,
    embedDim: options.width,
    dropout: options.dropout,
    bias: options.bias,
    attention: options.attention,
    ...sight(options),
  })
  const optimizer = new AdamW(decayGroups(model, options.weightDecay), {
    lr: options.lr,
    betas: [0.9, options.beta2],
  })
  const rate = schedule.warmupCosine({
    lr: options.lr,
    minLr: options.minLr,
    warmupSteps: Math.min(options.warmup, options.steps),
    decaySteps: options.steps,
  })
  const params = model.parameters()

  const training: Point[] = []
  const validation: Point[] = []
  const validate = async (step: number): Promise<void> => {
    const point = { step, loss: await heldOutLoss(model, corpus, options) }
    validation.push(point)
    listener.validated?.(point)
  }

  // A read makes a GPU wait for the host: losses are read in groups, each while the next steps are under way.
  const group = defaultBackend().readSync ? 1 : 10
  const unread: Tensor[] = []
  let reading = Promise.resolve()
  let done = 0
  let milliseconds = 0
  let start = 0
  const readLosses = async (): Promise<void> => {
    const values = await readAll(unread.splice(0))
    for (const loss of values) {
      const step = training.length + 1
      training.push({ step, loss })
      const ms = milliseconds + performance.now() - start
      listener.step?.(step, loss, (done * accumulate * batch * block) / (ms / 1000))
      if (!Number.isFinite(loss))
        throw new Error(`the loss became ${loss} at step ${step}; try a smaller --lr`)
    }
  }

  await validate(0)
  start = performance.now()
  // Gradients add up in `.grad`; a scope for each batch, so that only one batch's activations exist.
  const backward = (): Tensor =>
    scope(() => {
      const { inputs, targets } = randomBatch(corpus.train, batch, block)
      const loss = model.forward(inputs, targets).loss.div(accumulate)
      loss.backward()
      return loss.detach()
    })
  while (done < options.steps && !stopped()) {
    const loss = scope(() => {
      let loss = backward()
      for (let i = 1; i < accumulate; i++) loss = loss.add(backward())
      if (options.clip > 0) clipGradNorm(params, options.clip)
      optimizer.lr = rate(done)
      optimizer.step()
      optimizer.zeroGrad()
      return loss
    })
    unread.push(loss)
    done++
    if (unread.length === group) {
      await reading
      reading = readLosses()
      // Awaited, and so told, a group later or at the end.
      reading.catch(() => {})
    }
    if (done % options.evalEvery === 0 && done < options.steps) {
      await reading
      await readLosses()
      milliseconds += performance.now() - start
      await validate(done)
      start = performance.now()
    }
    // Lets signals and the progress bar in.
    await setImmediate()
  }
  await reading
  await readLosses()
  milliseconds += performance.now() - start
  await validate(done)
  return {
    model,
    training,
    validation,
    bigramEntropy: bigramEntropy(corpus.train, corpus.alphabet.length),
    steps: done,
    trainSeconds: milliseconds / 1000,
    peakBytes: memory().peakBytes,
  }
}

/** Reads scalars, all at once, and frees them. */
async function readAll(scalars: readonly Tensor[]): Promise<number[]> {
  if (scalars.length === 0) return []
  const all = noGrad(() => scope(() => stack(scalars, 0)))
  for (const t of scalars) t.dispose()
  const values = await all.data()
  all.dispose()
  return [...values]
}

/** Mean loss over evenly spaced windows of the held-out text, without dropout. */
export async function heldOutLoss(
  model: GPT,
  corpus: Corpus,
  { evalBatches, batch, block }: Options,
): Promise<number> {
  model.eval()
  const losses: Tensor[] = []
  for (const { inputs, targets } of spacedBatches(corpus.held, evalBatches, batch, block)) {
    losses.push(scope(() => noGrad(() => model.forward(inputs, targets).loss)))
    for (const t of [inputs, targets]) t.dispose()
  }
  model.train()
  return (await readAll(losses)).reduce((sum, loss) => sum + loss, 0) / evalBatches
}

/** Text that the model writes after `prompt`. */
export async function write(model: GPT, corpus: Corpus, length: number, prompt = '\n'): Promise<string> {
  const token = new Map(corpus.alphabet.map((c, i) => [c, i]))
  const start = [...prompt].map((c) => token.get(c) ?? 0)
  const idx = tensor(Int32Array.from(start), [1, start.length])
  const out = await model.generate(idx, { maxNewTokens: length, temperature: 0.8 }).tensor()
  return Array.from(await out.data(), (i) => corpus.alphabet[i] ?? '')
    .join('')
    .slice(prompt.length)
}
