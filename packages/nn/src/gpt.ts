import {
  argmax,
  cat,
  checkpoint,
  crossEntropy,
  noGrad,
  rand,
  ShapeError,
  scope,
  type Tensor,
  topk,
  ValueError,
} from '@tilegrad/core'
import type { GELUKind } from './activation.ts'
import { Dropout } from './dropout.ts'
import { Embedding } from './embedding.ts'
import * as init from './init.ts'
import { Linear, positive } from './linear.ts'
import { Module } from './module.ts'
import { LayerNorm } from './norm.ts'
import { TransformerBlock } from './transformer.ts'

export interface GPTConfig {
  /** Number of different tokens, V. */
  vocabSize: number
  /** Longest sequence the model can see, in tokens. */
  blockSize: number
  numLayers: number
  numHeads: number
  /** Fewer key-value heads than query heads, a divisor of them. Default numHeads. */
  numKvHeads?: number
  embedDim: number
  /** Probability for attention weights, residual branches and embeddings; default 0. */
  dropout?: number
  /** Biases in projections and norms (the head never has one); default true. */
  bias?: boolean
  /** Default 'softmax'. */
  attention?: 'softmax' | 'linear'
  /** The head shares the token embedding's weight; default true. */
  tieWeights?: boolean
  /** Default 'exact'; GPT-2 itself used 'tanh'. */
  gelu?: GELUKind
  /**
   * While training, store each block's input only, and compute the block again in the backward pass: less memory for
   * the time of one more forward pass. Default false. See `checkpoint`.
   */
  gradientCheckpointing?: boolean
}

export interface GPTOutput<L extends Tensor | null> {
  /** (B, T, V) */
  logits: Tensor
  /** Mean cross-entropy in nats, a scalar; null without targets. */
  loss: L
}

export interface GenerateOptions {
  maxNewTokens: number
  /** Divides the logits; 0 takes the likeliest token. Default 1. */
  temperature?: number
  /** Choose among the k likeliest tokens only. Default: all. */
  topK?: number
}

/**
 * A GPT-2 style language model (Radford et al. 2019): token and position embeddings, pre-norm transformer blocks, a
 * final norm and a linear head. Parameter names are GPT-2's: `wte.weight`, `wpe.weight`, `h.0.ln_1.weight`,
 * `h.0.attn.c_attn.weight`, `h.0.mlp.c_fc.weight`, `ln_f.weight`, `lm_head.weight`; Linear weights are (out, in).
 *
 * Initialised as GPT-2: weights normal with deviation 0.02, of projections onto the residual stream
 * 0.02 / √(2 · numLayers), biases zero.
 *
 * @throws ValueError for sizes that are not positive integers or do not divide.
 * @example
 * manualSeed(1)
 * const model = new GPT({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 })
 * const optimizer = new AdamW(decayGroups(model, 0.1), { lr: 1e-3, betas: [0.9, 0.95] })
 * const tokens = randint(0, 11, [4, 9])
 *
 * const loss = scope(() => {
 *   const { loss } = model.forward(tokens.narrow(1, 0, 8), tokens.narrow(1, 1, 8))
 *   loss.backward()
 *   clipGradNorm(model.parameters(), 1)
 *   optimizer.step()
 *   optimizer.zeroGrad()
 *   return loss
 * })
 * Math.abs((await loss.item()) - Math.log(11)) < 0.5 // → true
 */
export class GPT extends Module {
  readonly config: Readonly<GPTConfig>
  wte: Embedding
  wpe: Embedding
  drop: Dropout
  h: TransformerBlock[]
  ln_f: LayerNorm
  lm_head: Linear

  constructor(config: GPTConfig) {
    super()
    const { vocabSize, blockSize, numLayers, numHeads, embedDim, tieWeights = true } = config
    const { dropout = 0, bias = true, attention = 'softmax', gelu = 'exact', numKvHeads = numHeads } = config
    positive('GPT', { vocabSize, blockSize, numLayers, numHeads, embedDim })
    this.config = { ...config }
    this.wte = new Embedding(vocabSize, embedDim)
    this.wpe = new Embedding(blockSize, embedDim)
    this.drop = new Dropout(dropout)
    const block = { dropout, bias, attention, gelu, numKvHeads, isCausal: true }
    this.h = Array.from({ length: numLayers }, () => new TransformerBlock(embedDim, numHeads, block))
    this.ln_f = new LayerNorm(embedDim, { bias })
    this.lm_head = new Linear(embedDim, vocabSize, { bias: false })
    if (tieWeights) {
      this.lm_head.weight.dispose()
      this.lm_head.weight = this.wte.weight
    }
    this.resetParameters()
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    for (const module of this.modules()) {
      if (module instanceof Linear || module instanceof Embedding) init.normal_(module.weight, 0, 0.02)
      if (module instanceof Linear && module.bias) init.zeros_(module.bias)
      if (module instanceof LayerNorm) {
        if (module.weight) init.ones_(module.weight)
        if (module.bias) init.zeros_(module.bias)
      }
    }
    const std = 0.02 / Math.sqrt(2 * this.h.length)
    for (const { attn, mlp } of this.h) {
      init.normal_(attn.outProj.weight, 0, std)
      init.normal_(mlp.c_proj.weight, 0, std)
    }
  }

