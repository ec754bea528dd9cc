/**
 * The product that linear attention and its gradients are made of (Katharopoulos et al. 2020):
 *
 *   Yᵢ = Σⱼ (xᵢ · kⱼ) vⱼ     over j ≤ i ('past'), j ≥ i ('future') or all j ('all')
 *
 * in time linear in the number of rows: with S = Σ kⱼᵀ vⱼ over the rows before a chunk of 32,
 *
 *   Y = X S + (X Kᵀ ∘ M) V,   then S += Kᵀ V
 *
 * With φ = elu + 1, V′ = [V, 1], n = the last column of the forward product plus ε, and dO′ = [dO, −rowsum(dO
 * ∘ O)] / n:
 *
 * | | x | k | v | over | then |
 * |---|---|---|---|---|---|
 * | [N, n − ε] | φ(Q) | φ(K) | V′ | past | O = N / n |
 * | dφ(Q) | dO′ | V′ | φ(K) | past | dQ = φ′(Q) ∘ dφ(Q) |
 * | dφ(K) | V′ | dO′ | φ(Q) | future | dK = φ′(K) ∘ dφ(K) |
 * | dV | φ(K) | φ(Q) | dO / n | future | |
 *
 * and φ′ = min(φ, 1); other feature maps likewise (relu: φ > 0, exp: φ, identity: 1). So the backward pass is the forward kernel three times, without sharing X Kᵀ ∘ M, for a
 * third of the code. A chunk of n rows takes 2 D² multiply-adds per row for the state and about (n + 16) D for
 * the triangle: 2.75 D² at D = 64.
 *
 * Everything in scratch memory is row-major, with rows padded to whole vectors; K alone is transposed, and
 * then serves as the right operand of X Kᵀ and as the left one of Kᵀ V. Blocks of 16 rows stop at the
 * diagonal.
 *
 * With a decay α per row, which gated linear attention has (there is no normaliser then, and V and dO are plain), xᵢ · kⱼ
 * fades by every α after j up to i: row i of X S by those from the chunk's start to i, row j of V on its way to S by those
 * after j to the end, S by all of the chunk, and the triangle's pairs by those between. 'future' is its mirror image. Products of
 * α, unlike differences of logarithms, lose no digits where gates are strong, and may be 0.
 *
 * A task is a head (`whole`). With few heads for the threads, three launches: `states` computes the Kᵀ V of
 * every chunk, `prefix` their running sums, `outputs` every chunk's rows. The sums are the same bits either
 * way.
 *
 * Reference: `LINEAR_ATTENTION` in core's ops/linear-attention/linear-attention.ts. Test: linear-attention.test.ts.
 */

import type { FeatureMap } from '@tilegrad/core'
import { mathF32x4 } from '../../lowering/math.ts'
import {
  type Func,
  type FunctionBuilder,
  f32,
  f32x4,
  type I32,
  i32,
  i32x4,
  type ModuleBuilder,
  type V128,
  type Var,
  v128,
} from '../../wasm/index.ts'
import { narrow, type Tile } from '../matmul/micro.ts'
import { packer } from '../matmul/pack.ts'
import { type FreeStripsFunc, freeStripsFunc, least } from '../matmul/panels.ts'
import {
  chunk,
  columnsFunc,
  finishFunc,
  type Pass,
  type Product,
  type Reach,
  reader,
  rowOf,
  rowsFunc,
} from './operands.ts'

/** Rows per block of the triangle: a multiple of every tile's columns. */
const triangle = 16

/** Columns padded to whole vectors. */
export const padded = (columns: number): number => Math.ceil(columns / 4) * 4

/** Bytes of scratch memory per thread; widths are those of operands. */
export function productScratch(inner: number, outer: number): number {
  const [x, v] = [padded(inner), padded(outer)]
  // x, kᵀ, v and y, and one of any of them to spare; the triangle; the state; four numbers per row for decays.
  return 4 * (chunk * (2 * x + 2 * v + Math.max(x, v)) + chunk * chunk + inner * v + 4 * chunk)
}

interface Parts {
  readonly tile: Tile
  /** The functions, by the number of vectors of the panel, less 1. */
  readonly strips: readonly FreeStripsFunc[]
  readonly panels: PanelsFunc
}

const panelsParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
/**
 * k; a, bytes between its rows, their number; b, bytes between its rows; out, likewise; columns; 1 to add.
 */
type PanelsFunc = Func<typeof panelsParams, null>

