import type { Backend, BackendBuffer, View } from '../dispatch/backend.ts'
import { type Call, listen, listening } from '../dispatch/call.ts'
import { type Capturing, setCapturing } from '../dispatch/capturing.ts'
import { CompileError, DeviceError, show } from '../errors.ts'
import { generatorNow } from '../random.ts'
import type { DType, TypedArray } from '../tensor/dtype.ts'
import { type Layout, sameShape } from '../tensor/layout.ts'
import type { Storage } from '../tensor/storage.ts'
import { newestId, Tensor } from '../tensor/tensor.ts'
import { textOf } from './tree.ts'

/** A piece of memory of a recorded function: made while it ran, or there before. */
export interface Slot {
  readonly storage: Storage
  readonly dtype: DType
  /** It was there before the function ran, with this in it. */
  readonly outer: BackendBuffer | null
}

/** A view of a slot. */
export interface Ref {
  readonly slot: number
  readonly dtype: DType
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  readonly offset: number
}

/** A call of a kernel on slots, or elements that came from the host. */
export type Step =
  | {
      readonly kind: 'call'
      readonly call: Call
      readonly outputs: readonly Ref[]
      readonly inputs: readonly Ref[]
    }
  | { readonly kind: 'write'; readonly to: Ref; readonly data: TypedArray }

/** The gradient of a leaf, before a function and after it. */
export interface LeafGrad {
  readonly leaf: Tensor
  readonly before: Storage | null
  /** Where the gradient lay in it. */
  readonly layout: Layout
  readonly dtype: DType
  after: Storage | null
}

/** Everything that one run of a function did. */
export class Capture implements Capturing {
  readonly steps: Step[] = []
  readonly slots: Slot[] = []
  /** What runs on the host before each replay, in order. */
  readonly effects: (() => void)[] = []
  readonly expectations: { readonly read: () => unknown; readonly value: unknown }[] = []
  readonly grads = new Map<Tensor, LeafGrad>()
  /** Memory of gradients, also of those that were replaced: the garbage collector may not have been there yet. */
  readonly wereGrads = new Set<Storage>()
  backend: Backend | null = null
  /** Generators of its own that the function draws from, null for that of the caller, in order. */
  readonly sources: (object | null)[] = []
  readonly #generator = generatorNow()
  readonly #newest = newestId()
  readonly #leaves = new Map<Tensor, boolean>()
  readonly #watched: Map<object, () => string>
  readonly #before: ReadonlyMap<object, string>
  /** Numbers that are filled before each replay, in the order in which they were asked for. */
  readonly #live = new Map<readonly number[], number>()
  readonly #assigned = new Set<object>()
  readonly #draws = new Map<string, readonly number[]>()
  readonly #slotOf = new Map<BackendBuffer, number>()

  /** `watched`: whose state the function must leave alone, as far as earlier recordings have shown. */
  constructor(watched: Map<object, () => string>) {
    this.#watched = watched
    this.#before = new Map([...watched].map(([owner, read]) => [owner, read()]))
  }

  /** Runs `fn` and records it. */
  run<T>(fn: () => T): T {
    const outer = listening()
    listen({
      call: (call, go) => {
        this.#call(call)
        if (outer) outer.call(call, go)
        else go()
      },
      begin: (backend) => outer?.begin(backend),
      composed: (op, backend, begun) => outer?.composed(op, backend, begun),
    })
    setCapturing(this)
    try {
      return fn()
    } finally {
      setCapturing(null)
      listen(outer)
      for (const grad of this.grads.values()) grad.after = grad.leaf.grad?.storage ?? null
      for (const [leaf, value] of this.#leaves) {
        this.expectations.push({ read: () => leaf.requiresGrad, value })
        const { hooks } = leaf
        if (value) this.expectations.push({ read: () => leaf.hooks, value: hooks })
      }
    }
  }

  /** What modules and gradients were like before, as far as it matters, as a text. */
  circumstances(): string {
    const values = this.expectations.map(({ value }) => textOf({ kind: 'value', value }))
    const grads = [...this.grads.values()].map(({ leaf, before }) => `${leaf.id}${before ? '+' : '-'}`)
    return `${values.join()} ${grads.sort().join()}`
  }

  /** The gradient, there before, that lies in a slot; null for none. */
  gradIn(slot: number): LeafGrad | null {
    const { outer, storage } = this.slots[slot]
    if (outer === null) return null
    for (const grad of this.grads.values()) if (grad.before === storage) return grad
    return null
  }

