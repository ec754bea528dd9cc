import { describeValue, type Tensor, ValueError } from '@tilegrad/core'
import { Module } from './module.ts'

/** A module from one tensor to one tensor. */
export type Layer = Module & { forward(x: Tensor): Tensor }

/**
 * Modules run one after the other; each is a property named by its position, so that names are `0.weight` as in
 * PyTorch. (A mere list of modules needs no class: assign an array.)
 *
 * @throws ValueError for a layer that is no module.
 * @example
 * const mlp = new Sequential(new Linear(4, 16), new GELU(), new Linear(16, 2))
 * mlp.forward(randn([3, 4])).shape // → 3,2
 * mlp.namedParameters().map(([name]) => name) // → 0.weight,0.bias,2.weight,2.bias
 */
export class Sequential extends Module {
  readonly [position: number]: Layer
  /** How many modules there are. */
  readonly length: number

  constructor(...layers: readonly Layer[]) {
    super()
    layers.forEach((layer: unknown, i) => {
      if (layer instanceof Module) return
      const fix = Array.isArray(layer)
        ? 'spread the array: new Sequential(...layers)'
        : layer instanceof Function && layer.prototype instanceof Module
          ? `did you forget new ${layer.name}(…)?`
          : 'a function becomes one in a class of its own with forward(x)'
      throw new ValueError(`Sequential: layer ${i} must be a module, got ${describeValue(layer)}; ${fix}`)
    })
    this.length = layers.length
    Object.assign(this, layers)
  }

  forward(x: Tensor): Tensor {
    let y = x
    for (const layer of this) y = layer.forward(y)
    return y
  }

  *[Symbol.iterator](): Generator<Layer> {
    for (let i = 0; i < this.length; i++) yield this[i] as Layer
  }
}
