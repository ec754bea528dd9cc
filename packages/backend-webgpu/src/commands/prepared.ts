/**
 * Calls that run many times, made ready: the engine of core's `compile`. Their kernels run once, while a `Trace` hears
 * of the dispatches and keeps them. What they bind is bound then, so that a run is one loop of three WebGPU calls per
 * dispatch, after one write of all parameters that are numbers of calls.
 *
 * The trace has a buffer of parameters of its own: those with numbers of calls lie at its beginning, and are written
 * again where a number has changed; the others are written once. Temporaries stay the trace's until it is released;
 * what one kernel gives back, the next one gets. Products that follow each other and need nothing of each other are
 * joined, as those that come one by one: see joined.ts.
 *
 * On Dawn's null device a dispatch takes 2.1 µs of the host's time, of which less than 0.1 is not Dawn's. Called one by
 * one, it takes 6 to 9. Test: prepared.test.ts.
 */

import { type Call, DeviceError, type DType, type Prepared, ValueError } from '@tilegrad/core'
import { GpuBuffer, usage } from '../device/buffers.ts'
import type { Scalar } from '../wgsl/block.ts'
import { elements, laneOf } from '../wgsl/element.ts'
import type { Grid, KernelListener, Ready, Used } from './dispatch.ts'
import { after } from './params.ts'
import type { Binds, Bound, GpuKernel } from './pipelines.ts'
import type { Engine } from './queue.ts'

/** A dispatch that a kernel asked for. */
interface Asked {
  readonly kernel: GpuKernel
  readonly buffers: readonly GpuBuffer[]
  readonly words: Uint32Array
  readonly grid: Grid
  readonly scalars: readonly Scalar[]
  /** The numbers of its call. */
  readonly values: readonly number[]
}

/** Makes calls ready to run many times, in order. Runs none of them. */
export function prepare(engine: Engine, calls: readonly Call[]): Prepared {
  const trace = new Trace(engine)
  try {
    for (const call of calls) trace.call(call)
    return new Replay(engine, trace.asked, trace.temporaries)
  } catch (error) {
    for (const buffer of trace.temporaries) engine.pool.free(buffer)
    throw error
  }
}

/** Keeps what kernels ask for. */
class Trace implements KernelListener {
  name = ''
  readonly asked: Asked[] = []
  readonly temporaries: GpuBuffer[] = []
  readonly #engine: Engine
  /** Temporaries that kernels have given back, for kernels that come later. */
  readonly #free: GpuBuffer[] = []
  #numbers: readonly number[] = []

  constructor(engine: Engine) {
    this.#engine = engine
  }

  call({ op, kernel, outputs, inputs, attrs, numbers }: Call): void {
    for (const { buffer } of [...outputs, ...inputs])
      if (!(buffer instanceof GpuBuffer))
        throw new DeviceError(
          `${op}: prepare got a buffer of another backend than webgpu; move it there first`,
        )
    this.name = op
    this.#numbers = numbers
    this.#engine.listener = this
    try {
      kernel.run(outputs, inputs, attrs, numbers)
    } finally {
      this.#engine.listener = null
    }
  }

  run(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    words: Uint32Array,
    grid: Grid,
    scalars: readonly Scalar[],
    values: readonly number[],
  ): boolean {
    if (scalars.length > 0 && values !== this.#numbers)
      throw new DeviceError(
        `${this.name}: its kernel takes numbers that are not its call's own list, which a later run could not change. Hand on the very list that it got`,
      )
    this.asked.push({ kernel, buffers: [...buffers], words, grid, scalars, values })
    return true
  }

  other(what: string): void {
    throw new DeviceError(`${this.name}: its kernel ${what}, which cannot be made ready to run again`)
  }

  lend(bytes: number): GpuBuffer | undefined {
    const free = this.#free
    let best = -1
    for (let i = 0; i < free.length; i++) {
      const size = free[i].bytes
      if (size >= bytes && (best < 0 || size < free[best].bytes)) best = i
    }
    return best < 0 ? undefined : free.splice(best, 1)[0]
  }

  alloc(buffer: GpuBuffer, _count: number, _dtype: DType): void {
    if (!this.temporaries.includes(buffer)) this.temporaries.push(buffer)
  }

  free(buffer: GpuBuffer): boolean {
    this.#free.push(buffer)
    return true
  }
}

/** Where the parameters of each dispatch lie in a buffer of `end` bytes: before `varying` those with numbers of calls. */
function placed(asked: readonly Asked[]) {
  const slots = new Map<Asked, number>()
  let end = 0
  const place = (dispatch: Asked): void => {
    slots.set(dispatch, end)
    end = after(end, dispatch.kernel.paramBytes)
  }
  for (const dispatch of asked) if (dispatch.scalars.length > 0) place(dispatch)
  const varying = end
  for (const dispatch of asked) if (dispatch.scalars.length === 0) place(dispatch)
  return { slots, varying, end }
}

/** A dispatch, or two side by side, without its bind group. */
interface Joined {
  readonly kernel: GpuKernel
  readonly binds: Binds
  readonly grid: Grid
}

/** The dispatches, each alone or together with the one before. */
function joined({ pipelines }: Engine, asked: readonly Asked[], slots: ReadonlyMap<Asked, number>): Joined[] {
  const list: Joined[] = []
  for (const dispatch of asked) {
    const { kernel, buffers, grid } = dispatch
    const slot = slots.get(dispatch) as number
    const first = list.at(-1)
    const groups = first && isLine(first.grid) && isLine(grid) ? first.grid[0] + grid[0] : 0
    const both =
      first && groups > 0 && pipelines.joined(first.kernel, first.binds.buffers, kernel, buffers, groups)
    if (both) {
      const { label, layout } = both
      const all = [...first.binds.buffers, ...buffers]
      const binds = { label, layout, slot: first.binds.slot, second: slot, buffers: all }
      list[list.length - 1] = { kernel: both, binds, grid: [groups, 1, 1] }
    } else {
      const { label, layout } = kernel
      list.push({ kernel, binds: { label, layout, slot, second: -1, buffers }, grid })
    }
  }
  return list
}

const isLine = ([, y, z]: Grid): boolean => y === 1 && z === 1

/** The numbers of the calls among the parameters. */
class Numbers {
  /** The parameters. */
  readonly words: Uint32Array<ArrayBuffer>
  readonly #floats: Float32Array
  /** For each number: its call's list, where it is in that and among the parameters, and what it was last. */
  readonly #lists: (readonly number[])[] = []
  readonly #sources: number[] = []
  readonly #places: number[] = []
  readonly #dtypes: DType[] = []
  readonly #last: number[] = []

