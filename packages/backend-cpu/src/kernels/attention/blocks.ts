/**
 * What the forward and the backward kernel of attention share: parameters, and the products of one *panel* of queries
 * and one block of keys. Which blocks meet: attention/visits.ts. What else happens to scores: attention/scores.ts.
 *
 * A panel is as many queries as a tile has columns (8 or 16), and they lie in the lanes: scores are computed
 * as Sᵀ, a row per key. So rows of k and v are read where they are, one number at a time, as the splat
 * operand of the micro-kernel, and nothing of the size of k or v is ever copied; the softmax over keys is
 * vertical, without a single shuffle; and only the panel of queries is transposed, once.
 */

import type { TypedProgram } from '@tilegrad/core'
import { block, float, optional, type Part, tensor, word } from '../../block.ts'
import {
  type Func,
  type FunctionBuilder,
  f32x4,
  type I32,
  i32,
  i32x4,
  type ModuleBuilder,
  type V128,
  type Var,
  v128,
} from '../../wasm/index.ts'
import { multiply, type Tile } from '../matmul/micro.ts'

/** Keys per block: with 64 queries their scores take 24 KB; a multiple of the rows of every tile. */
export const keyBlock = 96
/** Queries per block, of which k and v are read once: a multiple of every panel. */
export const queryBlock = 64

/** The mask's type is built into kernels. */
export type MaskType = 'none' | 'float32' | 'bool'

/** What is built into kernels. */
export interface Form {
  readonly tile: Tile
  readonly mask: MaskType
  /** Whether there is a block mask. */
  readonly blocks: boolean
  readonly alibi: boolean
  /** Dropout's expression for its params. */
  readonly dropout: TypedProgram | null
  /**
   * Keeps hidden keys out of products even where they or their values are not finite, as 0 · NaN is NaN: slowly, for a
   * second run where the first one's results are not all finite. Weights of hidden keys, and their gradients, are −0
   * then, which no other weight is.
   */
  readonly careful: boolean
}

/** The form as part of the names of kernels. */
export const formName = ({ tile, mask, blocks, alibi, dropout, careful }: Form): string =>
  `${tile.rows}x${tile.vectors}:${mask}${blocks ? ':blocks' : ''}${alibi ? ':alibi' : ''}${dropout ? `:dropout${dropout.id}` : ''}${careful ? ':careful' : ''}`

const drops: Part<readonly number[], '0' | '1' | '2' | '3' | '4'> = {
  ends: ['0', '1', '2', '3', '4'],
  put: (values, at, words) => words.set(values, at),
}

/**
 * The parameters that do not depend on the pass. Of the mask rows are queries; of a block mask's lists blocks of queries, or
 * of keys.
 */
export const commonParams = block({
  heads: word,
  /** Query heads per key head. */
  group: word,
  queries: word,
  keys: word,
  /** D and Dv. */
  width: word,
  valueWidth: word,
  scale: float,
  /** The bounds of the keys j that query i sees: i + low < j ≤ i + high. */
  low: word,
  high: word,
  /** The numbers of first keys that are seen, and of first queries that see, whatever `low` says. */
  globalKeys: word,
  globalQueries: word,
  /** The difference from the number of a query to that of the key at its place. */
  offset: word,
  /** Chunks of queries per head. */
  queryChunks: word,
  /** The address of a flag that is set where a result is not finite. */
  flagPtr: word,
  q: tensor,
  k: tensor,
  v: tensor,
  mask: optional(tensor),
  /** The size of a block mask's blocks, and how they are cut into chunks. */
  blockSize: word,
  keyStep: word,
  queriesPerBlock: word,
  keysPerBlock: word,
  kvNumBlocks: optional(tensor),
  kvIndices: optional(tensor),
  qNumBlocks: optional(tensor),
  qIndices: optional(tensor),
  /** ALiBi's slopes, per head. */
  slopesPtr: word,
  slopesStep: word,
  /** The params of dropout's expression. */
  drop: optional(drops),
})

