import { runsAgain } from '../../autograd/again.ts'
import { type GradNode, gradEnabled, noGrad } from '../../autograd/tape.ts'
import { expectFloat, expectOptions } from '../../checks.ts'
import { apply, type Op } from '../../dispatch/op.ts'
import { ShapeError, show, ValueError } from '../../errors.ts'
import * as e from '../../expr/expr.ts'
import { program } from '../../expr/program.ts'
import { elementwise, elementwiseInto } from '../../primitives/elementwise.ts'
import { reduce } from '../../primitives/reduce.ts'
import { reshapeView } from '../../primitives/views.ts'
import { sameShape } from '../../tensor/layout.ts'
import { expectTensor } from '../../tensor/operands.ts'
import { Tensor } from '../../tensor/tensor.ts'

/** Options of `batchNorm`. */
export interface BatchNormOptions {
  /** Normalises by the batch's own statistics, and takes them into the running ones; else by the running ones. Default: false. */
  training?: boolean
  /**
   * The share of the batch in the new running statistics; a tensor of one element where the device computes it. Default: 0.1.
   */
  momentum?: number | Tensor
  /** Added to the variance under the root. Default: 1e-5. */
  eps?: number
}

const SCALED = program('batch_norm.scaled', 3, ([x, m, a]) => e.mul(e.sub(x, m), a))
const SHIFTED = program('batch_norm', 4, ([x, m, a, b]) => e.add(e.mul(e.sub(x, m), a), b))
const SQUARES = program('batch_norm.squares', 2, ([x, m]) => e.square(e.sub(x, m)))
const INVERSE = program('batch_norm.inverse', 1, ([v], [eps]) => e.div(1, e.sqrt(e.add(v, eps))), 1)
const TIMES = program('batch_norm.product', 3, ([d, x, m]) => e.mul(d, e.sub(x, m)))
const FACTOR = program('batch_norm.factor', 2, ([a, b]) => e.mul(a, b))
const OVER = program('batch_norm.over', 1, ([s], [n]) => e.div(s, n), 1)

/** What each element receives, of the gradients' sums over its channel: s of all, p of those times x − mean. */
const SLOPE = program(
  'batch_norm.slope',
  7,
  ([d, x, m, r, a, s, p], [n]) =>
    e.mul(a, e.sub(e.sub(d, e.div(s, n)), e.mul(e.sub(x, m), e.div(e.mul(e.square(r), p), n)))),
  1,
)

const AVERAGE = program(
  'batch_norm.running',
  2,
  ([old, now], [share, factor]) => e.add(e.mul(old, e.sub(1, share)), e.mul(e.mul(now, factor), share)),
  2,
)
const AVERAGE_BY = program(
  'batch_norm.running',
  3,
  ([old, now, share], [factor]) => e.add(e.mul(old, e.sub(1, share)), e.mul(e.mul(now, factor), share)),
  1,
)

/** All dims but that of channels. */
const others = (x: Tensor): number[] => x.shape.map((_, d) => d).filter((d) => d !== 1)
const perChannel = (x: Tensor): number => x.numel / Math.max(1, x.shape[1])
/** Numbers by channel, to go with x. */
const columnOf = (t: Tensor, x: Tensor): Tensor =>
  reshapeView(
    t,
    x.shape.map((n, d) => (d === 1 ? n : 1)),
  )

/** Mean and variance of each channel, [1, C, 1, …]. */
function statistics(x: Tensor): readonly [mean: Tensor, variance: Tensor] {
  const n = perChannel(x)
  const mean = elementwise(OVER, [reduce('sum', x, others(x), true)], [n])
  return [mean, elementwise(OVER, [reduce('sum', elementwise(SQUARES, [x, mean]), others(x), true)], [n])]
}

interface NormAttrs {
  readonly eps: number
  readonly weight: boolean
}

/** Normalised by the batch's own mean and 1 / √(variance + eps), which are inputs, but functions of x to gradients. */
const NORMALISED: Op<NormAttrs> = {
  name: 'batch_norm',
  compose: ([x, m, r, ...params], { weight }) => {
    const [w, b] = weight ? params : [undefined, params[0]]
    const a = w ? elementwise(FACTOR, [r, w]) : r
    return [b ? elementwise(SHIFTED, [x, m, a, b]) : elementwise(SCALED, [x, m, a])]
  },
  backward(node: GradNode<NormAttrs>, [dy]) {
    const out = new Array<Tensor | null>(node.inputs.length).fill(null)
    if (!dy) return out
    const { eps, weight } = node.attrs
    const x = node.input(0)
    let [m, r] = [node.input(1), node.input(2)]
    if (gradEnabled()) {
      const [mean, variance] = statistics(x)
      ;[m, r] = [mean, elementwise(INVERSE, [variance], [eps])]
    }
    const dims = others(x)
    const sum = reduce('sum', dy, dims, true)
    const product = reduce('sum', elementwise(TIMES, [dy, x, m]), dims, true)
    if (node.needs(0)) {
      const a = weight ? elementwise(FACTOR, [r, node.input(3)]) : r
      out[0] = elementwise(SLOPE, [dy, x, m, r, a, sum, product], [perChannel(x)])
    }
    if (weight) out[3] = elementwise(FACTOR, [product, r])
    if (node.inputs.length > (weight ? 4 : 3)) out[weight ? 4 : 3] = sum
    return out
  },
}

