import { linearPacked, takesPacked } from './packed.ts'

/** The kernel of products of packed weights. */
export interface PackedProducts {
  takes: typeof takesPacked
  run: typeof linearPacked
}

/** What products of packed weights are computed by: `packed-start-none.ts`, which bundles for browsers get, has nothing. */
export const packed: PackedProducts = { takes: takesPacked, run: linearPacked }
