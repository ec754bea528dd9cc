import {
  batchNorm,
  describeValue,
  expectOptions,
  noGrad,
  ones,
  ShapeError,
  scope,
  show,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import { runsAgain } from '@tilegrad/core/kernel'
import { buffer, Module, parameter } from '../module/module.ts'
import { positive } from './linear.ts'

/** Options of `BatchNorm1d` and `BatchNorm2d`. */
export interface BatchNormLayerOptions {
  /** Added to the variance; default 1e-5. */
  eps?: number
  /** The share of a batch in the new running statistics; null for the mean of all batches. Default: 0.1. */
  momentum?: number | null
  /** Learn a weight and a bias per channel; default true. */
  affine?: boolean
  /** Keep running statistics for evaluation; without them it normalises by the batch's own. Default: true. */
  trackRunningStats?: boolean
}

/** What `BatchNorm1d` and `BatchNorm2d` have in common. */
abstract class BatchNorm extends Module {
  /** How many channels there are. */
  readonly numFeatures: number
  /** What is added to the variance. */
  readonly eps: number
  /** The share of a batch in the new running statistics, or null for the mean of all batches. */
  readonly momentum: number | null
  /** What each channel is multiplied by, or null. */
  weight: Tensor | null
  /** What is added to each channel, or null. */
  bias: Tensor | null
  /** The running mean of each channel, or null. */
  running_mean: Tensor | null
  /** The running variance of each channel, or null. */
  running_var: Tensor | null
  /** How many batches the running statistics are of, or null. */
  num_batches_tracked: Tensor | null

  constructor(numFeatures: number, options: BatchNormLayerOptions = {}) {
    super()
    const op = new.target.name
    const {
      eps = 1e-5,
      momentum = 0.1,
      affine = true,
      trackRunningStats = true,
    } = expectOptions(op, options, { eps: 1, momentum: 1, affine: 1, trackRunningStats: 1 })
    positive(op, { numFeatures })
    if (momentum !== null && typeof momentum !== 'number')
      throw new ValueError(`${op}: momentum is a number or null, got ${describeValue(momentum)}`)
    this.numFeatures = numFeatures
    this.eps = eps
    this.momentum = momentum
    this.weight = affine ? parameter(ones([numFeatures])) : null
    this.bias = affine ? parameter(zeros([numFeatures])) : null
    this.running_mean = trackRunningStats ? buffer(zeros([numFeatures])) : null
    this.running_var = trackRunningStats ? buffer(ones([numFeatures])) : null
    this.num_batches_tracked = trackRunningStats ? buffer(zeros([], { dtype: 'int32' })) : null
  }

  /** Forgets the running statistics. */
  resetRunningStats(): void {
    this.running_mean?.zero_()
    this.running_var?.fill_(1)
    this.num_batches_tracked?.zero_()
  }

  protected normalise(x: Tensor): Tensor {
    const { running_mean, running_var, num_batches_tracked, weight, bias, eps, momentum, numFeatures } = this
    if (x.shape[1] !== numFeatures)
      throw new ShapeError(
        `${this.constructor.name}: the input ${show(x.shape)} must have ${numFeatures} channels in dim 1`,
      )
    const training = this.training || running_mean === null
    if (this.training && num_batches_tracked && !runsAgain()) num_batches_tracked.add_(1)
    const normalise = (momentum: number | Tensor): Tensor =>
      batchNorm(x, running_mean, running_var, weight, bias, { training, momentum, eps })
    if (momentum !== null || !training || num_batches_tracked === null) return normalise(momentum ?? 0)
    const share = noGrad(() => scope(() => num_batches_tracked.to('float32').reciprocal()))
    const y = normalise(share)
    share.dispose()
    return y
  }

  override extraRepr(): string {
    return `${this.numFeatures}, eps=${this.eps}, momentum=${this.momentum}, affine=${this.weight !== null}, trackRunningStats=${this.running_mean !== null}`
  }
}

/**
 * Normalises each channel of (N, C) or (N, C, L) to mean 0 and variance 1 over the batch, then scales and shifts it (Ioffe &
 * Szegedy 2015); keeps the shape. In training by the batch's own statistics, which move the buffers running_mean and running_var; in
 * evaluation mode by these. Weight (C) starts as ones, bias (C) as zeros.
 *
 * @throws ValueError for a number of channels that is none; `forward` throws ShapeError for other channels, and in training for one
 * value per channel.
 * @example
 * const layer = new BatchNorm1d(3)
 * layer.forward(randn([8, 3])).shape // → 8,3
 * await layer.num_batches_tracked?.item() // → 1
 */
export class BatchNorm1d extends BatchNorm {
  forward(x: Tensor): Tensor {
    if (x.rank !== 2 && x.rank !== 3)
      throw new ShapeError(`BatchNorm1d: the input ${show(x.shape)} must be (N, C) or (N, C, L)`)
    return this.normalise(x)
  }
}

/**
 * Normalises each channel of images (N, C, H, W) to mean 0 and variance 1 over the batch, then scales and shifts it (Ioffe &
 * Szegedy 2015); keeps the shape. In training by the batch's own statistics, which move the buffers running_mean and running_var; in
 * evaluation mode by these. Weight (C) starts as ones, bias (C) as zeros.
 *
 * @throws ValueError for a number of channels that is none; `forward` throws ShapeError for other channels, and in training for one
 * value per channel.
 * @example
 * const layer = new BatchNorm2d(3)
 * layer.forward(randn([8, 3, 4, 4])).shape // → 8,3,4,4
 * Object.keys(layer.stateDict()) // → weight,bias,running_mean,running_var,num_batches_tracked
 */
export class BatchNorm2d extends BatchNorm {
  forward(x: Tensor): Tensor {
    if (x.rank !== 4) throw new ShapeError(`BatchNorm2d: the input ${show(x.shape)} must be (N, C, H, W)`)
    return this.normalise(x)
  }
}
