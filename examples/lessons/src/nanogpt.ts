/**
 * nanoGPT (Andrej Karpathy, 2022, github.com/karpathy/nanoGPT, model.py and train.py): GPT-2 with attention in one call, groups of
 * parameters with and without decay, a rate that warms up and falls by a cosine, accumulated and clipped gradients, generation with
 * temperature and the k best.
 */
import {
  AdamW,
  arange,
  cat,
  clipGradNorm,
  crossEntropy,
  Dropout,
  Embedding,
  GELU,
  init,
  LayerNorm,
  Linear,
  Module,
  ModuleDict,
  ModuleList,
  manualSeed,
  multinomial,
  noGrad,
  scaledDotProductAttention,
  softmax,
  type Tensor,
  topk,
  zeros,
} from 'tilegrad'
import { encodeText, getBatch, readText } from './text.ts'

export interface GPTConfig {
  blockSize: number
  vocabSize: number
  nLayer: number
  nHead: number
  nEmbd: number
  dropout: number
  bias: boolean
}

class CausalSelfAttention extends Module {
  c_attn: Linear
  c_proj: Linear
  residDropout: Dropout
  readonly nHead: number
  readonly dropout: number

  constructor({ nEmbd, nHead, dropout, bias }: GPTConfig) {
    super()
    // key, query, value projections for all heads, but in a batch
    this.c_attn = new Linear(nEmbd, 3 * nEmbd, { bias })
    this.c_proj = new Linear(nEmbd, nEmbd, { bias })
    this.residDropout = new Dropout(dropout)
    this.nHead = nHead
    this.dropout = dropout
  }

  forward(x: Tensor): Tensor {
    const [B, T, C] = x.sizes(3)
    const heads = (t: Tensor): Tensor => t.view([B, T, this.nHead, C / this.nHead]).transpose(1, 2) // (B, nh, T, hs)
    const [q, k, v] = this.c_attn.forward(x).split(C, 2).map(heads) as [Tensor, Tensor, Tensor]
    const dropoutP = this.training ? this.dropout : 0
    const y = scaledDotProductAttention(q, k, v, { isCausal: true, dropoutP })
    return this.residDropout.forward(this.c_proj.forward(y.transpose(1, 2).reshape([B, T, C])))
  }
}

class MLP extends Module {
  c_fc: Linear
  gelu = new GELU()
  c_proj: Linear
  dropout: Dropout

  constructor({ nEmbd, dropout, bias }: GPTConfig) {
    super()
    this.c_fc = new Linear(nEmbd, 4 * nEmbd, { bias })
    this.c_proj = new Linear(4 * nEmbd, nEmbd, { bias })
    this.dropout = new Dropout(dropout)
  }

  forward(x: Tensor): Tensor {
    return this.dropout.forward(this.c_proj.forward(this.gelu.forward(this.c_fc.forward(x))))
  }
}

class Block extends Module {
  ln_1: LayerNorm
  attn: CausalSelfAttention
  ln_2: LayerNorm
  mlp: MLP

  constructor(config: GPTConfig) {
    super()
    this.ln_1 = new LayerNorm(config.nEmbd, { bias: config.bias })
    this.attn = new CausalSelfAttention(config)
    this.ln_2 = new LayerNorm(config.nEmbd, { bias: config.bias })
    this.mlp = new MLP(config)
  }

  forward(x: Tensor): Tensor {
    x = x.add(this.attn.forward(this.ln_1.forward(x)))
    return x.add(this.mlp.forward(this.ln_2.forward(x)))
  }
}

export class GPT extends Module {
  transformer: ModuleDict<{
    wte: Embedding
    wpe: Embedding
    drop: Dropout
    h: ModuleList<Block>
    ln_f: LayerNorm
  }>
  lm_head: Linear

  readonly config: GPTConfig

  constructor(config: GPTConfig) {
    super()
    this.config = config
    const { vocabSize, blockSize, nEmbd, nLayer, dropout, bias } = config
    this.transformer = new ModuleDict({
      wte: new Embedding(vocabSize, nEmbd),
      wpe: new Embedding(blockSize, nEmbd),
      drop: new Dropout(dropout),
      h: new ModuleList(Array.from({ length: nLayer }, () => new Block(config))),
      ln_f: new LayerNorm(nEmbd, { bias }),
    })
    this.lm_head = new Linear(nEmbd, vocabSize, { bias: false })
    this.transformer.get('wte').weight = this.lm_head.weight // weight tying
    this.apply((module) => {
      if (module instanceof Linear) {
        init.normal_(module.weight, 0, 0.02)
        if (module.bias) init.zeros_(module.bias)
      } else if (module instanceof Embedding) init.normal_(module.weight, 0, 0.02)
    })
    // apply special scaled init to the residual projections, per GPT-2 paper
    for (const [name, p] of this.namedParameters())
      if (name.endsWith('c_proj.weight')) init.normal_(p, 0, 0.02 / Math.sqrt(2 * nLayer))
  }

