/**
 * What bundles for browsers get in place of `conv.ts`: a small program stays small, and convolutions are what they are composed of.
 */
import type { KernelTable } from '@tilegrad/core'
import type { Engine } from '../engine.ts'

/** No kernels. */
export const convKernels = (_: Engine): Pick<KernelTable, 'conv' | 'convBackward'> => ({})
