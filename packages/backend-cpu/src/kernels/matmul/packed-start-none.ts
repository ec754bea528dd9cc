/**
 * What bundles for browsers get in place of `packed-start.ts`: a small program stays small, and what computes with packed
 * weights asks for their kernel, by `loadPackedProducts`.
 */
import type { PackedProducts } from './packed-start.ts'

/** What products of packed weights are computed by, where they have been asked for; until then it takes none. */
export const packed: PackedProducts = { takes: () => false, run: () => {} }