  /** Token indices (B, T) → what the head sees, (B, T, embedDim). */
  #hidden(idx: Tensor): Tensor {
    const [, t] = idx.shape
    const { blockSize } = this.config
    if (t === undefined || idx.rank !== 2 || t > blockSize) {
      throw new ShapeError(
        `GPT: idx must be (B, T) with T ≤ blockSize = ${blockSize}, got [${idx.shape.join(', ')}]`,
      )
    }
    // Positions are 0 … T−1, so that the lookup is a slice.
    let x = this.drop.forward(this.wte.forward(idx).add(this.wpe.weight.narrow(0, 0, t)))
    const saves = this.training && this.config.gradientCheckpointing === true
    for (const block of this.h) x = saves ? checkpoint((x) => block.forward(x), x) : block.forward(x)
    return this.ln_f.forward(x)
  }

  /**
   * Logits of the next token at every position.
   *
   * @param idx int32 tokens (B, T), T ≤ blockSize
   * @throws ShapeError if T exceeds blockSize, DTypeError if idx is not int32.
   */
  forward(idx: Tensor): GPTOutput<null>
  /**
   * Logits of the next token at every position, and the loss.
   *
   * @param idx int32 tokens (B, T), T ≤ blockSize
   * @param targets int32 next tokens (B, T); −100 does not count.
   * @throws ShapeError if T exceeds blockSize or the shapes differ, DTypeError if a tensor is not int32.
   */
  forward(idx: Tensor, targets: Tensor): GPTOutput<Tensor>
  forward(idx: Tensor, targets?: Tensor): GPTOutput<Tensor | null>
  forward(idx: Tensor, targets?: Tensor): GPTOutput<Tensor | null> {
    const logits = this.lm_head.forward(this.#hidden(idx))
    if (!targets) return { logits, loss: null }
    if (targets.shape.join() !== idx.shape.join()) {
      throw new ShapeError(
        `GPT: targets [${targets.shape.join(', ')}] must have the shape of idx, [${idx.shape.join(', ')}]`,
      )
    }
    const loss = crossEntropy(
      logits.reshape([idx.numel, this.config.vocabSize]),
      targets.reshape([idx.numel]),
    )
    return { logits, loss }
  }

  /**
   * Continues sequences token by token, drawing from `manualSeed`'s generator, in evaluation mode and untaped. Each
   * token is computed from the last blockSize tokens anew. Nothing is read back: sampling runs on the device, by
   * adding Gumbel noise to the logits and taking the largest.
   *
   * @param idx int32 tokens (B, T), T ≥ 1; longer than blockSize is cropped for computing only.
   * @returns int32 (B, T + maxNewTokens), beginning with idx; a tensor of the caller's scope.
   * @throws ValueError for a negative temperature, a topK below 1 or a maxNewTokens that is no whole number.
   * @example
   * manualSeed(1)
   * const model = new GPT({ vocabSize: 11, blockSize: 8, numLayers: 1, numHeads: 2, embedDim: 16 })
   * const start = tensor([[1, 2, 3]], { dtype: 'int32' })
   * const tokens = model.generate(start, { maxNewTokens: 5, temperature: 0.8, topK: 4 })
   * tokens.shape // → 1,8
   */
  generate(idx: Tensor, { maxNewTokens, temperature = 1, topK }: GenerateOptions): Tensor {
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 0) {
      throw new ValueError(`GPT.generate: maxNewTokens must be a whole number, got ${maxNewTokens}`)
    }
    if (!(temperature >= 0)) throw new ValueError(`GPT.generate: temperature must be ≥ 0, got ${temperature}`)
    if (topK !== undefined) positive('GPT.generate', { topK })
    if (idx.rank !== 2 || idx.shape[1] === 0) {
      throw new ShapeError(
        `GPT.generate: idx must be (B, T) with at least one token, got [${idx.shape.join(', ')}]`,
      )
    }
    const { blockSize, vocabSize } = this.config
    const modes = this.modules().map((module) => [module, module.training] as const)
    this.eval()
    try {
      let tokens = noGrad(() => scope(() => idx.clone()))
      for (let n = 0; n < maxNewTokens; n++) {
        const before = tokens
        tokens = noGrad(() =>
          scope(() => {
            const length = before.shape[1] as number
            const seen = Math.min(length, blockSize)
            const hidden = this.#hidden(before.narrow(1, length - seen, seen))
            const logits = this.lm_head.forward(hidden.select(1, seen - 1))
            const next = sample(logits, temperature, Math.min(topK ?? vocabSize, vocabSize))
            return cat([before, next], 1)
          }),
        )
        before.dispose()
      }
      return tokens
    } finally {
      for (const [module, mode] of modes) module.training = mode
    }
  }
}

/** One token per row of logits (B, V), (B, 1): from softmax(logits / temperature) restricted to the k largest. */
function sample(logits: Tensor, temperature: number, k: number): Tensor {
  if (temperature === 0) return argmax(logits, 1, { keepdim: true })
  let allowed = logits
  if (k < (logits.shape[1] as number)) {
    const least = topk(logits, k, 1)[0].narrow(1, k - 1, 1)
    allowed = logits.maskedFill(logits.lt(least), -Infinity)
  }
  // The largest of logit + Gumbel noise is distributed as the softmax (Gumbel 1954; Maddison et al. 2014).
  const uniform = rand(logits.shape, { device: logits.backend, dtype: logits.dtype })
  const gumbel = uniform.log().neg().log().neg()
  return argmax(allowed.div(temperature).add(gumbel), 1, { keepdim: true })
}
