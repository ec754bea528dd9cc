/** All kernels of the CPU backend. A missing primitive is an error of types; a fused kernel is one line. */

import type { KernelTable, Primitives } from '@tilegrad/core'
import type { Engine } from '../engine.ts'
import { argReduce } from './arg-reduce.ts'
import { attention, attentionBackward } from './attention.ts'
import { crossEntropy, crossEntropyBackward } from './cross-entropy.ts'
import { elementwise } from './elementwise.ts'
import { embedding, embeddingBackward } from './embedding.ts'
import { either, fallbackKernels } from './fallback.ts'
import { foreach } from './foreach.ts'
import { gatedLinearAttention, gatedLinearAttentionBackward } from './gated-linear-attention.ts'
import { gather, scatterAdd } from './indexing.ts'
import { layerNorm, layerNormBackward, rmsNorm, rmsNormBackward } from './layer-norm.ts'
import { linear } from './linear.ts'
import { linearAttention, linearAttentionBackward } from './linear-attention.ts'
import { matmul } from './matmul.ts'
import { reduce } from './reduce.ts'
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
