/**
 * Blocks of queries for the backward kernel of attention: what a thread's scratch memory holds, how a block
 * of queries gets there, and how dQ leaves it.
 */

import {
  type Func,
  type FunctionBuilder,
  f32x4,
  type I32,
  i32x4,
  type ModuleBuilder,
  type Var,
  v128,
} from '../../wasm/index.ts'
import type { Tile } from '../matmul/micro.ts'
import type { PackFunc } from '../matmul/pack.ts'
import { least } from '../matmul/panels.ts'
import {
  type CheckFunc,
  eachRow,
  type Form,
  keyBlock,
  type MaskType,
  queryBlock,
  reader,
  rowOf,
  statsAt,
  wordOffset,
} from './blocks.ts'

/** Bytes between rows of P and dS: a number per query of the block. */
export const weightStep = 4 * queryBlock

/** The places of all blocks in a thread's scratch memory, as numbers of bytes or expressions. */
function places<T>(
  tile: Tile,
  mask: MaskType,
  width: T,
  valueWidth: T,
  start: T,
  ops: { add: (a: T, b: T | number) => T; mul: (a: T, b: number) => T; panels: (columns: T) => T },
) {
  const lanes = 4 * tile.vectors
  let next = start
  const take = (bytes: T | number): T => {
    const here = next
    next = ops.add(next, bytes)
    return here
  }
  const rowsOf = (columns: T): T => ops.mul(ops.panels(columns), 4 * queryBlock)
  return {
    /** The maximum, 1 / sum and δ of each query of the block. */
    tops: take(4 * queryBlock),
    inverses: take(4 * queryBlock),
    delta: take(4 * queryBlock),
    weights: take((keyBlock + tile.rows) * weightStep),
    gradients: take((keyBlock + tile.rows) * weightStep),
    mask: take(mask === 'none' ? 0 : 4 * lanes * keyBlock),
    /** A panel of dK or dV whose columns do not fill vectors. */
    edge: take(4 * lanes * keyBlock),
    /** Panels of queries: scale · Qᵀ, dOᵀ, dQᵀ. */
    q: take(ops.mul(width, 4 * queryBlock)),
    dout: take(ops.mul(valueWidth, 4 * queryBlock)),
    dq: take(ops.mul(width, 4 * queryBlock)),
    /** Panels of columns: Q and dO. */
    qRows: take(rowsOf(width)),
    doutRows: take(rowsOf(valueWidth)),
    /** Blocks of k and v where their rows have gaps. */
    k: take(ops.mul(width, 4 * keyBlock)),
    v: take(ops.mul(valueWidth, 4 * keyBlock)),
    end: next,
  }
}

/** Bytes of scratch memory per thread. */
export function backwardScratch(tile: Tile, mask: MaskType, width: number, valueWidth: number): number {
  const lanes = 4 * tile.vectors
  return places(tile, mask, width, valueWidth, 0, {
    add: (a, b) => a + b,
    mul: (a, b) => a * b,
    panels: (columns) => Math.ceil(columns / lanes) * lanes,
  }).end
}

export interface Context extends Form {
  readonly pack: PackFunc
}

export function locate(
  f: FunctionBuilder,
  { tile, mask }: Context,
  word: ReturnType<typeof reader>,
  scratch: I32,
) {
  const lanes = 4 * tile.vectors
  return places<Var<'i32'>>(tile, mask, f.let(word('width')), f.let(word('valueWidth')), f.let(scratch), {
    add: (a, b) => f.let(a.add(b)),
    mul: (a, b) => f.let(a.mul(b)),
    panels: (columns) => f.let(columns.add(lanes - 1).and(-lanes)),
  })
}

export const blockParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
/** Parameter block, scratch memory of the thread, batch item, head, first query, number of queries. */
export type BlockFunc = Func<typeof blockParams, null>

const deltaParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const

/** δ = rowsum(dO ∘ O). Parameters: parameter block, δ, spare memory for two rows, out, dO, number of rows. */
function deltaFunc(m: ModuleBuilder, pack: PackFunc): Func<typeof deltaParams, null> {
  return m.func(deltaParams, (f, params, delta, spare, out, dout, rows) => {
    const word = reader(params)
    const columns = f.let(word('valueWidth'))
    f.for(0, rows, 1, () => {
      const row = (name: 'out' | 'dout', from: I32, place: I32): Var<'i32'> => {
        const p = f.let(from)
        f.if(word(`${name}Step`).ne(4), () => {
          f.call(pack, place, 0, from, 0, word(`${name}Step`), 1, columns)
          p.set(place)
        })
        return p
      }
      const p = row('out', out, spare)
      const q = row('dout', dout, spare.add(columns.shl(2)))
      // Four sums in turn: one alone would wait for itself.
      const sums = [0, 1, 2, 3].map(() => f.let(f32x4.const(0)))
      f.strips(0, columns, [16, 4, 1], (_, width) => {
        const load = (at: I32, j: number) => (width === 1 ? v128.load32Zero(at) : v128.load(at, 16 * j))
        for (let j = 0; j < Math.ceil(width / 4); j++)
          sums[j].set(f32x4.madd(load(p, j), load(q, j), sums[j]))
        for (const at of [p, q]) at.set(at.add(4 * width))
      })
      const sum = f.let(f32x4.add(f32x4.add(sums[0], sums[1]), f32x4.add(sums[2], sums[3])))
      const pairs = f.let(f32x4.add(sum, i32x4.shuffle(sum, sum, [2, 3, 0, 1])))
      f.storeLane(32, delta, f32x4.add(pairs, i32x4.shuffle(pairs, pairs, [1, 0, 3, 2])), 0)
      delta.set(delta.add(4))
      out.set(out.add(word('outRow')))
      dout.set(dout.add(word('doutRow')))
    })
  })
}

