/**
 * What the forward and the backward kernel of attention share: parameters, which keys a query sees, and the
 * steps on one *panel* of queries and one block of keys.
 *
 * A panel is as many queries as a tile has columns (8 or 16), and they lie in the lanes: scores are computed
 * as Sᵀ, a row per key. So rows of k and v are read where they are, one number at a time, as the splat
 * operand of the micro-kernel, and nothing of the size of k or v is ever copied; the softmax over keys is
 * vertical, without a single shuffle; and only the panel of queries is transposed, once.
 */

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
} from '../wasm/index.ts'
import { multiply, type Tile } from './matmul-micro.ts'
import type { PackFunc } from './matmul-pack.ts'
import { least, most } from './matmul-panels.ts'

/** Keys per block: with 64 queries their scores take 24 KB; a multiple of the rows of every tile. */
export const keyBlock = 96
/** Queries per block, of which k and v are read once: a multiple of every panel. */
export const queryBlock = 64

/** What stands in for "no limit" in positions of keys. */
export const far = 1 << 29

/** The mask's type is built into kernels. */
export type MaskType = 'none' | 'float32' | 'bool'

const operandWords = ['Ptr', 'Batch', 'Head', 'Row', 'Step'] as const
type OperandWord<N extends string> = `${N}${(typeof operandWords)[number]}`
/**
 * Operands with strides over batch, head, row and along the row, in bytes. For the mask, rows are queries.
 */
export const operands = ['q', 'k', 'v', 'mask', 'out', 'dout', 'dq', 'dk', 'dv'] as const
type OperandName = (typeof operands)[number]

const scalars = [
  'heads',
  /** Query heads per key head. */
  'group',
  'queries',
  'keys',
  /** D and Dv. */
  'width',
  'valueWidth',
  /** A float32. */
  'scale',
  /** Query i sees keys j with i + low < j ≤ i + high. */
  'low',
  'high',
  /** (B, H, T), contiguous. */
  'lsePtr',
  'scratch',
  'scratchStep',
  /** Blocks of queries, or of keys, per head: tasks are numbered (b, head, block). */
  'blocks',
  /** 1 where a gradient is wanted. */
  'needQ',
  'needK',
  'needV',
] as const

/** Words of the parameter block. */
export type Word = (typeof scalars)[number] | OperandWord<OperandName>
export const wordNames: readonly Word[] = [
  ...scalars,
  ...operands.flatMap((name) => operandWords.map((w) => `${name}${w}` as const)),
]
const wordAt = new Map<Word, number>(wordNames.map((name, i) => [name, 4 * i]))

/** Where a parameter is, in bytes. */
export const wordOffset = (name: Word): number => wordAt.get(name) as number

/** Reads parameters by name. */
export const reader =
  (params: I32) =>
  (name: Word): I32 =>
    i32.load(params, wordOffset(name))

/** Address of row `row` of an operand, for a batch item and head. */
export function rowOf(word: ReturnType<typeof reader>, name: OperandName, b: I32, h: I32, row: I32): I32 {
  return word(`${name}Ptr`)
    .add(b.mul(word(`${name}Batch`)))
    .add(h.mul(word(`${name}Head`)))
    .add(row.mul(word(`${name}Row`)))
}

/** A task's place: batch item, head, first query and number of queries. */
export function queryTask(
  f: FunctionBuilder,
  word: ReturnType<typeof reader>,
  task: I32,
): Record<'b' | 'h' | 'first' | 'rows', Var<'i32'>> {
  const blocks = f.let(word('blocks'))
  const head = f.let(task.divU(blocks))
  // Under a causal mask late queries see more: last, first, second last, second …, so that neighbours even
  // out.
  const i = f.let(task.sub(head.mul(blocks)))
  const half = f.let(i.shrU(1))
  const block = i32.select(i.and(1), half, blocks.sub(1).sub(half))
  const first = f.let(block.mul(queryBlock))
  return {
    b: f.let(head.divU(word('heads'))),
    h: f.let(head.remU(word('heads'))),
    first,
    rows: f.let(least(word('queries').sub(first), queryBlock)),
  }
}

