import type { BackwardOptions } from './engine.ts'
import { backward } from './engine.ts'
import * as create from './ops/create.ts'
import * as indexing from './ops/indexing.ts'
import * as inplace from './ops/inplace.ts'
import * as linalg from './ops/linalg.ts'
import { linear } from './ops/linear.ts'
import * as pointwise from './ops/pointwise.ts'
import { dropout } from './ops/random.ts'
import * as reduction from './ops/reduction.ts'
import * as shape from './ops/shape.ts'
import { text } from './ops/text.ts'
import { Tensor } from './tensor.ts'

/**
 * Every operator whose first argument is a tensor is also a method: `add(a, b)` and `a.add(b)`. A new operator in one
 * of these files becomes one without further ado.
 */
const { to, data, dataSync, item, itemSync, toArray, toJSON, equal } = create
const families: Record<string, unknown> = {
  ...pointwise,
  ...reduction,
  ...shape,
  ...linalg,
  ...indexing,
  ...inplace,
  dropout,
  linear,
  to,
  data,
  dataSync,
  item,
  itemSync,
  toArray,
  toJSON,
  text,
  equal,
}

// By the modules' names, not inferred from the object above: the compiler would write that type out in the declaration
// files without importing Tensor, and every method would be `any` for users.
type Families = typeof pointwise &
  typeof reduction &
  typeof shape &
  typeof linalg &
  typeof indexing &
  typeof inplace & {
    dropout: typeof dropout
    linear: typeof linear
    to: typeof create.to
    data: typeof create.data
    dataSync: typeof create.dataSync
    item: typeof create.item
    itemSync: typeof create.itemSync
    toArray: typeof create.toArray
    toJSON: typeof create.toJSON
    text: typeof text
    equal: typeof create.equal
  }

/** Exports of these files that are no methods: they take a list, an index or a condition first, or are getters. */
const notMethods = ['where', 'cat', 'stack', 'einsum', 'embedding', 'oneHot', 'T'] as const

// Spelled with `never` so that the type does not need to look into Tensor, which it is about to extend.
type Method<F> = F extends (x: never, ...rest: infer R) => infer Out ? (...rest: R) => Out : never

export type TensorMethods = {
  [K in Exclude<keyof Families, (typeof notMethods)[number]>]: Method<Families[K]>
}

declare module './tensor.ts' {
  interface Tensor extends TensorMethods {
    /** All dims reversed; a view. */
    readonly T: Tensor
    /** See `backward`. */
    backward(options?: BackwardOptions): void
  }
}

for (const [name, fn] of Object.entries(families)) {
  if ((notMethods as readonly string[]).includes(name)) continue
  Object.defineProperty(Tensor.prototype, name, {
    value(this: Tensor, ...rest: unknown[]) {
      return (fn as (...args: unknown[]) => unknown)(this, ...rest)
    },
    writable: true,
    configurable: true,
  })
}
Object.defineProperty(Tensor.prototype, 'T', {
  get(this: Tensor) {
    return shape.T(this)
  },
  configurable: true,
})
Object.defineProperty(Tensor.prototype, 'backward', {
  value(this: Tensor, options?: BackwardOptions) {
    backward(this, options)
  },
  configurable: true,
})
