import {
  describeValue,
  type Expr,
  expr as e,
  expectOptions,
  type Names,
  namedProgram,
  type Tensor,
  ValueError,
} from '@tilegrad/core'
import type { Module } from '../module/module.ts'
import { type Counted, nonNegative, Optimizer, type ParamsOrGroups, type Update } from './optimizer.ts'
import { type ParamState, stateTensor } from './param-state.ts'

/** Options of `Adam` and `AdamW`. */
export interface AdamOptions {
  /** Learning rate; default 1e-3. */
  lr: number
  /** Decay of the running means of gradients and of their squares; default [0.9, 0.999]. */
  betas: readonly [number, number]
  /** Added to the denominator; default 1e-8. */
  eps: number
  /** Adam: factor of p added to the gradient, default 0. AdamW: p shrinks by lr · weightDecay, default 0.01. */
  weightDecay: number
  /** Divide by the largest v̂ so far, not the present one (Reddi et al. 2018); default false. */
  amsgrad: boolean
  /** Go up the gradient, not down; default false. */
  maximize: boolean
}

/** What of the options is in the program and not in its numbers. */
interface Kind {
  readonly decoupled: boolean
  readonly cautious: boolean
  readonly amsgrad: boolean
  readonly maximize: boolean
}

/**
 * Makes the program of a step, one pass over memory for all parameters together: it reads p, g and both moments, and
 * writes p and both moments. What depends on lr and the step number comes in as numbers, computed in double precision, so
 * that nothing is compiled again.
 *
 * `decay` is the factor of p (AdamW) or the share of p in the gradient (Adam), `share1` and `share2` are 1 − β₁ and 1 − β₂,
 * `size` is lr / (1 − β₁ᵗ), `root2` √(1 − β₂ᵗ).
 */
const adam = ({ decoupled, cautious, amsgrad, maximize }: Kind) =>
  namedProgram(
    decoupled ? 'adamw' : 'adam',
    ['p', 'g', 'm', 'v', ...(amsgrad ? (['top'] as const) : [])],
    ['decay', 'share1', 'beta2', 'share2', 'size', 'root2', 'eps'],
    ({ p, g, m, v, top }, { decay, share1, beta2, share2, size, root2, eps }) => {
      const given = maximize ? e.neg(g) : g
      const d = decoupled ? given : e.add(given, e.mul(decay, p))
      const mean = e.add(m, e.mul(share1, e.sub(d, m)))
      const square = e.add(e.mul(beta2, v), e.mul(share2, e.mul(d, d)))
      const largest = amsgrad ? [e.max(top, square)] : []
      const denominator = e.add(e.div(e.sqrt(largest[0] ?? square), root2), eps)
      const factor = cautious ? e.select(e.ge(e.mul(p, mean), 0), decay, 1) : decay
      const from = decoupled ? e.mul(p, factor) : p
      return [e.sub(from, e.mul(size, e.div(mean, denominator))), mean, square, ...largest]
    },
  )
/** (1 − βᵗ) / (1 − βⁿ) of t steps, n of them not skipped; 1 where none was. `log` is ln β, of 0 a number as good as −∞. */
const correction = (step: Expr, skipped: Expr, log: Expr): Expr =>
  e.select(
    e.gt(skipped, 0),
    e.div(e.expm1(e.mul(step, log)), e.expm1(e.mul(e.max(e.sub(step, skipped), 1), log))),
    1,
  )
const COUNTED = namedProgram(
  'adam.counted',
  ['skipped'],
  ['step', 'log1', 'log2', 'size', 'root2'],
  ({ skipped }, { step, log1, log2, size, root2 }) => [
    e.mul(size, correction(step, skipped, log1)),
    e.div(root2, e.sqrt(correction(step, skipped, log2))),
  ],
)
const logOf = (beta: number): number => Math.max(-100, Math.log(beta))
const programs = new Map<string, ReturnType<typeof adam>>()
function programOf(kind: Kind): ReturnType<typeof adam> {
  const key = Object.values(kind).join()
  const program = programs.get(key) ?? adam(kind)
  programs.set(key, program)
  return program
}

/** Options of `AdamW`. */
export interface AdamWOptions extends AdamOptions {
  /** Let only those numbers decay that the step brings nearer to 0 as well (Chen et al. 2025); default false. */
  cautious: boolean
}

function validate(name: string, { lr, betas, eps, weightDecay }: AdamOptions): void {
  nonNegative(name, { lr, eps, weightDecay })
  expectBetas(name, betas)
}

/** @throws ValueError unless there are two decays within 0 ≤ β < 1. @internal */
export function expectBetas(name: string, betas: unknown): void {
  const fits = Array.isArray(betas) && betas.length === 2 && betas.every((beta) => beta >= 0 && beta < 1)
  if (!fits)
    throw new ValueError(
      `${name}: betas must lie within 0 ≤ β < 1, got ${Array.isArray(betas) ? `[${betas.join(', ')}]` : describeValue(betas)}; expected two`,
    )
}

const OPTIONS: Names<AdamOptions> = { lr: 1, betas: 1, eps: 1, weightDecay: 1, amsgrad: 1, maximize: 1 }

