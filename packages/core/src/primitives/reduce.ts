import { type GradNode, noGrad, record, shouldRecord } from '../autograd/tape.ts'
import type { ReduceAttrs, Reduction } from '../dispatch/kernels.ts'
import type { Primitive } from '../dispatch/primitive.ts'
import { ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { contiguousStrides, largestSize } from '../tensor/layout.ts'
import { viewOf } from '../tensor/nest.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { copy, elementwise, fillLike, TIMES } from './elementwise.ts'
import { perform } from './perform.ts'
import { MUL, scan, shift } from './scan.ts'
import { expandView, permuteView, reshapeView } from './views.ts'

const TIES = program('amax.ties', 2, ([x, y]) => e.or(e.eq(x, y), e.and(e.isnan(x), e.isnan(y))))
const SHARE = program('amax.share', 3, ([d, ties, n]) => e.div(e.mul(d, ties), n))

const REDUCE: Primitive<ReduceAttrs> = { kernel: (kernels) => kernels.reduce, backward }

/** Sum, product, largest or smallest over `dims` (sorted, non-negative). Differentiable; ties share the gradient equally. */
export function reduce(kind: Reduction, input: Tensor, dims: readonly number[], keepdim: boolean): Tensor {
  const counts = kind === 'sum' || kind === 'prod'
  const x = counts && input.dtype === 'bool' ? copy(input, 'int32') : input
  const keepShape = x.shape.map((n, i) => (dims.includes(i) ? 1 : n))
  if (!counts && dims.some((d) => x.shape[d] === 0)) {
    throw new ShapeError(
      `a${kind}: the ${kind}imum of no elements is undefined: ${show(x.shape)} is empty in dim ${dims.find((d) => x.shape[d] === 0)}`,
    )
  }
  const shape = keepdim ? keepShape : keepShape.filter((_, i) => !dims.includes(i))
  const attrs = { kind, dims }
  if (x.numel > largestSize && dims.some((d) => x.strides[d] === 0)) {
    const out = noGrad(() => reduceRepeated(kind, x, dims, keepdim))
    if (shouldRecord([x])) record(kind, [x], [out], attrs, backward)
    return out
  }
  const out = allocate(x.backend, shape, x.dtype)
  perform(REDUCE, kind, x.backend, [out], [x], attrs, [viewOf(out, keepShape, contiguousStrides(keepShape))])
  return out
}

const POWER = program('pow', 1, ([x], [n]) => e.pow(x, n), 1)

/**
 * Reduces an expanded tensor with more elements than kernels count: each repeated element once, and then by arithmetic what
 * repeating it does.
 */
function reduceRepeated(kind: Reduction, x: Tensor, dims: readonly number[], keepdim: boolean): Tensor {
  const again = dims.filter((d) => x.strides[d] === 0)
  const times = again.reduce((p, d) => p * x.shape[d], 1)
  const shape = x.shape.map((n, d) => (again.includes(d) ? 1 : n))
  const once = x.viewAs({ shape, strides: x.strides, offset: x.offset })
  const found = reduce(kind, once, dims, keepdim)
  once.dispose()
  if (kind === 'max' || kind === 'min') return found
  const int = x.dtype === 'int32'
  // Powers of an int32 repeat after 2³⁰ at the latest, from the 32nd on.
  const n = !int ? times : kind === 'sum' ? times | 0 : 2 ** 30 + (times % 2 ** 30)
  const out = elementwise(kind === 'sum' ? TIMES : POWER, [found], [n])
  found.dispose()
  return out
}

function backward(node: GradNode<ReduceAttrs>, [dout]: readonly (Tensor | null)[]): (Tensor | null)[] {
  if (!dout) return [null]
  const { kind, dims } = node.attrs
  const shape = node.inputs[0].shape
  const keepShape = shape.map((n, i) => (dims.includes(i) ? 1 : n))
  const d = reshapeView(dout, keepShape)
  if (kind === 'sum') return [expandView('sum', d, shape)]
  const x = node.input(0)
  if (kind === 'prod') return [elementwise(MUL, [d, productOfOthers(x, dims)])]
  const y = reshapeView(node.output(0), keepShape)
  const ties = elementwise(TIES, [x, y], [], x.dtype)
  return [elementwise(SHARE, [d, ties, reduce('sum', ties, dims, true)])]
}

/** Multiplies, for each element, all others along `dims`; exclusive products from both ends are right with zeros, too. */
function productOfOthers(x: Tensor, dims: readonly number[]): Tensor {
  if (x.numel === 0 || dims.length === 0) return fillLike(x, 1)
  const rest = x.shape.map((_, i) => i).filter((i) => !dims.includes(i))
  const order = [...rest, ...dims]
  const moved = permuteView(x, order)
  const flat = reshapeView(moved, [...rest.map((i) => x.shape[i]), dims.reduce((p, d) => p * x.shape[d], 1)])
  const last = flat.rank - 1
  const left = exclusiveProduct(flat, last, false)
  const right = exclusiveProduct(flat, last, true)
  const others = reshapeView(elementwise(MUL, [left, right]), moved.shape)
  const inverse = order.map((_, i) => order.indexOf(i))
  return permuteView(others, inverse)
}

/** out[i] = the product of x before i (after i if `reverse`). */
const exclusiveProduct = (x: Tensor, dim: number, reverse: boolean): Tensor =>
  scan('prod', [shift(x, dim, reverse, 1)], dim, reverse)