  /** `words` are all parameters of the dispatches that have numbers. */
  constructor(slots: ReadonlyMap<Asked, number>, words: Uint32Array<ArrayBuffer>) {
    this.words = words
    this.#floats = new Float32Array(words.buffer)
    for (const [{ scalars, values }, slot] of slots)
      for (const { at, source, dtype } of scalars) {
        this.#lists.push(values)
        this.#sources.push(source)
        this.#places.push(slot / 4 + at)
        this.#dtypes.push(dtype)
        // What nobody has written: 0.
        this.#last.push(0)
      }
  }

  /** Asks for all. False: none has changed. */
  gather(): boolean {
    const last = this.#last
    let changed = false
    for (let i = 0; i < last.length; i++) {
      const list = this.#lists[i]
      const value = list[this.#sources[i]]
      if (Object.is(value, last[i])) continue
      last[i] = value
      changed = true
      elements[laneOf(this.#dtypes[i])].put(value, this.#places[i], this.#floats, this.words)
    }
    return changed
  }
}

/** Dispatches that run again and again. */
class Replay implements Prepared, Ready {
  readonly kernels: readonly GpuKernel[]
  readonly bound: readonly Bound[]
  readonly grids: Uint32Array
  readonly uses: readonly Used[]
  readonly #engine: Engine
  readonly #temporaries: readonly GpuBuffer[]
  readonly #params: Used
  readonly #numbers: Numbers
  #released = false

  constructor(engine: Engine, asked: readonly Asked[], temporaries: readonly GpuBuffer[]) {
    const { pipelines, device } = engine
    const { slots, varying, end } = placed(asked)
    const gpu = device.createBuffer({ size: Math.max(16, end), usage: usage.UNIFORM | usage.COPY_DST })
    const words = new Uint32Array(end / 4)
    for (const [{ words: own }, slot] of slots) words.set(own, slot / 4)
    device.queue.writeBuffer(gpu, 0, words)
    this.#engine = engine
    this.#temporaries = temporaries
    this.#params = { gpu, batch: -1 }
    this.#numbers = new Numbers(slots, words.slice(0, varying / 4))

    const list = joined(engine, asked, slots)
    this.kernels = list.map(({ kernel }) => kernel)
    for (const kernel of this.kernels) kernel.pipeline ??= pipelines.pipeline(kernel)
    this.bound = list.map(({ binds }) => ({
      ...binds,
      group: pipelines.bindGroup(binds, gpu),
      next: undefined,
      follower: undefined,
    }))
    this.grids = Uint32Array.from(list.flatMap(({ grid }) => grid))
    this.uses = [...new Set<Used>(asked.flatMap(({ buffers }) => buffers)), this.#params]
  }

  get launches(): number {
    return this.kernels.length
  }

  run(): void {
    const engine = this.#engine
    engine.check('compile')
    if (this.#released) throw new ValueError('compile: what was released cannot run')
    if (this.#numbers.gather()) engine.write(this.#params, 0, this.#numbers.words)
    engine.encode(this)
  }

  release(): void {
    if (this.#released) return
    this.#released = true
    this.#engine.retire(this.#params)
    for (const buffer of this.#temporaries) this.#engine.pool.free(buffer)
  }
}
