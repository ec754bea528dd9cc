/**
 * The code of an elementwise kernel for one class of layouts. It covers elements [start, end) of the output in
 * row-major order: an odometer over the outer dims, and along the innermost one strips of 16 or 8, 4 and 1.
 *
 * Where an input is denser along another dim (it is transposed), tiles of 16 × 8 instead, so that the cache lines of
 * that input are used up while they are there: [start, end) then counts bands of 16 rows. Inputs that are dense along
 * that dim are read by 4 × 4 and transposed in registers. Copy of a transposed [2048, 2048], 2 threads: row by row
 * 47.8 ms, in tiles 9.0 ms, with transposition 3.0 ms.
 *
 * Nodes are computed as rarely as they can be: those of constants and params once per call, those that are the same
 * along the innermost dim once per row, the rest for every 4 elements.
 *
 * Reference: `elementwise` in core's reference/kernels.ts. Test: elementwise.test.ts.
 */

import { type DType, dtypeInfo, type Typed, type TypedProgram, typedPostOrder } from '@tilegrad/core'
import { costOf, type Leaf, lowerNodes, type Powers, type Values } from '../../lowering/expressions.ts'
import { hoistConstants } from '../../lowering/math.ts'
import {
  type Func,
  type FunctionBuilder,
  type I32,
  i32,
  i32x4,
  type ModuleBuilder,
  type V128,
  type Var,
  v128,
} from '../../wasm/index.ts'
import { type Access, ahead, load, loadAcross, type Operand, store, storeConstants } from './access.ts'

/** A class of layouts. */
export interface Variant {
  /** How many dims lie around the innermost one. */
  readonly outer: number
  /** The access of every operand, outputs first. */
  readonly access: readonly Access[]
  /** Whether the last outer dim and the innermost one are walked in tiles, which never are where elements are numbered. */
  readonly tiled: boolean
  readonly powers: Powers
}

/** Rows of a tile: as many float32 as a cache line has. Columns: no more than fit the ways of a cache set. */
export const tileRows = 16
const tileColumns = 8

/**
 * The parameter block, in words: address of every operand; values of the kernel's params (bools as masks); then,
 * unless the layout is flat (one dim, no strides): sizes from the outermost dim to the innermost; strides in bytes of
 * every operand in the same order.
 */
export const wordsOf = (kernel: TypedProgram, outer: number) => {
  const operands = kernel.exprs.length + kernel.inputs.length
  const params = operands
  const sizes = params + kernel.params.length
  const dims = outer + 1
  const strides = sizes + dims
  return { params, sizes, stride: (operand: number, dim: number): number => strides + operand * dims + dim }
}

/** Finds how often nodes are computed: 0 once per call, 1 once per row, 2 for every element. */
function levels(
  kernel: TypedProgram,
  order: readonly Typed[],
  { access, outer }: Variant,
): Map<Typed, number> {
  const level = new Map<Typed, number>()
  for (const t of order) {
    let n = 0
    if (t.kind === 'input') n = access[kernel.exprs.length + t.index] === 'zero' ? 1 : 2
    else if (t.kind === 'index') n = 2
    else if (t.kind === 'coord') n = t.dim === -1 ? 2 : -t.dim > outer + 1 ? 0 : 1
    for (const arg of t.args) n = Math.max(n, level.get(arg) as number)
    level.set(t, n)
  }
  return level
}

/** What leaves of an expression read; each level of nodes needs some of it. */
interface Place {
  readonly input?: (index: number) => V128
  readonly index?: () => V128
  readonly column?: () => V128
  /** The coordinates along the outer dims. */
  readonly coords?: readonly I32[]
}