  /** Are modules and gradients as they were? */
  isAsNow(): boolean {
    return (
      this.expectations.every(({ read, value }) => Object.is(read(), value)) &&
      [...this.grads.values()].every(({ leaf, before }) => (leaf.grad === null) === (before === null))
    )
  }

  /** A view that a step or a result names. */
  ref(view: View): Ref {
    const { buffer, dtype, shape, strides, offset } = view
    let slot = this.#slotOf.get(buffer)
    if (slot === undefined) {
      if (!(view instanceof Tensor))
        throw new CompileError('compile: a call reads memory that no tensor of the function holds')
      slot = this.slots.push({ storage: view.storage, dtype, outer: buffer }) - 1
      this.#slotOf.set(buffer, slot)
    }
    return { slot, dtype, shape: [...shape], strides: [...strides], offset }
  }

  /** Which of the numbers that are filled anew these are, or −1. */
  liveIndex(numbers: readonly number[]): number {
    return this.#live.get(numbers) ?? -1
  }

  #call(call: Call): void {
    this.backend ??= call.backend
    if (call.backend !== this.backend)
      throw new DeviceError(
        `compile: ${call.op} runs on ${call.backend.name}, what came before on ${this.backend.name}; compile a function for each device`,
      )
    const inputs = call.inputs.map((view) => this.ref(view))
    const outputs = call.outputs.map((view) => this.ref(view))
    // Without its tensors, which are gone soon.
    this.steps.push({ kind: 'call', call: { ...call, outputs: [], inputs: [] }, outputs, inputs })
  }

  made(storage: Storage, dtype: DType): void {
    if (storage.buffer === null) return
    this.#slotOf.set(storage.buffer, this.slots.push({ storage, dtype, outer: null }) - 1)
  }

  wrote(view: View, data: TypedArray): void {
    this.steps.push({ kind: 'write', to: this.ref(view), data: data.slice() })
  }

  touched(leaf: Tensor, grad: Tensor | null): void {
    if (grad) this.wereGrads.add(grad.storage)
    if (!leaf.requiresGrad || this.grads.has(leaf)) return
    const before = grad?.storage ?? null
    const { dtype } = leaf
    const { shape, strides, offset } = grad ?? leaf
    this.grads.set(leaf, { leaf, before, layout: { shape, strides, offset }, dtype, after: before })
  }

  leaf(t: Tensor, requiresGrad: boolean): void {
    if (t.id <= this.#newest && !this.#leaves.has(t)) this.#leaves.set(t, requiresGrad)
  }

  switched(t: Tensor): void {
    if (t.id <= this.#newest) this.refuses('switching requiresGrad', 'switch it outside, before the call')
  }

  unchanged(owner: object, what: string, read: () => string): void {
    const before = this.#before.get(owner)
    if (before !== undefined && before !== read()) this.refuses(what, 'do it outside, before each call')
    this.#watched.set(owner, read)
  }

  refuses(op: string, fix: string): never {
    throw new CompileError(`compile: ${op} cannot be a part of a compiled function; ${fix}`)
  }

  each(effect: () => void): void {
    this.effects.push(effect)
  }

  live(numbers: readonly number[], again: () => readonly number[]): void {
    if (this.#live.has(numbers)) return
    this.#live.set(numbers, this.#live.size)
    const filled = numbers as number[]
    this.effects.push(() => {
      const next = again()
      for (let i = 0; i < filled.length; i++) filled[i] = next[i]
    })
  }

  isLive(numbers: readonly number[]): boolean {
    return this.#live.has(numbers)
  }

  draw<N extends readonly number[]>(numbers: N, source: object, again: (from: object | null) => N): N {
    const key = numbers.join()
    const known = this.#draws.get(key)
    if (known) return known as N
    this.#draws.set(key, numbers)
    // Of the generator that runs when the function is called, or of one that runs within it.
    const own = source === this.#generator ? null : source
    this.sources.push(own)
    this.live(numbers, () => again(own))
    return numbers
  }

  expects(owner: object, read: () => unknown): void {
    if (!this.#assigned.has(owner)) this.expectations.push({ read, value: read() })
  }

  assigned(owner: object): void {
    this.#assigned.add(owner)
  }
}

/** What two runs of a function did differently, in words; null: nothing. */
export function difference(a: Capture, b: Capture): string | null {
  const most = Math.max(a.steps.length, b.steps.length)
  for (let i = 0; i < most; i++) {
    const [x, y] = [a.steps[i], b.steps[i]]
    if (!x || !y) return `step ${i} was ${describe(x)}, then ${describe(y)}`
    const found = stepDifference(a, b, x, y)
    if (found === '') return `step ${i} was ${describe(x)}, then ${describe(y)}`
    if (found) return `step ${i}, ${describe(x)}: ${found}`
  }
  if (a.sources.length !== b.sources.length || a.sources.some((s, i) => s !== b.sources[i]))
    return 'it draws from another generator each time; make it outside'
  if (a.effects.length !== b.effects.length) return `it asked for other numbers of the host`
  for (const [leaf, { before, after }] of a.grads) {
    const other = b.grads.get(leaf)
    if (!other) return `the gradient of a tensor ${show(leaf.shape)} was used only once`
    if ((before === null) !== (other.before === null) || (after === null) !== (other.after === null))
      return `the gradient of a tensor ${show(leaf.shape)} was there only once`
  }
  return null
}

/** What of a step differs: empty for all of it, null for nothing. */
function stepDifference(a: Capture, b: Capture, x: Step, y: Step): string | null {
  if (x.kind === 'write' && y.kind === 'write') {
    if (!sameRef(x.to, y.to)) return ''
    const same = x.data.length === y.data.length && x.data.every((v, i) => Object.is(v, y.data[i]))
    return same ? null : 'it is made of other numbers each time; pass it as an argument'
  }
  if (x.kind === 'write' || y.kind === 'write') return ''
  if (x.call.op !== y.call.op || x.call.kernel !== y.call.kernel) return ''
  if (!alike(x.call.attrs, y.call.attrs)) return 'its attributes differ'
  if (x.outputs.length !== y.outputs.length || x.inputs.length !== y.inputs.length) return ''
  for (const [r, s] of [
    ...x.outputs.map((r, i) => [r, y.outputs[i]]),
    ...x.inputs.map((r, i) => [r, y.inputs[i]]),
  ]) {
    if (!sameRef(r, s))
      return sameShape(r.shape, s.shape) ? 'other tensors, or tensors made in another order' : ''
    const [from, to] = [a.slots[r.slot], b.slots[s.slot]]
    const another = from.outer !== to.outer || (from.outer !== null && from.storage !== to.storage)
    // Gradients that add up are new ones each time until they are replayed.
    const leaf = another ? a.gradIn(r.slot)?.leaf : undefined
    if (another && (leaf === undefined || leaf !== b.gradIn(s.slot)?.leaf))
      return `a tensor ${show(r.shape)} that it uses was another one; what changes must be an argument`
  }
  const [n, m] = [x.call.numbers, y.call.numbers]
  if (a.liveIndex(n) !== b.liveIndex(m)) return 'its numbers come from elsewhere'
  if (n.length !== m.length) return 'its numbers differ'
  if (a.liveIndex(n) < 0)
    for (let i = 0; i < n.length; i++)
      if (!Object.is(n[i], m[i]))
        return `its number ${i} was ${n[i]}, then ${m[i]}; what changes must be a tensor, or a function that is asked each time`
  return null
}

const sameRef = (r: Ref, s: Ref): boolean =>
  r.slot === s.slot &&
  r.dtype === s.dtype &&
  r.offset === s.offset &&
  sameShape(r.shape, s.shape) &&
  sameShape(r.strides, s.strides)

function alike(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((v, i) => alike(v, b[i]))
  const names = Object.keys(a)
  return (
    Object.getPrototypeOf(a) === Object.getPrototypeOf(b) &&
    Object.getPrototypeOf(a) === Object.prototype &&
    names.length === Object.keys(b).length &&
    names.every((name) => alike((a as Record<string, unknown>)[name], (b as Record<string, unknown>)[name]))
  )
}

/** A step in words. */
export function describe(step: Step | undefined): string {
  if (!step) return 'nothing'
  if (step.kind === 'write') return `a tensor ${show(step.to.shape)} made of numbers`
  const shapes = step.inputs.map(({ shape }) => show(shape))
  return `${step.call.op}${shapes.length > 0 ? ` of ${shapes.slice(0, 4).join(', ')}${shapes.length > 4 ? ' …' : ''}` : ''}`
}
