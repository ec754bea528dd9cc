import { describeValue, type Tensor, ValueError } from '@tilegrad/core'
import { entriesOf, Module } from '../module/module.ts'

/** Modules that hold others: in a row, one after the other, or by name. */

/** @throws ValueError for what is no module. */
function expectModule(place: string, value: unknown): void {
  if (value instanceof Module) return
  const fix = Array.isArray(value)
    ? 'extend(…) takes several'
    : value instanceof Function && value.prototype instanceof Module
      ? `did you forget new ${value.name}(…)?`
      : 'a function becomes one in a class of its own with forward(x)'
  throw new ValueError(`${place} must be a module, got ${describeValue(value)}; ${fix}`)
}

/** @throws ValueError for a name that would be ambiguous in a state dict. */
function expectName(op: string, name: unknown): void {
  if (typeof name !== 'string' || name === '' || name.includes('.'))
    throw new ValueError(`${op}: a name is a text without dots, got ${describeValue(name)}`)
}

const isIterable = (value: unknown): value is Iterable<unknown> =>
  typeof (value as Iterable<unknown> | null | undefined)?.[Symbol.iterator] === 'function'

/** What a plain object or a Map has by name. @throws ValueError for what is neither. */
function named(op: string, what: string, given: unknown): readonly (readonly [string, unknown])[] {
  const pairs = isIterable(given) ? Array.from(given) : Object.entries(given ?? 0)
  if (typeof given !== 'object' || !given || given instanceof Module || !pairs.every(Array.isArray))
    throw new ValueError(`${op}: takes ${what}, got ${describeValue(given)}`)
  return pairs as unknown as readonly (readonly [string, unknown])[]
}

/**
 * Modules in a row, each a property named by its position, so that names are `0.weight` as in PyTorch: `list[0]`,
 * `list.at(-1)`, `for (const layer of list)`. It computes nothing by itself. (As a property of a module an array does as
 * well.)
 *
 * @throws ValueError for what is no module and for positions that there are not; `forward` always.
 * @example
 * const layers = new ModuleList([new Linear(4, 8), new Linear(8, 8)])
 * layers.append(new Linear(8, 2)).length // → 3
 * layers.at(-1).forward(randn([3, 8])).shape // → 3,2
 */
export class ModuleList<M extends Module = Module> extends Module {
  [position: number]: M
  /** @internal Modules that have names. */
  declare [entriesOf]?: Map<string, M>

  constructor(modules: Iterable<M> = []) {
    super()
    this.extend(modules)
  }

  /** How many modules there are. */
  get length(): number {
    return [...this].length
  }

  /** The module at a position, which counts from the end where it is negative. */
  at(position: number): M {
    const all = [...this]
    const module = Number.isInteger(position) ? all.at(position) : undefined
    if (module) return module
    throw new ValueError(
      `${this.constructor.name}.at: there is no module ${describeValue(position)} among ${all.length}`,
    )
  }

  /** Puts a module behind the last one. */
  append(module: M): this {
    const { length, [entriesOf]: named } = this
    expectModule(`${this.constructor.name}: layer ${length}`, module)
    if (named) named.set(String(length), module)
    else this[length] = module
    return this
  }

  /** Puts several modules behind the last one. */
  extend(modules: Iterable<M>): this {
    if (!isIterable(modules))
      throw new ValueError(
        `${this.constructor.name}: takes an array of modules, got ${describeValue(modules)}`,
      )
    for (const module of modules) this.append(module)
    return this
  }

  /** Puts a module before the one at a position, which may be negative; those behind it get other names. */
  insert(position: number, module: M): this {
    const { name } = this.constructor
    const all = [...this]
    if (!Number.isInteger(position) || this[entriesOf])
      throw new ValueError(
        `${name}.insert: needs a position among unnamed modules, got ${describeValue(position)}`,
      )
    expectModule(`${name}: layer ${position}`, module)
    all.splice(position, 0, module)
    return Object.assign(this, all)
  }

  [Symbol.iterator](): Iterator<M> {
    const own: readonly unknown[] = Object.values(this)
    const modules = own.filter((value): value is M => value instanceof Module)
    return [...modules, ...(this[entriesOf]?.values() ?? [])].values()
  }

  forward(..._: never[]): unknown {
    throw new ValueError(
      `${this.constructor.name}: a list of modules computes nothing; call forward of each of them, or use Sequential`,
    )
  }
}

/** A module from one tensor to one tensor. */
export type Layer = Module & { forward(x: Tensor): Tensor }

