import {
  deltaRule,
  expectOptions,
  type FeatureMap,
  gatedLinearAttention,
  linearAttention,
  type Program,
  rand,
  retention,
  retentionDecays,
  softplus,
  type Tensor,
  ValueError,
} from '@tilegrad/core'
import { Linear } from '../layers/linear.ts'
import { GroupNorm, RMSNorm } from '../layers/norm.ts'
import { parameter, wide } from '../module/parameter.ts'
import { type AttentionCall, type AttentionModuleOptions, PROJECTIONS, SelfAttention } from './multi-head.ts'
import { type Memory, StateCache } from './state-cache.ts'

/** Outputs, and the state after them. */
type Outcome = readonly [Tensor, Tensor | null]

/** Attention whose memory of earlier tokens is a state (B, H, D, columns), of constant size. */
export abstract class StateAttention extends SelfAttention<StateCache> {
  /** Columns of the state. */
  protected stateColumns(): number {
    return this.headDim
  }

  /** A state, whose size does not depend on maxLength; null unless attention is causal. */
  override newCache(batch: number, _maxLength = Number.POSITIVE_INFINITY): StateCache | null {
    if (!this.isCausal) return null
    const { dtype, weight } = this.outProj
    const device = weight.backend
    const { numHeads, headDim } = this
    const columns = this.stateColumns()
    // Every token adds to a state: in 16 bits it would soon not take in any more.
    return new StateCache({ batch, numHeads, headDim, columns, dtype: wide(dtype), device })
  }

  protected attend(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall<StateCache>): Tensor {
    const { attnMask, keyMask, cache } = call
    const name = this.constructor.name
    if (attnMask || keyMask) throw new ValueError(`${name}: takes no masks`)
    const [keys, values] = [this.#served(k), this.#served(v)]
    if (!cache) return this.finish(this.recur(q, keys, values, call.x, null)[0], call.x)
    const heads = cache.advance(q.shape[2], [q, k, v], (memory) =>
      this.recur(q, keys, values, call.x, memory),
    )
    return this.finish(heads, call.x)
  }

  /** (B, H, T, D) each → (B, H, T, D), and the state after them if there is a memory; `x` is the layer's input. */
  protected abstract recur(q: Tensor, k: Tensor, v: Tensor, x: Tensor, memory: Memory | null): Outcome

  /** What becomes of the heads' outputs (B, H, T, D) before they are mixed. */
  protected finish(heads: Tensor, _x: Tensor): Tensor {
    return heads
  }

  /** Splits heads, (B, T, H · n) → (B, H, T, n). */
  protected perHead(x: Tensor): Tensor {
    return x.unflatten(-1, [this.numHeads, -1]).transpose(-3, -2)
  }

  /** (B, Hk, T, D) → (B, H, T, D): each key-value head repeated for the query heads it serves. */
  #served(x: Tensor): Tensor {
    const groups = this.numHeads / this.numKvHeads
    if (groups === 1) return x
    const [b, hk, t, d] = x.shape as [number, number, number, number]
    return x.unsqueeze(2).expand([b, hk, groups, t, d]).flatten(1, 2)
  }
}

/** Options of `LinearAttention`. */
export interface LinearAttentionOptions extends AttentionModuleOptions {
  /** Added to the normaliser; default 1e-6. */
  eps?: number
  /** φ: 'elu' (elu + 1, default), 'relu', 'exp', 'identity', an elementwise program, or a function that keeps shapes. */
  featureMap?: FeatureMap | Program | ((x: Tensor) => Tensor)
}

/**
 * Multi-head self-attention in time and memory linear in T (Katharopoulos et al. 2020), with MultiHeadAttention's
 * parameters: φ(q)·φ(k) takes the place of exp(q·k / √D). (B, T, embedDim) → the same shape. If causal, its cache is a
 * state of constant size.
 *
 * @throws ValueError unless numHeads divides embedDim and numKvHeads divides numHeads.
 * @example
 * const attention = new LinearAttention(16, 4, { isCausal: true, featureMap: 'relu' })
 * attention.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class LinearAttention extends StateAttention {
  /** What is added to the normaliser. */
  readonly eps: number
  /** What makes features of queries and keys. */
  readonly featureMap: FeatureMap | Program | ((x: Tensor) => Tensor)

  constructor(embedDim: number, numHeads: number, options: LinearAttentionOptions = {}) {
    super(
      embedDim,
      numHeads,
      expectOptions('LinearAttention', options, { ...PROJECTIONS, eps: 1, featureMap: 1 }),
    )
    this.eps = options.eps ?? 1e-6
    this.featureMap = options.featureMap ?? 'elu'
  }

  protected override stateColumns(): number {
    return this.headDim + 1
  }

  protected recur(q: Tensor, k: Tensor, v: Tensor, _x: Tensor, memory: Memory | null): Outcome {
    const { isCausal, eps, featureMap } = this
    const options = { isCausal, eps, featureMap }
    return memory
      ? linearAttention(q, k, v, { ...options, ...memory })
      : [linearAttention(q, k, v, options), null]
  }
}

