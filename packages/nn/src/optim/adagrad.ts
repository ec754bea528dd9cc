import { expr as e, expectOptions, namedProgram, type Tensor } from '@tilegrad/core'
import { type Counted, nonNegative, Optimizer, type ParamsOrGroups, type Update } from './optimizer.ts'
import { type ParamState, stateTensor } from './param-state.ts'

/** Options of `Adagrad`. */
export interface AdagradOptions {
  /** Learning rate; default 1e-2. */
  lr: number
  /** How fast the rate falls: at step t it is lr / (1 + (t − 1) · lrDecay); default 0. */
  lrDecay: number
  /** Factor of the L2 penalty's gradient, added to the gradient; default 0. */
  weightDecay: number
  /** What the sums of squares begin with; default 0. */
  initialAccumulatorValue: number
  /** Added to the denominator; default 1e-10. */
  eps: number
}

/** Writes p and the sum of squares, to which `first` is added once. */
const ADAGRAD = namedProgram(
  'adagrad',
  ['p', 'g', 'sum'],
  ['rate', 'first', 'decay', 'eps'],
  ({ p, g, sum }, { rate, first, decay, eps }) => {
    const d = e.add(g, e.mul(decay, p))
    const squares = e.add(e.add(sum, first), e.mul(d, d))
    return [e.sub(p, e.mul(rate, e.div(d, e.add(e.sqrt(squares), eps)))), squares]
  },
)
const COUNTED = namedProgram(
  'adagrad.counted',
  ['skipped'],
  ['before', 'lr', 'lrDecay', 'initial'],
  ({ skipped }, { before, lr, lrDecay, initial }) => {
    const taken = e.sub(before, skipped)
    return [e.div(lr, e.add(1, e.mul(taken, lrDecay))), e.select(e.le(taken, 0), initial, 0)]
  },
)

/**
 * Adagrad (Duchi et al. 2011), as PyTorch: g ← g + weightDecay · p; s ← s + g²; p ← p − lr / (1 + (t − 1) · lrDecay) · g / (√s + eps).
 *
 * @throws ValueError for a negative option.
 * @example
 * const x = parameter(tensor([3]))
 * const optimizer = new Adagrad([x], { lr: 0.1 })
 * x.square().sum().backward()
 * optimizer.step() // the first step is lr long
 * await x.detach().text() // → tensor([2.9000], shape=[1], dtype=float32)
 */
export class Adagrad extends Optimizer<AdagradOptions> {
  constructor(params: ParamsOrGroups<AdagradOptions>, options: Partial<AdagradOptions> = {}) {
    super(params, {
      ...{ lr: 1e-2, lrDecay: 0, weightDecay: 0, initialAccumulatorValue: 0, eps: 1e-10 },
      ...expectOptions('Adagrad', options, {
        ...{ lr: 1, lrDecay: 1, weightDecay: 1, initialAccumulatorValue: 1, eps: 1 },
      }),
    })
  }

  protected validate({ lr, lrDecay, weightDecay, initialAccumulatorValue, eps }: AdagradOptions): void {
    nonNegative('Adagrad', { lr, lrDecay, weightDecay, initialAccumulatorValue, eps })
  }

  protected override stateNames(): readonly string[] {
    return ['sum']
  }

  protected update(p: Tensor, g: Tensor, options: AdagradOptions, state: ParamState): Update {
    const { lr, lrDecay, weightDecay: decay, initialAccumulatorValue: initial, eps } = options
    const sum = stateTensor(state, p, 'sum')
    const before = state.step - 1
    const first = before === 0 ? initial : 0
    const params = ADAGRAD.numbers({ rate: lr / (1 + before * lrDecay), first, decay, eps })
    const counted = (): Counted => ({
      program: COUNTED,
      params: COUNTED.numbers({ before, lr, lrDecay, initial }),
      at: [ADAGRAD.order.indexOf('rate'), ADAGRAD.order.indexOf('first')],
    })
    return { program: ADAGRAD, outputs: [p, sum], inputs: [p, g, sum], params, counted }
  }
}
