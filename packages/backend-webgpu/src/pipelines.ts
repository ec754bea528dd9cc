/** Compiled kernels by key, and what binds buffers to them. */

import { DeviceError } from '@tilegrad/core'
import type { GpuBuffer } from './buffers.ts'
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

/** A bind group and what it is found by. */
interface Bound {
  readonly group: GPUBindGroup
  readonly layoutId: number
  readonly slot: number
  readonly ids: readonly number[]
  /** Another one of the same hash. */
  readonly next: Bound | undefined
  /** What was asked for after it last time, and is likely to be again. */
  follower: Bound | undefined
}

const maxBindGroups = 4096

export class Pipelines {
  readonly #gpu: Gpu
  readonly #params: GPUBuffer
  readonly #popErrors: (describe: (message: string) => string) => void
  readonly #kernels = new Map<string, GpuKernel>()
  readonly #layouts = new Map<
    string,
    { layout: GPUBindGroupLayout; pipeline: GPUPipelineLayout; id: number }
  >()
  #bound = new Map<number, Bound>()
  #last: Bound | undefined
  /** Bind groups made so far: flat in a loop that repeats itself. */
  bindGroups = 0

  /** `params` holds the kernels' parameters; `popErrors` ends a scope of validation errors. */
  constructor(gpu: Gpu, params: GPUBuffer, popErrors: (describe: (message: string) => string) => void) {
    this.#gpu = gpu
    this.#params = params
    this.#popErrors = popErrors
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

  /** Binds buffers, and parameters that lie at `slot`. */
  bindGroup(kernel: GpuKernel, buffers: readonly GpuBuffer[], slot: number): GPUBindGroup {
    const { layoutId } = kernel
    let bound = this.#last?.follower
    if (!bound || !binds(bound, layoutId, slot, buffers)) {
      bound = this.#find(kernel, buffers, slot)
      if (this.#last) this.#last.follower = bound
    }
    this.#last = bound
    return bound.group
  }

  #find(kernel: GpuKernel, buffers: readonly GpuBuffer[], slot: number): Bound {
    const { layoutId } = kernel
    let hash = Math.imul(layoutId ^ slot, 0x9e3779b1)
    for (let i = 0; i < buffers.length; i++) {
      hash = Math.imul(hash ^ (buffers[i] as GpuBuffer).id, 0x9e3779b1)
      hash ^= hash >>> 15
    }
    const first = this.#bound.get(hash)
    for (let bound = first; bound; bound = bound.next) if (binds(bound, layoutId, slot, buffers)) return bound

    // Old ones go first: buffers that are gone would be held by them.
    if (this.#bound.size >= maxBindGroups) this.#evict()
    const size = Math.max(16, kernel.paramBytes)
    this.#gpu.device.pushErrorScope('validation')
    const group = this.#gpu.device.createBindGroup({
      label: kernel.label,
      layout: kernel.layout,
      entries: [
        { binding: 0, resource: { buffer: this.#params, offset: slot, size } },
        ...buffers.map((buffer, i) => ({ binding: i + 1, resource: { buffer: buffer.gpu } })),
      ],
    })
    this.#popErrors((message) => `${kernel.label}: its buffers are invalid: ${message}`)
    const ids = buffers.map((b) => b.id)
    const made: Bound = { group, layoutId, slot, ids, next: this.#bound.get(hash), follower: undefined }
    this.#bound.set(hash, made)
    this.bindGroups++
    return made
  }

  #evict(): void {
    const all = [...this.#bound]
    // What still points to them must not hold what came after.
    for (const [, old] of all.splice(0, maxBindGroups / 2))
      for (let bound: Bound | undefined = old; bound; bound = bound.next) bound.follower = undefined
    this.#bound = new Map(all)
  }

  #compile(label: string, shader: Shader): GpuKernel {
    const paramBytes = 16 * Math.max(1, Math.ceil(shader.params.length / 4))
    const { device, adapterName, limits } = this.#gpu
    const most = limits.maxStorageBuffersPerShaderStage
    if (shader.bindings.length > most)
      throw new DeviceError(
        `${label}: needs ${shader.bindings.length} buffers at once; this GPU allows ${most}`,
      )
    const layout = this.#layout(paramBytes, shader.bindings.map((b) => (b.write ? 'w' : 'r')).join(''))
    device.pushErrorScope('validation')
    const module = device.createShaderModule({ label, code: shaderCode(shader) })
    const pipeline = device.createComputePipeline({
      label,
      layout: layout.pipeline,
      compute: { module, entryPoint: 'main' },
    })
    this.#popErrors((message) => `${label}: its kernel is invalid on ${adapterName}: ${message}`)
    return { label, pipeline, layout: layout.layout, layoutId: layout.id, paramBytes }
  }

  #layout(paramBytes: number, access: string) {
    const key = `${paramBytes}${access}`
    let known = this.#layouts.get(key)
    if (!known) {
      const { device } = this.#gpu
      const layout = device.createBindGroupLayout({
        entries: [
          {
            binding: 0,
            visibility: 4,
            buffer: { type: 'uniform', minBindingSize: paramBytes },
          },
          ...[...access].map((a, i) => ({
            binding: i + 1,
            visibility: 4,
            buffer: { type: a === 'w' ? ('storage' as const) : ('read-only-storage' as const) },
          })),
        ],
      })
      const pipeline = device.createPipelineLayout({ bindGroupLayouts: [layout] })
      known = { layout, pipeline, id: this.#layouts.size }
      this.#layouts.set(key, known)
    }
    return known
  }
}

function binds(bound: Bound, layoutId: number, slot: number, buffers: readonly GpuBuffer[]): boolean {
  const { ids } = bound
  if (bound.layoutId !== layoutId || bound.slot !== slot || ids.length !== buffers.length) return false
  for (let i = 0; i < ids.length; i++) if (ids[i] !== (buffers[i] as GpuBuffer).id) return false
  return true
}
