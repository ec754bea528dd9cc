/**
 * Rotary position embedding: rows of x in parallel, each with its row of cosines and sines, which heads and batches
 * share. The gradient is the same with the sines' sign turned.
 *
 * Measured, Node 24, 2 threads, beside a copy of x: [16, 6, 256, 64] (in the cache) 0.21 to 0.23 ms, copy 0.11;
 * [1, 8, 4096, 128] 1.0 to 1.2, copy 0.5 to 0.7; [8, 16, 1024, 64] 2.0 to 3.0, copy 1.2 to 2.0. In tiles of 16 rows,
 * for all heads to find the angles in the first cache: no better for dense x.
 *
 * Reference: `ROTARY` in core's ops/attention/rotary.ts. Test: rotary.test.ts.
 */

import { layout, type RotaryAttrs, type View } from '@tilegrad/core'
import { stridesOver, viewOf } from '@tilegrad/core/kernel'
import { address, block, word } from '../block.ts'
import type { KernelFactory } from '../engine.ts'
import {
  type FunctionBuilder,
  f32x4,
  type I32,
  i32x4,
  type ModuleBuilder,
  type V128,
  v128,
} from '../wasm/index.ts'
import { denseRows, eachRow, eachVector, runRows, Words } from './rows.ts'

const rotaryParams = block({ x: address, cos: address, sin: address, y: address, n: word, half: word })

/** A view as if it had the leading dims of another one. */
const spread = (view: View, rows: readonly number[]): View => {
  const shape = [...rows, view.shape.at(-1) as number]
  return viewOf(view, shape, stridesOver(view, shape))
}

export const rotaryEmbedding: KernelFactory<RotaryAttrs> = (engine) => ({
  dtypes: [['float32']],
  supports: ([x, cos, sin]) =>
    denseRows(x) && denseRows(cos) && denseRows(sin) && cos.shape.at(-1) !== 0 && layout.numel(x.shape) > 0,
  run([y], [x, cos, sin], { interleaved, inverse }) {
    const lead = x.shape.length - 1
    const rows = x.shape.slice(0, lead)
    const views = [x, spread(cos, rows), spread(sin, rows), y]
    const n = x.shape[lead]
    const values = { x, cos, sin, y, n, half: cos.shape.at(-1) as number }
    runRows(engine, `rotary ${interleaved} ${inverse}`, views, lead, n, rotaryParams, values, (m, rank) =>
      build(m, interleaved, inverse, rank),
    )
  },
})

function build(m: ModuleBuilder, interleaved: boolean, inverse: boolean, rank: number): void {
  m.kernel('main', (f, start, end, params) => {
    const { x, cos, sin, y, n: d, half } = rotaryParams.load(f, params)
    const words = new Words(f, params, rotaryParams)
    const turn = (a: V128, b: V128, c: V128, s: V128): [V128, V128] => {
      const [ac, bc] = [f32x4.mul(a, c), f32x4.mul(b, c)]
      const plus = (p: V128, q: V128): V128 => f32x4.madd(q, s, p)
      const minus = (p: V128, q: V128): V128 => f32x4.nmadd(q, s, p)
      return inverse ? [plus(ac, b), minus(bc, a)] : [minus(ac, b), plus(bc, a)]
    }
    eachRow(f, words, rank, [x, cos, sin, y], start, end, ([x, cos, sin, y]) => {
      if (interleaved) pairs(f, half, x, cos, sin, y, turn)
      else {
        const [x2, y2] = [f.let(x.add(half.shl(2))), f.let(y.add(half.shl(2)))]
        eachVector(f, 0, half, 4, (v) => {
          const [a, b] = [f.let(v.load(x)), f.let(v.load(x2))]
          const [c, s] = [f.let(v.load(cos)), f.let(v.load(sin))]
          const [first, second] = turn(a, b, c, s)
          v.store(y, first)
          v.store(y2, second)
        })
      }
      eachVector(f, half.shl(1), d, 2, (v) => v.store(y, v.load(x)))
    })
  })
}

/** Neighbours: four pairs are two vectors, which are taken apart and put together again. */
function pairs(
  f: FunctionBuilder,
  half: I32,
  x: I32,
  cos: I32,
  sin: I32,
  y: I32,
  turn: (a: V128, b: V128, c: V128, s: V128) => [V128, V128],
): void {
  f.strips(0, half, [4, 1], (i, width) => {
    const [at, to] = [f.let(x.add(i.shl(3))), f.let(y.add(i.shl(3)))]
    const [cs, ss] = [f.let(cos.add(i.shl(2))), f.let(sin.add(i.shl(2)))]
    if (width === 4) {
      const [low, high] = [f.let(v128.load(at)), f.let(v128.load(at, 16))]
      const a = f.let(i32x4.shuffle(low, high, [0, 2, 4, 6]))
      const b = f.let(i32x4.shuffle(low, high, [1, 3, 5, 7]))
      const [first, second] = turn(a, b, f.let(v128.load(cs)), f.let(v128.load(ss)))
      const [p, q] = [f.let(first), f.let(second)]
      f.store(to, i32x4.shuffle(p, q, [0, 4, 1, 5]))
      f.store(to, i32x4.shuffle(p, q, [2, 6, 3, 7]), 16)
    } else {
      const [a, b] = [f.let(v128.load32Zero(at)), f.let(v128.load32Zero(at, 4))]
      const [first, second] = turn(a, b, f.let(v128.load32Zero(cs)), f.let(v128.load32Zero(ss)))
      f.storeLane(32, to, f.let(first), 0)
      f.storeLane(32, to, f.let(second), 0, 4)
    }
  })
}
