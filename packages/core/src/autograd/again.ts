let now = false

/**
 * Says whether a checkpoint runs its function a second time: what a function does to state beside its results, such as counting
 * in a buffer, it has done the first time.
 *
 * @example
 * import { runsAgain } from '@tilegrad/core/kernel'
 *
 * runsAgain() // → false
 */
export const runsAgain = (): boolean => now

/** Runs what has run before. */
export function runAgain<T>(fn: () => T): T {
  const before = now
  now = true
  try {
    return fn()
  } finally {
    now = before
  }
}
