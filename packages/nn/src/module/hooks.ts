import { apply, describeValue, gradEnabled, ShapeError, show, Tensor, ValueError } from '@tilegrad/core'
import type { Module } from './module.ts'

/** Functions that are called around `forward` of a module, and in the backward pass through it. */

/** What `registerForwardHook` and its like give back. */
export interface HookHandle {
  /** Takes the hook away; the second time it does nothing. */
  remove(): void
  [Symbol.dispose](): void
}

/** What `forward` of a module takes; of modules in general nothing is known of it. */
type Inputs<M extends Module> =
  Parameters<M['forward']> extends never[] ? readonly unknown[] : Parameters<M['forward']>

// Methods, so that a hook of a module in general may say which tensors it expects: their parameters need not be wider.
interface Hooks<M extends Module> {
  forward(module: M, inputs: Inputs<M>, output: ReturnType<M['forward']>): ReturnType<M['forward']> | void
  pre(module: M, inputs: Inputs<M>): readonly unknown[] | Tensor | void
  backward(
    module: M,
    gradInput: readonly (Tensor | null)[],
    gradOutput: readonly (Tensor | null)[],
  ): readonly (Tensor | null)[] | void
}

/** What `registerForwardHook` takes: it sees the output, and may return another one. */
export type ForwardHook<M extends Module> = Hooks<M>['forward']
/** What `registerForwardPreHook` takes: it sees the inputs, and may return others. */
export type ForwardPreHook<M extends Module> = Hooks<M>['pre']
/** What `registerFullBackwardHook` takes: it sees the gradients of inputs and outputs, and may return others of the inputs. */
export type FullBackwardHook<M extends Module> = Hooks<M>['backward']

type Kind = keyof Hooks<Module>
type State = { [K in Kind]: Hooks<Module>[K][] } & {
  /** Makes `forward` what it was. */
  readonly restore: () => void
}

const states = new WeakMap<Module, State>()

type Forward = (...inputs: readonly unknown[]) => unknown

/**
 * Puts a property `forward` before that of the class, as long as there are hooks: a module without any is called as it is.
 */
function wrap(module: Module): State {
  const own = Object.getOwnPropertyDescriptor(module, 'forward')
  const inner = module.forward as Forward
  const state: State = {
    forward: [],
    pre: [],
    backward: [],
    restore: () => {
      // Somebody may have put another one in its place.
      if (module.forward !== wrapped) return
      if (own) Object.defineProperty(module, 'forward', own)
      else Reflect.deleteProperty(module, 'forward')
    },
  }
  const wrapped: Forward = (...inputs) => call(module, state, inner, inputs)
  Object.defineProperty(module, 'forward', { value: wrapped, configurable: true, writable: true })
  return state
}

/** @internal */
export function addHook<K extends Kind>(module: Module, kind: K, hook: Hooks<Module>[K]): HookHandle {
  if (typeof hook !== 'function')
    throw new ValueError(`${module.constructor.name}: a hook is a function, got ${describeValue(hook)}`)
  const state = states.get(module) ?? wrap(module)
  states.set(module, state)
  // Of its own, so that one that is there twice can be removed once.
  const added = ((...args: never[]) => (hook as (...args: never[]) => unknown)(...args)) as never
  const list: unknown[] = state[kind]
  list.push(added)
  const remove = (): void => {
    const at = list.indexOf(added)
    if (at < 0) return
    list.splice(at, 1)
    if (state.forward.length + state.pre.length + state.backward.length > 0) return
    state.restore()
    states.delete(module)
  }
  return { remove, [Symbol.dispose]: remove }
}

const isPlain = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype

/** @throws ValueError for what a hook returned by chance, as `(_, inputs, y) => list.push(y)` does. */
function refuse(module: Module, kind: string, place: string, result: unknown): never {
  throw new ValueError(
    `${module.constructor.name}: a ${kind} must return nothing or what takes the place of ${place}, got ${describeValue(result)}; put its body in braces, as in (…) => { … }`,
  )
}

