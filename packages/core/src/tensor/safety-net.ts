/**
 * The safety net: memory of storages that nobody disposes of is freed after they became unreachable, soon where the
 * runtime lets us ask for it.
 *
 * V8 does not see backend memory, so it does not hurry to find out. When much has been handed over since the last time,
 * or a backend has none left, `reclaim` has it collect garbage and frees what is gone, in the middle of a synchronous
 * loop, too. That takes three things. References are weak, as callbacks of a FinalizationRegistry only run between
 * tasks. `gc` comes from Node's own modules, without flags on its command line. And a context whose microtasks run as
 * soon as it has been evaluated ends the rule that what a WeakRef has shown stays until the end of the task. (Verified
 * on Node 20 and 24.) Elsewhere (browsers) an empty ArrayBuffer of the same size makes the collector hurry, and
 * what it finds is freed between tasks.
 */

import type { Backend, BackendBuffer } from '../dispatch/backend.ts'
import { findCollector } from './collector.ts'

/** What the net watches over: a storage. Structural, so that this file stands below it. */
interface Watched {
  readonly backend: Backend
  readonly buffer: BackendBuffer | null
  readonly bytes: number
  readonly tensors: { readonly count: number }
  /** The storage's place in the list that it is in; −1 for nowhere. */
  place: number
  remains: Remains | null
}

/** What is left of a storage once it is gone. */
export interface Remains {
  readonly ref: WeakRef<Watched>
  readonly backend: Backend
  readonly buffer: BackendBuffer
  readonly bytes: number
  readonly tensors: { readonly count: number }
  place: number
}

/** Handed over in the task that runs: most are disposed of before it ends, and registering them would be in vain. */
const newest: Watched[] = []
const watched: Remains[] = []
let flushing = false
let sentinel = false

/** Listens to every storage that was found to be gone. */
let onLost: (remains: Remains) => void = () => {}
export const setOnLost = (fn: typeof onLost): void => {
  onLost = fn
}

/** The least that is handed over from one `reclaim` to the next: it takes some milliseconds. */
const leastHanded = 2 ** 28
const mostHanded = 2 ** 30
/** What a tensor takes besides its elements: objects, and the rounding of sizes. */
const overhead = 2048
/** Bytes handed over, and not disposed of, since the last `reclaim`. */
let handed = 0
let patience = leastHanded

/** Makes the net watch over a storage from now on. */
export function watch(storage: Watched): void {
  storage.place = newest.length
  newest.push(storage)
  if (!flushing) {
    flushing = true
    queueMicrotask(flush)
  }
  handed += storage.bytes + overhead
  if (handed > patience || handed > (storage.backend.limitBytes ?? Number.POSITIVE_INFINITY) / 4) reclaim()
}

/** Makes the net forget a storage that was disposed of. */
export function unwatch(storage: Watched): void {
  if (storage.place >= 0) takeOut(newest, storage.place)
  else if (storage.remains) takeOut(watched, storage.remains.place)
  else return
  storage.place = -1
  storage.remains = null
  handed = Math.max(0, handed - storage.bytes - overhead)
}

function takeOut(list: { place: number }[], place: number): void {
  const last = list.pop() as { place: number }
  if (place === list.length) return
  list[place] = last
  last.place = place
}

/** @internal The storages that the net watches over. */
export const watchedStorages = (): Watched[] => [
  ...newest,
  ...watched.flatMap(({ ref }) => ref.deref() ?? []),
]

function flush(): void {
  flushing = false
  for (const storage of newest) {
    const { backend, buffer, bytes, tensors } = storage
    storage.place = -1
    const ref = new WeakRef(storage)
    storage.remains = { ref, backend, buffer: buffer as BackendBuffer, bytes, tensors, place: watched.length }
    watched.push(storage.remains)
  }
  newest.length = 0
  if (!sentinel && watched.length > 0) {
    sentinel = true
    collected.register({}, null)
  }
}

/** Tells when garbage has been collected: the one object that is registered is garbage from the start. */
const collected = new FinalizationRegistry(() => {
  sentinel = false
  // What went by itself was not in vain: without this, the next `reclaim` would find little, and lose patience.
  handed = Math.max(0, handed - sweep())
  flush()
})

/** Frees the memory of storages that are gone, and returns how many bytes that was, overhead included. */
function sweep(): number {
  let bytes = 0
  for (let i = watched.length - 1; i >= 0; i--) {
    const remains = watched[i]
    if (remains.ref.deref() !== undefined) continue
    takeOut(watched, i)
    bytes += remains.bytes + overhead
    onLost(remains)
  }
  return bytes
}

/**
 * What the kernel that runs works on. A kernel takes addresses, and may then ask for memory of its own: operands that no
 * code names any more must not be collected for it.
 */
export const running: { outputs: unknown; inputs: unknown } = { outputs: null, inputs: null }

/**
 * @internal Finds what nobody can reach any more and frees it, where the runtime lets us do that at once; elsewhere it
 * only hurries. For backends, when they have no memory left, also from within a kernel.
 */
export function reclaim(): void {
  if (newest.length + watched.length === 0) return
  flush()
  if (canReclaim()) {
    const { outputs, inputs } = running
    collector?.()
    // Named after the collection, they are part of nothing that was collected.
    Object.assign(running, { outputs, inputs })
    // Of what is mostly in use, there is little to be gained by looking often.
    patience = sweep() < handed / 2 ? Math.min(2 * patience, mostHanded) : leastHanded
  } else hurry(handed)
  handed = 0
}

/** Whether garbage can be collected at once. */
export function canReclaim(): boolean {
  if (collector === undefined) collector = findCollector()
  return collector !== null
}

/** Undefined before it has been looked for. */
let collector: (() => void) | null | undefined

/** Memory that is never touched takes none, but V8, SpiderMonkey and JavaScriptCore count it. */
function hurry(bytes: number): ArrayBuffer | null {
  try {
    return new ArrayBuffer(Math.min(bytes, leastHanded))
  } catch {
    return null
  }
}