/** The other parameters of forward and backward passes. */
export const passParams = block(
  {
    out: tensor,
    /** Each row's maximum and sum, (B, H, T) both, contiguous. */
    topPtr: word,
    sumPtr: word,
    scratch: word,
    scratchStep: word,
    /** Chunks of queries, or of keys, per head: tasks are numbered (b, head, chunk). */
    blocks: word,
    dout: optional(tensor),
    /** 1 where a gradient is wanted. */
    needQ: word,
    needK: word,
    needV: word,
    dq: optional(tensor),
    dk: optional(tensor),
    dv: optional(tensor),
  },
  commonParams,
)

type OperandName = 'q' | 'k' | 'v' | 'mask' | 'out' | 'dout' | 'dq' | 'dk' | 'dv' | BlockLists
type BlockLists = 'kvNumBlocks' | 'kvIndices' | 'qNumBlocks' | 'qIndices'

/** The place of a parameter in the parameter block, in bytes. */
export const wordOffset = passParams.offset
/** Reads parameters by name. */
export const { reader } = passParams

/** Bytes from the first row's maximum or sum to those of another row. */
export const statsAt = (word: ReturnType<typeof reader>, b: I32, h: I32, row: I32): I32 =>
  b.mul(word('heads')).add(h).mul(word('queries')).add(row).shl(2)

/** Address of row `row` of an operand, for a batch item and head. */
export function rowOf(word: ReturnType<typeof reader>, name: OperandName, b: I32, h: I32, row: I32): I32 {
  return word(`${name}Ptr`)
    .add(b.mul(word(`${name}Batch`)))
    .add(h.mul(word(`${name}Head`)))
    .add(row.mul(word(`${name}Row`)))
}

const scoresParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
export type ScoresFunc = Func<typeof scoresParams, null>

/**
 * out[r] = Σ_d x[r][d] · panel[d]: rows of k or v against a panel of q or dO. Parameters: depth, x, bytes
 * between its rows, number of rows, panel, out. Rows of out are `outStep` bytes apart; up to `tile.rows − 1`
 * more are written.
 */
export function scoresFunc(m: ModuleBuilder, tile: Tile, outStep: number): ScoresFunc {
  return m.func(scoresParams, (f, depth, x, row, rows, panel, out) => {
    const strip = f.let(row.mul(tile.rows))
    f.while(rows.gtS(0), () => {
      const sums = multiply(f, {
        tile,
        k: depth,
        a: x,
        aRow: row,
        aRows: rows,
        b: panel,
        bStep: 16 * tile.vectors,
      })
      sums.forEach((sum, i) => sum.forEach((value, j) => f.store(out, value, i * outStep + 16 * j)))
      x.set(x.add(strip))
      out.set(out.add(tile.rows * outStep))
      rows.set(rows.sub(tile.rows))
    })
  })
}

const gatherParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
export type GatherFunc = Func<typeof gatherParams, null>

/**
 * out[d] = factor · out[d] + Σ_r x[r][d] · panel[r]: columns of v or k against a panel of weights.
 * Parameters: number of rows r, x, bytes between its rows, panel, number of columns d, out, and the address
 * of a factor per query, which only is read with `rescale` (else 1). Rows of the panel are `panelStep` bytes
 * apart.
 */
export function gatherFunc(
  m: ModuleBuilder,
  tile: Tile,
  panelStep: number,
  rescale: boolean,
  careful: boolean,
): GatherFunc {
  if (careful) return carefulGatherFunc(m, tile, panelStep, rescale)
  return m.func(gatherParams, (f, rows, x, row, panel, columns, out, factor) => {
    const strip = (height: number): void => {
      const t = { ...tile, rows: height }
      const sums = multiply(f, { tile: t, k: rows, a: x, aStep: row, b: panel, bStep: panelStep })
      const factors = rescale ? sums[0].map((_, j) => f.let(v128.load(factor, 16 * j))) : []
      sums.forEach((sum, i) => {
        const at = (j: number): number => 16 * (i * tile.vectors + j)
        const totals = sum.map((value, j) => {
          const old = v128.load(out, at(j))
          return f.let(rescale ? f32x4.madd(old, factors[j], value) : f32x4.add(old, value))
        })
        totals.forEach((value, j) => f.store(out, value, at(j)))
      })
      x.set(x.add(4 * height))
      out.set(out.add(16 * tile.vectors * height))
      columns.set(columns.sub(height))
    }
    f.while(columns.geS(tile.rows), () => strip(tile.rows))
    // Reading past the last column could leave memory: what is left has loops of its own.
    for (let height = tile.rows - 1; height > 0; height--) f.if(columns.eq(height), () => strip(height))
  })
}

