/** All kernels of the WebGPU backend. A missing primitive is an error of types; a fused kernel is one line. */

import { type KernelOf, type KernelTable, type Primitives, wrapKernels } from '@tilegrad/core'
import type { Engine } from '../commands/queue.ts'
import { Memory } from '../commands/replay.ts'
import { attention, attentionBackward, attentionRow } from './attention/attention.ts'
import { crossEntropy, crossEntropyBackward } from './cross-entropy.ts'
import { elementwise } from './elementwise/elementwise.ts'
import { foreach } from './elementwise/foreach.ts'
import { cat } from './indexing/cat.ts'
import { embedding, embeddingBackward } from './indexing/embedding.ts'
import { gather } from './indexing/gather.ts'
import { scatterAdd } from './indexing/scatter-add.ts'
import { gatedLinearAttention, gatedLinearAttentionBackward } from './linear-attention/gated.ts'
import { linearAttention, linearAttentionBackward } from './linear-attention/linear-attention.ts'
import { linear } from './matmul/linear.ts'
import { matmul } from './matmul/matmul.ts'
import { normLinear } from './matmul/packed.ts'
import { layerNorm, layerNormBackward, rmsNorm, rmsNormBackward } from './norm/layer-norm.ts'
import { argReduce } from './reduce/arg-reduce.ts'
import { reduce } from './reduce/reduce.ts'
import { rotaryEmbedding } from './rotary.ts'
import { scan } from './scan.ts'
import { logSoftmax, logSoftmaxBackward, softmax, softmaxBackward } from './softmax.ts'
import { sort } from './sort.ts'
import { totalNorm } from './total-norm.ts'

/** A kernel of elements that fill words. */
const ofWords = <A>(kernel: KernelOf<A>): KernelOf<A> => ({
  dtypes: [['float32', 'int32', 'bool']],
  ...kernel,
})

export function kernelTable(engine: Engine): KernelTable {
  const primitives: Primitives = {
    elementwise: elementwise(engine),
    reduce: reduce(engine),
    argReduce: ofWords(argReduce(engine)),
    matmul: ofWords(matmul(engine)),
    gather: ofWords(gather(engine)),
    scatterAdd: ofWords(scatterAdd(engine)),
    scan: ofWords(scan(engine)),
    sort: ofWords(sort(engine)),
  }
  const table: KernelTable = {
    ...primitives,
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
    embeddingBackward: embeddingBackward(engine),
    scaled_dot_product_attention: attention(engine),
    scaled_dot_product_attentionBackward: attentionBackward(engine),
    attention_row: attentionRow(engine),
    rotary_embedding: rotaryEmbedding(engine),
    linear_attention: linearAttention(engine),
    linear_attentionBackward: linearAttentionBackward(engine),
    gated_linear_attention: gatedLinearAttention(engine),
    gated_linear_attentionBackward: gatedLinearAttentionBackward(engine, primitives.scan),
    linear: linear(engine),
    norm_linear: normLinear(engine),
    foreach: foreach(engine),
    cat: ofWords(cat(engine)),
    total_norm: totalNorm(engine),
  }
  const memory = new Memory(engine)
  return wrapKernels(table, (kernel, name) => memory.recorded(name, kernel))
}
