/**
 * Which tile, and into how many parts k is cut. The thresholds were measured on one H100, with 132 cores; GPUs do not
 * tell how many they have.
 *
 * What decides there for the 16,384 tokens of a GPT of width 384 (milliseconds, floors at 59 TFLOP/s):
 *
 * | | floor | large | shallow | broad | shallow and broad | one warp, 64 × 64 × 8 |
 * |---|---|---|---|---|---|---|
 * | 384 → 384, forward (gradient of x) | 0.081 | 0.163 (0.162) | 0.142 (0.140) | 0.181 (0.133) | 0.148 (0.140) | 0.149 (0.138) |
 * | and a residual | | 0.186 | 0.202 | 0.188 | 0.150 | 0.152 |
 * | 384 → 1,152 | 0.243 | 0.394 (0.454) | 0.381 | 0.421 (0.362) | 0.391 | 0.389 (0.376) |
 * | 384 → 1,536 | 0.324 | 0.477 (0.591) | 0.503 | 0.499 (0.477) | 0.508 (0.504) | 0.539 (0.493) |
 * | and GELU, both kept | | 0.503 | 0.511 | 0.541 | 0.584 | 0.533 |
 * | 1,536 → 384 | 0.324 | 0.604 (0.464) | 0.501 | 0.646 (0.480) | 0.511 (0.510) | 0.513 (0.512) |
 * | and a residual | | 0.620 | 0.636 | 0.640 | 0.505 | 0.514 |
 * | 2048³ | 0.289 | 0.403 | | 0.425 | 0.449 | 0.437 |
 *
 * Gradients of weights want parts of k: those of 384 × 384 take 0.123 ms in 22 parts, 0.155 in 29 and 0.131 in 14.
 *
 * For vocabularies of 65, forward and gradient of the weight, tiles with a column beyond take 0.035 and 0.038 ms, others
 * 0.056 and 0.060. The floor is 0.014. An empty dispatch takes 0.002, the first load and the last store about 0.004, and a
 * core has only two tiles to hide their waits behind: without seven eighths of the multiplications it is 0.018, and where
 * the operands lie makes no difference.
 */

import type { Engine } from '../engine.ts'
import { type Access, accessA, accessB, type Problem } from './matmul-problem.ts'
import { bytesOf, type Tile, threadsOf } from './matmul-stages.ts'

export interface Plan {
  readonly tile: Tile
  /** Parts of k; their products are added up by a second kernel. */
  readonly splits: number
  /** The transposed product is computed. */
  readonly flip?: boolean
}

/** Reads least per multiplication, but a core has only two of them at a time. */
const large: Tile = { bm: 128, bn: 128, bk: 16, tm: 16, tn: 8, slices: 1 }
/** As large, by twice as many threads: a core that has only one is less idle. It wants columns of b side by side. */
const broad: Tile = { ...large, tm: 8 }
/** Where b lies along k; by twice as many threads if a program follows, which needs registers as well. */
const shallow: Tile = { ...large, bk: 8 }
const shallowBroad: Tile = { ...broad, bk: 8 }
const middle: Tile = { bm: 64, bn: 64, bk: 16, tm: 8, tn: 8, slices: 1 }
/** Two columns of tiles of which the second were almost empty; two groups of threads make up for the fewer tiles. */
const beyond: Tile = { ...middle, bk: 32, slices: 2, plus: true }
/** For few elements: four threads share the steps of k of one, to be done sooner. */
const small: Tile = { bm: 32, bn: 32, bk: 32, tm: 4, tn: 4, slices: 4 }
const tiny: Tile = { bm: 16, bn: 16, bk: 16, tm: 4, tn: 4, slices: 4 }

/** Large tiles at a time, and how much of all rounds must be used. */
const atATime = 264
const fullEnough = 0.9
const enoughMiddle = 256
/** With k split: so many workgroups, of at least so many steps each; one round where many parts are to be added up. */
const wanted = (tiles: number): number => (tiles < 100 ? 792 : 1296)
const leastSteps = 256
/** With more columns than that an almost empty tile is a small part of all. */
const mostBeyond = 256

const isVectors = (access: Access): boolean => access === 'K' || access === 'O'

/** The plan for an output with one column, or row, more than whole tiles have; null where that is no good. */
function planBeyond(p: Problem, a: Access, b: Access): Plan | null {
  const { bm, bn, bk } = beyond
  if (p.k % bk !== 0 || p.band !== undefined) return null
  const suits = (n: number): boolean => n % bn === 1 && n > 1 && n < mostBeyond
  const tiles = (m: number, n: number): number => Math.ceil(m / bm) * Math.floor(n / bn) * p.items
  if (suits(p.n) && isVectors(a) && tiles(p.m, p.n) >= enoughMiddle) return { tile: beyond, splits: 1 }
  if (!suits(p.m) || !isVectors(b)) return null
  // Parts may lie transposed, the output had better not.
  const n = tiles(p.n, p.m)
  const splits = Math.min(Math.floor(atATime / n), Math.floor(p.k / leastSteps))
  return splits > 1 && n * splits >= enoughMiddle ? { tile: beyond, splits, flip: true } : null
}

/** `plain`: no program follows the product. */
export function planOf(engine: Engine, p: Problem, plain: boolean): Plan {
  const { maxComputeWorkgroupStorageSize: bytes, maxComputeInvocationsPerWorkgroup: threads } =
    engine.gpu.limits
  const [a, b] = [accessA(p), accessB(p)]
  const count = (t: Tile): number => Math.ceil(p.m / t.bm) * Math.ceil(p.n / t.bn) * p.items
  // Padded rows of the large ones take more than the 16 KiB that every device has.
  const fits = (t: Tile): boolean => bytesOf(t, a, b) <= bytes && threadsOf(t) <= threads

  const odd = fits(beyond) ? planBeyond(p, a, b) : null
  if (odd) return odd
  const rounds = Math.ceil(count(large) / atATime)
  const full = (p.items * p.m * p.n) / (rounds * atATime * large.bm * large.bn)
  if (fits(large) && full >= fullEnough) return { tile: large, splits: 1 }
  // With a band tiles take different times: small ones share the work better.
  if (p.band === undefined && count(large) >= atATime) {
    const tile = b === 'O' ? broad : plain ? shallow : shallowBroad
    if (fits(tile)) return { tile, splits: 1 }
  }
  const n = count(middle)
  if (n >= enoughMiddle) return { tile: middle, splits: 1 }
  const splits = Math.min(Math.floor(wanted(n) / n), Math.floor(p.k / leastSteps))
  if (n * splits >= enoughMiddle) return { tile: middle, splits }
  return { tile: p.m * p.n <= small.bm * small.bn ? tiny : small, splits: 1 }
}
