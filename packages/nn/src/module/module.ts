import {
  type DType,
  DTypeError,
  describeValue,
  dtypeInfo,
  isFloat,
  type MoveTarget,
  to as moveTensor,
  noGrad,
  Printable,
  scope,
  Tensor,
  ValueError,
} from '@tilegrad/core'
import { assigned, expected } from '@tilegrad/core/kernel'
// Who has layers has all methods: a bundle would leave out those that nothing names.
import '@tilegrad/core/methods'
import {
  addHook,
  type ForwardHook,
  type ForwardPreHook,
  type FullBackwardHook,
  type HookHandle,
} from './hooks.ts'
import { list, mark, type Role, roleOf } from './parameter.ts'
import { expectFitting, type LoadResult, loadStateDict, type StateDict } from './state-dict.ts'
import { treeOf } from './tree.ts'

export { buffer, parameter } from './parameter.ts'

/** What holds tensors and modules by name. */
type Owner = Record<string, unknown> | Map<unknown, unknown>

/** Where something was found. */
interface Found {
  readonly name: string
  readonly owner: Owner
  readonly key: string
}

/** One property that holds a parameter or buffer. */
interface Slot extends Found {
  readonly kind: 'tensor'
  readonly tensor: Tensor
  readonly role: Role
}

/** A module where it was found; `parent` is the module that holds it, directly or in arrays, records and Maps, `owner`. */
interface Place extends Found {
  readonly kind: 'module'
  readonly module: Module
  readonly parent: Module
}

/** Puts something else where something was found. */
function put({ owner, key }: Found, value: unknown): void {
  if (owner instanceof Map) owner.set(key, value)
  else owner[key] = value
}

/** @internal Under this name a module may have a Map whose entries count as properties of its own, of any name. */
export const entriesOf = Symbol('entries')

/** Tensors that look like parameters and are none; told of once. */
const strangers = new WeakSet<Tensor>()

const isRecord = (value: object): boolean => {
  const proto = Object.getPrototypeOf(value)
  return proto === Object.prototype || proto === null || !('constructor' in proto)
}

/** @throws ValueError where something that has no name holds what would be lost: no state dict could name it. */
function refuseHidden(
  values: Iterable<unknown>,
  parent: Module,
  what: string,
  path: readonly object[],
): void {
  if (!walk(Array.from(values), parent, '', path).next().done) {
    throw new ValueError(
      `${parent.constructor.name}: ${what}, in which modules and parameters are not found; use an array, a plain object or a Map of texts`,
    )
  }
}

/**
 * Every tensor and module in the own properties of `owner`, in order of assignment, through arrays, plain objects, Maps
 * and modules. A tensor or module reachable by several names is met once for each; `path` keeps cycles from looping.
 */
function* walk(
  owner: object,
  parent: Module,
  prefix: string,
  path: readonly object[],
): Generator<Slot | Place> {
  const entries = owner instanceof Map ? owner : Object.entries(owner)
  for (const [key, value] of entries) {
    if (typeof value !== 'object' || value === null || path.includes(value)) continue
    const name = prefix + String(key)
    if (typeof key !== 'string') {
      refuseHidden([value], parent, `${prefix.slice(0, -1)} is a Map with keys that are no texts`, path)
      continue
    }
    const found = { name, owner: owner as Owner, key }
    if (value instanceof Tensor) {
      const role = roleOf(value)
      if (role) yield { kind: 'tensor', ...found, tensor: value, role }
      else if (value.requiresGrad && value.isLeaf && !strangers.has(value)) {
        strangers.add(value)
        console.warn(
          `tilegrad: ${parent.constructor.name}: ${name} requires a gradient but is no parameter and will not be listed; make it one with parameter(…)`,
        )
      }
    } else if (value instanceof Module) {
      yield { kind: 'module', ...found, module: value, parent }
      yield* walk(value, value, `${name}.`, [...path, value])
    } else if (value instanceof Set) refuseHidden(value, parent, `${name} is a Set`, [...path, value])
    else if (Array.isArray(value) || value instanceof Map || isRecord(value))
      yield* walk(value, parent, `${name}.`, [...path, value])
  }
  const own = (owner as { [entriesOf]?: Map<string, Module> })[entriesOf]
  if (own) yield* walk(own, parent, prefix, path)
}

