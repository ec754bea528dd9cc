/**
 * Softmax attention, backward (FlashAttention-2, Dao 2023), for a block of 64 queries against a block of 96
 * keys, with δ = rowsum(dO ∘ O), which is computed where dO is loaded:
 *
 *   P = exp(K (scale Q)ᵀ − m) / l,  dP = V dOᵀ,  dS = scale P ∘ (dP − δ)     rows are keys, lanes are queries
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
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention.test.ts.
 */

import {
  type Func,
  type FunctionBuilder,
  f32x4,
  type I32,
  i32,
  i32x4,
  type ModuleBuilder,
  type Var,
  v128,
} from '../../wasm/index.ts'
import { packer } from '../matmul/pack.ts'
import { least, most, panelFunc } from '../matmul/panels.ts'
import { expBelow } from '../softmax.ts'
import {
  checkFunc,
  eachRow,
  type Form,
  gatherFunc,
  keyBlock,
  reader,
  rowOf,
  scoresFunc,
  sparse,
  wordOffset,
} from './blocks.ts'
import { blockParams, type Context, loadQueries, locate, storeQueries, weightStep } from './queries.ts'
import { adjusts, hideFunc, keepFactors, loadMask, weightNumber } from './scores.ts'
import { chunk, eachKeyChunk, eachQueryChunk, queryTask, visible } from './visits.ts'

export type BackwardMode = 'both' | 'queries' | 'keys'

const passParams = ['i32', 'i32', 'i32'] as const
type PassFunc = Func<typeof passParams, null>
const gradientsParams = [...passParams, 'i32', 'i32'] as const

/** Scores → P in place: scores, number of keys, m; and 1 / l a row of weights further. */
function weightsFunc(m: ModuleBuilder, vectors: number, careful: boolean): PassFunc {
  return m.func(passParams, (f, scores, keys, stats) => {
    const exp = expBelow(f)
    const load = (at: number) =>
      Array.from({ length: vectors }, (_, j) => f.let(v128.load(stats, at + 16 * j)))
    const [tops, inverses] = [load(0), load(weightStep)]
    eachRow(f, keys, scores, weightStep, (at) => {
      const weights = tops.map((top, j) => {
        const s = f.let(v128.load(at, 16 * j))
        const weight = f32x4.mul(exp(s, top), inverses[j] as Var<'v128'>)
        return f.let(careful ? v128.bitselect(f32x4.const(-0), weight, f32x4.eq(s, -Infinity)) : weight)
      })
      weights.forEach((x, j) => f.store(at, x, 16 * j))
    })
  })
}

/**
 * dP → dS in place, and with dropout P → P · keep: P, `distance` bytes before dP; number of keys; δ; parameter block;
 * number of the first weight. With dropout dP = keep · (dO Vᵀ), and δ, the sum of dO ∘ O, holds as it is.
 */