/** `gatherFunc` without what has a weight of −0, in the same order. */
function carefulGatherFunc(
  m: ModuleBuilder,
  { vectors }: Tile,
  panelStep: number,
  rescale: boolean,
): GatherFunc {
  return m.func(gatherParams, (f, rows, x, row, panel, columns, out, factor) => {
    const hidden = f.let(f32x4.const(-0))
    f.for(0, columns, 1, () => {
      const sums = Array.from({ length: vectors }, () => f.let(f32x4.const(0)))
      const from = f.let(x)
      eachRow(f, rows, panel, panelStep, (at) => {
        const value = f.let(v128.load32Splat(from))
        sums.forEach((sum, j) => {
          const weight = f.let(v128.load(at, 16 * j))
          sum.set(v128.bitselect(sum, f32x4.madd(value, weight, sum), i32x4.eq(weight, hidden)))
        })
        from.set(from.add(row))
      })
      sums.forEach((sum, j) => {
        const old = v128.load(out, 16 * j)
        f.store(out, rescale ? f32x4.madd(old, v128.load(factor, 16 * j), sum) : f32x4.add(old, sum), 16 * j)
      })
      x.set(x.add(4))
      out.set(out.add(16 * vectors))
    })
  })
}

const checkParams = ['i32', 'i32', 'i32', 'i32', 'i32'] as const
export type CheckFunc = Func<typeof checkParams, null>

/** Sets the flag if a number is not finite: parameter block; address, bytes between rows, number of rows, of columns. */
export function checkFunc(m: ModuleBuilder): CheckFunc {
  return m.func(checkParams, (f, params, from, step, rows, columns) => {
    // What is not finite stays in a sum. Four in turn, as one alone would wait for itself.
    const sums = [0, 1, 2, 3].map(() => f.let(f32x4.const(0)))
    f.for(0, rows, 1, () => {
      const at = f.let(from)
      f.strips(0, columns, [16, 4, 1], (_, width) => {
        for (let i = 0; i < width; i += 4) {
          const x = width === 1 ? v128.load32Zero(at) : v128.load(at, 4 * i)
          const sum = sums[i / 4] as Var<'v128'>
          sum.set(f32x4.add(sum, x))
        }
        at.set(at.add(4 * width))
      })
      from.set(from.add(step))
    })
    flagEndless(f, params, sums)
  })
}

/** Emits: sets the flag if one of the sums is not finite. */
export function flagEndless(f: FunctionBuilder, params: I32, sums: readonly V128[]): void {
  const zero = f.let(f32x4.const(0))
  const nothing = sums.map((sum) => f32x4.mul(sum, zero)).reduce((a, b) => f32x4.add(a, b))
  f.if(v128.anyTrue(f32x4.ne(nothing, zero)), () => f.store(reader(params)('flagPtr'), i32.const(1)))
}

/**
 * Whether a block of rows that lie apart is better copied before `gatherFunc` reads its columns: rows of a
 * packed projection, 6 KB apart, share few sets of the first-level cache (47 instead of 54 GFLOP/s, Node 20;
 * 80 instead of 104 revectorized). It takes some queries to pay.
 */
export const sparse = (row: I32, columns: I32, queries: I32): I32 =>
  row.ne(columns.shl(2)).and(queries.geS(32))

/** Emits a loop over rows of vectors; `row` gets the address of each and its number. */
export function eachRow(
  f: FunctionBuilder,
  rows: I32,
  first: I32,
  step: number,
  row: (at: Var<'i32'>, r: Var<'i32'>) => void,
): void {
  const at = f.let(first)
  f.for(0, rows, 1, (r) => {
    row(at, r)
    at.set(at.add(step))
  })
}
