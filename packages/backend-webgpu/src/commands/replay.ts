/**
 * Kernels that remember what they did. Which shaders run, on how many workgroups, with what temporaries and parameters
 * follows from the layouts of the operands and the attributes alone; working that out takes longer than all the rest of
 * a call. So it is recorded the first time, and done again for operands of the same layouts, with their buffers.
 *
 * The numbers of a call (an optimiser's rates, the draws of random numbers) are not part of what a recording is found by:
 * see `Scalar`. Objects in attributes (expressions) are known by what they are, not by what is in
 * them: they are never changed.
 *
 * A kernel that does more than dispatches on its operands and temporaries (bytes from the host, copies, buffers of its
 * own) is not remembered. Test: recorded.test.ts, and for all operators test/webgpu-recorded.test.ts.
 */

import type { DType, KernelOf } from '@tilegrad/core'
import type { GpuBuffer } from '../device/buffers.ts'
import type { Scalar } from '../wgsl/block.ts'
import type { Grid, KernelListener, Repeated } from './dispatch.ts'
import { Key } from './key.ts'
import type { GpuKernel } from './pipelines.ts'
import type { Engine } from './queue.ts'

/** A dispatch to be repeated with other buffers. */
interface Dispatch extends Repeated {
  readonly kind: 'run'
  /** Numbered: those of the operands in order, each once, and then temporaries as they are allocated. */
  readonly buffers: readonly number[]
  /** Where a replay puts them. */
  readonly bound: GpuBuffer[]
}

type Step =
  | Dispatch
  | { readonly kind: 'alloc'; readonly count: number; readonly dtype: DType }
  | { readonly kind: 'free'; readonly buffer: number }

/** Writes down what a kernel does. */
export class Recorder implements KernelListener {
  /** Whose kernel it is. */
  readonly name: string
  readonly steps: Step[] = []
  /** It used nothing but its operands, its temporaries and dispatches. */
  complete = true
  /** Temporaries that it has not given back. */
  readonly taken = new Set<GpuBuffer>()
  readonly #numbers: Map<GpuBuffer, number>
  #next: number

  constructor(name: string, operands: readonly GpuBuffer[]) {
    this.name = name
    this.#numbers = new Map(operands.map((buffer, i) => [buffer, i]))
    this.#next = operands.length
  }

  run(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    words: Uint32Array,
    grid: Grid,
    scalars: readonly Scalar[],
  ): boolean {
    const numbers = buffers.map((b) => this.#of(b))
    const bound = [...buffers]
    this.steps.push({ kind: 'run', kernel, buffers: numbers, bound, words, grid, scalars, at: -1, era: -1 })
    return false
  }

  other(): void {
    this.complete = false
  }

  lend(): undefined {}

  alloc(buffer: GpuBuffer, count: number, dtype: DType): void {
    this.taken.add(buffer)
    this.#numbers.set(buffer, this.#next++)
    this.steps.push({ kind: 'alloc', count, dtype })
  }

  free(buffer: GpuBuffer): boolean {
    this.taken.delete(buffer)
    this.steps.push({ kind: 'free', buffer: this.#of(buffer) })
    return false
  }

  #of(buffer: GpuBuffer): number {
    const number = this.#numbers.get(buffer)
    if (number === undefined) this.complete = false
    return number ?? -1
  }
}

/** What was done for operands and attributes that `key` tells. */
interface Recording {
  readonly key: Float64Array
  readonly steps: readonly Step[]
  /** All of the same kernel. */
  readonly among: Recordings
  /** Another one of the same hash. */
  readonly next: Recording | undefined
  /** What was done after it last time, and is likely to be done again. */
  follower: Recording | undefined
}
type Recordings = Map<number, Recording>

/** Recordings of one kernel; when there are more, sizes change all the time, and old ones are of little use. */
const most = 1024

/** What the kernels of an engine remember. */
export class Memory {
  readonly #engine: Engine
  readonly #key = new Key()
  #last: Recording | undefined

  constructor(engine: Engine) {
    this.#engine = engine
  }

  /** A kernel that remembers. */
  recorded<A extends object>(name: string, kernel: KernelOf<A>): KernelOf<A> {
    const engine = this.#engine
    const key = this.#key
    const recordings: Recordings = new Map()
    return {
      ...kernel,
      run: (outputs, inputs, attrs, numbers) => {
        if (engine.listener) return kernel.run(outputs, inputs, attrs, numbers)
        key.describe(outputs, inputs, attrs, numbers.length)
        const found = this.#find(recordings)
        if (found) return this.#replay(found.steps, numbers)

        const made = key.copy()
        const hash = key.hash()
        const recorder = new Recorder(name, key.operands.slice(0, key.count))
        engine.listener = recorder
        try {
          kernel.run(outputs, inputs, attrs, numbers)
        } catch (error) {
          for (const buffer of recorder.taken) engine.pool.free(buffer)
          throw error
        } finally {
          engine.listener = null
        }
        if (!recorder.complete) return
        if (recordings.size >= most) forget(recordings)
        const next = recordings.get(hash)
        const { steps } = recorder
        recordings.set(hash, { key: made, steps, among: recordings, next, follower: undefined })
      },
    }
  }

  /** The recording of what the key describes. */
  #find(recordings: Recordings): Recording | undefined {
    const key = this.#key
    const last = this.#last
    let found = last?.follower
    if (!found || found.among !== recordings || !key.equals(found.key)) {
      found = recordings.get(key.hash())
      while (found && !key.equals(found.key)) found = found.next
      if (!found) return undefined
      if (last) last.follower = found
    }
    this.#last = found
    return found
  }

  #replay(steps: readonly Step[], values: readonly number[]): void {
    const engine = this.#engine
    const { operands, count: given } = this.#key
    let count = given
    let s = 0
    try {
      for (; s < steps.length; s++) {
        const step = steps[s]
        if (step.kind === 'run') {
          const { buffers, bound } = step
          for (let i = 0; i < buffers.length; i++) bound[i] = operands[buffers[i]]
          engine.runAgain(step, bound, values)
        } else if (step.kind === 'alloc') operands[count++] = engine.pool.alloc(step.count, step.dtype)
        else engine.pool.free(operands[step.buffer])
      }
    } catch (error) {
      const freed = new Set(steps.slice(0, s).map((step) => (step.kind === 'free' ? step.buffer : -1)))
      for (let i = given; i < count; i++) if (!freed.has(i)) engine.pool.free(operands[i])
      throw error
    }
  }
}

function forget(recordings: Recordings): void {
  // What still points to them must not hold what came after.
  for (const first of recordings.values())
    for (let old: Recording | undefined = first; old; old = old.next) old.follower = undefined
  recordings.clear()
}
