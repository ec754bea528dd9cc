import type { ArgReduceAttrs, SortAttrs } from '../dispatch/kernels.ts'
import type { Primitive } from '../dispatch/primitive.ts'
import { largestSize } from '../tensor/layout.ts'
import { allocate, type Tensor } from '../tensor/tensor.ts'
import { checkSizes } from './common.ts'
import { copy, fillLike } from './elementwise.ts'
import { scatterAddPrimitive } from './indexing.ts'
import { perform } from './perform.ts'

/** Stable sort along `dim`: values (differentiable) and int32 indices. NaN counts as the largest. */
export function sortPrimitive(input: Tensor, dim: number, descending: boolean): [Tensor, Tensor] {
  if (input.dtype === 'bool') {
    const [values, indices] = sortPrimitive(copy(input, 'int32'), dim, descending)
    return [copy(values, 'bool'), indices]
  }
  const x = input
  const values = allocate(x.backend, x.shape, x.dtype)
  const indices = allocate(x.backend, x.shape, 'int32')
  perform(SORT, 'sort', x.backend, [values, indices], [x], { dim, descending })
  return [values, indices]
}

const SORT: Primitive<SortAttrs> = {
  kernel: (kernels) => kernels.sort,
  backward: (node, [d]) => {
    if (!d) return [null]
    const { shape } = node.inputs[0]
    if (shape.length === 0) return [d]
    const zeros = fillLike(d, 0, shape)
    return [scatterAddPrimitive('sort', zeros, node.attrs.dim, node.output(1), d)]
  },
}

const ARG_REDUCE: Primitive<ArgReduceAttrs> = { kernel: (kernels) => kernels.argReduce, backward: null }

/** Position of the first largest or smallest along `dim`, int32; keeps the dim. NaN wins. */
export function argReducePrimitive(kind: 'max' | 'min', x: Tensor, dim: number): Tensor {
  if (x.numel > largestSize) checkSizes(`arg${kind}`, x)
  const source = x.dtype === 'bool' ? copy(x, 'int32') : x
  const out = allocate(x.backend, x.shape.with(dim, 1), 'int32')
  perform(ARG_REDUCE, `arg${kind}`, x.backend, [out], [source], { kind, dim })
  return out
}
