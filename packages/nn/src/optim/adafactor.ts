import {
  applyProgram,
  describeValue,
  expr as e,
  expectOptions,
  namedProgram,
  program,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import { wide } from '../module/parameter.ts'
import { type DueParameter, nonNegative, Optimizer, type ParamsOrGroups, type Update } from './optimizer.ts'
import { type ParamState, stateTensor } from './param-state.ts'

/** Options of `Adafactor`. */
export interface AdafactorOptions {
  /** The highest relative rate of a step; at step t it is at most 1 / √t. Default: 1e-2. */
  lr: number
  /** The decay of the running means of squares at step t is 1 − t^beta2Decay; default −0.8. */
  beta2Decay: number
  /** The least number that is divided by (default: of float32 the distance from 1 to the next number), and the least size of a parameter; default [null, 1e-3]. */
  eps: readonly [number | null, number]
  /** The largest root mean square of a step in units of the rate; default 1. */
  d: number
  /** p shrinks by lr · weightDecay; default 0. */
  weightDecay: number
}

const STORE = program('adafactor.kept', 2, ([, next]) => next)
/** Moves a running mean towards squares by the share t^decay. */
const MOVED = namedProgram(
  'adafactor.moved',
  ['old', 'now', 'skipped'],
  ['step', 'decay'],
  ({ old, now, skipped }, { step, decay }) =>
    e.add(old, e.mul(e.pow(e.max(e.sub(step, skipped), 1), decay), e.sub(now, old))),
)
/** Divides a gradient by the root of the mean of squares that the means of rows and of columns give, with the mean of the rows'. */
const FACTORED = namedProgram(
  'adafactor.step',
  ['g', 'row', 'column', 'mean'],
  ['eps'],
  ({ g, row, column, mean }, { eps }) =>
    e.div(g, e.sqrt(e.max(e.div(e.mul(row, column), e.max(mean, eps)), e.mul(eps, eps)))),
)
const WHOLE = namedProgram('adafactor.step', ['g', 'square'], ['eps'], ({ g, square }, { eps }) =>
  e.div(g, e.sqrt(e.max(square, e.mul(eps, eps)))),
)
/** Takes the step from p in the direction u; `sizes` and `steps` are the sums of the squares of both. */
const ADAFACTOR = namedProgram(
  'adafactor',
  ['p', 'u', 'sizes', 'steps', 'skipped'],
  ['step', 'lr', 'decay', 'least', 'd', 'n'],
  ({ p, u, sizes, steps, skipped }, { step, lr, decay, least, d, n }) => {
    const rho = e.min(lr, e.div(1, e.sqrt(e.max(e.sub(step, skipped), 1))))
    const alpha = e.mul(e.max(least, e.sqrt(e.div(sizes, n))), rho)
    const clip = e.max(1, e.div(e.sqrt(e.div(steps, n)), d))
    return e.sub(e.sub(p, e.mul(decay, p)), e.mul(e.div(alpha, clip), u))
  },
)

/** The distance from 1 to the next number of float32, and of float64. */
const EPSILON = { float32: 2 ** -23, float64: 2 ** -52 } as const

/** What `prepare` found of a parameter. */
interface Found {
  /** The new running means, by name. */
  readonly means: Readonly<Record<string, Tensor>>
  readonly u: Tensor
  readonly sizes: Tensor
  readonly steps: Tensor
  /** How many steps were skipped. */
  readonly skipped: Tensor
}

const isFactored = (p: Tensor): boolean => p.rank > 1

/**
 * Adafactor (Shazeer & Stern 2018), as PyTorch: of matrices it keeps the running means of squares of rows and of columns, not of
 * every element, so that its state is as good as none; steps are relative to the size of the parameter, at most 1 / √t and clipped
 * to a root mean square of d.
 *
 * @throws ValueError for options out of range.
 * @example
 * const layer = new Linear(64, 32)
 * const optimizer = new Adafactor(layer.parameters())
 * layer.forward(randn([8, 64])).square().mean().backward()
 * optimizer.step()
 * optimizer.stateDict().state[0]?.tensors.rowVar?.shape // → 32,1
 */
export class Adafactor extends Optimizer<AdafactorOptions> {
  readonly #found = new WeakMap<ParamState, Found>()

  constructor(params: ParamsOrGroups<AdafactorOptions>, options: Partial<AdafactorOptions> = {}) {
    super(params, {
      ...{ lr: 1e-2, beta2Decay: -0.8, eps: [null, 1e-3], d: 1, weightDecay: 0 },
      ...expectOptions('Adafactor', options, { lr: 1, beta2Decay: 1, eps: 1, d: 1, weightDecay: 1 }),
    })
  }

  protected validate({ lr, beta2Decay, eps, d, weightDecay }: AdafactorOptions): void {
    nonNegative('Adafactor', { lr, weightDecay })
    if (!(beta2Decay <= 0))
      throw new ValueError(`Adafactor: beta2Decay must be ≤ 0, got ${describeValue(beta2Decay)}`)
    if (!(d >= 1)) throw new ValueError(`Adafactor: d must be ≥ 1, got ${describeValue(d)}`)
    const fits = Array.isArray(eps) && eps.length === 2 && (eps[0] === null || eps[0] >= 0) && eps[1] >= 0
    if (!fits)
      throw new ValueError(
        `Adafactor: eps must be [number or null, number], both ≥ 0, got ${describeValue(eps)}`,
      )
  }

  protected override stateShape(name: string, { shape }: Tensor): readonly number[] {
    if (name === 'rowVar') return [...shape.slice(0, -1), 1]
    return name === 'colVar' ? [...shape.slice(0, -2), 1, shape[shape.length - 1]] : shape
  }

  protected override prepare(due: readonly DueParameter<AdafactorOptions>[]): void {
    for (const { p, grad: given, options, state } of due) {
      const dtype = wide(p.dtype)
      const grad = given.to(dtype)
      const eps = options.eps[0] ?? EPSILON[p.dtype === 'float64' ? 'float64' : 'float32']
      const skipped = state.skipped ?? zeros([], { dtype, device: p.backend })
      const means: Record<string, Tensor> = {}
      const moved = (name: string, now: Tensor): Tensor => {
        const old = stateTensor(state, p, name, this.stateShape(name, p))
        const numbers = (): number[] => MOVED.numbers({ step: state.step, decay: options.beta2Decay })
        means[name] = applyProgram(MOVED, [old, now, skipped], numbers)
        return means[name]
      }
      const squares = grad.square()
      let u: Tensor
      if (isFactored(p)) {
        const row = moved('rowVar', squares.mean(-1, { keepdim: true }))
        const column = moved('colVar', squares.mean(-2, { keepdim: true }))
        u = applyProgram(FACTORED, [grad, row, column, row.mean(-2, { keepdim: true })], [eps])
      } else u = applyProgram(WHOLE, [grad, moved('variance', squares)], [eps])
      const sizes = p.to(dtype).square().sum()
      this.#found.set(state, { means, u, sizes, steps: u.square().sum(), skipped })
    }
  }

  protected update(p: Tensor, _: Tensor, options: AdafactorOptions, state: ParamState): Update[] {
    const { lr, eps, d, weightDecay } = options
    const { means, u, sizes, steps, skipped } = this.#found.get(state) as Found
    const params = ADAFACTOR.numbers({
      step: state.step,
      lr,
      decay: lr * weightDecay,
      least: eps[1],
      d,
      n: p.numel,
    })
    return [
      { program: ADAFACTOR, outputs: [p], inputs: [p, u, sizes, steps, skipped], params },
      ...Object.entries(means).map(([name, next]) => {
        const kept = stateTensor(state, p, name, this.stateShape(name, p))
        return { program: STORE, outputs: [kept], inputs: [kept, next] }
      }),
    ]
  }
}
