import {
  applyProgram,
  describeValue,
  type Expr,
  expr as e,
  expectOptions,
  matmul,
  namedProgram,
  program,
  show,
  stack,
  type Tensor,
  transpose,
  ValueError,
} from '@tilegrad/core'
import type { Module } from '../module/module.ts'
import { kept } from './cautious.ts'
import { type DueParameter, nonNegative, Optimizer, type ParamsOrGroups, type Update } from './optimizer.ts'
import { type ParamState, stateTensor } from './param-state.ts'

/** Options of `Muon`. */
export interface MuonOptions {
  /** Learning rate; default 1e-3. */
  lr: number
  /** p shrinks by lr · weightDecay; default 0.1. */
  weightDecay: number
  /** Share of the old mean of gradients in the next; default 0.95. */
  momentum: number
  /** Go by a mix of the gradient and the next mean; default true. */
  nesterov: boolean
  /** The factors of X, XXᵀX and XXᵀXXᵀX in each step of the iteration; default [3.4445, −4.775, 2.0315]. */
  nsCoefficients: readonly [number, number, number]
  /** Steps of the Newton–Schulz iteration; default 5. */
  nsSteps: number
  /** The least norm that is divided by; default 1e-7. */
  eps: number
  /**
   * How a matrix (a, b) changes the rate: 'original', by √max(1, a / b); or 'match_rms_adamw', by 0.2 · √max(a, b), so that rates
   * and decays of AdamW fit (Liu et al. 2025). Default: 'original'.
   */
  adjustLrFn: 'original' | 'match_rms_adamw'
  /** Let only those numbers decay that the step brings nearer to 0 as well (Chen et al. 2025); default false. */
  cautious: boolean
}

const MEAN = namedProgram('muon.mean', ['m', 'g'], ['momentum'], ({ m, g }, { momentum }) =>
  e.add(g, e.mul(momentum, e.sub(m, g))),
)
const muon = (cautious: boolean) =>
  namedProgram(
    'muon',
    ['p', 'm', 'mean', 'step'],
    ['rate', 'decay'],
    ({ p, mean, step }, { rate, decay }) => [e.sub(kept(p, step, decay, cautious), e.mul(rate, step)), mean],
  )
const PROGRAMS = [muon(false), muon(true)]

const SCALED = program('muon.scaled', 2, ([x, squares], [eps]) => e.div(x, e.max(e.sqrt(squares), eps)), 1)
const combined = (x: Expr, y: Expr, a: Expr, b: Expr): Expr => e.add(e.mul(a, x), e.mul(b, y))
const COMBINED = program('muon.combined', 2, ([x, y], [a, b]) => combined(x, y, a, b), 2)

/**
 * The orthogonal matrices nearest to those of a batch (…, r, c), roughly: the Newton–Schulz iteration X ← a X + (b XXᵀ + c (XXᵀ)²) X,
 * whose coefficients bring singular values to between 0.7 and 1.2 in five steps.
 */
function orthogonal(x: Tensor, { nsCoefficients: [a, b, c], nsSteps, eps }: MuonOptions): Tensor {
  const [r, columns] = x.shape.slice(-2)
  const tall = r > columns
  const t = (y: Tensor): Tensor => transpose(y, -2, -1)
  let y = applyProgram(SCALED, [tall ? t(x) : x, x.square().sum([-2, -1], { keepdim: true })], [eps])
  for (let i = 0; i < nsSteps; i++) {
    const gram = matmul(y, t(y))
    y = applyProgram(
      COMBINED,
      [y, matmul(applyProgram(COMBINED, [gram, matmul(gram, gram)], [b, c]), y)],
      [a, 1],
    )
  }
  return tall ? t(y) : y
}

/** The next mean of gradients, and the direction of the step. */
interface Direction {
  readonly mean: Tensor
  readonly step: Tensor
}

/**
 * Muon (Jordan et al. 2024), as PyTorch: momentum whose matrices are made orthogonal before each step, on the device, by a
 * Newton–Schulz iteration; those of one shape together. m ← momentum · m + (1 − momentum) g; the direction is m, or with Nesterov's
 * momentum (1 − momentum) g + momentum · m; p ← (1 − lr · weightDecay) p − lr · √max(1, a / b) · orthogonal(direction) of a matrix (a, b).
 * It is for the matrices of hidden layers: `muonGroups` parts them from the rest, which AdamW takes.
 *
 * @throws ValueError for options out of range, and for parameters that are no matrices.
 * @example
 * const model = new Sequential(new Linear(4, 8), new Tanh(), new Linear(8, 2))
 * const { matrices, others } = muonGroups(model)
 * const optimizers = [new Muon(matrices, { lr: 0.02 }), new AdamW(others, { lr: 1e-3 })]
 * model.forward(randn([3, 4])).square().mean().backward()
 * for (const optimizer of optimizers) optimizer.step()
 */
export class Muon extends Optimizer<MuonOptions> {
  readonly #directions = new WeakMap<ParamState, Direction>()

