/**
 * Operands of the products in `linear-attention/product.ts`: how each comes into scratch memory, as rows or
 * transposed, and what is done with a product's rows before they are stored.
 */

import type { FeatureMap } from '@tilegrad/core'
import { block, float, optional, tensor, word } from '../../block.ts'
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
  v128,
} from '../../wasm/index.ts'
import type { PackFunc } from '../matmul/pack.ts'

/** Rows per chunk. */
export const chunk = 32
/** What can be an operand: φ(q), φ(k), [v, 1], [dO, −rowsum(dO ∘ O)] / n, dO / n; without a normaliser v and dO. */
export type Operand =
  | 'phiQ'
  | 'phiK'
  | 'values'
  | 'gradients'
  | 'outGradients'
  | 'plainValues'
  | 'plainGradients'
export type Reach = 'past' | 'future' | 'all'
export type Pass = 'whole' | 'states' | 'outputs'
/** What becomes of Y: divided by its last column, times φ′ of q or k, or nothing. */
export type Finish = 'normalise' | 'phiQ' | 'phiK' | 'none'

export interface Product {
  readonly x: Operand
  readonly k: Operand
  readonly v: Operand
  readonly reach: Reach
  readonly finish: Finish
  /** Whether the decays between two rows fade what one is to the other, which they never do with reach 'all'. */
  readonly decay?: boolean
}

type TensorName = 'q' | 'k' | 'v' | 'out' | 'dout' | 'y' | 'decay'

export const productParams = block({
  q: tensor,
  k: tensor,
  v: tensor,
  heads: word,
  queries: word,
  /** D and Dv. */
  width: word,
  valueWidth: word,
  eps: float,
  /** n, (B, H, T), contiguous; `queries` are its T. */
  normPtr: word,
  decay: optional(tensor),
  out: optional(tensor),
  dout: optional(tensor),
  y: tensor,
  /** Rows of x, and of k and v. */
  rows: word,
  keys: word,
  /** Columns of x and k, and of v; and bytes of a row of v, padded to whole vectors. */
  inner: word,
  outer: word,
  outerStep: word,
  /** Bytes of a state. */
  stateBytes: word,
  /** The number of chunks of k and v per head. */
  keyChunks: word,
  scratch: word,
  scratchStep: word,
  /** States of all chunks, and how many there are per head. */
  statesPtr: word,
  /** The factor by which each chunk fades a state, a float32 each. */
  totalsPtr: word,
  chunks: word,
})
export const { reader } = productParams
export type Read = ReturnType<typeof reader>

export const rowOf = (word: Read, name: TensorName, b: I32, h: I32, row: I32): I32 =>
  word(`${name}Ptr`)
    .add(b.mul(word(`${name}Batch`)))
    .add(h.mul(word(`${name}Head`)))
    .add(row.mul(word(`${name}Row`)))

const addressOfNorm = (word: Read, b: I32, h: I32, row: I32): I32 =>
  word('normPtr').add(b.mul(word('heads')).add(h).mul(word('queries')).add(row).shl(2))

const loadParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
/**
 * Parameter block; batch item, head, first row, number of rows; where to, bytes between rows there; spare
 * memory for as much again.
 */
export type LoadFunc = Func<typeof loadParams, null>

/** φ of a vector. In this order of operands NaN stays NaN. */
function featureOf(f: FunctionBuilder, feature: FeatureMap): (x: V128) => V128 {
  if (feature === 'identity') return (x) => x
  if (feature === 'relu') return (x) => f32x4.pmax(x, ZERO)
  if (feature === 'exp') return mathF32x4(f, ['exp']).exp
  const { expNonPositive } = mathF32x4(f, ['expNonPositive'])
  return (x) => f32x4.add(f32x4.pmax(x, ZERO), expNonPositive(f32x4.pmin(x, ZERO)))
}

/** Multiplies y by φ′, which follows from φ. */
function emitSlope(feature: FeatureMap, y: V128, phi: V128): V128 {
  if (feature === 'relu') return v128.andnot(y, f32x4.le(phi, ZERO))
  return f32x4.mul(y, feature === 'exp' ? phi : f32x4.pmin(phi, 1))
}

