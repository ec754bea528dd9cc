/**
 * What bundles for browsers get in place of `guard.ts` (see `browser` in package.json): there V8 cannot be asked to pair
 * instructions, so nothing needs checking, and a small program stays small.
 */
import type { KernelTable } from '@tilegrad/core'

/** Whether kernels can be checked; without the checks no instructions are paired. */
export const canCheck = false

/** @throws Error always: nothing is paired here. */
export function guard(): KernelTable {
  throw new Error('tilegrad: this bundle was made without the checks that pairing needs')
}
