import { expectFloat, expectOptions, expectReduction } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { copy, elementwise, elementwiseAll } from '../primitives/elementwise.ts'
import { isFloat } from '../tensor/dtype.ts'
import { sameShape } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { composed } from './composed.ts'
import type { LossOptions, LossReduction } from './loss.ts'
import { mul, sub, where } from './pointwise.ts'
import { mean, sum } from './reduction.ts'
import { cosineSimilarity, norm } from './statistics.ts'

/** Losses that fewer models are trained with. */

const reduced = (op: string, x: Tensor, reduction: LossReduction): Tensor => {
  expectReduction(op, reduction)
  return reduction === 'none' ? x : reduction === 'sum' ? sum(x) : mean(x)
}

/** Whole numbers become float32. */
const floating = (op: string, x: Tensor): Tensor => {
  const t = asTensor(op, x)
  return isFloat(t.dtype) ? t : copy(t, 'float32')
}

const alike = (op: string, a: Tensor, b: Tensor): void => {
  if (!sameShape(a.shape, b.shape))
    throw new ShapeError(`${op}: input ${show(a.shape)} and target ${show(b.shape)} must have the same shape`)
}

/** Options of `klDiv`. */
export interface KlDivOptions {
  /** Beside PyTorch's others `'batchmean'`, the sum over the size of the first dim: the divergence itself. Default: 'mean'. */
  reduction?: LossReduction | 'batchmean'
  /** The target holds logarithms, too. Default: false. */
  logTarget?: boolean
}

const KL = program('kl_div', 2, ([x, t]) => {
  const some = e.gt(t, 0)
  // 0 · ln 0 is 0.
  return e.sub(e.select(some, e.mul(t, e.log(e.select(some, t, 1))), e.select(e.isnan(t), t, 0)), e.mul(t, x))
})
const KL_LOG = program('kl_div', 2, ([x, t]) => e.mul(e.exp(t), e.sub(t, x)))

/**
 * Takes the Kullback–Leibler divergence of a target from an input of log-probabilities: Σ target · (ln target − input), and its
 * mean over all elements unless another reduction is asked for.
 *
 * @throws ValueError for an unknown reduction, ShapeError if the shapes do not broadcast.
 * @example
 * const target = tensor([[0.5, 0.5]])
 * await klDiv(target.log(), target, { reduction: 'batchmean' }).item() // → 0
 */
export function klDiv(input: Tensor, target: Tensor | ArrayOperand, options: KlDivOptions = {}): Tensor {
  const op = 'kl_div'
  const { reduction = 'mean', logTarget = false } = expectOptions(op, options, { reduction: 1, logTarget: 1 })
  const x = asTensor(op, input)
  const t = asTensor(op, target, x)
  expectFloat(op, x.dtype)
  const losses = elementwise(logTarget ? KL_LOG : KL, [x, t])
  if (reduction !== 'batchmean') return reduced(op, losses, reduction)
  if (x.rank === 0) throw new ShapeError(`${op}: a scalar has no batch`)
  return sum(losses).div(x.shape[0])
}

/** Options of `binaryCrossEntropy`. */
export interface BinaryOptions extends LossOptions {
  /** Factors of the elements' losses, which broadcast. */
  weight?: Tensor | null
}

const floored = (v: e.Expr): e.Expr => e.select(e.lt(v, -100), -100, v)
const logs = (x: e.Expr): readonly [e.Expr, e.Expr] => [floored(e.log(x)), floored(e.log1p(e.neg(x)))]
// ln 0 counts as −100, as in PyTorch.
const BCE_OF = program('binary_cross_entropy', 2, ([x, y]) => {
  const [one, other] = logs(x)
  return e.neg(e.add(e.mul(y, one), e.mul(e.sub(1, y), other)))
})
const BCE_SLOPES = program('binary_cross_entropy.slopes', 3, ([x, y, d]) => {
  const [one, other] = logs(x)
  const spread = e.mul(x, e.sub(1, x))
  const least = e.select(e.lt(spread, 1e-12), 1e-12, spread)
  return [e.mul(d, e.div(e.sub(x, y), least)), e.mul(d, e.sub(other, one))]
})
const BCE: Op<object> = {
  name: 'binary_cross_entropy',
  compose: (inputs) => [elementwise(BCE_OF, inputs)],
  // A probability that is 0 or 1 still learns: the floor of its logarithm has no slope.
  backward: (node, [d]) => (d ? elementwiseAll(BCE_SLOPES, [node.input(0), node.input(1), d]) : [null, null]),
}

