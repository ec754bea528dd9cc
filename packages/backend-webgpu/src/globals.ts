/**
 * The names of WebGPU's types, without content: programs whose compiler knows neither DOM's nor those of @webgpu/types
 * can use this package's types, too. Where either is there, both declarations are one interface.
 */
declare global {
  interface GPU {}
  interface GPUAdapterInfo {}
  interface GPUBindGroup {}
  interface GPUBindGroupLayout {}
  interface GPUBuffer {}
  interface GPUComputePipeline {}
  interface GPUDevice {}
  interface GPUPipelineLayout {}
  interface GPUSupportedLimits {}
}

export {}
