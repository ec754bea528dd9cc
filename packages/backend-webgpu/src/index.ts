/**
 * The WebGPU backend of tilegrad: kernels in WGSL, through Dawn in Node and `navigator.gpu` in browsers.
 *
 * @packageDocumentation
 */
import './globals.ts'

export { createWebGpuBackend, type WebGpuBackend, type WebGpuOptions } from './backend.ts'
export type { BufferStats } from './device/buffers.ts'
export type { DawnOptions } from './device/dawn.ts'
export { type Gpu, type GpuLost, type GpuOptions, openGpu } from './device/gpu.ts'
