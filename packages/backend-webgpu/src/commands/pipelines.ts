/** Kernels by key, compiled, and what binds buffers to them. */

import { DeviceError } from '@tilegrad/core'
import type { GpuBuffer } from '../device/buffers.ts'
import type { Gpu } from '../device/gpu.ts'
import type { Block } from '../wgsl/block.ts'
import { withOwnHalves } from '../wgsl/math.ts'
import { type Binding, type Shader, shaderCode } from '../wgsl/shader.ts'
import { canJoin, independent, joinedCode } from './joined.ts'

/** A compiled kernel; V are the values that its parameters are given as, `never` where nobody gives any. */
export interface GpuKernel<V = never> {
  readonly label: string
  readonly params: Block<V>
  /** Null until it is encoded, if it may be joined with others: maybe it never runs by itself. */
  pipeline: GPUComputePipeline | null
  readonly layout: Layout
  /** Bytes of its parameters. */
  readonly paramBytes: number
  readonly joins: Joins | null
}

/** What it takes to join a kernel with another. */
interface Joins {
  readonly shader: Shader
  /** It and what comes after it as one kernel; null: that cannot be. */
  readonly with: Map<GpuKernel, GpuKernel | null>
}

interface Layout {
  readonly id: number
  readonly group: GPUBindGroupLayout
  readonly pipeline: GPUPipelineLayout
  /** Bytes of the parameters, and of a second kernel's. */
  readonly paramBytes: number
  readonly secondBytes: number
}

/** What a dispatch binds. */
export interface Binds {
  readonly label: string
  readonly layout: Layout
  /** Where its parameters lie, in bytes. */
  readonly slot: number
  /** Where a second kernel's parameters lie, or −1. */
  readonly second: number
  readonly buffers: readonly GpuBuffer[]
}

/** What a dispatch binds, which it is found by, and the bind group once there is one. */
export interface Bound extends Binds {
  group: GPUBindGroup | null
  /** Another one of the same hash. */
  readonly next: Bound | undefined
  /** What was asked for after it last time, and is likely to be again. */
  follower: Bound | undefined
}

const maxBindGroups = 4096
/** Workgroups of two dispatches that become one; with more, their calls are not what takes the time. */
const mostJoined = 512

export class Pipelines {
  readonly #gpu: Gpu
  /** The GPU's conversions to float16 are known to round to the nearest even number. */
  readonly #ownHalves: boolean
  readonly #params: GPUBuffer
  readonly #popErrors: (describe: (message: string) => string) => void
  readonly #kernels = new Map<string, GpuKernel>()
  readonly #layouts = new Map<string, Layout>()
  #bound = new Map<number, Bound>()
  #last: Bound | undefined
  /** Bind groups made so far: flat in a loop that repeats itself. */
  bindGroups = 0

  /** `params` holds the kernels' parameters; `popErrors` ends a scope of validation errors. */
  constructor(gpu: Gpu, params: GPUBuffer, popErrors: (describe: (message: string) => string) => void) {
    this.#gpu = gpu
    this.#ownHalves = gpu.features.has('shader-f16') && gpu.info.vendor === 'nvidia'
    this.#params = params
    this.#popErrors = popErrors
  }

  /** The kernel for `key`; `build` says on first use what it is. `label` names the operator in errors. */
  kernel<V>(key: string, label: string, build: () => Shader<V>): GpuKernel<V> {
    let kernel = this.#kernels.get(key)
    if (!kernel) {
      kernel = this.#make(label, build())
      this.#kernels.set(key, kernel)
    }
    // A key names one kernel.
    return kernel as GpuKernel<V>
  }

  /** Two kernels on some buffers as one with so many workgroups, or null where they cannot go side by side. */
  joined(
    first: GpuKernel,
    itsBuffers: readonly GpuBuffer[],
    second: GpuKernel,
    buffers: readonly GpuBuffer[],
    groups: number,
  ): GpuKernel | null {
    if (!first.joins || !second.joins || groups > mostJoined) return null
    if (!independent(first.joins.shader, itsBuffers, second.joins.shader, buffers)) return null
    const known = first.joins.with.get(second)
    if (known !== undefined) return known
    const kernel = this.#join(first, first.joins.shader, second, second.joins.shader)
    first.joins.with.set(second, kernel)
    return kernel
  }