/**
 * Base of everything with parameters. Assign parameters (`parameter(…)`), buffers (`buffer(…)`), other modules, and
 * arrays, plain objects or Maps by name of these to properties: they are found there, under the names of the properties,
 * as in `h.0.attn.c_attn.weight`. Private `#fields` are not looked into, and a Set of them is an error.
 *
 * @example
 * class Net extends Module {
 *   layers = [new Linear(4, 8), new Linear(8, 2)]
 *   shift = parameter(zeros([2]))
 *
 *   forward(x: Tensor): Tensor {
 *     return this.layers.reduce((y, layer) => layer.forward(y).tanh(), x).add(this.shift)
 *   }
 * }
 * const net = new Net()
 * net.forward(randn([5, 4])).shape // → 5,2
 * net.parameters().length // → 5
 * net.namedParameters()[0][0] // → layers.0.weight
 */
export abstract class Module extends Printable {
  /** Whether this module is being trained, which dropout looks at; set by `train()` and `eval()`. */
  get training(): boolean {
    return expected(this, () => this.#training)
  }

  set training(value: boolean) {
    assigned(this, () => {
      this.#training = value
    })
  }

  #training = true

  /** Computes the module's output. Call it directly: `model.forward(x)`. */
  abstract forward(...inputs: never[]): unknown

  #slots(): Slot[] {
    const slots = [...walk(this, this, '', [this])].filter((found) => found.kind === 'tensor')
    for (const { tensor } of slots) list(tensor)
    return slots
  }