/** Emits φ of rows of numbers, by whole vectors; from and to may be the same. */
function emitPhi(
  f: FunctionBuilder,
  feature: FeatureMap,
  from: I32,
  fromRow: I32,
  to: I32,
  toRow: I32,
  rows: I32,
  columns: I32,
): void {
  const phi = featureOf(f, feature)
  const source = f.let(from)
  const target = f.let(to)
  const padded = f.let(columns.add(3).and(-4))
  f.for(0, rows, 1, () => {
    const p = f.let(source)
    const q = f.let(target)
    f.strips(0, padded, [16, 4], (_, width) => {
      const xs = Array.from({ length: width / 4 }, (_, j) => f.let(v128.load(p, 16 * j)))
      const ys = xs.map((x) => f.let(phi(x)))
      ys.forEach((y, j) => f.store(q, y, 16 * j))
      p.set(p.add(4 * width))
      q.set(q.add(4 * width))
    })
    source.set(source.add(fromRow))
    target.set(target.add(toRow))
  })
}
const ZERO = f32x4.const(0)

const sourceOf = {
  phiQ: 'q',
  phiK: 'k',
  values: 'v',
  gradients: 'dout',
  outGradients: 'dout',
  plainValues: 'v',
  plainGradients: 'dout',
} as const
const isPlain = (operand: Operand): boolean => operand === 'plainValues' || operand === 'plainGradients'

/** Loads an operand as rows, padded to whole vectors. */
export function rowsFunc(m: ModuleBuilder, pack: PackFunc, operand: Operand, feature: FeatureMap): LoadFunc {
  return m.func(loadParams, (f, params, b, h, row, rows, to, toRow, spare) => {
    const word = reader(params)
    const name = sourceOf[operand]
    const phi = operand === 'phiQ' || operand === 'phiK'
    const columns = f.let(word(phi ? 'width' : 'valueWidth'))
    const from = f.let(rowOf(word, name, b, h, row))
    const fromRow = f.let(word(`${name}Row`))
    // φ reads whole vectors: in place only where that stays inside the rows.
    f.if(phi ? columns.and(3).or(word(`${name}Step`).ne(4)) : 1, () => {
      f.if(columns.and(3), () => f.fill(to, 0, rows.mul(toRow)))
      f.call(pack, to, toRow, from, fromRow, word(`${name}Step`), rows, columns)
      from.set(to)
      fromRow.set(toRow)
    })
    if (phi) emitPhi(f, feature, from, fromRow, to, toRow, rows, columns)
    else if (operand === 'values') {
      const one = f.let(to.add(columns.shl(2)))
      f.for(0, rows, 1, () => {
        f.store(one, f32.const(1))
        one.set(one.add(toRow))
      })
    } else if (!isPlain(operand)) {
      if (operand === 'gradients') {
        const out = rowOf(word, 'out', b, h, row)
        f.call(pack, spare, toRow, out, word('outRow'), word('outStep'), rows, columns)
      }
      const norm = f.let(addressOfNorm(word, b, h, row))
      f.for(0, rows, 1, () => {
        const inverse = f.let(f32x4.div(1, v128.load32Splat(norm)))
        const sum = f.let(ZERO)
        f.strips(0, columns, [4, 1], (c, width) => {
          const p = f.let(to.add(c.shl(2)))
          const load = (q: I32) => (width === 4 ? v128.load(q) : v128.load32Zero(q))
          const x = f.let(load(p))
          if (operand === 'gradients') sum.set(f32x4.madd(x, load(spare.add(c.shl(2))), sum))
          const y = f32x4.mul(x, inverse)
          if (width === 4) f.store(p, y)
          else f.storeLane(32, p, y, 0)
        })
        if (operand === 'gradients') {
          const pairs = f.let(f32x4.add(sum, i32x4.shuffle(sum, sum, [2, 3, 0, 1])))
          const total = f32x4.add(pairs, i32x4.shuffle(pairs, pairs, [1, 0, 3, 2]))
          f.storeLane(32, to.add(columns.shl(2)), f32x4.neg(f32x4.mul(total, inverse)), 0)
          spare.set(spare.add(toRow))
        }
        to.set(to.add(toRow))
        norm.set(norm.add(4))
      })
    }
  })
}

/**
 * Loads an operand transposed: a row per column, of `chunk` numbers; those without a row of the operand are
 * finite.
 */