/** Attention that is causal by nature: `isCausal: false` is an error. */
abstract class DecayingAttention extends StateAttention {
  /** Gate of the output, (…, embedDim) → (…, H · D). */
  g_proj: Linear

  constructor(embedDim: number, numHeads: number, options: AttentionModuleOptions = {}) {
    super(embedDim, numHeads, { ...options, isCausal: true })
    const name = this.constructor.name
    if (options.isCausal === false)
      throw new ValueError(
        `${name}: is causal by nature; leave isCausal out, or choose 'softmax' or 'linear'`,
      )
    this.g_proj = new Linear(embedDim, this.numHeads * this.headDim, { bias: false })
  }

  /** Computes the gate silu(g_proj(x)) for each head. */
  protected gate(x: Tensor): Tensor {
    return this.perHead(this.g_proj.forward(x)).silu()
  }
}

/** Options of `Retention`. */
export interface RetentionLayerOptions extends AttentionModuleOptions {
  /** γ of each head, in (0, 1]; default 1 − 2^(−5−h). */
  decays?: readonly number[]
}

/**
 * Multi-scale retention (Sun et al. 2023), (B, T, embedDim) → (B, T, embedDim): each head forgets at a constant rate γ;
 * its outputs are normalised (a group of `g_norm` each), times silu(`g_proj`(x)), and mixed. With `rope: true` as in the
 * paper. Causal by nature; its cache is a state of constant size.
 *
 * @throws ValueError for isCausal: false, decays outside (0, 1], and sizes that do not divide.
 * @example
 * const attention = new Retention(16, 4, { rope: true })
 * attention.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class Retention extends DecayingAttention {
  /** What each head multiplies its state by at every step. */
  readonly decays: readonly number[]
  /** Normalises the output of each head. */
  g_norm: GroupNorm

  constructor(embedDim: number, numHeads: number, options: RetentionLayerOptions = {}) {
    super(embedDim, numHeads, expectOptions('Retention', options, { ...PROJECTIONS, decays: 1 }))
    this.decays = options.decays ?? retentionDecays(numHeads)
    if (this.decays.length !== numHeads || !this.decays.every((x) => x > 0 && x <= 1))
      throw new ValueError(
        `Retention: decays must be ${numHeads} numbers in (0, 1], got ${this.decays.join(', ')}`,
      )
    this.g_norm = new GroupNorm(numHeads, numHeads * this.headDim)
  }

  protected recur(q: Tensor, k: Tensor, v: Tensor, _x: Tensor, memory: Memory | null): Outcome {
    const options = { decays: this.decays, scale: 1 / Math.sqrt(this.headDim) }
    return memory ? retention(q, k, v, { ...options, ...memory }) : [retention(q, k, v, options), null]
  }

  protected override finish(heads: Tensor, x: Tensor): Tensor {
    const [b, h, t, d] = heads.shape as [number, number, number, number]
    const rows = heads.transpose(1, 2).reshape([b * t, h * d])
    return this.g_norm.forward(rows).reshape([b, t, h, d]).transpose(1, 2).mul(this.gate(x))
  }
}

/** Options of `GatedLinearAttention`. */
export interface GatedLinearAttentionLayerOptions extends AttentionModuleOptions {
  /** Width between the two projections that make the decays; default 16. */
  gateRank?: number
  /** τ: decays are sigmoid(…)^(1/τ); default 16. */
  gateTemperature?: number
}