/** All panels of a product; rows of b and out are padded to whole vectors. */
function panelsFunc(m: ModuleBuilder, tile: Tile, strips: readonly FreeStripsFunc[]): PanelsFunc {
  return m.func(panelsParams, (f, k, a, aRow, rows, b, bRow, out, outRow, columns, accumulate) => {
    f.strips(0, columns, [4 * tile.vectors], () => {
      f.call(strips[tile.vectors - 1], k, a, aRow, rows, b, out, outRow, accumulate, bRow)
      for (const p of [b, out]) p.set(p.add(16 * tile.vectors))
      columns.set(columns.sub(4 * tile.vectors))
    })
    f.block((done) => {
      done.brIf(columns.eqz())
      strips.forEach((strip, v) => {
        f.if(columns.leS(4 * v + 4), () => {
          f.call(strip, k, a, aRow, rows, b, out, outRow, accumulate, bRow)
          done.br()
        })
      })
    })
  })
}

/** Emits out (+)= a · b. */
function multiplyPanels(
  f: FunctionBuilder,
  { panels }: Parts,
  o: Record<'k' | 'a' | 'aRow' | 'rows' | 'b' | 'bRow' | 'out' | 'outRow' | 'columns', I32>,
  accumulate: 0 | 1,
): void {
  f.call(panels, o.k, o.a, o.aRow, o.rows, o.b, o.bRow, o.out, o.outRow, o.columns, accumulate)
}

const chunkStep = 4 * chunk

/** Emits (X Kᵀ ∘ M) V, added to Y, for one chunk of n rows. */
function emitTriangle(
  f: FunctionBuilder,
  parts: Parts,
  reach: Reach,
  o: Record<'n' | 'inner' | 'x' | 'xRow' | 'kT' | 'v' | 'vRow' | 'y' | 'scores' | 'outer', I32>,
  fade?: (i: I32) => void,
): void {
  const { tile, strips } = parts
  const lanes = 4 * tile.vectors
  const full = strips[tile.vectors - 1]
  const past = reach === 'past'
  // Scores: for each panel of keys the blocks of rows that see any of them.
  f.for(0, o.n, lanes, (j) => {
    const block = j.and(-triangle)
    const first = f.let(past ? block : i32.const(0))
    const stop = past ? o.n : least(block.add(triangle), o.n)
    const a = o.x.add(first.mul(o.xRow))
    const to = o.scores.add(first.mul(chunkStep)).add(j.shl(2))
    f.call(full, o.inner, a, o.xRow, stop.sub(first), o.kT.add(j.shl(2)), to, chunkStep, 0, chunkStep)
  })
  f.for(0, o.n, 1, (step) => {
    const i = f.let(past ? step : o.n.sub(1).sub(step))
    fade?.(i)
    const block = f.let(i.and(-triangle))
    const at = f.let(o.scores.add(i.mul(chunkStep)).add(block.shl(2)))
    const own = f.let(i32x4.splat(i.sub(block)))
    for (let c = 0; c < triangle; c += 4) {
      const column = i32x4.const(c, c + 1, c + 2, c + 3)
      const seen = past ? i32x4.geS(own, column) : i32x4.leS(own, column)
      f.store(at, v128.and(v128.load(at, 4 * c), seen), 4 * c)
    }
  })
  f.for(0, o.n, triangle, (i) => {
    const rows = f.let(least(o.n.sub(i), triangle))
    const first = f.let(past ? i32.const(0) : i)
    const k = f.let(past ? i.add(rows) : o.n.sub(i))
    const a = f.let(o.scores.add(i.mul(chunkStep)).add(first.shl(2)))
    const b = f.let(o.v.add(first.mul(o.vRow)))
    const out = f.let(o.y.add(i.mul(o.vRow)))
    const aRow = i32.const(chunkStep)
    const { vRow, outer } = o
    multiplyPanels(f, parts, { k, a, aRow, rows, b, bRow: vRow, out, outRow: vRow, columns: outer }, 1)
  })
}

