/**
 * What every GPU kernel works with: pipelines by key, parameters, and the order of things.
 *
 * Kernels are recorded and submitted in batches: a submission costs tens of microseconds. The calls of WebGPU that a
 * dispatch takes are made where the batch ends, in one loop: among other code, which takes the caches for itself, they
 * cost twice as much. A batch ends when it is full, when something is read, when the host writes to a
 * buffer that the batch uses (the queue would write before the batch runs), and when the program gives its event
 * loop a turn. Batches start small after every read, so that the GPU soon has work.
 *
 * Bind groups are found again: making one costs as much as four dispatches. Parameters: see params.ts.
 */

import { DeviceError, type DeviceSpan } from '@tilegrad/core'
import { BufferPool, type GpuBuffer, usage } from '../device/buffers.ts'
import type { Gpu } from '../device/gpu.ts'
import { type Tuning, untuned } from '../device/tuning.ts'
import { elementOf } from '../wgsl/element.ts'
import type { Shader } from '../wgsl/shader.ts'
import { independent } from './joined.ts'
import { Params } from './params.ts'
import { type Bound, type GpuKernel, Pipelines } from './pipelines.ts'
import type { Dispatch, Recorder, Scalar } from './replay.ts'

const firstBatch = 16
const largestBatch = 256
const queries = 2 * largestBatch
/** Workgroups of two dispatches that become one; with more, their calls are not what takes the time. */
const mostJoined = 512

export class Engine {
  readonly gpu: Gpu
  readonly device: GPUDevice
  readonly pool: BufferPool
  /** What plans go by; it must not change once something has run, as calls are remembered. */
  tuning: Tuning = untuned
  /** Dispatches and submissions so far. */
  readonly counts = { dispatches: 0, submits: 0 }

  readonly #pipelines: Pipelines
  readonly #params: Params
  #encoder: GPUCommandEncoder | null = null
  #batch = 0
  #inBatch = 0
  /** The dispatches of the batch: kernel, what it binds, and three numbers each: x, y, z. */
  #kernels: GpuKernel[] = []
  readonly #bound: Bound[] = []
  readonly #grids = new Uint32Array(3 * largestBatch)
  /** So many of them the encoder has. */
  #encoded = 0
  #batchSize = firstBatch
  #scheduled = false
  /** To be destroyed when the batch has been submitted. */
  #retired: GpuBuffer[] = []
  #failure: Error | null = null
  /** Up to this batch, commands use a buffer that there was no memory for: they are invalid, and that is known. */
  #brokenUntil = -1
  readonly #maxGroups: number

  #spans: DeviceSpan[] | null = null
  /** When the first dispatch that was timed began, by the GPU's clock, in nanoseconds. */
  #origin: bigint | null = null
  #timing: { set: GPUQuerySet; resolve: GPUBuffer; labels: string[] } | null = null
  readonly #timed: Promise<void>[] = []

