/**
 * Matrix product, out[…, M, N] = Σₖ a[…, M, k] · b[…, k, N], of float32 or int32 (which wraps), with any strides.
 *
 * Few rows, as decoding has, are read along k (`matmul/skinny.ts`). For all else `matmul/problem.ts` says what the operands are, `matmul/plan.ts` how to cut, `matmul/tiles.ts` computes; where k is
 * split because the output has few tiles, `matmul/reduce.ts` adds up. The order of additions depends on sizes and
 * strides only. NaN and infinities spread as in plain sums.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import type { KernelOf, Primitives, TypedProgram } from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { grid } from '../layout.ts'
import { epilogueKey, epilogueOf } from './epilogue.ts'
import { type Plan, planOf } from './plan.ts'
import { accessA, accessB, type Matrix, type Problem, problemOf, transposed } from './problem.ts'
import { reduceShader, reduceThreads, reduceWidth } from './reduce.ts'
import { skinny, skinnyOf } from './skinny.ts'
import type { Tile } from './stages.ts'
import { tileShader } from './tiles.ts'

export function matmul(engine: Engine, plan: typeof planOf = planOf): Primitives['matmul'] {
  return {
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
  if (p.outs[0]?.column !== 1 && p.outs[0]?.row === 1) p = transposed(p)
  const plan = choose(engine, p, program === undefined)
  if (plan.flip) p = transposed(p)
  if (plan.splits === 1) tiles(engine, label, p, program, plan)
  else split(engine, label, p, program, plan)
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

/** Computes the parts of k apart, into memory of their own, and then their sum. */
function split(
  engine: Engine,
  label: string,
  p: Problem,
  program: TypedProgram | undefined,
  plan: Plan,
): void {
  // Parts end with a stage, and the last ones may be empty then.
  const splits = Math.ceil(p.k / stepOf(p, plan))
  const part = p.items * p.m * p.n
  const dtype = p.type === 'f32' ? 'float32' : 'int32'
  const buffer = engine.pool.alloc(splits * part, dtype)
  const batch: number[] = []
  p.sizes.reduceRight((step, size) => {
    batch.unshift(step)
    return step * size
  }, p.m * p.n)
  const parts: Matrix = { buffer, offset: 0, row: p.n, column: 1, batch }
  tiles(engine, label, { ...p, outs: [parts], extras: [] }, undefined, { ...plan, splits })

  const epilogue = epilogueOf(p, program)
  const dims = p.sizes.length
  const width = reduceWidth(p.n)
  const kernel = engine.kernel(`mr${dims}${width}${epilogueKey(epilogue)}`, label, () =>
    reduceShader(epilogue, dims, width),
  )
  const matrices = [parts, ...p.outs, ...p.extras]
  const wide = p.n / width
  const total = p.items * p.m * wide
  const { m, n, sizes } = p
  const values = { total, tilesN: wide, splits, kStep: part, m, n, matrices, sizes }
  const buffers = matrices.map((x) => x.buffer)
  engine.run(kernel, buffers, values, grid(Math.ceil(total / reduceThreads)))
  engine.pool.free(buffer)
}
