/**
 * The position of the largest or smallest element along a dim: the first of several, and the first NaN if there is one.
 *
 * Dense rows of float32 and int32 in two passes: the extreme value with SIMD, then the first element equal to it (or,
 * if it is NaN, the first NaN), 4 at a time; the second pass stops early and mostly hits the cache. Other layouts and
 * dtypes element by element. Rows in parallel.
 *
 * Reference: `argReduce` in core's reference/kernels.ts. Test: reduce.test.ts.
 */

import { layout } from '@tilegrad/core'
import { collapse } from '@tilegrad/core/kernel'
import { address, block, word } from '../../block.ts'
import type { KernelFactory } from '../../engine.ts'
import { f32, f32x4, f64, type I32, i32, i32x4, type ModuleBuilder } from '../../wasm/index.ts'
import {
  eachRow,
  eachVector,
  floatFolds,
  foldRow,
  grainOf,
  intFolds,
  streamGrain,
  total,
  type Vector,
  Words,
  writeNest,
} from '../rows.ts'

type Kind = 'max' | 'min'
const dtypes = ['float32', 'float64', 'int32', 'bool'] as const
type ArgType = (typeof dtypes)[number]

const bytes = { float32: 4, float64: 8, int32: 4, bool: 1 } as const

const argParams = block({ x: address, out: address, n: word, step: word })

export const argReduce: KernelFactory<{ kind: Kind; dim: number }> = (engine) => ({
  dtypes: [dtypes],
  run([out], [x], { kind, dim }) {
    if (layout.numel(out.shape) === 0) return
    const rest = x.shape.map((_, d) => d).filter((d) => d !== dim)
    const nest = collapse(
      rest.map((d) => x.shape[d]),
      [rest.map((d) => x.strides[d]), rest.map((d) => out.strides[d])],
    )
    const type = x.dtype as ArgType
    const n = x.shape[dim] ?? 1
    const step = n > 1 ? x.strides[dim] : 1
    const dense = step === 1 && (type === 'float32' || type === 'int32')
    const rank = nest.sizes.length
    const kernel = engine.kernel(`argReduce ${kind} ${type} ${dense} ${rank}`, (m) =>
      dense ? buildDense(m, kind, type, rank) : buildStrided(m, kind, type, rank),
    )
    argParams.write(engine, { x, out, n, step: step * bytes[type] })
    writeNest(engine, argParams, nest, [bytes[type], 4])
    engine.launch(kernel, layout.numel(out.shape), grainOf(n, streamGrain))
  },
})

function buildDense(m: ModuleBuilder, kind: Kind, type: 'float32' | 'int32', rank: number): void {
  const float = type === 'float32'
  m.kernel('main', (f, start, end, params) => {
    const { x, out, n } = argParams.load(f, params)
    const words = new Words(f, params, argParams)
    eachRow(f, words, rank, [x, out], start, end, ([row, to]) => {
      const best = float ? total(f, floatFolds[kind]) : undefined
      const int = float ? undefined : total(f, intFolds[kind])
      const load = (v: Vector) => [v.load(row)]
      if (best) foldRow(f, n, 8, floatFolds[kind], [best], load)
      else if (int) foldRow(f, n, 8, intFolds[kind], [int], load)
      const wanted = f.let(best ? f32x4.splat(f32.demoteF64(best)) : i32x4.splat(int as I32))
      const find = (wantsNaN: boolean): void => {
        f.block((found) => {
          eachVector(f, 0, n, 1, (v) => {
            const x = f.let(v.load(row))
            const hits = wantsNaN ? f32x4.ne(x, x) : float ? f32x4.eq(x, wanted) : i32x4.eq(x, wanted)
            const mask = f.let(i32x4.bitmask(hits).and(v.lanes === 4 ? 15 : 1))
            f.if(mask, () => {
              f.store(to, v.byte.shrU(2).add(i32.ctz(mask)))
              found.br()
            })
          })
        })
      }
      if (best) {
        f.if(
          best.ne(best),
          () => find(true),
          () => find(false),
        )
      } else find(false)
    })
  })
}

const loadFloat = {
  float32: (at: I32) => f64.promoteF32(f32.load(at)),
  float64: (at: I32) => f64.load(at),
}
const loadInt = { int32: (at: I32) => i32.load(at), bool: (at: I32) => i32.load8U(at) }

function buildStrided(m: ModuleBuilder, kind: Kind, type: ArgType, rank: number): void {
  m.kernel('main', (f, start, end, params) => {
    const { x, out, n, step } = argParams.load(f, params)
    const words = new Words(f, params, argParams)
    eachRow(f, words, rank, [x, out], start, end, ([row, to]) => {
      const at = f.let(row)
      const where = f.local.i32(0)
      const scan = (better: () => I32, keep: () => void): void => {
        f.for(0, n, 1, (i) => {
          f.if(better(), () => {
            keep()
            where.set(i)
          })
          at.set(at.add(step))
        })
      }
      if (type === 'float32' || type === 'float64') {
        const load = () => loadFloat[type](at)
        const best = f.let(load())
        const v = f.local.f64()
        scan(
          () => {
            v.set(load())
            const wins = kind === 'max' ? v.gt(best) : v.lt(best)
            // NaN beats numbers, and nothing beats NaN.
            return best.eq(best).and(wins.or(v.ne(v)))
          },
          () => best.set(v),
        )
      } else {
        const load = () => loadInt[type](at)
        const best = f.let(load())
        const v = f.local.i32()
        scan(
          () => {
            v.set(load())
            return kind === 'max' ? v.gtS(best) : v.ltS(best)
          },
          () => best.set(v),
        )
      }
      f.store(to, where)
    })
  })
}