function gradientsFunc(
  m: ModuleBuilder,
  { tile: { vectors }, dropout, careful }: Form,
  distance: number,
): Func<typeof gradientsParams, null> {
  return m.func(gradientsParams, (f, weights, keys, delta, params, first) => {
    const scale = f.let(v128.load32Splat(params, wordOffset('scale')))
    const deltas = Array.from({ length: vectors }, (_, j) => f.let(v128.load(delta, 16 * j)))
    const factors = dropout && keepFactors(f, dropout, vectors, reader(params), first)
    eachRow(f, keys, weights, weightStep, (at) => {
      const keep = factors?.()
      const changes = deltas.map((d, j) => {
        const dp = v128.load(at, distance + 16 * j)
        const change = f32x4.sub(keep ? f32x4.mul(dp, keep[j]) : dp, d)
        const weight = v128.load(at, 16 * j)
        const ds = f32x4.mul(f32x4.mul(weight, scale), change)
        return f.let(careful ? v128.bitselect(weight, ds, i32x4.eq(weight, f32x4.const(-0))) : ds)
      })
      keep?.forEach((factor, j) => f.store(at, f32x4.mul(v128.load(at, 16 * j), factor), 16 * j))
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

const pairParams = [...blockParams, 'i32', 'i32', 'i32'] as const
/**
 * A function with the parameters of `BlockFunc`, then the first key of the block, its end, and which gradients to add
 * to: 1 for dQ, 2 for dK and dV.
 */
type PairFunc = Func<typeof pairParams, null>

/** Adds a function that takes a block of queries, loaded before, against a block of keys. */
function pairFunc(m: ModuleBuilder, c: Context): PairFunc {
  const { tile, mask, pack } = c
  const { vectors } = tile
  const lanes = 4 * vectors
  const step = 4 * lanes
  const distance = (keyBlock + tile.rows) * weightStep
  const scoresOf = scoresFunc(m, tile, weightStep)
  const gather = gatherFunc(m, tile, weightStep, false, c.careful)
  const product = panelFunc(m, pack, tile, 'float32')
  const toWeights = weightsFunc(m, vectors, c.careful)
  const toGradients = gradientsFunc(m, c, distance)
  const hide = hideFunc(m, c, weightStep)
  return m.func(pairParams, (f, params, scratch, b, h, q0, rows, j0, j1, wanted) => {
    const word = reader(params)
    const at = locate(f, c, word, scratch)
    const [depth, valueDepth] = [f.let(word('width')), f.let(word('valueWidth'))]
    const kv = f.let(h.divU(word('group')))
    const { from: start, to: stop } = visible(f, word, q0, q0.add(rows).sub(1), j0, j1)
    const count = f.let(stop.sub(start))
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
    // With dropout, P for dV is made on the way.
    const changes = c.dropout
      ? 1
      : f.let(
          word('needQ')
            .and(wanted)
            .or(word('needK').and(wanted.shrU(1))),
        )

    f.for(0, rows, lanes, (i) => {
      const first = f.let(q0.add(i))
      const last = f.let(q0.add(least(i.add(lanes), rows)).sub(1))
      const seen = visible(f, word, first, last, start, stop)
      const from = f.let(least(seen.from, stop))
      const n = f.let(most(seen.to.sub(from), 0))
      const skip = f.let(from.sub(start))
      const column = f.let(at.weights.add(i.shl(2)))
      const weights = f.let(column.add(skip.mul(weightStep)))
      f.call(scoresOf, depth, k.add(skip.mul(kRow)), kRow, n, at.q.add(i.mul(depth).shl(2)), weights)
      const limited = f.let(
        from
          .add(n)
          .sub(1)
          .gtS(first.add(word('high')))
          .or(from.leS(last.add(word('low')))),
      )
      if (mask !== 'none') {
        const place = rowOf(word, 'mask', b, h, first).add(from.mul(word('maskStep')))
        const have = f.let(last.sub(first).add(1))
        loadMask(f, { pack, type: mask, vectors }, at.mask, place, word('maskRow'), word('maskStep'), n, have)
      }
      f.if(adjusts(c) ? 1 : limited, () => {
        f.call(hide, params, weights, n, from, first, h, limited, at.mask)
      })
      f.call(toWeights, weights, n, at.tops.add(i.shl(2)))
      f.if(changes, () => {
        const panel = at.dout.add(i.mul(valueDepth).shl(2))
        f.call(scoresOf, valueDepth, v.add(skip.mul(vRow)), vRow, n, panel, weights.add(distance))
        const number = weightNumber(word, b, h, first, from)
        f.call(toGradients, weights, n, at.delta.add(i.shl(2)), params, number)
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
    const whole = stop
      .sub(1)
      .leS(q0.add(word('high')))
      .and(
        q0
          .add(rows)
          .sub(1)
          .add(word('low'))
          .ltS(start)
          .or(stop.leS(word('globalKeys')))
          .or(q0.add(rows).leS(word('globalQueries'))),
      )
    const stripStep = f.let(i32.select(whole, keyBlock, keyStrip))
    const add = (name: 'dk' | 'dv', columns: I32, weights: I32, panels: I32): void => {
      const row = f.let(word(`${name}Row`))
      const to = f.let(rowOf(word, name, b, kv, start))
      f.for(0, count, stripStep, (s) => {
        const n = f.let(least(count.sub(s), stripStep))
        const first = f.let(most(start.add(s).sub(word('high')).sub(q0), 0))
        const last = f.let(most(start.add(s).add(n).sub(1).sub(word('low')), word('globalQueries')).sub(q0))
        f.if(start.add(s).ltS(word('globalKeys')), () => last.set(rows))
        const k = f.let(least(last, rows).sub(first))
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

const zerosParams = ['i32', 'i32', 'i32', 'i32'] as const

/** Adds a function that clears a matrix. Parameters: address, bytes between rows, number of rows, columns. */
function zerosFunc(m: ModuleBuilder): Func<typeof zerosParams, null> {
  return m.func(zerosParams, (f, to, step, rows, columns) => {
    const zero = f32x4.const(0)
    f.for(0, rows, 1, () => {
      const at = f.let(to)
      f.strips(0, columns, [16, 4, 1], (_, width) => {
        if (width === 1) f.storeLane(32, at, zero, 0)
        else for (let i = 0; i < width; i += 4) f.store(at, zero, 4 * i)
        at.set(at.add(4 * width))
      })
      to.set(to.add(step))
    })
  })
}

const gradients = [
  ['dk', 'needK', 'width'],
  ['dv', 'needV', 'valueWidth'],
] as const

/** Builds the kernel of one way through the pairs. */
export function buildBackward(m: ModuleBuilder, form: Form, mode: BackwardMode): void {
  const { tile, mask } = form
  const c: Context = { ...form, pack: packer(m) }
  const load = loadQueries(m, c)
  const pair = pairFunc(m, c)
  const check = form.careful ? null : checkFunc(m)
  const store = storeQueries(m, c, check)
  const zeros = zerosFunc(m)
  m.kernel('main', (f, start, end, params, thread) => {
    const word = reader(params)
    const scratch = f.let(word('scratch').add(thread.mul(word('scratchStep'))))
    if (mask !== 'none') {
      const at = locate(f, c, word, scratch)
      f.fill(at.mask, 0, 16 * tile.vectors * keyBlock)
    }
    const clear = (b: I32, kv: I32, first: I32, rows: I32): void => {
      for (const [name, need, width] of gradients) {
        f.if(word(need), () => {
          f.call(zeros, rowOf(word, name, b, kv, first), word(`${name}Row`), rows, word(width))
        })
      }
    }
    const checkKeys = (b: I32, kv: I32, first: I32, rows: I32): void => {
      // What is not finite in dK or dV comes by way of dS, and so is found in dQ.
      if (!check) return
      for (const [name, need, width] of gradients) {
        f.if(word(need).and(word('needQ').eqz()), () => {
          f.call(check, params, rowOf(word, name, b, kv, first), word(`${name}Row`), rows, word(width))
        })
      }
    }
    /** All keys that a chunk of queries sees. */
    const meetKeys = (b: I32, h: I32, q0: I32, rows: I32, wanted: number): void => {
      f.call(load, params, scratch, b, h, q0, rows)
      eachKeyChunk(f, word, form, [b, h], q0, f.let(q0.add(rows).sub(1)), (j0, j1) => {
        f.call(pair, params, scratch, b, h, q0, rows, j0, j1, wanted)
      })
    }
    f.for(start, end, 1, (task) => {
      if (mode === 'queries') {
        const { b, h, first, rows } = queryTask(f, word, form, task)
        meetKeys(b, h, first, rows, 1)
        f.call(store, params, scratch, b, h, first, rows)
        return
      }
      const blocks = mode === 'keys' ? f.let(word('blocks')) : f.let(i32.const(1))
      const head = f.let(task.divU(blocks))
      const keyHeads = f.let(word('heads').divU(word('group')))
      const [b, kv] = [f.let(head.divU(keyHeads)), f.let(head.remU(keyHeads))]
      const eachHead = (body: (h: Var<'i32'>) => void): void =>
        f.for(0, word('group'), 1, (g) => body(f.let(kv.mul(word('group')).add(g))))
      if (mode === 'both') {
        clear(b, kv, i32.const(0), word('keys'))
        eachHead((h) => {
          f.for(0, word('queryChunks'), 1, (i) => {
            const queries = chunk(f, word, form, 'queries', i)
            const rows = f.let(queries.end.sub(queries.start))
            meetKeys(b, h, queries.start, rows, 3)
            f.if(word('needQ'), () => f.call(store, params, scratch, b, h, queries.start, rows))
          })
        })
        checkKeys(b, kv, i32.const(0), word('keys'))
        return
      }
      const keys = chunk(f, word, form, 'keys', f.let(task.remU(blocks)))
      clear(b, kv, keys.start, keys.end.sub(keys.start))
      eachHead((h) => {
        eachQueryChunk(f, word, form, [b, h], keys.start, keys.end, (q0, rows) => {
          f.call(load, params, scratch, b, h, q0, rows)
          f.call(pair, params, scratch, b, h, q0, rows, keys.start, keys.end, 2)
        })
      })
      checkKeys(b, kv, keys.start, keys.end.sub(keys.start))
    })
  })
}
