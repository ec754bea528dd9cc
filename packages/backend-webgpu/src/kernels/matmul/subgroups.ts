/**
 * Matrix products of float16 on subgroup matrices, where the GPU has them: float32 sums, rounded once where they are
 * stored. `matmul/subgroup-plan.ts` says how to cut, `matmul/subgroup-tiles.ts` computes; where k is split,
 * `matmul/reduce.ts` adds up.
 */

import { DeviceError, type TypedProgram } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { grid } from '../layout.ts'
import { epilogueKey, epilogueOf } from './epilogue.ts'
import { type Problem, transposed } from './problem.ts'
import { inParts } from './reduce.ts'
import { type MatrixPlan, matrixPlanOf } from './subgroup-plan.ts'
import { type MatrixTile, matrixAccessA, matrixAccessB } from './subgroup-stages.ts'
import { matrixShader } from './subgroup-tiles.ts'

/** Computes `p`, whose a and b are float16; `program`, if any, gets the product and the extras and gives the outputs. */
export function multiplyHalves(
  engine: Engine,
  label: string,
  p: Problem,
  program: TypedProgram | undefined,
  choose: typeof matrixPlanOf = matrixPlanOf,
): void {
  if (p.items * p.m * p.n === 0) return
  if (p.outs[0]?.column !== 1 && p.outs[0]?.row === 1) p = transposed(p)
  const plan = choose(engine, p)
  if (plan.splits === 1) return tiles(engine, label, p, program, plan)
  // Parts end with a stage, and the last ones may be empty then.
  const splits = Math.ceil(p.k / stepOf(p, plan))
  inParts(engine, label, p, program, splits, (parts) =>
    tiles(engine, label, parts, undefined, { ...plan, splits }),
  )
}

function tiles(
  engine: Engine,
  label: string,
  p: Problem,
  program: TypedProgram | undefined,
  plan: MatrixPlan,
): void {
  const { tile, splits } = plan
  const has = engine.gpu.matrices
  if (!has) throw new DeviceError(`${label}: ${engine.gpu.adapterName} has no matrices of float16`)
  const [a, b] = [matrixAccessA(p), matrixAccessB(p)]
  const dims = p.sizes.length
  const epilogue = epilogueOf(p, program)
  const tail = p.k % tile.bk === 0 ? 'none' : p.k % 8 === 0 ? 'vectors' : 'elements'
  const key = `mh${tileKey(tile)}${a}${b}${dims}${tail}${splits > 1 ? 'p' : ''}${epilogueKey(epilogue)}`
  const kernel = engine.kernel(key, label, () =>
    matrixShader(tile, { a, b, dims, split: splits > 1, tail, epilogue }, has),
  )
  const matrices = [p.a, p.b, ...p.outs, ...p.extras]
  const tilesN = Math.ceil(p.n / tile.bn)
  const tilesM = Math.ceil(p.m / tile.bm)
  const total = tilesN * tilesM * splits * p.items
  const { m, n, k, sizes } = p
  const values = { total, tilesN, tilesM, splits, kStep: stepOf(p, plan), m, n, k, matrices, sizes }
  const buffers = matrices.map((x) => x.buffer)
  engine.run(kernel, buffers, values, grid(total))
}

/** Steps of k in each part. */
const stepOf = ({ k }: Problem, { tile, splits }: MatrixPlan): number =>
  Math.ceil(Math.ceil(k / splits) / tile.bk) * tile.bk

const tileKey = (t: MatrixTile): string => `${t.bm},${t.bn},${t.bk},${t.sm},${t.sn}${t.ahead ? 'a' : ''}`
