import { noGrad, record, shouldRecord } from '../../autograd/tape.ts'
import { ShapeError, show } from '../../errors.ts'
import { copy } from '../../primitives/elementwise.ts'
import { piecesView, reshapeView, transposeView } from '../../primitives/views.ts'
import * as L from '../../tensor/layout.ts'
import { expectTensor } from '../../tensor/operands.ts'
import type { Tensor } from '../../tensor/tensor.ts'
import { cat } from '../shape.ts'

/** Splitting projections into heads and joining heads again, each as one node of the graph instead of six. */

/**
 * The heads in the last dim of x: (…, T, (H₁ + H₂ + …)·D) → (…, H₁, T, D), (…, H₂, T, D) …, views of x.
 *
 * @throws ShapeError unless x has two dims or more, the last of them the heads' together.
 * @example
 * const [q, k, v] = splitHeads(randn([2, 5, 24]), [4, 1, 1], 4)
 * q.shape // → 2,4,5,4
 */
export function splitHeads(x: Tensor, heads: readonly number[], headDim: number): Tensor[] {
  expectTensor('splitHeads', x)
  const total = heads.reduce((n, h) => n + h, 0)
  if (x.rank < 2 || x.shape[x.rank - 1] !== total * headDim)
    throw new ShapeError(
      `splitHeads: takes (…, T, ${total} heads of ${headDim} = ${total * headDim}), got ${show(x.shape)}`,
    )
  const tokens = x.rank - 2
  const regions = ({ shape, strides, offset }: L.Layout): L.Layout[] => {
    const [stepOfToken, step] = strides.slice(tokens)
    let first = 0
    return heads.map((count) => {
      const at = count === 0 ? offset : offset + first * headDim * step
      first += count
      return {
        shape: [...shape.slice(0, tokens), count, shape[tokens], headDim],
        strides: [...strides.slice(0, tokens), headDim * step, stepOfToken, step],
        offset: at,
      }
    })
  }
  return piecesView('split_heads', x, regions, (douts) => {
    const parts = douts.map((d) => transposeView(d, tokens, tokens + 1))
    return reshapeView(cat(parts, -2), x.shape)
  })
}

/**
 * The heads side by side: (…, H, T, D) → (…, T, H·D), a copy where x is not of that order already.
 *
 * @throws ShapeError unless x has three dims or more.
 * @example
 * mergeHeads(randn([2, 4, 5, 8])).shape // → 2,5,32
 */
export function mergeHeads(x: Tensor): Tensor {
  expectTensor('mergeHeads', x)
  if (x.rank < 3) throw new ShapeError(`mergeHeads: takes (…, H, T, D), got ${show(x.shape)}`)
  const [a, b] = [x.rank - 3, x.rank - 2]
  const [h, t, d] = x.shape.slice(-3)
  const shape = [...x.shape.slice(0, -3), t, h * d]
  const out = noGrad(() => {
    const turned = transposeView(x, a, b)
    const layout = L.reshapeLayout(turned, shape)
    const dense = layout ? turned : copy(turned)
    const y = dense.viewAs(layout ?? L.contiguous(shape))
    if (dense !== turned) dense.dispose()
    turned.dispose()
    return y
  })
  if (shouldRecord([x]))
    record('merge_heads', [x], [out], null, (node, [g]) => {
      if (!g) return [null]
      const { shape: whole } = node.inputs[0]
      return [transposeView(reshapeView(g, [...whole.slice(0, a), t, h, d]), a, b)]
    })
  return out
}
