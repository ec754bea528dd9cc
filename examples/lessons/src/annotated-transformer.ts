/**
 * The Annotated Transformer (Alexander Rush, 2018; Austin Huang and others, 2022, github.com/harvardnlp/annotated-transformer): the
 * encoder and decoder of "Attention Is All You Need" (Vaswani et al. 2017) with its own positions, schedule and smoothed labels, taught
 * to copy a row of numbers.
 */
import {
  Adam,
  arange,
  cat,
  crossEntropy,
  Dropout,
  Embedding,
  exp,
  init,
  LambdaLR,
  Linear,
  Module,
  manualSeed,
  noGrad,
  ones,
  randint,
  stack,
  type Tensor,
  Transformer,
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

/** Sines and cosines of positions, added to embeddings. */
class PositionalEncoding extends Module {
  pe: Tensor
  dropout: Dropout

  constructor(dModel: number, dropout: number, maxLen = 100) {
    super()
    const position = arange(maxLen).unsqueeze(1)
    const divTerm = exp(arange(0, dModel, 2).mul(-Math.log(10000) / dModel))
    const angles = position.mul(divTerm) // (maxLen, dModel / 2)
    this.pe = stack([angles.sin(), angles.cos()], 2).flatten(1) // sin, cos, sin, cos …
    this.dropout = new Dropout(dropout)
  }

  forward(x: Tensor): Tensor {
    return this.dropout.forward(x.add(this.pe.slice(0, x.size(1))))
  }
}

class EncoderDecoder extends Module {
  srcEmbed: Embedding
  tgtEmbed: Embedding
  position: PositionalEncoding
  transformer: Transformer
  generator: Linear
  readonly scale: number

  constructor({ V, N, dModel, dFF, h, dropout }: typeof defaults) {
    super()
    this.scale = Math.sqrt(dModel)
    this.srcEmbed = new Embedding(V, dModel)
    this.tgtEmbed = new Embedding(V, dModel)
    this.position = new PositionalEncoding(dModel, dropout)
    this.transformer = new Transformer({
      ...{ dModel, nhead: h, numEncoderLayers: N, numDecoderLayers: N, dimFeedforward: dFF },
      ...{ dropout, batchFirst: true, normFirst: true },
    })
    this.generator = new Linear(dModel, V)
    for (const p of this.parameters()) if (p.rank > 1) init.xavierUniform_(p)
  }

  encode(src: Tensor): Tensor {
    return this.transformer.encoder.forward(this.position.forward(this.srcEmbed.forward(src).mul(this.scale)))
  }

  decode(memory: Tensor, tgt: Tensor): Tensor {
    const tgtMask = Transformer.generateSquareSubsequentMask(tgt.size(1))
    const x = this.position.forward(this.tgtEmbed.forward(tgt).mul(this.scale))
    return this.generator.forward(this.transformer.decoder.forward(x, memory, { tgtMask }))
  }

  forward(src: Tensor, tgt: Tensor): Tensor {
    return this.decode(this.encode(src), tgt)
  }
}

/** The schedule of the paper: a line up, and then 1 / √step. */
const rate = (step: number, modelSize: number, factor: number, warmup: number): number => {
  if (step === 0) step = 1
  return factor * modelSize ** -0.5 * Math.min(step ** -0.5, step * warmup ** -1.5)
}

/** Rows of random numbers that begin with 1. */
const dataGen = (V: number, batch: number): Tensor =>
  cat([ones([batch, 1], { dtype: 'int32' }), randint(1, V, [batch, 9])], 1)

function greedyDecode(model: EncoderDecoder, src: Tensor, maxLen: number): Tensor {
  const memory = model.encode(src)
  let ys = src.slice(0, 1, { dim: 1 })
  for (let i = 0; i < maxLen - 1; i++) {
    const prob = model.decode(memory, ys).at(':', -1)
    ys = cat([ys, prob.argmax(1, { keepdim: true })], 1)
  }
  return ys
}

export async function main(options: Partial<typeof defaults> = {}): Promise<number> {
  const config = { ...defaults, ...options }
  const { V, dModel, batch, steps, warmup, log } = config
  manualSeed(1)
  const model = new EncoderDecoder(config)
  const optimizer = new Adam(model.parameters(), { lr: 0.5, betas: [0.9, 0.98], eps: 1e-9 })
  const lrScheduler = new LambdaLR(optimizer, (step) => rate(step, dModel, 1, warmup))

  for (let i = 0; i < steps; i++) {
    const data = dataGen(V, batch)
    const [src, tgt, tgtY] = [data, data.slice(0, -1, { dim: 1 }), data.slice(1, undefined, { dim: 1 })]
    const out = model.forward(src, tgt)
    const loss = crossEntropy(out.flatten(0, 1), tgtY.flatten(), { labelSmoothing: 0.1 })
    loss.backward()
    optimizer.step()
    optimizer.zeroGrad()
    lrScheduler.step()
    if (i % 50 === 0)
      log(
        `step ${i} | loss ${(await loss.item()).toFixed(3)} | learning rate ${optimizer.lr.toExponential(1)}`,
      )
  }

  model.eval()
  const src = dataGen(V, 8)
  const copies = noGrad(() => greedyDecode(model, src, 10))
  const right = await copies.eq(src).to('float32').mean().item()
  log(`${(await src.at(0).data()).join(' ')} → ${(await copies.at(0).data()).join(' ')}`)
  log(`copied right: ${(100 * right).toFixed(0)} %`)
  return right
}
