import { expr as e, expectOptions, namedProgram, type Tensor } from '@tilegrad/core'
import { expectBetas } from './adam.ts'
import { kept } from './cautious.ts'
import { nonNegative, Optimizer, type ParamsOrGroups, type Update } from './optimizer.ts'
import { type ParamState, stateTensor } from './param-state.ts'

/** Options of `Lion`. */
export interface LionOptions {
  /** Learning rate; default 1e-4, a third to a tenth of Adam's. */
  lr: number
  /** Shares of the old mean in the direction of a step and in the next mean; default [0.9, 0.99]. */
  betas: readonly [number, number]
  /** p shrinks by lr · weightDecay, which should be as much more than Adam's as lr is less; default 0. */
  weightDecay: number
  /** Let only those numbers decay that the step brings nearer to 0 as well (Chen et al. 2025); default false. */
  cautious: boolean
}

const lion = (cautious: boolean) =>
  namedProgram(
    'lion',
    ['p', 'g', 'm'],
    ['lr', 'decay', 'beta1', 'beta2'],
    ({ p, g, m }, { lr, decay, beta1, beta2 }) => {
      const mix = (beta: e.Expr): e.Expr => e.add(g, e.mul(beta, e.sub(m, g)))
      const step = e.sign(mix(beta1))
      return [e.sub(kept(p, step, decay, cautious), e.mul(lr, step)), mix(beta2)]
    },
  )
const PROGRAMS = [lion(false), lion(true)]

/**
 * Lion (Chen et al. 2023): p ← (1 − lr · weightDecay) p − lr · sign(β₁ m + (1 − β₁) g), and then m ← β₂ m + (1 − β₂) g. Every
 * number moves by lr; there is one moment to keep, not two.
 *
 * @throws ValueError for options out of range.
 * @example
 * const x = parameter(tensor([3, -4]))
 * const optimizer = new Lion([x], { lr: 0.1 })
 * x.square().sum().backward()
 * optimizer.step()
 * await x.detach().text() // → tensor([ 2.9000, -3.9000], shape=[2], dtype=float32)
 */
export class Lion extends Optimizer<LionOptions> {
  constructor(params: ParamsOrGroups<LionOptions>, options: Partial<LionOptions> = {}) {
    super(params, {
      ...{ lr: 1e-4, betas: [0.9, 0.99], weightDecay: 0, cautious: false },
      ...expectOptions('Lion', options, { lr: 1, betas: 1, weightDecay: 1, cautious: 1 }),
    })
  }

  protected validate({ lr, betas, weightDecay }: LionOptions): void {
    nonNegative('Lion', { lr, weightDecay })
    expectBetas('Lion', betas)
  }

  protected override stateNames(): readonly string[] {
    return ['expAvg']
  }

  protected update(p: Tensor, g: Tensor, options: LionOptions, state: ParamState): Update {
    const { lr, betas, weightDecay, cautious } = options
    const m = stateTensor(state, p, 'expAvg')
    const program = PROGRAMS[Number(cautious)]
    const params = program.numbers({ lr, decay: lr * weightDecay, beta1: betas[0], beta2: betas[1] })
    return { program, outputs: [p, m], inputs: [p, g, m], params }
  }
}
