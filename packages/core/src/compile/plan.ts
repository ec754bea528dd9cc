import { noGrad } from '../autograd/tape.ts'
import type { Backend, Prepared, View } from '../dispatch/backend.ts'
import { type Call, listening, run } from '../dispatch/call.ts'
import { show } from '../errors.ts'
import { type Limit, pager } from '../offload/pager.ts'
import { copyInto } from '../primitives/elementwise.ts'
import { info } from '../tensor/dtype.ts'
import { numel } from '../tensor/layout.ts'
import { showBytes } from '../tensor/show-bytes.ts'
import { Storage } from '../tensor/storage.ts'
import { Tensor } from '../tensor/tensor.ts'
import type { Interval, Place, Spot } from './arrange.ts'
import { rowsIntoAttention } from './cache-row.ts'
import type { Capture, LeafGrad, Ref, Step } from './capture.ts'
import { type Context, fuse } from './fuse.ts'
import { intoProducts } from './norm-product.ts'
import { recompute } from './recompute.ts'
import { arrangeWithin, Mover } from './swap.ts'

/** What a recording became: in which order kernels run, and where everything lies. */
export interface PlanInfo {
  /** Launches of one run. */
  readonly launches: number
  /** Calls that the function made when it was recorded. */
  readonly recorded: number
  /** Elementwise operators that became part of their neighbours. */
  readonly fused: number
  /** Values that are computed a second time rather than kept until they are needed again. */
  readonly recomputed: number
  /** Bytes that it holds for everything that is computed on the way, all the time. */
  readonly bytes: number
  /** Bytes that would be needed if nothing shared memory. */
  readonly unsharedBytes: number
  /** Bytes that one run moves out of memory; as many or more come back. */
  readonly offloadedBytes: number
}

/** Gives back what was prepared for plans that nobody can reach any more. */
const dropped = new FinalizationRegistry<Prepared>((prepared) => prepared.release())

/** A recorded function, ready to run again. */
export class Plan implements PlanInfo {
  readonly recorded: number
  readonly fused: number
  readonly recomputed: number
  readonly bytes: number
  readonly unsharedBytes: number
  readonly offloadedBytes: number
  readonly #mover: Mover | null
  readonly #backend: Backend
  readonly #capture: Capture
  readonly #calls: readonly Call[]
  readonly #prepared: Prepared | null
  readonly #results: readonly Tensor[]
  readonly #grads: readonly { readonly grad: LeafGrad; readonly tensor: Tensor | null }[]
  /** Gradients that are added to: before each run they come into the plan's own memory, if they are not there. */
  readonly #fed: readonly { readonly leaf: Tensor; readonly tensor: Tensor }[]
  readonly #storages: readonly Storage[]
  /** What it writes of what was there before, and what it reads of it. */
  readonly #written: readonly Storage[]
  readonly #outer: readonly { readonly storage: Storage; readonly buffer: object }[]
  readonly #lines: readonly string[]

