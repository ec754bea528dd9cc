import {
  describeValue,
  type Expr,
  expr as e,
  expectOptions,
  namedProgram,
  type Tensor,
  ValueError,
} from '@tilegrad/core'
import { type Counted, nonNegative, Optimizer, type ParamsOrGroups, type Update } from './optimizer.ts'
import { type ParamState, stateTensor } from './param-state.ts'

/** Options of `SGD`. */
export interface SGDOptions {
  /** Learning rate; default 1e-3. */
  lr: number
  /** Share of the last update that goes into the next; default 0. */
  momentum: number
  /** Share of the gradient that does not go into the momentum; default 0. */
  dampening: number
  /** Factor of the L2 penalty's gradient, added to the gradient; default 0. */
  weightDecay: number
  /** Nesterov's momentum; default false. */
  nesterov: boolean
}

const decayed = (p: Expr, g: Expr, decay: Expr): Expr => e.add(g, e.mul(decay, p))
const step = (p: Expr, lr: Expr, by: Expr): Expr => e.sub(p, e.mul(lr, by))

const PLAIN = namedProgram('sgd', ['p', 'g'], ['lr', 'decay'], ({ p, g }, { lr, decay }) =>
  step(p, lr, decayed(p, g, decay)),
)

/** Writes p and the momentum; `share` is the share of the gradient. */
const withMomentum = (nesterov: boolean) =>
  namedProgram(
    'sgd',
    ['p', 'g', 'm'],
    ['lr', 'decay', 'momentum', 'share'],
    ({ p, g, m }, { lr, decay, momentum, share }) => {
      const d = decayed(p, g, decay)
      const next = e.add(e.mul(momentum, m), e.mul(share, d))
      return [step(p, lr, nesterov ? e.add(d, e.mul(momentum, next)) : next), next]
    },
  )
/** What was skipped before the first update left no momentum: that still begins as the whole gradient. */
const COUNTED = namedProgram('sgd.counted', ['skipped'], ['step', 'share'], ({ skipped }, { step, share }) =>
  e.select(e.le(e.sub(step, skipped), 1), 1, share),
)
const MOMENTUM = withMomentum(false)
const NESTEROV = withMomentum(true)

/**
 * Stochastic gradient descent, with momentum as PyTorch defines it: g ← g + weightDecay · p;
 * b ← momentum · b + (1 − dampening) · g, b ← g at first; p ← p − lr · b, or with Nesterov's momentum
 * p ← p − lr · (g + momentum · b) (Sutskever et al. 2013).
 *
 * @throws ValueError for a negative option, or for Nesterov's momentum without momentum or with dampening.
 * @example
 * const x = parameter(tensor([3]))
 * const optimizer = new SGD([x], { lr: 0.1 })
 * x.square().sum().backward()
 * optimizer.step() // x becomes 3 − 0.1 · 6
 * await x.detach().text() // → tensor([2.4000], shape=[1], dtype=float32)
 */
export class SGD extends Optimizer<SGDOptions> {
  constructor(params: ParamsOrGroups<SGDOptions>, options: Partial<SGDOptions> = {}) {
    super(params, {
      lr: 1e-3,
      momentum: 0,
      dampening: 0,
      weightDecay: 0,
      nesterov: false,
      ...expectOptions('SGD', options, { lr: 1, momentum: 1, dampening: 1, weightDecay: 1, nesterov: 1 }),
    })
  }

  protected validate({ lr, momentum, dampening, weightDecay, nesterov }: SGDOptions): void {
    nonNegative('SGD', { lr, momentum, weightDecay })
    if (!Number.isFinite(dampening))
      throw new ValueError(`SGD: dampening must be a number, got ${describeValue(dampening)}`)
    if (nesterov && (momentum === 0 || dampening !== 0)) {
      throw new ValueError(
        `SGD: Nesterov's momentum needs momentum > 0 and dampening 0, got ${momentum} and ${dampening}`,
      )
    }
  }

  protected override stateNames({ momentum }: SGDOptions): readonly string[] {
    return momentum === 0 ? [] : ['momentum']
  }

  protected update(p: Tensor, g: Tensor, options: SGDOptions, state: ParamState): Update {
    const { lr, momentum, dampening, weightDecay: decay, nesterov } = options
    if (momentum === 0)
      return { program: PLAIN, outputs: [p], inputs: [p, g], params: PLAIN.numbers({ lr, decay }) }
    // Momentum starts as the whole gradient: 0 · momentum + 1 · g.
    const share = state.tensors.momentum ? 1 - dampening : 1
    const m = stateTensor(state, p, 'momentum')
    const program = nesterov ? NESTEROV : MOMENTUM
    const params = program.numbers({ lr, decay, momentum, share })
    const counted = (): Counted => ({
      program: COUNTED,
      params: COUNTED.numbers({ step: state.step, share: 1 - dampening }),
      at: [program.order.indexOf('share')],
    })
    return { program, outputs: [p, m], inputs: [p, g, m], params, ...(dampening !== 0 && { counted }) }
  }
}
