/** Turns the shapes and strides of operands into loops over them, of as few dims as possible, in the best order. */

import { dtypeInfo, type View } from '@tilegrad/core'
import { collapse, type Nest as Loops, stridesOver } from '@tilegrad/core/kernel'
import type { Access } from './access.ts'
import { tileRows } from './code.ts'

/** A dim that all operands walk. */
interface Dim {
  readonly size: number
  /** The stride of every operand, outputs first, in elements. */
  readonly strides: readonly number[]
}

export interface Nest {
  /** The dims, from the outermost to the innermost; at least one. */
  readonly dims: readonly Dim[]
  readonly access: readonly Access[]
  /** Whether the last two dims are walked in tiles, as in `Variant`. */
  readonly tiled: boolean
  /** Sizes, then strides in bytes, in the order of `wordsOf`. */
  readonly words: readonly number[]
  /** Elements, or bands of 16 rows where it is tiled. */
  readonly units: number
}

/**
 * The loops for some operands. `inOrder`: elements must keep their linear order, because they are numbered. `asIs`: the
 * dims must stay those of the outputs, because coordinates are asked for.
 */
export function nestOf(
  outputs: readonly View[],
  inputs: readonly View[],
  inOrder: boolean,
  asIs: boolean,
): Nest {
  const views = [...outputs, ...inputs]
  const { shape } = outputs[0] as View
  let loops: Loops = { sizes: shape, strides: views.map((v) => stridesOver(v, shape)) }
  if (!asIs) {
    if (!inOrder) loops = outsideIn(loops)
    loops = collapse(loops.sizes, loops.strides)
  }
  const dims = loops.sizes.map(
    (size, d): Dim => ({ size, strides: loops.strides.map((own) => own[d] as number) }),
  )
  let tiled = false
  if (!asIs && !inOrder) {
    lengthen(dims)
    tiled = tile(dims, outputs.length)
  }
  if (dims.length === 0) dims.push({ size: 1, strides: views.map(() => 0) })

  const inner = dims[dims.length - 1] as Dim
  const around = dims[dims.length - 2]
  const access = views.map((_, o): Access => {
    const isInput = o >= outputs.length
    // An output that stands still has only one element there.
    if (inner.size === 1) return isInput ? 'zero' : 'unit'
    const stride = inner.strides[o] as number
    if (stride === 0 || stride === 1) return stride === 0 ? 'zero' : 'unit'
    return tiled && isInput && around?.strides[o] === 1 ? 'across' : 'strided'
  })
  const strides = views.flatMap((v, o) =>
    dims.map((d) => (d.strides[o] as number) * dtypeInfo[v.dtype].bytes),
  )
  const total = dims.reduce((n, d) => n * d.size, 1)
  const rows = around?.size ?? 1
  const units = tiled ? (total / inner.size / rows) * Math.ceil(rows / tileRows) : total
  return { dims, access, tiled, words: [...dims.map((d) => d.size), ...strides], units }
}

/** Puts dims along which the first output has large strides outside. */
function outsideIn({ sizes, strides }: Loops): Loops {
  const step = (strides[0] as readonly number[]).map(Math.abs)
  if (step.every((s, d) => d === 0 || s <= (step[d - 1] as number))) return { sizes, strides }
  const order = sizes.map((_, d) => d).sort((a, b) => (step[b] as number) - (step[a] as number))
  const sorted = (list: readonly number[]): number[] => order.map((d) => list[d] as number)
  return { sizes: sorted(sizes), strides: strides.map(sorted) }
}

/** Puts a long dim innermost in place of one of 2 or 3 elements, which would be all overhead. */
function lengthen(dims: Dim[]): void {
  const last = dims.length - 1
  if (last < 1 || (dims[last] as Dim).size >= 4) return
  const longest = dims.reduce((best, d, i) => (d.size > (dims[best] as Dim).size ? i : best), last)
  if ((dims[longest] as Dim).size >= 16) swap(dims, longest, last)
}

/** Moves a dim next to the innermost one if an input strides widely along that and is denser along the other. */
function tile(dims: Dim[], outputs: number): boolean {
  const last = dims.length - 1
  const inner = dims[last]
  if (inner === undefined || inner.size < 8) return false
  for (let o = outputs; o < inner.strides.length; o++) {
    const stride = (i: number): number => Math.abs((dims[i] as Dim).strides[o] as number)
    if (stride(last) < 16) continue
    let best = last
    for (let i = 0; i < last; i++) {
      if (stride(i) > 0 && stride(i) < stride(best) && (dims[i] as Dim).size >= 4) best = i
    }
    if (best === last) continue
    swap(dims, best, last - 1)
    return true
  }
  return false
}

function swap(dims: Dim[], a: number, b: number): void {
  const d = dims[a] as Dim
  dims[a] = dims[b] as Dim
  dims[b] = d
}
