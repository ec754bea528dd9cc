import type { Backend, BackendBuffer, View } from '../dispatch/backend.ts'
import type { Call } from '../dispatch/call.ts'
import { type Paging, setPaging } from '../dispatch/paging.ts'
import { OutOfMemoryError } from '../errors.ts'
import { type DType, info } from '../tensor/dtype.ts'
import { reclaim, watchedStorages } from '../tensor/safety-net.ts'
import { tracked } from '../tensor/scope.ts'
import { Tensor } from '../tensor/tensor.ts'
import type { Kept, Store } from './store.ts'

/** What is known of a buffer that may leave memory. */
interface Known {
  readonly backend: Backend
  readonly bytes: number
  /** What its elements are moved as: where memory can be read at once, its bytes. */
  readonly dtype: DType
}

/** A buffer that has left it. */
interface Away extends Known {
  readonly kept: Kept
}

/** How much of a backend's memory tensors may take, and where they go. */
export interface Limit {
  readonly backend: Backend
  readonly maxBytes: number
  readonly store: Store
}

/** What is smaller stays: it would free little. */
const least = 2 ** 12

/** What a backend may take more than it is asked for, the code of kernels that run for the first time included. */
const rounding = 2 ** 14

const whole = (buffer: BackendBuffer, { bytes, dtype }: Known): View => ({
  buffer,
  dtype,
  shape: [bytes / info[dtype].bytes],
  strides: [1],
  offset: 0,
})

/**
 * Keeps tensors outside of memory: virtual memory as operating systems have it, with whole tensors for pages. What was
 * used longest ago leaves first. In a training step that is what the backward pass needs last, so that little more is
 * moved than has to be.
 */
class Pager implements Paging {
  readonly #away = new Map<BackendBuffer, Away>()
  /** What is in memory and may leave it, what was used longest ago first. */
  readonly #recent = new Map<BackendBuffer, Known>()
  /** What never leaves, as a plan has its own way with it. */
  readonly #fixed = new WeakSet<BackendBuffer>()
  readonly #limits: Limit[] = []
  /** What kernels that run touch: kernels may run within kernels. */
  #pinned: readonly (readonly View[])[] = []
  /** Where there may be tensors that were made while nobody listened: they are looked for when room is needed. */
  readonly #unsearched = new Set<Backend>()
  /** Why something that was to leave did not, since somebody waited for it. */
  #failure: unknown = null
  /** What is being read to leave as soon as it is known. */
  readonly #leaving = new Map<BackendBuffer, Promise<void>>()

  /** Runs `fn` while a backend's tensors are limited. */
  within<T>(limit: Limit, fn: () => T): T {
    const { maxBytes = limit.maxBytes } = this.#limitOf(limit.backend) ?? {}
    // Within another limit the smaller one holds.
    this.#limits.push({ ...limit, maxBytes: Math.min(limit.maxBytes, maxBytes) })
    setPaging(this)
    this.#unsearched.add(limit.backend)
    try {
      return fn()
    } finally {
      this.#limits.pop()
    }
  }

  /** Tensors that were made while nobody listened may leave as well, before any other. */
  #findOlder(backend: Backend): void {
    if (!this.#unsearched.delete(backend)) return
    const found = [...this.#recent]
    this.#recent.clear()
    const storages = tracked().flatMap((t) => (t instanceof Tensor && !t.disposed ? t.storage : []))
    for (const storage of [...watchedStorages(), ...storages]) {
      const { buffer, bytes } = storage
      if (storage.backend !== backend || buffer === null) continue
      if (!this.#fixed.has(buffer) && !this.#away.has(buffer)) this.#recent.set(buffer, known(backend, bytes))
    }
    for (const [buffer, known] of found) {
      this.#recent.delete(buffer)
      this.#recent.set(buffer, known)
    }
  }

  /** Without anything to do, calls need not ask. What may leave is known only as long as it is listened to. */
  #rest(): void {
    if (this.#limits.length + this.#recent.size + this.#away.size + this.#leaving.size === 0) setPaging(null)
  }

  #limitOf(backend: Backend): Limit | undefined {
    return this.#limits.findLast((limit) => limit.backend === backend)
  }

  alloc(backend: Backend, bytes: number, dtype: DType): BackendBuffer {
    const buffer = this.#room(backend, bytes, () => backend.alloc(bytes, dtype))
    if (this.#limits.length > 0 && backend.exchange) this.#recent.set(buffer, known(backend, bytes, dtype))
    return buffer
  }

  /** Takes memory, and makes room for it before, or when there is none in one piece. */
  #room<T>(backend: Backend, bytes: number, take: () => T): T {
    const limit = this.#limitOf(backend)
    if (!limit) return take()
    const { maxBytes } = limit
    const used = (): number => backend.exchange?.usedBytes() ?? 0
    let looked = false
    while (used() + bytes + rounding > maxBytes) {
      if (this.#makeRoom(limit)) continue
      if (looked) {
        const error = new OutOfMemoryError(bytes, used(), maxBytes)
        error.message = `offload: ${error.message}. The rest is what one operator works on at a time: raise maxBytes`
        throw error
      }
      // What nobody holds any more may be in the way.
      reclaim()
      looked = true
    }
    for (;;)
      try {
        return take()
      } catch (error) {
        if (!(error instanceof OutOfMemoryError) || !this.#makeRoom(limit)) throw error
      }
  }

  #makeRoom({ backend, store }: Limit): boolean {
    this.#findOlder(backend)
    for (const [buffer, known] of this.#recent) {
      if (known.backend !== backend || known.bytes < least || this.#isPinned(buffer)) continue
      this.#leave(buffer, known, store)
      return true
    }
    return false
  }

  #isPinned(buffer: BackendBuffer): boolean {
    return this.#pinned.some((views) => views.some((view) => view.buffer === buffer))
  }

  #leave(buffer: BackendBuffer, known: Known, store: Store): void {
    const { backend } = known
    const data = backend.readSync?.(whole(buffer, known))
    if (data) this.#left(buffer, known, store.put(data))
  }

  #left(buffer: BackendBuffer, known: Known, kept: Kept): void {
    this.#away.set(buffer, { ...known, kept })
    this.#recent.delete(buffer)
    known.backend.exchange?.leave(buffer)
  }

