/**
 * What row kernels share: walking the rows of strided operands, and folding one contiguous row.
 *
 * A *nest* is a loop nest over some dims with the strides of several operands. `collapse` of core merges dims that all
 * operands walk as one, so that most nests have 0 or 1 dims; the emitted code is made for the number of dims, and
 * sizes and strides come as parameters.
 */

import { dtypeInfo, layout, type View } from '@tilegrad/core'
import { collapse, denseFrom, type Nest } from '@tilegrad/core/kernel'
import type { Block, Parts, ValuesOf } from '../block.ts'
import type { Engine } from '../engine.ts'
import {
  type Exprs,
  type FunctionBuilder,
  f32x4,
  f64,
  type I32,
  type I32In,
  i32,
  i32x4,
  type ModuleBuilder,
  type V128,
  type Var,
  v128,
} from '../wasm/index.ts'

/** The nest of the first `lead` dims of several views of equal leading sizes. */
export const leadingNest = (lead: number, views: readonly View[]): Nest =>
  collapse(
    views[0].shape.slice(0, lead),
    views.map((v) => v.strides.slice(0, lead)),
  )

/** Parameters by name, of a block of so many words. */
interface Named {
  readonly offsets: { readonly size: number }
}

/**
 * Writes the words that `walk` reads, behind a kernel's parameters; `bytes`: size of an element per operand. A second nest
 * lies behind the first one.
 */
export function writeNest(
  engine: Engine,
  { offsets }: Named,
  nest: Nest,
  bytes: readonly number[],
  inner?: Nest,
  innerBytes: readonly number[] = [],
): void {
  const { i32 } = engine.memory
  let at = (engine.params >>> 2) + offsets.size
  const put = ({ sizes, strides }: Nest, bytes: readonly number[]): void => {
    for (let d = 0; d < sizes.length; d++) i32[at++] = sizes[d]
    for (let k = 0; k < strides.length; k++)
      for (let d = 0; d < sizes.length; d++) i32[at++] = strides[k][d] * bytes[k]
  }
  put(nest, bytes)
  if (inner) put(inner, innerBytes)
}

/** Reads the words of nests one by one, in the order in which `writeNest` has put them behind named parameters. */
export class Words {
  readonly #f: FunctionBuilder
  readonly #params: I32
  #next: number

  constructor(f: FunctionBuilder, params: I32, { offsets: { size } }: Named) {
    this.#f = f
    this.#params = params
    this.#next = size
  }