  constructor(
    backend: Backend,
    capture: Capture,
    results: readonly Ref[],
    fusing: boolean,
    limit: Limit | null,
    passing: number,
  ) {
    const grads = [...capture.grads.values()]
    const lasting = grads.map(({ after, before }) =>
      after && after !== before ? slotOf(capture, after) : -1,
    )
    const wanted = new Set([...results.map(({ slot }) => slot), ...lasting])
    const needed = neededSteps(capture, wanted)
    const fed = new Set([...capture.slots.keys()].filter((slot) => capture.gradIn(slot) !== null))
    const kept = new Set(results.map(({ slot }) => slot))
    const when = (steps: readonly Step[]): Interval[] =>
      intervals(capture, steps, constants(capture, steps), kept, new Set(lasting), fed)
    const { steps, fused, recomputed } = lean({ backend, capture }, needed, wanted, fusing, when)
    const once = constants(capture, steps)
    const used = when(steps)
    const { parts, spots } = arrangeWithin(backend, capture, steps, used, limit, passing, fusing)
    const storages = new Map<Place, Storage>()
    const partsOf = new Map<number, Interval[]>()
    let bytes = 0
    for (const part of [...parts].sort((a, b) => a.from - b.from)) {
      const { place } = spots.get(part) as Spot
      if (!storages.has(place)) {
        storages.set(place, new Storage(backend, place.bytes, capture.slots[part.slot].dtype))
        bytes += place.bytes
      }
      const known = partsOf.get(part.slot)
      if (known) known.push(part)
      else partsOf.set(part.slot, [part])
    }
    /** Where a slot lies at a step; undefined for what was there before. */
    const spotAt = (slot: number, at: number): Spot | undefined => {
      const known = partsOf.get(slot)
      return known && spots.get(known.findLast(({ from }) => from <= at) ?? known[0])
    }
    const storageAt = (slot: number, at: number): Storage => {
      const spot = spotAt(slot, at)
      return spot ? (storages.get(spot.place) as Storage) : capture.slots[slot].storage
    }
    const viewAt =
      (at: number) =>
      ({ slot, dtype, shape, strides, offset }: Ref): View => ({
        buffer: storageAt(slot, at).buffer as object,
        dtype,
        shape,
        strides,
        offset: (spotAt(slot, at)?.first ?? 0) + offset,
      })
    const mover = parts.some(({ saved }) => saved) && limit ? new Mover(limit.store) : null
    /** All of a slot in one piece. */
    const moved = ({ slot, bytes }: Interval, at: number): View => {
      const { dtype } = capture.slots[slot]
      const shape = [bytes / info[dtype].bytes]
      return viewAt(at)({ slot, dtype, shape, strides: [1], offset: 0 })
    }
    const lines: string[] = []
    const named = [...storages.keys()]
    const nameAt = (at: number) => (slot: number) => spotAt(slot, at)?.place
    const calls: Call[] = []
    steps.forEach((step, at) => {
      const view = viewAt(at)
      if (mover)
        for (const part of parts)
          if (part.brought && part.from === at) {
            calls.push(mover.back(backend, part.slot, moved(part, at)))
            lines.push(moveLine(part, nameAt(at), named, mover.name, true))
          }
      lines.push(line(step, nameAt(at), named))
      if (step.kind === 'write') backend.write(view(step.to), step.data)
      else {
        const call = { ...step.call, outputs: step.outputs.map(view), inputs: step.inputs.map(view) }
        if (once.has(step)) run(call)
        else calls.push(call)
      }
      if (mover)
        for (const part of parts)
          if (part.saved && part.to === at) {
            calls.push(mover.out(backend, part.slot, moved(part, at)))
            lines.push(moveLine(part, nameAt(at), named, mover.name, false))
          }
    })
    // What stays to the end, or was there from the start, lies where it lies last.
    const storageOf = (slot: number): Storage => storageAt(slot, steps.length)
    const firstOf = (slot: number): number => spotAt(slot, steps.length)?.first ?? 0
    const own = ({ slot, dtype, shape, strides, offset }: Ref): Tensor =>
      new Tensor(storageOf(slot), dtype, shape, strides, firstOf(slot) + offset).keep()
    this.recorded = capture.steps.filter(({ kind }) => kind === 'call').length
    this.fused = fused
    this.recomputed = recomputed
    this.bytes = bytes
    this.unsharedBytes = used.reduce((n, { bytes }) => n + bytes, 0)
    this.#backend = backend
    this.#capture = capture
    this.#calls = calls
    this.#results = results.map(own)
    this.#grads = grads.map((grad, i) => ({
      grad,
      tensor: lasting[i] >= 0 ? own(gradOf(grad, lasting[i])) : null,
    }))
    this.#fed = [...fed].flatMap((slot) => {
      const grad = capture.gradIn(slot)
      return grad && partsOf.has(slot)
        ? [{ leaf: grad.leaf, tensor: own({ slot, dtype: grad.dtype, ...grad.layout }) }]
        : []
    })
    this.#storages = [...storages.values()]
    // Who drops the function without a word leaves them to the garbage collector.
    for (const storage of this.#storages) storage.adopt()
    const outer = new Set<Storage>()
    const written = new Set<Storage>()
    for (const step of steps) {
      if (step.kind !== 'call') continue
      for (const { slot } of step.outputs) if (!partsOf.has(slot)) written.add(storageOf(slot))
      for (const { slot } of [...step.outputs, ...step.inputs])
        if (!partsOf.has(slot)) outer.add(storageOf(slot))
    }
    this.#written = [...written]
    this.#outer = [...outer].map((storage) => ({ storage, buffer: storage.buffer as object }))
    this.#lines = lines
    this.#mover = mover
    this.offloadedBytes = parts.reduce((n, { saved, bytes }) => (saved ? n + bytes : n), 0)
    // It moves its own memory by plan; and what was prepared finds its operands by where they lie now.
    for (const { buffer } of this.#storages) if (limit && buffer) pager.fix(buffer)
    if (backend.prepare) for (const { buffer } of this.#outer) pager.fix(buffer)
    this.#prepared = backend.prepare?.(calls) ?? null
    if (this.#prepared) dropped.register(this, this.#prepared, this)
  }

  /** Is everything as it was when the function was recorded? */
  matches(): boolean {
    return (
      this.#outer.every(({ storage, buffer }) => storage.buffer === buffer) &&
      this.#capture.expectations.every(({ read, value }) => Object.is(read(), value)) &&
      this.#grads.every(({ grad: { leaf, before } }) => (leaf.grad === null) === (before === null))
    )
  }

  /** Can it never match again, as memory that it needs is gone? */
  get stale(): boolean {
    return this.#outer.some(({ storage, buffer }) => storage.buffer !== buffer)
  }

  /** Runs it. The results are the plan's own, overwritten by the next run. */
  run(): readonly Tensor[] {
    for (const effect of this.#capture.effects) effect()
    for (const { leaf, tensor } of this.#fed) {
      const { grad } = leaf
      if (grad === null || grad.storage === tensor.storage) continue
      noGrad(() => copyInto(tensor, grad))
      leaf.grad = tensor.viewAs(tensor).keep()
    }
    // Who listens wants to hear of every call.
    if (this.#prepared && listening() === null) this.#prepared.run()
    else for (const call of this.#calls) run(call)
    for (const storage of this.#written) storage.version++
    for (const { grad, tensor } of this.#grads) {
      const { leaf, before, after } = grad
      if (tensor === null && (after !== null || before === null)) continue
      leaf.grad?.dispose()
      leaf.grad = tensor?.viewAs(tensor).keep() ?? null
    }
    return this.#results
  }

  get info(): PlanInfo {
    const { launches, recorded, fused, recomputed, bytes, unsharedBytes, offloadedBytes } = this
    return { launches, recorded, fused, recomputed, bytes, unsharedBytes, offloadedBytes }
  }

  get launches(): number {
    return this.#prepared?.launches ?? this.#calls.length
  }

  release(): void {
    dropped.unregister(this)
    this.#prepared?.release()
    this.#mover?.release()
    for (const t of this.#results) t.dispose()
    for (const { tensor } of [...this.#grads, ...this.#fed]) tensor?.dispose()
    for (const storage of this.#storages) if (storage.tensors.count === 0) storage.free()
  }

  /** The plan, kernel by kernel. */
  toString(): string {
    const { launches, recorded, fused, recomputed, bytes, unsharedBytes, offloadedBytes } = this
    const moved = this.#mover ? `, ${showBytes(offloadedBytes)} moved to ${this.#mover.name} and back` : ''
    return [
      `${launches} launches on ${this.#backend.name} (${recorded} calls recorded, ${fused} fused, ${recomputed} computed again), ${showBytes(bytes)} for intermediates (${showBytes(unsharedBytes)} unshared)${moved}`,
      ...this.#lines,
    ].join('\n')
  }
}

/** Steps with neighbours as one, and with some of what they compute computed again where memory is short. */
function lean(
  context: Context,
  needed: readonly Step[],
  wanted: ReadonlySet<number>,
  fusing: boolean,
  when: (steps: readonly Step[]) => Interval[],
): { readonly steps: readonly Step[]; readonly fused: number; readonly recomputed: number } {
  if (!fusing) return { ...recompute(context, needed, wanted, false, when), fused: 0 }
  const first = fuse(context, needed, wanted)
  const { steps, recomputed } = recompute(context, first.steps, wanted, true, when)
  // What is computed again goes into what needs it.
  const second = recomputed === 0 ? { steps: first.steps, fused: 0 } : fuse(context, steps, wanted)
  const third = intoProducts(context, second.steps, wanted)
  const last = rowsIntoAttention(context, third.steps)
  return { steps: last.steps, fused: first.fused + second.fused + third.fused + last.fused, recomputed }
}

const slotOf = (capture: Capture, storage: Storage): number =>
  capture.slots.findIndex((slot) => slot.storage === storage && slot.outer === null)

/** The gradient as a view of its slot. */
function gradOf({ leaf }: LeafGrad, slot: number): Ref {
  const { dtype, shape, strides, offset } = leaf.grad as Tensor
  return { slot, dtype, shape, strides, offset }
}

/** The steps on which a result, a gradient or memory from outside depends. */
function neededSteps({ steps, slots }: Capture, wanted: ReadonlySet<number>): Step[] {
  const alive = new Set(wanted)
  const needed: Step[] = []
  for (let i = steps.length - 1; i >= 0; i--) {
    const step = steps[i]
    const outputs = step.kind === 'call' ? step.outputs : [step.to]
    if (!outputs.some(({ slot }) => alive.has(slot) || slots[slot].outer !== null)) continue
    needed.push(step)
    // What it leaves of its outputs is still needed.
    for (const { slot } of outputs) alive.add(slot)
    if (step.kind === 'call') for (const { slot } of step.inputs) alive.add(slot)
  }
  return needed.reverse()
}

/** Larger ones take more memory than the time to compute them is worth. */
const largestConstant = 2 ** 16

/** The steps that give the same each time, as they read nothing: they run once. */
function constants(capture: Capture, steps: readonly Step[]): Set<Step> {
  const writers = new Map<number, number>()
  for (const step of steps)
    for (const { slot } of step.kind === 'call' ? step.outputs : [step.to])
      writers.set(slot, (writers.get(slot) ?? 0) + 1)
  const isConstant = (step: Step): boolean =>
    step.kind === 'call' &&
    step.inputs.length === 0 &&
    !capture.isLive(step.call.numbers) &&
    step.outputs.every(({ slot }) => {
      const { outer, storage } = capture.slots[slot]
      return outer === null && writers.get(slot) === 1 && storage.bytes <= largestConstant
    })
  return new Set(steps.filter(isConstant))
}

/** When each slot that the function made is in use. */
function intervals(
  { slots }: Capture,
  steps: readonly Step[],
  once: ReadonlySet<Step>,
  results: ReadonlySet<number>,
  lasting: ReadonlySet<number>,
  fed: ReadonlySet<number>,
): Interval[] {
  const from = new Map<number, number>()
  const to = new Map<number, number>()
  steps.forEach((step, i) => {
    const outputs = step.kind === 'call' ? step.outputs : [step.to]
    for (const { slot } of [...outputs, ...(step.kind === 'call' ? step.inputs : [])]) {
      if (slots[slot].outer !== null && !fed.has(slot)) continue
      // What is written once stays.
      const stays = step.kind === 'write' || once.has(step)
      if (stays) to.set(slot, steps.length)
      if (!from.has(slot)) from.set(slot, stays ? -1 : i)
      to.set(slot, Math.max(to.get(slot) ?? -1, i))
    }
  })
  for (const slot of results) if (from.has(slot)) to.set(slot, steps.length)
  for (const slot of [...lasting, ...fed])
    if (from.has(slot)) {
      from.set(slot, -1)
      to.set(slot, steps.length)
    }
  // A result that no step makes has undefined contents, as `allocate` gives it.
  for (const slot of [...results, ...lasting])
    if (slot >= 0 && slots[slot].outer === null && !from.has(slot)) {
      from.set(slot, -1)
      to.set(slot, steps.length)
    }
  return [...from].map(([slot, first]) => ({
    slot,
    bytes: slots[slot].storage.bytes,
    from: first,
    to: to.get(slot) as number,
  }))
}

function line(step: Step, placeOf: (slot: number) => Place | undefined, places: readonly Place[]): string {
  const name = ({ slot, dtype, shape }: Ref): string => {
    const place = placeOf(slot)
    const where = place ? `m${places.indexOf(place)}` : `x${slot}`
    return `${where}:${dtype === 'float32' ? '' : dtype}${show(shape)}`
  }
  const list = (refs: readonly Ref[]): string =>
    refs.length > 6
      ? `${refs.slice(0, 4).map(name).join(' ')} … ${refs.length} in all`
      : refs.map(name).join(' ')
  if (step.kind === 'write') return `  ${name(step.to)} = numbers of the host`
  const bytes = [...step.outputs, ...step.inputs].reduce(
    (n, r) => n + numel(r.shape) * info[r.dtype].bytes,
    0,
  )
  return `  ${list(step.outputs)} = ${step.call.op}(${list(step.inputs)}), ${showBytes(bytes)}`
}

function moveLine(
  { slot, bytes }: Interval,
  placeOf: (slot: number) => Place | undefined,
  places: readonly Place[],
  store: string,
  back: boolean,
): string {
  const place = placeOf(slot)
  const here = place ? `m${places.indexOf(place)}` : `x${slot}`
  const [to, from] = back ? [here, `${store}[${slot}]`] : [`${store}[${slot}]`, here]
  return `  ${to} = ${from}, ${showBytes(bytes)}`
}
