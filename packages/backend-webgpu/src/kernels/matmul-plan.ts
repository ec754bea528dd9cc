/**
 * Which tile, and into how many parts k is cut. The thresholds were measured on one H100, with 132 cores; GPUs do not
 * tell how many they have.
 *
 * What decides there for the 16,384 tokens of a GPT of width 384 (milliseconds, floors at 59.2 TFLOP/s):
 *
 * | | floor | large | single | middle |
 * |---|---|---|---|---|
 * | 384 → 384, forward (gradient of x) | 0.081 | 0.169 (0.163) | 0.139 (0.136) | 0.166 (0.147) |
 * | 1,536 → 384 | 0.324 | 0.600 (0.605) | 0.512 (0.494) | 0.584 (0.494) |
 * | 384 → 1,536 | 0.324 | 0.476 (0.462) | 0.512 (0.492) | 0.525 (0.478) |
 * | 384 → 1,152 | 0.243 | 0.397 (0.441) | 0.388 (0.376) | 0.393 (0.376) |
 * | 2048³ | 0.289 | 0.403 | 0.440 | 0.520 |
 *
 * Gradients of weights want parts of k: those of 384 × 384 take 0.129 ms in 22 parts, 0.148 in 32 and 0.175 in 11. Tiles
 * of 80 rows or columns, for vocabularies of 65, gained nothing: few workgroups run then, and wait for memory.
 */

import type { Engine } from '../engine.ts'
import { accessA, accessB, type Problem } from './matmul-problem.ts'
import { bytesOf, type Tile, threadsOf } from './matmul-tiles.ts'

export interface Plan {
  readonly tile: Tile
  /** Parts of k; their products are added up by a second kernel. */
  readonly splits: number
}

const one = { slices: 1, double: false } as const
/** Reads least per multiplication, but a core has only two of them at a time. */
const large: Tile = { bm: 128, bn: 128, bk: 16, tm: 16, tn: 8, ...one }
/** One warp, which waits for no other: while some load or store, others compute. It needs many per core. */
const single: Tile = { bm: 64, bn: 64, bk: 8, tm: 16, tn: 8, ...one }
const middle: Tile = { bm: 64, bn: 64, bk: 16, tm: 8, tn: 8, ...one }
/** For few elements: four threads share the steps of k of one, to be done sooner. */
const small: Tile = { bm: 32, bn: 32, bk: 32, tm: 4, tn: 4, slices: 4, double: false }
const tiny: Tile = { bm: 16, bn: 16, bk: 16, tm: 4, tn: 4, slices: 4, double: false }

/** Large tiles at a time, and how much of all rounds must be used. */
const atATime = 264
const fullEnough = 0.9
const enoughSingle = 1056
const enoughMiddle = 256
/** With k split: so many workgroups, of at least so many steps each; one round where many parts are to be added up. */
const wanted = (tiles: number): number => (tiles < 100 ? 792 : 1296)
const leastSteps = 256

export function planOf(engine: Engine, p: Problem): Plan {
  const { maxComputeWorkgroupStorageSize: bytes, maxComputeInvocationsPerWorkgroup: threads } =
    engine.gpu.limits
  const [a, b] = [accessA(p), accessB(p)]
  const count = (t: Tile): number => Math.ceil(p.m / t.bm) * Math.ceil(p.n / t.bn) * p.items
  // Its padded rows take more than the 16 KiB that every device has.
  const fits = bytesOf(large, a, b) <= bytes && threadsOf(large) <= threads
  const rounds = Math.ceil(count(large) / atATime)
  const full = (p.items * p.m * p.n) / (rounds * atATime * large.bm * large.bn)
  if (fits && full >= fullEnough) return { tile: large, splits: 1 }
  // With a band tiles take different times, and one warp alone the longest.
  if (p.band === undefined && count(single) >= enoughSingle) return { tile: single, splits: 1 }
  const n = count(middle)
  if (n >= enoughMiddle) return { tile: middle, splits: 1 }
  const splits = Math.min(Math.floor(wanted(n) / n), Math.floor(p.k / leastSteps))
  if (n * splits >= enoughMiddle) return { tile: middle, splits }
  return { tile: p.m * p.n <= small.bm * small.bn ? tiny : small, splits: 1 }
}
