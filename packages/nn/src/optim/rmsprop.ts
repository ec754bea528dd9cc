import { type Expr, expr as e, expectOptions, namedProgram, type Tensor, ValueError } from '@tilegrad/core'
import { nonNegative, Optimizer, type ParamsOrGroups, type Update } from './optimizer.ts'
import { type ParamState, stateTensor } from './param-state.ts'

/** Options of `RMSprop`. */
export interface RMSpropOptions {
  /** Learning rate; default 1e-2. */
  lr: number
  /** Decay of the running mean of squares; default 0.99. */
  alpha: number
  /** Added to the denominator; default 1e-8. */
  eps: number
  /** Factor of the L2 penalty's gradient, added to the gradient; default 0. */
  weightDecay: number
  /** Share of the last update that goes into the next; default 0. */
  momentum: number
  /** Divide by the deviation from the running mean of gradients, not by their root mean square; default false. */
  centered: boolean
}

const NUMBERS = ['lr', 'alpha', 'share', 'eps', 'decay', 'momentum'] as const

/** Writes p, the mean of squares, and where they are kept the mean of gradients and the momentum. */
const rmsprop = (centered: boolean, momentum: boolean) =>
  namedProgram(
    'rmsprop',
    ['p', 'g', 'square', ...(centered ? ['mean'] : []), ...(momentum ? ['buffer'] : [])],
    NUMBERS,
    (inputs, { lr, alpha, share, eps, decay, momentum: kept }) => {
      const { p, g, square, mean, buffer } = inputs as Record<string, Expr>
      const d = e.add(g, e.mul(decay, p))
      const squares = e.add(e.mul(alpha, square), e.mul(share, e.mul(d, d)))
      const means = centered ? [e.add(mean, e.mul(share, e.sub(d, mean)))] : []
      const spread = centered ? e.sub(squares, e.mul(means[0], means[0])) : squares
      const by = e.div(d, e.add(e.sqrt(spread), eps))
      const step = momentum ? e.add(e.mul(kept, buffer), by) : by
      return [e.sub(p, e.mul(lr, step)), squares, ...means, ...(momentum ? [step] : [])]
    },
  )
const PROGRAMS = [false, true].map((centered) => [rmsprop(centered, false), rmsprop(centered, true)])

/**
 * RMSprop (Tieleman & Hinton 2012; centred: Graves 2013), as PyTorch: g ← g + weightDecay · p; v ← alpha · v + (1 − alpha) g²; with
 * `centered` also m, the running mean of g; p ← p − lr · g / (√(v − m²) + eps), or with momentum p ← p − lr · b, where
 * b ← momentum · b + g / (√(v − m²) + eps).
 *
 * @throws ValueError for options out of range.
 * @example
 * const x = parameter(tensor([3]))
 * const optimizer = new RMSprop([x], { lr: 0.01 })
 * x.square().sum().backward()
 * optimizer.step() // the first step is lr / √(1 − alpha) long
 * await x.detach().text() // → tensor([2.9000], shape=[1], dtype=float32)
 */
export class RMSprop extends Optimizer<RMSpropOptions> {
  constructor(params: ParamsOrGroups<RMSpropOptions>, options: Partial<RMSpropOptions> = {}) {
    super(params, {
      ...{ lr: 1e-2, alpha: 0.99, eps: 1e-8, weightDecay: 0, momentum: 0, centered: false },
      ...expectOptions('RMSprop', options, {
        ...{ lr: 1, alpha: 1, eps: 1, weightDecay: 1, momentum: 1, centered: 1 },
      }),
    })
  }

  protected validate({ lr, alpha, eps, weightDecay, momentum }: RMSpropOptions): void {
    nonNegative('RMSprop', { lr, alpha, eps, weightDecay, momentum })
    if (alpha > 1) throw new ValueError(`RMSprop: alpha must lie within 0 … 1, got ${alpha}`)
  }

  protected override stateNames({ momentum, centered }: RMSpropOptions): readonly string[] {
    return ['squareAvg', ...(centered ? ['gradAvg'] : []), ...(momentum > 0 ? ['momentumBuffer'] : [])]
  }

  protected update(p: Tensor, g: Tensor, options: RMSpropOptions, state: ParamState): Update {
    const { lr, alpha, eps, weightDecay: decay, momentum, centered } = options
    const kept = this.stateNames(options).map((name) => stateTensor(state, p, name))
    const program = PROGRAMS[Number(centered)][Number(momentum > 0)]
    const params = program.numbers({ lr, alpha, share: 1 - alpha, eps, decay, momentum })
    return { program, outputs: [p, ...kept], inputs: [p, g, ...kept], params }
  }
}