/** Adds the kernel to a module, as `main`. */
export function buildElementwise(m: ModuleBuilder, kernel: TypedProgram, variant: Variant): Func {
  return m.kernel('main', (f, start, end, params) => {
    const word = (i: number): Var<'i32'> => f.let(i32.load(params, 4 * i))
    const body = new Body(f, params, kernel, variant, word)
    const { outer, tiled } = variant
    const { words, operands } = body
    const bases = operands.map((_, o) => word(o))

    if (outer === 0) {
      const firsts = bases.map((base, o) => ahead(f, operands[o] as Operand, base, start))
      body.row(firsts, start, start, end.sub(start), [])
      return
    }

    const sizes = Array.from({ length: outer + 1 }, (_, d) => word(words.sizes + d))
    const inner = sizes[outer] as I32
    const steps = operands.map((_, o) => sizes.slice(0, outer).map((_, d) => word(words.stride(o, d))))
    /** Takes a number apart into coordinates of dims [0, dims), the last fastest. */
    const coordinates = (index: I32, dims: number): Var<'i32'>[] => {
      const coords = new Array<Var<'i32'>>(dims)
      let rest = index
      for (let d = dims - 1; d > 0; d--) {
        coords[d] = f.local.i32(rest.remU(sizes[d] as I32))
        rest = f.let(rest.divU(sizes[d] as I32))
      }
      if (dims > 0) coords[0] = f.local.i32(rest)
      return coords
    }
    const pointersAt = (coords: readonly I32[]): Var<'i32'>[] =>
      bases.map((base, o) =>
        f.local.i32(coords.reduce((sum: I32, c, d) => sum.add(c.mul(steps[o]?.[d] as I32)), base)),
      )
    const move = (pointers: readonly Var<'i32'>[], by: (o: number) => I32): void => {
      pointers.forEach((p, o) => {
        p.set(p.add(by(o)))
      })
    }

    if (tiled) {
      const rows = sizes[outer - 1] as I32
      const bands = f.let(rows.add(tileRows - 1).divU(tileRows))
      const toRow = steps.map((s) => s[outer - 1] as I32)
      const toRow4 = toRow.map((s) => f.let(s.shl(2)))
      f.for(start, end, 1, (unit) => {
        const band = f.let(unit.remU(bands).mul(tileRows))
        const height = least(f, rows.sub(band), tileRows)
        const fours = f.let(height.and(-4))
        const pointers = pointersAt([...coordinates(f.let(unit.divU(bands)), outer - 1), band])
        f.for(0, inner, tileColumns, (column) => {
          const width = least(f, inner.sub(column), tileColumns)
          const firsts = pointers.map((p, o) => f.local.i32(ahead(f, operands[o] as Operand, p, column)))
          const row = f.local.i32(0)
          f.if(width.eq(tileColumns), () => {
            f.while(row.ltS(fours), () => {
              for (let c = 0; c < tileColumns; c += 4) {
                body.block(
                  firsts.map((p, o) => ahead(f, operands[o] as Operand, p, c)),
                  toRow,
                )
              }
              move(firsts, (o) => toRow4[o] as I32)
              row.set(row.add(4))
            })
          })
          f.while(row.ltS(height), () => {
            body.row(firsts, column, column, width, [])
            move(firsts, (o) => toRow[o] as I32)
            row.set(row.add(1))
          })
        })
      })
      return
    }

    const row = f.let(start.divU(inner))
    const column = f.local.i32(start.sub(row.mul(inner)))
    const coords = coordinates(row, outer)
    const pointers = pointersAt(coords)
    const i = f.local.i32(start)
    const advance = (d: number): void => {
      const coord = coords[d] as Var<'i32'>
      coord.set(coord.add(1))
      move(pointers, (o) => steps[o]?.[d] as I32)
      if (d === 0) return
      const size = sizes[d] as I32
      f.if(coord.eq(size), () => {
        coord.set(0)
        move(pointers, (o) => size.mul(steps[o]?.[d] as I32).mul(-1))
        advance(d - 1)
      })
    }
    f.while(i.ltS(end), () => {
      const count = least(f, inner.sub(column), end.sub(i))
      const firsts = pointers.map((p, o) => ahead(f, operands[o] as Operand, p, column))
      body.row(firsts, i, column, count, coords)
      i.set(i.add(count))
      column.set(0)
      advance(outer - 1)
    })
  })
}

/** The innermost loops, and what they share. */
class Body {
  readonly words: ReturnType<typeof wordsOf>
  /** Outputs, then inputs. */
  readonly operands: readonly Operand[]
  readonly #f: FunctionBuilder
  readonly #k
  readonly #kernel: TypedProgram
  readonly #variant: Variant
  readonly #params: I32
  /** Nodes by level. */
  readonly #nodes: readonly (readonly Typed[])[]
  readonly #once: Values = new Map()
  /** 0, 1, 2, 3, … in vectors: what is added to the number of a strip's first element. */
  readonly #iota: readonly V128[]
  readonly #widths: readonly number[]

