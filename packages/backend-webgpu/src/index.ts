/**
 * The WebGPU backend of tilegrad: kernels in WGSL, through Dawn in Node and `navigator.gpu` in browsers.
 *
 * @packageDocumentation
 */
import './globals.ts'

export { createWebGpuBackend, type WebGpuBackend, type WebGpuOptions } from './backend.ts'
export type { BufferStats } from './buffers.ts'
export type { DawnOptions } from './dawn.ts'
export { type Gpu, type GpuLost, type GpuOptions, openGpu } from './gpu.ts'
