/** The WebGPU backend; so far, opening a GPU. @packageDocumentation */
export type { DawnOptions } from './dawn.ts'
export { type Gpu, type GpuLost, type GpuOptions, openGpu } from './gpu.ts'
