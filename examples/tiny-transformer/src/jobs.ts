import { hostRandint, manualSeed, noGrad, scope } from 'tilegrad'
import { bigramEntropy, type Corpus, loadCorpus, randomBatch } from './corpus.ts'
import { chooseDevice } from './device.ts'
import { duration } from './duration.ts'
import { prepareFolder } from './files.ts'
import { LEARNED, type Message, STOP, type Task } from './messages.ts'
import type { Options } from './options.ts'
import { lossCurve, report, terminalCurve } from './report.ts'
import { Results } from './results.ts'
import { checkSizes } from './sizes.ts'
import { heldOutLoss, type Run, train, write } from './train.ts'
import { RunError } from './usage-error.ts'

type Tell = (message: Message) => void

/** After a stop, what is left to measure and to write is given so many milliseconds. */
const GRACE = 5000

/** The text and the device of a run, all that can be refused about it refused. */
async function begin(options: Options): Promise<{ corpus: Corpus; where: string }> {
  prepareFolder(options.out)
  // What needs no text first: a wrong size is told at once.
  checkSizes(options, null)
  const corpus = loadCorpus(options.data, options.block)
  checkSizes(options, corpus.alphabet.length)
  return { corpus, where: await chooseDevice(options) }
}

/** Trains, tells how it goes, and keeps the weights before anything else is done with them. */
async function learn(
  corpus: Corpus,
  task: Task,
  tell: Tell,
): Promise<{ run: Run; results: Results; stopped: () => boolean }> {
  const { options } = task
  const shared = new Int32Array(task.shared)
  const stopped = (): boolean => Atomics.load(shared, STOP) > 0
  const results = new Results(options.out, corpus, options)
  let complained = false
  tell({ begin: options.steps })
  const run = await train(
    corpus,
    options,
    {
      step: (step, loss, tokensPerSecond) => tell({ step, loss, tokensPerSecond }),
      validated: ({ step, loss }) => tell({ validated: step, loss }),
      done: () => Atomics.store(shared, LEARNED, 1),
      async checkpoint(weights, steps) {
        try {
          await results.checkpoint(weights, steps)
        } catch (error) {
          if (!complained) tell({ warn: `${(error as Error).message}; training goes on without` })
          complained = true
        }
      },
    },
    stopped,
  )
  if (run.steps === 0) {
    tell({ end: true })
    throw new RunError(
      `${run.failure ?? 'stopped in the first step'}; nothing was learned, and no file was touched`,
    )
  }
  const kept = await results.keep(run)
  if (run.failure === null) {
    // So that the report belongs to the weights, should nothing more be written.
    results.tryReport(report(run, corpus, options, null))
    await measure(run, corpus, options, stopped, tell)
  }
  tell({ end: true })
  if (run.failure !== null)
    throw new RunError(
      `${run.failure}; the weights after step ${run.steps}, the last good ones, are in ${kept}`,
    )
  return { run, results, stopped }
}

/** The held-out loss at the end; after a stop only where it does not take long. */
async function measure(
  run: Run,
  corpus: Corpus,
  options: Options,
  stopped: () => boolean,
  tell: Tell,
): Promise<void> {
  const late = timeUp(stopped)
  const loss = await heldOutLoss(run.model, corpus, options, late)
  if (loss === null) return
  run.validation.push({ step: run.steps, loss })
  tell({ validated: run.steps, loss })
}

/** Whether the run was stopped and the time that is left for the rest has passed, counted from the first call. */
function timeUp(stopped: () => boolean): () => boolean {
  let end = Number.POSITIVE_INFINITY
  return () => {
    if (stopped()) end = Math.min(end, performance.now() + GRACE)
    return performance.now() > end
  }
}

/** What `npm start` does: trains, and shows what was learned. */
export async function tour(task: Task, tell: Tell): Promise<void> {
  const { options } = task
  const { corpus, where } = await begin(options)
  tell({
    say: `Learning ${corpus.name}: ${corpus.train.length.toLocaleString('en')} characters, ${corpus.alphabet.length.toLocaleString('en')} different ones, on ${where}.`,
  })
  const { run, results, stopped } = await learn(corpus, task, tell)
  const pairs = bigramEntropy(corpus.train, corpus.alphabet.length)

  const early = run.steps < options.steps
  const last = run.validation.at(-1)
  const curve = terminalCurve(run, task.columns, task.colors)
  if (curve) tell({ say: `\n${curve}` })
  const measured =
    last === undefined
      ? 'Held-out loss not measured'
      : `Held-out loss ${last.loss.toFixed(3)} nats per character${last.step < run.steps ? ` after step ${last.step}` : ''}`
  tell({
    say:
      `${early ? `Stopped after ${run.steps} of ${options.steps} steps` : `${run.steps} steps`} in ${duration(run.trainSeconds)}, with up to ${(run.peakBytes / 2 ** 20).toFixed(0)} MiB of tensors. ` +
      `${measured}; ` +
      `knowing only pairs of characters would give ${pairs.toFixed(3)}${pairs - (last?.loss ?? Number.NaN) > 0 ? '.' : ': not learned more than that yet.'}`,
  })
  // A stop before this ends it after a while, a stop from now on at once.
  const late = timeUp(stopped)
  const earlier = stopped()
  const sample = await write(run.model, corpus, options.sample, () => (earlier ? late() : stopped()))
  if (sample) tell({ say: `\nWhat it writes now:\n\n${sample.trim()}\n` })

  results.write('loss.svg', await lossCurve(run, pairs, `Learning ${corpus.name}`), 'the loss curve')
  results.write('sample.txt', `${sample}\n`, 'the sample')
  results.write('run.json', report(run, corpus, options, pairs), 'options, alphabet and losses')
  tell({ say: ['Written:', ...results.list()].join('\n') })
}

/** Random batches of held-out text that the final loss of nanoGPT's recipe is averaged over, as it does. */
const EVAL_BATCHES = 200

/** What `pnpm nanogpt` does: trains by nanoGPT's recipe, and measures as it does. */
export async function recipe(task: Task, tell: Tell): Promise<void> {
  const { options } = task
  const { corpus, where } = await begin(options)
  tell({ say: `on ${where}` })
  const { run, results, stopped } = await learn(corpus, task, tell)
  manualSeed(hostRandint(2 ** 31))
  run.model.eval()
  const late = timeUp(stopped)
  let total = 0
  let batches = 0
  while (batches < EVAL_BATCHES && !late()) {
    const loss = scope(() => {
      const { inputs, targets } = randomBatch(corpus.held, options.batch, options.block)
      return noGrad(() => run.model.forward(inputs, targets).loss)
    })
    total += await loss.item()
    batches++
    loss.dispose()
  }
  tell({
    say:
      `${run.steps} steps in ${run.trainSeconds.toFixed(1)} s (${((run.trainSeconds / run.steps) * 1000).toFixed(1)} ms a step)\n` +
      `validation loss over ${batches} random batches: ${(total / batches).toFixed(4)}`,
  })
  results.write('run.json', report(run, corpus, options, null), 'options, alphabet and losses')
  tell({ say: ['Written:', ...results.list()].join('\n') })
}
