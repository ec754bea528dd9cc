import { setImmediate } from 'node:timers/promises'
import {
  AdamW,
  clipGradNorm,
  decayGroups,
  defaultBackend,
  type GPT,
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
import { type Corpus, randomBatch, spacedBatches } from './corpus.ts'
import { failureOf } from './failure.ts'
import { modelOf } from './model.ts'
import type { Options } from './options.ts'
import { Pace } from './pace.ts'
import { Snapshot } from './snapshot.ts'

export interface Point {
  readonly step: number
  /** Nats per character. */
  readonly loss: number
}

export interface Run {
  /** The model as it is after `steps` steps, all of its weights finite. */
  readonly model: GPT
  readonly training: readonly Point[]
  readonly validation: Point[]
  /** Steps done; fewer than asked if the run was stopped or failed. */
  readonly steps: number
  /** Time in training steps alone. */
  readonly trainSeconds: number
  /** The most bytes of tensors alive at once: parameters, optimiser, activations, gradients. */
  readonly peakBytes: number
  /** Why the run could not go on. The model is then the last one known to be good. */
  readonly failure: string | null
}

/** What a run tells while it goes on; of steps on a GPU, some steps later. */
export interface Listener {
  step?(done: number, loss: number, tokensPerSecond: number): void
  validated?(point: Point): void
  /** After every step, as soon as it is done. */
  done?(steps: number): void
  /** Now and then: weights that gave a finite loss. Read them, they change afterwards. */
  checkpoint?(weights: Readonly<Record<string, Tensor>>, steps: number): Promise<void>
}

/** Checkpoints are this far apart in time at most, in milliseconds, unless they would take a hundredth of it. */
const CHECKPOINTS = 10_000

/** Losses of held-out batches that are on their way together. */
const READ_TOGETHER = 64

/**
 * Trains a GPT on a corpus: AdamW on cross-entropy, warm-up and cosine decay, gradients clipped. A function of the
 * options and the text alone: the same seed gives the same run. A loss that is not finite, and a lack of memory, end it
 * with the last good weights and `failure`.
 *
 * @param stopped asked after every batch; true ends the run early with what was learned.
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
  const model = modelOf(options, corpus.alphabet.length)
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
    const loss = await heldOutLoss(model, corpus, options, stopped)
    if (loss === null) return
    validation.push({ step, loss })
    listener.validated?.({ step, loss })
  }

  // A read makes a GPU wait for the host: losses are read in groups, each while the next steps are under way.
  const immediate = defaultBackend().readSync !== undefined
  const group = immediate ? 1 : 10
  const unread: Tensor[] = []
  let reading = Promise.resolve()
  let done = 0
  let milliseconds = 0
  let start = 0
  let failure: string | null = null
  const readLosses = async (): Promise<void> => {
    const values = await readAll(unread.splice(0))
    for (const loss of values) {
      const step = training.length + 1
      training.push({ step, loss })
      const ms = milliseconds + performance.now() - start
      listener.step?.(step, loss, (done * accumulate * batch * block) / (ms / 1000))
      if (!Number.isFinite(loss)) failure ??= `the loss became ${loss} at step ${step}; try a smaller --lr`
    }
  }

  const good = new Snapshot(model)
  // Copies are cheap, but on a GPU the loss has to be waited for.
  const copies = new Pace(() => (immediate ? 0 : 2000))
  const checkpoints = new Pace((since) => Math.min(CHECKPOINTS, since / 10))
  /** Keeps the weights of before this step's update, now that their loss is known. */
  const keep = async (loss: Tensor): Promise<void> => {
    if (done === 0 || !copies.due) return
    await copies.run(async () => {
      if (Number.isFinite(await loss.item())) good.take(done)
    })
    if (good.steps === done && listener.checkpoint && checkpoints.due)
      await checkpoints.run(() => listener.checkpoint?.(good.stateDict(), good.steps) ?? Promise.resolve())
  }

  // Gradients add up in `.grad`; a scope for each batch, so that only one batch's activations exist.
  const backward = (): Tensor =>
    scope(() => {
      const { inputs, targets } = randomBatch(corpus.train, batch, block)
      const loss = model.forward(inputs, targets).loss.div(accumulate)
      loss.backward()
      return loss.detach()
    })
  /** The loss of all batches of a step; null if the run is stopped among them. */
  const gradients = (): Tensor | null => {
    let loss = backward()
    for (let i = 1; i < accumulate; i++) {
      const sum = stopped() ? null : scope(() => loss.add(backward()))
      loss.dispose()
      if (!sum) return null
      loss = sum
    }
    return loss
  }
  try {
    await validate(0)
    start = performance.now()
    while (done < options.steps && !stopped() && failure === null) {
      const loss = gradients()
      if (!loss) break
      await keep(loss)
      scope(() => {
        if (options.clip > 0) clipGradNorm(params, options.clip)
        optimizer.lr = rate(done)
        optimizer.step()
        optimizer.zeroGrad()
      })
      unread.push(loss)
      done++
      listener.done?.(done)
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
        start = performance.now()
        if (failure === null) await validate(done)
        start = performance.now()
      }
      // Lets the progress of reads in.
      await setImmediate()
    }
    await reading
    await readLosses()
    optimizer.zeroGrad()
    if (done > 0 && failure === null && !(await finite(params)))
      failure = `the weights became infinite at step ${done}; try a smaller --lr`
  } catch (error) {
    const known = failureOf(error)
    if (known === null || done === 0) throw error
    failure = `step ${done + 1}: ${known}`
  }
  milliseconds += performance.now() - start
  if (failure !== null) good.restore()
  const steps = failure === null ? done : good.steps
  good.dispose()
  return {
    model,
    training,
    validation,
    steps,
    trainSeconds: milliseconds / 1000,
    peakBytes: memory().peakBytes,
    failure,
  }
}

