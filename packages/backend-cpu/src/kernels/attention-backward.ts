/**
 * Softmax attention, backward (FlashAttention-2, Dao 2023), for a block of 64 queries against a block of 96
 * keys, with δ = rowsum(dO ∘ O), which is computed where dO is loaded:
 *
 *   P = exp(K (scale Q)ᵀ − lse),  dP = V dOᵀ,  dS = scale P ∘ (dP − δ)     rows are keys, lanes are queries
 *   dV += P dO,  dK += dS Q,  dQᵀ += Kᵀ dS
 *
 * P and dS are 96×64 and stay in the cache; nothing of size T×S exists. Two ways through the pairs of blocks:
 *
 * - `both`: a task is all of one key head, and computes each pair once: 5 products. It owns dK, dV and all dQ
 *   of its group, so there are no races.
 * - `queries` and `keys`, where there are too few heads for the threads: a task is a block of queries and
 *   computes dQ, then a task is a block of keys and computes dK and dV: 3 + 4 products.
 *
 * Sums meet in the same order either way: key blocks upwards for dQ, heads of a group and query blocks
 * upwards for dK and dV. So the results are the same bits, on any number of threads.
 */

import {
  type Func,
  type FunctionBuilder,
  f32x4,
  type I32,
  i32,
  type ModuleBuilder,
  v128,
} from '../wasm/index.ts'
import {
  blockStart,
  eachRow,
  gatherFunc,
  keyBlock,
  loadMask,
  type MaskType,
  maskFunc,
  queryBlock,
  queryTask,
  reader,
  rowOf,
  scoresFunc,
  sparse,
  visible,
  wordOffset,
} from './attention-blocks.ts'
import {
  blockParams,
  type Context,
  loadQueries,
  locate,
  storeQueries,
  weightStep,
} from './attention-queries.ts'
import type { Tile } from './matmul-micro.ts'
import { packer } from './matmul-pack.ts'
import { least, most, panelFunc } from './matmul-panels.ts'
import { expBelow } from './softmax.ts'

export type BackwardMode = 'both' | 'queries' | 'keys'

const passParams = ['i32', 'i32', 'i32'] as const
type PassFunc = Func<typeof passParams, null>
const gradientsParams = [...passParams, 'i32'] as const

/** Scores → P in place: scores, number of keys, lse. */
function weightsFunc(m: ModuleBuilder, vectors: number): PassFunc {
  return m.func(passParams, (f, scores, keys, lse) => {
    const exp = expBelow(f)
    const tops = Array.from({ length: vectors }, (_, j) => f.let(v128.load(lse, 16 * j)))
    eachRow(f, keys, scores, weightStep, (at) => {
      const weights = tops.map((top, j) => f.let(exp(v128.load(at, 16 * j), top)))
      weights.forEach((x, j) => f.store(at, x, 16 * j))
    })
  })
}

/** dP → dS in place: P, `distance` bytes before dP; number of keys; δ; the address of the scale. */
function gradientsFunc(
  m: ModuleBuilder,
  vectors: number,
  distance: number,
): Func<typeof gradientsParams, null> {
  return m.func(gradientsParams, (f, weights, keys, delta, scaleAt) => {
    const scale = f.let(v128.load32Splat(scaleAt))
    const deltas = Array.from({ length: vectors }, (_, j) => f.let(v128.load(delta, 16 * j)))
    eachRow(f, keys, weights, weightStep, (at) => {
      const changes = deltas.map((d, j) => {
        const change = f32x4.sub(v128.load(at, distance + 16 * j), d)
        return f.let(f32x4.mul(f32x4.mul(v128.load(at, 16 * j), scale), change))
      })
      changes.forEach((x, j) => f.store(at, x, distance + 16 * j))
    })
  })
}

/** Keys per strip of dK and dV where not all queries see all keys: a multiple of the rows of every tile. */
const keyStrip = 12

/** Emits zeros for the lanes of one panel in rows of P and dS. */
function clearRows(f: FunctionBuilder, vectors: number, at: I32, rows: I32, distance: number): void {
  const zero = f32x4.const(0)
  eachRow(f, rows, at, weightStep, (p) => {
    for (let j = 0; j < vectors; j++) {
      f.store(p, zero, 16 * j)
      f.store(p, zero, distance + 16 * j)
    }
  })
}

const pairParams = [...blockParams, 'i32', 'i32'] as const
/**
 * Like `BlockFunc`, then the first key of the block and which gradients to add to: 1 for dQ, 2 for dK and dV.
 */
type PairFunc = Func<typeof pairParams, null>