/** Loads a block of queries: panels of scale · Q and of dO, of columns of Q and dO; m, 1 / l and δ; zeros for dQ. */
export function loadQueries(m: ModuleBuilder, c: Context): BlockFunc {
  const { tile, pack } = c
  const lanes = 4 * tile.vectors
  const step = 4 * lanes
  const each = Array.from({ length: tile.vectors }, (_, j) => j)
  const deltas = deltaFunc(m, pack)
  return m.func(blockParams, (f, params, scratch, b, h, q0, rows) => {
    const word = reader(params)
    const at = locate(f, c, word, scratch)
    const [depth, valueDepth] = [f.let(word('width')), f.let(word('valueWidth'))]
    const scale = f.let(v128.load32Splat(params, wordOffset('scale')))
    const scaled = (p: I32): void => {
      for (const j of each) f.store(p, f32x4.mul(v128.load(p, 16 * j), scale), 16 * j)
    }
    const [q, dout, out] = [
      f.let(rowOf(word, 'q', b, h, q0)),
      f.let(rowOf(word, 'dout', b, h, q0)),
      f.let(rowOf(word, 'out', b, h, q0)),
    ]
    const place = f.let(statsAt(word, b, h, q0))
    for (const [to, from] of [
      [at.tops, 'topPtr'],
      [at.inverses, 'sumPtr'],
    ] as const) {
      f.fill(to, 0, weightStep)
      f.copy(to, word(from).add(place), rows.shl(2))
    }
    for (let i = 0; i < weightStep; i += 16) {
      // Queries that see no key, and lanes without a query, have a sum of 0: their weights are exp(s − 0) · 0.
      const [top, sum] = [f.let(v128.load(at.tops, i)), f.let(v128.load(at.inverses, i))]
      f.store(at.tops, v128.andnot(top, f32x4.eq(top, -Infinity)), i)
      f.store(at.inverses, v128.andnot(f32x4.div(1, sum), f32x4.eq(sum, 0)), i)
    }
    f.if(rows.remU(lanes), () => {
      f.fill(at.q, 0, depth.mul(4 * queryBlock))
      f.fill(at.dout, 0, valueDepth.mul(4 * queryBlock))
    })
    f.fill(at.dq, 0, depth.mul(4 * queryBlock))
    const panel = f.let(at.q)
    const doutPanel = f.let(at.dout)
    f.for(0, rows, lanes, (i) => {
      const have = f.let(least(rows.sub(i), lanes))
      f.call(pack, panel, step, q.add(i.mul(word('qRow'))), word('qStep'), word('qRow'), depth, have)
      eachRow(f, depth, panel, step, scaled)
      const from = dout.add(i.mul(word('doutRow')))
      f.call(pack, doutPanel, step, from, word('doutStep'), word('doutRow'), valueDepth, have)
      panel.set(panel.add(depth.mul(step)))
      doutPanel.set(doutPanel.add(valueDepth.mul(step)))
    })
    f.call(deltas, params, at.delta, at.weights, out, dout, rows)
    f.if(word('needK'), () => {
      columnPanels(f, pack, lanes, at.qRows, rows, depth, q, word('qRow'), word('qStep'))
    })
    f.if(word('needV'), () => {
      columnPanels(f, pack, lanes, at.doutRows, rows, valueDepth, dout, word('doutRow'), word('doutStep'))
    })
  })
}

/** Emits: a matrix → panels of its columns, zeros at the right. */
function columnPanels(
  f: FunctionBuilder,
  pack: PackFunc,
  lanes: number,
  to: I32,
  rows: I32,
  columns: I32,
  from: I32,
  rowStep: I32,
  columnStep: I32,
): void {
  const panel = f.let(to)
  const bytes = f.let(rows.mul(4 * lanes))
  f.for(0, columns, lanes, (j) => {
    const have = f.let(least(columns.sub(j), lanes))
    f.if(have.and(3), () => f.fill(panel, 0, bytes))
    f.call(pack, panel, 4 * lanes, from.add(j.mul(columnStep)), rowStep, columnStep, rows, have)
    panel.set(panel.add(bytes))
  })
}

/** Stores dQ as rows. */
export function storeQueries(m: ModuleBuilder, c: Context, check: CheckFunc | null): BlockFunc {
  const { tile, pack } = c
  const lanes = 4 * tile.vectors
  return m.func(blockParams, (f, params, scratch, b, h, q0, rows) => {
    const word = reader(params)
    const at = locate(f, c, word, scratch)
    const depth = f.let(word('width'))
    if (check) {
      const panels = rows.add(lanes - 1).and(-lanes)
      f.call(check, params, at.dq, 0, 1, panels.mul(depth))
    }
    const panel = f.let(at.dq)
    f.for(0, rows, lanes, (i) => {
      const to = rowOf(word, 'dq', b, h, q0.add(i))
      f.call(pack, to, word('dqRow'), panel, 4, 4 * lanes, least(rows.sub(i), lanes), depth)
      panel.set(panel.add(depth.mul(4 * lanes)))
    })
  })
}
