/**
 * "Let's build GPT" (Andrej Karpathy, 2023, github.com/karpathy/ng-video-lecture, gpt.py): a transformer that reads characters, each
 * part written out: heads of attention that look back, several beside each other, a perceptron, blocks of both.
 */
import {
  AdamW,
  arange,
  cat,
  crossEntropy,
  Dropout,
  Embedding,
  LayerNorm,
  Linear,
  Module,
  ModuleList,
  manualSeed,
  multinomial,
  noGrad,
  ones,
  ReLU,
  Sequential,
  softmax,
  type Tensor,
  zeros,
} from 'tilegrad'
import { encodeText, getBatch, readText } from './text.ts'

const defaults = {
  ...{ batchSize: 16, blockSize: 32, maxIters: 500, evalInterval: 100, learningRate: 1e-3, evalIters: 20 },
  ...{ nEmbd: 64, nHead: 4, nLayer: 4, dropout: 0, textLength: 200_000, log: console.log },
}
type Config = Omit<typeof defaults, 'log'> & { vocabSize: number }

/** One head of self-attention. */
class Head extends Module {
  key: Linear
  query: Linear
  value: Linear
  tril: Tensor
  dropout: Dropout

  constructor({ nEmbd, nHead, blockSize, dropout }: Config) {
    super()
    const headSize = nEmbd / nHead
    this.key = new Linear(nEmbd, headSize, { bias: false })
    this.query = new Linear(nEmbd, headSize, { bias: false })
    this.value = new Linear(nEmbd, headSize, { bias: false })
    this.tril = ones([blockSize, blockSize]).tril()
    this.dropout = new Dropout(dropout)
  }

  forward(x: Tensor): Tensor {
    const [, T] = x.sizes(3)
    const k = this.key.forward(x) // (B, T, hs)
    const q = this.query.forward(x) // (B, T, hs)
    // compute attention scores ("affinities")
    let wei = q.matmul(k.transpose(-2, -1)).mul(k.size(-1) ** -0.5) // (B, T, hs) @ (B, hs, T) → (B, T, T)
    wei = wei.maskedFill(this.tril.at(`:${T}`, `:${T}`).eq(0), -Infinity)
    wei = this.dropout.forward(softmax(wei, -1))
    // perform the weighted aggregation of the values
    return wei.matmul(this.value.forward(x)) // (B, T, T) @ (B, T, hs) → (B, T, hs)
  }
}

/** Multiple heads of self-attention in parallel. */
class MultiHeadAttention extends Module {
  heads: ModuleList<Head>
  proj: Linear
  dropout: Dropout

  constructor(config: Config) {
    super()
    this.heads = new ModuleList(Array.from({ length: config.nHead }, () => new Head(config)))
    this.proj = new Linear(config.nEmbd, config.nEmbd)
    this.dropout = new Dropout(config.dropout)
  }

  forward(x: Tensor): Tensor {
    const out = cat(
      [...this.heads].map((h) => h.forward(x)),
      -1,
    )
    return this.dropout.forward(this.proj.forward(out))
  }
}

/** A simple linear layer followed by a non-linearity. */
class FeedForward extends Module {
  net: Sequential

  constructor({ nEmbd, dropout }: Config) {
    super()
    this.net = new Sequential(
      new Linear(nEmbd, 4 * nEmbd),
      new ReLU(),
      new Linear(4 * nEmbd, nEmbd),
      new Dropout(dropout),
    )
  }

  forward(x: Tensor): Tensor {
    return this.net.forward(x)
  }
}

/** Transformer block: communication followed by computation. */
class Block extends Module {
  sa: MultiHeadAttention
  ffwd: FeedForward
  ln1: LayerNorm
  ln2: LayerNorm

  constructor(config: Config) {
    super()
    this.sa = new MultiHeadAttention(config)
    this.ffwd = new FeedForward(config)
    this.ln1 = new LayerNorm(config.nEmbd)
    this.ln2 = new LayerNorm(config.nEmbd)
  }