/** A block of queries, loaded before, against a block of keys. */
function pairFunc(m: ModuleBuilder, c: Context): PairFunc {
  const { tile, mask, pack } = c
  const { vectors } = tile
  const lanes = 4 * vectors
  const step = 4 * lanes
  const distance = (keyBlock + tile.rows) * weightStep
  const scoresOf = scoresFunc(m, tile, weightStep)
  const gather = gatherFunc(m, tile, weightStep, false)
  const product = panelFunc(m, pack, tile, 'float32')
  const toWeights = weightsFunc(m, vectors)
  const toGradients = gradientsFunc(m, vectors, distance)
  const hide = maskFunc(m, vectors, weightStep, mask !== 'none')
  return m.func(pairParams, (f, params, scratch, b, h, q0, rows, j0, wanted) => {
    const word = reader(params)
    const at = locate(f, c, word, scratch)
    const [depth, valueDepth] = [f.let(word('width')), f.let(word('valueWidth'))]
    const kv = f.let(h.divU(word('group')))
    const all = visible(word, q0, q0.add(rows).sub(1))
    const start = f.let(most(all.from, j0))
    const count = f.let(least(all.to, j0.add(keyBlock)).sub(start))
    const [k, v] = [f.let(rowOf(word, 'k', b, kv, start)), f.let(rowOf(word, 'v', b, kv, start))]
    const [kRow, vRow] = [f.let(word('kRow')), f.let(word('vRow'))]
    f.if(
      word('kStep')
        .ne(4)
        .or(sparse(kRow, depth, rows)),
      () => {
        f.call(pack, at.k, depth.shl(2), k, kRow, word('kStep'), count, depth)
        k.set(at.k)
        kRow.set(depth.shl(2))
      },
    )
    f.if(word('vStep').ne(4), () => {
      f.call(pack, at.v, valueDepth.shl(2), v, vRow, word('vStep'), count, valueDepth)
      v.set(at.v)
      vRow.set(valueDepth.shl(2))
    })
    const changes = f.let(
      word('needQ')
        .and(wanted)
        .or(word('needK').and(wanted.shrU(1))),
    )

    f.for(0, rows, lanes, (i) => {
      const first = f.let(q0.add(i))
      const last = f.let(q0.add(least(i.add(lanes), rows)).sub(1))
      const seen = visible(word, first, last)
      const from = f.let(least(most(seen.from, start), start.add(count)))
      const n = f.let(most(least(seen.to, start.add(count)).sub(from), 0))
      const skip = f.let(from.sub(start))
      const column = f.let(at.weights.add(i.shl(2)))
      const weights = f.let(column.add(skip.mul(weightStep)))
      f.call(scoresOf, depth, k.add(skip.mul(kRow)), kRow, n, at.q.add(i.mul(depth).shl(2)), weights)
      const low = f.let(first.add(word('low')))
      const high = f.let(first.add(word('high')))
      const limited = f.let(
        from
          .add(n)
          .sub(1)
          .gtS(high)
          .or(from.leS(last.add(word('low')))),
      )
      if (mask !== 'none') {
        const place = rowOf(word, 'mask', b, h, first).add(from.mul(word('maskStep')))
        const have = f.let(last.sub(first).add(1))
        loadMask(f, { pack, type: mask, vectors }, at.mask, place, word('maskRow'), word('maskStep'), n, have)
        f.call(hide, weights, n, from, limited, low, high, at.mask)
      } else f.if(limited, () => f.call(hide, weights, n, from, 1, low, high, 0))
      f.call(toWeights, weights, n, at.lse.add(i.shl(2)))
      f.if(changes, () => {
        const panel = at.dout.add(i.mul(valueDepth).shl(2))
        f.call(scoresOf, valueDepth, v.add(skip.mul(vRow)), vRow, n, panel, weights.add(distance))
        f.call(toGradients, weights, n, at.delta.add(i.shl(2)), params.add(wordOffset('scale')))
      })
      f.if(wanted.and(word('needQ')), () => {
        const dq = at.dq.add(i.mul(depth).shl(2))
        f.call(gather, n, k.add(skip.mul(kRow)), kRow, weights.add(distance), depth, dq, 0)
      })
      f.if(wanted.and(2), () => {
        const before = f.let(least(skip, keyStrip))
        clearRows(f, vectors, weights.sub(before.mul(weightStep)), before, distance)
        const after = least(count.sub(skip.add(n)), keyStrip)
        clearRows(f, vectors, weights.add(n.mul(weightStep)), after, distance)
      })
    })

    // Where every query sees every key, all keys at once; else by strips, with the queries that see any of one.
    const whole = start
      .add(count)
      .sub(1)
      .leS(q0.add(word('high')))
      .and(q0.add(rows).sub(1).add(word('low')).ltS(start))
    const stripStep = f.let(i32.select(whole, keyBlock, keyStrip))
    const add = (name: 'dk' | 'dv', columns: I32, weights: I32, panels: I32): void => {
      const row = f.let(word(`${name}Row`))
      const to = f.let(rowOf(word, name, b, kv, start))
      f.for(0, count, stripStep, (s) => {
        const n = f.let(least(count.sub(s), stripStep))
        const first = f.let(most(start.add(s).sub(word('high')).sub(q0), 0))
        const k = f.let(least(start.add(s).add(n).sub(1).sub(word('low')).sub(q0), rows).sub(first))
        f.if(k.gtS(0), () => {
          const a = f.let(weights.add(s.mul(weightStep)).add(first.shl(2)))
          const panel = f.let(panels.add(first.mul(step)))
          const out = f.let(to.add(s.mul(row)))
          f.for(0, columns, lanes, (j) => {
            const have = least(columns.sub(j), lanes)
            f.call(product, k, a, weightStep, n, panel, out, row, 1, 4, have, at.edge)
            panel.set(panel.add(rows.mul(step)))
            out.set(out.add(step))
          })
        })
      })
    }
    f.if(wanted.and(2), () => {
      f.if(word('needV'), () => add('dv', valueDepth, at.weights, at.doutRows))
      f.if(word('needK'), () => add('dk', depth, at.gradients, at.qRows))
    })
  })
}

