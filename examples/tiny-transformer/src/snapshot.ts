import { type GPT, noGrad, scope, type Tensor } from 'tilegrad'

/** A copy of a model's weights on their device, which can be put back. */
export class Snapshot {
  readonly #model: GPT
  /** Copies by what they are copies of; made at the first `take`. */
  readonly #copies = new Map<Tensor, Tensor>()
  #steps = 0

  constructor(model: GPT) {
    this.#model = model
  }

  /** The steps that the copied weights have learned for; 0: there is no copy. */
  get steps(): number {
    return this.#steps
  }

  /** Copies the weights as they are now. */
  take(steps: number): void {
    noGrad(() => {
      for (const weight of Object.values(this.#model.stateDict())) {
        const copy = this.#copies.get(weight)
        if (copy) scope(() => void copy.copy_(weight))
        else this.#copies.set(weight, weight.detach().clone())
      }
    })
    this.#steps = steps
  }

  /** The copies under their names. */
  stateDict(): Record<string, Tensor> {
    return Object.fromEntries(
      Object.entries(this.#model.stateDict()).flatMap(([name, weight]) => {
        const copy = this.#copies.get(weight)
        return copy ? [[name, copy]] : []
      }),
    )
  }

  /** Makes the model what it was. */
  restore(): void {
    noGrad(() => {
      for (const [weight, copy] of this.#copies) scope(() => void weight.copy_(copy))
    })
  }

  dispose(): void {
    for (const copy of this.#copies.values()) copy.dispose()
    this.#copies.clear()
  }
}
