import type { GradNode } from '../autograd/tape.ts'
import { casting } from '../dispatch/casting.ts'
import type { Primitive } from '../dispatch/primitive.ts'
import { DTypeError, ShapeError, show } from '../errors.ts'
import { isFloat, promote } from '../tensor/dtype.ts'
import { broadcastShapes, numel, sliceLayout } from '../tensor/layout.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { backendOf } from './common.ts'
import { copy, elementwise, TIMES } from './elementwise.ts'
import { perform } from './perform.ts'
import { expandView, part, transposeView } from './views.ts'

const MATMUL: Primitive<object> = {
  kernel: (kernels) => kernels.matmul,
  flops: ([a], _, [out]) => 2 * numel(out.shape) * a.shape[a.shape.length - 1],
  backward,
}

/**
 * Batched matrix product of tensors of rank ≥ 2: (…, M, K) · (…, K, N) → (…, M, N); batch dims broadcast.
 * `op` names the operator in errors.
 */
export function matmulPrimitive(op: string, a: Tensor, b: Tensor): Tensor {
  if (a.shape[a.rank - 1] >= manyTimes && a.strides[a.rank - 1] === 0 && b.strides[b.rank - 2] === 0)
    return repeated(op, a, b)
  if (casting.now) [a, b] = casting.now.operands(op, [a, b])
  const backend = backendOf(op, [a, b])
  const [m, k] = [a.shape[a.rank - 2], a.shape[a.rank - 1]]
  const [k2, n] = [b.shape[b.rank - 2], b.shape[b.rank - 1]]
  if (k !== k2) {
    const hint = k === n ? '. Did you mean b.transpose(-2, -1)?' : ''
    throw new ShapeError(
      `${op}: inner dimensions differ: ${show(a.shape)} × ${show(b.shape)}; expected a.shape[-1] = b.shape[-2]${hint}`,
    )
  }
  const dtype = promote(a.dtype, b.dtype)
  if (dtype === 'bool')
    throw new DTypeError(`${op}: takes floating or int32 tensors, not bool; convert with .to('float32')`)
  if (a.dtype !== dtype) a = copy(a, dtype)
  if (b.dtype !== dtype) b = copy(b, dtype)
  const batch =
    a.rank === 2 && b.rank === 2 ? [] : broadcastShapes(op, [a.shape.slice(0, -2), b.shape.slice(0, -2)])
  const left = batch.length === 0 ? a : expandView(op, a, [...batch, m, k])
  const right = batch.length === 0 ? b : expandView(op, b, [...batch, k, n])
  const out = allocate(backend, [...batch, m, n], dtype)
  perform(MATMUL, op, backend, [out], [left, right], NONE)
  return out
}

const NONE = {}

/** Inner sizes from here on are looked at: a repeated product is one product, whatever 32 bits can count. */
const manyTimes = 2 ** 24

/** A product whose inner dim repeats one element on either side. */
function repeated(op: string, a: Tensor, b: Tensor): Tensor {
  const k = a.shape[a.rank - 1]
  if (k !== b.shape[b.rank - 2])
    throw new ShapeError(`${op}: inner dimensions differ: ${show(a.shape)} × ${show(b.shape)}`)
  const once = part('narrow', a, (l) => sliceLayout('narrow', l, l.shape.length - 1, 0, 1, 1))
  const column = part('narrow', b, (l) => sliceLayout('narrow', l, l.shape.length - 2, 0, 1, 1))
  const product = matmulPrimitive(op, once, column)
  return elementwise(TIMES, [product], [isFloat(product.dtype) ? k : k | 0])
}

function backward(node: GradNode<object>, [d]: readonly (Tensor | null)[]): (Tensor | null)[] {
  if (!d) return [null, null]
  const t = (x: Tensor): Tensor => transposeView(x, x.rank - 2, x.rank - 1)
  // The gradient of a transposed operand is computed transposed, so that what was transposed gets a contiguous one.
  const product = (x: Tensor, y: Tensor, like: Tensor): Tensor =>
    isTransposed(like) ? t(matmulPrimitive('matmul', t(y), t(x))) : matmulPrimitive('matmul', x, y)
  return [
    node.needs(0) ? product(d, t(node.input(1)), node.inputs[0]) : null,
    node.needs(1) ? product(t(node.input(0)), d, node.inputs[1]) : null,
  ]
}

const isTransposed = ({ strides }: Tensor): boolean =>
  strides[strides.length - 2] === 1 && strides[strides.length - 1] !== 1