export function columnsFunc(
  m: ModuleBuilder,
  pack: PackFunc,
  operand: Operand,
  feature: FeatureMap,
): LoadFunc {
  const step = 4 * chunk
  return m.func(loadParams, (f, params, b, h, row, rows, to, toRow, spare) => {
    const word = reader(params)
    const name = sourceOf[operand]
    const phi = operand === 'phiQ' || operand === 'phiK'
    const columns = f.let(word(phi ? 'width' : 'valueWidth'))
    const transpose = (source: 'q' | 'k' | 'v' | 'dout' | 'out', at: I32): void => {
      f.if(rows.ltS(chunk), () => f.fill(at, 0, columns.mul(step)))
      const from = rowOf(word, source, b, h, row)
      f.call(pack, at, step, from, word(`${source}Step`), word(`${source}Row`), columns, rows)
    }
    transpose(name, to)
    const last = f.let(to.add(columns.mul(step)))
    if (phi) emitPhi(f, feature, to, toRow, to, toRow, columns, i32.const(chunk))
    else if (operand === 'values') for (let i = 0; i < step; i += 16) f.store(last, f32x4.const(1), i)
    else if (!isPlain(operand)) {
      transpose('out', spare)
      // n of each row, with ones for rows that are not there, goes where the last row will be.
      for (let i = 0; i < step; i += 16) f.store(last, f32x4.const(1), i)
      f.copy(last, addressOfNorm(word, b, h, row), rows.shl(2))
      f.for(0, step, 64, (lane) => {
        const at = f.let(last.add(lane))
        const inverses = [0, 16, 32, 48].map((i) => f.let(f32x4.div(1, v128.load(at, i))))
        const sums = inverses.map(() => f.let(ZERO))
        const p = f.let(to.add(lane))
        const q = f.let(spare.add(lane))
        f.while(p.ne(at), () => {
          const xs = inverses.map((_, j) => f.let(v128.load(p, 16 * j)))
          xs.forEach((x, j) => sums[j].set(f32x4.madd(x, v128.load(q, 16 * j), sums[j])))
          const ys = xs.map((x, j) => f.let(f32x4.mul(x, inverses[j])))
          ys.forEach((y, j) => f.store(p, y, 16 * j))
          p.set(p.add(step))
          q.set(q.add(step))
        })
        sums.forEach((sum, j) => f.store(at, f32x4.neg(f32x4.mul(sum, inverses[j])), 16 * j))
      })
    }
  })
}

/**
 * Stores rows of Y: parameters as of `LoadFunc`, but for where from. `load` loads the operand of φ′ as rows.
 */
export function finishFunc(
  m: ModuleBuilder,
  pack: PackFunc,
  finish: Finish,
  feature: FeatureMap,
  load: LoadFunc | undefined,
): LoadFunc {
  return m.func(loadParams, (f, params, b, h, row, rows, from, fromRow, spare) => {
    const word = reader(params)
    const columns = f.let(word(finish === 'phiQ' || finish === 'phiK' ? 'width' : 'valueWidth'))
    const at = f.let(from)
    if (finish === 'normalise') {
      const eps = f.let(f32.load(params, productParams.offset('eps')))
      const last = f.let(from.add(columns.shl(2)))
      const norm = f.let(addressOfNorm(word, b, h, row))
      f.for(0, rows, 1, () => {
        const n = f.let(f32.load(last).add(eps))
        f.store(norm, n)
        const inverse = f.let(f32x4.div(1, f32x4.splat(n)))
        f.for(0, columns, 4, (c) => {
          const p = f.let(at.add(c.shl(2)))
          f.store(p, f32x4.mul(v128.load(p), inverse))
        })
        at.set(at.add(fromRow))
        last.set(last.add(fromRow))
        norm.set(norm.add(4))
      })
    } else if (load !== undefined) {
      f.call(load, params, b, h, row, rows, spare, fromRow, 0)
      const distance = f.let(spare.sub(from))
      f.for(0, rows, 1, () => {
        f.for(0, columns, 4, (c) => {
          const p = f.let(at.add(c.shl(2)))
          f.store(p, emitSlope(feature, v128.load(p), v128.load(p.add(distance))))
        })
        at.set(at.add(fromRow))
      })
    }
    f.call(pack, rowOf(word, 'y', b, h, row), word('yRow'), from, fromRow, 4, rows, columns)
  })
}
