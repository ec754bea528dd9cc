/**
 * Which tile, and into how many parts k is cut: by the GPU's limits, by how many cores it was found to have and by what
 * tiles of a kind are worth there (matmul/tuning.ts). The thresholds were measured on one H100, with 132 cores.
 *
 * LADDER.md beside this file has what decides, tile by tile, for the shapes of GPTs. Today, for 16,384 tokens on that H100:
 * 384 → 1,536 with GELU takes 0.478 ms in broad tiles (floor 0.324), 1,536 → 384 and a residual 0.472 in shallow broad
 * ones, 2048³ 0.379 in large ones (floor 0.289).
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts, tuning.test.ts.
 */

import type { Engine } from '../../commands/queue.ts'
import type { TileKind, Tuning } from '../../device/tuning.ts'
import { type Access, accessA, accessB, type Problem } from './problem.ts'
import { bytesOf, type Tile, threadsOf } from './stages.ts'

export interface Plan {
  readonly tile: Tile
  /** Parts of k; their products are added up by a second kernel. */
  readonly splits: number
  /** The transposed product is computed. */
  readonly flip?: boolean
}

/** The tile that reads least per multiplication; a core has only two of them at a time. */
const large: Tile = { bm: 128, bn: 128, bk: 16, tm: 16, tn: 8, slices: 1, order: [16, 2, 'down', 'across'] }
/** A tile of the size of `large` with twice as many threads: a core that has only one is less idle. */
const broad: Tile = { ...large, tm: 8, order: [8, 4, 'across', 'down'] }
/** A tile of half the steps for b along k. */
const shallow: Tile = { ...large, bk: 8, order: [8, 4, 'down', 'across'] }
/** The tile `shallow` with twice as many threads, if a program follows, which needs registers as well. */
const shallowBroad: Tile = { ...broad, bk: 8, order: [4, 4, 'across', 'down'] }
const middle: Tile = { bm: 64, bn: 64, bk: 16, tm: 8, tn: 8, slices: 1, order: [2, 2, 'across', 'across'] }
/** A tile for few steps of k: more threads to load and to store. */
const quick: Tile = { ...middle, tm: 4, order: [4, 4, 'across', 'down'] }
/** A tile that takes one more column, which spares almost empty tiles; two groups of threads make up for fewer tiles. */
const beyond: Tile = { ...middle, bk: 32, slices: 2, plus: true, order: [4, 4, 'down', 'across'] }
/** A tile for few elements: four threads share the steps of k of one, to be done sooner. */
const small: Tile = { bm: 32, bn: 32, bk: 32, tm: 4, tn: 4, slices: 4 }
const tiny: Tile = { bm: 16, bn: 16, bk: 16, tm: 4, tn: 4, slices: 4 }

/**
 * The tile for software adapters: what costs there is code to compile, and a thread that waits for others. On two cores
 * with SwiftShader 768 × 128 → 384 takes 0.13 s and 0.3 to compile, in small tiles for SwiftShader 0.27 and 0.15; in
 * tiles of the same size for GPUs 0.16 and 1.1.
 */
const soft: Tile = { bm: 32, bn: 32, bk: 8, tm: 8, tn: 8, slices: 1, compact: true }
const softSmall: Tile = { ...soft, bm: 16, bn: 16, tm: 4, tn: 4 }
/** The multiplications from which on software adapters take longer to compute than to compile. */
const softFew = 2 ** 20

/** The tiles that are measured on each GPU; every other one needs as many registers as one of them. */
export const kinds: Readonly<Record<TileKind, Tile>> = { large, broad, middle, small }

/** The share of all rounds that large tiles must use, and that others of their size must. */
const fullEnough = 0.9
const broadEnough = { O: 0.7, K: 0.8 }
const leastSteps = 256
const leastStepsBroad = 512
/** The steps of k below which more threads share them better, if single elements of a are read. */
const fewSteps = 96
/** The columns above which an almost empty tile is a small part of all. */
const mostBeyond = 256

