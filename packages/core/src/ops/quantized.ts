/**
 * Weights of 8 bits: whole numbers from −127 to 127, four to an int32 (the first in its lowest byte), each times the
 * scale of its block of consecutive ones along a row. Rows end with a whole block; what is past their end counts nothing.
 */

import { shouldRecord } from '../autograd/tape.ts'
import { expectFloat, expectOptions } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { DTypeError, GradError, ShapeError, show } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { copy, elementwise, elementwiseAll } from '../primitives/elementwise.ts'
import { expandView, reshapeView, transposeView } from '../primitives/views.ts'
import { numel, sameShape } from '../tensor/layout.ts'
import { asTensor, expectTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { expectActivation } from './activations.ts'
import { matmul } from './linalg.ts'
import { type Form, formOf, type LinearAttrs, type LinearEpilogue } from './linear.ts'
import { narrow } from './shape.ts'

/** Byte c of a word as a number with a sign, c the output's last coordinate, times the scale of its block. */
const DEQUANTIZE = program('dequantize', 2, ([word, scale]) => {
  const byte = (c: number): e.Expr => e.sub(e.xor(e.and(e.shr(word, 8 * c), 255), 128), 128)
  const from = (c: number): e.Expr =>
    c === 3 ? byte(3) : e.select(e.eq(e.coord(-1), c), byte(c), from(c + 1))
  return e.mul(e.cast('float32', from(0)), scale)
})

/** How many numbers a block has. Throws where this is no weight of 8 bits. */
function blockSizeOf(op: string, weight: Tensor, scales: Tensor): number {
  expectTensor(op, weight)
  expectTensor(op, scales)
  if (weight.dtype !== 'int32')
    throw new DTypeError(
      `${op}: a weight of 8 bits is stored as int32, four numbers to each, got ${weight.dtype}; make it with quantize of @tilegrad/nn`,
    )
  expectFloat(op, scales.dtype)
  const [rows, words = 0] = weight.shape
  const [count, blocks = 0] = scales.shape
  const size = (4 * words) / blocks
  if (weight.rank !== 2 || scales.rank !== 2 || rows !== count || !(size % 4 === 0))
    throw new ShapeError(
      `${op}: weight ${show(weight.shape)} and scales ${show(scales.shape)} do not fit; expected [rows, blocks · blockSize / 4] and [rows, blocks], with a blockSize that 4 divides`,
    )
  return size
}

/** Do so many numbers fill the blocks of a row, but for a part of the last one? */
const fills = (columns: number, blocks: number, size: number): boolean =>
  Number.isInteger(columns) && columns > size * (blocks - 1) && columns <= size * blocks

/**
 * Makes numbers of a weight of 8 bits, as the layers hold it that `quantize` of `@tilegrad/nn` makes: bytes, each times the
 * scale of its block.
 *
 * @param weight int32 (N, blocks · blockSize / 4), four bytes to each, the first one lowest.
 * @param scales floating (N, blocks).
 * @param columns the numbers of a row, K. Default: all that its blocks have room for.
 * @returns (N, K), of the scales' dtype.
 * @throws ShapeError, DTypeError for what does not fit.
 * @example
 * const weight = tensor([[0x0403ff01]], { dtype: 'int32' })
 * await dequantize(weight, tensor([[0.5]])).toArray() // → [[0.5, -0.5, 1.5, 2]]
 */
export function dequantize(weight: Tensor, scales: Tensor, columns?: number): Tensor {
  const size = blockSizeOf('dequantize', weight, scales)
  const [rows, blocks] = scales.shape
  const padded = blocks * size
  if (columns !== undefined && !fills(columns, blocks, size))
    throw new ShapeError(
      `dequantize: ${columns} columns do not fill ${blocks} blocks of ${size}; expected ${padded - size + 1} to ${padded}`,
    )
  const words = reshapeView(weight, [rows, blocks, size / 4, 1])
  const each = expandView('dequantize', words, [rows, blocks, size / 4, 4])
  const all = elementwise(DEQUANTIZE, [each, reshapeView(scales, [rows, blocks, 1, 1])], [], scales.dtype)
  const matrix = reshapeView(all, [rows, padded])
  return columns === undefined || columns === padded ? matrix : narrow(matrix, 1, 0, columns)
}

const ops = new WeakMap<Form, Op<LinearAttrs>>()

/** The operator of a form: its product, of numbers that were made of bytes. */
function opOf(form: Form): Op<LinearAttrs> {
  let op = ops.get(form)
  if (!op) {
    op = {
      name: 'quantized_linear',
      kernel: (kernels) => kernels.linear,
      infer: ([x, w]) => [{ shape: [...x.shape.slice(0, -1), w.shape[0]], dtype: x.dtype }],
      flops: ([x, w]) => 2 * numel(x.shape) * w.shape[0],
      compose([x, w, scales, ...rest]) {
        const numbers = dequantize(w, scales, x.shape[x.rank - 1])
        return elementwiseAll(form.attrs.program, [matmul(x, transposeView(numbers, 0, 1)), ...rest])
      },
    }
    ops.set(form, op)
  }
  return op
}

/**
 * `linear` with a weight of 8 bits: activation(x · dequantize(weight, scales)ᵀ + bias) + residual. For few rows, as decoding
 * has them, a backend may read the bytes and never store the numbers. For inference: it has no gradient.
 *
 * @param x floating (…, K).
 * @param weight int32 (N, blocks · blockSize / 4), four bytes to each, the first one lowest.
 * @param scales floating (N, blocks).
 * @param bias (N), or null.
 * @returns (…, N), of x's dtype.
 * @throws ShapeError, DTypeError for what does not fit, GradError where a gradient would be needed.
 * @example
 * const weight = tensor([[0x0403ff01]], { dtype: 'int32' })
 * await quantizedLinear(tensor([[1, 1, 1, 10]]), weight, tensor([[0.5]])).toArray() // → [[21.5]]
 */
export function quantizedLinear(
  x: Tensor,
  weight: Tensor,
  scales: Tensor,
  bias?: Tensor | null,
  options: LinearEpilogue = {},
): Tensor {
  const name = 'quantized_linear'
  const { activation, residual } = expectOptions(name, options, { activation: 1, residual: 1 })
  if (activation !== undefined) expectActivation(name, activation)
  const blockSize = blockSizeOf(name, weight, scales)
  const inputs = [asTensor(name, x, scales), weight, scales]
  x = inputs[0]
  expectFloat(name, x.dtype)
  if (bias) inputs.push(bias)
  if (residual) inputs.push(residual)
  for (let i = 3; i < inputs.length; i++) expectTensor(name, inputs[i])
  if (shouldRecord(inputs))
    throw new GradError(
      `${name}: a weight of 8 bits is for inference and has no gradient; run it inside noGrad(), and train the model before quantize`,
    )
  const [rows, blocks] = scales.shape
  if (x.rank === 0 || !fills(x.shape[x.rank - 1], blocks, blockSize))
    throw new ShapeError(
      `${name}: input ${show(x.shape)} does not fit ${blocks} blocks of ${blockSize}; expected a last size of ${(blocks - 1) * blockSize + 1} to ${blocks * blockSize}`,
    )
  const shape = [...x.shape.slice(0, -1), rows]
  if (bias && !sameShape(bias.shape, [rows]))
    throw new ShapeError(
      `${name}: bias ${show(bias.shape)} must be [${rows}], one for each row of the weight`,
    )
  if (residual && !sameShape(residual.shape, shape))
    throw new ShapeError(
      `${name}: residual ${show(residual.shape)} must have the result's shape ${show(shape)}`,
    )
  const form = formOf(bias ? 1 : 0, activation, residual ? 1 : 0, false)
  const [y] = apply(opOf(form), inputs, { ...form.attrs, blockSize })
  return y.dtype === x.dtype ? y : copy(y, x.dtype)
}
