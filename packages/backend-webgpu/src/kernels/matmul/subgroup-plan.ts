/**
 * Which tile products of float16 on subgroup matrices take, and into how many parts k is cut: the ones that should take least
 * time, by how many workgroups there are for how many cores, and by how fast tiles of a kind are on this GPU
 * (matmul/tuning.ts). The constants were measured on one H200, with 132 cores; LADDER.md has the figures behind them.
 *
 * Test: matmul-half.test.ts.
 */

import type { Engine } from '../../commands/queue.ts'
import type { MatrixKind } from '../../device/tuning.ts'
import type { Problem } from './problem.ts'
import {
  isAlong,
  type MatrixTile,
  matrixAccessA,
  matrixAccessB,
  subgroupsOf,
  vectorsOf,
} from './subgroup-stages.ts'

export interface MatrixPlan {
  readonly tile: MatrixTile
  /** Parts of k; their products are added up by a second kernel. */
  readonly splits: number
}

interface Kind {
  readonly tile: MatrixTile
  /** Workgroups that a core has at a time. */
  readonly perCore: number
  /** How fast they are where they fill all cores, against `square`. */
  readonly speed: number
}

/** The tiles, by their shape. */
export const matrixKinds: Readonly<Record<MatrixKind, Kind>> = {
  square: { tile: { bm: 128, bn: 128, bk: 32, sm: 64, sn: 64 }, perCore: 2, speed: 1 },
  // Reads least per multiplication; a core has only one. Of k it reads 32 bytes at a time, which is slow for so many columns.
  wide: { tile: { bm: 128, bn: 256, bk: 16, sm: 64, sn: 64, ahead: true }, perCore: 1, speed: 1 },
  narrow: { tile: { bm: 128, bn: 64, bk: 32, sm: 64, sn: 32 }, perCore: 4, speed: 0.97 },
  small: { tile: { bm: 64, bn: 64, bk: 32, sm: 32, sn: 32 }, perCore: 5, speed: 0.77 },
}

/** What a workgroup does before and after its steps of k takes as long as so many of them. */
const around = 240
/** Adding up parts takes as long as so many steps of k of a full round, and so many more per element of all parts. */
const adding = { fixed: 260, each: 1.3e-4 }
/** The least steps of k of a part. */
const leastSteps = 256
/** What a core that has only some of its workgroups needs of the time that all of them would take, were there none. */
const alone = 0.6

/** Chooses the plan of a product. */
export function matrixPlanOf(engine: Engine, p: Problem): MatrixPlan {
  const { gpu, tuning } = engine
  const { cores, matrices = {} } = tuning
  const [a, b] = [matrixAccessA(p), matrixAccessB(p)]
  const subgroup = gpu.matrices?.subgroup ?? 32
  let best: MatrixPlan = { tile: matrixKinds.small.tile, splits: 1 }
  let least = Infinity
  for (const [name, { tile, perCore, speed }] of Object.entries(matrixKinds) as [MatrixKind, Kind][]) {
    const { maxComputeWorkgroupStorageSize: bytes, maxComputeInvocationsPerWorkgroup: threads } = gpu.limits
    if (16 * vectorsOf(tile, a, b) > bytes || subgroup * subgroupsOf(tile) > threads) continue
    if (name === 'wide' && isAlong(b)) continue
    const tiles = Math.ceil(p.m / tile.bm) * Math.ceil(p.n / tile.bn) * p.items
    const slots = perCore * cores
    // Steps of k in a round are counted as those of `square`.
    const size = (tile.bm * tile.bn * perCore) / 2 ** 15 / (matrices[name] ?? speed)
    const most = Math.max(1, Math.floor(p.k / leastSteps))
    for (const rounds of [0, 1, 2]) {
      const splits = Math.min(most, Math.max(1, Math.floor((rounds * slots) / tiles)))
      const groups = tiles * splits
      const full = Math.floor(groups / slots)
      const rest = Math.ceil((groups - full * slots) / cores)
      const time =
        (full + (rest > 0 ? alone + ((1 - alone) * rest) / perCore : 0)) * size * (p.k / splits + around) +
        (splits > 1 ? adding.fixed + (adding.each * splits * p.m * p.n * p.items * 132) / cores : 0)
      if (time < least) {
        least = time
        best = { tile, splits }
      }
    }
  }
  return best
}
