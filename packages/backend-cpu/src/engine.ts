/** What every CPU kernel works with: compiled code by key, addresses of views, parameters, threads. */

import { dtypeInfo, type KernelOf, type View } from '@tilegrad/core'
import type { Features } from './machine/features.ts'
import type { Heap } from './machine/heap.ts'
import type { Kernel, Pool } from './machine/pool.ts'
import { ModuleBuilder } from './wasm/index.ts'

/** A piece of memory of the CPU backend: an address in the one WebAssembly memory. */
export class CpuBuffer {
  /** Bytes, 1 … 2³² − 1; 0 for an empty tensor, which has no memory. */
  ptr: number
  readonly bytes: number

  constructor(ptr: number, bytes: number) {
    this.ptr = ptr
    this.bytes = bytes
  }
}

/** Byte address of a view's first element. */
export const addressOf = (view: View): number =>
  (view.buffer as CpuBuffer).ptr + view.offset * dtypeInfo[view.dtype].bytes

/** Rounds bytes up to whole cache lines. */
export const align64 = (bytes: number): number => Math.ceil(bytes / 64) * 64

/** The most words that a parameter block holds. */
export const maxParams = 1024

export interface Engine {
  readonly features: Features
  readonly memory: Heap
  readonly pool: Pool
  /** Address of the parameter block that kernels read, in bytes: for callers that fill it themselves. */
  readonly params: number
  /**
   * The compiled kernel for `key`. On first use `build` adds it to a module: `m.kernel('main', (f, start, end,
   * params, thread) => …)`, over rows [start, end). Keep the result where a call is cheap, the key is looked up
   * in a map.
   */
  kernel(key: string, build: (m: ModuleBuilder) => void): Kernel
  /** Byte address of a view's first element. */
  address(view: View): number
  /**
   * Runs a kernel over rows [0, rows), on as many threads as there are chunks of `grain` rows, and waits. Chunks
   * are taken by whoever is free. `params` are i32 words (addresses, counts, `f32bits(x)`), at most `maxParams`:
   * read with `i32.load(params, 4 * index)`.
   */
  run(kernel: Kernel, rows: number, grain: number, params: readonly number[]): void
  /** Runs a kernel with one fixed range of rows per thread, whatever else the machine does: for state per thread. */
  runStatic(kernel: Kernel, rows: number, params: readonly number[]): void
  /** Runs with the words that the caller has written at `engine.params`. */
  launch(kernel: Kernel, rows: number, grain: number): void
  /**
   * Address of scratch memory for thread 0; that of thread t is `t * align64(bytesPerThread)` further. Contents
   * are undefined, and it is valid until the next call of `scratch`.
   */
  scratch(bytesPerThread: number): number
}

/** What makes a kernel of the table: `export const softmax: KernelFactory<{ dim: number }> = (engine) => ({ … })`. */
export type KernelFactory<A> = (engine: Engine) => KernelOf<A>

/** The bytes of a module with an empty section of a name, so that V8 takes them for another module. */
function marked(bytes: Uint8Array<ArrayBuffer>, name: string): Uint8Array<ArrayBuffer> {
  const section = [0, name.length + 1, name.length, ...new TextEncoder().encode(name)]
  return Uint8Array.from([...bytes, ...section])
}

/**
 * An engine on a memory and a pool. `mark`: up to 100 ASCII characters; V8 keeps code by the bytes of modules, and
 * engines with different marks share none.
 */
export function createEngine(features: Features, memory: Heap, pool: Pool, mark = ''): Engine {
  const kernels = new Map<string, Kernel>()
  // One block is enough: a run has ended, on all threads, before the next one is written.
  const params = memory.alloc(4 * maxParams)
  let scratchPtr = 0
  let scratchBytes = 0
  const write = (words: readonly number[]): void => {
    if (words.length > maxParams)
      throw new RangeError(`engine: ${words.length} parameters; at most ${maxParams}`)
    const at = params >>> 2
    const { i32 } = memory
    for (let i = 0; i < words.length; i++) i32[at + i] = words[i] as number
  }
  return {
    features,
    memory,
    pool,
    params,
    kernel(key, build) {
      let kernel = kernels.get(key)
      if (kernel === undefined) {
        const m = new ModuleBuilder(features)
        build(m)
        const bytes = m.build()
        kernel = { ...pool.compile(mark === '' ? bytes : marked(bytes, mark), 'main'), name: key }
        kernels.set(key, kernel)
      }
      return kernel
    },
    address: addressOf,
    run(kernel, rows, grain, words) {
      write(words)
      pool.run(kernel, rows, grain, params)
    },
    runStatic(kernel, rows, words) {
      write(words)
      pool.runStatic(kernel, rows, params)
    },
    launch: (kernel, rows, grain) => pool.run(kernel, rows, grain, params),
    scratch(bytesPerThread) {
      const bytes = align64(bytesPerThread) * pool.threads
      if (bytes > scratchBytes) {
        if (scratchPtr !== 0) memory.free(scratchPtr)
        // There is none if the next line throws.
        scratchBytes = 0
        scratchPtr = 0
        scratchPtr = memory.alloc(bytes)
        scratchBytes = bytes
      }
      return scratchPtr
    },
  }
}