/** The keys that queries first … last see: [from, to), empty where to ≤ from. */
export function visible(word: ReturnType<typeof reader>, first: I32, last: I32): { from: I32; to: I32 } {
  return {
    from: most(first.add(word('low')).add(1), 0),
    to: least(last.add(word('high')).add(1), word('keys')),
  }
}

/** The first key of the block that a key is in. */
export const blockStart = (key: Var<'i32'>): I32 => key.sub(key.remU(keyBlock))

/** Consecutive numbers in the lanes of the vectors of a panel. */
const lanes = (vector: number): V128 => i32x4.const(...[0, 1, 2, 3].map((l) => 4 * vector + l))

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
export function gatherFunc(m: ModuleBuilder, tile: Tile, panelStep: number, rescale: boolean): GatherFunc {
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

const maskParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
export type MaskFunc = Func<typeof maskParams, null>

/**
 * Adds the mask to scores and hides what queries do not see. Parameters: scores, number of keys, number of
 * the first key; 1 if some query of the panel does not see some key; limits `low` and `high` of the first
 * query; then the mask's scratch panel, and the distance of its rows is that of scores.
 */
export function maskFunc(m: ModuleBuilder, vectors: number, step: number, masked: boolean): MaskFunc {
  return m.func(maskParams, (f, scores, keys, firstKey, limited, low, high, mask) => {
    const hidden = f.let(f32x4.const(-Infinity))
    if (masked) {
      const other = f.let(mask)
      eachRow(f, keys, scores, step, (at) => {
        for (let j = 0; j < vectors; j++) {
          f.store(at, f32x4.add(v128.load(at, 16 * j), v128.load(other, 16 * j)), 16 * j)
        }
        other.set(other.add(16 * vectors))
      })
    }
    f.if(limited, () => {
      const lows = Array.from({ length: vectors }, (_, j) => f.let(i32x4.add(i32x4.splat(low), lanes(j))))
      const highs = Array.from({ length: vectors }, (_, j) => f.let(i32x4.add(i32x4.splat(high), lanes(j))))
      eachRow(f, keys, scores, step, (at, r) => {
        const key = f.let(i32x4.splat(r.add(firstKey)))
        for (let j = 0; j < vectors; j++) {
          const seen = v128.andnot(i32x4.gtS(key, lows[j]), i32x4.gtS(key, highs[j]))
          f.store(at, v128.bitselect(v128.load(at, 16 * j), hidden, seen), 16 * j)
        }
      })
    })
  })
}

/** What `loadMask` needs. */
export interface MaskPlace {
  readonly pack: PackFunc
  readonly type: MaskType
  readonly vectors: number
}

/**
 * Emits: mask[query][key] for a panel → rows of keys in scratch memory, as numbers to add (0 or −∞ for a
 * bool). Lanes without a query keep whatever they hold: nothing of theirs is used, but they must not slow
 * others down, so the panel is zeroed when it is set up.
 */
export function loadMask(
  f: FunctionBuilder,
  { pack, type, vectors }: MaskPlace,
  to: I32,
  from: I32,
  rowStep: I32,
  keyStep: I32,
  keys: I32,
  queries: I32,
): void {
  if (type === 'float32') f.call(pack, to, 16 * vectors, from, keyStep, rowStep, keys, queries)
  else if (type === 'bool') {
    f.for(0, queries, 1, (q) => {
      const p = f.let(from.add(q.mul(rowStep)))
      const out = f.let(to.add(q.shl(2)))
      f.for(0, keys, 1, () => {
        f.store(out, i32.load8U(p).eqz().mul(0xff800000))
        p.set(p.add(keyStep))
        out.set(out.add(16 * vectors))
      })
    })
  }
}