  forward(idx: Tensor, targets?: Tensor): { logits: Tensor; loss: Tensor | null } {
    const [, t] = idx.sizes(2)
    const { blockSize } = this.config
    if (t > blockSize)
      throw new Error(`Cannot forward sequence of length ${t}, block size is only ${blockSize}`)
    const tokEmb = this.transformer.get('wte').forward(idx) // (b, t, nEmbd)
    const posEmb = this.transformer.get('wpe').forward(arange(t)) // (t, nEmbd)
    let x = this.transformer.get('drop').forward(tokEmb.add(posEmb))
    for (const block of this.transformer.get('h')) x = block.forward(x)
    x = this.transformer.get('ln_f').forward(x)
    // inference-time mini-optimization: only forward the lm_head on the very last position
    if (!targets) return { logits: this.lm_head.forward(x.at(':', '-1:')), loss: null }
    const logits = this.lm_head.forward(x)
    return { logits, loss: crossEntropy(logits.flatten(0, 1), targets.flatten(), { ignoreIndex: -1 }) }
  }

  configureOptimizers(weightDecay: number, lr: number, betas: [number, number]): AdamW {
    // any parameter that is 2D will be weight decayed, otherwise no
    const params = this.parameters().filter((p) => p.requiresGrad)
    const groups = [
      { params: params.filter((p) => p.rank >= 2), weightDecay },
      { params: params.filter((p) => p.rank < 2), weightDecay: 0 },
    ]
    return new AdamW(
      groups.filter(({ params }) => params.length > 0),
      { lr, betas },
    )
  }

  generate(idx: Tensor, maxNewTokens: number, { temperature = 1, topK = 0 } = {}): Tensor {
    for (let i = 0; i < maxNewTokens; i++) {
      const idxCond = idx.at(':', `-${this.config.blockSize}:`)
      let logits = this.forward(idxCond).logits.at(':', -1).div(temperature)
      if (topK > 0) {
        const [v] = topk(logits, topK)
        logits = logits.maskedFill(logits.lt(v.at(':', '-1:')), -Infinity)
      }
      idx = cat([idx, multinomial(softmax(logits, -1), 1)], 1)
    }
    return idx
  }
}

const defaults = {
  ...{
    nLayer: 2,
    nHead: 4,
    nEmbd: 64,
    blockSize: 32,
    dropout: 0,
    bias: false,
    batchSize: 12,
    textLength: 200_000,
  },
  ...{
    maxIters: 300,
    gradientAccumulationSteps: 2,
    learningRate: 1e-3,
    minLr: 1e-4,
    warmupIters: 20,
    lrDecayIters: 300,
  },
  ...{ weightDecay: 0.1, gradClip: 1, evalIters: 20, log: console.log },
}

export async function main(options: Partial<typeof defaults> = {}): Promise<number> {
  const config = { ...defaults, ...options }
  const { batchSize, blockSize, maxIters, gradientAccumulationSteps, learningRate, minLr, log } = config
  manualSeed(1337)
  const { vocabSize, trainData, valData, decode } = encodeText(readText(config.textLength))
  const model = new GPT({ ...config, vocabSize })
  log(`number of parameters: ${(model.numParameters() / 1e6).toFixed(2)} M`)
  const optimizer = model.configureOptimizers(config.weightDecay, learningRate, [0.9, 0.99])

  const getLr = (it: number): number => {
    if (it < config.warmupIters) return (learningRate * (it + 1)) / (config.warmupIters + 1)
    if (it > config.lrDecayIters) return minLr
    const decayRatio = (it - config.warmupIters) / (config.lrDecayIters - config.warmupIters)
    return minLr + 0.5 * (1 + Math.cos(Math.PI * decayRatio)) * (learningRate - minLr)
  }
  const estimateLoss = async (): Promise<number> => {
    model.eval()
    let sum = 0
    for (let k = 0; k < config.evalIters; k++) {
      const [x, y] = getBatch(valData, batchSize, blockSize)
      sum += (await noGrad(() => model.forward(x, y).loss)?.item()) ?? 0
    }
    model.train()
    return sum / config.evalIters
  }

  for (let iter = 0; iter < maxIters; iter++) {
    optimizer.lr = getLr(iter)
    if (iter % 100 === 0) log(`step ${iter}: val loss ${(await estimateLoss()).toFixed(4)}`)
    for (let micro = 0; micro < gradientAccumulationSteps; micro++) {
      const { loss } = model.forward(...getBatch(trainData, batchSize, blockSize))
      loss?.div(gradientAccumulationSteps).backward()
    }
    clipGradNorm(model.parameters(), config.gradClip)
    optimizer.step()
    optimizer.zeroGrad()
  }
  const last = await estimateLoss()
  log(`val loss ${last.toFixed(4)}`)
  model.eval()
  const start = zeros([1, 1], { dtype: 'int32' })
  log(decode(await noGrad(() => model.generate(start, 200, { temperature: 0.8, topK: 20 })).data()))
  return last
}