/** Builds the kernel of one product and pass. Its rows are heads (`whole`), or chunks of heads. */
export function buildProduct(
  m: ModuleBuilder,
  tile: Tile,
  p: Product,
  pass: Pass,
  feature: FeatureMap,
): void {
  const pack = packer(m)
  const strips = Array.from({ length: tile.vectors }, (_, v) =>
    freeStripsFunc(m, narrow(tile, v + 1), 'float32'),
  )
  const parts: Parts = { tile, strips, panels: panelsFunc(m, tile, strips) }
  const [loadX, loadK, loadV] = [
    rowsFunc(m, pack, p.x, feature),
    columnsFunc(m, pack, p.k, feature),
    rowsFunc(m, pack, p.v, feature),
  ]
  const slope = (p.finish === 'phiQ' || p.finish === 'phiK') && feature !== 'identity'
  const factor = slope ? rowsFunc(m, pack, p.finish as 'phiQ' | 'phiK', feature) : undefined
  const finish = finishFunc(m, pack, p.finish, feature, factor)

  m.kernel('main', (f, start, end, params, thread) => {
    const word = reader(params)
    const past = p.reach === 'past'
    const exp = p.decay ? mathF32x4(f, ['exp']).exp : undefined
    const [inner, outer, vRow] = [f.let(word('inner')), f.let(word('outer')), f.let(word('outerStep'))]
    const xRow = f.let(inner.add(3).and(-4).shl(2))
    let next = f.let(word('scratch').add(thread.mul(word('scratchStep'))))
    const take = (bytes: I32): Var<'i32'> => {
      const here = next
      next = f.let(next.add(bytes))
      return here
    }
    const x = take(xRow.mul(chunk))
    const kT = take(inner.mul(chunkStep))
    const v = take(vRow.mul(chunk))
    const y = take(vRow.mul(chunk))
    const scores = take(i32.const(chunk * chunkStep))
    const own = take(inner.mul(vRow))
    // Of the rows of a chunk: α; the product of all up to each; of all after it; and of those between a row and others.
    const [alphas, upTo, after, between] = [0, 1, 2, 3].map(() => take(i32.const(p.decay ? chunkStep : 0)))
    const [fromState, toState] = past ? [upTo, after] : [after, upTo]
    const spare = next

    /** Fills α and its products for n rows; α is 1 in rows after these. */
    const loadDecays = (b: I32, h: I32, row: I32, n: I32): void => {
      if (!exp) return
      for (const at of [alphas, between]) f.fill(at, 0, chunkStep)
      const from = f.let(rowOf(word, 'decay', b, h, row))
      f.for(0, n.shl(2), 4, (i) => {
        f.store(alphas.add(i), f32.load(from))
        from.set(from.add(word('decayRow')))
      })
      f.for(0, chunkStep, 16, (c) => {
        const at = f.let(alphas.add(c))
        f.store(at, exp(v128.load(at)))
      })
      const [first, last] = [f.let(f32.const(1)), f.let(f32.const(1))]
      f.for(0, chunkStep, 4, (i) => {
        first.set(first.mul(f32.load(alphas.add(i))))
        f.store(upTo.add(i), first)
        const back = f.let(i32.const(chunkStep - 4).sub(i))
        f.store(after.add(back), last)
        last.set(last.mul(f32.load(alphas.add(back))))
      })
    }
    /** The product of the decays of all rows of the chunk, in every lane. */
    const total = (): V128 => v128.load32Splat(upTo, chunkStep - 4)
    /** Multiplies n rows of vectors by a number each. */
    const scaleRows = (at: I32, n: I32, factors: I32): void => {
      const p = f.let(at)
      const rowFactor = f.let(factors)
      f.for(0, n, 1, () => {
        const factor = f.let(v128.load32Splat(rowFactor))
        f.for(0, vRow, 16, () => {
          f.store(p, f32x4.mul(v128.load(p), factor))
          p.set(p.add(16))
        })
        rowFactor.set(rowFactor.add(4))
      })
    }
    /** Multiplies row i of the triangle by what lies between each pair. Rows come in order, for 'future' the last first. */
    const fade = (i: I32): void => {
      if (!exp) return
      const own = f.let(v128.load32Splat(alphas.add(i.shl(2))))
      const row = f.let(scores.add(i.mul(chunkStep)))
      const scale = (): void =>
        f.for(0, chunkStep, 16, (c) => {
          const at = f.let(between.add(c))
          f.store(at, f32x4.mul(v128.load(at), own))
        })
      if (past) scale()
      f.store(between.add(i.shl(2)), f32.const(1))
      f.for(0, chunkStep, 16, (c) => {
        const at = f.let(row.add(c))
        f.store(at, f32x4.mul(v128.load(at), v128.load(between.add(c))))
      })
      if (!past) scale()
    }

    /** Loads K (transposed) and V of the rows from `row` on. */
    const loadKeys = (b: I32, h: I32, row: I32, n: I32): void => {
      f.call(loadK, params, b, h, row, n, kT, chunkStep, spare)
      f.call(loadV, params, b, h, row, n, v, vRow, spare)
    }
    const addTo = (state: I32, n: I32): void => {
      if (exp) scaleRows(v, n, toState)
      const o = { k: n, a: kT, aRow: i32.const(chunkStep), rows: inner, b: v, bRow: vRow }
      multiplyPanels(f, parts, { ...o, out: state, outRow: vRow, columns: outer }, 1)
    }
    const output = (b: I32, h: I32, row: I32, n: I32, state: I32): void => {
      f.call(loadX, params, b, h, row, n, x, xRow, spare)
      const o = { k: inner, a: x, aRow: xRow, rows: n, b: state, bRow: vRow }
      multiplyPanels(f, parts, { ...o, out: y, outRow: vRow, columns: outer }, 0)
      if (exp) scaleRows(y, n, fromState)
      if (p.reach !== 'all')
        emitTriangle(f, parts, p.reach, { n, inner, x, xRow, kT, v, vRow, y, scores, outer }, fade)
      f.call(finish, params, b, h, row, n, y, vRow, spare)
    }
    const keys = f.let(word('keys'))
    const rows = f.let(word('rows'))
    const place = (head: I32): [Var<'i32'>, Var<'i32'>] => [
      f.let(head.divU(word('heads'))),
      f.let(head.remU(word('heads'))),
    ]

    f.for(start, end, 1, (task) => {
      if (pass !== 'whole') {
        const chunks = f.let(word('chunks'))
        const head = f.let(task.divU(chunks))
        const [b, h] = place(head)
        const index = f.let(task.remU(chunks))
        const row = f.let(index.mul(chunk))
        if (pass === 'states') {
          const n = f.let(least(keys.sub(row), chunk))
          const state = f.let(word('statesPtr').add(task.mul(word('stateBytes'))))
          loadKeys(b, h, row, n)
          loadDecays(b, h, row, n)
          f.fill(state, 0, word('stateBytes'))
          addTo(state, n)
          if (exp) f.storeLane(32, word('totalsPtr').add(task.shl(2)), total(), 0)
        } else {
          const n = f.let(least(rows.sub(row), chunk))
          // Without a mask all rows see the sum of all states, which is the first.
          const slot = p.reach === 'all' ? head.mul(word('keyChunks')) : task
          if (p.reach !== 'all') loadKeys(b, h, row, n)
          loadDecays(b, h, row, n)
          output(b, h, row, n, f.let(word('statesPtr').add(slot.mul(word('stateBytes')))))
        }
        return
      }
      const [b, h] = place(task)
      f.fill(own, 0, inner.mul(vRow))
      if (p.reach === 'all') {
        f.for(0, keys, chunk, (row) => {
          const n = f.let(least(keys.sub(row), chunk))
          loadKeys(b, h, row, n)
          addTo(own, n)
        })
        f.for(0, rows, chunk, (row) => output(b, h, row, f.let(least(rows.sub(row), chunk)), own))
        return
      }
      f.for(0, rows, chunk, (i) => {
        const row = f.let(p.reach === 'past' ? i : rows.sub(1).and(-chunk).sub(i))
        const n = f.let(least(rows.sub(row), chunk))
        loadKeys(b, h, row, n)
        loadDecays(b, h, row, n)
        output(b, h, row, n, own)
        if (exp) {
          const factor = f.let(total())
          f.for(0, inner.mul(vRow), 16, (at) => {
            const p = f.let(own.add(at))
            f.store(p, f32x4.mul(v128.load(p), factor))
          })
        }
        addTo(own, n)
      })
    })
  })
}

