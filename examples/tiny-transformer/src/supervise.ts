import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { failureOf } from './failure.ts'
import { removeDrafts } from './files.ts'
import { LEARNED, type Message, STOP, type Task } from './messages.ts'
import type { Options } from './options.ts'
import { type Progress, progress } from './progress.ts'
import { listenForSignals, type StopSignal } from './signals.ts'
import { UsageError } from './usage-error.ts'

/** If a stop takes longer than this many milliseconds, it is said what it waits for. */
const PATIENCE = 1500

/**
 * Runs a job in a thread of its own, so that this one can answer signals and the terminal at any moment, however long a
 * step takes. All threads are of one process: what ends it leaves nothing behind.
 */
export async function supervise(name: string, job: Task['job'], parse: () => Options): Promise<void> {
  const complain = (line: string): void => console.error(`${name}: ${line}`)
  guardOutput(complain)
  let options: Options
  try {
    options = parse()
  } catch (error) {
    if (!(error instanceof UsageError)) throw error
    complain(error.message)
    process.exitCode = 2
    return
  }

  const shared = new SharedArrayBuffer(8)
  const state = new Int32Array(shared)
  const bar = progress(options.steps)
  let ending = false

  /** Ends the process as the signal does by itself: at once, whatever its threads do. */
  const end = (signal: StopSignal, line: string): void => {
    Atomics.store(state, STOP, 2)
    bar.end()
    complain(line)
    quiet()
    // Last: what the other thread began before it knew is there by now.
    removeDrafts(options.out)
    process.kill(process.pid, signal)
  }
  const quiet = listenForSignals((signal) => {
    if (Atomics.load(state, LEARNED) === 0)
      end(signal, 'stopped before the first step was done; no file was touched')
    else if (Atomics.add(state, STOP, 1) > 0) {
      const checkpoint = join(options.out, 'checkpoint.safetensors')
      end(
        signal,
        existsSync(checkpoint)
          ? `ended at once; the last weights written are in ${checkpoint}`
          : 'ended at once',
      )
    } else
      setTimeout(() => {
        if (!ending)
          bar.aside(() => complain('stopping when this batch is done; a second signal ends at once'))
      }, PATIENCE).unref()
  })

  const task: Task = {
    job,
    options,
    shared,
    columns: process.stdout.columns ?? 80,
    colors: process.stdout.hasColors?.() ?? false,
  }
  const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: task })
  /** The last word of the run: one line and the exit code. */
  const finish = (failed: string | null, code: number): void => {
    ending = true
    bar.end()
    if (failed !== null) complain(failed)
    // An output that could not be written has set it already.
    process.exitCode ||= code
  }
  worker.on('message', (message: Message) => {
    if ('say' in message) console.log(message.say)
    else if ('warn' in message) bar.aside(() => complain(message.warn))
    else if ('failed' in message) finish(message.failed, message.code)
    else show(bar, message)
  })
  await new Promise<void>((resolve) => {
    worker.on('error', (error) => {
      const known = failureOf(error)
      const checkpoint = join(options.out, 'checkpoint.safetensors')
      const kept =
        Atomics.load(state, LEARNED) && existsSync(checkpoint)
          ? `; the last weights written are in ${checkpoint}`
          : ''
      finish(known === null ? null : `${known}${kept}`, 1)
      // A fault of the program is shown whole.
      if (known === null) console.error(error)
    })
    worker.on('exit', (code) => {
      if (!ending) finish(`the thread that computes ended with code ${code}`, 1)
      resolve()
    })
  })
  quiet()
}

function show(
  bar: Progress,
  message: Exclude<Message, { say: string } | { warn: string } | { code: number }>,
): void {
  if ('begin' in message) bar.begin()
  else if ('step' in message) bar.step(message.step, message.loss, message.tokensPerSecond)
  else if ('validated' in message) bar.validated(message.validated, message.loss)
  else bar.end()
}

/**
 * Lets the run go on when nobody reads its output any more, or the device it goes to is full: what it learns goes to
 * files. A full device makes the exit code 1.
 */
function guardOutput(complain: (line: string) => void): void {
  let told = false
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE' || told) return
    told = true
    process.exitCode = 1
    complain(
      `the standard output cannot be written: ${error.code ?? error.message}; the run goes on, to its files`,
    )
  })
  process.stderr.on('error', () => {})
}
