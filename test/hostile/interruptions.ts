import { cpSync, existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { draftsIn, type Ended, example, small, traced, widthIn, workplace, wrongWith } from './example.ts'
import type { Part } from './part.ts'

// The example is interrupted at random moments, by each signal, in each phase of a run: nothing of the earlier result is
// lost, a model can always be loaded, and after a signal to end the new weights are there as soon as a step was done.

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGKILL'] as const

/** Runs that spend their time in different places. */
const PHASES: Readonly<Record<string, readonly string[]>> = {
  steps: ['--steps', '400', '--eval-every', '5'],
  evaluating: ['--steps', '400', '--eval-every', '2', '--eval-batches', '300'],
  sampling: ['--steps', '3', '--eval-every', '1', '--sample', '100000'],
  writing: ['--steps', '3', '--eval-every', '1', '--sample', '1'],
  'long steps': ['--steps', '400', '--eval-every', '1', '--accumulate', '200'],
}

const NEW = 24
const FILES = ['model.safetensors', 'run.json', 'sample.txt', 'loss.svg']

export const interruptions: Part = {
  name: 'interruptions',
  about: 'the example, stopped and killed at random moments: nothing is lost',
  inputs: [50, 4],
  async run({ random, count, fail, record }) {
    const { folder, text } = workplace()
    const before = join(folder, 'before')
    const first = await example([...small(text, before), '--steps', '2'])
    if (first.code !== 0) return fail('the run before', JSON.stringify(first))
    for (let i = 0; i < count; i++) {
      const out = join(folder, `out-${i}`)
      cpSync(before, out, { recursive: true })
      const signal = SIGNALS[i % SIGNALS.length]
      const phase = random.one(Object.keys(PHASES))
      const [lines, pause, twice] = [random.below(8), random.below(400), random.chance(0.2)]
      let sent = false
      const ended = await example([...small(text, out, NEW), ...PHASES[phase]], (stdout, child) => {
        if (sent || stdout.split('\n').length <= lines) return
        sent = true
        void delay(pause).then(() => {
          child.kill(signal)
          if (twice) child.kill('SIGTERM')
        })
      })
      const why = judge(ended, { before, out, signal, twice })
      const input = `${signal}${twice ? ' twice' : ''} while ${phase}, ${pause} ms after line ${lines}`
      if (why) fail(input, `${why}; ${JSON.stringify({ ...ended, stdout: ended.stdout.slice(-300) })}`)
      else record(ended.code === 0 ? 'survived' : 'refused')
      rmSync(out, { recursive: true, force: true })
    }
    rmSync(folder, { recursive: true, force: true })
  },
}

interface Case {
  readonly before: string
  readonly out: string
  readonly signal: string
  readonly twice: boolean
}

/** What is wrong after a run was interrupted; null: nothing. */
function judge(
  { code, signal: by, stdout, stderr }: Ended,
  { before, out, signal, twice }: Case,
): string | null {
  const model = join(out, 'model.safetensors')
  const wrong = wrongWith(model)
  if (wrong) return `the model does not load: ${wrong}`
  if (traced(stderr)) return 'a stack trace'
  for (const name of ['checkpoint.safetensors', 'earlier/model.safetensors'])
    if (existsSync(join(out, name)) && wrongWith(join(out, name))) return `${name} does not load`
  const same = (at: string): boolean =>
    FILES.every(
      (name) =>
        existsSync(join(at, name)) && readFileSync(join(at, name)).equals(readFileSync(join(before, name))),
    )
  const replaced = widthIn(model) === NEW
  // A run that reached its end replaces what was there; one that did not leaves it, or keeps it aside.
  const whole = stdout.includes('Written:') && !stdout.includes('Stopped after')
  if (!replaced && !same(out))
    return 'files of the earlier run have changed, and its weights have not been replaced'
  if (replaced && !whole && !reachedEnd(model) && !same(join(out, 'earlier')))
    return 'the files of the earlier run are not kept'
  if (signal === 'SIGKILL' || by === 'SIGKILL') return null
  if (draftsIn(out).length > 0) return `drafts are left: ${draftsIn(out)}`
  if (code === 0) return replaced ? null : 'the new weights are not there'
  if (by === null) return `exit code ${code}`
  // Ended at once: by a second signal, or because there was nothing to keep.
  if (stderr.includes('before the first step'))
    return replaced ? 'nothing was learned, and the weights replaced' : null
  return twice ? null : `the first signal ended it: ${stderr}`
}

/** Whether the weights in a file have learned for as many steps as they should. */
function reachedEnd(file: string): boolean {
  const text = readFileSync(file, 'latin1')
  const asked = /\\"steps\\":(\d+)/.exec(text)?.[1]
  const done = /"steps":"(\d+)"/.exec(text)?.[1]
  return asked !== undefined && asked === done
}
