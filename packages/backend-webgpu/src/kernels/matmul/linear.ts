/**
 * x · weightᵀ and what follows it (bias, activation, residual) in one kernel: the product of `matmul.ts`, whose
 * elements go through the program before they are stored.
 */

import type { DType, KernelOf, LinearAttrs, TypedProgram, View } from '@tilegrad/core'
import { viewOf } from '@tilegrad/core/kernel'
import type { Engine } from '../../commands/queue.ts'
import { multiply } from './matmul.ts'
import { multiplyPacked, takesPacked } from './packed.ts'
import { problemOf } from './problem.ts'

const isPlain = ({ exprs }: TypedProgram): boolean => exprs.length === 1 && exprs[0].kind === 'input'

export function linear(engine: Engine): KernelOf<LinearAttrs> {
  const most = engine.gpu.limits.maxStorageBuffersPerShaderStage
  const dtypes: readonly DType[] = engine.gpu.matrices ? ['float32', 'float16'] : ['float32']
  const takes = (inputs: readonly View[], { epilogue }: LinearAttrs): boolean =>
    !isPlain(epilogue) &&
    dtypes.includes(inputs[0].dtype) &&
    // What follows takes either; kernels of float32 operands have no code for halves at all.
    inputs.every(({ dtype }, i) => dtype === inputs[0].dtype || (i > 1 && dtype === 'float32')) &&
    inputs[1].shape.length === 2 &&
    epilogue.params.length === 0 &&
    !epilogue.usesIndex &&
    inputs.length + epilogue.exprs.length <= most
  return {
    // A plain product has kernels of its own.
    supports: (inputs, attrs) =>
      takesPacked(engine, inputs, attrs) || (attrs.blockSize === undefined && takes(inputs, attrs)),
    run(outputs, inputs, attrs) {
      if (takesPacked(engine, inputs, attrs)) {
        multiplyPacked(
          engine,
          attrs.blockSize === undefined ? 'linear' : 'quantized_linear',
          outputs,
          inputs,
          attrs,
        )
        return
      }
      const { epilogue } = attrs
      const [x, weight, ...extras] = inputs as [View, View, ...View[]]
      const [n, k] = weight.shape
      const [sn, sk] = weight.strides
      const turned = viewOf(weight, [k, n], [sk, sn])
      if (x.shape.length > 1) {
        multiply(engine, 'linear', problemOf(outputs, x, turned, extras), epilogue)
        return
      }
      // A vector is one row.
      const row = (v: View): View => viewOf(v, [1, ...v.shape], [0, ...v.strides])
      multiply(engine, 'linear', problemOf(outputs.map(row), row(x), turned, extras), epilogue)
    },
  }
}
