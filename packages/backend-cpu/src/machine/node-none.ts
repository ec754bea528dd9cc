/** What bundles for browsers get in place of `node.ts`: there is no Node, and no flag of V8. */

/** @returns undefined: there is no Node. */
export const nodeProcess = (): undefined => undefined

/** @returns 0: there is no Node. */
export const nodeMajor = (): number => 0

/** @returns undefined: there is no Node. */
export const nodeParallelism = (): undefined => undefined

/** Does nothing: flags of V8 are out of reach. */
export const setV8FlagOnce = (): void => {}

/** @returns false: V8 cannot be asked to pair instructions. */
export const hasRevectorized = (): boolean => false

/** Does nothing: nothing is paired. */
export const refuseRevectorized = (): void => {}

/** Runs `fn`. */
export const optimizedAtOnce = <T>(fn: () => T): T => fn()

/** @returns undefined: there are no workers of Node. */
export const startInNode = (): undefined => undefined
