import type { GradNode } from '../autograd/tape.ts'
import { expectInt } from '../checks.ts'
import type { DimAttrs } from '../dispatch/kernels.ts'
import type { Primitive } from '../dispatch/primitive.ts'
import { DTypeError, ShapeError, show } from '../errors.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { backendOf } from './common.ts'
import { copy, fill } from './elementwise.ts'
import { perform } from './perform.ts'
import { embed } from './views.ts'

function checkIndex(op: string, x: readonly number[], dim: number, index: Tensor): void {
  expectInt(op, 'index', index.dtype)
  if (index.rank !== x.length)
    throw new ShapeError(`${op}: index ${show(index.shape)} must have as many dims as the tensor ${show(x)}`)
  for (let i = 0; i < x.length; i++) {
    if (i !== dim && index.shape[i] > x[i])
      throw new ShapeError(
        `${op}: index ${show(index.shape)} is larger than the tensor ${show(x)} in dim ${i}; only dim ${dim} may be`,
      )
  }
}

/** out[i][j]… = x[…, index[i][j]…, …] with the index standing in for coordinate `dim`; out has index's shape. */
export function gatherPrimitive(op: string, x: Tensor, dim: number, index: Tensor): Tensor {
  const backend = backendOf(op, [x, index])
  checkIndex(op, x.shape, dim, index)
  const out = allocate(backend, index.shape, x.dtype)
  perform(GATHER, op, backend, [out], [x, index], { dim })
  return out
}

const GATHER: Primitive<DimAttrs> = {
  kernel: (kernels) => kernels.gather,
  backward: (node, [d]) => {
    const { backend, shape } = node.inputs[0]
    const { dim } = node.attrs
    return [
      d && scatterAddPrimitive(node.name, fill(backend, shape, 0, d.dtype), dim, node.input(1), d),
      null,
    ]
  },
}

/** A copy of x with source added at `index` along `dim`. */
export function scatterAddPrimitive(
  op: string,
  x: Tensor,
  dim: number,
  index: Tensor,
  source: Tensor,
): Tensor {
  const inputs = [x, index, source]
  const backend = backendOf(op, inputs)
  checkIndex(op, x.shape, dim, index)
  if (source.rank !== index.rank || source.shape.some((n, i) => n < index.shape[i])) {
    throw new ShapeError(
      `${op}: source ${show(source.shape)} must be at least as large as index ${show(index.shape)} in every dim`,
    )
  }
  if (source.dtype !== x.dtype)
    throw new DTypeError(`${op}: source is ${source.dtype}, the tensor ${x.dtype}; expected the same`)
  // Bools add as in PyTorch: any true gives true.
  if (x.dtype === 'bool')
    return copy(scatterAddPrimitive(op, copy(x, 'int32'), dim, index, copy(source, 'int32')), 'bool')
  const out = allocate(backend, x.shape, x.dtype)
  perform(SCATTER_ADD, op, backend, [out], inputs, { dim })
  return out
}

const SCATTER_ADD: Primitive<DimAttrs> = {
  kernel: (kernels) => kernels.scatterAdd,
  checks: true,
  backward: scatterBackward,
}

function scatterBackward(node: GradNode<DimAttrs>, [d]: readonly (Tensor | null)[]): (Tensor | null)[] {
  if (!d) return [null, null, null]
  const [, index, source] = node.inputs
  const picked = node.needs(2) ? gatherPrimitive('gather', d, node.attrs.dim, node.input(1)) : null
  // Parts of source beyond index's shape were not used: zeros there.
  return [
    d,
    null,
    picked &&
      (index.shape.every((n, i) => n === source.shape[i])
        ? picked
        : embed(picked, source.shape, ({ strides, offset }) => ({ shape: index.shape, strides, offset }))),
  ]
}
