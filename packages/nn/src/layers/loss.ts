import {
  binaryCrossEntropy,
  binaryCrossEntropyWithLogits,
  cosineEmbeddingLoss,
  cosineSimilarity,
  crossEntropy,
  hingeEmbeddingLoss,
  huberLoss,
  klDiv,
  l1Loss,
  marginRankingLoss,
  mseLoss,
  nllLoss,
  pairwiseDistance,
  smoothL1Loss,
  softMarginLoss,
  tripletMarginLoss,
} from '@tilegrad/core'
import { moduleOf } from './function-module.ts'

/** Losses and distances as modules: core's functions with their options. They print the options that are not the usual ones. */

/**
 * Cross-entropy of logits (N, C), (N, C, d…) or (C) with int32 classes (N), (N, d…) or (), or with probabilities of the
 * logits' shape: core's `crossEntropy`. A weight is one factor per class, (C).
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError, DTypeError and ValueError for logits,
 * targets and weights that do not fit each other.
 * @example
 * const loss = new CrossEntropyLoss({ labelSmoothing: 0.1 })
 * loss.forward(randn([4, 10]), [1, 9, 0, 3]).shape // → []
 * String(loss) // → CrossEntropyLoss(labelSmoothing=0.1)
 */
export class CrossEntropyLoss extends /* @__PURE__ */ moduleOf(
  crossEntropy,
  { weight: null, ignoreIndex: -100, reduction: 'mean', labelSmoothing: 0 },
  true,
) {}

/**
 * Negative log-likelihood of log-probabilities (N, C) or (N, C, d…) at int32 classes (N) or (N, d…): core's `nllLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError and DTypeError for what does not fit.
 * @example
 * await new NLLLoss().forward(tensor([[-1, -2], [-3, -4]]), [0, 1]).item() // → 2.5
 */
export class NLLLoss extends /* @__PURE__ */ moduleOf(
  nllLoss,
  { weight: null, ignoreIndex: -100, reduction: 'mean' },
  true,
) {}

/**
 * The mean of the squared differences (input − target)², or their sum, or themselves: core's `mseLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError if the shapes do not broadcast.
 * @example
 * await new MSELoss({ reduction: 'sum' }).forward(tensor([1, 2]), tensor([1, 4])).item() // → 4
 */
export class MSELoss extends /* @__PURE__ */ moduleOf(mseLoss, { reduction: 'mean' }, true) {}

/**
 * The mean of the absolute differences |input − target|, or their sum, or themselves: core's `l1Loss`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError if the shapes do not broadcast.
 * @example
 * await new L1Loss().forward(tensor([1, 2]), tensor([1, 4])).item() // → 1
 */
export class L1Loss extends /* @__PURE__ */ moduleOf(l1Loss, { reduction: 'mean' }, true) {}

/**
 * A loss that is quadratic in the difference below beta and linear above (Girshick 2015): core's `smoothL1Loss`.
 *
 * @throws ValueError for an option that is not known; `forward` also for a negative beta, and ShapeError if the shapes do
 * not broadcast.
 * @example
 * await new SmoothL1Loss().forward(tensor([1, 2]), tensor([1, 4])).item() // → 0.75
 */
export class SmoothL1Loss extends /* @__PURE__ */ moduleOf(
  smoothL1Loss,
  { reduction: 'mean', beta: 1 },
  true,
) {}

/**
 * ½d² of differences |d| ≤ delta, else delta · (|d| − ½ delta) (Huber 1964): core's `huberLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` also unless delta is positive, and ShapeError if the
 * shapes do not broadcast.
 * @example
 * await new HuberLoss({ delta: 2 }).forward(tensor([1, 2]), tensor([1, 4])).item() // → 1
 */
export class HuberLoss extends /* @__PURE__ */ moduleOf(huberLoss, { reduction: 'mean', delta: 1 }, true) {}

/**
 * Binary cross-entropy of probabilities, −[y ln x + (1 − y) ln(1 − x)]: core's `binaryCrossEntropy`. Of logits
 * `BCEWithLogitsLoss` is exact.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError for different shapes.
 * @example
 * await new BCELoss().forward(tensor([0.5]), tensor([1])).mul(1e4).round().item() // → 6931
 */
export class BCELoss extends /* @__PURE__ */ moduleOf(
  binaryCrossEntropy,
  { weight: null, reduction: 'mean' },
  true,
) {}

/**
 * Binary cross-entropy of logits, −[posWeight · y ln σ(x) + (1 − y) ln(1 − σ(x))] · weight: core's
 * `binaryCrossEntropyWithLogits`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError for different shapes.
 * @example
 * await new BCEWithLogitsLoss().forward(tensor([-100, 100]), tensor([1, 1])).item() // → 50
 */
