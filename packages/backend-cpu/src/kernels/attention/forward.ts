/**
 * Softmax attention, forward (FlashAttention-2, Dao 2023): a task is a block of 64 queries of one head. For
 * each block of 96 keys, and each panel of queries that sees any of them:
 *
 *   Sᵀ = K · (scale Q)ᵀ           rows of k from memory, the panel of q transposed once per task
 *   m′ = max(m, max S)            down the columns, as are all of these
 *   P = exp(S − m′),  l = l · exp(m − m′) + Σ P
 *   Oᵀ = exp(m − m′) Oᵀ + Vᵀ · P   columns of v from memory
 *
 * at the end O / l; m and l are kept. l sums all weights, and dropout, if any, comes before O. Blocks of keys lie at
 * multiples of 96, panels at multiples of their width: results do not depend on how queries were dealt to tasks.
 * Hidden blocks are skipped (attention/visits.ts), and in a block of the diagonal every panel stops at its own last key.
 *
 * Reference: `ATTENTION` in core's ops/attention/attention.ts. Test: attention.test.ts.
 */

import { type Func, f32x4, type ModuleBuilder, type Var, v128 } from '../../wasm/index.ts'
import type { Tile } from '../matmul/micro.ts'
import { type PackFunc, packer } from '../matmul/pack.ts'
import { least } from '../matmul/panels.ts'
import { expBelow } from '../softmax.ts'
import {
  eachRow,
  type Form,
  flagEndless,
  gatherFunc,
  keyBlock,
  type MaskType,
  queryBlock,
  reader,
  rowOf,
  scoresFunc,
  sparse,
  statsAt,
  wordOffset,
} from './blocks.ts'
import { adjusts, dropFunc, hideFunc, loadMask, weightNumber } from './scores.ts'
import { eachKeyChunk, queryTask, visible } from './visits.ts'

/** Bytes of scratch memory per panel: q, the output, and per query m, l and exp(m − m′). */
const panelBytes = (tile: Tile, width: number, valueWidth: number): number =>
  16 * tile.vectors * (width + valueWidth + 3)

/**
 * Bytes of scratch memory per thread: panels, scores and mask of one block, and k and v where rows have gaps.
 */
export function forwardScratch(
  tile: Tile,
  width: number,
  valueWidth: number,
  copies: boolean,
  mask: MaskType,
): number {
  const panels = queryBlock / (4 * tile.vectors)
  const scores = 16 * tile.vectors * (keyBlock + tile.rows)
  return (
    panels * panelBytes(tile, width, valueWidth) +
    (mask === 'none' ? 1 : 2) * scores +
    (copies ? 4 * keyBlock * (width + valueWidth) : 0)
  )
}

const softenParams = ['i32', 'i32', 'i32'] as const

/** Scores → weights in place; m, l and the factor of what was before are kept at `state`. */
function softenFunc(m: ModuleBuilder, vectors: number, careful: boolean): Func<typeof softenParams, null> {
  const step = 16 * vectors
  return m.func(softenParams, (f, scores, keys, state) => {
    const exp = expBelow(f)
    const load = (row: number) =>
      Array.from({ length: vectors }, (_, j) => f.let(v128.load(state, row * step + 16 * j)))
    const before = load(0)
    const top = before.map((x) => f.let(x))
    eachRow(f, keys, scores, step, (at) => {
      // One instruction, unlike max. A NaN is passed over here, and found again in the sum.
      top.forEach((x, j) => x.set(f32x4.pmax(x, v128.load(at, 16 * j))))
    })
    top.forEach((x, j) => f.store(state, x, 16 * j))
    // Where nothing was visible so far, m is −∞: 0 in its place makes every weight exp(−∞) = 0.
    for (const x of top) x.set(v128.andnot(x, f32x4.eq(x, -Infinity)))
    const factors = before.map((x, j) => f.let(exp(x, top[j])))
    factors.forEach((x, j) => f.store(state, x, 2 * step + 16 * j))
    const sums = load(1)
    sums.forEach((x, j) => x.set(f32x4.mul(x, factors[j])))
    eachRow(f, keys, scores, step, (at) => {
      const weights = sums.map((_, j) => {
        if (!careful) return f.let(exp(v128.load(at, 16 * j), top[j]))
        const s = f.let(v128.load(at, 16 * j))
        return f.let(v128.bitselect(f32x4.const(-0), exp(s, top[j]), f32x4.eq(s, -Infinity)))
      })
      weights.forEach((weight, j) => f.store(at, weight, 16 * j))
      weights.forEach((weight, j) => sums[j].set(f32x4.add(sums[j], weight)))
    })
    sums.forEach((x, j) => f.store(state, x, step + 16 * j))
  })
}

const finishParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const

/** Divides a panel of outputs by l, and stores it as rows, together with m and l. */
function finishFunc(
  m: ModuleBuilder,
  pack: PackFunc,
  vectors: number,
  careful: boolean,
): Func<typeof finishParams, null> {
  const step = 16 * vectors
  return m.func(finishParams, (f, params, panel, state, valueDepth, out, outRow, tops, sums, have) => {
    const inverse = Array.from({ length: vectors }, (_, j) => {
      const l = f.let(v128.load(state, step + 16 * j))
      // No key at all: zeros, rather than 0 / 0.
      return f.let(v128.andnot(f32x4.div(1, l), f32x4.eq(l, 0)))
    })
    const found = careful ? [] : inverse.map(() => f.let(f32x4.const(0)))
    eachRow(f, valueDepth, panel, step, (at) => {
      const results = inverse.map((x, j) => f.let(f32x4.mul(v128.load(at, 16 * j), x)))
      results.forEach((x, j) => {
        f.store(at, x, 16 * j)
        found[j]?.set(f32x4.add(found[j] as Var<'v128'>, x))
      })
    })
    if (!careful) flagEndless(f, params, found)
    f.call(pack, out, outRow, panel, 4, step, have, valueDepth)
    f.copy(tops, state, have.shl(2))
    f.copy(sums, state.add(step), have.shl(2))
  })
}