  /** Moves a tensor out at once, or, where the device answers later, once its elements are known. */
  moveOut({ storage, dtype }: Tensor, store: Store): void {
    const { backend, bytes, buffer } = storage
    if (buffer === null || !backend.exchange || bytes < least) return
    if (this.#away.has(buffer) || this.#fixed.has(buffer) || this.#leaving.has(buffer)) return
    const what = known(backend, bytes, dtype)
    if (backend.readSync) this.#leave(buffer, what, store)
    else {
      const { version } = storage
      const left = async (): Promise<void> => {
        try {
          const data = await backend.read(whole(buffer, what))
          if (storage.buffer === buffer && storage.version === version)
            this.#left(buffer, what, store.put(data))
        } catch (error) {
          // It stays where it is; who waits for it is told.
          this.#failure ??= error
        } finally {
          this.#leaving.delete(buffer)
          this.#rest()
        }
      }
      this.#leaving.set(buffer, left())
    }
    setPaging(this)
    this.#rest()
  }

  /** Resolves when all that was to leave has left. */
  async settled(): Promise<void> {
    await Promise.all(this.#leaving.values())
    const failure = this.#failure
    this.#failure = null
    if (failure !== null) throw failure
  }

  freed(buffer: BackendBuffer): boolean {
    this.#recent.delete(buffer)
    const away = this.#away.get(buffer)
    if (!away) return true
    away.kept.drop()
    this.#away.delete(buffer)
    this.#rest()
    return false
  }

  /** Bytes that are taken and cannot leave: what kernels have for their work, and other plans. */
  takenBytes(backend: Backend): number {
    this.#findOlder(backend)
    let bytes = backend.exchange?.usedBytes() ?? 0
    for (const known of this.#recent.values()) if (known.backend === backend) bytes -= known.bytes
    return Math.max(0, bytes)
  }

  /** Keeps a buffer in memory from now on. */
  fix(buffer: BackendBuffer): void {
    this.#fixed.add(buffer)
    this.#recent.delete(buffer)
  }

  bring(backend: Backend, view: View): void {
    const outer = this.#pinned
    this.#pinned = [...outer, [view]]
    try {
      this.#bring(backend, view)
    } finally {
      this.#pinned = outer
    }
  }

  #bring(backend: Backend, view: View): void {
    const { buffer } = view
    const away = this.#away.get(buffer)
    if (away) {
      const data = away.kept.get()
      this.#room(backend, away.bytes, () => backend.exchange?.enter(buffer, away.bytes, away.dtype))
      backend.write(whole(buffer, away), data)
      away.kept.drop()
      this.#away.delete(buffer)
    }
    if (!this.#limitOf(backend) || this.#fixed.has(buffer)) return
    // The newest come last.
    const what = this.#recent.get(buffer) ?? away ?? knownOf(backend, view)
    this.#recent.delete(buffer)
    if (what) this.#recent.set(buffer, what)
  }

  launch({ backend, outputs, inputs }: Call, go: () => void): void {
    const outer = this.#pinned
    this.#pinned = [...outer, outputs, inputs]
    try {
      for (const view of inputs) this.#bring(backend, view)
      for (const view of outputs) this.#bring(backend, view)
      go()
    } finally {
      this.#pinned = outer
      this.#rest()
    }
  }

  isLarge(bytes: number): boolean {
    return this.#limits.some(({ maxBytes }) => bytes > maxBytes / 4)
  }
}

/** Where memory can be read at once, it is moved byte by byte, whatever its elements are. */
const known = (backend: Backend, bytes: number, dtype: DType = 'bool'): Known => ({
  backend,
  bytes,
  dtype: backend.readSync ? 'bool' : dtype,
})

const knownOf = (backend: Backend, view: View): Known | null =>
  view instanceof Tensor ? known(backend, view.storage.bytes, view.dtype) : null

/** The one that there is: what has left memory outlives whoever sent it away. */
export const pager = new Pager()