  constructor(
    f: FunctionBuilder,
    params: I32,
    kernel: TypedProgram,
    variant: Variant,
    word: (i: number) => I32,
  ) {
    const { access, outer, tiled, powers } = variant
    this.#f = f
    this.#params = params
    this.#kernel = kernel
    this.#variant = variant
    this.words = wordsOf(kernel, outer)
    const order = typedPostOrder(kernel.exprs)
    const level = levels(kernel, order, variant)
    this.#nodes = [0, 1, 2].map((n) => order.filter((t) => level.get(t) === n))
    const cost = (this.#nodes[2] as Typed[]).reduce((sum, t) => sum + costOf(t), 0)
    // Two vectors make one of 256 bits; not what branches (sin, cos) or is long in float64 (pow).
    const pairs = (this.#nodes[2] as Typed[]).every((t) => costOf(t) < 50)
    this.#widths = cost <= 8 && !tiled ? [16, 4, 1] : pairs && cost <= 160 ? [8, 4, 1] : [4, 1]
    const dtypes: DType[] = [...kernel.exprs.map((t) => t.dtype), ...kernel.inputs]
    this.#k = hoistConstants(f, (trial, constants, x) => {
      lowerNodes(trial, constants, order, new Map(), () => x, powers)
      storeConstants(
        trial,
        constants,
        kernel.exprs.map((t) => t.dtype),
      )
    })
    const counts = order.some((t) => t.kind === 'index' || (t.kind === 'coord' && t.dim === -1))
    const vectors = counts ? Math.max(1, (this.#widths[0] as number) / 4) : 0
    this.#iota = Array.from({ length: vectors }, (_, v) =>
      f.let(i32x4.const(4 * v, 4 * v + 1, 4 * v + 2, 4 * v + 3)),
    )
    this.#lower(0, this.#once, {})
    this.operands = dtypes.map((dtype, o): Operand => {
      const how = access[o] as Access
      const dense = how === 'unit' || how === 'zero'
      return {
        dtype,
        access: how,
        stride: dense ? dtypeInfo[dtype].bytes : word(this.words.stride(o, outer)),
      }
    })
  }

  /** `count` elements along the innermost dim; the first of them has a linear index and a column. */
  row(firsts: readonly I32[], index: I32, column: I32, count: I32, coords: readonly I32[]): void {
    const f = this.#f
    const outputs = this.#kernel.exprs.length
    const perRow: Values = new Map(this.#once)
    this.#lower(1, perRow, {
      input: (n) => load(f, this.operands[outputs + n] as Operand, firsts[outputs + n] as I32, 1),
      coords,
    })
    f.strips(0, count, this.#widths, (j, width) => {
      const here = firsts.map((p, o) => ahead(f, this.operands[o] as Operand, p, j))
      const first = (from: I32): V128 => f.let(i32x4.splat(from.add(j)))
      const [firstIndex, firstColumn] = this.#iota.length > 0 ? [first(index), first(column)] : []
      // Everything is read before anything is written: an output may be an input.
      const each = Array.from({ length: Math.max(1, width / 4) }, (_, v): Values => {
        const counting = (from: V128 | undefined) => (): V128 =>
          i32x4.add(from as V128, this.#iota[v] as V128)
        const input = (n: number): V128 => {
          const operand = this.operands[outputs + n] as Operand
          return load(f, operand, here[outputs + n] as I32, width === 1 ? 1 : 4, 4 * v)
        }
        return this.#lower('leaves', new Map(perRow), {
          input,
          index: counting(firstIndex),
          column: counting(firstColumn),
          coords,
        })
      })
      for (const values of each) this.#lower(2, values, {})
      this.#kernel.exprs.forEach((t, o) => {
        const results = each.map((values) => values.get(t) as V128)
        store(f, this.#k, this.operands[o] as Operand, here[o] as I32, results, width)
      })
    })
  }

  /** Four rows of four elements; `toRow`: bytes from row to row of every operand. */
  block(firsts: readonly I32[], toRow: readonly I32[]): void {
    const f = this.#f
    const outputs = this.#kernel.exprs.length
    const across = this.operands.map((operand, o) =>
      operand.access === 'across' ? loadAcross(f, operand, firsts[o] as I32) : undefined,
    )
    let here = firsts
    const rows = [0, 1, 2, 3].map((row) => {
      if (row > 0) here = here.map((p, o) => (across[o] === undefined ? f.let(p.add(toRow[o] as I32)) : p))
      const ptrs = here
      const input = (n: number): V128 =>
        across[outputs + n]?.[row] ??
        load(f, this.operands[outputs + n] as Operand, ptrs[outputs + n] as I32, 4)
      const values = this.#lower(1, new Map(this.#once), { input })
      return { ptrs, values: this.#lower('leaves', values, { input }) }
    })
    for (const { values } of rows) this.#lower(2, values, {})
    for (const { ptrs, values } of rows) {
      this.#kernel.exprs.forEach((t, o) => {
        store(f, this.#k, this.operands[o] as Operand, ptrs[o] as I32, [values.get(t) as V128], 4)
      })
    }
  }

  /** Emits the nodes of a level, or only those of level 2 that are leaves. */
  #lower(level: 0 | 1 | 2 | 'leaves', values: Values, place: Place): Values {
    const nodes = level === 'leaves' ? this.#nodes[2]?.filter((t) => t.args.length === 0) : this.#nodes[level]
    lowerNodes(
      this.#f,
      this.#k,
      nodes as readonly Typed[],
      values,
      (t) => this.#leaf(t, place),
      this.#variant.powers,
    )
    return values
  }

  #leaf(t: Leaf, { input, index, column, coords }: Place): V128 {
    const { outer } = this.#variant
    switch (t.kind) {
      case 'param':
        return v128.load32Splat(this.#params, 4 * (this.words.params + t.slot))
      case 'input':
        return (input as (index: number) => V128)(t.index)
      case 'index':
        return (index as () => V128)()
      case 'coord':
        if (t.dim === -1) return (column as () => V128)()
        return i32x4.splat(-t.dim > outer + 1 ? 0 : ((coords as readonly I32[])[outer + 1 + t.dim] as I32))
    }
  }
}

function least(f: FunctionBuilder, a: I32, b: I32 | number): Var<'i32'> {
  const [x, y] = [f.let(a), typeof b === 'number' ? b : f.let(b)]
  return f.let(i32.select(x.ltS(y), x, y))
}