/**
 * Gated linear attention (Yang et al. 2024), (B, T, embedDim) → (B, T, embedDim): every row of a head's state decays by
 * α = sigmoid(`gk_up`(`gk_down`(x)))^(1/τ); outputs are normalised per head (`g_norm`), times silu(`g_proj`(x)), and
 * mixed. Causal by nature; its cache is a state of constant size.
 *
 * @throws ValueError for isCausal: false, and sizes that are not positive or do not divide.
 * @example
 * const attention = new GatedLinearAttention(16, 4)
 * attention.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class GatedLinearAttention extends DecayingAttention {
  /** What the logarithms of gates are divided by. */
  readonly gateTemperature: number
  /** The first of the two layers that make the gates. */
  gk_down: Linear
  /** The second of the two layers that make the gates. */
  gk_up: Linear
  /** Normalises the output of each head. */
  g_norm: RMSNorm

  constructor(embedDim: number, numHeads: number, options: GatedLinearAttentionLayerOptions = {}) {
    super(
      embedDim,
      numHeads,
      expectOptions('GatedLinearAttention', options, { ...PROJECTIONS, gateRank: 1, gateTemperature: 1 }),
    )
    const { gateRank = 16, gateTemperature = 16 } = options
    if (!(gateTemperature > 0))
      throw new ValueError(`GatedLinearAttention: gateTemperature must be > 0, got ${gateTemperature}`)
    this.gateTemperature = gateTemperature
    this.gk_down = new Linear(embedDim, gateRank, { bias: false })
    this.gk_up = new Linear(gateRank, numHeads * this.headDim)
    this.g_norm = new RMSNorm(this.headDim, { eps: 1e-5 })
  }

  protected recur(q: Tensor, k: Tensor, v: Tensor, x: Tensor, memory: Memory | null): Outcome {
    const gates = this.perHead(this.gk_up.forward(this.gk_down.forward(x)))
    // log sigmoid(z) = −softplus(−z)
    const logDecay = softplus(gates.neg()).mul(-1 / this.gateTemperature)
    const scale = 1 / Math.sqrt(this.headDim)
    return memory
      ? gatedLinearAttention(q, k, v, logDecay, { scale, ...memory })
      : [gatedLinearAttention(q, k, v, logDecay, { scale }), null]
  }

  protected override finish(heads: Tensor, x: Tensor): Tensor {
    return this.g_norm.forward(heads).mul(this.gate(x))
  }
}

/**
 * Gated DeltaNet (Yang et al. 2025), without its short convolutions: (B, T, embedDim) → (B, T, embedDim). Queries and
 * keys pass silu and have length 1; each step corrects what the state recalls for its key at a rate β =
 * sigmoid(`b_proj`(x)), after a decay of log α = −e^`A_log` · softplus(`a_proj`(x) + `dt_bias`), a number per head.
 * Outputs are normalised per head (`g_norm`), times silu(`g_proj`(x)), and mixed. Causal by nature; its cache is a state
 * of constant size.
 *
 * @throws ValueError for isCausal: false, and sizes that do not divide.
 * @example
 * const attention = new GatedDeltaNet(16, 4)
 * attention.forward(randn([2, 5, 16])).shape // → 2,5,16
 */
export class GatedDeltaNet extends DecayingAttention {
  /** Makes the gates. */
  a_proj: Linear
  /** Makes the strengths of writing. */
  b_proj: Linear
  /** The logarithm (H) of the fastest decay's rate, from 1 to 16 at first. */
  A_log: Tensor
  /** A bias (H) whose softplus is the step's length at x = 0, from 0.001 to 0.1 at first. */
  dt_bias: Tensor
  /** Normalises the output of each head. */
  g_norm: RMSNorm

  constructor(embedDim: number, numHeads: number, options: AttentionModuleOptions = {}) {
    super(embedDim, numHeads, expectOptions('GatedDeltaNet', options, PROJECTIONS))
    this.a_proj = new Linear(embedDim, numHeads, { bias: false })
    this.b_proj = new Linear(embedDim, numHeads, { bias: false })
    this.A_log = parameter(rand([numHeads]).mul(15).add(1).log())
    const steps = rand([numHeads]).mul(Math.log(100)).add(Math.log(0.001)).exp()
    // The inverse of softplus.
    this.dt_bias = parameter(steps.add(steps.neg().expm1().neg().log()))
    this.g_norm = new RMSNorm(this.headDim, { eps: 1e-5 })
  }

  protected recur(q: Tensor, k: Tensor, v: Tensor, x: Tensor, memory: Memory | null): Outcome {
    const beta = this.b_proj.forward(x).sigmoid().transpose(-2, -1)
    const steps = softplus(this.a_proj.forward(x).add(this.dt_bias))
    const logDecay = steps.mul(this.A_log.exp().neg()).transpose(-2, -1)
    const [query, key] = [unit(q.silu()), unit(k.silu())]
    const options = { logDecay, scale: 1 / Math.sqrt(this.headDim) }
    return memory
      ? deltaRule(query, key, v, beta, { ...options, ...memory })
      : [deltaRule(query, key, v, beta, options), null]
  }

  protected override finish(heads: Tensor, x: Tensor): Tensor {
    return this.g_norm.forward(heads).mul(this.gate(x))
  }
}

/** Scales rows to length 1. */
const unit = (x: Tensor): Tensor => x.mul(x.square().sum(-1, { keepdim: true }).add(1e-6).rsqrt())
