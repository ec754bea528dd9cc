import { addMethods } from './add-methods.ts'
import * as engine from './autograd/backward.ts'
import { ValueError } from './errors.ts'
import type * as places from './ops/at.ts'
import * as create from './ops/create.ts'
import type * as extremes from './ops/extremes.ts'
import type * as found from './ops/found.ts'
import type * as functions from './ops/functions.ts'
import type * as grids from './ops/grids.ts'
import * as indexing from './ops/indexing.ts'
import * as inplace from './ops/inplace.ts'
import * as linalg from './ops/linalg.ts'
import * as dense from './ops/linear.ts'
import type * as matrices from './ops/matrices.ts'
import type * as activations from './ops/more-activations.ts'
import type * as overwriting from './ops/more-inplace.ts'
import type * as drawing from './ops/multinomial.ts'
import * as pointwise from './ops/pointwise.ts'
import * as random from './ops/random.ts'
import * as reduction from './ops/reduction.ts'
import type * as scatters from './ops/scatter.ts'
import * as shape from './ops/shape.ts'
import type * as sized from './ops/sizes.ts'
import type * as statistics from './ops/statistics.ts'
import * as printed from './ops/text.ts'
import type * as trigonometry from './ops/trigonometry.ts'
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
const notMethods = [
  ...['where', 'cat', 'stack', 'embedding', 'oneHot', 'T', 'meshgrid', 'trilIndices', 'triuIndices'],
  ...['hstack', 'vstack', 'searchsorted'],
] as const

/**
 * Methods that come with their module, which bundlers leave out where nothing names it: of those that are asked for most, one
 * says what to import.
 */
const others =
  'allclose at clamp_ clip diag diff fmod indexAdd indexPut isclose isfinite isinf lerp log2 maskedScatter maskedSelect max median min multinomial nanToNum nonzero norm quantile remainder repeatInterleave scatter set size sizes trace unfold unique varMean'

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
  Chosen<typeof extremes, 'aminmax' | 'quantile' | 'cummax' | 'cummin'> &
  extremes.ExtremesMethods &
  Methods<typeof found> &
  Methods<typeof functions> &
  Methods<typeof trigonometry> &
  Methods<typeof grids> &
  Methods<typeof matrices> &
  Methods<typeof scatters> &
  Methods<typeof statistics> &
  Methods<typeof overwriting> &
  Methods<typeof activations> &
  Chosen<typeof places, 'set' | 'indexPut'> &
  places.AtMethod &
  sized.SizesMethod &
  Chosen<typeof drawing, 'multinomial'> &
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

for (const name of notMethods) delete families[name]
addMethods(families)
for (const name of others.split(' '))
  if (!(name in Tensor.prototype))
    addMethods({
      [name]() {
        throw new ValueError(
          `${name}: this bundle has no such method; import 'tilegrad/methods', or call ${name}(x)`,
        )
      },
    })
Object.defineProperty(Tensor.prototype, 'T', {
  get(this: Tensor) {
    return shape.T(this)
  },
  configurable: true,
})
