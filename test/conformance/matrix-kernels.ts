import type { WebGpuBackend } from '@tilegrad/backend-webgpu'

/**
 * Counts, from now on, how often pipelines run whose code multiplies subgroup matrices, by their labels: it watches the device
 * itself, so that it counts what ran and not what was meant to.
 */
export function countMatrixKernels({ gpu: { device } }: WebGpuBackend): ReadonlyMap<string, number> {
  const ran = new Map<string, number>()
  const modules = new WeakSet<object>()
  const pipelines = new WeakMap<object, string>()
  const watch = <T extends object, K extends keyof T>(
    of: T,
    name: K,
    after: (args: never, result: never) => void,
  ) => {
    const before = of[name] as (...args: unknown[]) => unknown
    Object.defineProperty(of, name, {
      value: (...args: unknown[]) => {
        const result = before.apply(of, args)
        after(args as never, result as never)
        return result
      },
    })
  }
  watch(device, 'createShaderModule', ([{ code }]: [GPUShaderModuleDescriptor], module: GPUShaderModule) => {
    if (code.includes('subgroupMatrixMultiplyAccumulate')) modules.add(module)
  })
  watch(
    device,
    'createComputePipeline',
    ([{ compute, label = '' }]: [GPUComputePipelineDescriptor], pipeline: GPUComputePipeline) => {
      if (modules.has(compute.module)) pipelines.set(pipeline, label)
    },
  )
  watch(device, 'createCommandEncoder', (_: unknown, encoder: GPUCommandEncoder) => {
    watch(encoder, 'beginComputePass', (_: unknown, pass: GPUComputePassEncoder) => {
      watch(pass, 'setPipeline', ([pipeline]: [GPUComputePipeline]) => {
        const label = pipelines.get(pipeline)
        if (label !== undefined) ran.set(label, (ran.get(label) ?? 0) + 1)
      })
    })
  })
  return ran
}
