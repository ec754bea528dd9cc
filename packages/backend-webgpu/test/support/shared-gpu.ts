/**
 * Backends of several kinds on one device: nearly all that a software adapter takes is compiling, and most kernels are the
 * same for all of them.
 */
import { backendOn } from '../../src/backend.ts'
import { type Gpu, openGpu, type WebGpuBackend } from '../../src/index.ts'

export interface SharedGpu {
  /** A new backend with all that the adapter offers. */
  full(): WebGpuBackend
  /** A new backend that plans for the limits and features of every WebGPU device. */
  plain(): WebGpuBackend
}

/**
 * Opens a device for backends that compile no kernel twice. A device with default limits, Dawn's null device, is told of
 * each kernel of the plain ones: it computes nothing, but refuses what is beyond its limits and features. Closing one of
 * the backends closes all.
 */
export async function sharedGpu(): Promise<SharedGpu> {
  const gpu = await openGpu()
  const onError = (message: string): void =>
    // Nobody waits for it: what nobody catches fails the run.
    queueMicrotask(() => {
      throw new Error(`a GPU with default limits: ${message}`)
    })
  const least = await openGpu({ backend: 'null', limits: 'default', features: 'default', onError })
  const { features, limits, timestamps } = least
  const pipelines = new Map<string, GPUComputePipeline>()
  const full: Partial<Gpu> = { device: sharing(gpu.device, pipelines) }
  const device = sharing(gpu.device, pipelines, least.device)
  const plain: Partial<Gpu> = { features, limits, timestamps, device, matrices: null }
  return { full: () => backendOn(overlaid(gpu, full)), plain: () => backendOn(overlaid(gpu, plain)) }
}

/** An object with some properties replaced. Its methods run on the object itself: they may need what is private. */
const overlaid = <T extends object>(target: T, own: Partial<T>): T =>
  new Proxy(target, {
    get(_, name) {
      const value = Reflect.get(name in own ? own : target, name)
      return typeof value === 'function' && !(name in own) ? value.bind(target) : value
    },
  })

/** A device that compiles no kernel twice, whoever asks; `judge`, if there is one, must find it valid each time. */
function sharing(
  device: GPUDevice,
  pipelines: Map<string, GPUComputePipeline>,
  judge?: GPUDevice,
): GPUDevice {
  const layouts = new Map<object, string>()
  const codes = new Map<object, GPUShaderModuleDescriptor>()
  const judged = new Set<string>()
  const own: Partial<GPUDevice> = {
    createBindGroupLayout(descriptor) {
      const group = device.createBindGroupLayout(descriptor)
      layouts.set(group, JSON.stringify([...descriptor.entries]))
      return group
    },
    createPipelineLayout(descriptor) {
      const layout = device.createPipelineLayout(descriptor)
      layouts.set(
        layout,
        [...descriptor.bindGroupLayouts].map((group) => layouts.get(group as object)).join(),
      )
      return layout
    },
    createShaderModule(descriptor) {
      const module = {} as GPUShaderModule
      codes.set(module, descriptor)
      return module
    },
    createComputePipeline(descriptor) {
      const { compute, layout } = descriptor
      const shader = codes.get(compute.module) as GPUShaderModuleDescriptor
      const groups = layouts.get(layout as object) as string
      const key = `${shader.code} ${groups}`
      const make = (on: GPUDevice, layout: GPUPipelineLayout): GPUComputePipeline =>
        on.createComputePipeline({
          ...descriptor,
          layout,
          compute: { ...compute, module: on.createShaderModule(shader) },
        })
      if (judge && !judged.has(key)) {
        judged.add(key)
        const group = judge.createBindGroupLayout({ entries: JSON.parse(groups) })
        make(judge, judge.createPipelineLayout({ bindGroupLayouts: [group] }))
      }
      const known = pipelines.get(key) ?? make(device, layout as GPUPipelineLayout)
      pipelines.set(key, known)
      return known
    },
  }
  return overlaid(device, own)
}