const namesOf = ({ amsgrad }: AdamOptions): readonly string[] => [
  'expAvg',
  'expAvgSq',
  ...(amsgrad ? ['maxExpAvgSq'] : []),
]

function update(
  p: Tensor,
  g: Tensor,
  options: AdamOptions,
  state: ParamState,
  kind: Pick<Kind, 'decoupled' | 'cautious'>,
): Update {
  const { lr, betas, eps, weightDecay } = options
  const [beta1, beta2] = betas
  const { decoupled, cautious } = kind
  const program = programOf({ decoupled, cautious, amsgrad: options.amsgrad, maximize: options.maximize })
  const moments = namesOf(options).map((name) => stateTensor(state, p, name))
  const decay = decoupled ? 1 - lr * weightDecay : weightDecay
  const size = lr / (1 - beta1 ** state.step)
  const root2 = Math.sqrt(1 - beta2 ** state.step)
  const params = program.numbers({ decay, share1: 1 - beta1, beta2, share2: 1 - beta2, size, root2, eps })
  const counted = (): Counted => ({
    program: COUNTED,
    params: COUNTED.numbers({ step: state.step, log1: logOf(beta1), log2: logOf(beta2), size, root2 }),
    at: [program.order.indexOf('size'), program.order.indexOf('root2')],
  })
  return { program, outputs: [p, ...moments], inputs: [p, g, ...moments], params, counted }
}

/**
 * Adam (Kingma & Ba 2015), as PyTorch: g ← g + weightDecay · p; m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²;
 * p ← p − lr · m̂ / (√v̂ + eps) with m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ). State `expAvg` is m, `expAvgSq` is v, and with
 * amsgrad `maxExpAvgSq` the largest v.
 *
 * @throws ValueError for options out of range.
 * @example
 * const x = parameter(tensor([3]))
 * const optimizer = new Adam([x], { lr: 0.1 })
 * x.square().sum().backward()
 * optimizer.step() // the first step is lr long
 * await x.detach().text() // → tensor([2.9000], shape=[1], dtype=float32)
 */
export class Adam extends Optimizer<AdamOptions> {
  constructor(params: ParamsOrGroups<AdamOptions>, options: Partial<AdamOptions> = {}) {
    super(params, {
      lr: 1e-3,
      betas: [0.9, 0.999],
      eps: 1e-8,
      weightDecay: 0,
      amsgrad: false,
      maximize: false,
      ...expectOptions('Adam', options, OPTIONS),
    })
  }

  protected validate(options: AdamOptions): void {
    validate('Adam', options)
  }

  protected override stateNames(options: AdamOptions): readonly string[] {
    return namesOf(options)
  }

  protected update(p: Tensor, g: Tensor, options: AdamOptions, state: ParamState): Update {
    return update(p, g, options, state, { decoupled: false, cautious: false })
  }
}

/**
 * Adam with decoupled weight decay (Loshchilov & Hutter 2019), as PyTorch: p ← (1 − lr · weightDecay) p, and then
 * Adam's update of the plain gradient. See `decayGroups` for which parameters to decay.
 *
 * @throws ValueError for options out of range.
 * @example
 * const model = new Linear(4, 1)
 * const optimizer = new AdamW(decayGroups(model, 0.1), { lr: 3e-4, betas: [0.9, 0.95] })
 * model.forward(randn([8, 4])).square().mean().backward()
 * optimizer.step()
 * optimizer.zeroGrad()
 * optimizer.lr = 1e-4 // of all groups; one group's: optimizer.paramGroups[0].lr
 */
export class AdamW extends Optimizer<AdamWOptions> {
  constructor(params: ParamsOrGroups<AdamWOptions>, options: Partial<AdamWOptions> = {}) {
    super(params, {
      lr: 1e-3,
      betas: [0.9, 0.999],
      eps: 1e-8,
      weightDecay: 0.01,
      amsgrad: false,
      maximize: false,
      cautious: false,
      ...expectOptions('AdamW', options, { ...OPTIONS, cautious: 1 }),
    })
  }

  protected validate(options: AdamWOptions): void {
    validate('AdamW', options)
  }

  protected override stateNames(options: AdamOptions): readonly string[] {
    return namesOf(options)
  }

  protected update(p: Tensor, g: Tensor, options: AdamWOptions, state: ParamState): Update {
    return update(p, g, options, state, { decoupled: true, cautious: options.cautious })
  }
}

/**
 * Parameter groups as nanoGPT has them: matrices (two dims or more) decay, vectors (biases, norms) do not. Frozen
 * parameters are left out.
 *
 * @example
 * const groups = decayGroups(new Linear(4, 2), 0.1)
 * groups.map((group) => group.weightDecay) // → 0.1,0
 * const optimizer = new AdamW(groups)
 */
export function decayGroups(model: Module, weightDecay: number): { params: Tensor[]; weightDecay: number }[] {
  if (typeof model?.parameters !== 'function')
    throw new ValueError(`decayGroups: takes a module, got ${describeValue(model)}`)
  const learned = model.parameters().filter((p) => p.requiresGrad)
  return [
    { params: learned.filter((p) => p.rank >= 2), weightDecay },
    { params: learned.filter((p) => p.rank < 2), weightDecay: 0 },
  ].filter((group) => group.params.length > 0)
}
