import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

/**
 * Frees what earlier tests left to the garbage collector. Where a test compares two readings of `memory()`, or of a
 * backend's, the first one comes after this: else what is freed meanwhile is taken for the test's own, and may hide what
 * the test leaves behind.
 */
export async function collected(): Promise<void> {
  // Finalizers run in turns of the event loop, and may let go of something that has its own.
  for (let i = 0; i < 3; i++) {
    collectGarbage()
    await new Promise((resolve) => setImmediate(resolve))
  }
}