/**
 * Modules run one after the other; each is a property named by its position, so that names are `0.weight` as in
 * PyTorch, or by a name of its own, `new Sequential({ c_fc: new Linear(4, 16), gelu: new GELU() })`. Beside that a `ModuleList`: `net[0]`, `net.at(-1)`, `net.append(layer)`, `for (const layer of net)`.
 *
 * @throws ValueError for a layer that is no module and a name with a dot.
 * @example
 * const mlp = new Sequential(new Linear(4, 16), new GELU(), new Linear(16, 2))
 * mlp.forward(randn([3, 4])).shape // → 3,2
 * mlp.namedParameters().map(([name]) => name) // → 0.weight,0.bias,2.weight,2.bias
 */
export class Sequential extends ModuleList<Layer> {
  constructor(...layers: readonly Layer[])
  constructor(layers: Readonly<Record<string, Layer>> | ReadonlyMap<string, Layer>)
  constructor(...layers: readonly unknown[]) {
    super()
    const [first] = layers
    if (Array.isArray(first))
      throw new ValueError(
        `Sequential: layer 0 must be a module, got ${describeValue(first)}; spread the array: new Sequential(...layers)`,
      )
    if (layers.length !== 1 || first instanceof Module || typeof first !== 'object')
      this.extend(layers as readonly Layer[])
    else {
      const layers = new Map<string, Layer>()
      for (const [name, layer] of named('Sequential', 'modules', first)) {
        expectName('Sequential', name)
        expectModule(`Sequential: layer ${name}`, layer)
        layers.set(name, layer as Layer)
      }
      this[entriesOf] = layers
    }
  }

  override forward(x: Tensor): Tensor {
    let y = x
    let before: Layer | null = null
    for (const layer of this) {
      // Else the next layer takes it for an array of numbers, and says something else.
      if (before && Array.isArray(y))
        throw new ValueError(
          `Sequential: ${before.constructor.name} gives an array, such as [output, state], and ${layer.constructor.name} after it takes a tensor; write a class with a forward(x) that hands on the output`,
        )
      y = layer.forward(y)
      before = layer
    }
    return y
  }
}

/**
 * Modules by name, in the order in which they came, so that names are `conv.weight` as in PyTorch; the methods are those of
 * a Map, and names of no methods are in the way. It computes nothing by itself. (As a property of a module a plain object or
 * a Map does as well.)
 *
 * @throws ValueError for what is no module, a name with a dot, and `get` for one that there is not; `forward` always.
 * @example
 * const heads = new ModuleDict({ mean: new Linear(4, 1), spread: new Sequential(new Linear(4, 1), new Softplus()) })
 * heads.get('mean').forward(randn([3, 4])).shape // → 3,1
 * heads.namedParameters()[0][0] // → mean.weight
 */
export class ModuleDict<T extends Readonly<Record<string, Module>> = Record<string, Module>> extends Module {
  /** @internal */
  readonly [entriesOf] = new Map<keyof T & string, T[keyof T & string]>()

  constructor(modules?: T | Iterable<readonly [keyof T & string, T[keyof T & string]]>) {
    super()
    for (const [name, module] of named('ModuleDict', 'modules by name', modules ?? {}))
      this.set(name, module as T[string])
  }

  /** How many modules there are. */
  get size(): number {
    return this[entriesOf].size
  }

  /** The module of this name. */
  get<K extends keyof T & string>(name: K): T[K] {
    const module = this[entriesOf].get(name)
    if (module) return module as T[K]
    throw new ValueError(
      `ModuleDict: there is no module ${describeValue(name)}; known: ${[...this.keys()].join(', ')}`,
    )
  }

  /** Puts a module under a name, in the place of one that it had. */
  set<K extends keyof T & string>(name: K, module: T[K]): this {
    expectName('ModuleDict', name)
    expectModule(`ModuleDict: ${name}`, module)
    this[entriesOf].set(name, module)
    return this
  }

  /** Says whether there is a module of this name. */
  has(name: string): name is keyof T & string {
    return this[entriesOf].has(name)
  }

  /** Takes the module of this name out, and says whether there was one. */
  delete(name: keyof T & string): boolean {
    return this[entriesOf].delete(name)
  }

  /** The names. */
  keys(): Iterator<keyof T & string> & Iterable<keyof T & string> {
    return this[entriesOf].keys()
  }

  /** The modules. */
  values(): Iterator<T[keyof T & string]> & Iterable<T[keyof T & string]> {
    return this[entriesOf].values()
  }

  /** The names, each with its module. */
  entries(): IterableIterator<[keyof T & string, T[keyof T & string]]> {
    return this[entriesOf].entries()
  }

  [Symbol.iterator](): IterableIterator<[keyof T & string, T[keyof T & string]]> {
    return this[entriesOf].entries()
  }

  forward(..._: never[]): unknown {
    throw new ValueError('ModuleDict: modules by name compute nothing; call forward of one of them')
  }
}
