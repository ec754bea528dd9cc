/** What bundles for browsers get in place of `node.ts`: there is no Node, and no flag of V8. */

/** @returns undefined: there is no Node. */
export const nodeProcess = (): undefined => undefined

/** Does nothing: flags of V8 are out of reach. */
export const setV8FlagOnce = (): void => {}

/** @returns false: V8 cannot be asked to pair instructions. */
export const hasRevectorized = (): boolean => false

/** Does nothing: nothing is paired. */
export const refuseRevectorized = (): void => {}

/** Runs `fn`. */
export const optimizedAtOnce = <T>(fn: () => T): T => fn()

/** @throws Error always: there are no workers of Node. */
export function startInNode(): never {
  throw new Error('tilegrad: this bundle was made for browsers')
}