  forward(x: Tensor): Tensor {
    x = x.add(this.sa.forward(this.ln1.forward(x)))
    return x.add(this.ffwd.forward(this.ln2.forward(x)))
  }
}

class GPTLanguageModel extends Module {
  tokenEmbeddingTable: Embedding
  positionEmbeddingTable: Embedding
  blocks: Sequential
  lnF: LayerNorm
  lmHead: Linear
  readonly blockSize: number

  constructor(config: Config) {
    super()
    this.blockSize = config.blockSize
    this.tokenEmbeddingTable = new Embedding(config.vocabSize, config.nEmbd)
    this.positionEmbeddingTable = new Embedding(config.blockSize, config.nEmbd)
    this.blocks = new Sequential(...Array.from({ length: config.nLayer }, () => new Block(config)))
    this.lnF = new LayerNorm(config.nEmbd)
    this.lmHead = new Linear(config.nEmbd, config.vocabSize)
  }

  /** Logits of the next characters, (B, T, vocabSize). */
  forward(idx: Tensor): Tensor {
    const [, T] = idx.sizes(2)
    const tokEmb = this.tokenEmbeddingTable.forward(idx) // (B, T, C)
    const posEmb = this.positionEmbeddingTable.forward(arange(T)) // (T, C)
    let x = tokEmb.add(posEmb) // (B, T, C)
    x = this.blocks.forward(x) // (B, T, C)
    return this.lmHead.forward(this.lnF.forward(x)) // (B, T, vocabSize)
  }

  loss(idx: Tensor, targets: Tensor): Tensor {
    return crossEntropy(this.forward(idx).flatten(0, 1), targets.flatten())
  }

  generate(idx: Tensor, maxNewTokens: number): Tensor {
    for (let i = 0; i < maxNewTokens; i++) {
      const idxCond = idx.at(':', `-${this.blockSize}:`) // crop idx to the last blockSize tokens
      const logits = this.forward(idxCond).at(':', -1) // focus only on the last time step: (B, C)
      const idxNext = multinomial(softmax(logits, -1), 1) // sample from the distribution: (B, 1)
      idx = cat([idx, idxNext], 1) // append sampled index to the running sequence: (B, T + 1)
    }
    return idx
  }
}

export async function main(options: Partial<typeof defaults> = {}): Promise<number> {
  const config = { ...defaults, ...options }
  const { batchSize, blockSize, maxIters, evalInterval, evalIters, learningRate, log } = config
  manualSeed(1337)
  const { vocabSize, trainData, valData, decode } = encodeText(readText(config.textLength))
  const model = new GPTLanguageModel({ ...config, vocabSize })
  log(`${(model.numParameters() / 1e6).toFixed(3)} M parameters`)
  const optimizer = new AdamW(model.parameters(), { lr: learningRate })

  const estimateLoss = async (data: Tensor): Promise<number> => {
    model.eval()
    let sum = 0
    for (let k = 0; k < evalIters; k++)
      sum += await noGrad(() => model.loss(...getBatch(data, batchSize, blockSize))).item()
    model.train()
    return sum / evalIters
  }

  for (let iter = 0; iter < maxIters; iter++) {
    if (iter % evalInterval === 0)
      log(
        `step ${iter}: train loss ${(await estimateLoss(trainData)).toFixed(4)}, val loss ${(await estimateLoss(valData)).toFixed(4)}`,
      )
    const [xb, yb] = getBatch(trainData, batchSize, blockSize)
    const loss = model.loss(xb, yb)
    optimizer.zeroGrad()
    loss.backward()
    optimizer.step()
  }
  const last = await estimateLoss(valData)
  log(`val loss ${last.toFixed(4)}`)
  const sample = noGrad(() => model.generate(zeros([1, 1], { dtype: 'int32' }), 200))
  log(decode(await sample.data()))
  return last
}
