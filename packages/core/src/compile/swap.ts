import type { Backend, View } from '../dispatch/backend.ts'
import { type Call, NO_NUMBERS } from '../dispatch/call.ts'
import type { KernelOf } from '../dispatch/kernels.ts'
import { CompileError } from '../errors.ts'
import { type Limit, pager } from '../offload/pager.ts'
import type { Kept, Store } from '../offload/store.ts'
import { showBytes } from '../tensor/show-bytes.ts'
import { arrange, type Interval, type Spot } from './arrange.ts'
import { type Capture, describe, type Step } from './capture.ts'
import { stays } from './stays.ts'

/** Where everything lies, and when. */
export interface Arranged {
  /** When each slot is in memory; once each, unless some leave it meanwhile. */
  readonly parts: readonly Interval[]
  readonly spots: ReadonlyMap<Interval, Spot>
}

const placesOf = (spots: ReadonlyMap<Interval, Spot>): number =>
  [...new Set([...spots.values()].map(({ place }) => place))].reduce((n, { bytes }) => n + bytes, 0)

/**
 * Arranges slots in as much memory as a limit leaves beside what is in use all the time, which the function found there,
 * and `passing` bytes of arguments and results that are copied. Pieces that are free do not always lie together: what is
 * asked for shrinks until the places fit.
 *
 * @throws CompileError if a step alone needs more.
 */
export function arrangeWithin(
  backend: Backend,
  capture: Capture,
  steps: readonly Step[],
  used: readonly Interval[],
  limit: Limit | null,
  passing: number,
  packs: boolean,
): Arranged {
  const whole = { parts: used, spots: arrange(backend, capture, steps, used, packs) }
  if (!limit) return whole
  const own = new Set(used.map(({ slot }) => slot))
  const outside = capture.slots.reduce(
    (n, { outer, storage }, slot) => (outer !== null && !own.has(slot) ? n + storage.bytes : n),
    passing,
  )
  const taken = pager.takenBytes(backend)
  const free = limit.maxBytes - taken
  // Of what was there before at most half stays beside: the rest of it comes and goes as it is used.
  const most = Math.max(free - outside, free / 2)
  if (placesOf(whole.spots) <= most) return whole
  for (let target = most; ; ) {
    const parts = stays(steps, used, target)
    if ('needs' in parts)
      throw new CompileError(
        `compile: maxBytes of ${showBytes(limit.maxBytes)} is too little: beside ${showBytes(outside)} of parameters and arguments, and ${showBytes(taken)} that kernels work in, ${describe(parts.step)} needs ${showBytes(parts.needs)} at a time, and pieces of all sizes leave gaps`,
      )
    const spots = arrange(backend, capture, steps, parts, packs)
    const over = placesOf(spots) - most
    if (over <= 0) return { parts, spots }
    target -= Math.max(over / 2, most / 256)
  }
}

/** Moves of one slot between memory and a store. */
export class Mover {
  readonly #store: Store
  readonly #kept = new Map<number, Kept>()

  constructor(store: Store) {
    this.#store = store
  }

  /** Where it keeps them, for people. */
  get name(): string {
    return this.#store.name
  }

  /** The call that moves a slot, which lies there in memory now, out of it. */
  out(backend: Backend, slot: number, view: View): Call {
    const kernel: KernelOf<object> = {
      run: (_, [from]) => {
        const data = backend.readSync?.(from)
        if (data) this.#kept.set(slot, this.#store.put(data, this.#kept.get(slot)))
      },
    }
    return this.#call(backend, 'offload', kernel, [], [view])
  }

  /** The call that brings it back. */
  back(backend: Backend, slot: number, view: View): Call {
    const kernel: KernelOf<object> = {
      run: ([to]) => {
        const kept = this.#kept.get(slot)
        // Never numbers that are not its own.
        if (!kept) throw new CompileError(`compile: slot ${slot} comes back without having left`)
        backend.write(to, kept.get())
      },
    }
    return this.#call(backend, 'bring back', kernel, [view], [])
  }

  #call(
    backend: Backend,
    op: string,
    kernel: KernelOf<object>,
    outputs: readonly View[],
    inputs: readonly View[],
  ): Call {
    return { op, path: 'primitive', backend, kernel, outputs, inputs, attrs: {}, numbers: NO_NUMBERS } as Call
  }

  release(): void {
    for (const kept of this.#kept.values()) kept.drop()
    this.#kept.clear()
  }
}
