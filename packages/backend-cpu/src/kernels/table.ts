/**
 * All kernels of the CPU backend, and a call of each. A missing primitive or sample is an error of types; a fused kernel is
 * one line, and its sample.
 */

import type { KernelTable, Primitives, Tensor } from '@tilegrad/core'
import * as ops from '@tilegrad/core'
import type { Engine } from '../engine.ts'
import { attention, attentionBackward } from './attention/attention.ts'
import { convKernels } from './conv.ts'
import { crossEntropy, crossEntropyBackward } from './cross-entropy.ts'
import { elementwise } from './elementwise/elementwise.ts'
import { foreach } from './elementwise/foreach.ts'
import { either, fallbackKernels } from './fallback.ts'
import { embedding, embeddingBackward } from './indexing/embedding.ts'
import { gather, scatterAdd } from './indexing/indexing.ts'
import { gatedLinearAttention, gatedLinearAttentionBackward } from './linear-attention/gated.ts'
import { linearAttention, linearAttentionBackward } from './linear-attention/linear-attention.ts'
import { linear } from './matmul/linear.ts'
import { matmul } from './matmul/matmul.ts'
import { layerNorm, layerNormBackward, rmsNorm, rmsNormBackward } from './norm/layer-norm.ts'
import { argReduce } from './reduce/arg-reduce.ts'
import { reduce } from './reduce/reduce.ts'
import { rotaryEmbedding } from './rotary.ts'
import { scan } from './scan.ts'
import { logSoftmax, logSoftmaxBackward, softmax, softmaxBackward } from './softmax.ts'
import { sort } from './sort.ts'
import { totalNorm } from './total-norm.ts'

export function kernelTable(engine: Engine) {
  const js = fallbackKernels(engine)
  const primitives: Primitives = {
    elementwise: elementwise(engine, js.elementwise),
    reduce: either(reduce(engine), js.reduce),
    argReduce: either(argReduce(engine), js.argReduce),
    matmul: either(matmul(engine), js.matmul),
    gather: either(gather(engine), js.gather),
    scatterAdd: either(scatterAdd(engine), js.scatterAdd),
    scan: either(scan(engine), js.scan),
    sort: either(sort(engine), js.sort),
  }
  return {
    ...primitives,
    foreach: foreach(engine),
    rotary_embedding: rotaryEmbedding(engine),
    total_norm: totalNorm(engine),
    ...convKernels(engine),
    softmax: softmax(engine),
    softmaxBackward: softmaxBackward(engine),
    log_softmax: logSoftmax(engine),
    log_softmaxBackward: logSoftmaxBackward(engine),
    layer_norm: layerNorm(engine),
    layer_normBackward: layerNormBackward(engine),
    rms_norm: rmsNorm(engine),
    rms_normBackward: rmsNormBackward(engine),
    cross_entropy: crossEntropy(engine),
    cross_entropyBackward: crossEntropyBackward(engine),
    embedding: embedding(engine),
    linear: linear(engine, primitives),
    embeddingBackward: embeddingBackward(engine),
    scaled_dot_product_attention: attention(engine),
    scaled_dot_product_attentionBackward: attentionBackward(engine),
    linear_attention: linearAttention(engine),
    linear_attentionBackward: linearAttentionBackward(engine),
    gated_linear_attention: gatedLinearAttention(engine),
    gated_linear_attentionBackward: gatedLinearAttentionBackward(engine),
  } satisfies KernelTable
}

/** A call of a kernel's operator on float32 inputs of these shapes. */
export interface Sample {
  readonly shapes: readonly (readonly number[])[]
  run(inputs: readonly Tensor[]): Tensor | readonly Tensor[]
}

/** What computes something: a sort only moves. */
type Forward = Exclude<keyof ReturnType<typeof kernelTable>, `${string}Backward` | 'sort'>

/** Arithmetic, comparisons and all that is made of polynomials. */
const formula = /* @__PURE__ */ ops.program('guard', 2, ([x, y]) => {
  const functions = [
    ops.expr.exp(x),
    ops.expr.tanh(y),
    ops.expr.erf(x),
    ops.expr.sigmoid(y),
    ops.expr.log(ops.expr.abs(x)),
    ops.expr.sin(y),
    ops.expr.floor(x),
  ]
  const sum = functions.reduce((a, b) => ops.expr.add(a, b))
  return ops.expr.select(
    ops.expr.lt(x, y),
    ops.expr.div(sum, ops.expr.sqrt(ops.expr.add(1, ops.expr.mul(y, y)))),
    ops.expr.max(ops.expr.sub(sum, y), ops.expr.min(x, 0.5)),
  )
})

const indices = (x: Tensor, values: ArrayLike<number>, shape: readonly number[]): Tensor =>
  ops.tensor(Int32Array.from(values), { device: x.backend }).reshape(shape)
/** x and what becomes of it: where both have gradients, that of the result is added to the other. */
const passedBy = (x: Tensor, f: (x: Tensor) => Tensor): Tensor[] => {
  const y = x.narrow(0, 0, x.shape[0])
  return [f(y), y]
}
const matrix = [[5, 37]]
const affine = [[5, 37], [37], [37]]
const head = [1, 2, 19, 24]
const heads = [head, head, head]

