import { basename } from 'node:path'
import { hostRandint, manualSeed, noGrad, scope } from 'tilegrad'
import { encode, randomBatch, readText } from './corpus.ts'
import { chooseDevice } from './device.ts'
import { parseOptions } from './options.ts'
import { train } from './train.ts'
import { UsageError } from './usage-error.ts'

/**
 * nanoGPT's recipe for a laptop's CPU (Karpathy, github.com/karpathy/nanoGPT, its README) with a text of your own:
 *
 *     pnpm nanogpt --data FILE [options]
 *
 * On tiny-shakespeare its README quotes a validation loss of 1.88.
 */
const recipe = [
  ['--layers', '4'],
  ['--heads', '4'],
  ['--width', '128'],
  ['--block', '64'],
  ['--batch', '12'],
  ['--steps', '2000'],
  ['--lr', '1e-3'],
  ['--min-lr', '1e-4'],
  ['--warmup', '100'],
  ['--beta2', '0.99'],
  ['--weight-decay', '0.1'],
  ['--clip', '1'],
].flat()

/** Random batches of held-out text that the final loss is averaged over, as the recipe does. */
const EVAL_BATCHES = 200

try {
  // What is given last wins, so every number of the recipe can be overridden.
  const options = parseOptions([...recipe, ...process.argv.slice(2)])
  if (!options.data) throw new UsageError('--data FILE is needed')
  const corpus = encode(basename(options.data), readText(options.data), options.block)
  console.log(`on ${await chooseDevice(options)}`)
  const run = await train(corpus, options, {
    step(done, loss, speed) {
      if (done % 100 === 0)
        console.log(`step ${done}: loss ${loss.toFixed(4)}, ${Math.round(speed)} tokens/s`)
    },
    validated: ({ step, loss }) => console.log(`step ${step}: held-out loss ${loss.toFixed(4)}`),
  })
  manualSeed(hostRandint(2 ** 31))
  run.model.eval()
  let total = 0
  for (let i = 0; i < EVAL_BATCHES; i++) {
    const loss = scope(() => {
      const { inputs, targets } = randomBatch(corpus.held, options.batch, options.block)
      return noGrad(() => run.model.forward(inputs, targets).loss)
    })
    total += await loss.item()
    loss.dispose()
  }
  console.log(
    `${run.steps} steps in ${run.trainSeconds.toFixed(1)} s (${((run.trainSeconds / run.steps) * 1000).toFixed(1)} ms a step)`,
  )
  console.log(`validation loss over ${EVAL_BATCHES} random batches: ${(total / EVAL_BATCHES).toFixed(4)}`)
} catch (error) {
  if (!(error instanceof UsageError)) throw error
  console.error(`nanogpt: ${error.message}`)
  process.exitCode = 2
}
