/** What the plan of matrix products takes into account of a GPU and what its limits do not tell. */

/** Tiles of a kind need as many registers. The plan knows what they are. */
export type TileKind = 'large' | 'broad' | 'middle' | 'small'

/** Tiles of products on subgroup matrices, by their shape. */
export type MatrixKind = 'square' | 'wide' | 'narrow' | 'small'

export interface Tuning {
  /** Workgroups that compute at a time without sharing a core. */
  readonly cores: number
  /** Kinds of tiles that are of no use there, as where a thread's elements do not fit registers; never the small. */
  readonly slow: readonly TileKind[]
  /** How fast products on subgroup matrices are in tiles of each kind, against `square`; where that was measured. */
  readonly matrices?: Readonly<Partial<Record<MatrixKind, number>>>
  /** Kernels run on a CPU. */
  readonly software?: boolean
}

/** Where nothing is measured: an H100. */
export const untuned: Tuning = { cores: 132, slow: [] }

/** For software adapters, which are not measured: they compile a tile for seconds. */
export const software: Tuning = { cores: 1, slow: [], software: true }
