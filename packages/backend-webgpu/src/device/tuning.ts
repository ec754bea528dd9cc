/** What the plan of matrix products takes into account of a GPU and what its limits do not tell. */

/** Tiles of a kind need as many registers. The plan knows what they are. */
export type TileKind = 'large' | 'broad' | 'middle' | 'small'

export interface Tuning {
  /** Workgroups that compute at a time without sharing a core. */
  readonly cores: number
  /** Kinds of tiles that are of no use there, as where a thread's elements do not fit registers; never the small. */
  readonly slow: readonly TileKind[]
  /** Kernels run on a CPU. */
  readonly software?: boolean
}

/** Where nothing is measured: an H100. */
export const untuned: Tuning = { cores: 132, slow: [] }

/** For software adapters, which are not measured: they compile a tile for seconds. */
export const software: Tuning = { cores: 1, slow: [], software: true }
