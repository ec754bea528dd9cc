/**
 * What every GPU kernel works with: pipelines by key, parameters, and the order of things.
 *
 * Kernels are recorded into one command encoder and submitted in batches: a submission costs tens of microseconds, a
 * recorded dispatch two to four. A batch ends when it is full, when something is read, when the host writes to a
 * buffer that the batch uses (the queue would write before the batch runs), and when the program gives its event
 * loop a turn. Batches start small after every read, so that the GPU soon has work.
 *
 * Parameters of a batch lie in one uniform buffer at dynamic offsets, so that bind groups depend on buffers only and
 * are found again: making one costs as much as four dispatches. Since the queue keeps order, the next batch
 * can write the same uniform buffer.
 */

import { DeviceError, type DeviceSpan } from '@tilegrad/core'
import { BufferPool, type GpuBuffer, usage } from './buffers.ts'
import type { Gpu } from './gpu.ts'
import { type Shader, shaderCode } from './shader.ts'

/** A compiled kernel. */
export interface GpuKernel {
  readonly label: string
  readonly pipeline: GPUComputePipeline
  readonly layout: GPUBindGroupLayout
  /** Tells bind groups of different layouts apart. */
  readonly layoutId: number
  /** Bytes of its parameters. */
  readonly paramBytes: number
}

const paramSlot = 256
const paramSpace = 65536
const firstBatch = 16
const largestBatch = 256
const maxBindGroups = 4096
const queries = 2 * largestBatch

export class Engine {
  readonly gpu: Gpu
  readonly device: GPUDevice
  readonly pool: BufferPool
  /** Dispatches and submissions so far. */
  readonly counts = { dispatches: 0, submits: 0, bindGroups: 0 }

  readonly #kernels = new Map<string, GpuKernel>()
  readonly #layouts = new Map<
    string,
    { layout: GPUBindGroupLayout; pipeline: GPUPipelineLayout; id: number }
  >()
  #bindGroups = new Map<string, GPUBindGroup>()
  readonly #paramBuffer: GPUBuffer
  readonly #paramBytes = new ArrayBuffer(paramSpace)
  readonly #u32 = new Uint32Array(this.#paramBytes)
  readonly #f32 = new Float32Array(this.#paramBytes)
  #paramEnd = 0
  #encoder: GPUCommandEncoder | null = null
  #pass: GPUComputePassEncoder | null = null
  #batch = 0
  #inBatch = 0
  /** The operators of the batch. */
  #labels = new Set<string>()
  #batchSize = firstBatch
  #scheduled = false
  /** To be destroyed when the batch has been submitted. */
  #retired: GpuBuffer[] = []
  #failure: Error | null = null
  /** Up to this batch, commands use a buffer that there was no memory for: they are invalid, and that is known. */
  #brokenUntil = -1
  readonly #offset = [0]
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
        if (buffer.batch === this.#batch && this.#encoder) this.#retired.push(buffer)
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
    this.#paramBuffer = this.device.createBuffer({ size: paramSpace, usage: usage.UNIFORM | usage.COPY_DST })
  }

  /** The compiled kernel for `key`; `build` says on first use what it is. `label` names the operator in errors. */
  kernel(key: string, label: string, build: () => Shader): GpuKernel {
    let kernel = this.#kernels.get(key)
    if (!kernel) {
      kernel = this.#compile(label, build())
      this.#kernels.set(key, kernel)
    }
    return kernel
  }

