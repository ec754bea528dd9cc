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
import { BufferPool, type GpuBuffer } from '../device/buffers.ts'
import type { Gpu } from '../device/gpu.ts'
import { type Tuning, untuned } from '../device/tuning.ts'
import type { Scalar } from '../wgsl/block.ts'
import { elements, laneOf } from '../wgsl/element.ts'
import type { Shader } from '../wgsl/shader.ts'
import type { Grid, KernelListener, Ready, Repeated, Used } from './dispatch.ts'
import { Params } from './params.ts'
import { type Bound, type GpuKernel, Pipelines } from './pipelines.ts'
import { Staging } from './staging.ts'
import { Timing } from './timing.ts'

/** Dispatches of the first batch after a read: few, so that the GPU soon has work. */
const firstBatch = 16
/** Dispatches of the first batch of a prepared run: more, as they take a quarter of the host's time. */
const firstReady = 32
const largestBatch = 256

export class Engine {
  readonly gpu: Gpu
  readonly device: GPUDevice
  readonly pool: BufferPool
  readonly pipelines: Pipelines
  /** What plans go by; it must not change once something has run, as calls are remembered. */
  tuning: Tuning = untuned
  /** Dispatches and submissions so far. */
  readonly counts = { dispatches: 0, submits: 0 }

  readonly #params: Params
  readonly #staging: Staging
  #listener: KernelListener | null = null
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
  #retired: Used[] = []
  /** Kernels that were made ready and are in the batch, for errors. */
  #ready: (readonly GpuKernel[])[] = []
  #failure: Error | null = null
  /** Up to this batch, commands use a buffer that there was no memory for: they are invalid, and that is known. */
  #brokenUntil = -1
  readonly #maxGroups: number

  #timing: Timing | null = null

  /** `holders` says who holds the memory when there is no more. */
  constructor(gpu: Gpu, maxPooledBytes: number | undefined, holders: () => string) {
    this.gpu = gpu
    this.device = gpu.device
    this.#maxGroups = gpu.limits.maxComputeWorkgroupsPerDimension
    this.pool = new BufferPool(gpu, maxPooledBytes, {
      retire: (buffer) => this.retire(buffer),
      exhausted: (error) => {
        // What is kept for later may be all that is missing.
        this.pool.trim()
        this.#brokenUntil = this.#batch
        this.#failure ??= error
      },
      holders,
    })
    this.#params = new Params(this.device)
    this.#staging = new Staging(gpu)
    this.pipelines = new Pipelines(gpu, this.#params.buffer, (describe) => this.#popErrors(describe))
  }

  /** The compiled kernel for `key`; `build` says on first use what it is. `label` names the operator in errors. */
  kernel<V>(key: string, label: string, build: () => Shader<V>): GpuKernel<V> {
    return this.pipelines.kernel(key, label, build)
  }

  /** Who hears of what a kernel does, if anyone. */
  get listener(): KernelListener | null {
    return this.#listener
  }

  set listener(listener: KernelListener | null) {
    this.#listener = this.pool.listener = listener
  }

  /** Bind groups made so far: flat in a loop that repeats itself. */
  get bindGroups(): number {
    return this.pipelines.bindGroups
  }

  /**
   * Records a dispatch of so many workgroups. `buffers` are in the order of the shader's bindings, and distinct if one of
   * them is written; `values` are those of the parameters, by name. `numbers`, if any, are the call's.
   */
  run<V>(
    kernel: GpuKernel<V>,
    buffers: readonly GpuBuffer[],
    values: NoInfer<V>,
    [x, y = 1, z = 1]: readonly [x: number, y?: number, z?: number],
    numbers: readonly number[] = [],
  ): void {
    if (x === 0 || y === 0 || z === 0) return
    const { u32, scalars } = kernel.params.words(values)
    this.dispatch(kernel, buffers, u32, [x, y, z], scalars, numbers)
  }

  /** Records a dispatch whose parameters are `words`, but for `scalars`, which are numbers of the call's in `values`. */
  dispatch(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    words: Uint32Array,
    grid: Grid,
    scalars: readonly Scalar[],
    values: readonly number[],
  ): void {
    const [x, y, z] = grid
    this.#allow(kernel, x, y, z)
    if (this.#listener?.run(kernel, buffers, words, grid, scalars, values)) return
    this.#makeRoom(kernel)
    const at = this.#params.next(kernel.paramBytes)
    this.#params.u32.set(words, at >>> 2)
    this.#writeScalars(at, scalars, values)
    this.#add(kernel, buffers, at, x, y, z)
  }

  /** Records a dispatch that has been there before. */
  runAgain(step: Repeated, buffers: readonly GpuBuffer[], values: readonly number[]): void {
    const { kernel, words, grid, scalars } = step
    const [x, y, z] = grid
    this.check(kernel.label)
    this.#makeRoom(kernel)
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
      const { at, source, dtype } = scalars[i]
      elements[laneOf(dtype)].put(values[source], word + at, f32, u32)
    }
  }

  #allow(kernel: GpuKernel, x: number, y: number, z: number): void {
    this.check(kernel.label)
    if (x > this.#maxGroups || y > this.#maxGroups || z > this.#maxGroups)
      throw new DeviceError(
        `${kernel.label}: needs ${x} × ${y} × ${z} workgroups; ${this.gpu.adapterName} allows ${this.#maxGroups} along each dim. Split its input`,
      )
  }

  /** Ends the batch if a dispatch does not fit any more. */
  #makeRoom(kernel: GpuKernel): void {
    if (this.#inBatch >= this.#batchSize || !this.#params.fits(kernel.paramBytes)) this.#next()
  }

  /** Ends a batch that is full: the next one may be larger. */
  #next(): void {
    this.flush()
    this.#batchSize = Math.min(largestBatch, 2 * this.#batchSize)
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
    this.#bound[i] = this.pipelines.bind(kernel, buffers, slot, -1)
    this.#kernels.push(kernel)
    this.#grids[3 * i] = x
    this.#grids[3 * i + 1] = y
    this.#grids[3 * i + 2] = z
    for (let j = 0; j < buffers.length; j++) buffers[j].batch = this.#batch
    this.#inBatch++
    this.counts.dispatches++
    if (!this.#scheduled) this.#schedule()
  }

  /** Ends the batch when the program gives its event loop a turn. */
  #schedule(): void {
    this.#scheduled = true
    queueMicrotask(() => {
      this.#scheduled = false
      if (!this.gpu.lostInfo) this.flush()
    })
  }

