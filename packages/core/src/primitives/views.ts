import { type Backward, gradEnabled, noGrad, record, shouldRecord } from '../autograd/tape.ts'
import type { Layout } from '../tensor/layout.ts'
import * as L from '../tensor/layout.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { copy, copyInto, fill, fillLike } from './elementwise.ts'

/** Layout-only operators: they share storage and cost no kernel. */

function view<A>(name: string, x: Tensor, layout: Layout, attrs: A, backward: Backward<A>): Tensor {
  const out = x.viewAs(layout)
  if (shouldRecord([x])) record(name, [x], [out], attrs, backward)
  return out
}

/** A part of x (slice, select, diagonal): its gradient is put back among zeros. */
export function part(name: string, x: Tensor, region: (layout: Layout) => Layout): Tensor {
  const layout = region(x)
  const { shape, strides, offset } = layout
  // All of x leaves nothing for zeros.
  if (offset === x.offset && L.sameShape(shape, x.shape) && L.sameShape(strides, x.strides))
    return view(name, x, layout, region, (_, [d]) => [d])
  return view(name, x, layout, region, (node, [d]) => [d && embed(d, node.inputs[0].shape, node.attrs)])
}

/** Zeros of `shape` with x written at `region` of it; the adjoint of `part`. */
export function embed(x: Tensor, shape: readonly number[], region: (layout: Layout) => Layout): Tensor {
  const out = noGrad(() => {
    const zeros = fillLike(x, 0, shape)
    const hole = zeros.viewAs(region(zeros))
    copyInto(hole, x)
    hole.dispose()
    return zeros
  })
  if (shouldRecord([x]))
    record('embed', [x], [out], region, (node, [d]) => [d && part('part', d, node.attrs)])
  return out
}

/** Makes a view of all of x, which is a node of the graph of its own. */
export const alias = (x: Tensor): Tensor => view('alias', x, x, null, (_, [d]) => [d])

export function permuteView(x: Tensor, dims: readonly number[]): Tensor {
  return view('permute', x, L.permuteLayout(x, dims), dims, (node, [d]) => {
    const inverse = new Array<number>(dims.length)
    node.attrs.forEach((from, to) => {
      inverse[from] = to
    })
    return [d && permuteView(d, inverse)]
  })
}

export function transposeView(x: Tensor, dim0: number, dim1: number): Tensor {
  const dims = x.shape.map((_, i) => (i === dim0 ? dim1 : i === dim1 ? dim0 : i))
  return permuteView(x, dims)
}

/** The gradient keeps the expanded shape: the engine sums it down. */
export function expandView(op: string, x: Tensor, shape: readonly number[]): Tensor {
  if (L.sameShape(x.shape, shape)) return x
  return view('expand', x, L.expandLayout(op, x, shape), null, (_, [d]) => [d])
}

/** A view where the strides allow one, a copy otherwise. `shape` is resolved (no −1). */
export function reshapeView(x: Tensor, shape: readonly number[]): Tensor {
  if (L.sameShape(x.shape, shape)) return x
  const layout = L.reshapeLayout(x, shape)
  if (layout === null) return reshapeView(copy(x), shape)
  return view('reshape', x, layout, null, (node, [d]) => [d && reshapeView(d, node.inputs[0].shape)])
}

export function flipView(x: Tensor, dims: readonly number[]): Tensor {
  return view('flip', x, L.flipLayout(x, dims), dims, (node, [d]) => [d && flipView(d, node.attrs)])
}

/**
 * Several views of x, `regions` of its layout, that together are all of it, as one node: its gradient is put together
 * once. Without a copy where the pieces' gradients are pieces of one tensor already, and nobody else sees that one: what
 * is kept of a gradient must not change with another.
 */
export function piecesView(
  name: string,
  x: Tensor,
  regions: (layout: Layout) => readonly Layout[],
  join: (douts: Tensor[]) => Tensor,
): Tensor[] {
  const layouts = regions(x)
  const outs = layouts.map((l) => x.viewAs(l))
  if (shouldRecord([x])) {
    record(name, [x], outs, regions, (node, douts) => [
      wholeOf(douts, node.inputs[0].shape, node.attrs) ??
        join(douts.map((g, i) => g ?? fill(x.backend, layouts[i].shape, 0, node.inputs[0].dtype))),
    ])
  }
  return outs
}

/** The contiguous tensor that some tensors, and no others, are the pieces of; null if there is none. */
function wholeOf(
  pieces: readonly (Tensor | null)[],
  shape: readonly number[],
  regions: (layout: Layout) => readonly Layout[],
): Tensor | null {
  const [first] = pieces
  if (!first || gradEnabled() || first.storage.tensors.count !== pieces.length) return null
  const places = regions(L.contiguous(shape))
  const start = first.offset - places[0].offset
  const fits = pieces.every((piece, i) => {
    if (!piece || piece.storage !== first.storage || piece.dtype !== first.dtype || piece.numel === 0)
      return false
    const place = places[i]
    return (
      piece.offset === start + place.offset &&
      piece.shape.every((n, d) => n === place.shape[d] && (n === 1 || piece.strides[d] === place.strides[d]))
    )
  })
  return fits ? first.viewAs(L.contiguous(shape, start)) : null
}

/** x itself if it is contiguous, else a contiguous copy. */
export const contiguous = (x: Tensor): Tensor => (x.isContiguous ? x : copy(x))