/** Takes the batch's statistics into the running ones, in place. A checkpoint that runs again has done so already. */
function average(
  running: Tensor | null | undefined,
  now: Tensor,
  momentum: number | Tensor,
  factor: number,
): void {
  if (!running || runsAgain()) return
  const flat = reshapeView(now, running.shape)
  if (typeof momentum === 'number') elementwiseInto([running], AVERAGE, [running, flat], [momentum, factor])
  else elementwiseInto([running], AVERAGE_BY, [running, flat, momentum], [factor])
}

/**
 * (x − mean) / √(variance + eps) · weight + bias of each channel of x (N, C, …) (Ioffe & Szegedy 2015). While training, mean and
 * variance are those of the batch, and `runningMean` and `runningVar` (C) move towards them in place by `momentum`, the latter
 * towards the variance of a sample of n, with n − 1 below; else they are the running ones. Statistics of 16 bits are computed in float32.
 *
 * @throws ShapeError if the sizes do not fit, or while training for one value per channel; ValueError without running statistics
 * unless training.
 * @example
 * const [mean, variance] = [zeros([3]), ones([3])]
 * const y = batchNorm(randn([8, 3, 4, 4]), mean, variance, null, null, { training: true })
 * y.shape // → 8,3,4,4
 */
export function batchNorm(
  x: Tensor,
  runningMean: Tensor | null,
  runningVar: Tensor | null,
  weight?: Tensor | null,
  bias?: Tensor | null,
  options: BatchNormOptions = {},
): Tensor {
  const op = 'batch_norm'
  const names = { training: 1, momentum: 1, eps: 1 } as const
  const { training = false, momentum = 0.1, eps = 1e-5 } = expectOptions(op, options, names)
  expectTensor(op, x)
  expectFloat(op, x.dtype)
  if (x.rank < 2) throw new ShapeError(`${op}: the input ${show(x.shape)} must be (N, C) or (N, C, …)`)
  const c = x.shape[1]
  for (const [name, t] of Object.entries({ runningMean, runningVar, weight, bias })) {
    if (!t) continue
    expectTensor(op, t)
    if (!sameShape(t.shape, [c]))
      throw new ShapeError(
        `${op}: ${name} is ${show(t.shape)}; the ${c} channels of ${show(x.shape)} need [${c}]`,
      )
  }
  if (typeof momentum !== 'number') expectTensor(op, momentum)
  if (!training && !(runningMean && runningVar))
    throw new ValueError(`${op}: runningMean and runningVar are needed unless { training: true }`)
  const n = perChannel(x)
  if (training && n === 1)
    throw new ShapeError(
      `${op}: one value per channel in ${show(x.shape)} has no variance; train on more, or evaluate`,
    )
  const affine = [weight, bias].filter((t) => t instanceof Tensor)
  const compose = ([x, ...params]: readonly Tensor[]): readonly Tensor[] => {
    const columns = params.map((t) => columnOf(t, x))
    if (!training) {
      const [m, v, ...rest] = columns
      const r = elementwise(INVERSE, [v], [eps])
      const [w, b] = weight ? rest : [undefined, rest[0]]
      const a = w ? elementwise(FACTOR, [r, w]) : r
      return [b ? elementwise(SHIFTED, [x, m, a, b]) : elementwise(SCALED, [x, m, a])]
    }
    const [m, r] = noGrad(() => {
      const [mean, variance] = statistics(x)
      average(runningMean, mean, momentum, 1)
      average(runningVar, variance, momentum, n / (n - 1))
      return [mean, elementwise(INVERSE, [variance], [eps])]
    })
    return apply(NORMALISED, [x, m, r, ...columns], { eps, weight: Boolean(weight) })
  }
  const inputs = training ? [x, ...affine] : [x, runningMean as Tensor, runningVar as Tensor, ...affine]
  // A result as x is, whatever the parameters are of.
  const infer = ([x]: readonly Tensor[]) => [{ shape: x.shape, dtype: x.dtype }]
  return apply({ name: op, infer, compose } satisfies Op<object>, inputs, {})[0]
}