/** Builds the kernel of one way through the pairs. */
export function buildBackward(m: ModuleBuilder, tile: Tile, mask: MaskType, mode: BackwardMode): void {
  const c: Context = { tile, mask, pack: packer(m) }
  const load = loadQueries(m, c)
  const pair = pairFunc(m, c)
  const store = storeQueries(m, c)
  m.kernel('main', (f, start, end, params, thread) => {
    const word = reader(params)
    const scratch = f.let(word('scratch').add(thread.mul(word('scratchStep'))))
    if (mask !== 'none') {
      const at = locate(f, c, word, scratch)
      f.fill(at.mask, 0, 16 * tile.vectors * keyBlock)
    }
    const queries = f.let(word('queries'))
    const clear = (b: I32, kv: I32, first: I32, rows: I32): void => {
      for (const [name, need] of [
        ['dk', 'needK'],
        ['dv', 'needV'],
      ] as const) {
        f.if(word(need), () => f.fill(rowOf(word, name, b, kv, first), 0, rows.mul(word(`${name}Row`))))
      }
    }
    /** All key blocks that a block of queries sees. */
    const eachKeyBlock = (b: I32, h: I32, q0: I32, rows: I32, wanted: number): void => {
      const all = visible(word, q0, q0.add(rows).sub(1))
      const stop = f.let(all.to)
      const first = f.let(all.from)
      f.if(first.ltS(stop), () => {
        f.for(blockStart(first), stop, keyBlock, (j0) => {
          f.call(pair, params, scratch, b, h, q0, rows, j0, wanted)
        })
      })
    }
    f.for(start, end, 1, (task) => {
      if (mode === 'queries') {
        const { b, h, first, rows } = queryTask(f, word, task)
        f.call(load, params, scratch, b, h, first, rows)
        eachKeyBlock(b, h, first, rows, 1)
        f.call(store, params, scratch, b, h, first, rows)
        return
      }
      const blocks = mode === 'keys' ? f.let(word('blocks')) : f.let(i32.const(1))
      const head = f.let(task.divU(blocks))
      const keyHeads = f.let(word('heads').divU(word('group')))
      const [b, kv] = [f.let(head.divU(keyHeads)), f.let(head.remU(keyHeads))]
      const j0 = f.let(task.remU(blocks).mul(keyBlock))
      const keys = mode === 'keys' ? least(word('keys').sub(j0), keyBlock) : word('keys')
      clear(b, kv, j0, f.let(keys))
      f.for(0, word('group'), 1, (g) => {
        const h = f.let(kv.mul(word('group')).add(g))
        f.for(0, queries, queryBlock, (q0) => {
          const rows = f.let(least(queries.sub(q0), queryBlock))
          if (mode === 'both') {
            f.call(load, params, scratch, b, h, q0, rows)
            eachKeyBlock(b, h, q0, rows, 3)
            f.if(word('needQ'), () => f.call(store, params, scratch, b, h, q0, rows))
            return
          }
          const all = visible(word, q0, q0.add(rows).sub(1))
          f.if(most(all.from, j0).ltS(least(all.to, j0.add(keyBlock))), () => {
            f.call(load, params, scratch, b, h, q0, rows)
            f.call(pair, params, scratch, b, h, q0, rows, j0, 2)
          })
        })
      })
    })
  })
}
