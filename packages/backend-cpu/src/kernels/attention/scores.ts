/**
 * What happens to a panel of scores beside the softmax: ALiBi, a mask, what queries do not see, and dropout.
 */

import type { TypedProgram } from '@tilegrad/core'
import { lowerTyped } from '../../lowering/expressions.ts'
import { hoistConstants } from '../../lowering/math.ts'
import {
  type Func,
  type FunctionBuilder,
  f32x4,
  type I32,
  i32,
  i32x4,
  type ModuleBuilder,
  type V128,
  v128,
} from '../../wasm/index.ts'
import type { PackFunc } from '../matmul/pack.ts'
import { eachRow, type Form, type MaskType, reader } from './blocks.ts'

/** Numbers of queries in the lanes of the vectors of a panel, from `first` on. */
const queriesOf = (f: FunctionBuilder, vectors: number, first: I32) =>
  Array.from({ length: vectors }, (_, j) =>
    f.let(i32x4.add(i32x4.splat(first), i32x4.const(4 * j, 4 * j + 1, 4 * j + 2, 4 * j + 3))),
  )

const hideParams = ['i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32', 'i32'] as const
export type HideFunc = Func<typeof hideParams, null>

/** Whether `hideFunc` has something to do beside hiding. */
export const adjusts = ({ mask, alibi }: Form): boolean => mask !== 'none' || alibi

/**
 * Adds ALiBi and the mask to scores, and hides what queries do not see. Parameters: parameter block; scores, number of
 * keys, number of the first key; number of the first query, its head; 1 if some query of the panel does not see some
 * key; then the mask's scratch panel, and the distance of its rows is that of scores.
 */
export function hideFunc(m: ModuleBuilder, { tile, mask, alibi, careful }: Form, step: number): HideFunc {
  const { vectors } = tile
  return m.func(hideParams, (f, params, scores, keys, firstKey, first, h, limited, maskPanel) => {
    const word = reader(params)
    const hidden = f.let(f32x4.const(-Infinity))
    const eachVector = (at: I32, change: (x: V128, j: number) => V128): void => {
      for (let j = 0; j < vectors; j++) f.store(at, change(v128.load(at, 16 * j), j), 16 * j)
    }
    if (alibi) {
      const slope = f.let(v128.load32Splat(word('slopesPtr').add(h.mul(word('slopesStep')))))
      const positions = queriesOf(f, vectors, f.let(first.add(word('offset'))))
      eachRow(f, keys, scores, step, (at, r) => {
        const key = f.let(i32x4.splat(r.add(firstKey)))
        eachVector(at, (x, j) =>
          f32x4.nmadd(slope, f32x4.convertI32x4S(i32x4.abs(i32x4.sub(positions[j] as V128, key))), x),
        )
      })
    }
    if (mask !== 'none') {
      const other = f.let(maskPanel)
      eachRow(f, keys, scores, step, (at) => {
        eachVector(at, (x, j) => {
          const add = f.let(v128.load(other, 16 * j))
          const sum = f32x4.add(x, add)
          // NaN + −∞ is NaN.
          return careful ? v128.bitselect(hidden, sum, f32x4.eq(add, hidden)) : sum
        })
        other.set(other.add(16 * vectors))
      })
    }
    f.if(limited, () => {
      const global = f.let(i32x4.splat(word('globalQueries')))
      const low = f.let(i32x4.splat(word('low')))
      const high = f.let(i32x4.splat(word('high')))
      const queries = queriesOf(f, vectors, first)
      const highs = queries.map((q) => f.let(i32x4.add(q, high)))
      // The window of a global query has no lower end: all ones are −1, below every key.
      const lows = queries.map((q) => f.let(v128.or(i32x4.add(q, low), i32x4.gtS(global, q))))
      eachRow(f, keys, scores, step, (at, r) => {
        const number = f.let(r.add(firstKey))
        const key = f.let(i32x4.splat(number))
        const everywhere = f.let(i32x4.splat(i32.const(0).sub(number.ltS(word('globalKeys')))))
        eachVector(at, (x, j) => {
          const near = v128.or(i32x4.gtS(key, lows[j] as V128), everywhere)
          return v128.bitselect(x, hidden, v128.andnot(near, i32x4.gtS(key, highs[j] as V128)))
        })
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

/** The number of the weight of a query and a key, as core's dropout counts them: in (B, H, T, S), modulo 2³². */
export function weightNumber(word: ReturnType<typeof reader>, b: I32, h: I32, query: I32, key: I32): I32 {
  const row = b.mul(word('heads')).add(h).mul(word('queries')).add(query)
  return row.mul(word('keys')).add(key)
}

/**
 * The factors of core's dropout for a panel, a row at a time from weight number `first` on: call it before the loop,
 * and its result once per row. Every backend, thread and pass draws the same numbers.
 */
export function keepFactors(
  f: FunctionBuilder,
  { exprs, params }: TypedProgram,
  vectors: number,
  word: ReturnType<typeof reader>,
  first: I32,
): () => V128[] {
  const k = hoistConstants(f, (trial, constants, x) => lowerTyped(trial, constants, exprs, () => x))
  const slots = params.map((_, slot) => f.let(i32x4.splat(word(dropWord(slot)))))
  const keys = f.let(i32x4.splat(word('keys')))
  const numbers = queriesOf(f, vectors, i32.const(0)).map((q) =>
    f.let(i32x4.add(i32x4.mul(q, keys), i32x4.splat(first))),
  )
  return () =>
    numbers.map((number) => {
      const [factor] = lowerTyped(f, k, exprs, (leaf) =>
        leaf.kind === 'param' ? (slots[leaf.slot] as V128) : number,
      )
      number.set(i32x4.add(number, 1))
      return factor as V128
    })
}

/** The name of the parameter that holds a param of dropout's expression. */
const dropWord = (slot: number): `drop${0 | 1 | 2 | 3 | 4}` => `drop${slot}` as `drop${0 | 1 | 2 | 3 | 4}`

const dropParams = ['i32', 'i32', 'i32', 'i32'] as const

/** Drops weights in place. Parameters: parameter block, weights, number of keys, number of the first weight. */
export function dropFunc(
  m: ModuleBuilder,
  kernel: TypedProgram,
  vectors: number,
  step: number,
): Func<typeof dropParams, null> {
  return m.func(dropParams, (f, params, weights, keys, first) => {
    const factors = keepFactors(f, kernel, vectors, reader(params), first)
    eachRow(f, keys, weights, step, (at) => {
      factors().forEach((factor, j) => f.store(at, f32x4.mul(v128.load(at, 16 * j), factor), 16 * j))
    })
  })
}