/**
 * Binary cross-entropy of probabilities: −[y ln x + (1 − y) ln(1 − x)]. Of logits `binaryCrossEntropyWithLogits` is exact.
 *
 * @throws ShapeError for different shapes, ValueError for an unknown reduction.
 * @example
 * await binaryCrossEntropy(tensor([0.5]), tensor([1])).mul(1e4).round().item() // → 6931
 */
export function binaryCrossEntropy(
  input: Tensor,
  target: Tensor | ArrayOperand,
  options: BinaryOptions = {},
): Tensor {
  const op = 'binary_cross_entropy'
  const { reduction = 'mean', weight } = expectOptions(op, options, { reduction: 1, weight: 1 })
  const x = asTensor(op, input)
  const y = asTensor(op, target, x)
  alike(op, x, y)
  const [losses] = apply(BCE, [x, y], {})
  return reduced(op, weight ? mul(losses, weight) : losses, reduction)
}

/** Options of losses with a margin. */
export interface MarginOptions extends LossOptions {
  /** How far apart is far enough. Default: 0; of `tripletMarginLoss` and `hingeEmbeddingLoss` 1. */
  margin?: number
}

/** Options of `pairwiseDistance`. */
export interface PairwiseOptions {
  /** The order of the norm. Default: 2. */
  p?: number
  /** Added to every difference. Default: 1e-6. */
  eps?: number
  /** Keep the last dim with size 1. Default: false. */
  keepdim?: boolean
}

/**
 * Takes the distance of vectors along the last dim: the p-norm of a − b + eps.
 *
 * @throws ShapeError if the shapes do not broadcast.
 * @example
 * await pairwiseDistance(tensor([[0, 0]]), tensor([[3, 4]])).round({ decimals: 4 }).toArray() // → [5]
 */
export function pairwiseDistance(a: Tensor, b: Tensor, options: PairwiseOptions = {}): Tensor {
  const {
    p = 2,
    eps = 1e-6,
    keepdim = false,
  } = expectOptions('pairwise_distance', options, {
    p: 1,
    eps: 1,
    keepdim: 1,
  })
  return composed('pairwise_distance', [a, b], ([x, y]) => [norm(sub(x, y).add(eps), p, -1, { keepdim })])[0]
}

/**
 * Takes max(0, −target · (a − b) + margin): a should be larger where the target is 1, smaller where it is −1.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for an unknown reduction.
 * @example
 * await marginRankingLoss(tensor([1]), tensor([3]), tensor([1])).item() // → 2
 */
export function marginRankingLoss(
  a: Tensor,
  b: Tensor,
  target: Tensor | ArrayOperand,
  options: MarginOptions = {},
): Tensor {
  const op = 'margin_ranking_loss'
  const { margin = 0, reduction = 'mean' } = expectOptions(op, options, { margin: 1, reduction: 1 })
  expectReduction(op, reduction)
  return composed(op, [floating(op, a), floating(op, b), asTensor(op, target, a)], ([x, y, t]) => [
    reduced(op, mul(sub(y, x), t).add(margin).relu(), reduction),
  ])[0]
}

/**
 * Takes 1 − cos of the angle between a and b where the target is 1, else max(0, cos − margin): (N, D), (N, D) and (N).
 *
 * @throws ShapeError if the shapes do not fit, ValueError for an unknown reduction.
 * @example
 * await cosineEmbeddingLoss(tensor([[1, 0]]), tensor([[0, 1]]), tensor([1])).item() // → 1
 */
