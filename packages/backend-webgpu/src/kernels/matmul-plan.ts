/**
 * Which tile, and into how many parts k is cut. The thresholds were measured on one H100; GPUs do not tell how many
 * cores they have.
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
/** Large tiles read least, but only a thousand of them fill a large GPU evenly. */
const large: Tile = { bm: 128, bn: 128, bk: 16, tm: 8, tn: 16, ...one }
const middle: Tile = { bm: 64, bn: 64, bk: 16, tm: 8, tn: 8, ...one }
/** For few elements: four threads share the steps of k of one, to be done sooner. */
const small: Tile = { bm: 32, bn: 32, bk: 32, tm: 4, tn: 4, slices: 4, double: false }
const tiny: Tile = { bm: 16, bn: 16, bk: 16, tm: 4, tn: 4, slices: 4, double: false }

const enoughLarge = 1000
const enoughMiddle = 256
/** With k split: so many workgroups, of at least so many steps each. */
const wanted = 1296
const leastSteps = 256

export function planOf(engine: Engine, p: Problem): Plan {
  const { maxComputeWorkgroupStorageSize: bytes, maxComputeInvocationsPerWorkgroup: threads } =
    engine.gpu.limits
  const [a, b] = [accessA(p), accessB(p)]
  const count = (t: Tile): number => Math.ceil(p.m / t.bm) * Math.ceil(p.n / t.bn) * p.items
  // Its padded rows take more than the 16 KiB that every device has.
  const fits = bytesOf(large, a, b) <= bytes && threadsOf(large) <= threads
  if (fits && count(large) >= enoughLarge) return { tile: large, splits: 1 }
  const n = count(middle)
  if (n >= enoughMiddle) return { tile: middle, splits: 1 }
  const splits = Math.min(Math.ceil(wanted / n), Math.floor(p.k / leastSteps))
  if (n * splits >= enoughMiddle) return { tile: middle, splits }
  return { tile: p.m * p.n <= small.bm * small.bn ? tiny : small, splits: 1 }
}
