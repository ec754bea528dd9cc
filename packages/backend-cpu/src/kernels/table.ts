/** All kernels of the CPU backend. A missing primitive is an error of types; a fused kernel is one line. */

import type { KernelTable, Primitives } from '@tilegrad/core'
import type { Engine } from '../engine.ts'
import { attention, attentionBackward } from './attention/attention.ts'
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

export function kernelTable(engine: Engine): KernelTable {
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
  }
}
