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
  on(event: 'exit', listener: () => void): void
}

const folders = new Map<string, Store>()
const closed = new FinalizationRegistry<() => void>((close) => close())

/** The host's memory, or a file in a folder: one for all that goes there. */
export function storeOf(op: string, to: string): Store {
  if (to === 'host') return HOST
  if (typeof to !== 'string' || to === '')
    throw new ValueError(`${op}: offload must be 'host' or the path of a folder`)
  const known = folders.get(to)
  if (known) return known
  const store = new FileStore(op, to)
  folders.set(to, store)
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
  readonly #free: Extent[] = []
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
    const fd = this.#fd
    closed.register(this, () => files.closeSync(fd))
  }

  put(data: TypedArray, old?: Kept): Kept {
    const { buffer, byteOffset, byteLength: bytes } = data
    const extent = old instanceof InFile ? old.extent : this.#take(bytes)
    try {
      this.#move('writeSync', new Uint8Array(buffer, byteOffset, bytes), extent.at)
    } catch (error) {
      if (!old) this.#free.push(extent)
      throw new TilegradError(`offload: ${this.name}: ${(error as Error).message}`, { cause: error })
    }
    if (old) return old
    const Type = data.constructor as new (buffer: ArrayBuffer) => TypedArray
    const get = (): TypedArray => {
      const all = new Uint8Array(bytes)
      this.#move('readSync', all, extent.at)
      return new Type(all.buffer)
    }
    return new InFile(extent, get, () => this.#free.push(extent))
  }

  /** Reads or writes all of an array, however much of it the system takes at once. */
  #move(how: 'readSync' | 'writeSync', all: Uint8Array, at: number): void {
    for (let done = 0; done < all.length; ) {
      const n = this.#files[how](this.#fd, all, done, Math.min(all.length - done, 2 ** 30), at + done)
      if (n === 0) throw new TilegradError('the file was cut off')
      done += n
    }
  }

  /** A free part of just so many bytes, as sizes come again, or one at the end. */
  #take(bytes: number): Extent {
    const i = this.#free.findIndex((extent) => extent.bytes === bytes)
    if (i >= 0) return this.#free.splice(i, 1)[0]
    const extent = { at: this.#end, bytes }
    this.#end += bytes
    return extent
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
