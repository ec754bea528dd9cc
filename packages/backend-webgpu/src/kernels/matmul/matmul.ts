/**
 * Matrix product, out[…, M, N] = Σₖ a[…, M, k] · b[…, k, N], of float32, int32 (which wraps) or float16, with any strides.
 *
 * Few rows, as decoding has, are read along k (`matmul/skinny.ts`). Products of float16 run on subgroup matrices, and nowhere
 * else (`matmul/subgroups.ts`). For all else `matmul/problem.ts` says what the operands are, `matmul/plan.ts` how to cut,
 * `matmul/tiles.ts` computes; where k is split because the output has few tiles, `matmul/reduce.ts` adds up. The order of
 * additions depends on sizes and strides only. NaN and infinities spread as in plain sums.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts, matmul-half.test.ts.
 */

import type { KernelOf, Primitives, TypedProgram } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { grid } from '../layout.ts'
import { epilogueKey, epilogueOf } from './epilogue.ts'
import { type Plan, planOf } from './plan.ts'
import { accessA, accessB, type Problem, problemOf, transposed } from './problem.ts'
import { inParts } from './reduce.ts'
import { skinny, skinnyOf } from './skinny.ts'
import type { Tile } from './stages.ts'
import { multiplyHalves } from './subgroups.ts'
import { tileShader } from './tiles.ts'

export function matmul(engine: Engine, plan: typeof planOf = planOf): Primitives['matmul'] {
  return {
    dtypes: [engine.gpu.matrices ? ['float32', 'int32', 'float16'] : ['float32', 'int32']],
    run(outputs, inputs) {
      const [out, a, b] = [...outputs, ...inputs]
      multiply(engine, 'matmul', problemOf([out], a, b), undefined, plan)
    },
  } satisfies KernelOf<object>
}

/** Computes `p`; `program`, if any, gets the product and the extras and gives the outputs. */
export function multiply(
  engine: Engine,
  label: string,
  p: Problem,
  program: TypedProgram | undefined,
  choose: typeof planOf = planOf,
): void {
  if (p.items * p.m * p.n === 0) return
  const few = choose === planOf ? skinnyOf(p) : null
  if (few) return skinny(engine, label, few, program)
  if (p.type === 'f16') return multiplyHalves(engine, label, p, program)
  if (p.outs[0]?.column !== 1 && p.outs[0]?.row === 1) p = transposed(p)
  const plan = choose(engine, p, program === undefined)
  if (plan.flip) p = transposed(p)
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
  plan: Plan,
): void {
  const { tile, splits } = plan
  const [a, b] = [accessA(p), accessB(p)]
  const dims = p.sizes.length
  const epilogue = epilogueOf(p, program)
  const band = p.band !== undefined
  const rest = p.k % tile.bk
  const one = rest === 1 && p.k > 1 && tile.slices * splits === 1 && !band
  const tail = tile.compact || (one ? 'one' : rest !== 0)
  const key = `mt${tileKey(tile)}${a}${b}${dims}${tail}${band}${epilogueKey(epilogue)}`
  const kernel = engine.kernel(key, label, () => tileShader(tile, { a, b, dims, tail, band, epilogue }))
  const matrices = [p.a, p.b, ...p.outs, ...p.extras]
  const tilesN = Math.ceil((p.n - (tile.plus ? 1 : 0)) / tile.bn)
  const tilesM = Math.ceil(p.m / tile.bm)
  const total = tilesN * tilesM * splits * p.items
  const { m, n, k, sizes } = p
  const cut = { total, tilesN, tilesM, splits, kStep: stepOf(p, plan) }
  const values = { ...cut, m, n, k, matrices, sizes, band: p.band }
  const buffers = matrices.map((x) => x.buffer)
  engine.run(kernel, buffers, values, grid(total))
}

/** Steps of k in each part. */
const stepOf = ({ k }: Problem, { tile, splits }: Plan): number =>
  Math.ceil(Math.ceil(k / splits) / tile.bk) * tile.bk

const tileKey = (t: Tile): string =>
  `${t.bm},${t.bn},${t.bk},${t.tm},${t.tn},${t.slices}${t.plus ? 'p' : ''}${t.compact ? 'c' : ''}${t.order ?? ''}`
