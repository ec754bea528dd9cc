import { describe } from '../checks.ts'
import { TilegradError, ValueError } from '../errors.ts'
import type { TypedArray } from '../tensor/dtype.ts'

/** Keeps elements outside of a backend's memory. */
export interface Store {
  /** Where that is, for people. */
  readonly name: string
  /** Keeps elements, in the place of earlier ones of the same size if there are any. */
  put(data: TypedArray, old?: Kept): Kept
}

/** Elements that a store keeps. */
export interface Kept {
  /** The elements; a file's are a copy of their own. */
  get(): TypedArray
  /** Forgets them. */
  drop(): void
}

const nothing = (): void => {}

/** The host's own memory. */
const HOST: Store = {
  name: 'host',
  put: (data) => ({ get: () => data, drop: nothing }),
}

interface Files {
  openSync(path: string, flags: string): number
  unlinkSync(path: string): void
  closeSync(fd: number): void
  writeSync(fd: number, data: Uint8Array, offset: number, length: number, position: number): number
  readSync(fd: number, data: Uint8Array, offset: number, length: number, position: number): number
}

interface NodeProcess {
  readonly pid: number
  getBuiltinModule?(name: 'node:fs'): Files
  getBuiltinModule?(name: 'node:path'): { resolve(path: string): string }
  on(event: 'exit', listener: () => void): void
}

/** One file for each folder, as long as the process lives. */
const folders = new Map<string, Store>()

/** The host's memory, or a file in a folder: one for all that goes there. */
export function storeOf(op: string, option: string, to: unknown): Store {
  if (to === 'host') return HOST
  if (typeof to !== 'string' || to === '')
    throw new ValueError(`${op}: ${option} must be 'host' or the path of a folder, got ${describe(to)}`)
  const { process } = globalThis as { process?: NodeProcess }
  const path = process?.getBuiltinModule?.('node:path').resolve(to) ?? to
  const known = folders.get(path)
  if (known) return known
  const store = new FileStore(op, path)
  folders.set(path, store)
  return store
}

/** A part of a file. */
interface Extent {
  readonly at: number
  readonly bytes: number
}

/**
 * One file without a name in a folder, which the system takes away with the process, however that ends. Where a file that
 * is open cannot lose its name (Windows), it is deleted when the process exits.
 */
class FileStore implements Store {
  readonly name: string
  readonly #files: Files
  readonly #fd: number
  /** In their order; neighbours are one. */
  #free: Extent[] = []
  #end = 0

  constructor(op: string, folder: string) {
    const { process } = globalThis as { process?: NodeProcess }
    const files = process?.getBuiltinModule?.('node:fs')
    if (!process || !files)
      throw new ValueError(`${op}: there are no files here, so offload cannot be a folder; use 'host'`)
    const path = `${folder}/tilegrad-${process.pid}-${Math.random().toString(36).slice(2)}.swap`
    try {
      this.#fd = files.openSync(path, 'wx+')
    } catch (error) {
      throw new ValueError(`${op}: offload to '${folder}': ${(error as Error).message}`, { cause: error })
    }
    try {
      files.unlinkSync(path)
    } catch {
      process.on('exit', () => {
        files.closeSync(this.#fd)
        files.unlinkSync(path)
      })
    }
    this.name = folder
    this.#files = files
  }

  put(data: TypedArray, old?: Kept): Kept {
    const { buffer, byteOffset, byteLength: bytes } = data
    const extent = old instanceof InFile ? old.extent : this.#take(bytes)
    try {
      this.#move('writeSync', new Uint8Array(buffer, byteOffset, bytes), extent.at)
    } catch (error) {
      if (!old) this.#giveBack(extent)
      throw new TilegradError(`offload: ${this.name}: ${(error as Error).message}`, { cause: error })
    }
    if (old) return old
    const Type = data.constructor as new (buffer: ArrayBuffer) => TypedArray
    const get = (): TypedArray => {
      const all = new Uint8Array(bytes)
      this.#move('readSync', all, extent.at)
      return new Type(all.buffer)
    }
    return new InFile(extent, get, () => this.#giveBack(extent))
  }

  /** Reads or writes all of an array, however much of it the system takes at once. */
  #move(how: 'readSync' | 'writeSync', all: Uint8Array, at: number): void {
    for (let done = 0; done < all.length; ) {
      const n = this.#files[how](this.#fd, all, done, Math.min(all.length - done, 2 ** 30), at + done)
      if (n === 0) throw new TilegradError('the file was cut off')
      done += n
    }
  }

  /** The smallest free part that is large enough, or one at the end. */
  #take(bytes: number): Extent {
    let best = -1
    for (const [i, part] of this.#free.entries())
      if (part.bytes >= bytes && (best < 0 || part.bytes < this.#free[best].bytes)) best = i
    if (best >= 0) {
      const { at, bytes: all } = this.#free[best]
      this.#free.splice(best, 1, ...(all > bytes ? [{ at: at + bytes, bytes: all - bytes }] : []))
      return { at, bytes }
    }
    const extent = { at: this.#end, bytes }
    this.#end += bytes
    return extent
  }

  #giveBack(extent: Extent): void {
    const merged: Extent[] = []
    for (const part of [...this.#free, extent].sort((a, b) => a.at - b.at)) {
      const last = merged.at(-1)
      if (last && last.at + last.bytes === part.at)
        merged[merged.length - 1] = { at: last.at, bytes: last.bytes + part.bytes }
      else merged.push(part)
    }
    // What is free at the end is the end's again.
    const last = merged.at(-1)
    if (last && last.at + last.bytes === this.#end) {
      this.#end = last.at
      merged.pop()
    }
    this.#free = merged
  }
}

class InFile implements Kept {
  readonly extent: Extent
  readonly get: () => TypedArray
  readonly drop: () => void

  constructor(extent: Extent, get: () => TypedArray, drop: () => void) {
    this.extent = extent
    this.get = get
    this.drop = drop
  }
}
