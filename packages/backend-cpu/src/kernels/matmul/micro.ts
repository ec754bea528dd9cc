/**
 * The micro-kernel of every matrix product in this package: a tile of `rows` × 4·`vectors` sums kept in
 * registers,
 *
 *   acc[i][j] = Σₖ a(i, k) · b(k, j)
 *
 * with one load per vector of b, one splat load per element of a, and `rows · vectors` multiply-adds per k.
 * The sum over k is one chain per element, in order, whatever the tile: results do not depend on where tiles
 * were cut.
 *
 * LADDER.md beside this file has all tiles that were measured. The best, per core of a Zen 4 with data in L2: 2×16 on Node
 * 20 (53.9 GFLOP/s), 6×8 on Node 24 (57.2), 6×16 revectorized (113.7 of 118.2).
 *
 * V8 11 schedules all loads of a basic block before the arithmetic: rows + vectors + rows · vectors registers
 * must fit in 15, so it takes no unrolling and no 6×8. The revectoriser needs pairs of vectors.
 *
 * Reference: `matmul` in core's reference/kernels.ts. Test: matmul.test.ts.
 */

import type { Features } from '../../machine/features.ts'
import { nodeMajor } from '../../machine/node.ts'
import {
  type FunctionBuilder,
  f32x4,
  type I32,
  type I32In,
  i32x4,
  type V128,
  type Var,
  v128,
} from '../../wasm/index.ts'

/** Rows, vectors of four columns, and how many steps of k one round of the loop makes. */
export interface Tile {
  readonly rows: number
  readonly vectors: number
  readonly unroll: number
}

/** The best tile known for this engine; unknown ones get what no engine is slow with. */
export function tileFor(features: Features): Tile {
  if (features.revectorized) return { rows: 6, vectors: 4, unroll: 2 }
  if (nodeMajor() >= 24) return { rows: 6, vectors: 2, unroll: 2 }
  return features.relaxed ? { rows: 2, vectors: 4, unroll: 1 } : { rows: 4, vectors: 2, unroll: 1 }
}

/**
 * The tile for the last panel, of fewer vectors: with more rows, since it takes about 8 sums to hide their
 * latency.
 */
export function narrow(tile: Tile, vectors: number): Tile {
  if (vectors === tile.vectors || (tile.vectors === 4 && tile.rows === 6 && vectors === 2))
    return { ...tile, vectors }
  return { ...tile, vectors, rows: Math.floor((15 - vectors) / (vectors + 1)) }
}

export type Number32 = 'float32' | 'int32'

/** Multiply-add of either type of number: for int32, products and sums wrap. */
export const madd: Readonly<Record<Number32, (a: V128, b: V128, c: V128) => V128>> = {
  float32: f32x4.madd,
  int32: (a, b, c) => i32x4.add(i32x4.mul(a, b), c),
}
export const add: Readonly<Record<Number32, (a: V128, b: V128) => V128>> = {
  float32: f32x4.add,
  int32: i32x4.add,
}

/** The places of the operands of one tile. Strides are bytes. */
export interface Operands {
  readonly tile: Tile
  readonly type?: Number32
  /** How many steps of k; may be 0. */
  readonly k: I32
  readonly a: I32
  /** Distance of a's rows, where `aStep` is 4; ignored, and rows are 4 bytes apart, where it is not given. */
  readonly aRow?: I32
  /** Distance of a's elements along k, for rows that are 4 bytes apart. */
  readonly aStep?: I32In
  /** Rows that exist, if not all: the others read the last one again. Only with `aRow`. */
  readonly aRows?: I32
  readonly b: I32
  /** Distance of b's rows; its columns are 4 bytes apart. */
  readonly bStep: I32In
}

/** Emits the loop over k; the sums come as variables, by row and vector. */
export function multiply(f: FunctionBuilder, o: Operands): Var<'v128'>[][] {
  const { rows, vectors, unroll } = o.tile
  const fma = madd[o.type ?? 'float32']
  const zero = f32x4.const(0)
  const acc = Array.from({ length: rows }, () => Array.from({ length: vectors }, () => f.let(zero)))
  const b = f.let(o.b)
  // Either one pointer per row of a, which walk along k by constants, or one pointer for all rows.
  const a = [f.let(o.a)]
  if (o.aRow !== undefined) {
    for (let i = 1; i < rows; i++) {
      const last = a[i - 1]
      const step = o.aRows === undefined ? o.aRow : i32Mask(o.aRow, o.aRows.gtS(i))
      a.push(f.let(last.add(step)))
    }
  }
  // A constant stride of b goes into the offsets of the loads, and is added once per round.
  const fixed = typeof o.bStep === 'number' ? o.bStep : undefined
  const step = (count: number): void => {
    for (let t = 0; t < count; t++) {
      const offset = fixed === undefined ? 0 : t * fixed
      const bs = acc[0].map((_, j) => f.let(v128.load(b, offset + 16 * j)))
      for (let i = 0; i < rows; i++) {
        const x = f.let(o.aRow !== undefined ? v128.load32Splat(a[i], 4 * t) : v128.load32Splat(a[0], 4 * i))
        for (let j = 0; j < vectors; j++) acc[i][j].set(fma(x, bs[j], acc[i][j]))
      }
      if (o.aStep !== undefined) a[0].set(a[0].add(o.aStep))
      if (fixed === undefined) b.set(b.add(o.bStep))
    }
    if (o.aStep === undefined) for (const pointer of a) pointer.set(pointer.add(4 * count))
    if (fixed !== undefined) b.set(b.add(count * fixed))
  }
  const until = (k: I32, count: number): void => {
    const end = f.let(b.add(k.mul(o.bStep)))
    f.while(b.ne(end), () => step(count))
  }
  if (unroll === 1) until(o.k, 1)
  else {
    const rest = f.let(o.k.and(unroll - 1))
    until(o.k.sub(rest), unroll)
    until(rest, 1)
  }
  return acc
}

/** x where the condition is 1, 0 where it is 0. */
const i32Mask = (x: I32, condition: I32): I32 => x.mul(condition)
