import { basename } from 'node:path'
import { SingleBar } from 'cli-progress'
import { type Corpus, encode, mobyDick, readText } from './corpus.ts'
import { chooseDevice } from './device.ts'
import { type Options, parseOptions } from './options.ts'
import { prepare, save, terminalCurve } from './report.ts'
import { type Run, train, write } from './train.ts'
import { UsageError } from './usage-error.ts'

/** Minutes and seconds. */
const duration = (seconds: number): string =>
  `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2))
  const corpus = options.data
    ? encode(basename(options.data), readText(options.data), options.block)
    : encode('Moby-Dick', mobyDick(), options.block)
  prepare(options.out)
  const where = await chooseDevice(options)
  console.log(
    `Learning ${corpus.name}: ${corpus.train.length.toLocaleString('en')} characters, ${corpus.alphabet.length} different ones, on ${where}.`,
  )
  const run = await observed(corpus, options)
  await finish(run, corpus, options)
}

/** Trains with a progress bar (lines where there is no terminal); Ctrl-C ends it early, twice at once. */
async function observed(corpus: Corpus, options: Options): Promise<Run> {
  let stop = false
  const interrupt = (): void => {
    if (stop) process.exit(130)
    stop = true
  }
  process.on('SIGINT', interrupt)
  process.on('SIGTERM', interrupt)

  const terminal = process.stderr.isTTY === true
  const bar = new SingleBar({
    format: '{bar} {value}/{total}  loss {loss}  held-out {held}  {speed} chars/s  {left} left',
    hideCursor: true,
    gracefulExit: false,
    barsize: Math.max(10, Math.min(30, (process.stderr.columns ?? 80) - 75)),
    linewrap: false,
  })
  let held = '-'
  const began = performance.now()
  if (terminal) bar.start(options.steps, 0, { loss: '-', held, speed: '-', left: '?' })
  try {
    return await train(
      corpus,
      options,
      {
        step(done, loss, tokensPerSecond) {
          const left = duration((((performance.now() - began) / done) * (options.steps - done)) / 1000)
          const speed = Math.round(tokensPerSecond).toLocaleString('en')
          if (terminal) bar.update(done, { loss: loss.toFixed(3), held, speed, left })
          else if (done % 100 === 0 || done === options.steps)
            console.log(
              `step ${done}/${options.steps}  loss ${loss.toFixed(3)}  ${speed} chars/s  ${left} left`,
            )
        },
        validated({ step, loss }) {
          held = loss.toFixed(3)
          if (!terminal) console.log(`step ${step}: held-out loss ${held}`)
        },
      },
      () => stop,
    )
  } finally {
    if (terminal) bar.stop()
    process.off('SIGINT', interrupt)
    process.off('SIGTERM', interrupt)
  }
}

async function finish(run: Run, corpus: Corpus, options: Options): Promise<void> {
  const early = run.steps < options.steps
  const last = run.validation.at(-1)?.loss ?? Number.NaN
  const curve = terminalCurve(run, process.stdout.columns ?? 80)
  if (curve) console.log(`\n${curve}`)
  const below = run.bigramEntropy - last
  console.log(
    `${early ? `Stopped after ${run.steps} of ${options.steps} steps` : `${run.steps} steps`} in ${duration(run.trainSeconds)}, with up to ${(run.peakBytes / 2 ** 20).toFixed(0)} MiB of tensors. ` +
      `Held-out loss ${last.toFixed(3)} nats per character; ` +
      `knowing only pairs of characters would give ${run.bigramEntropy.toFixed(3)}${below > 0 ? '.' : ': not learned more than that yet.'}`,
  )
  const sample = options.sample > 0 ? await write(run.model, corpus, options.sample) : ''
  if (sample) console.log(`\nWhat it writes now:\n\n${sample.trim()}\n`)
  console.log('Written:')
  for (const [file, what] of await save(options.out, run, corpus, options, sample))
    console.log(`  ${file}  ${what}`)
}

try {
  await main()
} catch (error) {
  if (!(error instanceof UsageError)) throw error
  console.error(`tiny-transformer: ${error.message}`)
  process.exitCode = 2
}