function call(module: Module, state: State, inner: Forward, given: readonly unknown[]): unknown {
  let inputs = given
  for (const hook of [...state.pre]) {
    const result: unknown = hook(module, inputs as never)
    if (result === undefined) continue
    if (!Array.isArray(result) && !(result instanceof Tensor))
      refuse(module, 'forward pre-hook', 'the inputs', result)
    inputs = Array.isArray(result) ? result : [result]
  }
  const watched = state.backward.length > 0 ? watch(module, state.backward) : null
  if (watched) inputs = watched.inputs(inputs)
  let output = inner.apply(module, inputs as unknown[])
  for (const hook of [...state.forward]) {
    const result: unknown = hook(module, inputs as never, output as never)
    if (result === undefined) continue
    if (!(result instanceof Tensor || Array.isArray(result) || isPlain(result)))
      refuse(module, 'forward hook', 'the output', result)
    output = result
  }
  return watched ? watched.output(output) : output
}

type Gradients = readonly (Tensor | null)[]

/**
 * The values with views in the places of tensors that need a gradient: `rule` is given the gradients of all of them at once, with
 * null for the others, and returns them.
 */
function tapped(values: readonly unknown[], rule: (gradients: Gradients) => Gradients): readonly unknown[] {
  const at = values.flatMap((v, i) => (v instanceof Tensor && v.requiresGrad && gradEnabled() ? [i] : []))
  if (at.length === 0) return values
  const views = apply(
    {
      name: 'backward_hook',
      roundsOnce: true,
      compose: (tensors) => tensors,
      backward: (_, gradients) => {
        const all = values.map(() => null as Tensor | null)
        at.forEach((i, k) => {
          all[i] = gradients[k] ?? null
        })
        const result = rule(all)
        return at.map((i) => result[i] ?? null)
      },
    },
    at.map((i) => values[i] as Tensor),
    {},
  )
  const result = [...values]
  at.forEach((i, k) => {
    result[i] = views[k]
  })
  return result
}

/** What a hook is shown of a gradient, which may be changed in place or freed once it is passed on. */
const shownOf = (gradients: Gradients): Gradients =>
  gradients.map((g) => (g && !gradEnabled() ? g.detach() : g))

/** Views of inputs and outputs of one call, through which the backward pass tells the hooks of it. */
function watch(module: Module, hooks: readonly FullBackwardHook<Module>[]) {
  let gradOutput: Gradients | null = null
  let inputsWatched = false

  const run = (gradients: Gradients): Gradients => {
    // A gradient of a gradient comes by the inputs without having come by the outputs.
    if (!gradOutput) return gradients
    let gradInput = gradients
    const ofOutputs = shownOf(gradOutput)
    for (const hook of [...hooks]) {
      const result: unknown = hook(module, shownOf(gradInput), ofOutputs)
      if (result === undefined) continue
      if (!Array.isArray(result) || !result.every((g) => g === null || g instanceof Tensor))
        refuse(module, 'full backward hook', 'the gradients of the inputs', result)
      result.forEach((g: Tensor | null, i) => {
        const { shape } = gradients[i] ?? {}
        if (g && shape && g.shape.join() !== shape.join())
          throw new ShapeError(
            `${module.constructor.name}: a full backward hook returned a gradient ${show(g.shape)} for an input ${show(shape)}`,
          )
      })
      gradInput = result
    }
    if (!gradEnabled()) for (const g of gradOutput) g?.dispose()
    gradOutput = null
    return gradInput
  }

  return {
    inputs(values: readonly unknown[]): readonly unknown[] {
      const views = tapped(values, run)
      inputsWatched = views !== values
      return views
    },
    output(value: unknown): unknown {
      const parts = Array.isArray(value) ? value : isPlain(value) ? Object.values(value) : [value]
      const views = tapped(parts, (gradients) => {
        // They live until those of the inputs are there, which is in another rule.
        gradOutput = gradients.map((g) => (g && !gradEnabled() ? g.detach().keep() : g))
        if (!inputsWatched) run([])
        return gradients
      })
      if (views === parts) return value
      if (Array.isArray(value)) return views
      return isPlain(value)
        ? Object.fromEntries(Object.keys(value).map((key, i) => [key, views[i]]))
        : views[0]
    },
  }
}
