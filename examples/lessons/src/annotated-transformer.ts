/**
 * The Annotated Transformer (Alexander Rush, 2018; Austin Huang and others, 2022, github.com/harvardnlp/annotated-transformer): the
 * encoder and decoder of "Attention Is All You Need" (Vaswani et al. 2017) part by part, down to attention and norms, with its
 * schedule and smoothed labels, taught to copy a row of numbers.
 */
import {
  Adam,
  arange,
  cat,
  Dropout,
  Embedding,
  full,
  init,
  KLDivLoss,
  LambdaLR,
  Linear,
  logSoftmax,
  Module,
  ModuleList,
  manualSeed,
  noGrad,
  ones,
  parameter,
  randint,
  softmax,
  stack,
  type Tensor,
  triu,
  zeros,
} from 'tilegrad'

const defaults = {
  V: 11,
  N: 2,
  dModel: 64,
  dFF: 128,
  h: 4,
  dropout: 0.1,
  batch: 32,
  steps: 300,
  warmup: 100,
  log: console.log,
}

/** The frame of encoders and decoders: what stands in it is handed over. */
class EncoderDecoder extends Module {
  encoder: Encoder
  decoder: Decoder
  srcEmbed: Embeddings
  tgtEmbed: Embeddings
  position: PositionalEncoding
  generator: Generator

  constructor(
    encoder: Encoder,
    decoder: Decoder,
    srcEmbed: Embeddings,
    tgtEmbed: Embeddings,
    position: PositionalEncoding,
    generator: Generator,
  ) {
    super()
    this.encoder = encoder
    this.decoder = decoder
    this.srcEmbed = srcEmbed
    this.tgtEmbed = tgtEmbed
    this.position = position
    this.generator = generator
  }

  /** Takes masked sources and targets. */
  forward(src: Tensor, tgt: Tensor, srcMask: Tensor, tgtMask: Tensor): Tensor {
    return this.decode(this.encode(src, srcMask), srcMask, tgt, tgtMask)
  }

  encode(src: Tensor, srcMask: Tensor): Tensor {
    return this.encoder.forward(this.position.forward(this.srcEmbed.forward(src)), srcMask)
  }

  decode(memory: Tensor, srcMask: Tensor, tgt: Tensor, tgtMask: Tensor): Tensor {
    return this.decoder.forward(this.position.forward(this.tgtEmbed.forward(tgt)), memory, srcMask, tgtMask)
  }
}

/** A linear layer and softmax over the words. */
class Generator extends Module {
  proj: Linear

  constructor(dModel: number, vocab: number) {
    super()
    this.proj = new Linear(dModel, vocab)
  }

  forward(x: Tensor): Tensor {
    return logSoftmax(this.proj.forward(x), -1)
  }
}

/** N modules alike. */
const clones = <M extends Module>(make: () => M, N: number): ModuleList<M> =>
  new ModuleList(Array.from({ length: N }, make))

/** N layers and a norm. */
class Encoder extends Module {
  layers: ModuleList<EncoderLayer>
  norm: LayerNorm

  constructor(size: number, layer: () => EncoderLayer, N: number) {
    super()
    this.layers = clones(layer, N)
    this.norm = new LayerNorm(size)
  }

  forward(x: Tensor, mask: Tensor): Tensor {
    for (const layer of this.layers) x = layer.forward(x, mask)
    return this.norm.forward(x)
  }
}

class LayerNorm extends Module {
  a_2: Tensor
  b_2: Tensor
  eps: number

  constructor(features: number, eps = 1e-6) {
    super()
    this.eps = eps
    this.a_2 = parameter(ones([features]))
    this.b_2 = parameter(zeros([features]))
  }

  forward(x: Tensor): Tensor {
    const mean = x.mean(-1, { keepdim: true })
    const std = x.std(-1, { keepdim: true })
    return this.a_2.mul(x.sub(mean)).div(std.add(this.eps)).add(this.b_2)
  }
}

/** What a layer adds to its input: norm first, then the layer, then dropout. */
class SublayerConnection extends Module {
  norm: LayerNorm
  dropout: Dropout

  constructor(size: number, dropout: number) {
    super()
    this.norm = new LayerNorm(size)
    this.dropout = new Dropout(dropout)
  }

  forward(x: Tensor, sublayer: (x: Tensor) => Tensor): Tensor {
    return x.add(this.dropout.forward(sublayer(this.norm.forward(x))))
  }
}

/** Attention to itself, then a network for each position. */
class EncoderLayer extends Module {
  sublayer: ModuleList<SublayerConnection>
  selfAttn: MultiHeadedAttention
  feedForward: PositionwiseFeedForward

  constructor(
    size: number,
    selfAttn: MultiHeadedAttention,
    feedForward: PositionwiseFeedForward,
    dropout: number,
  ) {
    super()
    this.selfAttn = selfAttn
    this.feedForward = feedForward
    this.sublayer = clones(() => new SublayerConnection(size, dropout), 2)
  }