  /**
   * Records a dispatch. `params`: one number per parameter, in order; those declared f32 go in `floats` by position.
   * `buffers` are in the order of the shader's bindings, and distinct if one of them is written.
   */
  run(
    kernel: GpuKernel,
    buffers: readonly GpuBuffer[],
    params: readonly number[],
    x: number,
    y = 1,
    z = 1,
    floats?: readonly (readonly [position: number, value: number])[],
  ): void {
    if (x === 0 || y === 0 || z === 0) return
    this.check(kernel.label)
    if (x > this.#maxGroups || y > this.#maxGroups || z > this.#maxGroups)
      throw new DeviceError(
        `${kernel.label}: needs ${x} × ${y} × ${z} workgroups; ${this.gpu.adapterName} allows ${this.#maxGroups} along each dim. Split its input`,
      )
    const slot = Math.max(paramSlot, Math.ceil(kernel.paramBytes / paramSlot) * paramSlot)
    if (this.#inBatch >= this.#batchSize || this.#paramEnd + slot > paramSpace) {
      this.flush()
      this.#batchSize = Math.min(largestBatch, 2 * this.#batchSize)
    }
    const at = this.#paramEnd
    this.#paramEnd += slot
    const word = at >>> 2
    for (let i = 0; i < params.length; i++) this.#u32[word + i] = params[i] as number
    if (floats) for (const [i, value] of floats) this.#f32[word + i] = value

    const pass = this.#open(kernel.label)
    pass.setPipeline(kernel.pipeline)
    this.#offset[0] = at
    pass.setBindGroup(0, this.#bindGroup(kernel, buffers), this.#offset)
    pass.dispatchWorkgroups(x, y, z)
    for (let i = 0; i < buffers.length; i++) (buffers[i] as GpuBuffer).batch = this.#batch
    this.#inBatch++
    this.#labels.add(kernel.label)
    this.counts.dispatches++
    if (this.#timing) this.#close()
    if (!this.#scheduled) {
      this.#scheduled = true
      queueMicrotask(() => {
        this.#scheduled = false
        if (!this.gpu.lostInfo) this.flush()
      })
    }
  }

  /** Copies bytes between buffers; offsets and size are multiples of 4. */
  copy(from: GpuBuffer, fromByte: number, to: GpuBuffer, toByte: number, bytes: number): void {
    this.check('copy')
    this.#close()
    this.#record().copyBufferToBuffer(from.gpu, fromByte, to.gpu, toByte, bytes)
    from.batch = to.batch = this.#batch
    this.#inBatch++
  }

  /** Host to GPU, in order with what is recorded. */
  write(buffer: GpuBuffer, byte: number, data: ArrayBufferView<ArrayBuffer>): void {
    this.check('write')
    if (buffer.batch === this.#batch && this.#encoder) this.flush()
    this.device.queue.writeBuffer(buffer.gpu, byte, data.buffer, data.byteOffset, data.byteLength)
  }

  /** GPU to host: a copy of `bytes` bytes, when all that was recorded before is done. */
  async read(buffer: GpuBuffer, byte: number, bytes: number): Promise<ArrayBuffer> {
    this.check('read')
    const size = Math.max(16, 2 ** Math.ceil(Math.log2(bytes)))
    const staging = this.#staging.get(size)?.pop() ?? this.#newStaging(size)
    this.#close()
    this.#record().copyBufferToBuffer(buffer.gpu, byte, staging, 0, bytes)
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
    const encoder = this.#encoder
    if (!encoder) return
    this.#close()
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
    if (this.#paramEnd > 0)
      this.device.queue.writeBuffer(this.#paramBuffer, 0, this.#paramBytes, 0, this.#paramEnd)
    this.device.pushErrorScope('validation')
    this.device.queue.submit([encoder.finish()])
    const labels = this.#labels
    this.#labels = new Set()
    this.#popErrors(
      (message) => `${[...labels].join(' or ')}: invalid on ${this.gpu.adapterName}: ${message}`,
    )
    this.#encoder = null
    this.#paramEnd = 0
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

  #record(): GPUCommandEncoder {
    this.#encoder ??= this.device.createCommandEncoder()
    return this.#encoder
  }

  #open(label: string): GPUComputePassEncoder {
    if (this.#pass) return this.#pass
    const timing = this.#timing
    if (timing) {
      const i = 2 * timing.labels.push(label) - 2
      const timestampWrites = {
        querySet: timing.set,
        beginningOfPassWriteIndex: i,
        endOfPassWriteIndex: i + 1,
      }
      this.#pass = this.#record().beginComputePass({ label, timestampWrites })
    } else this.#pass = this.#record().beginComputePass()
    return this.#pass
  }

  #close(): void {
    this.#pass?.end()
    this.#pass = null
  }

  #destroy(buffer: GpuBuffer): void {
    buffer.gpu.destroy()
  }

  #bindGroup(kernel: GpuKernel, buffers: readonly GpuBuffer[]): GPUBindGroup {
    let key = `${kernel.layoutId}`
    for (let i = 0; i < buffers.length; i++) key += `,${(buffers[i] as GpuBuffer).id}`
    let group = this.#bindGroups.get(key)
    if (!group) {
      // Old ones go first: buffers that are gone would be held by them.
      if (this.#bindGroups.size >= maxBindGroups) {
        this.#bindGroups = new Map([...this.#bindGroups].slice(maxBindGroups / 2))
      }
      const size = Math.max(16, kernel.paramBytes)
      this.device.pushErrorScope('validation')
      group = this.device.createBindGroup({
        label: kernel.label,
        layout: kernel.layout,
        entries: [
          { binding: 0, resource: { buffer: this.#paramBuffer, size } },
          ...buffers.map((buffer, i) => ({ binding: i + 1, resource: { buffer: buffer.gpu } })),
        ],
      })
      this.#popErrors((message) => `${kernel.label}: its buffers are invalid: ${message}`)
      this.#bindGroups.set(key, group)
      this.counts.bindGroups++
    }
    return group
  }

  #compile(label: string, shader: Shader): GpuKernel {
    const paramBytes = 16 * Math.max(1, Math.ceil(shader.params.length / 4))
    const most = this.gpu.limits.maxStorageBuffersPerShaderStage
    if (shader.bindings.length > most)
      throw new DeviceError(
        `${label}: needs ${shader.bindings.length} buffers at once; this GPU allows ${most}`,
      )
    const layout = this.#layout(paramBytes, shader.bindings.map((b) => (b.write ? 'w' : 'r')).join(''))
    this.device.pushErrorScope('validation')
    const module = this.device.createShaderModule({ label, code: shaderCode(shader) })
    const pipeline = this.device.createComputePipeline({
      label,
      layout: layout.pipeline,
      compute: { module, entryPoint: 'main' },
    })
    this.#popErrors((message) => `${label}: its kernel is invalid on ${this.gpu.adapterName}: ${message}`)
    return { label, pipeline, layout: layout.layout, layoutId: layout.id, paramBytes }
  }

  #layout(paramBytes: number, access: string) {
    const key = `${paramBytes}${access}`
    let known = this.#layouts.get(key)
    if (!known) {
      const layout = this.device.createBindGroupLayout({
        entries: [
          {
            binding: 0,
            visibility: 4,
            buffer: { type: 'uniform', hasDynamicOffset: true, minBindingSize: paramBytes },
          },
          ...[...access].map((a, i) => ({
            binding: i + 1,
            visibility: 4,
            buffer: { type: a === 'w' ? ('storage' as const) : ('read-only-storage' as const) },
          })),
        ],
      })
      const pipeline = this.device.createPipelineLayout({ bindGroupLayouts: [layout] })
      known = { layout, pipeline, id: this.#layouts.size }
      this.#layouts.set(key, known)
    }
    return known
  }
}
