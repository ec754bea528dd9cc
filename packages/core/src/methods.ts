import * as engine from './autograd/backward.ts'
import * as create from './ops/create.ts'
import * as indexing from './ops/indexing.ts'
import * as inplace from './ops/inplace.ts'
import * as linalg from './ops/linalg.ts'
import * as dense from './ops/linear.ts'
import * as pointwise from './ops/pointwise.ts'
import * as random from './ops/random.ts'
import * as reduction from './ops/reduction.ts'
import * as shape from './ops/shape.ts'
import * as printed from './ops/text.ts'
import { Tensor } from './tensor/tensor.ts'

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
  dropout: random.dropout,
  linear: dense.linear,
  to,
  data,
  dataSync,
  item,
  itemSync,
  toArray,
  toJSON,
  text: printed.text,
  equal,
  backward: engine.backward,
}

/** Exports of these files that are no methods: they take a list, an index or a condition first, or are getters. */
const notMethods = ['where', 'cat', 'stack', 'embedding', 'oneHot', 'T'] as const

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false

// An infer takes the last of several overloads: here are three of them, of which those at the front are the first one
// again where a function has fewer. `never` spares the type a look into Tensor, which it is about to extend.
type Method<F> = F extends {
  (x: never, ...rest: infer A): infer P
  (x: never, ...rest: infer B): infer Q
  (x: never, ...rest: infer C): infer R
}
  ? Same<[A, P], [B, Q]> extends false
    ? { (...rest: A): P; (...rest: B): Q; (...rest: C): R }
    : Same<[B, Q], [C, R]> extends false
      ? { (...rest: B): Q; (...rest: C): R }
      : (...rest: C) => R
  : never

// Mapped over a module's own keys, so that an editor and the API reference show of each method what they show of the
// function: its text, its example, its place. By modules, not inferred from the object above: the compiler would write
// that type out in the declaration files without importing Tensor, and every method would be `any` for users.
type Methods<M> = { [K in keyof M as Exclude<K, (typeof notMethods)[number]>]: Method<M[K]> }
type Chosen<M, N extends keyof M> = { [K in keyof M as Extract<K, N>]: Method<M[K]> }

export type TensorMethods = Methods<typeof pointwise> &
  Methods<typeof reduction> &
  Methods<typeof shape> &
  Methods<typeof linalg> &
  Methods<typeof indexing> &
  Methods<typeof inplace> &
  Chosen<typeof random, 'dropout'> &
  Chosen<typeof dense, 'linear'> &
  Chosen<typeof create, 'to' | 'data' | 'dataSync' | 'item' | 'itemSync' | 'toArray' | 'toJSON' | 'equal'> &
  Chosen<typeof printed, 'text'> &
  Chosen<typeof engine, 'backward'>

declare module './tensor/tensor.ts' {
  interface Tensor extends TensorMethods {
    /**
     * The tensor with all its dims in reversed order, as a view: of a matrix the transposed one.
     *
     * @example
     * zeros([2, 3]).T.shape // → 3,2
     */
    readonly T: Tensor
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