/** Whether all elements are finite: their sums are not finite otherwise. */
async function finite(params: readonly Tensor[]): Promise<boolean> {
  const sum = noGrad(() =>
    scope(() =>
      stack(
        params.map((p) => p.sum()),
        0,
      ).sum(),
    ),
  )
  const value = await sum.item()
  sum.dispose()
  return Number.isFinite(value)
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

/**
 * Mean loss over evenly spaced windows of the held-out text, without dropout.
 *
 * @param abandoned asked after every batch; true ends the measurement.
 * @returns null if it was abandoned.
 */
export async function heldOutLoss(
  model: GPT,
  corpus: Corpus,
  { evalBatches, batch, block }: Options,
  abandoned = (): boolean => false,
): Promise<number | null> {
  let sum = 0
  let losses: Tensor[] = []
  const read = async (): Promise<void> => {
    for (const loss of await readAll(losses.splice(0))) sum += loss
  }
  model.eval()
  try {
    for (const { inputs, targets } of spacedBatches(corpus.held, evalBatches, batch, block)) {
      losses.push(scope(() => noGrad(() => model.forward(inputs, targets).loss)))
      for (const t of [inputs, targets]) t.dispose()
      if (losses.length === READ_TOGETHER) await read()
      if (abandoned()) return null
    }
    await read()
  } finally {
    for (const loss of losses) loss.dispose()
    losses = []
    model.train()
  }
  return sum / evalBatches
}

/**
 * Text that the model writes after a line end, or what else comes first in the alphabet.
 *
 * @param enough asked after every character; true ends the text.
 */
export async function write(
  model: GPT,
  { alphabet }: Corpus,
  length: number,
  enough = (): boolean => false,
): Promise<string> {
  const idx = tensor(Int32Array.of(Math.max(0, alphabet.indexOf('\n'))), [1, 1])
  const parts: string[] = []
  if (length > 0 && !enough())
    for await (const [token] of model.generate(idx, { maxNewTokens: length, temperature: 0.8 })) {
      parts.push(alphabet[token as number] ?? '')
      if (enough()) break
    }
  idx.dispose()
  return parts.join('')
}