/**
 * A call of each kernel that computes something, for `guard.ts`, on small odd shapes and with everything that adds code of its
 * own. That of an operator's gradient is the gradient of the operator's call.
 */
export const samples = (): Readonly<Record<Forward, Sample>> => ({
  elementwise: {
    shapes: [
      [5, 37],
      [5, 37],
      [37, 5],
    ],
    run: ([x, y, z]) => [
      ops.applyProgram(formula, [x, y]),
      ops.applyProgram(formula, [x, z.transpose(0, 1)]),
    ],
  },
  reduce: { shapes: matrix, run: ([x]) => [x.sum(1), x.sum(0), x.amax(1), x.amin(0)] },
  argReduce: { shapes: matrix, run: ([x]) => x.argmax(1) },
  scan: { shapes: matrix, run: ([x]) => [ops.cumsum(x, 1), ops.cumsum(x, 0)] },
  gather: { shapes: matrix, run: ([x]) => ops.gather(x, 1, indices(x, [3, 36, 0, 9, 1], [5, 1])) },
  scatterAdd: {
    shapes: [...matrix, [5, 1]],
    run: ([x, y]) => ops.scatterAdd(x, 1, indices(x, [3, 36, 0, 9, 1], [5, 1]), y),
  },
  // Tiles with edges, and few rows, with b by rows and by columns; both operands transposed.
  matmul: {
    shapes: [
      [37, 41],
      [41, 70],
    ],
    run: ([x, y]) => {
      const t = y.contiguous().transpose(0, 1)
      const few = [1, 3, 8].flatMap((n) => {
        const rows = x.narrow(0, 0, n)
        return [rows.matmul(y), rows.matmul(t.contiguous().transpose(0, 1))]
      })
      return [x.matmul(y), x.matmul(t.contiguous().transpose(0, 1)), t.matmul(x.transpose(0, 1)), ...few]
    },
  },
  linear: {
    shapes: [[19, 41], [37, 41], [37], [19, 37]],
    // Of numbers and of bytes.
    run: ([x, w, bias, residual]) => {
      const words = indices(
        x,
        Int32Array.from({ length: 40 }, (_, i) => Math.imul(i + 1, 0x2545f491)),
        [5, 8],
      )
      const scales = bias.narrow(0, 0, 10).reshape([5, 2])
      const few = [1, 4, 6].map((n) => ops.quantizedLinear(x.narrow(0, 0, n).narrow(1, 0, 32), words, scales))
      return [ops.linear(x, w, bias, { activation: 'gelu', residual }), ...few]
    },
  },
  foreach: {
    shapes: [[37], [5, 37], [3]],
    run: (tensors) => {
      const copies = tensors.map((t) => t.detach().clone())
      const each = copies.map((t) => ({ outputs: [t], inputs: [t, t] }))
      ops.applyProgramIntoEach(formula, each)
      return copies
    },
  },
  total_norm: { shapes: matrix, run: ([x]) => ops.totalNorm([x, x.narrow(0, 0, 3)]) },
  rotary_embedding: { shapes: [[2, 5, 38]], run: ([x]) => ops.rotaryEmbedding(x) },
  softmax: { shapes: matrix, run: ([x]) => ops.softmax(x, -1) },
  log_softmax: { shapes: matrix, run: ([x]) => ops.logSoftmax(x, -1) },
  layer_norm: {
    shapes: affine,
    run: ([x, w, b]) => [ops.layerNorm(x, [37], w, b), ...passedBy(x, (y) => ops.layerNorm(y, [37], w, b))],
  },
  rms_norm: {
    shapes: affine.slice(0, 2),
    run: ([x, w]) => [ops.rmsNorm(x, [37], w), ...passedBy(x, (y) => ops.rmsNorm(y, [37], w))],
  },
  cross_entropy: { shapes: matrix, run: ([x]) => ops.crossEntropy(x, indices(x, [3, 36, 0, 9, 1], [5])) },
  conv: {
    shapes: [
      [2, 6, 9, 11],
      [20, 6, 3, 2],
    ],
    run: ([x, w]) => ops.conv2d(x, w, null, { padding: 1 }),
  },
  embedding: { shapes: matrix, run: ([w]) => ops.embedding(indices(w, [3, 0, 3, 1], [4]), w) },
  scaled_dot_product_attention: {
    shapes: heads,
    // Plain, and with everything that adds code of its own; both runs must drop the same weights.
    run: ([q, k, v]) => {
      const state = ops.getRngState()
      const alibi = ops.tensor(Float32Array.of(0.5, 0.25), { device: q.backend })
      const y = ops.scaledDotProductAttention(q, k, v, { isCausal: true, window: 5, alibi, dropoutP: 0.3 })
      ops.setRngState(state)
      return [ops.scaledDotProductAttention(q, k, v, { isCausal: true }), y]
    },
  },
  linear_attention: { shapes: heads, run: ([q, k, v]) => ops.linearAttention(q, k, v, { isCausal: true }) },
  gated_linear_attention: {
    shapes: [...heads, head.slice(0, 3)],
    run: ([q, k, v, log]) => ops.gatedLinearAttention(q, k, v, log.abs().neg()),
  },
})
