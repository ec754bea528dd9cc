import { noGrad, record, shouldRecord } from '../autograd/tape.ts'
import { expectFloat, expectInt, expectOptions, expectReduction } from '../checks.ts'
import { apply, type Op } from '../dispatch/op.ts'
import { DTypeError, ShapeError, show, ValueError } from '../errors.ts'
import * as e from '../expr/expr.ts'
import { program } from '../expr/program.ts'
import { copy, elementwise } from '../primitives/elementwise.ts'
import { gatherPrimitive } from '../primitives/indexing.ts'
import { alias, reshapeView } from '../primitives/views.ts'
import { isFloat, isHalf, promote } from '../tensor/dtype.ts'
import { broadcastShapes, sameShape } from '../tensor/layout.ts'
import { type ArrayOperand, asTensor } from '../tensor/operands.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { add, div, mul, ne, neg, where } from './pointwise.ts'
import { logSoftmax, mean, sum } from './reduction.ts'
import { movedim } from './shape.ts'

/** What becomes of the losses of all elements: one mean, one sum, or themselves. */
export type LossReduction = 'mean' | 'sum' | 'none'

function reduced(op: string, x: Tensor, reduction: LossReduction): Tensor {
  expectReduction(op, reduction)
  return reduction === 'none' ? x : reduction === 'sum' ? sum(x) : mean(x)
}

/** Options of all losses. */
export interface LossOptions {
  /** The reduction of the elements' losses. Default 'mean'. */
  reduction?: LossReduction
}

/** Pairs of shapes that were told of, once each. */
const told = new Set<string>()

/**
 * Tells of a loss whose input and target have different shapes, as (N, 1) and (N): each element meets all others then, which is
 * hardly ever meant, and learns nothing. PyTorch warns of it as well.
 */
function pair(op: string, input: Tensor, target: Tensor | ArrayOperand): [input: Tensor, target: Tensor] {
  const x = asTensor(op, input)
  const y = asTensor(op, target, x)
  const shapes = `${op}: input ${show(x.shape)} and target ${show(y.shape)}`
  if (x.rank > 0 && y.rank > 0 && !sameShape(x.shape, y.shape) && !told.has(shapes)) {
    told.add(shapes)
    console.warn(
      `tilegrad: ${shapes} differ and are compared each with each, as ${show(broadcastShapes(op, [x.shape, y.shape]))}; give both one shape`,
    )
  }
  return [x, y]
}

const MSE = program('mse_loss', 2, ([a, b]) => e.square(e.sub(a, b)))

/**
 * Takes the squared difference (input − target)², and its mean unless another reduction is asked for.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for an unknown reduction.
 * @example
 * await mseLoss(tensor([1, 2]), tensor([1, 4])).item() // → 2
 */
export const mseLoss = (input: Tensor, target: Tensor | ArrayOperand, options: LossOptions = {}): Tensor => {
  const { reduction = 'mean' } = expectOptions('mse_loss', options, { reduction: 1 })
  return reduced('mse_loss', elementwise(MSE, pair('mse_loss', input, target)), reduction)
}

const L1 = program('l1_loss', 2, ([a, b]) => e.abs(e.sub(a, b)))

/**
 * Takes the absolute difference |input − target|, and its mean unless another reduction is asked for.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for an unknown reduction.
 * @example
 * await l1Loss(tensor([1, 2]), tensor([1, 4])).item() // → 1
 */
export const l1Loss = (input: Tensor, target: Tensor | ArrayOperand, options: LossOptions = {}): Tensor => {
  const { reduction = 'mean' } = expectOptions('l1_loss', options, { reduction: 1 })
  return reduced('l1_loss', elementwise(L1, pair('l1_loss', input, target)), reduction)
}

const SMOOTH = program(
  'smooth_l1_loss',
  2,
  ([a, b], [beta]) => {
    const d = e.sub(a, b)
    const small = e.lt(e.abs(d), beta)
    return e.select(
      small,
      e.div(e.mul(0.5, e.square(e.select(small, d, 0))), beta),
      e.sub(e.abs(d), e.mul(0.5, beta)),
    )
  },
  1,
)

