/**
 * Rows of a weight (V, D) at int32 indices of any shape, and the gradient of the weight: zeros, to which the
 * gradients of the rows are added in the order of the index. Both are the loops of gather and scatterAdd.
 *
 * Reference: `EMBEDDING` in core's ops/indexing.ts. Test: embedding.test.ts.
 */

import { dtypeInfo, type EmbeddingAttrs, type GradientAttrs, layout, type View } from '@tilegrad/core'
import { collapse } from '@tilegrad/core/kernel'
import type { KernelFactory } from '../../engine.ts'

import { type Copy, checkIndex, runAdds, runCopy, zeroOf } from './indexing.ts'

const dtypes = [['float32'], ['int32'], ['float32']] as const

const isFull = ([weight, index]: readonly View[]): boolean =>
  layout.numel(weight.shape) > 0 && layout.numel(index.shape) > 0

const zeros = (shape: readonly number[]): number[] => shape.map(() => 0)

export const embedding: KernelFactory<EmbeddingAttrs> = (engine) => ({
  // Elements are moved as they are.
  supports: isFull,
  run([out], [weight, index]) {
    runCopy(engine, {
      bytes: dtypeInfo[out.dtype].bytes as Copy['bytes'],
      sizes: out.shape,
      from: engine.address(weight),
      fromStrides: [...zeros(index.shape), weight.strides[1]],
      to: engine.address(out),
      toStrides: out.strides,
      index: {
        address: engine.address(index),
        strides: [...index.strides, 0],
        size: weight.shape[0],
        stride: weight.strides[0],
      },
    })
    checkIndex(engine, 'embedding', index, 0, weight.shape[0])
  },
})

export const embeddingBackward: KernelFactory<GradientAttrs<EmbeddingAttrs>> = (engine) => ({
  dtypes,
  supports: (inputs, { needs }) => needs[0] && isFull(inputs),
  run([dweight], [, index, , dy], { paddingIdx }) {
    const [v, d] = dweight.shape
    const to = engine.address(dweight)
    runCopy(engine, {
      bytes: 4,
      sizes: [v, d],
      from: zeroOf(engine),
      fromStrides: [0, 0],
      to,
      toStrides: dweight.strides,
    })
    const lead = index.shape.length
    runAdds(engine, {
      dtype: 'float32',
      free: collapse([d], [[dweight.strides[1]], [0], [dy.strides[lead]]]),
      along: collapse(index.shape, [index.strides, dy.strides.slice(0, lead)]),
      out: to,
      index: engine.address(index),
      source: engine.address(dy),
      size: v,
      stride: dweight.strides[0],
      skip: paddingIdx ?? -1,
    })
    checkIndex(engine, 'embedding', index, 0, v)
  },
})