  constructor(params: ParamsOrGroups<MuonOptions>, options: Partial<MuonOptions> = {}) {
    super(params, {
      ...{ lr: 1e-3, weightDecay: 0.1, momentum: 0.95, nesterov: true },
      ...{ nsCoefficients: [3.4445, -4.775, 2.0315], nsSteps: 5, eps: 1e-7 },
      ...{ adjustLrFn: 'original', cautious: false },
      ...expectOptions('Muon', options, {
        ...{ lr: 1, weightDecay: 1, momentum: 1, nesterov: 1, nsCoefficients: 1, nsSteps: 1, eps: 1 },
        ...{ adjustLrFn: 1, cautious: 1 },
      }),
    })
    for (const { params } of this.paramGroups)
      for (const p of params)
        if (p.rank !== 2)
          throw new ValueError(
            `Muon: a parameter is ${show(p.shape)}, no matrix; muonGroups(model) parts a model's parameters, for AdamW to take the others`,
          )
  }

  protected validate(options: MuonOptions): void {
    const { lr, weightDecay, momentum, nsCoefficients, nsSteps, eps, adjustLrFn } = options
    nonNegative('Muon', { lr, weightDecay, momentum, nsSteps, eps })
    if (!(momentum < 1))
      throw new ValueError(`Muon: momentum must lie within 0 ≤ momentum < 1, got ${momentum}`)
    if (!Number.isInteger(nsSteps) || nsSteps > 100)
      throw new ValueError(`Muon: nsSteps must be a whole number up to 100, got ${nsSteps}`)
    if (
      !Array.isArray(nsCoefficients) ||
      nsCoefficients.length !== 3 ||
      !nsCoefficients.every(Number.isFinite)
    )
      throw new ValueError(`Muon: nsCoefficients must be three numbers, got ${describeValue(nsCoefficients)}`)
    if (adjustLrFn !== 'original' && adjustLrFn !== 'match_rms_adamw')
      throw new ValueError(
        `Muon: adjustLrFn must be 'original' or 'match_rms_adamw', got ${describeValue(adjustLrFn)}`,
      )
  }

  protected override stateNames(): readonly string[] {
    return ['momentumBuffer']
  }

  protected override prepare(due: readonly DueParameter<MuonOptions>[]): void {
    const alike = new Map<string, (DueParameter<MuonOptions> & { mean: Tensor; direction: Tensor })[]>()
    for (const one of due) {
      const { p, grad, options, state } = one
      const m = stateTensor(state, p, 'momentumBuffer')
      // A schedule may change it between the calls of a compiled step.
      const numbers = (): readonly number[] => MEAN.numbers({ momentum: options.momentum })
      const mean = applyProgram(MEAN, [m, grad], numbers)
      const direction = options.nesterov ? applyProgram(MEAN, [mean, grad], numbers) : mean
      const { nsCoefficients, nsSteps, eps } = options
      const key = [p.shape, p.dtype, p.device, nsCoefficients, nsSteps, eps].join(' ')
      const list = alike.get(key)
      if (list) list.push({ ...one, mean, direction })
      else alike.set(key, [{ ...one, mean, direction }])
    }
    for (const list of alike.values()) {
      const steps = orthogonal(stack(list.map(({ direction }) => direction)), list[0].options)
      for (const [i, { state, mean }] of list.entries())
        this.#directions.set(state, { mean, step: steps.select(0, i) })
    }
  }

  protected update(p: Tensor, _: Tensor, options: MuonOptions, state: ParamState): Update {
    const { lr, weightDecay, adjustLrFn, cautious } = options
    const { mean, step } = this.#directions.get(state) as Direction
    const m = stateTensor(state, p, 'momentumBuffer')
    const [a, b] = p.shape
    const rate =
      lr * (adjustLrFn === 'original' ? Math.sqrt(Math.max(1, a / b)) : 0.2 * Math.sqrt(Math.max(a, b)))
    const program = PROGRAMS[Number(cautious)]
    const params = program.numbers({ rate, decay: lr * weightDecay })
    return { program, outputs: [p, m], inputs: [p, m, mean, step], params }
  }
}

/**
 * Parts a model's parameters for `Muon`, which is for the matrices between layers, and another optimiser: embeddings, the head that
 * gives scores of classes or tokens, biases, gains and all that is no matrix are the others. Frozen parameters are left out.
 *
 * @param options.others says which matrices are others too, by their dotted names and modules' classes; default: those of modules
 * named `Embedding` and of the last module that has a matrix.
 * @example
 * const { matrices, others } = muonGroups(new Sequential(new Embedding(9, 4), new Linear(4, 4), new Linear(4, 9)))
 * matrices.length // → 1
 * others.length // → 4
 */
export function muonGroups(
  model: Module,
  options: { others?: (name: string, p: Tensor) => boolean } = {},
): { matrices: Tensor[]; others: Tensor[] } {
  if (typeof model?.namedParameters !== 'function')
    throw new ValueError(`muonGroups: takes a module, got ${describeValue(model)}`)
  const { others: isOther } = expectOptions('muonGroups', options, { others: 1 })
  const learned = model.namedParameters().filter(([, p]) => p.requiresGrad)
  const embeddings = new Set(
    model
      .modules()
      .filter((m) => m.constructor.name === 'Embedding')
      .flatMap((m) => m.parameters()),
  )
  // By its module: a head that is tied to an embedding has no name of its own.
  const matricesOf = (m: Module): Tensor[] => m.parameters().filter((p) => p.rank === 2)
  const head = new Set(
    model
      .modules()
      .map(matricesOf)
      .findLast((list) => list.length > 0),
  )
  const out = { matrices: [] as Tensor[], others: [] as Tensor[] }
  for (const [name, p] of learned) {
    const other = p.rank !== 2 || (isOther ? isOther(name, p) : head.has(p) || embeddings.has(p))
    out[other ? 'others' : 'matrices'].push(p)
  }
  return out
}