/** Options of `smoothL1Loss`. */
export interface SmoothL1Options extends LossOptions {
  /** The difference at which the loss changes from quadratic to linear. Default: 1. */
  beta?: number
}

/**
 * Takes a loss that is quadratic in the difference below beta and linear above (Girshick 2015), and its mean
 * unless another reduction is asked for; beta 0 is the L1 loss.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError for a negative beta or an unknown reduction.
 * @example
 * await smoothL1Loss(tensor([1, 2]), tensor([1, 4])).item() // → 0.75
 */
export function smoothL1Loss(
  input: Tensor,
  target: Tensor | ArrayOperand,
  options: SmoothL1Options = {},
): Tensor {
  const { reduction = 'mean', beta = 1 } = expectOptions('smooth_l1_loss', options, { reduction: 1, beta: 1 })
  if (beta < 0) throw new ValueError(`smooth_l1_loss: beta must be ≥ 0, got ${beta}`)
  return beta === 0
    ? l1Loss(input, target, { reduction })
    : reduced('smooth_l1_loss', elementwise(SMOOTH, pair('smooth_l1_loss', input, target), [beta]), reduction)
}

const HUBER = program(
  'huber_loss',
  2,
  ([a, b], [delta]) => {
    const d = e.sub(a, b)
    const small = e.le(e.abs(d), delta)
    return e.select(
      small,
      // The branch not taken has a gradient of 0 times its own, which must be finite: see `elu`.
      e.mul(0.5, e.square(e.select(small, d, 0))),
      e.mul(delta, e.sub(e.abs(d), e.mul(0.5, delta))),
    )
  },
  1,
)

/** Options of `huberLoss`. */
export interface HuberOptions extends LossOptions {
  /** The difference at which the loss changes from quadratic to linear. Default: 1. */
  delta?: number
}

/**
 * Takes ½d² for |d| ≤ delta, else delta · (|d| − ½ delta), of the difference d (Huber 1964), and its mean unless
 * another reduction is asked for.
 *
 * @throws ShapeError if the shapes do not broadcast, ValueError unless delta is positive or for an unknown
 * reduction.
 * @example
 * await huberLoss(tensor([1, 2]), tensor([1, 4])).item() // → 0.75
 */
export function huberLoss(input: Tensor, target: Tensor | ArrayOperand, options: HuberOptions = {}): Tensor {
  const { reduction = 'mean', delta = 1 } = expectOptions('huber_loss', options, { reduction: 1, delta: 1 })
  if (!(delta > 0)) throw new ValueError(`huber_loss: delta must be > 0, got ${delta}`)
  return reduced('huber_loss', elementwise(HUBER, pair('huber_loss', input, target), [delta]), reduction)
}

// −[w_p y ln σ(x) + (1 − y) ln(1 − σ(x))], with ln(1 + exp(−|x|)) so that nothing overflows. Where the smaller of the
// two exponents wins, min(x, 0) is written as a select: its derivative at 0 is then as PyTorch's.
/** ln(1 + e⁻ˣ). At 0, where |x| has a kink, half of the slope comes from min, and is that of the sum. */
const softplusNeg = (x: e.Expr): e.Expr => e.sub(e.log1p(e.exp(e.neg(e.abs(x)))), e.min(x, 0))
const BCE = program('binary_cross_entropy_with_logits', 2, ([x, y]) =>
  e.add(e.mul(e.sub(1, y), x), softplusNeg(x)),
)
const BCE_POS = program('binary_cross_entropy_with_logits', 3, ([x, y, p]) => {
  const factor = e.add(e.mul(e.sub(p, 1), y), 1)
  return e.add(e.mul(e.sub(1, y), x), e.mul(factor, softplusNeg(x)))
})

/** Options of `binaryCrossEntropyWithLogits`. */
export interface BceOptions extends LossOptions {
  /** Factors of the elements' losses, which broadcast. */
  weight?: Tensor | null
  /** Factors of the positive part, which broadcast. */
  posWeight?: Tensor | null
}

/**
 * Binary cross-entropy of logits: −[posWeight · y ln σ(x) + (1 − y) ln(1 − σ(x))] · weight.
 *
 * @example
 * const loss = binaryCrossEntropyWithLogits(tensor([-100, 100]), tensor([1, 1]))
 * await loss.item() // → 50
 */
