import type { Tensor } from '@tilegrad/core'
import { GELU, type GELUKind } from './activation.ts'
import { LinearAttention, MultiHeadAttention } from './attention.ts'
import { Dropout } from './dropout.ts'
import { Linear } from './linear.ts'
import { Module } from './module.ts'
import { LayerNorm } from './norm.ts'

export interface MLPOptions {
  /** Default 4 · embedDim. */
  hiddenDim?: number
  /** Biases in both layers; default true. */
  bias?: boolean
  /** Default 'exact'. */
  gelu?: GELUKind
}

/**
 * The position-wise layers of a transformer: c_proj(gelu(c_fc(x))), (…, embedDim) → (…, embedDim) by way of
 * (…, hiddenDim).
 *
 * @example
 * new MLP(8, { gelu: 'tanh' }).forward(randn([2, 5, 8])).shape // → 2,5,8
 */
export class MLP extends Module {
  c_fc: Linear
  act: GELU
  c_proj: Linear

  constructor(embedDim: number, { hiddenDim = 4 * embedDim, bias = true, gelu = 'exact' }: MLPOptions = {}) {
    super()
    this.c_fc = new Linear(embedDim, hiddenDim, { bias })
    this.act = new GELU(gelu)
    this.c_proj = new Linear(hiddenDim, embedDim, { bias })
  }

  /** `residual`, of x's shape, is added to the result. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    const activation = this.act.kind === 'tanh' ? 'gelu_tanh' : 'gelu'
    return this.c_proj.forward(this.c_fc.forward(x, { activation }), { residual })
  }
}

export interface TransformerBlockOptions extends MLPOptions {
  /** Default 'softmax'; 'linear' takes time linear in the length. */
  attention?: 'softmax' | 'linear'
  /** Fewer key-value heads than query heads, a divisor of them. Default numHeads. */
  numKvHeads?: number
  /** Each position sees itself and earlier ones only; default false. */
  isCausal?: boolean
  /** Probability of dropping attention weights (softmax only) and elements of both residual branches; default 0. */
  dropout?: number
}

/**
 * A pre-norm transformer block, (B, T, embedDim) → (B, T, embedDim): y = x + attn(ln_1(x)), then y + mlp(ln_2(y)).
 * Norms before the branches keep deep stacks trainable without warm-up (Xiong et al. 2020).
 *
 * @param options.bias biases in all projections and norms; default true.
 * @throws ValueError for sizes that do not divide, or a dropout that is no probability.
 * @example
 * const block = new TransformerBlock(16, 4, { isCausal: true, attention: 'linear' })
 * block.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class TransformerBlock extends Module {
  ln_1: LayerNorm
  attn: MultiHeadAttention | LinearAttention
  ln_2: LayerNorm
  mlp: MLP
  drop: Dropout

  constructor(embedDim: number, numHeads: number, options: TransformerBlockOptions = {}) {
    super()
    const { attention = 'softmax', numKvHeads = numHeads, isCausal = false, dropout = 0, ...mlp } = options
    const { bias = true } = mlp
    const shared = { numKvHeads, isCausal, bias }
    this.ln_1 = new LayerNorm(embedDim, { bias })
    this.attn =
      attention === 'linear'
        ? new LinearAttention(embedDim, numHeads, shared)
        : new MultiHeadAttention(embedDim, numHeads, { ...shared, dropout })
    this.ln_2 = new LayerNorm(embedDim, { bias })
    this.mlp = new MLP(embedDim, mlp)
    this.drop = new Dropout(dropout)
  }

  forward(x: Tensor): Tensor {
    return this.#add(this.#add(x, this.attn, this.ln_1), this.mlp, this.ln_2)
  }

  /** x + drop(branch(norm(x))). Without dropout in between the branch's last projection adds x itself. */
  #add(x: Tensor, branch: MultiHeadAttention | LinearAttention | MLP, norm: LayerNorm): Tensor {
    const drops = this.training && this.drop.p > 0
    return drops
      ? x.add(this.drop.forward(branch.forward(norm.forward(x))))
      : branch instanceof MLP
        ? branch.forward(norm.forward(x), x)
        : branch.forward(norm.forward(x), { residual: x })
  }
}