export function cosineEmbeddingLoss(
  a: Tensor,
  b: Tensor,
  target: Tensor | ArrayOperand,
  options: MarginOptions = {},
): Tensor {
  const op = 'cosine_embedding_loss'
  const { margin = 0, reduction = 'mean' } = expectOptions(op, options, { margin: 1, reduction: 1 })
  expectReduction(op, reduction)
  return composed(op, [floating(op, a), floating(op, b), asTensor(op, target, a)], ([x, y, t]) => {
    const cos = cosineSimilarity(x, y, { dim: -1 })
    return [reduced(op, where(t.gt(0), cos.neg().add(1), cos.sub(margin).relu()), reduction)]
  })[0]
}

const HINGE = program(
  'hinge_embedding_loss',
  2,
  ([x, t], [margin]) => {
    const far = e.sub(margin, x)
    return e.add(e.select(e.eq(t, -1), 0, x), e.select(e.eq(t, 1), 0, e.select(e.lt(far, 0), 0, far)))
  },
  1,
)

/**
 * Takes x, a distance, where the target is 1, and max(0, margin − x) where it is −1.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for an unknown reduction.
 * @example
 * await hingeEmbeddingLoss(tensor([0.5, 0.25]), tensor([1, -1])).item() // → 0.625
 */
export function hingeEmbeddingLoss(
  input: Tensor,
  target: Tensor | ArrayOperand,
  options: MarginOptions = {},
): Tensor {
  const op = 'hinge_embedding_loss'
  const { margin = 1, reduction = 'mean' } = expectOptions(op, options, { margin: 1, reduction: 1 })
  const x = floating(op, input)
  return reduced(op, elementwise(HINGE, [x, asTensor(op, target, x)], [margin]), reduction)
}

const SOFT_MARGIN = program('soft_margin_loss', 2, ([x, t]) => {
  const z = e.mul(t, x)
  // At 0, where |z| has a kink, half of the slope comes from min, and is that of the sum.
  return e.sub(e.log1p(e.exp(e.neg(e.abs(z)))), e.min(z, 0))
})

/**
 * Takes ln(1 + exp(−target · x)), where targets are 1 and −1.
 *
 * @throws ShapeError for different shapes, ValueError for an unknown reduction.
 * @example
 * await softMarginLoss(tensor([-100, 100]), tensor([1, 1])).item() // → 50
 */
export function softMarginLoss(
  input: Tensor,
  target: Tensor | ArrayOperand,
  options: LossOptions = {},
): Tensor {
  const op = 'soft_margin_loss'
  const { reduction = 'mean' } = expectOptions(op, options, { reduction: 1 })
  const x = floating(op, input)
  const t = asTensor(op, target, x)
  alike(op, x, t)
  return reduced(op, elementwise(SOFT_MARGIN, [x, t]), reduction)
}

/** Options of `tripletMarginLoss`. */
export interface TripletOptions extends MarginOptions {
  /** The order of the norm. Default: 2. */
  p?: number
  /** Added to every difference. Default: 1e-6. */
  eps?: number
  /** Take the negative's distance from the positive where that is smaller. Default: false. */
  swap?: boolean
}

/**
 * Takes max(0, d(anchor, positive) − d(anchor, negative) + margin) of vectors along the last dim.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for an unknown reduction or a negative margin.
 * @example
 * const [a, p, n] = [tensor([[0, 0]]), tensor([[0, 0]]), tensor([[3, 4]])]
 * await tripletMarginLoss(a, p, n).item() // → 0
 */
export function tripletMarginLoss(
  anchor: Tensor,
  positive: Tensor,
  negative: Tensor,
  options: TripletOptions = {},
): Tensor {
  const op = 'triplet_margin_loss'
  const {
    margin = 1,
    p = 2,
    eps = 1e-6,
    swap = false,
    reduction = 'mean',
  } = expectOptions(op, options, {
    margin: 1,
    p: 1,
    eps: 1,
    swap: 1,
    reduction: 1,
  })
  expectReduction(op, reduction)
  if (!(margin > 0)) throw new ValueError(`${op}: the margin must be above 0, got ${margin}`)
  return composed(op, [anchor, positive, negative], ([a, pos, n]) => {
    const near = pairwiseDistance(a, pos, { p, eps })
    const far = pairwiseDistance(a, n, { p, eps })
    const other = swap ? far.minimum(pairwiseDistance(pos, n, { p, eps })) : far
    return [reduced(op, near.sub(other).add(margin).relu(), reduction)]
  })[0]
}