  #places(): Place[] {
    return [...walk(this, this, '', [this])].filter((found) => found.kind === 'module')
  }

  #named(wanted: (role: Role) => boolean): [string, Tensor][] {
    const names = new Map<Tensor, string>()
    for (const { tensor, role, name } of this.#slots()) {
      if (wanted(role) && !names.has(tensor)) names.set(tensor, name)
    }
    return Array.from(names, ([tensor, name]) => [name, tensor])
  }

  /** All parameters, frozen ones included; tied ones once. */
  parameters(): Tensor[] {
    return this.namedParameters().map(([, tensor]) => tensor)
  }

  /** All parameters with their dotted names, frozen ones included; tied ones once, under their first name. */
  namedParameters(): [string, Tensor][] {
    return this.#named((role) => role === 'parameter')
  }

  /** All buffers, the non-persistent included, with their dotted names. */
  namedBuffers(): [string, Tensor][] {
    return this.#named((role) => role !== 'parameter')
  }

  /** All buffers, the non-persistent included; shared ones once. */
  buffers(): Tensor[] {
    return this.namedBuffers().map(([, tensor]) => tensor)
  }

  /** The modules this one holds directly, also in arrays, plain objects and Maps. */
  children(): Module[] {
    return this.namedChildren().map(([, module]) => module)
  }

  /** The modules this one holds directly, with their names: `['wte', …], ['h.0', …]`. */
  namedChildren(): [string, Module][] {
    const names = new Map<Module, string>()
    for (const { module, parent, name } of this.#places()) {
      if (parent === this && !names.has(module)) names.set(module, name)
    }
    return Array.from(names, ([module, name]) => [name, module])
  }

  /** Lists this module and all below it, each once. */
  modules(): Module[] {
    return this.namedModules().map(([, module]) => module)
  }

  /** Lists this module (under the name `''`) and all below it with their dotted names, each once, parents first. */
  namedModules(): [string, Module][] {
    const names = new Map<Module, string>([[this, '']])
    for (const { module, name } of this.#places()) if (!names.has(module)) names.set(module, name)
    return Array.from(names, ([module, name]) => [name, module])
  }

  /**
   * The module below this one of a dotted name, as `namedModules` lists it: `getSubmodule('h.0.attn')`.
   *
   * @throws ValueError where there is none of this name.
   */
  getSubmodule(name: string): Module {
    if (name === '') return this
    const places = this.#places()
    return places.find((place) => place.name === name)?.module ?? this.#unknown('module', name, places)
  }

  /**
   * Puts a module in the place of the one of a dotted name, as for low-rank updates or a new head:
   * `model.setSubmodule('h.0.attn.c_attn', new Linear(8, 24))`.
   *
   * @throws ValueError where there is none of this name, and for what is no module.
   */
  setSubmodule(name: string, module: Module): this {
    const places = this.#places()
    const place = places.find((found) => found.name === name) ?? this.#unknown('module', name, places)
    if (!(module instanceof Module))
      throw new ValueError(`setSubmodule: ${name} must be a module, got ${describeValue(module)}`)
    put(place, module)
    return this
  }

  /**
   * The parameter of a dotted name, as `namedParameters` lists it: `getParameter('h.0.attn.c_attn.weight')`.
   *
   * @throws ValueError where there is none of this name.
   */
  getParameter(name: string): Tensor {
    const slots = this.#slots().filter(({ role }) => role === 'parameter')
    return slots.find((slot) => slot.name === name)?.tensor ?? this.#unknown('parameter', name, slots)
  }

  #unknown(what: string, name: string, known: readonly Found[]): never {
    const names = known.map((found) => found.name)
    const some = names.length > 8 ? `${names.slice(0, 8).join(', ')}, …` : names.join(', ')
    throw new ValueError(
      `${this.constructor.name}: there is no ${what} ${describeValue(name)}; known: ${some || 'none'}`,
    )
  }

  /**
   * Calls a function after each `forward` of this module, with the module, the list of inputs and the output; a tensor, an
   * array or a plain object that it returns takes the output's place. `output.keep()` what is read after a backward pass.
   * Models of this library let a `Linear` add its activation or a residual, which its output then has, and compute a loss
   * without the logits. In a compiled function, as in `generate`, hooks run while it is recorded, not when it is replayed.
   *
   * @returns a handle whose `remove()` takes the hook away; `using` does as well.
   * @throws ValueError for what is no function; `forward` throws it where the hook returns something else.
   * @example
   * const layer = new Linear(2, 3)
   * const shapes: (readonly number[])[] = []
   * const handle = layer.registerForwardHook((_, [x], y) => {
   *   shapes.push(x.shape, y.shape)
   * })
   * layer.forward(zeros([4, 2]))
   * handle.remove()
   * shapes // → [[4, 2], [4, 3]]
   */
  registerForwardHook<M extends Module>(this: M, hook: ForwardHook<M>): HookHandle {
    return addHook(this, 'forward', hook as ForwardHook<Module>)
  }

  /**
   * Calls a function before each `forward` of this module, with the module and the list of inputs; an array that it returns
   * takes the place of the inputs, a tensor that of the only one. In a compiled function hooks run while it is recorded, not
   * when it is replayed.
   *
   * @returns a handle whose `remove()` takes the hook away; `using` does as well.
   * @throws ValueError for what is no function; `forward` throws it where the hook returns something else.
   * @example
   * const layer = new ReLU()
   * const handle = layer.registerForwardPreHook((_, [x]) => x.mul(2))
   * await layer.forward(tensor([1, 2])).toArray() // → [2, 4]
   * handle.remove()
   */
  registerForwardPreHook<M extends Module>(this: M, hook: ForwardPreHook<M>): HookHandle {
    return addHook(this, 'pre', hook as ForwardPreHook<Module>)
  }

  /**
   * Calls a function in each backward pass through this module, with the module, the gradients of its inputs (null of what
   * needs none) and those of its outputs; an array that it returns takes the place of the gradients of the inputs. It is
   * called where all of these are complete. Gradients end with the hook: `.keep()` what is wanted longer. Of outputs in arrays and
   * plain objects those directly in them count. In a compiled function hooks run while it is recorded, not when it is replayed.
   *
   * @returns a handle whose `remove()` takes the hook away; `using` does as well.
   * @throws ValueError for what is no function; the backward pass throws it where the hook returns something else.
   * @example
   * const layer = new Tanh()
   * const slopes: (Tensor | undefined)[] = []
   * layer.registerFullBackwardHook((_, gradInput) => {
   *   slopes.push(gradInput[0]?.max().keep())
   * })
   * layer.forward(tensor([0, 3], { requiresGrad: true })).sum().backward()
   * await slopes[0]?.item() // → 1
   */
  registerFullBackwardHook<M extends Module>(this: M, hook: FullBackwardHook<M>): HookHandle {
    return addHook(this, 'backward', hook as FullBackwardHook<Module>)
  }

  /** Calls `fn` with every module below this one and then with this one. */
  apply(fn: (module: Module) => void): this {
    for (const module of this.modules().reverse()) fn(module)
    return this
  }

  /** Puts this module and all below it in training mode, or with `false` in evaluation mode. */
  train(mode = true): this {
    for (const module of this.modules()) module.training = mode
    return this
  }

  /** Puts this module and all below it in evaluation mode: dropout does nothing. */
  eval(): this {
    return this.train(false)
  }

  /** Lets every parameter require a gradient, or with `false` freezes them all. */
  requiresGrad_(value = true): this {
    for (const p of this.parameters()) p.requiresGrad = value
    return this
  }

  /** Frees the gradients of all parameters. */
  zeroGrad(): void {
    for (const p of this.parameters()) {
      p.grad?.dispose()
      p.grad = null
    }
  }

  /** Number of elements of all parameters; tied ones count once. */
  numParameters(): number {
    return this.parameters().reduce((n, p) => n + p.numel, 0)
  }

  /**
   * Parameters and persistent buffers by name: the live tensors, not copies, so that they change with training. A tied
   * parameter appears under each of its names, as in PyTorch.
   *
   * @example
   * const saved = new Linear(3, 2).stateDict()
   * Object.keys(saved) // → weight,bias
   * new Linear(3, 2).loadStateDict(saved).missing.length // → 0
   */
  stateDict(): StateDict {
    const dict: StateDict = {}
    for (const { name, tensor, role } of this.#slots()) if (role !== 'transient') dict[name] = tensor
    return dict
  }

  /**
   * Copies values into the parameters and persistent buffers, converting dtype and device. A tied parameter needs only
   * one of its names. Nothing is changed if anything is wrong.
   *
   * @param options.strict default true: every name must be on both sides.
   * @returns the names passed over, which are none if strict.
   * @throws ValueError listing missing and unexpected names; ShapeError where a shape differs, strict or not.
   */
  loadStateDict(dict: Readonly<StateDict>, options: { strict?: boolean } = {}): LoadResult {
    return loadStateDict(this.constructor.name, this.stateDict(), dict, options)
  }

  /** Throws what `loadStateDict` would. @internal */
  checkStateDict(dict: Readonly<StateDict>): void {
    expectFitting(this.constructor.name, this.stateDict(), dict, {})
  }

  /**
   * Moves all parameters and buffers, with their gradients, to another device or dtype (floating ones only). They
   * become new tensors and the old ones are freed: make optimisers afterwards. Moving from a device reads from it at
   * once, which some cannot; see core's `to`.
   *
   * In 'bfloat16' or 'float16' a model computes and generates with half of the memory. That is for using it: weights of 16 bits
   * do not take in small updates. To train keep them in float32, and compute in `autocast`.
   *
   * @param target as `Tensor.to`: a dtype, a device by name or itself, or `{ device, dtype }`.
   * @throws DTypeError for int32 and bool; nothing is changed then.
   * @example
   * const layer = new Linear(3, 2).to('float64')
   * layer.weight.dtype // → float64
   */
  to(target: MoveTarget): this {
    const dtype =
      typeof target === 'string' ? target : 'kernels' in Object(target) ? undefined : Object(target).dtype
    if (Object.hasOwn(dtypeInfo, dtype ?? '') && !isFloat(dtype))
      throw new DTypeError(
        `${this.constructor.name}.to: parameters are floating, ${dtype} cannot hold them; expected float32, float64, float16 or bfloat16`,
      )
    const moved = new Map<Tensor, Tensor>()
    const slots = this.#slots()
    noGrad(() => {
      for (const { tensor, role } of slots) {
        if (moved.has(tensor)) continue
        const next = mark(move(tensor, target), role)
        if (next !== tensor) {
          next.requiresGrad = tensor.requiresGrad
          next.grad = tensor.grad && move(tensor.grad, target).keep()
        }
        moved.set(tensor, next)
      }
    })
    for (const slot of slots) put(slot, moved.get(slot.tensor))
    for (const [before, after] of moved) if (before !== after) free(before)
    return this
  }

  /** Frees all parameters and buffers and their gradients; the module cannot be used any more. */
  dispose(): void {
    for (const { tensor } of this.#slots()) free(tensor)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** What `toString` shows between this module's brackets; override it to show a layer's sizes. */
  extraRepr(): string {
    return ''
  }

  /**
   * The tree of modules, one per line, with their sizes, as PyTorch prints it: equal ones in a row once, as `(0-11): 12 ×`.
   *
   * @example
   * String(new Linear(2, 16)) // → Linear(inFeatures=2, outFeatures=16, bias=true)
   */
  toString(): string {
    return treeOf(this, [])
  }

  /** @internal What `console.log` shows: the tree, and how many parameters there are, of which dtypes if not of float32. */
  override shown(): string {
    const all = this.parameters()
    const count = (list: readonly Tensor[]): string =>
      list.reduce((n, p) => n + p.numel, 0).toLocaleString('en')
    const frozen = all.filter((p) => !p.requiresGrad)
    const note = frozen.length > 0 ? `, ${count(frozen)} of them frozen` : ''
    const dtypes = [...new Set(all.map((p) => p.dtype))]
    const kinds = dtypes.every((dtype) => dtype === 'float32') ? '' : ` of ${dtypes.join(' and ')}`
    return `${this} with ${count(all)} parameters${kinds}${note}`
  }

  /**
   * What `JSON.stringify` writes of a module: what it is and what it holds, by name, without the values, which
   * `saveSafetensors(model.stateDict())` writes.
   */
  toJSON(): { module: string; tensors: Record<string, { dtype: DType; shape: readonly number[] }> } {
    const tensors: Record<string, { dtype: DType; shape: readonly number[] }> = Object.create(null)
    for (const { name, tensor } of this.#slots()) tensors[name] = { dtype: tensor.dtype, shape: tensor.shape }
    return { module: this.constructor.name, tensors }
  }
}

/** Moves a tensor as core's `to` does, but integers keep their dtype. */
function move(t: Tensor, target: MoveTarget): Tensor {
  if (isFloat(t.dtype)) return scope(() => moveTensor(t, target))
  if (typeof target === 'string') return Object.hasOwn(dtypeInfo, target) ? t : moveTensor(t, target)
  return moveTensor(t, 'kernels' in target ? target : { device: target.device ?? t.backend })
}

function free(t: Tensor): void {
  t.grad?.dispose()
  t.grad = null
  t.dispose()
}

/**
 * Puts other modules in the places of modules below `root`, whatever holds them.
 *
 * @internal
 */
export function replaceModules(root: Module, others: ReadonlyMap<Module, Module>): void {
  for (const found of [...walk(root, root, '', [root])]) {
    if (found.kind !== 'module') continue
    const other = others.get(found.module)
    if (other) put(found, other)
  }
}
