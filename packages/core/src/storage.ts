import type { Backend, BackendBuffer } from './backend.ts'
import type { DType } from './dtype.ts'

/** Counts of everything alive, over all backends; see `memory()`. */
export const counts = { tensors: 0, storages: 0, bytes: 0, peakBytes: 0 }

/** The safety net: memory of storages that nobody disposed of, freed some time after they became unreachable. */
const lost = new FinalizationRegistry<{
  backend: Backend
  buffer: BackendBuffer
  bytes: number
  tensors: { count: number }
}>((held) => {
  held.backend.free(held.buffer)
  counts.storages--
  counts.bytes -= held.bytes
  counts.tensors -= held.tensors.count
})

/** A piece of backend memory, shared by all views of it and freed with the last of them. */
export class Storage {
  readonly backend: Backend
  readonly bytes: number
  /** Bumped by every write in place, so that the tape notices. */
  version = 0
  /** @internal Which batch of calls in place touches it: see primitives/foreach.ts. */
  mark = 0
  /** @internal The end of what that batch touches, in elements. */
  markEnd = 0
  buffer: BackendBuffer | null
  /** Live tensors on it; an object of its own because the finalizer needs it after the storage is gone. */
  readonly tensors = { count: 0 }
  #adopted = false

  constructor(backend: Backend, bytes: number, dtype: DType) {
    this.backend = backend
    this.bytes = bytes
    this.buffer = backend.alloc(bytes, dtype)
    counts.storages++
    counts.bytes += bytes
    if (counts.bytes > counts.peakBytes) counts.peakBytes = counts.bytes
  }

  /**
   * Hands the storage to the safety net. What a scope tracks needs none, and registering costs more than all the rest
   * of making a tensor, so it happens where the last scope ends.
   */
  adopt(): void {
    if (this.#adopted || this.buffer === null) return
    this.#adopted = true
    const { backend, buffer, bytes, tensors } = this
    lost.register(this, { backend, buffer, bytes, tensors }, this)
  }

  free(): void {
    if (this.buffer === null) return
    if (this.#adopted) lost.unregister(this)
    this.backend.free(this.buffer)
    this.buffer = null
    counts.storages--
    counts.bytes -= this.bytes
  }
}