export function binaryCrossEntropyWithLogits(
  input: Tensor,
  targets: Tensor | ArrayOperand,
  options: BceOptions = {},
): Tensor {
  input = asTensor('binary_cross_entropy_with_logits', input)
  const target = asTensor('binary_cross_entropy_with_logits', targets, input)
  const {
    weight,
    posWeight,
    reduction = 'mean',
  } = expectOptions('binary_cross_entropy_with_logits', options, { reduction: 1, weight: 1, posWeight: 1 })
  if (!sameShape(input.shape, target.shape))
    throw new ShapeError(
      `binary_cross_entropy_with_logits: input ${show(input.shape)} and target ${show(target.shape)} must have the same shape`,
    )
  const raw = posWeight ? elementwise(BCE_POS, [input, target, posWeight]) : elementwise(BCE, [input, target])
  return reduced('binary_cross_entropy_with_logits', weight ? mul(raw, weight) : raw, reduction)
}

/** Options of `nllLoss`. */
export interface NllOptions extends LossOptions {
  /** A factor for each class, (C). */
  weight?: Tensor | null
  /** The target that does not count. Default −100. */
  ignoreIndex?: number
}

interface NllAttrs {
  ignoreIndex: number
  reduction: LossReduction
  weighted: boolean
}

const SAFE = program('nll_loss.safe', 1, ([t], [skip]) => e.select(e.eq(t, skip), 0, t), 1)

/** −weight[target] · input[target] of (N, C) and (N); the mean is over the weights that count. */
const NLL: Op<NllAttrs> = {
  name: 'nll_loss',
  compose: ([input, target, weight], { ignoreIndex, reduction }) => {
    const [n] = input.shape
    const at = reshapeView(elementwise(SAFE, [target], [ignoreIndex]), [n, 1])
    const picked = reshapeView(gatherPrimitive('nll_loss', input, 1, at), [n])
    const counts = ne(target, ignoreIndex)
    const factor = weight
      ? mul(gatherPrimitive('nll_loss', weight, 0, reshapeView(at, [n])), copy(counts, input.dtype))
      : copy(counts, input.dtype)
    // A skipped −∞ must not become NaN by 0 · ∞.
    const losses = where(counts, neg(mul(picked, factor)), 0)
    if (reduction === 'none') return [losses]
    const total = sum(losses)
    return [reduction === 'sum' ? total : div(total, sum(factor))]
  },
}

/** (N, C, d…) and (N, d…) as (N·d…, C) and (N·d…). */
function rows(op: string, input: Tensor, target: Tensor): { x: Tensor; t: Tensor; shape: readonly number[] } {
  if (input.rank === 0) throw new ShapeError(`${op}: input must be (C), (N, C) or (N, C, d…), got a scalar`)
  const expected = input.rank === 1 ? [] : [input.shape[0], ...input.shape.slice(2)]
  if (!sameShape(target.shape, expected)) {
    const last = input.rank > 2 && sameShape(target.shape, input.shape.slice(0, -1))
    const hint = last
      ? '. Classes are dim 1: with classes last, pass input.flatten(0, -2), target.flatten()'
      : ''
    throw new ShapeError(
      `${op}: target ${show(target.shape)} does not fit input ${show(input.shape)}; expected ${show(expected)}${hint}`,
    )
  }
  const last = input.rank <= 2 ? input : movedim(input, 1, -1)
  const c = last.shape[last.rank - 1]
  return { x: reshapeView(last, [target.numel, c]), t: reshapeView(target, [target.numel]), shape: expected }
}

const checkTarget = (op: string, { dtype }: Tensor): void => expectInt(op, 'class targets', dtype)

/** Throws unless the weight has one factor per class, of the input's dtype. */
function checkWeight(op: string, input: Tensor, weight: Tensor | null | undefined): void {
  expectFloat(op, input.dtype)
  const c = input.shape[input.rank === 1 ? 0 : 1]
  if (weight && !sameShape(weight.shape, [c]))
    throw new ShapeError(`${op}: weight ${show(weight.shape)} must have one factor per class, [${c}]`)
  if (weight && weight.dtype !== input.dtype && !isHalf(input.dtype))
    throw new DTypeError(`${op}: weight is ${weight.dtype}, the input ${input.dtype}; expected the same`)
}

