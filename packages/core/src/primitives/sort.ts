import { largestSize } from '../layout.ts'
import { launch } from '../profile.ts'
import { record, shouldRecord } from '../tape.ts'
import { allocate, type Tensor } from '../tensor.ts'
import { checkSizes } from './common.ts'
import { copy, fill } from './elementwise.ts'
import { scatterAddPrimitive } from './indexing.ts'

/** Stable sort along `dim`: values (differentiable) and int32 indices. NaN counts as the largest. */
export function sortPrimitive(input: Tensor, dim: number, descending: boolean): [Tensor, Tensor] {
  if (input.dtype === 'bool') {
    const [values, indices] = sortPrimitive(copy(input, 'int32'), dim, descending)
    return [copy(values, 'bool'), indices]
  }
  const x = input
  const values = allocate(x.backend, x.shape, x.dtype)
  const indices = allocate(x.backend, x.shape, 'int32')
  if (x.numel > 0)
    launch('sort', 'primitive', x.backend, x.backend.kernels.sort, [values, indices], [x], {
      dim,
      descending,
    })
  if (shouldRecord([x])) {
    record('sort', [x], [values, indices], dim, (node, [d]) => {
      if (!d) return [null]
      const shape = node.inputs[0].shape
      return [
        shape.length === 0
          ? d
          : scatterAddPrimitive('sort', fill(d.backend, shape, 0, d.dtype), dim, node.output(1), d),
      ]
    })
  }
  return [values, indices]
}

/** Position of the first largest or smallest along `dim`, int32; keeps the dim. NaN wins. */
export function argReducePrimitive(kind: 'max' | 'min', x: Tensor, dim: number): Tensor {
  if (x.numel > largestSize) checkSizes(`arg${kind}`, x)
  const source = x.dtype === 'bool' ? copy(x, 'int32') : x
  const out = allocate(x.backend, x.shape.with(dim, 1), 'int32')
  launch(`arg${kind}`, 'primitive', x.backend, x.backend.kernels.argReduce, [out], [source], { kind, dim })
  return out
}