/** Builds the kernel. */
export function buildForward(m: ModuleBuilder, form: Form): void {
  const { tile, mask } = form
  const { vectors } = tile
  const lanes = 4 * vectors
  const step = 16 * vectors
  const pack = packer(m)
  const scoresOf = scoresFunc(m, tile, step)
  const gather = gatherFunc(m, tile, step, true, form.careful)
  const soften = softenFunc(m, vectors, form.careful)
  const finish = finishFunc(m, pack, vectors, form.careful)
  const hide = hideFunc(m, form, step)
  const dropWeights = form.dropout && dropFunc(m, form.dropout, vectors, step)

  m.kernel('main', (f, start, end, params, thread) => {
    const word = reader(params)
    const depth = f.let(word('width'))
    const valueDepth = f.let(word('valueWidth'))
    const [kRow, vRow] = [f.let(word('kRow')), f.let(word('vRow'))]
    const scratch = f.let(word('scratch').add(thread.mul(word('scratchStep'))))
    /** The distances from a panel's q to its output, to its state, and to the next panel. */
    const toOut = f.let(depth.mul(step))
    const toState = f.let(depth.add(valueDepth).mul(step))
    const panelSize = f.let(toState.add(3 * step))
    const scores = f.let(scratch.add(panelSize.mul(queryBlock / lanes)))
    const maskPanel = f.let(scores.add(step * (keyBlock + tile.rows)))
    const copies = f.let(mask === 'none' ? maskPanel : maskPanel.add(step * (keyBlock + tile.rows)))
    if (mask !== 'none') f.fill(maskPanel, 0, step * keyBlock)
    const scale = f.let(v128.load32Splat(params, wordOffset('scale')))

    f.for(start, end, 1, (task) => {
      const { b, h, first: q0, rows } = queryTask(f, word, form, task)
      const kv = f.let(h.divU(word('group')))
      const q = f.let(rowOf(word, 'q', b, h, q0))
      const panel = f.let(scratch)
      f.for(0, rows, lanes, (i) => {
        const have = f.let(least(rows.sub(i), lanes))
        f.fill(panel, 0, toState.add(3 * step))
        f.call(pack, panel, step, q.add(i.mul(word('qRow'))), word('qStep'), word('qRow'), depth, have)
        eachRow(f, depth, panel, step, (at) => {
          for (let j = 0; j < vectors; j++) f.store(at, f32x4.mul(v128.load(at, 16 * j), scale), 16 * j)
        })
        const state = f.let(panel.add(toState))
        for (let j = 0; j < vectors; j++) f.store(state, f32x4.const(-Infinity), 16 * j)
        panel.set(panel.add(panelSize))
      })

      eachKeyChunk(f, word, form, [b, h], q0, f.let(q0.add(rows).sub(1)), (j0, j1) => {
        const k = f.let(rowOf(word, 'k', b, kv, j0))
        const v = f.let(rowOf(word, 'v', b, kv, j0))
        const kStep = f.let(kRow)
        const vStep = f.let(vRow)
        f.if(word('kStep').ne(4), () => {
          f.call(pack, copies, depth.shl(2), k, kRow, word('kStep'), j1.sub(j0), depth)
          k.set(copies)
          kStep.set(depth.shl(2))
        })
        f.if(
          word('vStep')
            .ne(4)
            .or(sparse(vRow, valueDepth, rows)),
          () => {
            const to = f.let(copies.add(depth.mul(4 * keyBlock)))
            f.call(pack, to, valueDepth.shl(2), v, vRow, word('vStep'), j1.sub(j0), valueDepth)
            v.set(to)
            vStep.set(valueDepth.shl(2))
          },
        )
        panel.set(scratch)
        f.for(0, rows, lanes, (i) => {
          const first = f.let(q0.add(i))
          const have = f.let(least(rows.sub(i), lanes))
          const last = f.let(first.add(have).sub(1))
          const { from, to } = visible(f, word, first, last, j0, j1)
          f.if(from.ltS(to), () => {
            const n = f.let(to.sub(from))
            const skip = f.let(from.sub(j0))
            f.call(scoresOf, depth, k.add(skip.mul(kStep)), kStep, n, panel, scores)
            const limited = f.let(
              to
                .sub(1)
                .gtS(first.add(word('high')))
                .or(from.leS(last.add(word('low')))),
            )
            if (mask !== 'none') {
              const at = rowOf(word, 'mask', b, h, first).add(from.mul(word('maskStep')))
              loadMask(
                f,
                { pack, type: mask, vectors },
                maskPanel,
                at,
                word('maskRow'),
                word('maskStep'),
                n,
                have,
              )
            }
            f.if(adjusts(form) ? 1 : limited, () => {
              f.call(hide, params, scores, n, from, first, h, limited, maskPanel)
            })
            const state = f.let(panel.add(toState))
            f.call(soften, scores, n, state)
            if (dropWeights) f.call(dropWeights, params, scores, n, weightNumber(word, b, h, first, from))
            f.call(
              gather,
              n,
              v.add(skip.mul(vStep)),
              vStep,
              scores,
              valueDepth,
              panel.add(toOut),
              state.add(2 * step),
            )
          })
          panel.set(panel.add(panelSize))
        })
      })
      panel.set(scratch)
      f.for(0, rows, lanes, (i) => {
        const row = f.let(q0.add(i))
        const place = f.let(statsAt(word, b, h, row))
        const out = rowOf(word, 'out', b, h, row)
        f.call(
          finish,
          params,
          panel.add(toOut),
          panel.add(toState),
          valueDepth,
          out,
          word('outRow'),
          word('topPtr').add(place),
          word('sumPtr').add(place),
          least(rows.sub(i), lanes),
        )
        panel.set(panel.add(panelSize))
      })
    })
  })
}