/** Numbers of workgroups. */
interface Counts {
  /** Large tiles that go at a time. */
  readonly round: number
  /** Middle tiles that keep all cores busy. */
  readonly busy: number
  /** The workgroups to have in all where k is split, by the number of tiles; one round where many parts are added up. */
  wanted(tiles: number): number
}
const countsOf = ({ cores }: Tuning): Counts => ({
  round: 2 * cores,
  busy: 1.9 * cores,
  wanted: (tiles) => Math.floor((tiles < 0.75 * cores ? 6 : 9.82) * cores),
})

const isVectors = (access: Access): boolean => access === 'K' || access === 'O'

/** The plan for an output with one column, or row, more than whole tiles have; null where that is no good. */
function planBeyond(p: Problem, a: Access, b: Access, { round, busy }: Counts): Plan | null {
  const { bm, bn, bk } = beyond
  if (p.k % bk !== 0 || p.band !== undefined) return null
  const suits = (n: number): boolean => n % bn === 1 && n > 1 && n < mostBeyond
  const tiles = (m: number, n: number): number => Math.ceil(m / bm) * Math.floor(n / bn) * p.items
  if (suits(p.n) && isVectors(a) && tiles(p.m, p.n) >= busy) return { tile: beyond, splits: 1 }
  if (!suits(p.m) || !isVectors(b)) return null
  // Parts may lie transposed, the output had better not.
  const n = tiles(p.n, p.m)
  const splits = Math.min(Math.floor(round / n), Math.floor(p.k / leastSteps))
  return splits > 1 && n * splits >= busy ? { tile: beyond, splits, flip: true } : null
}

/** Chooses the plan of a product; `plain` says that no program follows it. */
export function planOf(engine: Engine, p: Problem, plain: boolean): Plan {
  const { maxComputeWorkgroupStorageSize: bytes, maxComputeInvocationsPerWorkgroup: threads } =
    engine.gpu.limits
  const { tuning } = engine
  if (tuning.software) return { tile: p.items * p.m * p.n * p.k < softFew ? softSmall : soft, splits: 1 }
  const counts = countsOf(tuning)
  const [a, b] = [accessA(p), accessB(p)]
  const count = (t: Tile): number => Math.ceil(p.m / t.bm) * Math.ceil(p.n / t.bn) * p.items
  // Padded rows of the large ones take more than the 16 KiB that every device has.
  const suits = (kind: TileKind, t = kinds[kind]): boolean =>
    !tuning.slow.includes(kind) && bytesOf(t, a, b) <= bytes && threadsOf(t) <= threads

  const odd = suits('middle', beyond) ? planBeyond(p, a, b, counts) : null
  if (odd) return odd
  const all = count(large)
  /** The share of a round that the output fills. */
  const round = (p.items * p.m * p.n) / (counts.round * large.bm * large.bn)
  const full = round / Math.ceil(all / counts.round)
  const across = b === 'O'
  if (suits('large') && full >= fullEnough && (across || p.band !== undefined))
    return { tile: large, splits: 1 }
  // With a band tiles take different times: small ones share the work better.
  if (p.band === undefined && suits('broad')) {
    if (all >= counts.round && full >= broadEnough.O) {
      if (across) return { tile: p.k < fewSteps && !isVectors(a) ? quick : broad, splits: 1 }
      const other = plain && suits('large', shallow) ? shallow : shallowBroad
      return { tile: full >= broadEnough.K ? broad : other, splits: 1 }
    }
    const parts = Math.min(Math.floor(counts.round / all), Math.floor(p.k / leastStepsBroad))
    if (parts > 1 && parts * round >= fullEnough) return { tile: broad, splits: parts }
  }
  if (suits('middle')) {
    const n = count(middle)
    if (n >= counts.busy) return { tile: middle, splits: 1 }
    const splits = Math.min(Math.floor(counts.wanted(n) / n), Math.floor(p.k / leastSteps))
    if (n * splits >= counts.busy) return { tile: middle, splits }
  }
  return { tile: p.m * p.n <= small.bm * small.bn ? tiny : small, splits: 1 }
}