  /** `holders` says who holds the memory when there is no more. */
  constructor(gpu: Gpu, maxPooledBytes: number | undefined, holders: () => string) {
    this.gpu = gpu
    this.device = gpu.device
    this.#maxGroups = gpu.limits.maxComputeWorkgroupsPerDimension
    this.pool = new BufferPool(gpu, maxPooledBytes, {
      retire: (buffer) => {
        if (buffer.batch === this.#batch) this.#retired.push(buffer)
        else this.#destroy(buffer)
      },
      exhausted: (error) => {
        // What is kept for later may be all that is missing.
        this.pool.trim()
        this.#brokenUntil = this.#batch
        this.#failure ??= error
      },
      holders,
    })
    this.#params = new Params(this.device)
    this.#pipelines = new Pipelines(gpu, this.#params.buffer, (describe) => this.#popErrors(describe))
  }

  /** The compiled kernel for `key`; `build` says on first use what it is. `label` names the operator in errors. */
  kernel(key: string, label: string, build: () => Shader): GpuKernel {
    return this.#pipelines.kernel(key, label, build)
  }

  /** Listens to a kernel; see commands/replay.ts. */
  get recorder(): Recorder | null {
    return this.pool.recorder
  }

  set recorder(recorder: Recorder | null) {
    this.pool.recorder = recorder
  }

  /** Bind groups made so far: flat in a loop that repeats itself. */
  get bindGroups(): number {
    return this.#pipelines.bindGroups
  }

  /**
   * Records a dispatch. `params`: one number per parameter, in order; those declared f32 go in `floats` by position.
   * `buffers` are in the order of the shader's bindings, and distinct if one of them is written. `scalars`, if any, are
   * the parameters that are numbers of the call's, all in `values`.
   */
  run(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    params: readonly number[],
    x: number,
    y = 1,
    z = 1,
    floats?: readonly (readonly [position: number, value: number])[],
    scalars: readonly Scalar[] = [],
    values: readonly number[] = [],
  ): void {
    if (x === 0 || y === 0 || z === 0) return
    this.#makeRoom(kernel, x, y, z)
    const { u32, f32 } = this.#params
    const at = this.#params.next(kernel.paramBytes)
    const word = at >>> 2
    for (let i = 0; i < params.length; i++) u32[word + i] = params[i] as number
    if (floats) for (const [i, value] of floats) f32[word + i] = value
    this.recorder?.run(kernel, buffers, u32.slice(word, word + params.length), [x, y, z], scalars)
    this.#writeScalars(at, scalars, values)
    this.#add(kernel, buffers, at, x, y, z)
  }

  /** The same again, as recorded. */
  runAgain(step: Dispatch, buffers: readonly GpuBuffer[], values: readonly number[]): void {
    const { kernel, words, grid, scalars } = step
    const [x, y, z] = grid
    this.#makeRoom(kernel, x, y, z)
    let at: number
    if (scalars.length > 0) {
      at = this.#params.next(kernel.paramBytes)
      this.#params.u32.set(words, at >>> 2)
      this.#writeScalars(at, scalars, values)
    } else {
      at = this.#params.lasting(step, kernel.paramBytes)
      if (at < 0) {
        this.flush()
        this.#params.startOver()
        at = this.#params.lasting(step, kernel.paramBytes)
      }
    }
    this.#add(kernel, buffers, at, x, y, z)
  }

  #writeScalars(slot: number, scalars: readonly Scalar[], values: readonly number[]): void {
    const { u32, f32 } = this.#params
    const word = slot >>> 2
    for (let i = 0; i < scalars.length; i++) {
      const { at, source, dtype } = scalars[i] as Scalar
      elementOf(dtype).put(values[source] as number, word + at, f32, u32)
    }
  }

  /** Ends the batch if a dispatch does not fit any more. */
  #makeRoom(kernel: GpuKernel, x: number, y: number, z: number): void {
    this.check(kernel.label)
    if (x > this.#maxGroups || y > this.#maxGroups || z > this.#maxGroups)
      throw new DeviceError(
        `${kernel.label}: needs ${x} × ${y} × ${z} workgroups; ${this.gpu.adapterName} allows ${this.#maxGroups} along each dim. Split its input`,
      )
    if (this.#inBatch >= this.#batchSize || !this.#params.fits(kernel.paramBytes)) {
      this.flush()
      this.#batchSize = Math.min(largestBatch, 2 * this.#batchSize)
    }
  }