  #join(first: GpuKernel, a: Shader, second: GpuKernel, b: Shader): GpuKernel | null {
    if (!canJoin(a, b, this.#gpu.limits.maxStorageBuffersPerShaderStage)) return null
    const label = first.label === second.label ? first.label : `${first.label} and ${second.label}`
    const layout = this.#layout(first.paramBytes, [...a.bindings, ...b.bindings], second.paramBytes)
    const pipeline = this.#compile(label, layout, joinedCode(a, b))
    return { label, params: first.params, pipeline, layout, paramBytes: first.paramBytes, joins: null }
  }

  /** The pipeline of a kernel that has not run by itself so far. */
  pipeline(kernel: GpuKernel): GPUComputePipeline {
    const { shader } = kernel.joins as Joins
    kernel.pipeline = this.#compile(kernel.label, kernel.layout, shaderCode(shader))
    return kernel.pipeline
  }

  /** Binds buffers, parameters that lie at `slot`, and at `second` those of a second kernel, if it is two. */
  bind(kernel: GpuKernel, buffers: readonly GpuBuffer[], slot: number, second: number): Bound {
    let bound = this.#last?.follower
    if (!bound || !binds(bound, kernel.layout, slot, second, buffers)) {
      bound = this.#find(kernel, buffers, slot, second)
      if (this.#last) this.#last.follower = bound
    }
    this.#last = bound
    return bound
  }

  #find({ label, layout }: GpuKernel, buffers: readonly GpuBuffer[], slot: number, second: number): Bound {
    let hash = Math.imul(layout.id ^ slot, 0x9e3779b1) ^ second
    for (let i = 0; i < buffers.length; i++) {
      hash = Math.imul(hash ^ buffers[i].id, 0x9e3779b1)
      hash ^= hash >>> 15
    }
    const first = this.#bound.get(hash)
    for (let bound = first; bound; bound = bound.next)
      if (binds(bound, layout, slot, second, buffers)) return bound

    // Old ones go first: buffers that are gone would be held by them.
    if (this.#bound.size >= maxBindGroups) this.#evict()
    const made: Bound = {
      group: null,
      label,
      layout,
      slot,
      second,
      buffers: buffers.slice(),
      next: this.#bound.get(hash),
      follower: undefined,
    }
    this.#bound.set(hash, made)
    return made
  }

  /** Makes the bind group, before it is used first: what is joined with another needs none of its own. */
  group(bound: Bound): GPUBindGroup {
    bound.group = this.bindGroup(bound, this.#params)
    return bound.group
  }

  /** Makes a bind group with parameters in `memory`. */
  bindGroup({ label, layout, slot, second, buffers }: Binds, memory: GPUBuffer): GPUBindGroup {
    const params = (binding: number, offset: number, size: number): GPUBindGroupEntry => ({
      binding,
      resource: { buffer: memory, offset, size },
    })
    const entries = [
      params(0, slot, layout.paramBytes),
      ...buffers.map((buffer, i) => ({ binding: i + 1, resource: { buffer: buffer.gpu } })),
    ]
    if (second >= 0) entries.push(params(entries.length, second, layout.secondBytes))
    this.#gpu.device.pushErrorScope('validation')
    const group = this.#gpu.device.createBindGroup({ label, layout: layout.group, entries })
    this.#popErrors((message) => `${label}: its buffers are invalid: ${message}`)
    this.bindGroups++
    return group
  }

  #evict(): void {
    const all = [...this.#bound]
    // What still points to them must not hold what came after.
    for (const [, old] of all.splice(0, maxBindGroups / 2))
      for (let bound: Bound | undefined = old; bound; bound = bound.next) bound.follower = undefined
    this.#bound = new Map(all)
  }

  #make(label: string, shader: Shader): GpuKernel {
    const paramBytes = 16 * Math.max(1, Math.ceil(shader.params.fields.length / 4))
    const most = this.#gpu.limits.maxStorageBuffersPerShaderStage
    if (shader.bindings.length > most)
      throw new DeviceError(
        `${label}: needs ${shader.bindings.length} buffers at once; this GPU allows ${most}`,
      )
    const layout = this.#layout(paramBytes, shader.bindings, 0)
    const joins = shader.joins === undefined ? null : { shader, with: new Map() }
    const pipeline = joins ? null : this.#compile(label, layout, shaderCode(shader))
    return { label, params: shader.params, pipeline, layout, paramBytes, joins }
  }

  #compile(label: string, layout: Layout, code: string): GPUComputePipeline {
    const { device, adapterName } = this.#gpu
    device.pushErrorScope('validation')
    const module = device.createShaderModule({ label, code: this.#ownHalves ? withOwnHalves(code) : code })
    const pipeline = device.createComputePipeline({
      label,
      layout: layout.pipeline,
      compute: { module, entryPoint: 'main' },
    })
    this.#popErrors((message) => `${label}: its kernel is invalid on ${adapterName}: ${message}`)
    return pipeline
  }

  #layout(paramBytes: number, bindings: readonly Binding[], secondBytes: number): Layout {
    const key = `${paramBytes}${bindings.map((b) => (b.write ? 'w' : 'r')).join('')}${secondBytes}`
    let known = this.#layouts.get(key)
    if (!known) {
      const { device } = this.#gpu
      const entry = (
        binding: number,
        type: GPUBufferBindingType,
        minBindingSize = 0,
      ): GPUBindGroupLayoutEntry => ({
        binding,
        visibility: 4,
        buffer: { type, minBindingSize },
      })
      const entries = [
        entry(0, 'uniform', paramBytes),
        ...bindings.map((b, i) => entry(i + 1, b.write ? 'storage' : 'read-only-storage')),
      ]
      if (secondBytes > 0) entries.push(entry(entries.length, 'uniform', secondBytes))
      const group = device.createBindGroupLayout({ entries })
      const pipeline = device.createPipelineLayout({ bindGroupLayouts: [group] })
      known = { id: this.#layouts.size, group, pipeline, paramBytes, secondBytes }
      this.#layouts.set(key, known)
    }
    return known
  }
}

function binds(
  bound: Bound,
  layout: Layout,
  slot: number,
  second: number,
  buffers: readonly GpuBuffer[],
): boolean {
  const mine = bound.buffers
  if (bound.layout !== layout || bound.slot !== slot || bound.second !== second) return false
  if (mine.length !== buffers.length) return false
  for (let i = 0; i < mine.length; i++) if (mine[i] !== buffers[i]) return false
  return true
}
