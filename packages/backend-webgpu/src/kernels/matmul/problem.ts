/** The operands of a product as matrices: few sizes and strides, whatever the views were. */

import type { View } from '@tilegrad/core'
import { collapse, stridesOver } from '@tilegrad/core/kernel'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { type Lane, laneOf } from '../../wgsl/element.ts'

/** The place of a matrix; strides and offset in elements. `batch` holds its strides along the dims of the batch. */
export interface Matrix {
  buffer: GpuBuffer
  offset: number
  row: number
  column: number
  batch: number[]
  /** Its elements are float16. */
  half?: boolean
}

/** A product, outs = f(a (m, k) · b (k, n), extras), for every item of a batch. */
export interface Problem {
  m: number
  n: number
  k: number
  /** Items of the batch, over all its dims. */
  items: number
  /** Sizes of the dims of the batch. */
  sizes: number[]
  /** What a and b are; products of float16 are added up in float32. */
  type: 'f32' | 'i32' | 'f16'
  a: Matrix
  b: Matrix
  /** The outputs, all of one shape and layout class, to which extras broadcast (strides of 0). */
  outs: Matrix[]
  extras: Matrix[]
  /** a[i, j] is 0 where j − i > band, and need not be read there, but where it is read it is stored. */
  band?: number
}

/** The type that products are computed in; those of bools are sums of int32 before they come here. */
const types: Readonly<Record<Lane, Problem['type']>> = { float32: 'f32', int32: 'i32', bool: 'i32' }

/** Describes a product of operands of equal rank, or that broadcast (`b` and `extras`) to the rank of the outputs. */
export function problemOf(outs: readonly View[], a: View, b: View, extras: readonly View[] = []): Problem {
  const [{ shape }] = outs
  const d = shape.length - 2
  const p: Problem = {
    m: shape[d],
    n: shape[d + 1],
    k: a.shape.at(-1) as number,
    items: 1,
    sizes: shape.slice(0, d),
    type: a.dtype === 'float16' ? 'f16' : types[laneOf(a.dtype)],
    a: matrix(a, [...shape.slice(0, -1), a.shape.at(-1) as number]),
    b: matrix(b, [...shape.slice(0, -2), ...b.shape.slice(-2)]),
    outs: outs.map((v) => matrix(v, shape)),
    extras: extras.map((v) => matrix(v, shape)),
  }
  merge(p)
  for (const size of p.sizes) p.items *= size
  return p
}

/** A view as a matrix of `shape`; dims it broadcasts along, and those of size 1, have stride 0. */
function matrix(v: View, shape: readonly number[]): Matrix {
  const strides = stridesOver(v, shape)
  const [row, column] = strides.slice(-2)
  const half = v.dtype === 'float16'
  return { buffer: bufferOf(v), offset: v.offset, row, column, batch: strides.slice(0, -2), half }
}

/** Leaves as few dims of the batch as possible; one matrix b for many matrices a becomes one tall product. */
function merge(p: Problem): void {
  const tall = [p.a, ...p.outs, ...p.extras]
  while (p.sizes.length > 0) {
    const size = p.sizes.at(-1) as number
    if (size !== 1) {
      if (p.b.batch.at(-1) !== 0) break
      if (p.m === 1) for (const x of tall) x.row = x.batch.at(-1) as number
      else if (!tall.every((x) => x.batch.at(-1) === p.m * x.row)) break
      p.m *= size
    }
    p.sizes.pop()
    for (const x of [p.b, ...tall]) x.batch.pop()
  }
  const all = [p.b, ...tall]
  const nest = collapse(
    p.sizes,
    all.map((x) => x.batch),
  )
  p.sizes = [...nest.sizes]
  for (const [i, x] of all.entries()) x.batch = [...nest.strides[i]]
}

/** Describes the transposed product, outᵀ = bᵀ · aᵀ. */
export function transposed(p: Problem): Problem {
  const flip = (x: Matrix): Matrix => ({ ...x, row: x.column, column: x.row })
  return {
    ...p,
    m: p.n,
    n: p.m,
    a: flip(p.b),
    b: flip(p.a),
    outs: p.outs.map(flip),
    extras: p.extras.map(flip),
  }
}

/** Whether all places of a matrix that start a row are multiples of so many elements. */
export const aligned = (x: Matrix, stride: number, elements = 4): boolean =>
  x.offset % elements === 0 && stride % elements === 0 && x.batch.every((s) => s % elements === 0)

/**
 * The way a or b is read: along k or along the other dim ('o'), with vectors of four (capitals) or one by one, for any
 * strides.
 */
export type Access = 'K' | 'O' | 'k' | 'o'

export const accessA = ({ a }: Problem): Access => access(a, a.row, a.column)
export const accessB = ({ b }: Problem): Access => access(b, b.column, b.row)

function access(x: Matrix, other: number, k: number): Access {
  if (k === 1 && aligned(x, other)) return 'K'
  if (other === 1 && aligned(x, k)) return 'O'
  return Math.abs(k) <= Math.abs(other) ? 'k' : 'o'
}