  /** A dispatch whose parameters lie at `slot`. */
  #add(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    slot: number,
    x: number,
    y: number,
    z: number,
  ): void {
    if (kernel.joins && y === 1 && z === 1 && this.#join(kernel, buffers, slot, x)) return
    const i = this.#kernels.length
    this.#bound[i] = this.#pipelines.bind(kernel, buffers, slot, -1)
    this.#kernels.push(kernel)
    this.#grids[3 * i] = x
    this.#grids[3 * i + 1] = y
    this.#grids[3 * i + 2] = z
    for (let j = 0; j < buffers.length; j++) (buffers[j] as GpuBuffer).batch = this.#batch
    this.#inBatch++
    this.counts.dispatches++
    this.#timing?.labels.push(kernel.label)
    if (!this.#scheduled) {
      this.#scheduled = true
      queueMicrotask(() => {
        this.#scheduled = false
        if (!this.gpu.lostInfo) this.flush()
      })
    }
  }

  /** Makes a dispatch a part of the one before, where they can go side by side: see joined.ts. */
  #join(kernel: GpuKernel, buffers: readonly GpuBuffer[], slot: number, x: number): boolean {
    const i = this.#kernels.length - 1
    // What is timed is timed by itself.
    if (i < this.#encoded || this.#timing) return false
    const first = this.#kernels[i] as GpuKernel
    if (!first.joins || !kernel.joins) return false
    const grids = this.#grids
    const all = (grids[3 * i] as number) + x
    if (all > mostJoined || grids[3 * i + 1] !== 1 || grids[3 * i + 2] !== 1) return false
    const bound = this.#bound[i] as Bound
    if (!independent(first.joins.shader, bound.buffers, kernel.joins.shader, buffers)) return false
    const joined = this.#pipelines.joined(first, kernel)
    if (!joined) return false
    this.#kernels[i] = joined
    this.#bound[i] = this.#pipelines.bind(joined, [...bound.buffers, ...buffers], bound.slot, slot)
    grids[3 * i] = all
    for (let j = 0; j < buffers.length; j++) (buffers[j] as GpuBuffer).batch = this.#batch
    return true
  }

  /** Copies bytes between buffers; offsets and size are multiples of 4. */
  copy(from: GpuBuffer, fromByte: number, to: GpuBuffer, toByte: number, bytes: number): void {
    this.check('copy')
    if (this.recorder) this.recorder.complete = false
    this.#encode().copyBufferToBuffer(from.gpu, fromByte, to.gpu, toByte, bytes)
    from.batch = to.batch = this.#batch
    this.#inBatch++
  }

  /** Host to GPU, in order with what is recorded. */
  write(buffer: GpuBuffer, byte: number, data: ArrayBufferView): void {
    this.check('write')
    if (this.recorder) this.recorder.complete = false
    if (buffer.batch === this.#batch) this.flush()
    const memory = data.buffer as ArrayBuffer
    this.device.queue.writeBuffer(buffer.gpu, byte, memory, data.byteOffset, data.byteLength)
  }

  /** GPU to host: a copy of `bytes` bytes, when all that was recorded before is done. */
  async read(buffer: GpuBuffer, byte: number, bytes: number): Promise<ArrayBuffer> {
    this.check('read')
    const size = Math.max(16, 2 ** Math.ceil(Math.log2(bytes)))
    const staging = this.#staging.get(size)?.pop() ?? this.#newStaging(size)
    this.#encode().copyBufferToBuffer(buffer.gpu, byte, staging, 0, bytes)
    this.flush()
    this.#batchSize = firstBatch
    await this.gpu.answer('read', staging.mapAsync(1, 0, bytes))
    const data = staging.getMappedRange(0, bytes).slice(0)
    staging.unmap()
    const list = this.#staging.get(size)
    if (!list) this.#staging.set(size, [staging])
    else if (list.length < 4) list.push(staging)
    else staging.destroy()
    this.check('read')
    return data
  }

  readonly #staging = new Map<number, GPUBuffer[]>()

  #newStaging(size: number): GPUBuffer {
    return this.device.createBuffer({ size, usage: usage.MAP_READ | usage.COPY_DST })
  }

  /** Submits what was recorded. */
  flush(): void {
    if (!this.#encoder && this.#kernels.length === 0) return
    const encoder = this.#encode()
    const timing = this.#timing
    let pending: { buffer: GPUBuffer; labels: string[] } | null = null
    if (timing && timing.labels.length > 0) {
      const bytes = 16 * timing.labels.length
      const staging = this.#newStaging(bytes)
      encoder.resolveQuerySet(timing.set, 0, 2 * timing.labels.length, timing.resolve, 0)
      encoder.copyBufferToBuffer(timing.resolve, 0, staging, 0, bytes)
      pending = { buffer: staging, labels: timing.labels }
      timing.labels = []
    }
    this.#params.flush()
    this.device.pushErrorScope('validation')
    this.device.queue.submit([encoder.finish()])
    const kernels = this.#kernels
    this.#kernels = []
    this.#encoded = 0
    this.#popErrors((message) => {
      const labels = new Set(kernels.map(({ label }) => label))
      return `${[...labels].join(' or ')}: invalid on ${this.gpu.adapterName}: ${message}`
    })
    this.#encoder = null
    this.#inBatch = 0
    this.#batch++
    this.counts.submits++
    for (const buffer of this.#retired) this.#destroy(buffer)
    this.#retired = []
    if (pending) this.#timed.push(this.#collect(pending.buffer, pending.labels))
  }

  /** Resolves when the GPU has done all that was recorded. */
  async finished(): Promise<void> {
    this.flush()
    await this.gpu.answer('wait', this.device.queue.onSubmittedWorkDone())
    this.check('wait')
  }

  /** Throws what went wrong since the last check: a lost device, an invalid kernel. */
  check(operation: string): void {
    if (this.gpu.lostInfo) this.gpu.check(operation)
    if (this.#failure) {
      const error = this.#failure
      this.#failure = null
      throw error
    }
  }

  /** Something asynchronous went wrong: whoever comes next is told. */
  fail(message: string): void {
    this.#failure ??= new DeviceError(message)
  }

  /** From now on the time of every dispatch is measured, which keeps them from overlapping. False: not possible now. */
  startTiming(): boolean {
    if (!this.gpu.timestamps || this.#timing) return false
    this.flush()
    this.#spans = []
    this.#origin = null
    this.#timing = {
      set: this.device.createQuerySet({ type: 'timestamp', count: queries }),
      resolve: this.device.createBuffer({ size: 8 * queries, usage: usage.QUERY_RESOLVE | usage.COPY_SRC }),
      labels: [],
    }
    return true
  }

  /** Dispatches since `startTiming`. */
  timed(): number {
    return (this.#spans?.length ?? 0) + (this.#timing?.labels.length ?? 0)
  }

  /** Every dispatch since `startTiming`, in order. */
  async stopTiming(): Promise<readonly DeviceSpan[]> {
    this.flush()
    const timing = this.#timing
    this.#timing = null
    await Promise.all(this.#timed.splice(0))
    timing?.set.destroy()
    timing?.resolve.destroy()
    const spans = this.#spans ?? []
    this.#spans = null
    return spans
  }

  async #collect(buffer: GPUBuffer, labels: readonly string[]): Promise<void> {
    const spans = this.#spans
    const first = spans?.length ?? 0
    for (const label of labels) spans?.push({ label, start: 0, ms: 0 })
    await this.gpu.answer('profile', buffer.mapAsync(1))
    const ns = new BigInt64Array(buffer.getMappedRange())
    labels.forEach((label, i) => {
      const [from, to] = [ns[2 * i] as bigint, ns[2 * i + 1] as bigint]
      this.#origin ??= from
      if (spans)
        spans[first + i] = { label, start: Number(from - this.#origin) / 1e6, ms: Number(to - from) / 1e6 }
    })
    buffer.destroy()
  }

  /** Ends an error scope: what it caught is told to whoever comes next. */
  #popErrors(describe: (message: string) => string): void {
    const batch = this.#batch
    this.device.popErrorScope().then(
      (error) => {
        if (error && batch > this.#brokenUntil) this.fail(describe(error.message))
      },
      () => {}, // The device is lost, which is told elsewhere.
    )
  }

  /** The batch's encoder, with all dispatches so far. */
  #encode(): GPUCommandEncoder {
    this.#encoder ??= this.device.createCommandEncoder()
    const encoder = this.#encoder
    const timing = this.#timing
    const grids = this.#grids
    let pass: GPUComputePassEncoder | null = null
    let pipeline: GPUComputePipeline | null = null
    for (let i = this.#encoded; i < this.#kernels.length; i++) {
      const kernel = this.#kernels[i] as GpuKernel
      if (timing) {
        pass?.end()
        pass = encoder.beginComputePass({
          label: kernel.label,
          timestampWrites: {
            querySet: timing.set,
            beginningOfPassWriteIndex: 2 * i,
            endOfPassWriteIndex: 2 * i + 1,
          },
        })
        pipeline = null
      }
      pass ??= encoder.beginComputePass()
      const own = kernel.pipeline ?? this.#pipelines.pipeline(kernel)
      if (own !== pipeline) {
        pipeline = own
        pass.setPipeline(pipeline)
      }
      const bound = this.#bound[i] as Bound
      pass.setBindGroup(0, bound.group ?? this.#pipelines.group(bound))
      const x = grids[3 * i] as number
      const y = grids[3 * i + 1] as number
      const z = grids[3 * i + 2] as number
      // Every argument costs.
      if (y === 1 && z === 1) pass.dispatchWorkgroups(x)
      else pass.dispatchWorkgroups(x, y, z)
    }
    pass?.end()
    this.#encoded = this.#kernels.length
    return encoder
  }

  #destroy(buffer: GpuBuffer): void {
    buffer.gpu.destroy()
  }
}