  forward(x: Tensor, mask: Tensor): Tensor {
    x = this.sublayer.at(0).forward(x, (x) => this.selfAttn.forward(x, x, x, mask))
    return this.sublayer.at(1).forward(x, (x) => this.feedForward.forward(x))
  }
}

/** N layers that see the memory, and a norm. */
class Decoder extends Module {
  layers: ModuleList<DecoderLayer>
  norm: LayerNorm

  constructor(size: number, layer: () => DecoderLayer, N: number) {
    super()
    this.layers = clones(layer, N)
    this.norm = new LayerNorm(size)
  }

  forward(x: Tensor, memory: Tensor, srcMask: Tensor, tgtMask: Tensor): Tensor {
    for (const layer of this.layers) x = layer.forward(x, memory, srcMask, tgtMask)
    return this.norm.forward(x)
  }
}

/** Attention to itself, to the source, then a network for each position. */
class DecoderLayer extends Module {
  sublayer: ModuleList<SublayerConnection>
  selfAttn: MultiHeadedAttention
  srcAttn: MultiHeadedAttention
  feedForward: PositionwiseFeedForward

  constructor(
    size: number,
    selfAttn: MultiHeadedAttention,
    srcAttn: MultiHeadedAttention,
    feedForward: PositionwiseFeedForward,
    dropout: number,
  ) {
    super()
    this.selfAttn = selfAttn
    this.srcAttn = srcAttn
    this.feedForward = feedForward
    this.sublayer = clones(() => new SublayerConnection(size, dropout), 3)
  }

  forward(x: Tensor, memory: Tensor, srcMask: Tensor, tgtMask: Tensor): Tensor {
    const m = memory
    x = this.sublayer.at(0).forward(x, (x) => this.selfAttn.forward(x, x, x, tgtMask))
    x = this.sublayer.at(1).forward(x, (x) => this.srcAttn.forward(x, m, m, srcMask))
    return this.sublayer.at(2).forward(x, (x) => this.feedForward.forward(x))
  }
}

/** Where a position may look: not ahead. */
const subsequentMask = (size: number): Tensor => triu(ones([1, size, size]), 1).eq(0)

function attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: Dropout): Tensor {
  const dK = query.size(-1)
  const scores = query.matmul(key.transpose(-2, -1)).div(Math.sqrt(dK))
  const pAttn = softmax(scores.maskedFill(mask.eq(0), -1e9), -1)
  return dropout.forward(pAttn).matmul(value)
}

class MultiHeadedAttention extends Module {
  dK: number
  linears: ModuleList<Linear>
  dropout: Dropout
  h: number

  constructor(h: number, dModel: number, dropout: number) {
    super()
    this.h = h
    this.dK = dModel / h
    this.linears = clones(() => new Linear(dModel, dModel), 4)
    this.dropout = new Dropout(dropout)
  }

  forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor): Tensor {
    mask = mask.unsqueeze(1) // the same for all heads
    const nbatches = query.size(0)
    // 1) project to h heads of dK
    const project = (i: number, x: Tensor) =>
      this.linears.at(i).forward(x).view([nbatches, -1, this.h, this.dK]).transpose(1, 2)
    const [q, k, v] = [project(0, query), project(1, key), project(2, value)]
    // 2) attend in all heads at once
    const x = attention(q, k, v, mask, this.dropout)
    // 3) put the heads beside each other, and a last layer
    return this.linears.at(-1).forward(x.transpose(1, 2).reshape([nbatches, -1, this.h * this.dK]))
  }
}

class PositionwiseFeedForward extends Module {
  w_1: Linear
  w_2: Linear
  dropout: Dropout

  constructor(dModel: number, dFF: number, dropout: number) {
    super()
    this.w_1 = new Linear(dModel, dFF)
    this.w_2 = new Linear(dFF, dModel)
    this.dropout = new Dropout(dropout)
  }

  forward(x: Tensor): Tensor {
    return this.w_2.forward(this.dropout.forward(this.w_1.forward(x).relu()))
  }
}

class Embeddings extends Module {
  lut: Embedding
  dModel: number

  constructor(dModel: number, vocab: number) {
    super()
    this.dModel = dModel
    this.lut = new Embedding(vocab, dModel)
  }

  forward(x: Tensor): Tensor {
    return this.lut.forward(x).mul(Math.sqrt(this.dModel))
  }
}

class PositionalEncoding extends Module {
  pe: Tensor
  dropout: Dropout

  constructor(dModel: number, dropout: number, maxLen = 100) {
    super()
    this.dropout = new Dropout(dropout)
    const position = arange(maxLen).unsqueeze(1)
    const divTerm = arange(0, dModel, 2)
      .mul(-Math.log(10000) / dModel)
      .exp()
    const angles = position.mul(divTerm) // (maxLen, dModel / 2)
    this.pe = stack([angles.sin(), angles.cos()], 2).flatten(1) // sin, cos, sin, cos …
  }

  forward(x: Tensor): Tensor {
    return this.dropout.forward(x.add(this.pe.at(`:${x.size(1)}`)))
  }
}