/**
 * Builds the kernel that turns the states of chunks into sums of those before ('past'), after ('future') or,
 * in the first one's place, of all. Its rows are pieces of 64 bytes of one head's state.
 */
export function buildPrefix(m: ModuleBuilder, reach: Reach, decay: boolean): void {
  m.kernel('main', (f, start, end, params) => {
    const word = reader(params)
    const [bytes, chunks] = [f.let(word('stateBytes')), f.let(word('keyChunks'))]
    const pieces = f.let(bytes.shrU(6))
    const last = f.let(chunks.sub(1).mul(bytes))
    f.for(start, end, 1, (task) => {
      const head = f.let(task.divU(pieces))
      const first = f.let(word('statesPtr').add(head.mul(chunks).mul(bytes)).add(task.remU(pieces).shl(6)))
      const at = f.let(reach === 'future' ? first.add(last) : first)
      const total = f.let(i32.const(0))
      if (decay) {
        const chunk = head.mul(chunks).add(reach === 'future' ? chunks.sub(1) : 0)
        total.set(word('totalsPtr').add(chunk.shl(2)))
      }
      const sums = [0, 16, 32, 48].map(() => f.let(f32x4.const(0)))
      f.for(0, chunks, 1, () => {
        const factor = decay ? f.let(v128.load32Splat(total)) : null
        sums.forEach((sum, j) => {
          const own = f.let(v128.load(at, 16 * j))
          if (reach !== 'all') f.store(at, sum, 16 * j)
          sum.set(factor ? f32x4.madd(sum, factor, own) : f32x4.add(sum, own))
        })
        if (decay) total.set(reach === 'future' ? total.sub(4) : total.add(4))
        at.set(reach === 'future' ? at.sub(bytes) : at.add(bytes))
      })
      if (reach === 'all') sums.forEach((sum, j) => f.store(first, sum, 16 * j))
    })
  })
}