export class BCEWithLogitsLoss extends /* @__PURE__ */ moduleOf(
  binaryCrossEntropyWithLogits,
  { weight: null, posWeight: null, reduction: 'mean' },
  true,
) {}

/**
 * The Kullback–Leibler divergence of a target from an input of log-probabilities, target · (ln target − input): core's
 * `klDiv`. Its mean over all elements; the divergence itself is `{ reduction: 'batchmean' }`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError if the shapes do not broadcast.
 * @example
 * const target = tensor([[0.5, 0.5]])
 * await new KLDivLoss({ reduction: 'batchmean' }).forward(target.log(), target).item() // → 0
 */
export class KLDivLoss extends /* @__PURE__ */ moduleOf(
  klDiv,
  { reduction: 'mean', logTarget: false },
  true,
) {}

/**
 * 1 − cos of the angle between two vectors where the target is 1, else max(0, cos − margin), of (N, D), (N, D) and (N):
 * core's `cosineEmbeddingLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError for shapes that do not fit.
 * @example
 * const loss = new CosineEmbeddingLoss()
 * await loss.forward(tensor([[1, 0]]), tensor([[0, 1]]), tensor([1])).item() // → 1
 */
export class CosineEmbeddingLoss extends /* @__PURE__ */ moduleOf(
  cosineEmbeddingLoss,
  { margin: 0, reduction: 'mean' },
  true,
) {}

/**
 * max(0, −target · (a − b) + margin): a should be larger where the target is 1, smaller where it is −1: core's
 * `marginRankingLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError if the shapes do not broadcast.
 * @example
 * await new MarginRankingLoss().forward(tensor([1]), tensor([3]), tensor([1])).item() // → 2
 */
export class MarginRankingLoss extends /* @__PURE__ */ moduleOf(
  marginRankingLoss,
  { margin: 0, reduction: 'mean' },
  true,
) {}

/**
 * A distance x where the target is 1, and max(0, margin − x) where it is −1: core's `hingeEmbeddingLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError if the shapes do not broadcast.
 * @example
 * await new HingeEmbeddingLoss().forward(tensor([0.5, 0.25]), tensor([1, -1])).item() // → 0.625
 */
export class HingeEmbeddingLoss extends /* @__PURE__ */ moduleOf(
  hingeEmbeddingLoss,
  { margin: 1, reduction: 'mean' },
  true,
) {}

/**
 * ln(1 + exp(−target · x)), where targets are 1 and −1: core's `softMarginLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError for different shapes.
 * @example
 * await new SoftMarginLoss().forward(tensor([-100, 100]), tensor([1, 1])).item() // → 50
 */
export class SoftMarginLoss extends /* @__PURE__ */ moduleOf(softMarginLoss, { reduction: 'mean' }, true) {}

/**
 * max(0, d(anchor, positive) − d(anchor, negative) + margin) of vectors along the last dim: core's `tripletMarginLoss`.
 *
 * @throws ValueError for an option that is not known; `forward` also unless the margin is positive, and ShapeError if the
 * shapes do not broadcast.
 * @example
 * const [a, p, n] = [tensor([[0, 0]]), tensor([[0, 0]]), tensor([[3, 4]])]
 * await new TripletMarginLoss().forward(a, p, n).item() // → 0
 */
export class TripletMarginLoss extends /* @__PURE__ */ moduleOf(
  tripletMarginLoss,
  { margin: 1, p: 2, eps: 1e-6, swap: false, reduction: 'mean' },
  true,
) {}

/**
 * The cosine of the angle between vectors along a dim, a · b / (|a| |b|): core's `cosineSimilarity`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError if the shapes do not broadcast.
 * @example
 * await new CosineSimilarity().forward(tensor([[1, 0]]), tensor([[0, 2]])).toArray() // → [0]
 */
export class CosineSimilarity extends /* @__PURE__ */ moduleOf(
  cosineSimilarity,
  { dim: 1, eps: 1e-8 },
  true,
) {}

/**
 * The distance of vectors along the last dim, the p-norm of a − b + eps: core's `pairwiseDistance`.
 *
 * @throws ValueError for an option that is not known; `forward` throws ShapeError if the shapes do not broadcast.
 * @example
 * const apart = new PairwiseDistance().forward(tensor([[0, 0]]), tensor([[3, 4]]))
 * await apart.round({ decimals: 4 }).toArray() // → [5]
 */
export class PairwiseDistance extends /* @__PURE__ */ moduleOf(
  pairwiseDistance,
  { p: 2, eps: 1e-6, keepdim: false },
  true,
) {}