/**
 * Negative log-likelihood: input holds log-probabilities (N, C) or (N, C, d…), target int32 classes (N) or (N, d…).
 *
 * @example
 * const logProbabilities = tensor([[-1, -2], [-3, -4]])
 * await nllLoss(logProbabilities, tensor([0, 1], { dtype: 'int32' })).item() // → 2.5
 */
export function nllLoss(input: Tensor, classes: Tensor | ArrayOperand, options: NllOptions = {}): Tensor {
  input = asTensor('nll_loss', input)
  const target = asTensor('nll_loss', classes, input, 'int32')
  const {
    weight,
    ignoreIndex = -100,
    reduction = 'mean',
  } = expectOptions('nll_loss', options, { reduction: 1, weight: 1, ignoreIndex: 1 })
  expectReduction('nll_loss', reduction)
  checkTarget('nll_loss', target)
  checkWeight('nll_loss', input, weight)
  const { x, t, shape } = rows('nll_loss', input, target)
  const out = apply(NLL, weight ? [x, t, weight] : [x, t], {
    ignoreIndex,
    reduction,
    weighted: Boolean(weight),
  })[0]
  return reduction === 'none' ? reshapeView(out, shape) : out
}

/** What decides how cross-entropy is computed, beside its tensors. */
export interface CrossEntropyAttrs {
  /** The class whose rows do not count. */
  readonly ignoreIndex: number
  /** What becomes of the rows' losses. */
  readonly reduction: LossReduction
  /** The share of the uniform distribution in the targets. */
  readonly labelSmoothing: number
}

/** x, whose rows that do not count get a gradient of 0, not of 0 · NaN. */
function counted(x: Tensor, target: Tensor, ignoreIndex: number): Tensor {
  if (!shouldRecord([x])) return x
  const out = noGrad(() => alias(x))
  const counts = reshapeView(ne(target, ignoreIndex), [x.shape[0], 1])
  record('cross_entropy', [x], [out], null, (_, [d]) => [d && where(counts, d, 0)])
  return out
}

declare module '../dispatch/kernels.ts' {
  interface FusedKernels {
    /** Cross-entropy of rows of logits. */
    readonly cross_entropy?: KernelOf<CrossEntropyAttrs>
    /** The gradient of cross-entropy. */
    readonly cross_entropyBackward?: KernelOf<GradientAttrs<CrossEntropyAttrs>>
  }
}

const CROSS_ENTROPY: Op<CrossEntropyAttrs> = {
  name: 'cross_entropy',
  kernel: (kernels) => kernels.cross_entropy,
  gradient: (kernels) => kernels.cross_entropyBackward,
  infer: ([x], { reduction }) => [
    { shape: reduction === 'none' ? [x.shape[0]] : [], dtype: x.dtype },
    // The rows' maxima, and their sums of exp(x − maximum); then how many rows count.
    { shape: [2, x.shape[0]], dtype: promote(x.dtype, 'float32') },
    { shape: [1], dtype: promote(x.dtype, 'float32') },
  ],
  compose: ([x, target, weight], { ignoreIndex, reduction, labelSmoothing }) => {
    const logp = logSoftmax(counted(x, target, ignoreIndex), 1)
    const inputs = weight ? [logp, target, weight] : [logp, target]
    const hard = apply(NLL, inputs, { ignoreIndex, reduction, weighted: Boolean(weight) })[0]
    if (labelSmoothing === 0) return [hard]
    // The smooth part spreads eps evenly: −Σ_c weight_c logp_c / C, normalised as the hard part is.
    const [n, c] = x.shape
    const counts = ne(target, ignoreIndex)
    const every = neg(sum(weight ? mul(logp, weight) : logp, 1))
    const smooth = where(counts, every, 0)
    const factor = weight
      ? mul(
          gatherPrimitive('cross_entropy', weight, 0, elementwise(SAFE, [target], [ignoreIndex])),
          copy(counts, x.dtype),
        )
      : copy(counts, x.dtype)
    const soft =
      reduction === 'none'
        ? smooth
        : reduction === 'sum'
          ? sum(smooth)
          : div(sum(smooth), sum(reshapeView(factor, [n])))
    return [add(mul(hard, 1 - labelSmoothing), mul(soft, labelSmoothing / c))]
  },
}

