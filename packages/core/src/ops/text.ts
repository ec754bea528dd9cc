import { noGrad } from '../autograd/tape.ts'
import { contiguous } from '../primitives/views.ts'
import { scope } from '../tensor/memory.ts'
import { edgeOf, tensorText } from '../tensor/printing.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { data } from './create.ts'
import { cat, narrow } from './shape.ts'

/** The first and last `edge` entries along every dim that is longer. */
function edges(x: Tensor, edge: number): Tensor {
  let out = x
  x.shape.forEach((n, dim) => {
    if (n > 2 * edge) out = cat([narrow(out, dim, 0, edge), narrow(out, dim, n - edge, edge)], dim)
  })
  return out
}

/**
 * The tensor as text, as `String(x)` gives it, on any device: it waits for the elements that are shown, and reads no
 * others.
 *
 * @example
 * await tensor([1, 2]).text() // → tensor([1., 2.], shape=[2], dtype=float32)
 */
export async function text(x: Tensor): Promise<string> {
  if (x.disposed) return String(x)
  const edge = edgeOf(x.shape)
  const shown = noGrad(() => scope(() => contiguous(edge === null ? x.detach() : edges(x.detach(), edge))))
  try {
    return tensorText(x, null, await data(shown))
  } finally {
    shown.dispose()
  }
}
