/** The thread that computes: reads the text, trains, samples and writes the files. */
import { parentPort, workerData } from 'node:worker_threads'
import { failureOf } from './failure.ts'
import { beginNothingWhen } from './files.ts'
import { recipe, tour } from './jobs.ts'
import { type Message, STOP, type Task } from './messages.ts'
import { UsageError } from './usage-error.ts'

const task = workerData as Task
const state = new Int32Array(task.shared)
beginNothingWhen(() => Atomics.load(state, STOP) > 1)
const tell = (message: Message): void => parentPort?.postMessage(message)

try {
  await (task.job === 'tour' ? tour : recipe)(task, tell)
  tell({ failed: null, code: 0 })
} catch (error) {
  const known = error instanceof UsageError ? error.message : failureOf(error)
  // A fault of the program: shown whole, by the thread that started this one.
  if (known === null) throw error
  tell({ failed: known.replaceAll(/\s*\n\s*/g, '; '), code: error instanceof UsageError ? 2 : 1 })
}