  /** A reader that goes on from here: for code in a loop, which reads the same words in every iteration. */
  fork(): Words {
    return new Words(this.#f, this.#params, { offsets: { size: this.#next } })
  }

  i32(): Var<'i32'> {
    return this.#f.let(i32.load(this.#params, 4 * this.#next++))
  }
}

/** The places of the operands of a nest; `next` steps all of them to the next row. */
export interface Walk {
  readonly at: readonly Var<'i32'>[]
  next(): void
}

/** Emits pointers to row `start` of a nest of `dims` dims, from the operands' base addresses and the words. */
export function walk(
  f: FunctionBuilder,
  words: Words,
  dims: number,
  bases: readonly I32[],
  start: I32,
): Walk {
  const sizes = Array.from({ length: dims }, () => words.i32())
  const strides = bases.map(() => Array.from({ length: dims }, () => words.i32()))
  const at = bases.map((base) => f.let(base))
  const coords: Var<'i32'>[] = []
  const rest = f.let(start)
  for (let d = dims - 1; d >= 0; d--) {
    const coord = f.let(d === 0 ? rest : rest.remU(sizes[d]))
    if (d > 0) rest.set(rest.divU(sizes[d]))
    coords[d] = coord
    for (let k = 0; k < at.length; k++) at[k].set(at[k].add(coord.mul(strides[k][d])))
  }
  const step = (d: number): void => {
    for (let k = 0; k < at.length; k++) at[k].set(at[k].add(strides[k][d]))
    if (d === 0) return
    coords[d].set(coords[d].add(1))
    f.if(coords[d].eq(sizes[d]), () => {
      coords[d].set(0)
      for (let k = 0; k < at.length; k++) at[k].set(at[k].sub(sizes[d].mul(strides[k][d])))
      step(d - 1)
    })
  }
  return { at, next: () => dims > 0 && step(dims - 1) }
}

/** Runs `body` for rows [start, end) of a nest, with pointers to each operand's row. */
export function eachRow(
  f: FunctionBuilder,
  words: Words,
  dims: number,
  bases: readonly I32[],
  start: I32,
  end: I32,
  body: (at: readonly Var<'i32'>[], row: Var<'i32'>) => void,
): void {
  const w = walk(f, words, dims, bases, start)
  f.for(start, end, 1, (row) => {
    body(w.at, row)
    w.next()
  })
}

/** Four elements of a row of 4-byte elements, or one in lane 0: kernels are written once for both. */
export interface Vector {
  readonly lanes: 4 | 1
  /** 4 × the index of the first element of its group. */
  readonly byte: Var<'i32'>
  /** The vector's number in the group. */
  readonly slot: number
  /** Loads these elements of the row at an address. */
  load(row: I32): V128
  /** Stores to the row at an address, once all of the group is computed. */
  store(row: I32, value: V128): void
}

/**
 * Runs `body` for elements [start, end), `unroll` vectors at a time (a group), then vector by vector, then one by one.
 * The stores of a group come last, those to one row together: V8 can make one instruction of 256 bits of two vectors
 * whose stores follow each other.
 */
export function eachVector(
  f: FunctionBuilder,
  start: I32In,
  end: I32In,
  unroll: number,
  body: (v: Vector) => void,
): void {
  const widths = unroll > 1 ? [4 * unroll, 4, 1] : [4, 1]
  f.strips(start, end, widths, (i, width) => {
    const byte = f.let(i.shl(2))
    const lanes = width === 1 ? 1 : 4
    const stores: { row: I32; slot: number; value: V128 }[] = []
    const pointers = new Map<I32, I32>()
    const pointer = (row: I32): I32 => {
      const known = pointers.get(row) ?? f.let(row.add(byte))
      pointers.set(row, known)
      return known
    }
    for (let slot = 0; slot < width / lanes; slot++) {
      body({
        lanes,
        byte,
        slot,
        load: (row) => (lanes === 4 ? v128.load : v128.load32Zero)(pointer(row), 16 * slot),
        store: (row, value) => stores.push({ row, slot, value: f.let(value) }),
      })
    }
    for (const row of new Set(stores.map((s) => s.row))) {
      const at = pointer(row)
      for (const s of stores.filter((s) => s.row === row)) {
        if (lanes === 4) f.store(at, s.value, 16 * s.slot)
        else f.storeLane(32, at, s.value, 0)
      }
    }
  })
}

/** How values are put together: four lanes at a time, and one at a time in a type of more precision. */
export interface Fold<T extends 'f64' | 'i32' = 'f64' | 'i32'> {
  readonly type: T
  readonly neutral: number
  /** The neutral element in every lane. */
  lanes(): V128
  vector(a: V128, b: V128): V128
  /** A quicker `vector` that is blind to NaN: `foldRow` then looks for NaN itself. */
  readonly blind?: ((a: V128, b: V128) => V128) | null
  scalar(a: Exprs[T], b: Exprs[T]): Exprs[T]
  /** One lane in the type of totals. */
  lane(v: V128, lane: number): Exprs[T]
}

const f32Lane = (v: V128, lane: number): Exprs['f64'] => f64.promoteF32(f32x4.extractLane(v, lane))
const floatFold = (op: 'add' | 'mul' | 'max' | 'min', neutral: number): Fold<'f64'> => ({
  type: 'f64',
  neutral,
  lanes: () => f32x4.const(neutral),
  vector: f32x4[op],
  scalar: f64[op],
  lane: f32Lane,
  // Lane-wise max and min that propagate NaN take about 7 instructions on x86.
  ...(op === 'max' && { blind: f32x4.pmax }),
  ...(op === 'min' && { blind: f32x4.pmin }),
})
const intFold = (
  neutral: number,
  vector: (a: V128, b: V128) => V128,
  scalar: (a: Exprs['i32'], b: Exprs['i32']) => Exprs['i32'],
): Fold<'i32'> => ({
  type: 'i32',
  neutral,
  lanes: () => i32x4.const(neutral),
  vector,
  scalar,
  lane: (v, lane) => i32x4.extractLane(v, lane),
})

/** float32, with totals in float64; max and min give NaN if there is one. */
export const floatFolds = {
  sum: floatFold('add', 0),
  prod: floatFold('mul', 1),
  max: floatFold('max', -Infinity),
  min: floatFold('min', Infinity),
} as const

/** int32; sums and products wrap. */
export const intFolds = {
  sum: intFold(0, i32x4.add, i32.add),
  prod: intFold(1, i32x4.mul, i32.mul),
  max: intFold(-0x80000000, i32x4.maxS, (a, b) => i32.select(a.gtS(b), a, b)),
  min: intFold(0x7fffffff, i32x4.minS, (a, b) => i32.select(a.ltS(b), a, b)),
} as const

/** A variable of a fold's total, at its neutral element. */
export function total<T extends 'f64' | 'i32'>(f: FunctionBuilder, fold: Fold<T>): Var<T> {
  return (fold.type === 'f64' ? f.local.f64(fold.neutral) : f.local.i32(fold.neutral)) as unknown as Var<T>
}

/** Elements that are added up in float32 lanes before they go into a float64 total: keeps rounding small. */
const blockElements = 1024

/** A vector, or the product of two, which then takes no instruction of its own. */
export type Term = V128 | readonly [V128, V128]

/**
 * Folds n terms into `totals`, several totals at once: `term` gives one vector per total for each vector of the row
 * (it may also store); products only to sums. Blocks of 1024 in `unroll` accumulators per total, the blocks' results
 * in float64 (or int32).
 */
export function foldRow<T extends 'f64' | 'i32'>(
  f: FunctionBuilder,
  n: I32,
  unroll: number,
  fold: Fold<T>,
  totals: readonly Var<T>[],
  term: (v: Vector) => readonly Term[],
): void {
  const vector = fold.blind ?? fold.vector
  f.for(0, n, blockElements, (block) => {
    const left = f.let(n.sub(block))
    const end = f.let(block.add(i32.select(left.ltS(blockElements), left, blockElements)))
    const acc = totals.map(() => Array.from({ length: unroll }, () => f.local.v128(fold.lanes())))
    const nan = totals.map(() => (fold.blind ? [0, 1].map(() => f.local.v128(i32x4.const(0))) : []))
    eachVector(f, block, end, unroll, (v) => {
      term(v).forEach((value, k) => {
        const [a, b] = Array.isArray(value) ? (value as readonly V128[]) : [value as V128]
        const sum = acc[k][v.slot]
        if (v.lanes === 1) {
          const single = fold.lane(b ? f32x4.mul(a, b) : a, 0)
          totals[k].set(fold.scalar(totals[k] as Exprs[T], single) as never)
        } else if (b) sum.set(f32x4.madd(a, b, sum))
        else if (!fold.blind) sum.set(vector(sum, a))
        else {
          const x = f.let(a)
          sum.set(vector(sum, x))
          nan[k][v.slot % 2].set(v128.or(nan[k][v.slot % 2], f32x4.ne(x, x)))
        }
      })
    })
    acc.forEach((parts, k) => {
      for (let step = 1; step < unroll; step *= 2) {
        for (let i = 0; i + step < unroll; i += 2 * step) parts[i].set(vector(parts[i], parts[i + step]))
      }
      const lane = (i: number): Exprs[T] => fold.lane(parts[0], i)
      const lanes = fold.scalar(fold.scalar(lane(0), lane(1)), fold.scalar(lane(2), lane(3)))
      totals[k].set(fold.scalar(totals[k] as Exprs[T], lanes) as never)
      const [even, odd] = nan[k]
      if (even && odd) f.if(v128.anyTrue(v128.or(even, odd)), () => totals[k].set(Number.NaN as never))
    })
  })
}

/** Elements per chunk where each costs a tenth of a nanosecond, not half a one: copies, sums. */
export const streamGrain = 32768

/** Rows per chunk, so that a chunk is worth a thread's while: a few microseconds. */
export const grainOf = (elementsPerRow: number, elements = 16384): number =>
  Math.max(1, Math.ceil(elements / Math.max(1, elementsPerRow)))

/** The largest of a row of floats as far as comparisons tell: for code that meets a NaN again later. */
export const blindMax: Fold<'f64'> = { ...floatFold('max', -Infinity), vector: f32x4.pmax, blind: null }

/** Whether a view has a last dim and that is dense. */
export const denseRows = (view: View): boolean =>
  view.shape.length > 0 && denseFrom(view.shape.length - 1, view)

/**
 * Runs a kernel on the rows of several views that agree in their first `lead` dims. Behind its parameters lie the words of
 * the nest; `build` is told how many dims that has. `n`: elements of a row.
 */
export function runRows<P extends Parts>(
  engine: Engine,
  key: string,
  views: readonly View[],
  lead: number,
  n: number,
  params: Block<P>,
  values: ValuesOf<P>,
  build: (m: ModuleBuilder, rank: number) => void,
): void {
  const nest = leadingNest(lead, views)
  const rank = nest.sizes.length
  const kernel = engine.kernel(`${key} ${rank}`, (m) => build(m, rank))
  params.write(engine, values)
  writeNest(
    engine,
    params,
    nest,
    views.map((v) => dtypeInfo[v.dtype].bytes),
  )
  engine.launch(kernel, layout.numel(nest.sizes), grainOf(n))
}