/** Options of `crossEntropy`. */
export interface CrossEntropyOptions extends NllOptions {
  /** Mixes the targets with the uniform distribution (Szegedy et al. 2016), 0 … 1. */
  labelSmoothing?: number
}

/** A row of numbers are classes; nested ones are probabilities. */
const classesOf = (x: Tensor | ArrayOperand): 'int32' | undefined =>
  Array.isArray(x) && !Array.isArray(x[0]) ? 'int32' : undefined

/**
 * Cross-entropy of logits (N, C), (N, C, d…) or (C) with int32 classes (N), (N, d…) or (), or with probabilities of
 * input's shape.
 *
 * @throws ValueError for a class outside 0 … C − 1 other than ignoreIndex, and for ignoreIndex with probabilities;
 * ShapeError and DTypeError for a weight that is not (C) of the input's dtype.
 * @example
 * const logits = tensor([[100, 0], [0, 100]])
 * await crossEntropy(logits, tensor([0, 0], { dtype: 'int32' })).item() // → 50
 */
export function crossEntropy(
  input: Tensor,
  classes: Tensor | ArrayOperand,
  options: CrossEntropyOptions = {},
): Tensor {
  input = asTensor('cross_entropy', input)
  const target = asTensor('cross_entropy', classes, input, classesOf(classes))
  const {
    weight,
    ignoreIndex = -100,
    reduction = 'mean',
    labelSmoothing = 0,
  } = expectOptions('cross_entropy', options, { reduction: 1, weight: 1, ignoreIndex: 1, labelSmoothing: 1 })
  expectReduction('cross_entropy', reduction)
  if (!(labelSmoothing >= 0 && labelSmoothing <= 1))
    throw new ValueError(`cross_entropy: labelSmoothing must lie within 0 … 1, got ${labelSmoothing}`)
  checkWeight('cross_entropy', input, weight)
  if (isFloat(target.dtype) && ignoreIndex !== -100)
    throw new ValueError('cross_entropy: ignoreIndex is for classes; these targets are probabilities')
  if (isFloat(target.dtype))
    return softCrossEntropy(input, target, { weight: weight ?? null, reduction, labelSmoothing })
  checkTarget('cross_entropy', target)
  const { x, t, shape } = rows('cross_entropy', input, target)
  const out = apply(CROSS_ENTROPY, weight ? [x, t, weight] : [x, t], {
    ignoreIndex,
    reduction,
    labelSmoothing,
  })[0]
  return reduction === 'none' ? reshapeView(out, shape) : out
}

const SMOOTHED = program('cross_entropy.smooth', 1, ([t], [keep, base]) => e.add(e.mul(t, keep), base), 2)

function softCrossEntropy(
  input: Tensor,
  target: Tensor,
  o: { weight: Tensor | null; reduction: LossReduction; labelSmoothing: number },
): Tensor {
  if (!sameShape(input.shape, target.shape))
    throw new ShapeError(
      `cross_entropy: probabilities ${show(target.shape)} must have the input's shape ${show(input.shape)}; classes are int32: convert them with .to('int32')`,
    )
  const dim = input.rank === 1 ? 0 : 1
  const c = input.shape[dim]
  const t =
    o.labelSmoothing === 0
      ? target
      : elementwise(SMOOTHED, [target], [1 - o.labelSmoothing, o.labelSmoothing / c])
  const logp = logSoftmax(input, dim)
  const w =
    o.weight &&
    reshapeView(
      o.weight,
      input.shape.map((_, i) => (i === dim ? c : 1)),
    )
  const losses = neg(sum(mul(w ? mul(logp, w) : logp, t), dim))
  if (o.reduction === 'none') return losses
  return o.reduction === 'sum' ? sum(losses) : div(sum(losses), Math.max(1, input.numel / c))
}