  /** Makes a dispatch a part of the one before, where they can go side by side: see joined.ts. */
  #join(kernel: GpuKernel, buffers: readonly GpuBuffer[], slot: number, x: number): boolean {
    const i = this.#kernels.length - 1
    // What is timed is timed by itself.
    if (i < this.#encoded || this.#timing) return false
    const first = this.#kernels[i]
    if (!first.joins || !kernel.joins) return false
    const grids = this.#grids
    if (grids[3 * i + 1] !== 1 || grids[3 * i + 2] !== 1) return false
    const all = grids[3 * i] + x
    const bound = this.#bound[i]
    const joined = this.pipelines.joined(first, bound.buffers, kernel, buffers, all)
    if (!joined) return false
    this.#kernels[i] = joined
    this.#bound[i] = this.pipelines.bind(joined, [...bound.buffers, ...buffers], bound.slot, slot)
    grids[3 * i] = all
    for (let j = 0; j < buffers.length; j++) buffers[j].batch = this.#batch
    return true
  }

  /** Copies bytes between buffers; offsets and size are multiples of 4. */
  copy(from: GpuBuffer, fromByte: number, to: GpuBuffer, toByte: number, bytes: number): void {
    this.check('copy')
    this.#listener?.other('copies bytes')
    this.#encode().copyBufferToBuffer(from.gpu, fromByte, to.gpu, toByte, bytes)
    from.batch = to.batch = this.#batch
    this.#inBatch++
  }

