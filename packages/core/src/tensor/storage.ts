import type { Backend, BackendBuffer } from '../dispatch/backend.ts'
import { capturing } from '../dispatch/capturing.ts'
import { paging } from '../dispatch/paging.ts'
import type { DType } from './dtype.ts'
import { type Remains, setOnLost, unwatch, watch } from './safety-net.ts'

/** Counts of everything alive, over all backends; see `memory()`. */
export const counts = { tensors: 0, storages: 0, bytes: 0, peakBytes: 0 }

const giveBack = (backend: Backend, buffer: BackendBuffer): void => {
  if (paging()?.freed(buffer) !== false) backend.free(buffer)
}

setOnLost(({ backend, buffer, bytes, tensors }) => {
  giveBack(backend, buffer)
  counts.storages--
  counts.bytes -= bytes
  counts.tensors -= tensors.count
})

/** A piece of backend memory, shared by all views of it and freed with the last of them. */
export class Storage {
  readonly backend: Backend
  readonly bytes: number
  /** A count that every write in place raises, so that the tape notices. */
  version = 0
  /** @internal The mark of the batch of calls in place that touches the storage: see primitives/foreach.ts. */
  mark = 0
  /** @internal The end of what the batch of `mark` touches, in elements. */
  markEnd = 0
  /** @internal The number of the backward pass that spares the storage: see spared.ts. */
  spared = 0
  buffer: BackendBuffer | null
  /** The count of live tensors, in an object of its own because the safety net needs it after the storage is gone. */
  readonly tensors = { count: 0 }
  /** @internal The storage's place in the safety net's list; −1 for nowhere. */
  place = -1
  /** @internal What the safety net keeps of the storage after it is gone. */
  remains: Remains | null = null

  constructor(backend: Backend, bytes: number, dtype: DType) {
    this.backend = backend
    this.bytes = bytes
    this.buffer = paging()?.alloc(backend, bytes, dtype) ?? backend.alloc(bytes, dtype)
    counts.storages++
    counts.bytes += bytes
    if (counts.bytes > counts.peakBytes) counts.peakBytes = counts.bytes
    capturing()?.made(this, dtype)
  }

  /**
   * Hands the storage to the safety net. What a scope tracks needs none, so it happens where the last scope ends.
   */
  adopt(): void {
    if (this.place < 0 && this.remains === null && this.buffer !== null) watch(this)
  }

  free(): void {
    if (this.buffer === null) return
    unwatch(this)
    giveBack(this.backend, this.buffer)
    this.buffer = null
    counts.storages--
    counts.bytes -= this.bytes
  }
}