function makeModel({ V, N, dModel, dFF, h, dropout }: typeof defaults): EncoderDecoder {
  const attn = () => new MultiHeadedAttention(h, dModel, dropout)
  const ff = () => new PositionwiseFeedForward(dModel, dFF, dropout)
  const model = new EncoderDecoder(
    new Encoder(dModel, () => new EncoderLayer(dModel, attn(), ff(), dropout), N),
    new Decoder(dModel, () => new DecoderLayer(dModel, attn(), attn(), ff(), dropout), N),
    new Embeddings(dModel, V),
    new Embeddings(dModel, V),
    new PositionalEncoding(dModel, dropout),
    new Generator(dModel, V),
  )
  for (const p of model.parameters()) if (p.rank > 1) init.xavierUniform_(p)
  return model
}

/** Rows and their masks for training. */
class Batch {
  srcMask: Tensor
  tgt: Tensor
  tgtY: Tensor
  tgtMask: Tensor
  ntokens: Tensor
  src: Tensor

  constructor(src: Tensor, tgt: Tensor, pad: number) {
    this.src = src
    this.srcMask = src.ne(pad).unsqueeze(-2)
    this.tgt = tgt.at(':', ':-1')
    this.tgtY = tgt.at(':', '1:')
    this.tgtMask = this.tgt
      .ne(pad)
      .unsqueeze(-2)
      .logicalAnd(subsequentMask(this.tgt.size(-1)))
    this.ntokens = this.tgtY.ne(pad).sum()
  }
}

/** The schedule of the paper: a line up, and then 1 / √step. */
const rate = (step: number, modelSize: number, factor: number, warmup: number): number => {
  if (step === 0) step = 1
  return factor * modelSize ** -0.5 * Math.min(step ** -0.5, step * warmup ** -1.5)
}

/** The distance to a distribution that gives most to the right word, a little to all others, and nothing to padding. */
class LabelSmoothing extends Module {
  criterion = new KLDivLoss({ reduction: 'sum' })
  size: number
  paddingIdx: number
  smoothing: number

  constructor(size: number, paddingIdx: number, smoothing: number) {
    super()
    this.size = size
    this.paddingIdx = paddingIdx
    this.smoothing = smoothing
  }

  forward(x: Tensor, target: Tensor): Tensor {
    const trueDist = full(x.shape, this.smoothing / (this.size - 2))
      .scatter(1, target.unsqueeze(1), 1 - this.smoothing)
      .indexPut([':', this.paddingIdx], 0)
      .maskedFill(target.eq(this.paddingIdx).unsqueeze(1), 0)
    return this.criterion.forward(x, trueDist)
  }
}

/** Rows of random numbers that begin with 1. */
const dataGen = (V: number, batch: number): Tensor =>
  cat([ones([batch, 1], { dtype: 'int32' }), randint(1, V, [batch, 9])], 1)

function greedyDecode(model: EncoderDecoder, src: Tensor, srcMask: Tensor, maxLen: number): Tensor {
  const memory = model.encode(src, srcMask)
  let ys = src.at(':', ':1')
  for (let i = 0; i < maxLen - 1; i++) {
    const out = model.decode(memory, srcMask, ys, subsequentMask(ys.size(1)))
    const prob = model.generator.forward(out.at(':', -1))
    ys = cat([ys, prob.argmax(1, { keepdim: true })], 1)
  }
  return ys
}

export async function main(options: Partial<typeof defaults> = {}): Promise<number> {
  const config = { ...defaults, ...options }
  const { V, dModel, steps, warmup, log } = config
  manualSeed(1)
  const criterion = new LabelSmoothing(V, 0, 0.1)
  const model = makeModel(config)
  const optimizer = new Adam(model.parameters(), { lr: 0.5, betas: [0.9, 0.98], eps: 1e-9 })
  const lrScheduler = new LambdaLR(optimizer, (step) => rate(step, dModel, 1, warmup))

  for (let i = 0; i < steps; i++) {
    const data = dataGen(V, config.batch)
    const batch = new Batch(data, data, 0)
    const out = model.forward(batch.src, batch.tgt, batch.srcMask, batch.tgtMask)
    const x = model.generator.forward(out)
    const loss = criterion.forward(x.view([-1, V]), batch.tgtY.flatten()).div(batch.ntokens)
    loss.backward()
    optimizer.step()
    optimizer.zeroGrad()
    lrScheduler.step()
    if (i % 50 === 0)
      log(`step ${i} | loss ${(await loss.item()).toFixed(3)} | rate ${optimizer.lr.toExponential(1)}`)
  }

  model.eval()
  const src = dataGen(V, 8)
  const copies = noGrad(() => greedyDecode(model, src, ones([8, 1, 10]).gt(0), 10))
  const right = await copies.eq(src).to('float32').mean().item()
  log(`${(await src.at(0).data()).join(' ')} → ${(await copies.at(0).data()).join(' ')}`)
  log(`copied right: ${(100 * right).toFixed(0)} %`)
  return right
}