  /** Host to GPU, in order with what is recorded. */
  write(buffer: Used, byte: number, data: ArrayBufferView): void {
    this.check('write')
    this.#listener?.other('writes bytes of the host')
    if (buffer.batch === this.#batch) this.flush()
    const memory = data.buffer as ArrayBuffer
    this.device.queue.writeBuffer(buffer.gpu, byte, memory, data.byteOffset, data.byteLength)
  }

  /** GPU to host: a copy of `bytes` bytes, when all that was recorded before is done. */
  async read(buffer: GpuBuffer, byte: number, bytes: number): Promise<ArrayBuffer> {
    this.check('read')
    const staging = this.#staging.take(bytes)
    this.#encode().copyBufferToBuffer(buffer.gpu, byte, staging, 0, bytes)
    this.flush()
    this.#batchSize = firstBatch
    const data = await this.#staging.read(staging, bytes)
    this.check('read')
    return data
  }

  /** Submits what was recorded. */
  flush(): void {
    if (!this.#encoder && this.#kernels.length === 0) return
    const encoder = this.#encode()
    const submitted = this.#timing?.resolve(encoder)
    this.#params.flush()
    this.device.pushErrorScope('validation')
    this.device.queue.submit([encoder.finish()])
    const kernels = this.#kernels
    const ready = this.#ready
    this.#kernels = []
    this.#encoded = 0
    if (ready.length > 0) this.#ready = []
    this.#popErrors((message) => {
      const labels = new Set([kernels, ...ready].flat().map(({ label }) => label))
      return `${[...labels].join(' or ')}: invalid on ${this.gpu.adapterName}: ${message}`
    })
    this.#encoder = null
    this.#inBatch = 0
    this.#batch++
    this.counts.submits++
    for (const { gpu } of this.#retired) gpu.destroy()
    this.#retired = []
    submitted?.()
  }

  /** Destroys a buffer once nothing recorded uses it any more. */
  retire(buffer: Used): void {
    if (buffer.batch === this.#batch) this.#retired.push(buffer)
    else buffer.gpu.destroy()
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
    this.#timing = new Timing(this.gpu, largestBatch)
    return true
  }

  /** Dispatches since `startTiming`. */
  timed(): number {
    return (this.#timing?.count ?? 0) + this.#kernels.length - this.#encoded
  }

  /** Every dispatch since `startTiming`, in order. */
  async stopTiming(): Promise<readonly DeviceSpan[]> {
    this.flush()
    const timing = this.#timing
    this.#timing = null
    return timing ? timing.stop() : []
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
    const end = this.#kernels.length
    if (this.#encoded < end) {
      this.#pass(this.#encoder, this.#kernels, this.#bound, this.#grids, this.#encoded, end)
      this.#encoded = end
    }
    return this.#encoder
  }

  /** Encodes dispatches that were made ready, after all that was recorded. */
  encode({ kernels, bound, grids, uses }: Ready): void {
    const count = kernels.length
    this.#batchSize = Math.max(firstReady, this.#batchSize)
    for (let i = 0; i < count; ) {
      if (this.#inBatch >= this.#batchSize) this.#next()
      const end = Math.min(count, i + this.#batchSize - this.#inBatch)
      this.#pass(this.#encode(), kernels, bound, grids, i, end)
      this.#inBatch += end - i
      this.#ready.push(kernels)
      i = end
    }
    for (let i = 0; i < uses.length; i++) uses[i].batch = this.#batch
    this.counts.dispatches += count
    if (!this.#scheduled) this.#schedule()
  }

  #pass(
    encoder: GPUCommandEncoder,
    kernels: readonly GpuKernel[],
    bound: readonly Bound[],
    grids: Uint32Array,
    from: number,
    end: number,
  ): void {
    const timing = this.#timing
    let pass: GPUComputePassEncoder | null = null
    let pipeline: GPUComputePipeline | null = null
    for (let i = from; i < end; i++) {
      const kernel = kernels[i]
      if (timing) {
        pass?.end()
        pass = timing.pass(encoder, kernel.label)
        pipeline = null
      }
      pass ??= encoder.beginComputePass()
      const own = kernel.pipeline ?? this.pipelines.pipeline(kernel)
      if (own !== pipeline) {
        pipeline = own
        pass.setPipeline(pipeline)
      }
      const binds = bound[i]
      pass.setBindGroup(0, binds.group ?? this.pipelines.group(binds))
      const x = grids[3 * i]
      const y = grids[3 * i + 1]
      const z = grids[3 * i + 2]
      // Every argument costs.
      if (y === 1 && z === 1) pass.dispatchWorkgroups(x)
      else pass.dispatchWorkgroups(x, y, z)
    }
    pass?.end()
  }
}
