import {
  add_,
  applyProgramIntoEach,
  copy_,
  describeValue,
  expr as e,
  expectOptions,
  namedProgram,
  noGrad,
  program,
  scope,
  type Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import { buffer, Module } from '../module/module.ts'

/** Options of `EMA`. */
export interface EMAOptions {
  /** Share of the old mean in the next one; default 0.999. */
  decay?: number
}

/** The first time `n` is 0, and the weights are the average. */
const AVERAGE = namedProgram('ema', ['mean', 'p', 'n'], ['share'], ({ mean, p, n }, { share }) =>
  e.select(e.le(n, 0), p, e.add(mean, e.mul(share, e.sub(p, mean)))),
)
const SWAP = program('ema.swap', 2, ([p, mean]) => [mean, p])

/**
 * The exponential moving average of a model's weights, which often do better than the last ones (Polyak & Juditsky 1992): a ←
 * decay · a + (1 − decay) · p after each step, on the device, in one launch. PyTorch's AveragedModel with get_ema_multi_avg_fn.
 *
 * @throws ValueError for a decay that does not lie within 0 … 1, and for what is no module.
 * @example
 * const model = new Linear(2, 1)
 * const ema = new EMA(model, { decay: 0.99 })
 * // … after each optimizer.step():
 * ema.update()
 * const y = ema.average(() => model.forward(ones([1, 2]))) // by the averaged weights
 * y.shape // → 1,1
 */
export class EMA extends Module {
  /** Share of the old mean in the next one. */
  readonly decay: number
  /** The averages, by the parameters' dotted names. */
  readonly weights: Record<string, Tensor> = {}
  /** How many updates there were, an int32 scalar. */
  numAveraged: Tensor
  readonly #params: readonly Tensor[]
  #swapped = false

  constructor(model: Module, options: EMAOptions = {}) {
    super()
    const { decay = 0.999 } = expectOptions('EMA', options, { decay: 1 })
    if (!(model instanceof Module)) throw new ValueError(`EMA: takes a module, got ${describeValue(model)}`)
    if (!(decay >= 0 && decay <= 1))
      throw new ValueError(`EMA: decay must lie within 0 … 1, got ${describeValue(decay)}`)
    this.decay = decay
    const named = model.namedParameters()
    if (named.length === 0) throw new ValueError('EMA: the module has no parameters')
    this.numAveraged = buffer(zeros([], { dtype: 'int32', device: named[0][1].backend }))
    this.#params = named.map(([, p]) => p)
    noGrad(() => {
      for (const [name, p] of named) this.weights[name] = buffer(scope(() => p.detach().clone()))
    })
  }

  /** Takes the weights as they are now into the averages; the first time they become these. */
  update(): void {
    if (this.#swapped)
      throw new ValueError('EMA.update: the averages are in the model; call it after average(…)')
    const params = AVERAGE.numbers({ share: 1 - this.decay })
    const n = this.numAveraged
    const means = Object.values(this.weights)
    noGrad(() => {
      applyProgramIntoEach(
        AVERAGE,
        means.map((mean, i) => ({ outputs: [mean], inputs: [mean, this.#params[i], n], params })),
      )
      add_(n, 1)
    })
  }

  /** Exchanges weights and averages, without memory for a copy. */
  #swap(): void {
    const means = Object.values(this.weights)
    noGrad(() =>
      applyProgramIntoEach(
        SWAP,
        means.map((mean, i) => ({ outputs: [this.#params[i], mean], inputs: [this.#params[i], mean] })),
      ),
    )
    this.#swapped = !this.#swapped
  }

  /**
   * Runs a function, which may be async, with the averages in the place of the model's weights, and puts these back, also where it
   * throws. Not for training: what it computes with gradients is of the averages.
   *
   * @returns what the function returns.
   * @throws ValueError within itself.
   */
  average<T>(fn: () => T): T {
    if (this.#swapped) throw new ValueError('EMA.average: the averages are in the model already')
    this.#swap()
    let later = false
    try {
      const result = fn()
      if (typeof (result as PromiseLike<unknown> | null)?.then !== 'function') return result
      later = true
      return Promise.resolve(result).finally(() => this.#swap()) as T
    } finally {
      if (!later) this.#swap()
    }
  }

  /** Copies the averages over the model's weights, for good. */
  copyToModel(): void {
    noGrad(() => {
      for (const [i, mean] of Object.values(this.weights).entries()) copy_(this.#params[i], mean)
    })
  }

  /** @throws ValueError: the model computes, within `average`. */
  forward(): never {
    throw new ValueError('EMA.forward: call the model, within ema.average(() => …)')
  }

  override extraRepr(): string {
    return `decay=${this.decay}`
  }
}
